"""Small models of many architectures, with the metadata that llama-quantize asks for.

They have what its rules look at: names, shapes, numbers of layers, heads and experts. Tensors lie
in an order that is not llama.cpp's. Values are the same on every machine.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests import gguf_files as files
from tests.gguf_files import Part, string, u32
from tests.imatrices import Floats, sample

WIDTH, HIDDEN, VOCABULARY = 256, 512, 64
MXFP4 = 39
Shape = tuple[int, ...]
# Name, row-major shape, ggml's number of the type.
Tensors = Iterable[tuple[str, Shape, int]]
Keys = dict[str, bytes]
_KINDS = {"f32": files.F32, "f16": files.F16, "bf16": files.BF16}


def whole(value: int) -> bytes:
    return u32(value)


def wholes(*values: int) -> bytes:
    return files.array(5, struct.pack(f"<{len(values)}i", *values))


def number(value: float) -> bytes:
    return struct.pack("<If", 6, value)


def keys(
    architecture: str, layers: int, kv_heads: bytes | None, heads: int = 8, **more: int
) -> Keys:
    """The metadata of a language model; `more` are whole numbers, with __ for a point."""
    found = {
        "block_count": whole(layers),
        "context_length": whole(512),
        "embedding_length": whole(WIDTH),
        "feed_forward_length": whole(HIDDEN),
        "attention.head_count": whole(heads),
        **({} if kv_heads is None else {"attention.head_count_kv": kv_heads}),
        "attention.layer_norm_rms_epsilon": number(1e-5),
        "attention.layer_norm_epsilon": number(1e-5),
        **{key.replace("__", "."): whole(value) for key, value in more.items()},
    }
    return {
        "general.architecture": string(architecture),
        "general.file_type": whole(32),
        "general.name": string("a small model"),
        **{f"{architecture}.{key}": value for key, value in found.items()},
    }


def ends(kind: int, *, tied: bool = False) -> Iterator[tuple[str, Shape, int]]:
    yield "token_embd.weight", (VOCABULARY, WIDTH), kind
    if not tied:
        yield "output.weight", (VOCABULARY, WIDTH), kind
    yield "output_norm.weight", (WIDTH,), files.F32


def matrices(prefix: str, kind: int, **shapes: Shape) -> Iterator[tuple[str, Shape, int]]:
    """Weights of a layer by their names; vectors are float32."""
    for name, shape in shapes.items():
        yield f"{prefix}.{name}.weight", shape, kind if len(shape) > 1 else files.F32


def attention(layer: int, kind: int) -> Tensors:
    square, kv = (WIDTH, WIDTH), (64, WIDTH)
    shapes = {"attn_norm": (WIDTH,), "attn_q": square, "attn_k": kv, "attn_v": kv}
    return matrices(f"blk.{layer}", kind, **shapes, attn_output=square)


def feed_forward(layer: int, kind: int) -> Tensors:
    up, down = (HIDDEN, WIDTH), (WIDTH, HIDDEN)
    return matrices(f"blk.{layer}", kind, ffn_norm=(WIDTH,), ffn_gate=up, ffn_down=down, ffn_up=up)


def experts(layer: int, kind: int, count: int, *, shared: bool = False) -> Tensors:
    up = (count, 256, WIDTH)
    yield f"blk.{layer}.ffn_norm.weight", (WIDTH,), files.F32
    yield f"blk.{layer}.ffn_gate_inp.weight", (count, WIDTH), files.F32
    yield from matrices(
        f"blk.{layer}", kind, ffn_gate_exps=up, ffn_down_exps=(count, WIDTH, 256), ffn_up_exps=up
    )
    if shared:
        yield from matrices(
            f"blk.{layer}",
            kind,
            ffn_gate_shexp=(256, WIDTH),
            ffn_down_shexp=(WIDTH, 256),
            ffn_up_shexp=(256, WIDTH),
        )


def dense(layers: int, kind: int) -> Iterator[tuple[str, Shape, int]]:
    for layer in range(layers):
        yield from attention(layer, kind)
        yield from feed_forward(layer, kind)


EXPERTS = {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 256}
SSM = {
    "ssm__conv_kernel": 4,
    "ssm__inner_size": 512,
    "ssm__state_size": 64,
    "ssm__time_step_rank": 8,
    "ssm__group_count": 1,
}


def llama() -> tuple[Keys, Tensors]:
    return keys("llama", 16, whole(2)), [*ends(files.BF16), *dense(16, files.BF16)]


def llama_tied() -> tuple[Keys, Tensors]:
    return keys("llama", 9, whole(2)), [*ends(files.BF16, tied=True), *dense(9, files.BF16)]


def qwen3moe() -> tuple[Keys, Tensors]:
    tensors = [*ends(files.BF16)]
    for layer in range(8):
        tensors += [*attention(layer, files.BF16), *experts(layer, files.BF16, 4)]
    return keys("qwen3moe", 8, whole(2), **EXPERTS), tensors


def mixtral_of_before() -> tuple[Keys, Tensors]:
    """Each expert a tensor of its own, as before April 2024."""
    tensors, kind = [*ends(files.F16)], files.F16
    for layer in range(4):
        tensors += attention(layer, kind)
        tensors += matrices(f"blk.{layer}", kind, ffn_norm=(WIDTH,), ffn_gate_inp=(8, WIDTH))
        shapes = {"gate": (HIDDEN, WIDTH), "down": (WIDTH, HIDDEN), "up": (HIDDEN, WIDTH)}
        for expert in range(8):
            for name, shape in shapes.items():
                tensors.append((f"blk.{layer}.ffn_{name}.{expert}.weight", shape, kind))
    return keys("llama", 4, whole(2), expert_count=8, expert_used_count=2), tensors


def glm4moe() -> tuple[Keys, Tensors]:
    """The last layer predicts the token after the next."""
    tensors, kind = [*ends(files.BF16)], files.BF16
    for layer in range(6):
        tensors += attention(layer, kind)
        tensors += experts(layer, kind, 4, shared=True) if layer else feed_forward(layer, kind)
    table = (VOCABULARY, WIDTH)
    shapes = {"eh_proj": (WIDTH, 2 * WIDTH), "embed_tokens": table, "enorm": (WIDTH,)}
    shapes |= {"hnorm": (WIDTH,), "shared_head_head": table, "shared_head_norm": (WIDTH,)}
    tensors += matrices("blk.5.nextn", kind, **shapes)
    more = {"expert_shared_count": 1, "nextn_predict_layers": 1, "leading_dense_block_count": 1}
    return keys("glm4moe", 6, whole(2), **EXPERTS, **more), tensors


def deepseek2() -> tuple[Keys, Tensors]:
    """Latent attention, of which two matrices are stacks."""
    tensors, kind = [*ends(files.BF16)], files.BF16
    for layer in range(5):
        tensors += matrices(
            f"blk.{layer}",
            kind,
            attn_norm=(WIDTH,),
            attn_q_a=(256, WIDTH),
            attn_q_a_norm=(256,),
            attn_q_b=(8 * 96, 256),
            attn_kv_a_mqa=(256 + 32, WIDTH),
            attn_kv_a_norm=(256,),
            attn_k_b=(8, 256, 64),
            attn_v_b=(8, 64, 256),
            attn_output=(WIDTH, 512),
        )
        tensors += experts(layer, kind, 4, shared=True) if layer else feed_forward(layer, kind)
        if layer:
            tensors.append((f"blk.{layer}.exp_probs_b.bias", (4,), files.F32))
    more = {"expert_shared_count": 1, "leading_dense_block_count": 1}
    more |= {"attention__q_lora_rank": 256, "attention__kv_lora_rank": 256}
    more |= {"attention__key_length": 288, "attention__value_length": 256}
    more |= {"rope__dimension_count": 32}
    return keys("deepseek2", 5, whole(1), **EXPERTS, **more), tensors


def gpt_oss() -> tuple[Keys, Tensors]:
    """Experts in MXFP4; rows that no block of 256 divides."""
    width, kind = 288, files.BF16
    table = (VOCABULARY, width)
    tensors = [("token_embd.weight", table, kind), ("output.weight", table, kind)]
    tensors.append(("output_norm.weight", (width,), files.F32))
    for layer in range(4):
        prefix = f"blk.{layer}"
        tensors += matrices(
            prefix,
            kind,
            attn_norm=(width,),
            attn_q=(256, width),
            attn_k=(64, width),
            attn_v=(64, width),
            attn_output=(width, 256),
            post_attention_norm=(width,),
        )
        tensors.append((f"{prefix}.attn_q.bias", (256,), files.F32))
        tensors.append((f"{prefix}.attn_sinks.weight", (8,), files.F32))
        tensors.append((f"{prefix}.ffn_gate_inp.weight", (4, width), files.F32))
        for name in ("gate", "down", "up"):
            stack = (4, width, width)
            tensors.append((f"{prefix}.ffn_{name}_exps.weight", stack, MXFP4))
            tensors.append((f"{prefix}.ffn_{name}_exps.bias", (4, width), files.F32))
    more = {**EXPERTS, "expert_feed_forward_length": 288, "attention__sliding_window": 128}
    return keys("gpt-oss", 4, whole(2), **more), tensors


def falcon() -> tuple[Keys, Tensors]:
    """Rows of 288 (4,544 in Falcon 7B), which no block of 256 divides."""
    width, kind = 288, files.F16
    tensors = [("token_embd.weight", (VOCABULARY, width), kind)]
    tensors.append(("output.weight", (VOCABULARY, width), kind))
    tensors += [(f"output_norm.{name}", (width,), files.F32) for name in ("weight", "bias")]
    for layer in range(8):
        tensors.append((f"blk.{layer}.attn_norm.bias", (width,), files.F32))
        tensors += matrices(
            f"blk.{layer}",
            kind,
            attn_norm=(width,),
            attn_qkv=(400, width),
            attn_output=(width, width),
            ffn_up=(1280, width),
            ffn_down=(width, 1280),
        )
    return keys("falcon", 8, whole(1)), tensors


def gemma3n() -> tuple[Keys, Tensors]:
    kind = files.BF16
    tensors = [*ends(kind, tied=True)]
    tensors += [
        ("per_layer_token_embd.weight", (VOCABULARY, 4 * 256), kind),
        ("per_layer_model_proj.weight", (4 * 256, WIDTH), kind),
        ("per_layer_proj_norm.weight", (256,), files.F32),
        ("altup_proj.weight", (3, WIDTH, WIDTH), kind),
        ("altup_unembd_proj.weight", (3, WIDTH, WIDTH), kind),
    ]
    for layer in range(4):
        tensors += [*attention(layer, kind), *feed_forward(layer, kind)]
        tensors += matrices(
            f"blk.{layer}",
            kind,
            altup_router=(4, WIDTH),
            laurel_l=(64, WIDTH),
            laurel_r=(WIDTH, 64),
            inp_gate=(256, WIDTH),
            proj=(WIDTH, 256),
        )
    return keys("gemma3n", 4, whole(2), attention__sliding_window=512), tensors


def bert() -> tuple[Keys, Tensors]:
    kind = files.F16
    tensors = [
        ("token_embd.weight", (VOCABULARY, WIDTH), kind),
        ("position_embd.weight", (128, WIDTH), kind),
        ("token_types.weight", (2, WIDTH), kind),
        ("token_embd_norm.weight", (WIDTH,), files.F32),
        ("token_embd_norm.bias", (WIDTH,), files.F32),
    ]
    for layer in range(4):
        names = ("attn_q", "attn_k", "attn_v", "attn_output")
        tensors += matrices(
            f"blk.{layer}",
            kind,
            **dict.fromkeys(names, (WIDTH, WIDTH)),
            attn_output_norm=(WIDTH,),
            ffn_up=(HIDDEN, WIDTH),
            ffn_down=(WIDTH, HIDDEN),
            layer_output_norm=(WIDTH,),
        )
    return {**keys("bert", 4, whole(8)), "tokenizer.ggml.token_type_count": whole(2)}, tensors


def mamba2() -> tuple[Keys, Tensors]:
    """No attention; vectors with an axis of 1 before or after the other."""
    tensors = [*ends(files.F16, tied=True)]
    for layer in range(4):
        tensors += _mamba(layer, files.F16)
        tensors.append((f"blk.{layer}.ssm_conv1d.bias", (640,), files.F32))
        tensors += [(f"blk.{layer}.ssm_{name}", (8, 1), files.F32) for name in ("a", "d")]
        tensors.append((f"blk.{layer}.ssm_norm.weight", (1, 512), files.F32))
    return keys("mamba2", 4, None, heads=0, **SSM), tensors


def _mamba(layer: int, kind: int) -> Tensors:
    yield from matrices(f"blk.{layer}", kind, attn_norm=(WIDTH,), ssm_in=(1100, WIDTH))
    yield f"blk.{layer}.ssm_conv1d.weight", (640, 4), files.F32
    yield f"blk.{layer}.ssm_out.weight", (WIDTH, 512), kind


def granite_hybrid() -> tuple[Keys, Tensors]:
    """Attention in some layers only."""
    kv_heads = (0, 0, 2, 0, 0, 0, 2, 0)
    tensors = [*ends(files.BF16, tied=True)]
    for layer, heads in enumerate(kv_heads):
        tensors += (attention if heads else _mamba)(layer, files.BF16)
        tensors += feed_forward(layer, files.BF16)
    return keys("granitehybrid", 8, wholes(*kv_heads), **SSM), tensors


def rwkv7() -> tuple[Keys, Tensors]:
    kind, square = files.F16, (WIDTH, WIDTH)
    tensors = [*ends(kind)]
    tensors += [(f"token_embd_norm.{name}", (WIDTH,), files.F32) for name in ("weight", "bias")]
    for layer in range(3):
        prefix = f"blk.{layer}"
        tensors += matrices(
            prefix,
            kind,
            attn_norm=(WIDTH,),
            time_mix_w0=(WIDTH,),
            time_mix_w1=(64, WIDTH),
            time_mix_w2=(WIDTH, 64),
            time_mix_a1=(64, WIDTH),
            time_mix_g2=(WIDTH, 128),
            time_mix_key=square,
            time_mix_receptance=square,
            time_mix_output=square,
            time_mix_r_k=(WIDTH,),
            channel_mix_key=(HIDDEN, WIDTH),
            channel_mix_value=(WIDTH, HIDDEN),
        )
        tensors.append((f"{prefix}.time_mix_lerp_fused.weight", (6, 1, 1, WIDTH), files.F32))
    sizes = {"decay": 64, "iclr": 64, "gate": 128, "value_residual_mix": 32}
    ranks = {f"attention__{name}_lora_rank": size for name, size in sizes.items()}
    return keys("rwkv7", 3, None, heads=0, wkv__head_size=64, **ranks), tensors


def lfm2() -> tuple[Keys, Tensors]:
    kv_heads, kind = (0, 0, 2, 0, 2, 0), files.BF16
    tensors = [*ends(kind, tied=True)]
    for layer, heads in enumerate(kv_heads):
        if heads:
            tensors += attention(layer, kind)
        else:
            tensors.append((f"blk.{layer}.attn_norm.weight", (WIDTH,), files.F32))
            tensors.append((f"blk.{layer}.shortconv.conv.weight", (WIDTH, 3), files.F32))
            shapes = {"in_proj": (3 * WIDTH, WIDTH), "out_proj": (WIDTH, WIDTH)}
            tensors += matrices(f"blk.{layer}.shortconv", kind, **shapes)
        tensors += feed_forward(layer, kind)
    return keys("lfm2", 6, wholes(*kv_heads), shortconv__l_cache=3), tensors


def t5() -> tuple[Keys, Tensors]:
    """An encoder and a decoder, whose layers llama.cpp does not count."""
    kind, square = files.F16, (WIDTH, WIDTH)
    tensors = [("token_embd.weight", (VOCABULARY, WIDTH), kind)]
    tensors += [(f"{side}.output_norm.weight", (WIDTH,), files.F32) for side in ("dec", "enc")]
    for side in ("enc", "dec"):
        for layer in range(4):
            prefix = f"{side}.blk.{layer}"
            own = {f"attn_{name}": square for name in "qkvo"}
            cross = {f"cross_attn_{name}": square for name in "qkvo"} if side == "dec" else {}
            bias = {"attn_rel_b": (32, 8)} if layer == 0 else {}
            up, down = (HIDDEN, WIDTH), (WIDTH, HIDDEN)
            tensors += matrices(prefix, kind, attn_norm=(WIDTH,), **own, **bias, **cross)
            tensors += matrices(prefix, kind, ffn_gate=up, ffn_down=down, ffn_up=up)
    return keys("t5", 4, None, attention__relative_buckets_count=32), tensors


def projector() -> tuple[Keys, Tensors]:
    """A vision encoder: a tensor of four axes, and rows that no block divides."""
    kind = files.F16
    tensors = [
        ("v.patch_embd.weight", (WIDTH, 3, 14, 14), kind),
        ("v.patch_embd.bias", (WIDTH,), files.F32),
        ("v.position_embd.weight", (64, WIDTH), kind),
        ("mm.0.weight", (HIDDEN, 1024), kind),
        ("mm.0.bias", (HIDDEN,), files.F32),
        ("mm.2.weight", (WIDTH, HIDDEN), kind),
        ("v.post_ln.weight", (WIDTH,), files.F32),
    ]
    for layer in range(3):
        names = ("attn_q", "attn_k", "attn_v", "attn_out")
        tensors += matrices(
            f"v.blk.{layer}",
            kind,
            **dict.fromkeys(names, (WIDTH, WIDTH)),
            ffn_up=(272, WIDTH),
            ffn_down=(WIDTH, 272),
            ln1=(WIDTH,),
        )
    metadata = {
        "general.architecture": string("clip"),
        "general.type": string("mmproj"),
        "general.file_type": whole(1),
        "clip.has_vision_encoder": struct.pack("<I?", 7, True),
        "clip.projector_type": string("qwen2.5vl_merger"),
        "clip.vision.block_count": whole(3),
        "clip.vision.embedding_length": whole(WIDTH),
        "clip.vision.image_mean": files.array(6, struct.pack("<3f", 0.5, 0.5, 0.5)),
    }
    return metadata, tensors


def nanbeige() -> tuple[Keys, Tensors]:
    """Layers that are run twice."""
    return keys("nanbeige", 16, whole(2), num_loops=2), [*ends(files.BF16), *dense(16, files.BF16)]


def granite_switch() -> tuple[Keys, Tensors]:
    metadata = keys("graniteswitch", 15, whole(2), adapters__count=1, adapters__lora_rank=4)
    metadata |= {
        "graniteswitch.logit_scale": number(1),
        "graniteswitch.adapters.token_ids_activate": wholes(1),
        "graniteswitch.adapters.token_ids_substitute": wholes(2),
    }
    return metadata, [*ends(files.BF16), *dense(15, files.BF16)]


def llama4() -> tuple[Keys, Tensors]:
    """Experts in every other layer."""
    tensors, kind = [*ends(files.BF16)], files.BF16
    for layer in range(4):
        tensors += attention(layer, kind)
        is_mixture = layer % 2
        tensors += (
            experts(layer, kind, 16, shared=True) if is_mixture else feed_forward(layer, kind)
        )
    more = {**EXPERTS, "expert_count": 16, "expert_used_count": 1, "interleave_moe_layer_step": 2}
    return keys("llama4", 4, whole(2), **more), tensors


def odd_rows() -> tuple[Keys, Tensors]:
    """Rows of 100, which neither blocks of 256 nor of 32 divide, in float32."""
    width, kind = 100, files.F32
    tensors = [("token_embd.weight", (VOCABULARY, width), kind)]
    tensors.append(("output.weight", (VOCABULARY, width), kind))
    tensors.append(("output_norm.weight", (width,), kind))
    for layer in range(2):
        names = ("attn_q", "attn_k", "attn_v", "attn_output")
        up, down = (160, width), (width, 160)
        tensors += matrices(f"blk.{layer}", kind, **dict.fromkeys(names, (width, width)))
        tensors += matrices(f"blk.{layer}", kind, ffn_gate=up, ffn_down=down, ffn_up=up)
    return keys("llama", 2, whole(2)), tensors


_ALL: tuple[Callable[[], tuple[Keys, Tensors]], ...] = (
    llama,
    llama_tied,
    qwen3moe,
    mixtral_of_before,
    glm4moe,
    deepseek2,
    gpt_oss,
    falcon,
    gemma3n,
    bert,
    mamba2,
    granite_hybrid,
    rwkv7,
    lfm2,
    t5,
    projector,
    nanbeige,
    granite_switch,
    llama4,
    odd_rows,
)
MODELS = {model.__name__: model for model in _ALL}


def part(kind: int, shape: Shape, seed: int) -> Part:
    """A tensor of values that look like weights: up to 0.05, many small ones."""
    count = int(np.prod(shape))
    mixed = ((np.arange(count, dtype=np.int64) * 7919 + seed * 104729) % 10007 - 5003) / 5003.0
    values = (mixed**3 * 0.05).astype(np.float32)
    if kind == MXFP4:
        codes = (np.arange(count // 32 * 17, dtype=np.int64) * 7919 + seed).astype(np.uint8)
        blocks = codes.reshape(-1, 17)
        blocks[:, 0] = 118 + blocks[:, 0] % 6  # exponents of the scales
        return Part(kind, shape, blocks.tobytes())
    if kind == files.BF16:
        return Part(kind, shape, (values.view(np.uint32) >> 16).astype(np.uint16).tobytes())
    stored = values.astype(np.float16) if kind == files.F16 else values
    return Part(kind, shape, stored.tobytes())


def write_model(path: Path, name: str) -> Path:
    """Write a model of MODELS."""
    metadata, tensors = MODELS[name]()
    parts = {key: part(kind, shape, seed) for seed, (key, shape, kind) in enumerate(tensors)}
    return files.write(path, metadata, parts)


def importance(name: str) -> dict[str, tuple[Floats, NDArray[np.float32]]]:
    """Sums and counts for every matrix of a model but embeddings, as in llama-imatrix's files."""
    _, tensors = MODELS[name]()
    entries = {}
    for seed, (key, shape, _) in enumerate(tensors):
        if (
            len(shape) > 1
            and key.endswith("weight")
            and not any(w in key for w in ("norm", "embd"))
        ):
            stacked = shape[0] if len(shape) > 2 else 1
            sums, counts = sample(stacked, shape[-1], seed)
            entries[key] = (sums + 1, counts)
    return entries
