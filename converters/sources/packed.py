"""Packed directories as sources: the parts of each matrix become one array under its usual name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from weightcast.converters.recipes.weight_types import type_label
from weightcast.errors import LayoutError, MissingTensorError
from weightcast.formats.array import StoredArray
from weightcast.formats.packed.recognize import PackedMatrix, recognize
from weightcast.formats.packed.rows import main_part, stored_matrix
from weightcast.formats.reading import read_json_object
from weightcast.quant.groups import GroupType
from weightcast.text import shown

_WEIGHT: Final = ".weight"
_KEY: Final = "quantization_config"
# Bits and group size, 0 for whole rows; None where nothing is said.
_Claim = tuple[int | None, int | None]


def join_packed(
    source: Path, config_file: Path, arrays: Mapping[str, StoredArray]
) -> dict[str, StoredArray]:
    """Join the parts of packed matrices to arrays [out, in] named NAME.weight; the rest stays.

    `config_file` may be missing: files in weightcast's own layout explain themselves. Raises
    CheckpointError for what is packed and cannot be read, and where the config contradicts it.
    """
    config = read_json_object(config_file).get(_KEY) if config_file.is_file() else None
    try:
        found = recognize(config, arrays)
    except (LayoutError, MissingTensorError) as problem:  # a FormatError names the file itself
        raise type(problem)(f"{source}: {problem}") from None
    joined = dict(arrays)
    for name, matrix in found.items():
        for suffix in matrix.parts:
            del joined[name + suffix]
    claims = list(_claims(config or {}))
    for name, matrix in found.items():
        file = main_part(matrix).path
        if name + _WEIGHT in joined:
            raise LayoutError(f"{file}: {shown(name)} is there packed and as plain numbers")
        if isinstance(matrix.type, GroupType):
            _check_claims(config_file, claims, f"{file}: {shown(name)}", matrix)
        try:
            joined[name + _WEIGHT] = stored_matrix(name, matrix, type_label(matrix.type))
        except LayoutError as problem:
            raise LayoutError(f"{file}: {shown(name)}: {problem}") from None
    return joined


def _check_claims(config_file: Path, claims: list[_Claim], place: str, found: PackedMatrix) -> None:
    """Raise LayoutError unless the config says of some matrices what this one is."""
    kind = found.type
    assert isinstance(kind, GroupType)
    sizes: set[int | None] = {None, kind.group_size}
    if not kind.group_size:
        sizes.add(found.n_in)  # one group a row, by either name
    for bits, group_size in claims:
        if bits in (None, kind.bits) and group_size in sizes:
            return
    if claims:
        said = " or ".join(sorted({_text(*claim) for claim in claims}))
        raise LayoutError(
            f"{place} is {_text(kind.bits, kind.group_size)} by its tensors, but {config_file} "
            f"says {said}"
        )


def _text(bits: int | None, group_size: int | None) -> str:
    texts = [] if bits is None else [f"{bits} bits"]
    if group_size is not None:
        texts.append(f"groups of {group_size}" if group_size else "a scale a row")
    return " with ".join(texts) if bits is not None else "".join(texts)


def _claims(config: Mapping[str, Any]) -> Iterator[_Claim]:
    """What a quantization_config says of its integers, in the keys of any layout that has them."""
    groups = config.get("config_groups")
    if isinstance(groups, Mapping):
        for group in groups.values():
            weights = group.get("weights") if isinstance(group, Mapping) else None
            if isinstance(weights, Mapping) and weights.get("type") == "int":
                yield _claim(weights, "num_bits")
        return
    ours = config.get("groups")
    for said in ours if isinstance(ours, list) else ():
        if isinstance(said, Mapping):
            yield _claim(said, "bits")
    if "bits" not in config:
        return
    yield _claim(config, "bits")
    dynamic = config.get("dynamic")
    for said in dynamic.values() if isinstance(dynamic, Mapping) else ():
        if isinstance(said, Mapping):
            yield _claim({**config, **said}, "bits")


def _claim(said: Mapping[str, Any], bits_key: str) -> _Claim:
    bits, size = said.get(bits_key), said.get("group_size")
    if said.get("strategy") == "channel" or size == -1:
        size = 0
    return (bits if type(bits) is int else None, size if type(size) is int else None)


def files_of(arrays: Mapping[str, StoredArray]) -> tuple[Path, ...]:
    """All files that arrays are in; of a packed one each part can be in another."""
    return tuple(sorted({array.path for array in arrays.values()}))
