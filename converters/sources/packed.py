"""Packed directories as sources: the parts of each matrix become one array under its usual name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from weightcast.errors import LayoutError, MissingTensorError
from weightcast.formats.array import StoredArray
from weightcast.formats.packed.find import read_bytes
from weightcast.formats.packed.recognize import recognize
from weightcast.formats.packed.rows import main_part, stored_matrix
from weightcast.formats.reading import read_json_object
from weightcast.text import shown

_WEIGHT: Final = ".weight"
_BIAS: Final = ".bias"
_ZERO_POINT: Final = ".weight_zero_point"
_MAX_BIAS_BYTES: Final = 1 << 20
_KEYS: Final = ("quantization_config", "compression_config")
# Scales of what layers get and give, and of the cache: no weights, and nothing that outputs have.
_ACTIVATIONS: Final = tuple(
    f".{of}{kind}"
    for of in ("input_", "output_", "q_", "k_", "v_", "kv_")
    for kind in ("scale", "global_scale", "zero_point")
)


def scales_of_activations(
    arrays: Mapping[str, StoredArray], joined: Mapping[str, StoredArray]
) -> list[str]:
    """List the tensors that `join_packed` left out, because they are about activations."""
    return [name for name in arrays if name.endswith(_ACTIVATIONS) and name not in joined]


def _quantization(config_file: Path) -> Any:
    """Read quantization_config, under the names and in the files that it has had."""
    config = read_json_object(config_file) if config_file.is_file() else {}
    for key in _KEYS:
        if key in config:
            return config[key]
    alone = config_file.with_name("quantize_config.json")  # of AutoGPTQ
    if alone.is_file():
        return {"quant_method": "gptq", **read_json_object(alone)}
    return None


def _is_zero(array: StoredArray | None) -> bool:
    if array is None or array.nbytes > _MAX_BIAS_BYTES:
        return False
    return not read_bytes(array, 0, array.nbytes).any()


def join_packed(
    source: Path, config_file: Path, arrays: Mapping[str, StoredArray]
) -> dict[str, StoredArray]:
    """Join the parts of packed matrices to arrays [out, in] named NAME.weight; the rest stays.

    `config_file` may be missing: files in weightcast's own layout explain themselves. Scales of
    activations are left out. Raises CheckpointError for what is packed and cannot be read, and
    where the config contradicts it.
    """
    config = _quantization(config_file)
    try:
        found = recognize(config, arrays)
    except (LayoutError, MissingTensorError) as problem:  # a FormatError names the file itself
        raise type(problem)(f"{source}: {problem}") from None
    joined = dict(arrays)
    if config:
        joined = {name: joined[name] for name in joined if not name.endswith(_ACTIVATIONS)}
    for name, matrix in found.items():
        for suffix in matrix.parts:
            del joined[name + suffix]
        # AutoGPTQ gives every module a bias, of zeros where there was none; early FP8 zero points.
        for suffix in (_BIAS, _ZERO_POINT):
            if _is_zero(joined.get(name + suffix)):
                del joined[name + suffix]
    for name, matrix in found.items():
        location = f"{main_part(matrix).path}: {shown(name)}"
        if name + _WEIGHT in joined:
            raise LayoutError(f"{location} is there packed and as plain numbers")
        contradiction = matrix.layout.contradiction(config or {}, matrix.shape)
        if contradiction is not None:
            by_tensors, by_config = contradiction
            raise LayoutError(
                f"{location} is {by_tensors} by its tensors, but {config_file} says {by_config}"
            )
        try:
            joined[name + _WEIGHT] = stored_matrix(name, matrix)
        except LayoutError as problem:
            raise LayoutError(f"{location}: {problem}") from None
    return joined
