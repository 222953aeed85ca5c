"""Known mistakes: what a tensor holds that does not hold what it ought to.

A few rows are compared with rows of the source that could have come there by mistake. Weights of
different tensors have nothing in common, so a candidate fits or it does not; a factor that is left
over is named. What explained one tensor is tried first on the next.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod, sqrt
from typing import Any, Final

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from weightcast.converters.compare import rows_float32
from weightcast.converters.graph import Place, Role, StoredMatrix, Tensor, TensorGraph, matrices
from weightcast.converters.verify.match import TensorMatch
from weightcast.converters.verify.samples import Fit, columns, fit, middle, unscaled

# Of float32 values; larger matrices are sampled, and searched less.
_WHOLE_VALUES: Final = 1 << 26
_CACHED: Final = 1 << 26
_FULL_SEARCHES: Final = 64
# Relative errors up to which rows fit: of types without errors, and of the coarsest.
_EXACT_LIMIT: Final = 0.02
_LARGEST_LIMIT: Final = 0.75
_CONVERT: Final = "convert again from the source"


@dataclass(frozen=True, slots=True)
class Mistake:
    """A known mistake: a short name, what is there, and what helps."""

    kind: str
    what: str
    remedy: str = _CONVERT


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A matrix of the source: the role and layer, and the expert of a stack."""

    place: Place
    expert: int | None


class Mistakes:
    """Explains tensors of one artifact by what is in its source."""

    def __init__(self, source: TensorGraph, convention: str) -> None:
        self._graph = source
        self._convention = convention
        self._values = source.spec.describe() if source.family.has_table else {}
        self._rows: OrderedDict[tuple[Any, ...], NDArray[np.float32]] = OrderedDict()
        self._cached = 0
        self._searches = 0
        # What was found before: how layers, roles and experts moved.
        self._layers: dict[int, int] = {}
        self._roles: dict[str, Role] = {}
        self._experts: dict[int, int] = {}

    def explain(self, tensor: TensorMatch, number: int, error: float) -> Mistake | None:
        """Explain matrix `number` of a tensor; `error` is the relative one that its type makes.

        None if it is no known mistake.
        """
        source, artifact = tensor.views[number]
        row0, row1 = middle(artifact.shape[0], artifact.row_multiple)
        rows = rows_float32(artifact, row0, row1)
        bad = np.count_nonzero(~np.isfinite(rows))
        if bad:
            return Mistake("not finite", f"holds NaN or infinity: {bad} of {rows.size} values")
        if not rows.any():
            return Mistake("zeros", "is all zeros")
        limit = min(max(1.5 * error, _EXACT_LIMIT), _LARGEST_LIMIT)
        expert = number if tensor.expert is None else tensor.expert
        return _Search(self, tensor, expert, source, rows, row0, row1, limit).run()

    def is_full(self) -> bool:
        """True if everything is searched: for some tensors only, a search reads a whole role."""
        self._searches += 1
        return self._searches <= _FULL_SEARCHES

    def source_rows(self, candidate: _Candidate, row0: int, row1: int) -> NDArray[np.float32]:
        """Rows of a matrix of the source; the last ones read are kept."""
        key = (candidate.place.name, candidate.expert, row0, row1)
        found = self._rows.pop(key, None)
        if found is None:
            views = matrices(self._written(candidate.place))
            found = rows_float32(views[candidate.expert or 0], row0, row1)
            self._cached += found.size
        self._rows[key] = found
        while self._cached > _CACHED and len(self._rows) > 1:
            self._cached -= self._rows.popitem(last=False)[1].size
        return found

    def factor_name(self, factor: float, tolerance: float) -> str | None:
        """Name a factor that is made of the model's multipliers."""
        names = {
            " * ".join(product): prod(self._values[name] for name in product)
            for product in self._graph.family.quirks.multipliers
        }
        known = dict(names)
        known.update({f"1 / {name}": 1 / value for name, value in names.items()})
        known.update({f"sqrt({name})": sqrt(value) for name, value in names.items()})
        known.update({f"1 / sqrt({name})": 1 / sqrt(value) for name, value in names.items()})
        found = [name for name, v in known.items() if abs(abs(factor) / v - 1) < tolerance]
        if not found:
            return None
        return ("-" if factor < 0 else "") + " or ".join(found)

    def remember(self, tensor: TensorMatch, candidate: _Candidate, expert: int) -> None:
        """Keep what explained a tensor, for the next ones."""
        assert tensor.place is not None
        layer, found = tensor.place.layer, candidate.place.layer
        if layer is not None and found is not None and layer != found:
            self._layers[layer] = found
        if candidate.place.role != tensor.place.role:
            self._roles[tensor.place.role.name] = candidate.place.role
        if candidate.expert is not None and candidate.expert != expert:
            self._experts[expert] = candidate.expert

    def likely(self, place: Place, expert: int) -> Iterator[_Candidate]:
        """List the mistakes that explained other tensors, here."""
        role = self._roles.get(place.role.name, place.role)
        if place.layer is None:
            return
        for layer in dict.fromkeys((self._layers.get(place.layer, place.layer), place.layer)):
            for n in dict.fromkeys((self._experts.get(expert, expert), expert)):
                for chosen in dict.fromkeys((role, place.role)):
                    if chosen.axes == place.role.axes:
                        yield _Candidate(Place(chosen, layer), n if chosen.is_experts else None)

    @property
    def graph(self) -> TensorGraph:
        return self._graph

    def shape_of(self, place: Place) -> tuple[int, ...]:
        return self._written(place).shape

    def _written(self, place: Place) -> Tensor:
        """The tensor as the artifact's convention stores it."""
        return self._graph.family.written(place, self._convention, self._graph[place.name])


