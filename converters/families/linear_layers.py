"""Where llama.cpp keeps the layers of models in transformers: for adapters, which name layers so.

Of families with a table it says where. Of other architectures the gguf package has the names; which
of them llama.cpp's converter only renames, and what it does to the others, is in the table here.
Source: modify_tensors of each model in conversion/ of llama.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from weightcast.converters.graph import Family, TensorGraph
from weightcast.errors import LayoutError
from weightcast.text import shown, some

if TYPE_CHECKING:
    from gguf import TensorNameMap


@dataclass(frozen=True, slots=True)
class Architecture:
    """What becomes of an architecture's layers.

    The halves of each head of q and k are `interleaved`. Single experts are stacked; `experts` is
    how the gguf package calls their stacks, in which {layer} is the layer, {name} the last word.
    `classes` are the models in transformers.
    """

    classes: tuple[str, ...]
    interleaved: bool = False
    experts: str | None = None


_QWEN_EXPERTS: Final = "model.layers.{layer}.mlp.experts.{name}"
_MIXTRAL_EXPERTS: Final = "layers.{layer}.feed_forward.experts.{name}"

ARCHITECTURES: Final[Mapping[str, Architecture]] = {
    "apertus": Architecture(("ApertusForCausalLM",)),
    "arcee": Architecture(("ArceeForCausalLM",), interleaved=True),
    "chatglm": Architecture(("ChatGLMForConditionalGeneration", "ChatGLMModel", "GlmForCausalLM")),
    "codeshell": Architecture(("CodeShellForCausalLM",)),
    "cohere2": Architecture(("Cohere2ForCausalLM",)),
    "command-r": Architecture(("CohereForCausalLM",)),
    "exaone": Architecture(("ExaoneForCausalLM",)),
    "exaone4": Architecture(("Exaone4ForCausalLM",)),
    "gemma": Architecture(("GemmaForCausalLM",)),
    "gemma2": Architecture(("Gemma2ForCausalLM",)),
    "gemma3": Architecture(("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration")),
    "gpt-oss": Architecture(("GptOssForCausalLM",)),
    "granite": Architecture(("GraniteForCausalLM",), interleaved=True),
    "hunyuan-dense": Architecture(("HunYuanDenseV1ForCausalLM",)),
    "jais2": Architecture(("Jais2ForCausalLM",)),
    "llama": Architecture(
        (
            "LlamaForCausalLM",
            "LLaMAForCausalLM",
            "MistralForCausalLM",
            "MixtralForCausalLM",
            "IQuestCoderForCausalLM",
            "InternLM3ForCausalLM",
            "LlavaForConditionalGeneration",
            "VoxtralForConditionalGeneration",
        ),
        interleaved=True,
        experts=_MIXTRAL_EXPERTS,
    ),
    "maincoder": Architecture(("MaincoderForCausalLM",)),
    "minicpm": Architecture(("MiniCPMForCausalLM",), interleaved=True),
    "minicpm3": Architecture(("MiniCPM3ForCausalLM",)),
    "mistral3": Architecture(
        ("Ministral3ForCausalLM", "Mistral3ForConditionalGeneration"), interleaved=True
    ),
    "nemotron": Architecture(("NemotronForCausalLM",)),
    "olmo": Architecture(("OlmoForCausalLM", "OLMoForCausalLM"), interleaved=True),
    "olmo2": Architecture(("Olmo2ForCausalLM", "Olmo3ForCausalLM")),
    "olmoe": Architecture(("OlmoeForCausalLM",), experts=_QWEN_EXPERTS),
    "orion": Architecture(("OrionForCausalLM",)),
    "pangu-embedded": Architecture(("PanguEmbeddedForCausalLM",)),
    "phi2": Architecture(("PhiForCausalLM",)),
    "phi3": Architecture(("Phi3ForCausalLM", "Phi4ForCausalLMV")),
    "plm": Architecture(("PLMForCausalLM",)),
    "qwen": Architecture(("QWenLMHeadModel",)),
    "qwen2": Architecture(("Qwen2ForCausalLM", "Qwen2AudioForConditionalGeneration")),
    "qwen2moe": Architecture(("Qwen2MoeForCausalLM",), experts=_QWEN_EXPERTS),
    "qwen2vl": Architecture(
        ("Qwen2VLForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration")
    ),
    "qwen3": Architecture(("Qwen3ForCausalLM",)),
    "qwen3moe": Architecture(("Qwen3MoeForCausalLM",), experts=_QWEN_EXPERTS),
    "qwen3vl": Architecture(("Qwen3VLForConditionalGeneration",)),
    "seed_oss": Architecture(("SeedOssForCausalLM",)),
    "smollm3": Architecture(("SmolLM3ForCausalLM",), interleaved=True),
    "stablelm": Architecture(("StableLmForCausalLM", "StableLMEpochForCausalLM")),
    "starcoder": Architecture(("GPTBigCodeForCausalLM",)),
    "starcoder2": Architecture(("Starcoder2ForCausalLM",)),
}
_BY_CLASS: Final = {name: key for key, row in ARCHITECTURES.items() for name in row.classes}

_LAYER: Final = re.compile(r"(?<=\.)[0-9]{1,6}(?=\.)|^[0-9]{1,6}(?=\.)")
_EXPERT: Final = re.compile(
    r".*\.(?P<layer>[0-9]{1,6})\..*\.experts\.(?P<expert>[0-9]{1,6})\.(?P<name>\w+)"
)
# Parts of names that models with other inputs than text have around the language model's.
_AROUND: Final = ("language_model.", "text_model.")
_OTHER_INPUTS: Final = re.compile(r"(^|\.)(vision|visual|audio|multi_modal|mm_)")
MAKE_ADAPTER: Final = (
    "make a GGUF file of it with llama.cpp's convert_lora_to_gguf.py, and name that"
)


@dataclass(frozen=True, slots=True)
class Target:
    """The tensor of a layer in GGUF, and which of its experts the layer is, if it is one.

    Where llama.cpp interleaves the halves of heads, `heads` is their number, else 0.
    """

    name: str
    expert: int | None = None
    heads: int = 0


@dataclass(frozen=True)
class BaseModel:
    """What an adapter takes from the model that it belongs to.

    `heads` are those of q and of k in a layer; 0 if that is unknown, as `num_experts` can be.
    `source` is where it was read, for messages.
    """

    source: str
    architecture: str
    family: Family | None = None
    heads: Callable[[int], tuple[int, int]] = lambda layer: (0, 0)
    num_experts: int = 0

    def target(self, module: str) -> Target:
        """Find the tensor of a layer. Raises LayoutError if llama.cpp has none like it."""
        if self.family is not None and self.family.has_table:
            found = _in_table(self.family, module)
            if found is None:
                title = self.family.title
                raise LayoutError(f"{shown(module)} is no layer of {title} that can be adapted")
            return found
        return self._renamed(module)

    def _renamed(self, module: str) -> Target:
        row = ARCHITECTURES.get(self.architecture)
        if row is None:
            known = some(sorted(ARCHITECTURES))
            raise LayoutError(
                f"what becomes of the layers of {shown(self.architecture)} in GGUF is not known "
                f"here ({known} are); {MAKE_ADAPTER}"
            )
        if _OTHER_INPUTS.search(module):
            raise LayoutError(f"{shown(module)} is no layer of the language model")
        plain = module
        for part in _AROUND:
            plain = plain.replace(part, "")
        expert = _EXPERT.fullmatch(plain) if row.experts is not None else None
        number = None
        if expert is not None and row.experts is not None:
            plain, number = row.experts.format(**expert.groupdict()), int(expert["expert"])
        spellings = (plain, f"model.{plain}", plain.removeprefix("transformer."))
        found = (_gguf_name(self.architecture, spelling) for spelling in spellings)
        name = next(filter(None, found), None)
        if name is None:
            raise LayoutError(
                f"{shown(module)} is no layer that llama.cpp has of {self.architecture}"
            )
        return Target(name, number, self._heads_of(name) if row.interleaved else 0)

    def _heads_of(self, name: str) -> int:
        """Count the heads of a tensor whose heads are interleaved. Raises LayoutError."""
        match = re.fullmatch(r"blk\.(\d+)\.attn_([qk])\.weight", name)
        if match is None:
            return 0
        found = self.heads(int(match[1]))["qk".index(match[2])]
        if found < 1:
            raise LayoutError(f"{self.source} does not say how many heads a layer has")
        return found


def _in_table(family: Family, module: str) -> Target | None:
    """Find a layer under a name that any convention of a family's table has."""
    weight = f"{module}.weight"
    for convention in ("hugging_face", *family.dialects.get("hugging_face", ())):
        for role in family.roles:
            stored = family.names[convention].get(role.name)
            is_whole = stored is not None and (stored.is_one_expert or not role.is_experts)
            if stored is None or not is_whole or stored.read is not None or role.tied_to:
                continue
            pattern = re.escape(stored.name).replace(r"\{layer\}", r"(?P<layer>\d{1,6})")
            pattern = pattern.replace(r"\{expert\}", r"(?P<expert>\d{1,6})")
            match = re.fullmatch(pattern, weight)
            if match is not None:
                places = match.groupdict()
                stem = f"blk.{int(places['layer'])}." if role.per_layer else ""
                expert = int(places["expert"]) if "expert" in places else None
                return Target(f"{stem}{role.name}.weight", expert)
    return None


