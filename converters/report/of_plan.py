"""Report the errors that a conversion made."""

from __future__ import annotations

from collections.abc import Mapping

from weightcast.converters.graph import matrices
from weightcast.converters.graph.layers import any_expert
from weightcast.converters.plan import Plan
from weightcast.converters.report.build import MeasuredOutput, MeasuredTensor, build_report
from weightcast.converters.report.collector import MatrixErrors, MatrixKey
from weightcast.converters.report.schema import AppliedRecipe, AppliedRule, Report
from weightcast.converters.targets.target import Output, PlannedTensor
from weightcast.quant.metrics import Baseline

Matrices = Mapping[MatrixKey, MatrixErrors]


def conversion_report(plan: Plan, measured: Matrices, baseline: Baseline) -> Report:
    """Report the errors of all outputs of a plan.

    Tensors that hold no weights (whole numbers, float64) are left out.
    """
    outputs = [_output(number, output, measured) for number, output in enumerate(plan.outputs)]
    return build_report(plan.graph, baseline, outputs)


def _output(number: int, output: Output, measured: Matrices) -> MeasuredOutput:
    request, imatrix = output.request, output.importance.matrix
    tensors: dict[str, MeasuredTensor] = {}
    for planned in output.tensors:
        errors = _matrices(number, planned, measured)
        if errors:
            # Experts that are tensors of their own make one entry.
            name = any_expert(planned.tensor.name)
            tensors[name] = _joined(tensors.get(name), _tensor(name, planned, errors))
    rules = [AppliedRule(*rule) for rule in request.ends.as_rules()]
    rules += (
        AppliedRule(rule.pattern.pattern, rule.type.label, rule.origin)
        for rule in request.overrides
    )
    return MeasuredOutput(
        path=str(request.path),
        container=request.target.name,
        type=request.type_name,
        nbytes=output.size,
        tensors=tuple(tensors.values()),
        recipe=AppliedRecipe(request.type_name, request.pure, tuple(rules)),
        imatrix=None if imatrix is None else str(imatrix.path),
        hessian=None if output.feedback is None else str(output.feedback.hessians.path),
    )


def _matrices(number: int, planned: PlannedTensor, measured: Matrices) -> tuple[MatrixErrors, ...]:
    count = len(matrices(planned.tensor))
    experts = range(count) if count > 1 else (None,)
    keys = [(number, planned.tensor.name, expert) for expert in experts]
    return tuple(measured[key] for key in keys if key in measured)


def _tensor(name: str, planned: PlannedTensor, errors: tuple[MatrixErrors, ...]) -> MeasuredTensor:
    return MeasuredTensor(
        name=name,
        gguf_name=planned.gguf_name,
        type=planned.type_name,
        shape=planned.tensor.shape,
        nbytes=planned.nbytes,
        matrices=errors,
        is_weighted=planned.importance is not None,
    )


def _joined(first: MeasuredTensor | None, more: MeasuredTensor) -> MeasuredTensor:
    """Add another expert to a tensor."""
    if first is None:
        return more
    experts = (*first.matrices, *more.matrices)
    types = dict.fromkeys((*first.type.split(", "), more.type))
    return MeasuredTensor(
        name=first.name,
        gguf_name=first.gguf_name,
        type=", ".join(types),
        shape=(len(experts), *first.shape[-2:]),
        nbytes=first.nbytes + more.nbytes,
        matrices=experts,
        is_weighted=first.is_weighted or more.is_weighted,
    )
