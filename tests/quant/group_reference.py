"""Groups made as kernels/groups/search.h describes it, in numpy: an array operation a step.

Independent of the kernels in everything but the rule: sums are float32, of 32 rows in order and
then of chunks in order, as the rule says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from weightcast.quant.groups import SCALE_DTYPES, Groups
from weightcast.quant.types import GroupType

F32 = NDArray[np.float32]
CHUNK = 32
FACTORS = {
    4: [0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15, 1.2, 1.25, 1.3, 1.4, 1.55, 1.75, 2.05, 2.6],
    8: [
        0.952,
        0.96,
        0.968,
        0.976,
        0.984,
        0.992,
        1.0,
        1.008,
        1.016,
        1.024,
        1.032,
        1.04,
        1.05,
        1.065,
        1.085,
        1.12,
    ],
}
STEPS = {4: [0.03, 0.015, 0.007], 8: [0.006, 0.004, 0.002]}
OPPOSITE = {4: [0.95, 1.1, 1.3, 1.6], 8: [0.992, 1.012, 1.036, 1.08]}
ONE_SIDED = {4: [0.85, 0.7, 0.55, 0.4], 8: [0.985, 0.97, 0.94, 0.9]}


# Factors, factors of the other kinds and refinements that are tried at an effort; where in the
# tables, in quarters of a step: the first, and the distance to the next.
EFFORTS = {1: (8, 0, 1, 4, 8), 2: (16, 4, 3, 0, 4), 3: (64, 16, 6, 0, 1)}


def between(table: list[float], count: int, first: int, step: int) -> list[np.float32]:
    """Take `count` values of a table and between its entries; past its end with its last step."""
    values = np.array(table, np.float32)
    found = []
    for quarter in range(first, first + count * step, step):
        i, share = quarter // 4, np.float32(quarter % 4 / 4)
        start = min(i, len(values) - 2)
        found.append(values[i] + (values[start + 1] - values[start]) * share)
    return found


def lesser(a: F32, b: object) -> F32:
    return np.where(a < b, a, np.float32(b))


def greater(a: F32, b: object) -> F32:
    return np.where(a > b, a, np.float32(b))


def total(terms: F32) -> F32:
    """Sum [n, size] to [n], chunk by chunk, each in order."""
    sums = np.zeros(len(terms), np.float32)
    for first in range(0, terms.shape[1], CHUNK):
        chunk = np.zeros(len(terms), np.float32)
        for i in range(first, first + CHUNK):
            chunk = chunk + terms[:, i]
        sums = sums + chunk
    return sums


@dataclass
class Reference:
    """Groups [n, size] of one type; w [n, size] are the weights of errors, or there are none."""

    x: F32
    w: F32 | None
    type: GroupType
    effort: int

    def __post_init__(self) -> None:
        if self.effort > 0:
            factors, sides, self.refinements, *steps = EFFORTS[self.effort]
            self.factors = between(FACTORS[self.type.bits], factors, *steps)
            self.opposite = between(OPPOSITE[self.type.bits], sides, *steps)
            self.kept = between(ONE_SIDED[self.type.bits], sides, *steps)
        self.levels = np.float32(2**self.type.bits - 1)
        self.middle = np.float32(2 ** (self.type.bits - 1))

    def stored(self, scale: F32) -> F32:
        dtype = SCALE_DTYPES[self.type.scale_dtype]
        return scale.astype(np.float32).astype(dtype).astype(np.float32)

    def level(self, quotient: F32, low: F32) -> F32:
        low = low[:, None]
        return np.rint(lesser(greater(quotient, low), low + self.levels))

    def spanning(self, start: F32, end: F32) -> tuple[F32, F32]:
        scale = self.stored(end / self.levels - start / self.levels)
        return scale, np.rint(lesser(greater(start / scale, -self.levels), 0))

    def plain(self) -> tuple[F32, F32]:
        middle = np.full(len(self.x), -self.middle)
        if self.type.symmetric:
            half = self.middle - np.float32(0.5)
            scale, low = self.stored(np.abs(self.x).max(1) / half), middle
        else:
            scale, low = self.spanning(np.minimum(self.x.min(1), 0), np.maximum(self.x.max(1), 0))
        none = scale == 0
        return np.where(none, np.float32(1), scale), np.where(none, middle, low)

    def error(self, scale: F32, low: F32) -> F32:
        level = self.level(self.x / scale[:, None], low)
        residual = self.x - scale[:, None] * level
        weighed = residual if self.w is None else residual * self.w
        return total(weighed * residual)

    def search(self) -> tuple[F32, F32]:
        counts = np.ones_like(self.x, bool) if self.w is None else self.w > 0
        counted = np.where(counts, self.x, np.float32(0))
        most = np.abs(counted).argmax(1)
        self.max = counted[np.arange(len(most)), most]
        self.lowest, self.highest = counted.min(1), counted.max(1)
        self.lowest, self.highest = np.minimum(self.lowest, 0), np.maximum(self.highest, 0)
        self.scale, self.low = self.plain()
        self.best = np.full(len(self.x), np.inf, np.float32)
        for propose in (
            self.clipped,
            self.one_sided,
            *map(self.neighbours, range(self.refinements)),
        ):
            for scale, low in propose():
                self.attempt(scale, low)
        plain_scale, plain_low = self.plain()
        better = self.error(self.scale, self.low) < self.error(plain_scale, plain_low)
        return np.where(better, self.scale, plain_scale), np.where(better, self.low, plain_low)

    def clipped(self) -> list[tuple[F32, F32]]:
        if not self.type.symmetric:
            return [self.spanning(self.lowest / f, self.highest / f) for f in self.factors]
        factors = [-f for f in self.factors] + self.opposite
        low = np.full(len(self.x), -self.middle)
        return [(self.stored(self.max / (self.middle * f)), low) for f in factors]

    def one_sided(self) -> list[tuple[F32, F32]]:
        if self.type.symmetric:
            return []
        return [
            *(self.spanning(self.lowest, self.highest * k) for k in self.kept),
            *(self.spanning(self.lowest * k, self.highest) for k in self.kept),
        ]

    def neighbours(self, turn: int) -> Callable[[], list[tuple[F32, F32]]]:
        def propose() -> list[tuple[F32, F32]]:
            step, one = np.float32(STEPS[self.type.bits][turn % 3]), np.float32(1)
            step *= one if turn < 3 else np.float32(0.5)
            moved = np.clip(self.low + (1 if turn % 2 == 0 else -1), -self.levels, 0)
            return [
                (self.scale, self.low),
                (self.stored(self.scale * (one - step)), self.low),
                (self.stored(self.scale * (one + step)), self.low),
                (-self.scale, self.low) if self.type.symmetric else (self.scale, moved),
            ]

        return propose

    def attempt(self, scale: F32, low: F32) -> None:
        level = self.level(self.x * (np.float32(1) / scale)[:, None], low)
        residual = self.x - scale[:, None] * level
        wr, wl = (residual, level) if self.w is None else (residual * self.w, level * self.w)
        error, product, square = total(wr * residual), total(wr * level), total(wl * level)
        fitted = self.stored(scale + product / square)
        step = fitted - scale
        gain = step * (product + product - step * square)
        use = (gain > 0) & (fitted != 0)
        error = np.where(use, error - gain, error)
        better = (error < self.best) & (scale != 0)
        self.best = np.where(better, error, self.best)
        self.scale = np.where(better, np.where(use, fitted, scale), self.scale)
        self.low = np.where(better, low, self.low)


def quantize(
    values: F32, group_type: GroupType, importance: F32 | None = None, *, effort: int = 2
) -> Groups:
    """Make groups of values [n_out, n_in]."""
    n_out, n_in = values.shape
    size = group_type.group_size or n_in
    x = values.reshape(-1, size)
    w = None
    if importance is not None:
        w = np.broadcast_to(importance, values.shape).reshape(-1, size)
    reference = Reference(x, w, group_type, effort)
    with np.errstate(all="ignore"):
        scale, low = reference.search() if effort > 0 else reference.plain()
        codes = reference.level(x / scale[:, None], low) - low[:, None]
    shape = (n_out, n_in // size)
    return Groups(
        codes.astype(np.uint8).reshape(n_out, n_in),
        scale.reshape(shape).astype(SCALE_DTYPES[group_type.scale_dtype]),
        None if group_type.symmetric else (-low).astype(np.uint8).reshape(shape),
    )
