"""Quantize and measure matrices in host memory: one interface for the CPU and CUDA devices."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from weightcast.quant.cpu.library import BlockCounts, Blocks, Matrix, quantize_matrix
from weightcast.quant.cpu.metrics import measure_matrix
from weightcast.quant.groups import Groups, quantize_and_measure_groups, quantize_groups
from weightcast.quant.metrics import Baseline, Errors
from weightcast.quant.types import GroupType, QuantType


class Lane(Protocol):
    """What quantizes for one worker, one piece at a time."""

    def quantize(
        self,
        source: Matrix | Blocks,
        quant_type: QuantType,
        dst: NDArray[np.uint8],
        importance: NDArray[np.float32] | None = None,
    ) -> BlockCounts:
        """Write the rows of a matrix into dst: what `library.quantize_matrix` does.

        Source and dst are done with at the return. Raises SourceValueError, LayoutError and, on a
        device, DeviceError.
        """

    def quantize_and_measure(
        self,
        source: Matrix | Blocks,
        quant_type: QuantType,
        dst: NDArray[np.uint8],
        importance: NDArray[np.float32] | None = None,
        baseline: Baseline = Baseline.STORED,
    ) -> tuple[BlockCounts, Errors]:
        """Do as `quantize` does, and compare the rows with the matrix; the importance weighs."""

    def quantize_groups(
        self,
        source: Matrix | Blocks,
        group_type: GroupType,
        importance: NDArray[np.float32] | None = None,
    ) -> Groups:
        """Make groups of a matrix: what `groups.quantize_groups` does; raises as `quantize`."""

    def quantize_and_measure_groups(
        self,
        source: Matrix | Blocks,
        group_type: GroupType,
        importance: NDArray[np.float32] | None = None,
        baseline: Baseline = Baseline.STORED,
    ) -> tuple[Groups, Errors]:
        """Do as `quantize_groups` does, and compare the groups with the matrix."""

    def close(self) -> None:
        """Give back what the lane holds."""


class ProcessorLane:
    """The processor's kernels, which need no preparation."""

    def quantize(
        self,
        source: Matrix | Blocks,
        quant_type: QuantType,
        dst: NDArray[np.uint8],
        importance: NDArray[np.float32] | None = None,
    ) -> BlockCounts:
        return quantize_matrix(as_matrix(source), quant_type, dst, importance)

    def quantize_and_measure(
        self,
        source: Matrix | Blocks,
        quant_type: QuantType,
        dst: NDArray[np.uint8],
        importance: NDArray[np.float32] | None = None,
        baseline: Baseline = Baseline.STORED,
    ) -> tuple[BlockCounts, Errors]:
        matrix = as_matrix(source)
        counts = quantize_matrix(matrix, quant_type, dst, importance)
        return counts, measure_matrix(matrix, quant_type, dst, importance, baseline)

    def quantize_groups(
        self,
        source: Matrix | Blocks,
        group_type: GroupType,
        importance: NDArray[np.float32] | None = None,
    ) -> Groups:
        return quantize_groups(as_matrix(source), group_type, importance)

    def quantize_and_measure_groups(
        self,
        source: Matrix | Blocks,
        group_type: GroupType,
        importance: NDArray[np.float32] | None = None,
        baseline: Baseline = Baseline.STORED,
    ) -> tuple[Groups, Errors]:
        return quantize_and_measure_groups(as_matrix(source), group_type, importance, baseline)

    def close(self) -> None:
        """Nothing is held."""


def as_matrix(source: Matrix | Blocks) -> Matrix:
    """Values as they are stored, those of blocks as float32."""
    return source.dequantized() if isinstance(source, Blocks) else source
