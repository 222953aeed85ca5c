"""The errors that a conversion made, as the report's JSON values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from weightcast.converters.graph.view import matrices
from weightcast.converters.plan.plan import Plan
from weightcast.converters.recipes.weight_types import type_label
from weightcast.converters.report.collector import MatrixErrors
from weightcast.converters.report.measured import (
    MeasuredOutput,
    MeasuredTensor,
    recipe_values,
    report_values,
)
from weightcast.converters.targets.target import Output, PlannedTensor
from weightcast.quant.metrics import Baseline

_EXPERT: Final = re.compile(r"\.experts\.\d+\.")
Measured = Mapping[tuple[int, str, int | None], MatrixErrors]


def conversion_report(plan: Plan, measured: Measured, baseline: Baseline) -> dict[str, Any]:
    """Describe the errors of all outputs of a plan, as docs/report.schema.json says.

    Tensors that hold no weights (whole numbers, float64) are left out.
    """
    outputs = [_output(number, output, measured) for number, output in enumerate(plan.outputs)]
    return report_values(plan.graph, baseline, outputs)


def _output(number: int, output: Output, measured: Measured) -> MeasuredOutput:
    request = output.request
    tensors: dict[str, MeasuredTensor] = {}
    for planned in output.tensors:
        made = _matrices(number, planned, measured)
        if made:
            # Experts that are tensors of their own make one entry.
            name = _EXPERT.sub(".experts.*.", planned.tensor.name)
            tensors[name] = _joined(tensors.get(name), _tensor(name, planned, made))
    rules = ((o.pattern.pattern, type_label(o.type), o.origin) for o in request.overrides)
    weighed_by = output.weighing.matrix
    return MeasuredOutput(
        path=str(request.path),
        kind=request.kind,
        type=request.type_name,
        nbytes=output.size,
        tensors=tuple(tensors.values()),
        recipe=recipe_values(request.type_name, rules, pure=request.pure),
        imatrix=None if weighed_by is None else str(weighed_by.path),
    )


def _matrices(number: int, planned: PlannedTensor, measured: Measured) -> tuple[MatrixErrors, ...]:
    count = len(matrices(planned.tensor))
    experts = range(count) if count > 1 else (None,)
    keys = [(number, planned.tensor.name, expert) for expert in experts]
    return tuple(measured[key] for key in keys if key in measured)


def _tensor(name: str, planned: PlannedTensor, made: tuple[MatrixErrors, ...]) -> MeasuredTensor:
    return MeasuredTensor(
        name=name,
        gguf=planned.gguf_name,
        type=planned.type_name,
        shape=planned.tensor.shape,
        nbytes=planned.nbytes,
        matrices=made,
        is_weighed=planned.importance is not None,
    )


def _joined(first: MeasuredTensor | None, more: MeasuredTensor) -> MeasuredTensor:
    """Add another expert to a tensor."""
    if first is None:
        return more
    experts = (*first.matrices, *more.matrices)
    types = dict.fromkeys((*first.type.split(", "), more.type))
    return MeasuredTensor(
        name=first.name,
        gguf=first.gguf,
        type=", ".join(types),
        shape=(len(experts), *first.shape[-2:]),
        nbytes=first.nbytes + more.nbytes,
        matrices=experts,
        is_weighed=first.is_weighed or more.is_weighed,
    )
