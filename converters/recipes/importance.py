"""Importance matrices meet recipes: which tensor is weighed by what, and what is missing."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from weightcast.converters.recipes.decide import Decision, category
from weightcast.errors import LayoutError
from weightcast.formats.gguf.header import raw_string, raw_uint
from weightcast.formats.gguf.imatrix import ImportanceMatrix
from weightcast.quant.cpu.library import uses_importance
from weightcast.quant.search import GGML, Search
from weightcast.quant.types import FLOAT_TYPES
from weightcast.text import count, option, some

# Powers of ten of the mean importance of columns beyond which blocks of a type lose 0.1 dB or more,
# as sums of float32 underflow or overflow: they multiply importance and weights by one another. The
# first holds for weights of an RMS of 0.005, as large models have, the second for weights of 1.
# Measured by test_importance_beyond_float32_sums.
IN_RANGE: Final[dict[str, tuple[int, int]]] = {
    **{"Q4_0": (-18, 16), "Q4_1": (-19, 16), "Q5_0": (-18, 16), "Q5_1": (-19, 16)},
    **{"Q2_K": (-19, 17), "Q3_K": (-18, 17), "Q4_K": (-20, 16), "Q5_K": (-20, 16)},
    **{"Q6_K": (-20, 16), "IQ4_NL": (-20, 15), "IQ4_XS": (-19, 15), "IQ3_S": (-19, 16)},
    **{"IQ3_XXS": (-19, 16), "IQ2_S": (-18, 16), "IQ2_XS": (-18, 16), "IQ2_XXS": (-19, 17)},
    **{"IQ1_M": (-18, 17), "IQ1_S": (-19, 17)},
}
# Columns that are judged together: those of a block, as long as blocks get.
_RUN: Final = 256
USUAL_FLOOR: Final = 1e-6
# What llama-quantize's fixed buffer holds.
_MAX_TEXT_BYTES: Final = 127


@dataclass(frozen=True)
class ImportanceMap:
    """Importance by GGUF name, float32 [matrices, in], and what to say about it.

    `missing` are quantized without, though their type could use it; `unused` are experts without
    data, whose columns count the same; of the matrices in `zeros` no column counts, those in
    `faint` and `huge` have an importance that float32 sums cannot keep; `refused` (with their
    types) must not be made without. Tensors that are copied are in none of these.
    """

    matrix: ImportanceMatrix | None = None
    rows: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    unused: dict[str, tuple[int, ...]] = field(default_factory=dict)
    refused: tuple[str, ...] = ()
    zeros: dict[str, tuple[int, ...]] = field(default_factory=dict)
    faint: dict[str, tuple[int, ...]] = field(default_factory=dict)
    huge: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def describe(self) -> dict[str, Any] | None:
        """Describe the importance matrix that was used, as JSON values."""
        if self.matrix is None:
            return None
        out_of_range = {"too_small": self.faint, "too_large": self.huge}
        return {
            "file": str(self.matrix.path),
            "entries": len(self.matrix.entries),
            "missing": list(self.missing),
            "unused_experts": {name: list(found) for name, found in self.unused.items()},
            "all_zeros": {name: list(found) for name, found in self.zeros.items()},
            **{
                key: {name: list(found) for name, found in tensors.items()}
                for key, tensors in out_of_range.items()
                if tensors
            },
        }

    def notes(self) -> Iterator[str]:
        """List what the user should know."""
        if self.refused:
            yield self.why_refused()
        if self.matrix is not None and self.missing:
            missing = count(len(self.missing), "quantized tensor")
            yield (
                f"{self.matrix.path} has no entry for {missing}, made without: {some(self.missing)}"
            )
        if self.unused:
            experts = sum(map(len, self.unused.values()))
            examples = [f"{name} {list(found)}" for name, found in self.unused.items()]
            yield (
                f"no data for {count(experts, 'expert')} in {count(len(self.unused), 'tensor')} of "
                f"the importance matrix, all columns count the same: {some(examples)}"
            )
        floor = option("importance_floor", USUAL_FLOOR)
        if self.zeros:
            yield (
                f"the importance of every column is 0 in {count(len(self.zeros), 'tensor')}, whose "
                "weights are lost by that, as in llama-quantize; an importance matrix without "
                f"these entries keeps them, and so does {floor}: {self._named(self.zeros)}"
            )
        if self.faint:
            yield (
                f"the importance is nearly nothing in {count(len(self.faint), 'tensor')}, too "
                "little for sums in float32: weights are rounded badly or lost by that, as in "
                f"llama-quantize; {floor} brings it back into range: {self._named(self.faint)}"
            )
        if self.huge:
            yield (
                f"the importance is too large in {count(len(self.huge), 'tensor')} for sums in "
                "float32: weights are rounded badly or lost by that, as in llama-quantize; "
                f"{floor} brings it back into range: {self._named(self.huge)}"
            )

    def _named(self, found: Mapping[str, tuple[int, ...]]) -> str:
        """Name tensors, those of several matrices with the numbers of these."""
        several = {name for name, rows in self.rows.items() if len(rows) > 1}
        return some([f"{n} {list(of)}" if n in several else n for n, of in found.items()])

    def why_refused(self) -> str:
        """Say why nothing can be written."""
        remedy = f"; give one with {option('imatrix', 'FILE')}"
        if self.matrix is not None:
            remedy = f" with entries that {self.matrix.path} lacks"
        return (
            f"needs an importance matrix{remedy}: without, these would be garbage: "
            f"{some(self.refused)}"
        )

    def check(self, output: object) -> None:
        """Raise LayoutError if something must not be made without importance, and has none."""
        if self.refused:
            raise LayoutError(f"{output}: {self.why_refused()}")


def match_importance(
    matrix: ImportanceMatrix | None,
    tensors: Sequence[tuple[str, tuple[int, ...]]],
    decisions: Sequence[Decision],
    copied: Collection[str] = (),
    search: Search = GGML,
) -> ImportanceMap:
    """Find the importance of every tensor whose type can use it by the rule of `search`.

    Of those that are `copied`, by name, nothing is made that could lack importance: they are
    weighed only where their errors are measured. Where all is plain floats there is nothing to
    weigh, and the matrix does not matter. Raises LayoutError for an entry of another size than its
    tensor, and for a matrix that has nothing to do with the model.
    """
    if all(decision.type in (None, *FLOAT_TYPES) for decision in decisions):
        return ImportanceMap()
    if matrix is not None and not any(name in matrix.entries for name, _ in tensors):
        raise _foreign(matrix)
    rows, missing, refused = {}, [], []
    faint, huge = {}, {}
    for (name, shape), decision in zip(tensors, decisions, strict=True):
        if decision.type is None or not uses_importance(decision.type, search):
            continue
        found = None if matrix is None else _rows(matrix, name, shape)
        if found is not None:
            rows[name] = found
            if name not in copied and not search.is_least_error:  # which normalizes blocks
                least, most = IN_RANGE[decision.type.name]
                faint[name], huge[name] = _faint(found, 10.0**least), _huge(found, 10.0**most)
        elif name in copied:
            continue
        elif decision.needs_importance:
            refused.append(f"{name} as {decision.type.name}")
        else:
            missing.append(name)
    made = [name for name in rows if name not in copied]
    unused = _unused(matrix, made)
    return ImportanceMap(
        matrix,
        rows,
        tuple(missing),
        unused,
        tuple(refused),
        {} if search.is_least_error else _zeros(rows, made),  # whose columns then count the same
        {name: found for name, found in faint.items() if found},
        {name: found for name, found in huge.items() if found},
    )


def _unused(matrix: ImportanceMatrix | None, names: Iterable[str]) -> dict[str, tuple[int, ...]]:
    if matrix is None:
        return {}
    return {name: matrix.unused[name] for name in names if name in matrix.unused}


def _zeros(
    rows: Mapping[str, NDArray[np.float32]], names: Iterable[str]
) -> dict[str, tuple[int, ...]]:
    """Find the matrices of tensors whose columns do not count at all."""
    found = {name: tuple(np.flatnonzero(~rows[name].any(axis=1)).tolist()) for name in names}
    return {name: matrices for name, matrices in found.items() if matrices}


def _means(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """Average the importance of each run of columns, [matrices, runs]."""
    starts = np.arange(0, rows.shape[1], _RUN)
    sizes = np.diff(np.append(starts, rows.shape[1]))
    return np.add.reduceat(rows, starts, axis=1, dtype=np.float64) / sizes


def _faint(rows: NDArray[np.float32], least: float) -> tuple[int, ...]:
    """Find the matrices of which half the columns and more weigh less than `least`, but some do."""
    means = _means(rows)
    is_less = (means < least) & (means > 0)
    return tuple(np.flatnonzero(2 * is_less.sum(axis=1) >= means.shape[1]).tolist())


def _huge(rows: NDArray[np.float32], most: float) -> tuple[int, ...]:
    """Find the matrices of which some columns weigh more than `most`."""
    return tuple(np.flatnonzero((_means(rows) > most).any(axis=1)).tolist())


def match_importance_named(
    matrix: ImportanceMatrix,
    tensors: Sequence[tuple[str, tuple[int, ...]]],
    wanted: Collection[str],
) -> ImportanceMap:
    """Find the importance of the tensors that are wanted by name. Raises LayoutError.

    They are packed with a search, which does not mind an importance of 0, or only measured.
    """
    shapes = dict(tensors)
    if not any(name in matrix.entries for name in shapes):
        raise _foreign(matrix)
    found = {name: _rows(matrix, name, shapes[name]) for name in shapes if name in wanted}
    rows = {name: values for name, values in found.items() if values is not None}
    missing = tuple(name for name, values in found.items() if values is None)
    return ImportanceMap(matrix, rows, missing, _unused(matrix, rows))


def select_entries(
    matrix: ImportanceMatrix, included: Sequence[str] = (), excluded: Sequence[str] = ()
) -> ImportanceMatrix | None:
    """Keep the entries with one of some texts in their names, or those with none of others.

    None if none is left, which is as good as no importance matrix. As llama-quantize's
    --include-weights and --exclude-weights.
    """
    kept = {
        name
        for name in matrix.entries
        if (not included or any(text in name for text in included))
        and not any(text in name for text in excluded)
    }
    entries = {name: values for name, values in matrix.entries.items() if name in kept}
    unused = {name: found for name, found in matrix.unused.items() if name in kept}
    return replace(matrix, entries=entries, unused=unused) if entries else None


def _foreign(matrix: ImportanceMatrix) -> LayoutError:
    return LayoutError(
        f"{matrix.path}: belongs to another model: none of its {len(matrix.entries)} entries "
        f"is named like a tensor of this one (its first is {min(matrix.entries)})"
    )


def _rows(
    matrix: ImportanceMatrix, name: str, shape: tuple[int, ...]
) -> NDArray[np.float32] | None:
    values = matrix.entries.get(name)
    if values is None:
        return None
    matrices, n_in = prod(shape[:-2]), shape[-1]
    if values.size == matrices * n_in:
        return matrix.rows(name, matrices)
    if category(name) == "token_embd":
        return None  # llama.cpp looks rows up in it, so what is recorded is something else
    raise LayoutError(
        f"{matrix.path}: {name}: {values.size} values for {matrices} x {n_in} columns; the "
        "importance matrix belongs to another model"
    )


def provenance_metadata(matrix: ImportanceMatrix | None) -> dict[str, bytes]:
    """Encode the metadata that llama-quantize leaves: where the importance came from."""
    if matrix is None:
        return {}
    values = {"quantize.imatrix.file": raw_string(_cut(str(matrix.path)))}
    if matrix.datasets:
        values["quantize.imatrix.dataset"] = raw_string(_cut(matrix.datasets[0]))
    values["quantize.imatrix.entries_count"] = raw_uint(len(matrix.entries) + matrix.left_out)
    if matrix.chunks:
        values["quantize.imatrix.chunks_count"] = raw_uint(matrix.chunks)
    return values


def _cut(text: str) -> str:
    return text.encode(errors="replace")[:_MAX_TEXT_BYTES].decode(errors="ignore")