def _gguf_name(architecture: str, module: str) -> str | None:
    """Give the name in GGUF of a layer's weights; None if llama.cpp has no such layer."""
    layer = _LAYER.search(module)
    first = module if layer is None else f"{module[: layer.start()]}0{module[layer.end() :]}"
    name = _names_in_layer_0(architecture).get_name(first)
    if name is None:
        return None
    if layer is not None:
        name = name.replace("blk.0.", f"blk.{int(layer[0])}.", 1)
    return f"{name}.weight"


@cache
def _names_in_layer_0(architecture: str) -> TensorNameMap:
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    key = next(key for key, name in MODEL_ARCH_NAMES.items() if name == architecture)
    return get_tensor_name_map(key, 1)


def base_of_graph(graph: TensorGraph) -> BaseModel:
    """Describe an opened model as the base of adapters."""
    family = graph.family
    values = graph.spec.describe()
    if family.has_table:
        experts = values.get("num_experts")
        number = experts if type(experts) is int else 0
        return BaseModel(graph.source, family.architecture, family, num_experts=number)
    key = f"{family.architecture}."
    metadata: Mapping[str, Any] = graph.metadata if graph.metadata is not None else {}
    heads = metadata.get(f"{key}attention.head_count")
    of_keys = metadata.get(f"{key}attention.head_count_kv", heads)
    experts = metadata.get(f"{key}expert_count")
    return BaseModel(
        graph.source,
        family.architecture,
        heads=lambda layer: (_at(heads, layer), _at(of_keys, layer)),
        num_experts=experts if type(experts) is int else 0,
    )


