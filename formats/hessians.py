"""Second moments of the inputs of matrices: a safetensors file, read one matrix at a time.

For each matrix W [out, in] it holds H = sum of x x' over the inputs x of some tokens, float32 [in,
in], under the name of the tensor of W; [matrices, in, in] for tensors of several experts, with
zeros where an expert saw no token. Its metadata have the number of `tokens`, in digits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from weightcast.errors import CheckpointError, FormatError, LayoutError
from weightcast.formats import safetensors
from weightcast.formats.array import StoredArray
from weightcast.text import shown

TOKENS: Final = "tokens"
_REMEDY: Final = "see examples/collect_hessians.py for how to make such a file"
_MAX_DIGITS: Final = 18


@dataclass(frozen=True, slots=True)
class StoredMoments:
    """Second moments of one matrix's inputs in a file, float32 [in, in]."""

    array: StoredArray
    name: str
    number: int  # of the matrix in its entry

    @property
    def n_in(self) -> int:
        return self.array.shape[-1]

    def open(self) -> NDArray[np.float32]:
        """Map the values into memory, float32 [in, in]. Raises CheckpointError."""
        n, path = self.n_in, self.array.path
        offset = self.array.offset + 4 * n * n * self.number
        try:
            return np.memmap(path, np.dtype("<f4"), "r", offset, (n, n))
        except (OSError, ValueError) as problem:
            raise CheckpointError(f"{path}: cannot be read: {problem}") from None

    def diagonal(self) -> NDArray[np.float32]:
        """Read the sums of squared inputs, float32 [in].

        Raises CheckpointError if they are negative or not finite.
        """
        found: NDArray[np.float32] = np.diagonal(self.open()).copy()
        if not (np.isfinite(found).all() and found.min(initial=0) >= 0):
            raise self.refused("negative, infinite or NaN on the diagonal")
        return found

    def refused(self, problem: str) -> LayoutError:
        """Make the error for moments that cannot be used."""
        return LayoutError(f"{self.array.path}: {shown(self.name)}: {problem}; {_REMEDY}")


@dataclass(frozen=True, slots=True)
class Hessians:
    """A file of second moments: [in, in] or [matrices, in, in] by tensor name."""

    path: Path
    entries: Mapping[str, StoredArray]
    tokens: int

    def find(self, name: str, number: int, count: int | None, n_in: int) -> StoredMoments | None:
        """Find those of a matrix, the `number`-th of a tensor; None without an entry.

        An entry [in, in] is for all of them. Raises CheckpointError for an entry of another size,
        or of more or less than `count` matrices, if that is known.
        """
        array = self.entries.get(name)
        if array is None:
            return None
        there = prod(array.shape[:-2])
        fits = there == count if count is not None else number < there
        if array.shape[-1] != n_in or not (fits or len(array.shape) == 2):
            needed = [n_in, n_in] if count in (None, 1) else [count, n_in, n_in]
            raise CheckpointError(
                f"{self.path}: {shown(name)}: {list(array.shape)} values, expected {needed}; the "
                "file belongs to another model"
            )
        return StoredMoments(array, name, 0 if len(array.shape) == 2 else number)


def read_hessians(path: str | Path) -> Hessians:
    """Index a file of second moments. Raises CheckpointError naming file and tensor."""
    path = Path(path)
    entries = safetensors.read_index(path)
    text = safetensors.read_header_metadata(path).get(TOKENS)
    if text is None:
        raise FormatError(path, None, f"not second moments: no `{TOKENS}` in metadata; {_REMEDY}")
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS and int(text) > 0):
        raise FormatError(path, None, f"`{TOKENS}` in its metadata are {shown(text)}, not a number")
    for name, array in entries.items():
        shape = array.shape
        if array.dtype != "F32" or len(shape) not in (2, 3) or shape[-1] != shape[-2]:
            found = f"{array.dtype} {list(shape)}"
            raise FormatError(
                path, None, f"{shown(name)}: {found}, expected F32 [in, in] or [matrices, in, in]"
            )
    if not entries:
        raise FormatError(path, None, f"no second moments; {_REMEDY}")
    return Hessians(path, entries, int(text))
