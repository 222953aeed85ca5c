"""Models of which nothing is read here, told by their config.json or by the names of tensors.

Tables of foreign formats are imported once one is found: they take a while.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from weightcast.converters.families import FAMILIES
from weightcast.formats.foreign.finding import MAKE_GGUF, Finding
from weightcast.formats.gguf.read import GGUFIndex
from weightcast.text import option, shown

# The type of convert_hf_to_gguf.py that keeps all precision.
_OUT_TYPES: Final = {"bfloat16": "bf16", "float16": "f16", "float32": "f32"}
# Ways to pack weights that llama.cpp does not read either.
_PACKED: Final = frozenset(
    {"aqlm", "awq", "bitsandbytes", "eetq", "exl2", "exl3", "hqq", "quanto", "torchao", "vptq"}
)


def foreign_config(values: Mapping[str, Any]) -> Finding | None:
    """Say what a config.json describes, if it is of no family with a table; None if unknown."""
    if values.get("residual_moe"):
        return Finding("a Grok-2, which is not read yet", _as_gguf(values))
    if any(family.config_mark in values for family in FAMILIES.values()):
        return None
    if "_diffusers_version" in values:
        from weightcast.formats.foreign.tables import DIFFUSION

        return Finding(DIFFUSION.what, DIFFUSION.remedy)
    kind, classes = values.get("model_type"), values.get("architectures")
    first = classes[0] if isinstance(classes, list) and classes else None
    known = [_plain(name) for name in (kind, first) if isinstance(name, str) and name]
    ours = [family.architecture for family in FAMILIES.values()]
    if not known or any(name in " ".join(known).lower() for name in ours):
        return None  # what it lacks, the family's reader says
    what = f"a model of type {known[0]}{f' ({known[1]})' if known[1:] else ''}"
    packed = _packed_by(values)
    if packed is not None:
        return Finding(f"{what}, packed by {packed}", "take the model that it was made of")
    titles = " or ".join(family.title for family in FAMILIES.values())
    return Finding(f"{what}, not {titles}", _as_gguf(values))


def foreign_gguf(index: GGUFIndex) -> Finding | None:
    """Say what a GGUF file holds instead of a model; None if it holds one."""
    kind = index.metadata.get("general.type")
    if isinstance(kind, str) and kind == "imatrix":  # any value can be there, an array too
        how = f"give the model, and this file as {option('imatrix')}"
        return Finding("an importance matrix, not a model", how)
    if index.tensors:
        return None
    has_tokens = "tokenizer.ggml.tokens" in index.metadata
    what = "a vocabulary without a model" if has_tokens else "a GGUF file without tensors"
    return Finding(what, "give the file that has the weights")


def foreign_tensors(names: Iterable[str]) -> Finding | None:
    """Say what tensors belong to, if it is no language model; None if unknown."""
    from weightcast.formats.foreign.tables import TENSORS

    first = next(iter(names), "")
    found = next((entry for pattern, entry in TENSORS if pattern.match(first)), None)
    return None if found is None else Finding(found.what, found.remedy)


def _plain(value: object) -> str:
    return shown(value).strip("'")


def _packed_by(values: Mapping[str, Any]) -> str | None:
    """Name the tool that packed a model's weights, if llama.cpp cannot take them apart."""
    packing = values.get("quantization_config")
    if isinstance(packing, Mapping):
        method = packing.get("quant_method")
        return method if isinstance(method, str) and method in _PACKED else None
    own = values.get("quantization")
    return "MLX" if isinstance(own, Mapping) and "group_size" in own else None


def _as_gguf(values: Mapping[str, Any]) -> str:
    """Say how to make a GGUF file with all the precision of a directory."""
    dtype = values.get("torch_dtype", values.get("dtype"))
    out_type = _OUT_TYPES.get(dtype, "bf16") if isinstance(dtype, str) else "bf16"
    return f"{MAKE_GGUF} (--outtype {out_type}), and convert that"
