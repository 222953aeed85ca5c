"""Starts the CUDA driver on first use, through cuda.bindings, and calls it.

The package works without either; DeviceError then says what is missing.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from weightcast.errors import DeviceError


@cache
def driver() -> Any:
    """Import cuda.bindings and start the driver; DeviceError if there is none."""
    try:
        from cuda.bindings import driver as bindings
    except ImportError:
        raise DeviceError(
            "cuda-bindings is not installed: pip install 'weightcast[cuda]'"
        ) from None
    try:
        (status,) = bindings.cuInit(0)
    except RuntimeError:
        raise DeviceError(
            "no CUDA driver on this machine: no libcuda.so.1 was found; install NVIDIA's driver "
            "(580 or newer), or quantize on the processor"
        ) from None
    if status == bindings.CUresult.CUDA_ERROR_NO_DEVICE:
        raise DeviceError("no CUDA device on this machine: the driver is there, but finds none")
    if status != bindings.CUresult.CUDA_SUCCESS:
        raise DeviceError(f"the CUDA driver does not start: {_describe(bindings, status)}")
    return bindings


def _describe(bindings: Any, status: Any) -> str:
    """Name and text of a driver's status, as "CUDA_ERROR_NO_DEVICE (no CUDA-capable ...)"."""
    got, text = bindings.cuGetErrorString(status)
    name = str(getattr(status, "name", status))
    known = got == bindings.CUresult.CUDA_SUCCESS and text
    return f"{name} ({text.decode()})" if known else name


def check(where: str, status: Any) -> None:
    """Raise DeviceError, starting with `where`, unless a call of the driver was successful."""
    if status != driver().CUresult.CUDA_SUCCESS:
        raise DeviceError(f"{where}: {_describe(driver(), status)}")


def call(where: str, function: str, *args: Any) -> Any:
    """Call one function of the driver and return its result; DeviceError starting with `where`."""
    try:
        status, *values = getattr(driver(), function)(*args)
    except RuntimeError:  # the bindings found no such entry point
        raise DeviceError(f"{where}: the CUDA driver is too old, it has no {function}") from None
    check(where, status)
    return values[0] if len(values) == 1 else tuple(values)
