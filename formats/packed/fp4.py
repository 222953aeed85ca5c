"""MXFP4 and NVFP4 as compressed-tensors stores them, made of GGUF blocks and back, unchanged.

    .weight_packed        uint8 [out, in / 2]      e2m1 codes, 2k in the low nibble of byte k
    .weight_scale         MXFP4: uint8 [out, in / 32], x = fp4 * 2^(e - 127)
                          NVFP4: float8_e4m3fn [out, in / 16], x = fp4 * scale / global scale
    .weight_global_scale  NVFP4: float32 [1], always 1 here

GGUF blocks (quant/kernels/blocks.h) hold the same codes and scales; the nibbles of each run of
values that share a scale are there in another order: first all low ones, then all high ones.
Source: compressed_tensors/compressors/{mxfp4,nvfp4} of
https://pypi.org/project/compressed-tensors/0.20.0
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from weightcast.errors import LayoutError
from weightcast.formats.packed.layout import (
    NUMPY_DTYPES,
    Part,
    Segment,
    check_parts,
    pack_codes,
    rows_of,
    unpack_codes,
)
from weightcast.quant.types import MXFP4, NVFP4, QuantType

PACKED: Final = ".weight_packed"
SCALE: Final = ".weight_scale"
GLOBAL_SCALE: Final = ".weight_global_scale"
_NAN: Final = {"U8": 0xFF, "F8_E4M3": 0x7F}


@dataclass(frozen=True, slots=True)
class PackedFp4:
    """One of the two types: values that share a scale, the scale's dtype."""

    name: str
    type: QuantType
    scaled_elements: int
    scale_dtype: str

    def parts(self, n_out: int, n_in: int) -> tuple[Part, ...]:
        """Name the tensors of a matrix. Raises LayoutError if rows do not fill GGUF blocks."""
        self.type.row_bytes(n_in)
        if n_out < 1 or n_in < 1:
            raise LayoutError(f"a matrix [{n_out}, {n_in}] has no weights to pack")
        packed = Part(PACKED, "U8", (n_out, n_in // 2))
        scale = Part(SCALE, self.scale_dtype, (n_out, n_in // self.scaled_elements))
        return (packed, scale, *(Part(n, "F32", (1,), None) for n in self.constants()))

    def constants(self) -> dict[str, bytes]:
        """Give the parts that do not depend on the weights, whole."""
        return {GLOBAL_SCALE: np.ones(1, "<f4").tobytes()} if self.type == NVFP4 else {}

    def pack(
        self, blocks: NDArray[np.uint8], n_out: int, n_in: int, row0: int
    ) -> Iterator[Segment]:
        """Give the bytes of rows [row0, ...) from their blocks, uint8 [rows, row bytes].

        Raises LayoutError where ggml's scales mean a number and compressed-tensors' a NaN.
        """
        row_bytes = self.type.row_bytes(n_in)
        rows = len(blocks)
        if blocks.dtype != np.uint8 or blocks.shape != (rows, row_bytes):
            raise LayoutError(f"{blocks.dtype} {list(blocks.shape)} are no rows of {row_bytes} B")
        if row0 < 0 or row0 + rows > n_out:
            raise LayoutError(f"rows {row0} to {row0 + rows} are not all of {n_out}")
        scales, nibbles = self._split(blocks)
        yield rows_of(PACKED, pack_codes(self._in_order(nibbles, n_in), 4), row0)
        yield rows_of(SCALE, self._portable(scales), row0)

    def unpack(self, parts: Mapping[str, NDArray[Any]], n_out: int, n_in: int) -> NDArray[np.uint8]:
        """Make GGUF blocks, uint8 [out, row bytes]. Raises LayoutError if they cannot hold it."""
        packed, scale, *global_scale = check_parts(self.name, self.parts(n_out, n_in), parts)
        for value in global_scale:
            if value[0] != 1:
                raise LayoutError(f"{GLOBAL_SCALE} is {value[0]}: GGUF blocks have none but 1")
        raw = np.ascontiguousarray(scale).view(np.uint8)
        if np.any(raw >= _NAN[self.scale_dtype]):
            raise LayoutError(f"{SCALE} has a NaN or a negative number")
        codes = unpack_codes(np.ascontiguousarray(packed), 4, n_in)
        halves = codes.reshape(n_out, -1, 2, self.scaled_elements // 2)
        nibbles = halves[:, :, 0] | halves[:, :, 1] << 4
        n_blocks = n_in // self.type.block_elements
        joined = (raw.reshape(n_out, n_blocks, -1), nibbles.reshape(n_out, n_blocks, -1))
        return np.concatenate(joined, axis=2).reshape(n_out, -1)

    def _split(self, blocks: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Take the scales [rows, n] and the nibbles [rows, bytes] out of blocks."""
        rows = len(blocks)
        single = blocks.reshape(rows, -1, self.type.block_bytes)
        n_scales = self.type.block_elements // self.scaled_elements
        return single[..., :n_scales].reshape(rows, -1), single[..., n_scales:].reshape(rows, -1)

    def _in_order(self, nibbles: NDArray[np.uint8], n_in: int) -> NDArray[np.uint8]:
        """Spread nibbles over codes [rows, in]: of each run, the low ones come first."""
        runs = nibbles.reshape(len(nibbles), -1, self.scaled_elements // 2)
        return np.concatenate((runs & 15, runs >> 4), axis=2).reshape(len(nibbles), n_in)

    def _portable(self, scales: NDArray[np.uint8]) -> NDArray[Any]:
        """Give scales that mean to all readers what they mean to ggml."""
        if np.any(scales == 0xFF):
            value = "480" if self.type == NVFP4 else "2^128"
            raise LayoutError(f"a scale of {value}, which ggml reads, is a NaN in {self.name}")
        if self.type == NVFP4:
            # ggml takes 0x7F for zero and ignores the sign.
            scales = np.where(scales == 0x7F, 0, scales & 0x7F).astype(np.uint8)
        return scales.view(NUMPY_DTYPES[self.scale_dtype])


FP4_LAYOUTS: Final = {
    layout.type.name: layout
    for layout in (
        PackedFp4("mxfp4-pack-quantized", MXFP4, 32, "U8"),
        PackedFp4("nvfp4-pack-quantized", NVFP4, 16, "F8_E4M3"),
    )
}
