"""The Grok-1 family: which leaf is which tensor, in shards, GGUF and Hugging Face names.

Tensors carry the path of the leaf in the parameter tree and are [out, in], experts [8, out, in].
Shards are the leaves in sorted key order, and keys sort as strings: layers 0, 1, 10, 11, ..., 2.
Sources: model.py and checkpoint.py in xai-org/grok-1; MODEL_TENSORS of the arch GROK in gguf-py;
grok.py in SGLang and vLLM for the Hugging Face names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from weightcast.converters.families.grok1.spec import Dimensions, Grok1Spec, Number, solve
from weightcast.converters.graph import tensor as graph
from weightcast.converters.graph import view
from weightcast.converters.graph.tensor import Tensor, TensorGraph
from weightcast.converters.graph.view import check_readable
from weightcast.errors import FormatError, LayoutError, MissingTensorError
from weightcast.formats.array import StoredArray
from weightcast.formats.jax.arrays import QuantizedArray
from weightcast.text import shown

FAMILY: Final = "grok-1"
EMBEDDING: Final = "language_model/in_out_embed/embeddings"
FINAL_NORM: Final = "language_model/rms_norm/scale"


@dataclass(frozen=True, slots=True)
class Role:
    """One kind of tensor: its leaf, its names elsewhere, the dimensions of its axes."""

    leaf: str
    gguf: str
    hugging_face: str
    axes: tuple[str, ...]
    stays_float32: bool = False
    old_gguf: str | None = None

    @property
    def is_experts(self) -> bool:
        return len(self.axes) == 3


# Roles of a layer in the order of its files. Norms and the router stay float32 in every output.
_EMB, _FFN, _Q, _KV, _E = "emb_size", "ffn_size", "q_size", "kv_size", "num_experts"
_MOE = "block_sparse_moe"
LAYER_ROLES: Final = (
    Role("moe/linear/w", "ffn_gate_exps", f"{_MOE}.experts.{{}}.w1", (_E, _FFN, _EMB)),
    Role("moe/linear_1/w", "ffn_down_exps", f"{_MOE}.experts.{{}}.w2", (_E, _EMB, _FFN)),
    Role("moe/linear_v/w", "ffn_up_exps", f"{_MOE}.experts.{{}}.w3", (_E, _FFN, _EMB)),
    Role("multi_head_attention/key/w", "attn_k", "self_attn.k_proj", (_KV, _EMB)),
    Role("multi_head_attention/linear/w", "attn_output", "self_attn.o_proj", (_EMB, _Q)),
    Role("multi_head_attention/query/w", "attn_q", "self_attn.q_proj", (_Q, _EMB)),
    Role("multi_head_attention/value/w", "attn_v", "self_attn.v_proj", (_KV, _EMB)),
    Role("rms_norm/scale", "attn_norm", "pre_attn_norm", (_EMB,), True),
    Role("rms_norm_1/scale", "attn_output_norm", "post_attn_norm", (_EMB,), True),
    Role("rms_norm_2/scale", "ffn_norm", "pre_moe_norm", (_EMB,), True),
    Role("rms_norm_3/scale", "post_ffw_norm", "post_moe_norm", (_EMB,), True, "layer_output_norm"),
    Role("router/w", "ffn_gate_inp", f"{_MOE}.gate", (_E, _EMB), True),
)
EMBEDDING_ROLE: Final = Role(
    EMBEDDING, "token_embd", "model.embed_tokens", ("vocab_size", "emb_size")
)
FINAL_NORM_ROLE: Final = Role(FINAL_NORM, "output_norm", "model.norm", ("emb_size",), True)


@dataclass(frozen=True, slots=True)
class Place:
    """A role at a layer (None outside the layers) and the names that follow."""

    role: Role
    layer: int | None

    @property
    def name(self) -> str:
        if self.layer is None:
            return self.role.leaf
        return f"transformer/decoder_layer_{self.layer}/{self.role.leaf}"

    @property
    def gguf(self) -> str:
        stem = self.role.gguf if self.layer is None else f"blk.{self.layer}.{self.role.gguf}"
        return f"{stem}.weight"

    @property
    def old_gguf(self) -> str | None:
        return self.role.old_gguf and f"blk.{self.layer}.{self.role.old_gguf}.weight"

    def hugging_face(self, expert: int | None = None) -> str:
        stem = self.role.hugging_face.format(expert)
        return (
            f"{stem}.weight" if self.layer is None else f"model.layers.{self.layer}.{stem}.weight"
        )


def places(num_layers: int) -> list[Place]:
    """All tensors of a model, layers in numerical order."""
    layers = [Place(role, layer) for layer in range(num_layers) for role in LAYER_ROLES]
    return [Place(EMBEDDING_ROLE, None), *layers, Place(FINAL_NORM_ROLE, None)]


def shard_places(num_layers: int) -> list[Place]:
    """All tensors in the order of the shards: sorted keys, so layer 10 follows layer 1."""
    order = sorted(range(num_layers), key=lambda layer: f"decoder_layer_{layer}")
    layers = [Place(role, layer) for layer in order for role in LAYER_ROLES]
    return [Place(EMBEDDING_ROLE, None), Place(FINAL_NORM_ROLE, None), *layers]


def graph_from_shards(
    directory: Path,
    shards: list[StoredArray | QuantizedArray],
    given: Mapping[str, Number],
    origin: str,
) -> TensorGraph[Grok1Spec]:
    """Name the leaves of a checkpoint directory. Raises LayoutError, MissingTensorError."""
    num_layers, rest = divmod(len(shards) - 2, len(LAYER_ROLES))
    if rest or num_layers < 1:
        raise MissingTensorError(
            f"{directory}: {len(shards)} shards; Grok-1 has 2 and {len(LAYER_ROLES)} per layer, "
            "so some are missing or do not belong here"
        )
    tensors = {
        place.name: _from_shard(place, shard)
        for place, shard in zip(shard_places(num_layers), shards, strict=True)
    }
    return _checked(str(directory), tensors, num_layers, f"{len(shards)} shards", given, origin)


def _from_shard(place: Place, shard: StoredArray | QuantizedArray) -> Tensor:
    if isinstance(shard, QuantizedArray):
        if place.role.stays_float32 or place.role == EMBEDDING_ROLE:
            raise LayoutError(
                f"{shard.weight.path}: int8 with scales, expected plain numbers for {place.name}"
            )
        return graph.transposed(graph.dequantized(place.name, shard.weight, shard.scales))
    tensor = graph.stored(place.name, shard)
    # The embedding table and norms are stored as they are used; matrices as [in, out].
    if place.layer is None or len(place.role.axes) == 1 or len(tensor.shape) < 2:
        return tensor
    return graph.transposed(tensor)


def graph_from_names(
    source: str,
    arrays: Mapping[str, StoredArray],
    convention: str,
    num_layers: int,
    given: Mapping[str, Number],
    origin: str,
) -> TensorGraph[Grok1Spec]:
    """Find the tensors under GGUF or Hugging Face names ("gguf", "hugging_face").

    Raises MissingTensorError, and FormatError for tensors that Grok-1 does not have.
    """
    left = dict(arrays)

    def pull(*names: str | None) -> Tensor:
        for name in names:
            if name in left:
                assert name is not None
                return graph.stored(name, left.pop(name))
        raise MissingTensorError(f"{source}: tensor {names[0]} is missing")

    def find(place: Place) -> Tensor:
        if convention == "gguf":
            return pull(place.gguf, place.old_gguf)
        if not place.role.is_experts:
            return pull(place.hugging_face())
        experts: list[Tensor] = []
        while place.hugging_face(len(experts)) in left:
            experts.append(pull(place.hugging_face(len(experts))))
        if not experts:
            raise MissingTensorError(f"{source}: tensor {place.hugging_face(0)} is missing")
        return graph.stacked(place.name, tuple(experts))

    tensors = {}
    for place in places(num_layers):
        tensor = find(place)
        tensors[place.name] = Tensor(place.name, tensor.shape, tensor.dtype, tensor.origin)
    # The output head is the embedding table; a copy under its own name adds nothing.
    head = left.pop("output.weight" if convention == "gguf" else "lm_head.weight", None)
    if head is not None:
        check_tied(head, view.first_array(tensors[EMBEDDING]))
    if left:
        names = ", ".join(shown(name) for name in sorted(left)[:3])
        raise FormatError(source, None, f"{len(left)} tensors that Grok-1 does not have: {names}")
    where = f"the tensor names of {source}"
    return _checked(source, tensors, num_layers, where, given, origin)


def check_tied(head: StoredArray, embedding: StoredArray) -> None:
    """Raise LayoutError if an output head differs from the embedding table that Grok-1 shares.

    Compares tables up to 64 MiB whole and of larger ones 1024 pieces of 64 KiB, so that looking at
    a checkpoint stays quick. Of heads in another type, or packed, only the shape is compared.
    """
    problem = f"{head.path}: the output head is not the embedding table, as it is in Grok-1"
    if head.shape != embedding.shape:
        raise LayoutError(problem)
    if head.dtype != embedding.dtype or head.packed is not None:
        return
    piece = 1 << 16
    with head.path.open("rb") as a, embedding.path.open("rb") as b:
        for start in range(0, head.nbytes, max(piece, head.nbytes // 1024)):
            a.seek(head.offset + start)
            b.seek(embedding.offset + start)
            count = min(piece, head.nbytes - start)
            if a.read(count) != b.read(count):
                raise LayoutError(problem)


def _checked(
    source: str,
    tensors: dict[str, Tensor],
    num_layers: int,
    layers_where: str,
    given: Mapping[str, Number],
    origin: str,
) -> TensorGraph[Grok1Spec]:
    dimensions = Dimensions(given, origin)
    dimensions.check("num_layers", num_layers, layers_where)
    for place in places(num_layers):
        tensor = tensors[place.name]
        where = f"{view.first_array(tensor).path.name} ({place.name})"
        if len(tensor.shape) != len(place.role.axes):
            raise LayoutError(
                f"{where} has {len(tensor.shape)} axes, expected {len(place.role.axes)}: "
                f"{', '.join(place.role.axes)}"
            )
        for name, size in zip(place.role.axes, tensor.shape, strict=True):
            if size < 1:
                raise LayoutError(f"{name} is {size} by {where}")
            dimensions.check(name, size, where)
        check_readable(tensor)
    spec = solve(dimensions, given)
    ordered = {place.name: tensors[place.name] for place in places(num_layers)}
    return TensorGraph(FAMILY, source, spec, ordered)
