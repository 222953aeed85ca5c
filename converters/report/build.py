"""Build a report from the errors measured in the matrices of one or several outputs."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from weightcast.converters.graph import TensorGraph
from weightcast.converters.graph.layers import find_layer
from weightcast.converters.report.collector import WORST_ROWS, MatrixErrors
from weightcast.converters.report.schema import (
    AppliedRecipe,
    Metrics,
    OutputErrors,
    Report,
    ReportSource,
    RoleErrors,
    Row,
    SearchGain,
    TensorErrors,
    Weighted,
)
from weightcast.quant.metrics import Baseline, Errors, merged


def tensor_role(gguf_name: str) -> str:
    """Give a tensor's role in its layer: attn_q, ffn_down_exps, token_embd, v.attn_q."""
    layer = find_layer(gguf_name)
    return (gguf_name if layer is None else layer.stack + layer.rest).removesuffix(".weight")


@dataclass(frozen=True, slots=True)
class MeasuredTensor:
    """A tensor of an output, by its name there and in GGUF, with the errors of its matrices."""

    name: str
    gguf_name: str
    type: str
    shape: tuple[int, ...]
    nbytes: int
    matrices: tuple[MatrixErrors, ...]
    is_weighted: bool = False

    @property
    def role(self) -> str:
        return tensor_role(self.gguf_name)

    @property
    def layer(self) -> int | None:
        layer = find_layer(self.gguf_name)
        return None if layer is None else layer.number

    @property
    def total(self) -> Errors:
        return merged(matrix.total for matrix in self.matrices).total()

    @property
    def by_ggml(self) -> Errors | None:
        return _by_ggml(self.matrices)


@dataclass(frozen=True, slots=True)
class MeasuredOutput:
    """An output, or whatever was compared, with its tensors in order."""

    path: str
    container: str
    type: str
    nbytes: int
    tensors: tuple[MeasuredTensor, ...]
    recipe: AppliedRecipe
    imatrix: str | None = None
    hessian: str | None = None


def build_report(
    graph: TensorGraph, baseline: Baseline, outputs: Iterable[MeasuredOutput]
) -> Report:
    """Report the errors of outputs of one source."""
    return Report(
        generator=f"weightcast {version('weightcast')}",
        source=ReportSource(
            graph.source, graph.family.name, graph.parameters, dict(graph.spec.describe())
        ),
        baseline=baseline.name.lower(),
        outputs=tuple(_output(output) for output in outputs),
    )


def _output(output: MeasuredOutput) -> OutputErrors:
    tensor_bytes = sum(tensor.nbytes for tensor in output.tensors)
    total = _total(output.tensors)
    roles: dict[str, list[MeasuredTensor]] = defaultdict(list)
    for tensor in output.tensors:
        roles[tensor.role].append(tensor)
    return OutputErrors(
        path=output.path,
        container=output.container,
        type=output.type,
        recipe=output.recipe,
        imatrix=output.imatrix,
        bytes=output.nbytes,
        tensor_bytes=tensor_bytes,
        bits_per_weight=_bits(tensor_bytes, total),
        total=_total_metrics(total, output.tensors),
        roles=tuple(_role(role, tensors) for role, tensors in roles.items()),
        tensors=tuple(_tensor(tensor) for tensor in output.tensors),
        hessian=output.hessian,
    )


def _role(role: str, tensors: Sequence[MeasuredTensor]) -> RoleErrors:
    nbytes = sum(tensor.nbytes for tensor in tensors)
    total = _total(tensors)
    return RoleErrors(role, nbytes, _bits(nbytes, total), _total_metrics(total, tensors))


def _tensor(tensor: MeasuredTensor) -> TensorErrors:
    total, has_experts = tensor.total, len(tensor.matrices) > 1
    return TensorErrors(
        name=tensor.name,
        role=tensor.role,
        layer=tensor.layer,
        type=tensor.type,
        shape=tensor.shape,
        bytes=tensor.nbytes,
        bits_per_weight=_bits(tensor.nbytes, total),
        metrics=_metrics(
            total,
            _largest_at(tensor, total),
            is_weighted=tensor.is_weighted,
            by_ggml=tensor.by_ggml,
        ),
        experts=tuple(_expert(matrix, tensor) for matrix in tensor.matrices if has_experts),
        worst_rows=tuple(_worst_rows(tensor)),
    )


