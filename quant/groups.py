"""Integers with a scale, and maybe a zero point, for each group: x ≈ (q - zero_point) * scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class GroupType:
    """Integers with a scale, and maybe a zero point, for each group of a row.

    `group_size` counts values along `in`; 0 is the whole row ("channel"). A symmetric type has
    the zero point 2**(bits - 1) everywhere and does not store it. Scales are rounded to
    `scale_dtype` (BF16, F16 or F32) before codes are chosen.
    """

    bits: int
    group_size: int
    symmetric: bool = True
    scale_dtype: str = "BF16"


@dataclass(frozen=True, slots=True)
class Groups:
    """Rows of one matrix: codes [rows, in], one a byte; scales and zero points [rows, groups]."""

    codes: NDArray[np.uint8]
    scales: NDArray[Any]
    zero_points: NDArray[np.uint8] | None