@dataclass(frozen=True, slots=True)
class _Search:
    """The search for what one matrix holds: rows [row0, row1) of it beside its source, `view`.

    Rows fit that are off by no more than `limit`, relative to their size.
    """

    mistakes: Mistakes
    tensor: TensorMatch
    expert: int
    view: StoredMatrix
    rows: NDArray[np.float32]
    row0: int
    row1: int
    limit: float

    def run(self) -> Mistake | None:
        own = rows_float32(self.view, self.row0, self.row1)
        found = self._of_itself(own)
        if found is not None or self.tensor.place is None:
            return found
        place = self.tensor.place
        for candidate in self.mistakes.likely(place, self.expert):
            found = self._try(candidate)
            if found is not None:
                return found
        if not self.mistakes.is_full():
            return None
        for candidate in self._candidates(place):
            found = self._try(candidate)
            if found is not None:
                return found
        return self._permuted() or self._transposed()

    # The right tensor, but changed.

    def _of_itself(self, own: NDArray[np.float32]) -> Mistake | None:
        found = fit(self.rows, own)
        if found.error <= self.limit:
            return self._scaled(found) or self._rounded(own)
        if own.shape[0] == 1 or np.allclose(own.mean(), 1, atol=0.5):
            for shift in (1, -1):
                if fit(self.rows, own + np.float32(shift)).error <= 1e-4:
                    text = "1 + the scale" if shift > 0 else "the scale - 1"
                    rule = self.mistakes.graph.family.quirks.norm_rule
                    more = f"; {rule}" if rule else ""
                    return Mistake("shifted norm", f"holds {text}{more}")
        view = self.view.single
        if view is None or view.scales is None:
            return None
        codes = unscaled(view, self.row0, self.row1)
        found = fit(self.rows, codes)
        if found.error <= self.limit:
            return Mistake("scales lost", "holds the int8 codes without their scales")
        scales = rows_float32(view.scales, self.row0, self.row1)
        if scales.shape[1] > 1 and fit(self.rows, codes * scales[:, :1]).error <= self.limit:
            what = f"every value is scaled by the first of its row's {scales.shape[1]} scales"
            return Mistake("first scale", what)
        return None

    def _scaled(self, found: Fit) -> Mistake | None:
        # Coarse types shrink weights: by the square of their error, as what is lost is their own.
        tolerance = max(2e-3, 2 * self.limit / sqrt(self.rows.size), self.limit**2)
        if abs(found.factor - 1) < tolerance:
            return None
        name = self.mistakes.factor_name(found.factor, tolerance)
        if name is None and abs(found.factor - 1) < max(0.05, self.limit):
            return None
        digits = 2 if self.limit > _EXACT_LIMIT else 3
        what = f"is scaled by {found.factor:.{digits}g}"
        remedy = "convert again without folding multipliers into weights"
        return Mistake("scaled", what if name is None else f"{what} ({name})", remedy)

    def _rounded(self, own: NDArray[np.float32]) -> Mistake | None:
        for name, dtype in (("bf16", ml_dtypes.bfloat16), ("f16", np.float16)):
            with np.errstate(over="ignore"):
                rounded = own.astype(dtype).astype(np.float32)
            if np.array_equal(self.rows, rounded) and not np.array_equal(own, rounded):
                return Mistake("rounded", f"was rounded to {name} on the way")
        return None

    # Another tensor.

    def _try(self, candidate: _Candidate) -> Mistake | None:
        place = self.tensor.place
        assert place is not None
        if candidate.place == place and candidate.expert in (None, self.expert):
            return None
        if self.mistakes.shape_of(candidate.place)[-2:] != self.mistakes.shape_of(place)[-2:]:
            return None
        found = fit(self.rows, self.mistakes.source_rows(candidate, self.row0, self.row1))
        if found.error > self.limit:
            return None
        self.mistakes.remember(self.tensor, candidate, self.expert)
        return self._named(candidate, found)

    def _candidates(self, place: Place) -> Iterator[_Candidate]:
        """Other experts, other roles, other layers; norms of all layers."""
        is_norm = len(place.role.axes) == 1
        in_layer = [role for role in self.mistakes.graph.family.roles if role.per_layer]
        if place.role.is_experts:
            for n in range(self.mistakes.shape_of(place)[0]):
                yield _Candidate(place, n)
        if place.layer is not None:
            for role in in_layer:
                if len(role.axes) == len(place.role.axes):
                    yield self._at(Place(role, place.layer))
        if is_norm:
            for role in self.mistakes.graph.family.roles:
                if not role.per_layer and len(role.axes) == 1:
                    yield _Candidate(Place(role, None), None)
        layers = range(self.mistakes.graph.spec.num_layers)
        for layer in layers if is_norm or place.layer is not None else ():
            for role in in_layer if is_norm else (place.role,):
                if len(role.axes) == len(place.role.axes):
                    yield self._at(Place(role, layer))

    def _at(self, place: Place) -> _Candidate:
        return _Candidate(place, self.expert if place.role.is_experts else None)

    def _named(self, candidate: _Candidate, found: Fit) -> Mistake:
        place = self.tensor.place
        assert place is not None
        parts, kinds = [], []
        remedy = _CONVERT
        if candidate.place.role != place.role:
            parts.append(f"{candidate.place.role.name}, not {place.role.name}")
            kinds.append("exchanged")
        if candidate.place.layer != place.layer:
            parts.append(f"layer {candidate.place.layer}'s")
            kinds.append("layer order")
            order = sorted(range(self.mistakes.graph.spec.num_layers), key=str)
            if place.layer is not None and order[place.layer] == candidate.place.layer:
                remedy = "shards are sorted as strings: 0, 1, 10, 11, ..., 2; number layers so"
        if candidate.expert not in (None, self.expert):
            parts.append(f"expert {candidate.expert}'s")
            kinds.append("expert order")
        what = f"holds {', '.join(parts)}"
        if candidate.place.role != place.role or candidate.expert not in (None, self.expert):
            what = f"{what} ({candidate.place.name})"
        scaled = self._scaled(found)
        if scaled is not None:
            what = f"{what}, and {scaled.what}"
        return Mistake(" and ".join(kinds), what, remedy)

    # Moved within itself.

    def _permuted(self) -> Mistake | None:
        place, graph = self.tensor.place, self.mistakes.graph
        assert place is not None
        n_out, n_in = self.view.shape
        if place.role.is_experts or n_out * n_in > _WHOLE_VALUES or n_out == 1:
            return None
        quirks = graph.family.quirks
        if place.role.name in quirks.rotary:
            head_size = graph.spec.describe()[quirks.head_size]
            found = self._permuted_heads(head_size, quirks.rotary_rule)
            if found is not None:
                return found
        return self._in_order(rows_float32(self.view, 0, n_out))

    def _permuted_heads(self, key_size: int, rule: str) -> Mistake | None:
        """Compare the heads that the rows belong to with both orders of their halves."""
        n_in, first = self.view.shape[1], self.row0 // key_size * key_size
        last = -(-self.row1 // key_size) * key_size
        whole = rows_float32(self.view, first, last)
        pairs = {"interleaved": (2, key_size // 2), "split": (key_size // 2, 2)}
        for how, shape in pairs.items():
            rows = whole.reshape(-1, *shape, n_in).swapaxes(1, 2).reshape(whole.shape)
            if fit(self.rows, rows[self.row0 - first : self.row1 - first]).error <= self.limit:
                what = f"the halves of each head are {how}, as converters of Llama do for RoPE"
                remedy = f"convert again without that permutation: {rule}"
                return Mistake("RoPE permutation", what, remedy)
        return None

    def _in_order(self, whole: NDArray[np.float32]) -> Mistake | None:
        """Find each row somewhere else in the matrix."""
        sizes = np.linalg.norm(whole, axis=1) * np.linalg.norm(self.rows, axis=1)[:, None]
        with np.errstate(all="ignore"):
            best = np.argmax(np.nan_to_num((self.rows @ whole.T) / sizes), axis=1)
        if fit(self.rows, whole[best]).error > self.limit:
            return None
        row = next((n for n, at in enumerate(best) if at != self.row0 + n), None)
        if row is None:
            return None
        what = f"its rows are in another order: row {self.row0 + row} is row {best[row]}"
        return Mistake("row order", what)

    def _transposed(self) -> Mistake | None:
        """The bytes of [in, out] under the shape [out, in]."""
        view, (n_out, n_in) = self.view.single, self.view.shape
        if view is None or view.is_encoded or view.is_packed or n_out == 1:
            return None
        first, last = self.row0 * n_in // n_out, -(-self.row1 * n_in // n_out)
        there = columns(view, first, last).T.reshape(-1)
        start = self.row0 * n_in - first * n_out
        found = fit(self.rows, there[start : start + self.rows.size].reshape(self.rows.shape))
        if found.error > self.limit:
            return None
        return Mistake("transposed", "is transposed: holds [in, out] where [out, in] belongs")
