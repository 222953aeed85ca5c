"""Choose one option of each class, at the least value that a total weight allows.

The multiple-choice knapsack problem: a class is a tensor, an option one of its types, weight and
value are bytes and what the type costs in quality, or the other way round. Options below the lower
convex hull of a class are taken by the steepest slope; that leaves a gap below one step, which is
closed exactly: only options whose value, at that slope, is not above the hull by more than the gap
can be in a better solution, and those few are tried in all combinations that no other dominates.
Sources: P. Sinha and A. Zoltners, "The multiple-choice knapsack problem", Operations Research 27
(1979), for hulls and slopes; D. Pisinger, "A minimal algorithm for the multiple-choice knapsack
problem", European Journal of Operational Research 83 (1995), for the search of few classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cmp_to_key
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

# (weight, value) of each option of a class.
Class = Sequence[tuple[int, int]]

# Combinations that are kept, of all classes together and at least for each. If there are more, as
# where all options cost the same for their weight, the solution is not proved to be the best.
_MOST_STATES: Final = 10_000_000
_LEAST_STATES: Final = 1000
# Share of all values, beyond what float64 loses in their sums.
_TOLERANCE: Final = 1e-12
# The gap is searched in parts first: most solutions are close to the bound.
_FIRST_PART: Final = 1 / 64
_GROWTH: Final = 4


@dataclass(frozen=True, slots=True)
class Solution:
    """The number of the option that each class gets, and their sums.

    `is_best` if no other solution has less value, or the same at less weight.
    """

    chosen: tuple[int, ...]
    weight: int
    value: int
    is_best: bool


@dataclass(frozen=True, slots=True)
class _Step:
    """A step down the hull of a class, from one option to the next that is heavier."""

    of: int
    option: int
    weight: int
    value: int  # that is saved


def solve(classes: Sequence[Class], limit: int) -> Solution | None:
    """Choose an option of each class, weights at most `limit` together, values least together.

    None if even the lightest options are too heavy. Of equal values the lighter one counts, and of
    those that are the same in both always the same one. Weights and values are whole and not negative, and their
    largest sums below 2 ** 61, so that they are exact in int64.
    """
    hulls = [_hull(options) for options in classes]
    lightest = [hull[0] for hull in hulls]
    if _sum(classes, lightest, 0) > limit:
        return None
    greedy, slope = _by_slope(classes, hulls, limit)
    if slope is None:  # nothing is left to gain
        return _solution(classes, greedy, is_best=True)
    return _Finish(classes, limit, slope, greedy).search()


def _hull(options: Class) -> list[int]:
    """Number the options on the lower convex hull, from the lightest to that of least value."""
    order = sorted(range(len(options)), key=lambda n: (*options[n], n))
    hull: list[int] = []
    for number in order:
        if hull and options[number][1] >= options[hull[-1]][1]:
            continue
        while len(hull) > 1 and _is_above(options, hull[-2], hull[-1], number):
            hull.pop()
        hull.append(number)
    return hull


def _is_above(options: Class, before: int, middle: int, after: int) -> bool:
    """Tell whether an option is on or above the line between its neighbours."""
    (w0, v0), (w1, v1), (w2, v2) = (options[n] for n in (before, middle, after))
    return (v0 - v1) * (w2 - w0) <= (v0 - v2) * (w1 - w0)


def _steps(classes: Sequence[Class], hulls: Sequence[Sequence[int]]) -> Iterator[_Step]:
    for number, (options, hull) in enumerate(zip(classes, hulls, strict=True)):
        for before, after in pairwise(hull):
            (w0, v0), (w1, v1) = options[before], options[after]
            yield _Step(number, after, w1 - w0, v0 - v1)


def _by_slope(
    classes: Sequence[Class], hulls: Sequence[Sequence[int]], limit: int
) -> tuple[list[int], tuple[int, int] | None]:
    """Take the steepest steps while there is room, then any that fit.

    Gives the options, and the slope (value, weight) of the first step that did not fit.
    """
    chosen = [hull[0] for hull in hulls]
    room = limit - _sum(classes, chosen, 0)
    slope = None
    blocked: set[int] = set()
    # Steps of one class stay in order: its slopes only become flatter.
    for step in sorted(_steps(classes, hulls), key=cmp_to_key(_steepest_first)):
        if step.of in blocked:
            continue
        if step.weight > room:
            slope = slope or (step.value, step.weight)
            blocked.add(step.of)
            continue
        chosen[step.of] = step.option
        room -= step.weight
    return chosen, slope


def _steepest_first(a: _Step, b: _Step) -> int:
    """Compare the slopes of two steps exactly, for sorting."""
    return b.value * a.weight - a.value * b.weight


def _sum(classes: Sequence[Class], chosen: Sequence[int], which: int) -> int:
    return sum(options[n][which] for options, n in zip(classes, chosen, strict=True))


def _solution(classes: Sequence[Class], chosen: Sequence[int], *, is_best: bool) -> Solution:
    weight, value = (_sum(classes, chosen, which) for which in (0, 1))
    return Solution(tuple(chosen), weight, value, is_best)


@dataclass(frozen=True, slots=True)
class _States:
    """Sums of some classes: weights and values, int64 [n], and where each comes from.

    `parents` are numbers of states before, `options` positions among the options of the last class.
    """

    weights: NDArray[np.int64]
    values: NDArray[np.int64]
    parents: NDArray[np.int32]
    options: NDArray[np.int16]

    @classmethod
    def at(cls, weight: int, value: int) -> _States:
        """Start with one state."""
        weights, values = np.array([weight], np.int64), np.array([value], np.int64)
        return cls(weights, values, np.zeros(1, np.int32), np.zeros(1, np.int16))

    def times(self, options: Class) -> _States:
        """Combine each state with each option of one more class."""
        n, given = len(self.weights), np.array(options, np.int64)
        return _States(
            (self.weights[:, None] + given[:, 0]).ravel(),
            (self.values[:, None] + given[:, 1]).ravel(),
            np.repeat(np.arange(n, dtype=np.int32), len(given)),
            np.tile(np.arange(len(given), dtype=np.int16), n),
        )

    def only(self, which: NDArray[Any]) -> _States:
        """Keep some states, by a mask or by numbers."""
        arrays = (self.weights, self.values, self.parents, self.options)
        return _States(*(array[which] for array in arrays))

    def undominated(self) -> _States:
        """Keep those of less value than all that are not heavier, the lightest first."""
        states = self.only(np.lexsort((self.values, self.weights)))
        if len(states.values) < 2:
            return states
        least = np.minimum.accumulate(states.values)
        return states.only(np.concatenate([[True], states.values[1:] < least[:-1]]))


class _Finish:
    """Search the gap that the hulls leave, by the options that may be in a better solution.

    With `slope`, value for weight, as the price of weight, a solution is above the bound of all
    solutions by what its options are above the best of their classes, and by the price of the
    weight that it leaves.
    """

    def __init__(
        self, classes: Sequence[Class], limit: int, slope: tuple[int, int], greedy: list[int]
    ) -> None:
        self._classes = classes
        self._limit = limit
        self._price = slope[0] / slope[1]
        self._best = _solution(classes, greedy, is_best=False)
        priced = [[value + self._price * weight for weight, value in c] for c in classes]
        self._least = [min(prices) for prices in priced]
        self._above = [[p - min(prices) for p in prices] for prices in priced]
        self._bound = sum(self._least) - self._price * limit
        self._tolerance = _TOLERANCE * (sum(map(max, priced)) + self._price * limit)

    def search(self) -> Solution:
        """Find the best solution, or one as good as the states that are kept allow."""
        part, is_complete, is_found = _FIRST_PART, True, False
        while is_complete and not is_found:
            gap = max(self._best.value - self._bound, 0.0)
            room = gap * min(part, 1.0) + self._tolerance
            found, is_complete = self._search(room)
            if found is not None:
                self._best = min(self._best, found, key=lambda s: (s.value, s.weight))
            is_found = part >= 1 or self._best.value - self._bound <= room
            part *= _GROWTH
        best = self._best
        return Solution(best.chosen, best.weight, best.value, is_best=is_complete)

    def _search(self, room: float) -> tuple[Solution | None, bool]:
        """Find the best of the solutions at most `room` above the bound.

        The flag says whether all of them were looked at.
        """
        kept = [[n for n, above in enumerate(each) if above <= room] for each in self._above]
        options = [[c[n] for n in ns] for c, ns in zip(self._classes, kept, strict=True)]
        # Those with the closest second option come first: the bound closes fast on the others.
        order = sorted(range(len(kept)), key=lambda c: (sorted(self._above[c])[1:2], c))
        rest = [(min(w for w, _ in c), max(w for w, _ in c)) for c in options]
        lightest, heaviest = (sum(each) for each in zip(*rest, strict=True))
        most = max(_MOST_STATES // len(order), _LEAST_STATES)
        states, base, is_complete = _States.at(0, 0), 0.0, True
        stages = []
        for number in order:
            lightest -= rest[number][0]
            heaviest -= rest[number][1]
            base += self._least[number]
            states = states.times(options[number])
            left = np.maximum(self._limit - heaviest - states.weights, 0)
            above = states.values - base + self._price * (states.weights + left)
            is_open = (above <= room) & (states.weights <= self._limit - lightest)
            states = states.only(is_open).undominated()
            if len(states.weights) > most:
                is_complete = False
                above = states.values + self._price * states.weights
                closest = np.argsort(above, kind="stable")[:most]
                states = states.only(np.sort(closest))
            stages.append((number, states))
        if not len(states.weights):
            return None, is_complete
        chosen, at = [0] * len(kept), len(states.weights) - 1  # the last has the least value
        for number, made in reversed(stages):
            chosen[number] = kept[number][int(made.options[at])]
            at = int(made.parents[at])
        return _solution(self._classes, chosen, is_best=False), is_complete
