"""Error reports as JSON values: docs/report.schema.json says what each is."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from weightcast.converters.files.atomic import write_small
from weightcast.converters.graph.tensor import Spec, TensorGraph
from weightcast.converters.report.collector import MatrixErrors
from weightcast.quant.metrics import Baseline, Errors, merged

VERSION: Final = 1
_LAYER: Final = re.compile(r"(?P<stack>^|\.)blk\.(?P<layer>\d+)\.")


def tensor_kind(gguf: str) -> str:
    """What a tensor is in its layer: attn_q, ffn_down_exps, token_embd, v.attn_q of an encoder."""
    return _LAYER.sub(r"\g<stack>", gguf).removesuffix(".weight")


@dataclass(frozen=True, slots=True)
class MeasuredTensor:
    """A tensor of an output: its name there and in GGUF, type, shape, bytes, and its matrices."""

    name: str
    gguf: str
    type: str
    shape: tuple[int, ...]
    nbytes: int
    matrices: tuple[MatrixErrors, ...]
    is_weighed: bool = False

    @property
    def kind(self) -> str:
        return tensor_kind(self.gguf)

    @property
    def layer(self) -> int | None:
        match = _LAYER.search(self.gguf)
        return int(match["layer"]) if match else None

    @property
    def total(self) -> Errors:
        return merged(matrix.total for matrix in self.matrices).total()


@dataclass(frozen=True, slots=True)
class MeasuredOutput:
    """An output, or whatever was compared: where, what, how, and its tensors in order."""

    path: str
    kind: str
    type: str
    nbytes: int
    tensors: tuple[MeasuredTensor, ...]
    recipe: dict[str, Any]
    imatrix: str | None = None


def report_values(
    graph: TensorGraph[Spec], baseline: Baseline, outputs: Iterable[MeasuredOutput]
) -> dict[str, Any]:
    """Describe the errors of some outputs of one source."""
    return {
        "format": "weightcast-report",
        "version": VERSION,
        "generator": f"weightcast {version('weightcast')}",
        "source": {
            "path": graph.source,
            "family": graph.family,
            "parameters": graph.parameters,
            "hyperparameters": dict(graph.spec.describe()),
        },
        "baseline": baseline.name.lower(),
        "outputs": [_output_values(output) for output in outputs],
    }


def write_report(path: Path, report: Mapping[str, Any]) -> None:
    """Write a report's values as JSON. Raises OutputError; an earlier file stays then."""
    write_small(path, f"{json.dumps(report, indent=1, allow_nan=False)}\n".encode())


def recipe_values(
    base: str, rules: Iterable[tuple[str, str, str]], *, pure: bool
) -> dict[str, Any]:
    """Describe a recipe; rules are patterns, types, and where they were asked for."""
    named = [dict(zip(("pattern", "type", "origin"), rule, strict=True)) for rule in rules]
    return {"base": base, "pure": pure, "rules": named}


def _output_values(output: MeasuredOutput) -> dict[str, Any]:
    tensor_bytes = sum(tensor.nbytes for tensor in output.tensors)
    total = _sum_of(output.tensors)
    kinds: dict[str, list[MeasuredTensor]] = defaultdict(list)
    for tensor in output.tensors:
        kinds[tensor.kind].append(tensor)
    return {
        "path": output.path,
        "kind": output.kind,
        "type": output.type,
        "recipe": output.recipe,
        "imatrix": output.imatrix,
        "bytes": output.nbytes,
        "tensor_bytes": tensor_bytes,
        "bits_per_weight": _bits(tensor_bytes, total),
        "total": metrics(total, is_weighed=_is_weighed(output.tensors)),
        "kinds": [_kind_values(kind, tensors) for kind, tensors in kinds.items()],
        "tensors": [_tensor_values(tensor) for tensor in output.tensors],
    }


def _kind_values(kind: str, tensors: Sequence[MeasuredTensor]) -> dict[str, Any]:
    nbytes = sum(tensor.nbytes for tensor in tensors)
    total = _sum_of(tensors)
    return {
        "kind": kind,
        "bytes": nbytes,
        "bits_per_weight": _bits(nbytes, total),
        "metrics": metrics(total, is_weighed=_is_weighed(tensors)),
    }


def _tensor_values(tensor: MeasuredTensor) -> dict[str, Any]:
    total, several = tensor.total, len(tensor.matrices) > 1
    experts = [
        metrics(matrix.total, is_weighed=tensor.is_weighed, has_place=True)
        for matrix in tensor.matrices
    ]
    described = metrics(total, is_weighed=tensor.is_weighed, has_place=not several)
    if several and total.largest_square > 0:
        largest = [float(matrix.total.largest_square) for matrix in tensor.matrices]
        expert = largest.index(max(largest))
        described["largest_at"] = [expert, *experts[expert]["largest_at"]]
    rows = [
        (-size, expert, row)
        for expert, matrix in enumerate(tensor.matrices)
        for row, size in matrix.worst
    ]
    return {
        "name": tensor.name,
        "kind": tensor.kind,
        "layer": tensor.layer,
        "type": tensor.type,
        "shape": list(tensor.shape),
        "bytes": tensor.nbytes,
        "bits_per_weight": _bits(tensor.nbytes, total),
        "metrics": described,
        "experts": experts if several else [],
        "worst_rows": [
            {"expert": expert if several else None, "row": row, "relative_rms": _finite(-size)}
            for size, expert, row in sorted(rows)[:8]
        ],
    }


def _sum_of(tensors: Iterable[MeasuredTensor]) -> Errors:
    return merged(matrix.total for tensor in tensors for matrix in tensor.matrices).total()


def _is_weighed(tensors: Iterable[MeasuredTensor]) -> bool:
    return any(tensor.is_weighed for tensor in tensors)


def _bits(nbytes: int, total: Errors) -> float:
    return 8 * nbytes / int(total.weights) if total.weights else 0.0


def metrics(total: Errors, *, is_weighed: bool, has_place: bool = False) -> dict[str, Any]:
    """Describe errors that were added up; `has_place`: of one matrix, so [out, in] is a place."""
    place = [int(total.largest_row), int(total.largest_in)]
    weighted = {
        "error_squares": _finite(total.weighted_error_squares),
        "source_squares": _finite(total.weighted_source_squares),
        "relative_rms": _finite(total.weighted_relative_rms),
        "sqnr_db": _finite(total.weighted_sqnr_db),
    }
    return {
        "weights": int(total.weights),
        "error_squares": _finite(total.error_squares),
        "source_squares": _finite(total.source_squares),
        "relative_rms": _finite(total.relative_rms),
        "sqnr_db": _finite(total.sqnr_db),
        "cosine": _finite(total.cosine),
        "mean_error": _finite(total.mean_error),
        "largest_error": _finite(total.largest),
        "largest_at": place if has_place and total.largest_square > 0 else None,
        "share_exact": float(total.share_exact),
        "share_zeroed": float(total.share_zeroed),
        "share_clipped": float(total.share_clipped),
        "weighted": weighted if is_weighed else None,
        "histogram": total.histogram.tolist(),
    }


def _finite(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None
