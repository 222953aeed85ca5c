"""Groups on a device: room for them, their launches, and errors in our words."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from weightcast.quant.cpu.groups import scale_overflow
from weightcast.quant.cuda import launch as cuda_launch
from weightcast.quant.cuda.device import Stream
from weightcast.quant.cuda.jobs import (
    DeviceMatrix,
    QuantizeArguments,
    Quantizer,
    enqueue_checks,
    enqueue_launch,
    refuse_source,
    source_arguments,
)
from weightcast.quant.groups import Groups
from weightcast.quant.types import SOURCE_TYPES, GroupType

_PART_ALIGNMENT: Final = 256  # codes are stored 16 bytes at once


class _GroupArguments(ctypes.Structure):
    """kernels/device/groups.h."""

    _fields_ = [
        ("source", QuantizeArguments),
        *((name, ctypes.c_uint64) for name in ("scales", "zero_points")),
        *((name, ctypes.c_int64) for name in ("group_size", "groups")),
        *((name, ctypes.c_int32) for name in ("bits", "symmetric", "scale_type", "search")),
    ]


@dataclass(frozen=True, slots=True)
class GroupJob:
    """The result of a matrix: codes, scales and zero points behind each other from `made` on.

    `made` is the address of `made_bytes`, a multiple of 16, `found` that of `FOUND_BYTES`.
    `importance` is float32 [n_in], or 0 for none.
    """

    matrix: DeviceMatrix
    type: GroupType
    made: int
    found: int
    importance: int = 0
    effort: int = 2


def _parts(groups: Groups) -> list[NDArray[np.generic]]:
    """The arrays that there are: codes, scales, maybe zero points."""
    parts = (groups.codes, groups.scales, groups.zero_points)
    return [part for part in parts if part is not None]


def same_groups(a: Groups, b: Groups) -> bool:
    """Tell whether all parts of two groups of one type are equal, byte by byte."""
    return all(x.tobytes() == y.tobytes() for x, y in zip(_parts(a), _parts(b), strict=True))


def _places(groups: Groups) -> list[int]:
    """List where the parts begin, and where the last of them ends."""
    places = [0]
    for part in _parts(groups):
        places.append(places[-1] + -(-part.nbytes // _PART_ALIGNMENT) * _PART_ALIGNMENT)
    return places


def made_bytes(groups: Groups) -> int:
    """Bytes of device memory that take what goes into the arrays of `groups`."""
    return _places(groups)[-1]


def enqueue_groups(stream: Stream, kernels: Quantizer, job: GroupJob, groups: Groups) -> None:
    """Start making groups, at least one, of the shapes of `groups`.

    Raises LayoutError if int8 has no scales, or as many as do not divide a row, DeviceError for a
    launch that is refused.
    """
    matrix, group_type = job.matrix, job.type
    enqueue_checks(stream, kernels, matrix, job.importance, job.found)
    addresses = [job.made + place for place in _places(groups)]
    source = source_arguments(matrix)
    source.importance, source.found = job.importance, job.found
    source.dst, source.dst_stride = job.made, matrix.n_in
    n_groups = groups.scales.shape[1]
    arguments = _GroupArguments(
        source=source,
        scales=addresses[1],
        zero_points=0 if group_type.symmetric else addresses[2],
        group_size=matrix.n_in // n_groups,
        groups=n_groups,
        bits=group_type.bits,
        symmetric=group_type.symmetric,
        scale_type=SOURCE_TYPES[group_type.scale_dtype].ggml_id,
        search=job.effort,
    )
    launch = cuda_launch.group_launch(matrix.n_out * n_groups)
    enqueue_launch(stream, kernels.quantize, launch, arguments)


def copy_groups_out(stream: Stream, job: GroupJob, groups: Groups) -> None:
    """Start copying what a job makes to the arrays of `groups`."""
    for part, place in zip(_parts(groups), _places(groups), strict=False):
        stream.copy_out(part.reshape(-1).view(np.uint8), job.made + place)


def report_groups(job: GroupJob, found: NDArray[np.uint64]) -> None:
    """Raise what `groups.quantize_groups` raises of a finished job, from uint64 [6].

    Of several places the first row's is named, where the CPU names that of the first tile.
    """
    overflow = refuse_source(job.matrix, found)
    if overflow is not None:
        raise scale_overflow(job.type.scale_dtype, *overflow)
