"""Packed directories as sources: the parts of each matrix become one array under its usual name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from weightcast.errors import LayoutError, MissingTensorError
from weightcast.formats.array import StoredArray
from weightcast.formats.packed.recognize import recognize
from weightcast.formats.packed.rows import main_part, stored_matrix
from weightcast.formats.reading import read_json_object
from weightcast.text import shown

_WEIGHT: Final = ".weight"
_KEY: Final = "quantization_config"
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


def join_packed(
    source: Path, config_file: Path, arrays: Mapping[str, StoredArray]
) -> dict[str, StoredArray]:
    """Join the parts of packed matrices to arrays [out, in] named NAME.weight; the rest stays.

    `config_file` may be missing: files in weightcast's own layout explain themselves. Scales of
    activations are left out. Raises CheckpointError for what is packed and cannot be read, and
    where the config contradicts it.
    """
    config = read_json_object(config_file).get(_KEY) if config_file.is_file() else None
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
