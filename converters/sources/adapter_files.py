"""An adapter of peft as the GGUF file that it becomes: tensors, and the metadata of adapters.

Source: convert_lora_to_gguf.py of llama.cpp, and gguf.Metadata, which it takes names and licences
from.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from weightcast.converters.families.generic import GGUFModel
from weightcast.converters.graph import Family, Tensor, TensorGraph
from weightcast.converters.sources.adapters import (
    ALPHA_KEY,
    INVOCATION_KEY,
    Adapter,
    as_file,
    check_finite,
    find_base,
    open_adapter,
)
from weightcast.errors import CheckpointError
from weightcast.formats.gguf.header import (
    Metadata,
    raw_array,
    raw_float,
    raw_number,
    raw_string,
    raw_strings,
    raw_uint,
)
from weightcast.formats.peft import read_adapter
from weightcast.formats.reading import read_small

if TYPE_CHECKING:
    from gguf.gguf_writer import GGUFValue

_CARDS: Final = ("README.md", "config.json", "generation_config.json")
_MAX_CARD_BYTES: Final = 1 << 18


def adapter_graph(path: Path, base: Path | None) -> TensorGraph:
    """Open an adapter's directory as the GGUF file of llama.cpp; `base` is its model.

    Raises CheckpointError.
    """
    peft = read_adapter(path)
    model = find_base(peft, base)
    adapter = open_adapter(path, model)
    file = as_file(adapter)
    for tensor in file.tensors.values():
        check_finite(path, tensor)
    raw = _metadata(adapter, model.architecture, file.alpha, file.tensors)
    family = Family(model.architecture, architecture=model.architecture)
    metadata = Metadata(raw)
    return TensorGraph(
        family,
        str(path),
        GGUFModel(metadata),
        dict(file.tensors),
        "peft",
        peft.files,
        metadata,
        file.notes,
    )


def _metadata(
    adapter: Adapter, architecture: str, alpha: float, tensors: Mapping[str, Tensor]
) -> dict[str, bytes]:
    from gguf import GGML_QUANT_VERSION

    raw = {
        "general.architecture": raw_string(architecture),
        "general.type": raw_string("adapter"),
        "adapter.type": raw_string("lora"),
        **_described(adapter.path, tensors),
        ALPHA_KEY: raw_float(alpha),
    }
    if adapter.invocation:
        raw[INVOCATION_KEY] = raw_array("uint32", np.array(adapter.invocation))
    raw["general.quantization_version"] = raw_uint(GGML_QUANT_VERSION)
    return raw


def _described(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, bytes]:
    """Describe an adapter by its card and its name, as the gguf package does for llama.cpp."""
    import gguf

    writer = gguf.GGUFWriter(None, "llama")
    for name, tensor in tensors.items():
        writer.add_tensor_info(name, tensor.shape, np.dtype(np.float32), 4 * tensor.size)
    total = writer.get_total_parameter_count()[0]
    try:
        found = gguf.Metadata.load(None, path if _is_short(path) else None, None, total)
    except Exception:  # cards are written by hand, and can hold anything
        found = gguf.Metadata()
    found.name = found.name or path.resolve().name
    try:
        found.set_gguf_meta_model(writer)
    except Exception:
        writer.add_name(found.name)
    values = ((key, _raw(value)) for part in writer.kv_data for key, value in part.items())
    return {key: raw for key, raw in values if raw and key != "general.architecture"}


def _is_short(path: Path) -> bool:
    """Tell whether what describes an adapter is as long as descriptions are."""
    try:
        for name in _CARDS:
            if (path / name).exists():
                read_small(path / name, _MAX_CARD_BYTES)
    except CheckpointError:
        return False
    return True


def _raw(given: GGUFValue) -> bytes | None:
    """Encode a value of the gguf package; None for one that is not of its type."""
    value, kind = given.value, given.type.name.lower()
    if isinstance(value, str):
        return raw_string(value) if kind == "string" else None
    if isinstance(value, list):
        return raw_strings(value) if all(isinstance(each, str) for each in value) else None
    is_number = isinstance(value, int | float) and kind in ("uint32", "int32", "float32")
    return raw_number(kind, value) if is_number else None
