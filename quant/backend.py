"""Quantize and measure matrices in host memory: one interface for the CPU and CUDA devices."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from weightcast.quant.cpu.library import BlockCounts, Blocks, Matrix, quantize_matrix
from weightcast.quant.cpu.metrics import measure_matrix
from weightcast.quant.groups import Groups, quantize_and_measure_groups, quantize_groups
from weightcast.quant.metrics import Baseline, Errors
from weightcast.quant.search import GGML, USUAL_EFFORT, Search
from weightcast.quant.types import GroupType, QuantType


class Backend(Protocol):
    """Quantize for one worker, one matrix at a time."""

    def quantize(
        self,
        source: Matrix | Blocks,
        quant_type: QuantType,
        dst: NDArray[np.uint8],
        importance: NDArray[np.float32] | None = None,
        search: Search = GGML,
    ) -> BlockCounts:
        """Write the rows of a matrix [n_out, n_in] into dst, as `library.quantize_matrix` does.

        Source and dst are free for other use at the return. Raises SourceValueError, LayoutError
        and, on a device, DeviceError.
        """

    def quantize_and_measure(
        self,
        source: Matrix | Blocks,
        quant_type: QuantType,
        dst: NDArray[np.uint8],
        importance: NDArray[np.float32] | None = None,
        baseline: Baseline = Baseline.STORED,
        search: Search = GGML,
    ) -> tuple[BlockCounts, Errors]:
        """Quantize, and measure the errors of the rows against the matrix.

        The importance weighs the weighted sums, whether the type uses it or not.
        """

    def quantize_groups(
        self,
        source: Matrix | Blocks,
        group_type: GroupType,
        importance: NDArray[np.float32] | None = None,
        *,
        effort: int = USUAL_EFFORT,
    ) -> Groups:
        """Quantize a matrix in groups, as `groups.quantize_groups` does; raises as `quantize`."""

    def quantize_and_measure_groups(
        self,
        source: Matrix | Blocks,
        group_type: GroupType,
        importance: NDArray[np.float32] | None = None,
        baseline: Baseline = Baseline.STORED,
        *,
        effort: int = USUAL_EFFORT,
    ) -> tuple[Groups, Errors]:
        """Quantize in groups, and measure their errors against the matrix."""

    def close(self) -> None:
        """Release memory and streams."""


class CpuBackend:
    """Quantize with the processor's kernels, which need no preparation."""

    def quantize(
        self,
        source: Matrix | Blocks,
        quant_type: QuantType,
        dst: NDArray[np.uint8],
        importance: NDArray[np.float32] | None = None,
        search: Search = GGML,
    ) -> BlockCounts:
        return quantize_matrix(as_matrix(source), quant_type, dst, importance, search)

    def quantize_and_measure(
        self,
        source: Matrix | Blocks,
        quant_type: QuantType,
        dst: NDArray[np.uint8],
        importance: NDArray[np.float32] | None = None,
        baseline: Baseline = Baseline.STORED,
        search: Search = GGML,
    ) -> tuple[BlockCounts, Errors]:
        matrix = as_matrix(source)
        counts = quantize_matrix(matrix, quant_type, dst, importance, search)
        return counts, measure_matrix(matrix, quant_type, dst, importance, baseline)

    def quantize_groups(
        self,
        source: Matrix | Blocks,
        group_type: GroupType,
        importance: NDArray[np.float32] | None = None,
        *,
        effort: int = USUAL_EFFORT,
    ) -> Groups:
        return quantize_groups(as_matrix(source), group_type, importance, effort=effort)

    def quantize_and_measure_groups(
        self,
        source: Matrix | Blocks,
        group_type: GroupType,
        importance: NDArray[np.float32] | None = None,
        baseline: Baseline = Baseline.STORED,
        *,
        effort: int = USUAL_EFFORT,
    ) -> tuple[Groups, Errors]:
        return quantize_and_measure_groups(
            as_matrix(source), group_type, importance, baseline, effort=effort
        )

    def close(self) -> None:
        """Do nothing: the kernels hold no resources."""


def as_matrix(source: Matrix | Blocks) -> Matrix:
    """Return values as they are stored, those of blocks dequantized to float32."""
    return source.dequantized() if isinstance(source, Blocks) else source