def _at(value: Any, layer: int) -> int:
    """Take a layer's number, of metadata that have one or a list of them."""
    if not isinstance(value, str) and hasattr(value, "__len__"):
        value = value[layer] if layer < len(value) else 0
    return int(value) if isinstance(value, int) or hasattr(value, "__index__") else 0


def base_of_config(source: str | Path, values: Mapping[str, Any]) -> BaseModel | None:
    """Describe a model by its config.json as the base of adapters; None if it is of none known."""
    classes = values.get("architectures")
    name = classes[0] if isinstance(classes, list) and classes else None
    architecture = _BY_CLASS.get(name) if isinstance(name, str) else None
    if architecture is None:
        return None
    text = values.get("text_config")
    own = {**values, **text} if isinstance(text, dict) else values
    heads = _first(own, ("n_heads", "num_attention_heads"))
    of_keys = _first(own, ("n_kv_heads", "num_key_value_heads")) or heads
    experts = _first(own, ("num_local_experts", "num_experts"))
    return BaseModel(
        str(source), architecture, heads=lambda layer: (heads, of_keys), num_experts=experts
    )


def _first(values: Mapping[str, Any], keys: Sequence[str]) -> int:
    return next(_whole(values, keys), 0)


def _whole(values: Mapping[str, Any], keys: Sequence[str]) -> Iterator[int]:
    return (values[key] for key in keys if type(values.get(key)) is int)
