"""Refuse to quantize a second time what is quantized already, unless that is asked for."""

from __future__ import annotations

from collections.abc import Sequence

from weightcast.converters.graph import Quantize, Tensor, is_sum, matrices, windows
from weightcast.converters.recipes import COPY
from weightcast.converters.recipes.common_part import common_part
from weightcast.converters.targets.target import Output, PlannedTensor
from weightcast.errors import LayoutError
from weightcast.formats.array import StoredArray
from weightcast.quant.types import FLOAT_NAMES, LOSSY_NAMES
from weightcast.text import option, shown, spoken


def check_requantized(outputs: Sequence[Output]) -> None:
    """Raise LayoutError for a tensor that would be quantized a second time."""
    for output in outputs:
        refused = [
            (planned, stored)
            for planned in output.tensors
            for stored in {view.array: None for view in windows(planned.tensor)}
            if _is_requantized(planned, stored)
        ]
        if refused:
            planned, stored = refused[0]
            is_scaled = planned.type.name == stored.dtype and not is_sum(planned.tensor)
            times = " times a factor that the output has no place for" if is_scaled else ""
            raise LayoutError(
                f"{stored.path}: {shown(planned.tensor.name)} is {stored.dtype}{times}, and "
                f"{planned.type.name} made of that loses more than made of the original weights; "
                f"{_lossless(output, refused)}; {option('allow_requantize', True)} makes it, with "
                "that loss"
            )


def _lossless(output: Output, refused: Sequence[tuple[PlannedTensor, StoredArray]]) -> str:
    """Say how to do without losses: by a rule that keeps these tensors, or by keeping all."""
    planned, stored = refused[0]
    if is_sum(planned.tensor):
        return "F32 keeps these values"
    rule = _keeping_rule(output, refused)
    if rule is not None:
        return f"{option('tensor_types', rule)} keeps all such tensors as they are"
    if output.request.target.keeps_metadata and stored.path.suffix == ".gguf":
        copy = spoken(option("types", COPY.name), f"types={COPY.name!r}")
        others = spoken("weightcast split and merge", "weightcast.split and merge")
        return f"{copy} keeps all types as they are, as do {others}"
    return "F32 keeps these values"


def _is_requantized(planned: PlannedTensor, stored: StoredArray) -> bool:
    if stored.dtype not in LOSSY_NAMES or planned.type.name in FLOAT_NAMES:
        return False
    return planned.type.name != stored.dtype or not _is_copied(planned.tensor, stored)


def _is_copied(tensor: Tensor, stored: StoredArray) -> bool:
    """Tell whether blocks go to an output as they are: nothing is added, or multiplied."""
    return all(
        matrix.is_blocked and matrix.dtype == stored.dtype
        for matrix in matrices(tensor)
        if any(view.array == stored for view in matrix.views)
    )


def _keeping_rule(
    output: Output, refused: Sequence[tuple[PlannedTensor, StoredArray]]
) -> str | None:
    """Find a rule that keeps these tensors, all of one type, if others are left to quantize."""
    stored = {array.dtype for _, array in refused}
    names = {planned.tensor.name: None for planned, _ in refused}
    others = [t for t in output.tensors if t.tensor.name not in names]
    is_mixed = any(t.type.name in LOSSY_NAMES and t.type.name != _stored(t) for t in others)
    if len(stored) > 1 or not is_mixed:
        return None
    part = common_part([*names], [t.tensor.name for t in others])
    return None if part is None else f"{part}={stored.pop()}"


def _stored(planned: PlannedTensor) -> str:
    origin = planned.tensor.origin
    return origin.source.dtype if isinstance(origin, Quantize) else planned.tensor.dtype
