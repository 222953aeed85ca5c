"""Add up the errors of matrices from the rows that workers measure.

Rows are added in order, whatever order they come in: the sums have the same bits for any number of
workers. Only the total and the worst rows of a matrix are kept.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final, Generic, TypeVar

import numpy as np

from weightcast.converters.plan import Destination
from weightcast.errors import RequestError
from weightcast.quant.metrics import MOMENTS, Baseline, Errors, merged, of_moments

WORST_ROWS: Final = 8
# The number of an output, the name of a tensor, and an expert if the tensor has several.
MatrixKey = tuple[int, str, int | None]
BASELINES: Final = {baseline.name.lower(): baseline for baseline in Baseline}
_Key = TypeVar("_Key", bound=Hashable)


def parse_baseline(name: str) -> Baseline:
    """Look up a baseline by name. Raises RequestError."""
    if name not in BASELINES:
        raise RequestError(f"{name!r} is no baseline; use {' or '.join(BASELINES)}")
    return BASELINES[name]


@dataclass(frozen=True, slots=True)
class MatrixErrors:
    """Errors of a matrix against its source, and its rows with the largest relative errors.

    `by_ggml` are those that ggml's rule makes of it, where a search was compared with that.
    """

    total: Errors
    worst: tuple[tuple[int, float], ...] = ()
    by_ggml: Errors | None = None

    def values(self) -> dict[str, Any]:
        """Turn all of it, exactly, into JSON values."""
        by_ggml = None if self.by_ggml is None else _sums(self.by_ggml)
        return {"total": _sums(self.total), "worst": self.worst, "by_ggml": by_ggml}


def _sums(errors: Errors) -> dict[str, Any]:
    return {field.name: getattr(errors, field.name).tolist() for field in fields(Errors)}


def matrix_errors(values: dict[str, Any]) -> MatrixErrors | None:
    """Undo `MatrixErrors.values`. Returns None if these are no such values."""
    try:
        total, by_ggml = values["total"], values["by_ggml"]
        worst = tuple((int(row), float(size)) for row, size in values["worst"])
        compared = None if by_ggml is None else _of_sums(by_ggml)
        return MatrixErrors(_of_sums(total), worst, compared)
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def _of_sums(values: dict[str, Any]) -> Errors:
    """Undo `_sums`. Raises KeyError, TypeError, ValueError or OverflowError."""
    empty = of_moments(np.zeros(0, MOMENTS), 0)
    return Errors(
        **{
            field.name: np.array(values[field.name], getattr(empty, field.name).dtype)[()]
            for field in fields(Errors)
        }
    )


@dataclass(slots=True)
class _Matrix:
    total: Errors = field(default_factory=lambda: of_moments(np.zeros(0, MOMENTS), 0).total())
    worst: tuple[tuple[int, float], ...] = ()
    rows: int = 0
    waiting: dict[int, Errors] = field(default_factory=dict)


class Collector(Generic[_Key]):
    """Sums of the errors that workers measure, by matrix."""

    def __init__(self) -> None:
        self._matrices: dict[_Key, _Matrix] = defaultdict(_Matrix)
        self._lock = threading.Lock()

    def add(self, key: _Key, row0: int, errors: Errors) -> None:
        """Add rows [row0, ...) of a matrix, an entry each."""
        with self._lock:
            matrix = self._matrices[key]
            matrix.waiting[row0] = errors
            while (rows := matrix.waiting.pop(matrix.rows, None)) is not None:
                matrix.worst = _worst(matrix.worst, rows, matrix.rows)
                matrix.total = merged((matrix.total, rows)).total()
                matrix.rows += len(rows.rows)

    def matrix(self, key: _Key, n_out: int) -> MatrixErrors | None:
        """Give the errors of a matrix [n_out, n_in]; None before all its rows were added."""
        with self._lock:
            matrix = self._matrices[key]
            return MatrixErrors(matrix.total, matrix.worst) if matrix.rows == n_out else None

    def restore(self, key: _Key, errors: MatrixErrors, n_out: int) -> None:
        """Take the errors of a whole matrix from an earlier run."""
        with self._lock:
            self._matrices[key] = _Matrix(errors.total, errors.worst, n_out)

    def finished(self) -> dict[_Key, MatrixErrors]:
        """Give the errors of each matrix whose rows were added without a gap."""
        return {
            key: MatrixErrors(matrix.total, matrix.worst)
            for key, matrix in self._matrices.items()
            if not matrix.waiting
        }


class Measuring:
    """The errors that a conversion measures against a baseline, by output, tensor and expert.

    With `compares_search`, what is searched for is made by ggml's rule as well, to be compared.
    """

    def __init__(
        self, baseline: Baseline = Baseline.STORED, *, compares_search: bool = False
    ) -> None:
        self.baseline = baseline
        self._compares_search = compares_search
        self._collector: Collector[MatrixKey] = Collector()
        self._by_ggml: Collector[MatrixKey] = Collector()

    def baseline_of(self, destination: Destination) -> Baseline:
        """Give the baseline for the rows of a destination: norms and routers are never rounded."""
        return Baseline.STORED if destination.stays_float else self.baseline

    def add(self, destination: Destination, row0: int, errors: Errors) -> None:
        """Add rows [row0, ...) of a matrix that went to a destination, an entry each."""
        self._collector.add(_key(destination), row0, errors.times(destination.factor))

    def compares(self, destination: Destination) -> bool:
        """Tell whether rows for a destination are made by ggml's rule as well."""
        has_moments = destination.moments is not None  # which make other errors less
        return self._compares_search and destination.is_least_error and not has_moments

    def add_ggmls(self, destination: Destination, row0: int, errors: Errors) -> None:
        """Add the errors of rows [row0, ...) as ggml's rule makes them."""
        self._by_ggml.add(_key(destination), row0, errors.times(destination.factor))

    def matrix(self, destination: Destination, n_out: int) -> MatrixErrors | None:
        """Give the errors of a matrix; None before all its rows were added."""
        key = _key(destination)
        found = self._collector.matrix(key, n_out)
        if found is None or not self.compares(destination):
            return found
        by_ggml = self._by_ggml.matrix(key, n_out)
        return None if by_ggml is None else replace(found, by_ggml=by_ggml.total)

    def restore(self, destination: Destination, errors: MatrixErrors, n_out: int) -> None:
        """Take the errors of a whole matrix from an earlier run."""
        key = _key(destination)
        self._collector.restore(key, errors, n_out)
        if errors.by_ggml is not None:
            self._by_ggml.restore(key, MatrixErrors(errors.by_ggml), n_out)

    def finished(self) -> dict[MatrixKey, MatrixErrors]:
        """Give the errors of each matrix."""
        by_ggml = {key: errors.total for key, errors in self._by_ggml.finished().items()}
        return {
            key: replace(errors, by_ggml=by_ggml.get(key))
            for key, errors in self._collector.finished().items()
        }


def _key(destination: Destination) -> MatrixKey:
    return destination.output, destination.tensor, destination.expert


def _worst(
    before: tuple[tuple[int, float], ...], errors: Errors, row0: int
) -> tuple[tuple[int, float], ...]:
    sizes = np.nan_to_num(errors.relative_rms, nan=np.inf, posinf=np.inf)
    order = np.argsort(-sizes, kind="stable")[:WORST_ROWS]
    new = [(row0 + int(row), float(sizes[row])) for row in order if sizes[row] > 0]
    return tuple(sorted((*before, *new), key=lambda row: (-row[1], row[0]))[:WORST_ROWS])