def _expert(matrix: MatrixErrors, tensor: MeasuredTensor) -> Metrics:
    total, is_weighted = matrix.total, tensor.is_weighted
    return _metrics(total, _position(total), is_weighted=is_weighted, by_ggml=matrix.by_ggml)


def _largest_at(tensor: MeasuredTensor, total: Errors) -> tuple[int, ...] | None:
    """Locate the first largest error: [out, in], or [expert, out, in] if there are several."""
    if len(tensor.matrices) < 2 or not total.largest_square > 0:
        return _position(total)
    sizes = [float(matrix.total.largest_square) for matrix in tensor.matrices]
    expert = sizes.index(max(sizes))
    return expert, *(_position(tensor.matrices[expert].total) or ())


def _position(total: Errors) -> tuple[int, int] | None:
    """Locate the first largest error of one matrix: [out, in]; None if there is no error."""
    if not total.largest_square > 0:
        return None
    return int(total.largest_row), int(total.largest_in)


def _worst_rows(tensor: MeasuredTensor) -> list[Row]:
    rows = [
        (-size, expert, row)
        for expert, matrix in enumerate(tensor.matrices)
        for row, size in matrix.worst
    ]
    has_experts = len(tensor.matrices) > 1
    return [
        Row(expert if has_experts else None, row, _finite(-size))
        for size, expert, row in sorted(rows)[:WORST_ROWS]
    ]


def _total(tensors: Iterable[MeasuredTensor]) -> Errors:
    return merged(matrix.total for tensor in tensors for matrix in tensor.matrices).total()


def _by_ggml(matrices: Sequence[MatrixErrors]) -> Errors | None:
    """Add up what ggml's rule makes of matrices; None if none of them was searched.

    Those that were not are the same by either rule.
    """
    if all(matrix.by_ggml is None for matrix in matrices):
        return None
    each = (m.total if m.by_ggml is None else m.by_ggml for m in matrices)
    return merged(each).total()


def _total_metrics(total: Errors, tensors: Sequence[MeasuredTensor]) -> Metrics:
    """Give the errors of several tensors together."""
    is_weighted = any(tensor.is_weighted for tensor in tensors)
    matrices = [matrix for tensor in tensors for matrix in tensor.matrices]
    return _metrics(total, is_weighted=is_weighted, by_ggml=_by_ggml(matrices))


def _bits(nbytes: int, total: Errors) -> float:
    return 8 * nbytes / int(total.weights) if total.weights else 0.0


def _metrics(
    total: Errors,
    largest_at: tuple[int, ...] | None = None,
    *,
    is_weighted: bool,
    by_ggml: Errors | None = None,
) -> Metrics:
    return Metrics(
        weights=int(total.weights),
        error_squares=_finite(total.error_squares),
        source_squares=_finite(total.source_squares),
        relative_rms=_finite(total.relative_rms),
        sqnr_db=_finite(total.sqnr_db),
        cosine=_finite(total.cosine),
        mean_error=_finite(total.mean_error),
        largest_error=_finite(total.largest),
        largest_at=largest_at,
        share_exact=float(total.share_exact),
        share_zeroed=float(total.share_zeroed),
        share_clipped=float(total.share_clipped),
        weighted=_weighted(total) if is_weighted else None,
        histogram=tuple(total.histogram.tolist()),
        search=None if by_ggml is None else _gain(total, by_ggml, is_weighted=is_weighted),
    )


def _weighted(total: Errors) -> Weighted:
    return Weighted(
        error_squares=_finite(total.weighted_error_squares),
        source_squares=_finite(total.weighted_source_squares),
        relative_rms=_finite(total.weighted_relative_rms),
        sqnr_db=_finite(total.weighted_sqnr_db),
    )


def _gain(total: Errors, by_ggml: Errors, *, is_weighted: bool) -> SearchGain:
    """Compare the errors of a search with those of ggml's rule."""
    plain = _finite(by_ggml.error_squares)
    weighted = _finite(by_ggml.weighted_error_squares) if is_weighted else None
    return SearchGain(
        ggml_error_squares=plain,
        gained_db=_decibels(plain, _finite(total.error_squares)),
        ggml_weighted_error_squares=weighted,
        weighted_gained_db=_decibels(weighted, _finite(total.weighted_error_squares)),
    )


def _decibels(before: float | None, after: float | None) -> float | None:
    return 10 * math.log10(before / after) if before and after else None


def _finite(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None
