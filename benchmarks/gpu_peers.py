"""Quantization in torch operations, as scripts around checkpoints do it: the peer of gpu.py.

Dequantize to float32, transpose, cut into blocks of 32, find a scale, round, pack; each step reads
and writes the whole matrix. Rounding is torch's (half to even), so bytes differ from ggml's.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

try:
    import torch
except ImportError:
    torch = None


def torch_version() -> str:
    """The version of torch, or that there is none with a device."""
    if torch is None or not torch.cuda.is_available():
        return "without CUDA"
    return str(torch.__version__)


def _blocks(codes: Any, scales: Any) -> Any:
    """int8 [in, out] and float32 [1, out] to float32 [out, in / 32, 32]."""
    values = (codes.to(torch.float32) * scales).T.contiguous()
    return values.reshape(values.shape[0], -1, 32)


def quantize_q8_0(codes: Any, scales: Any) -> Any:
    """Pack into uint8 [out, in / 32, 34]."""
    x = _blocks(codes, scales)
    d = x.abs().amax(dim=-1, keepdim=True) / 127
    q = torch.where(d > 0, x / d, 0).round().clamp(-127, 127).to(torch.int8)
    return torch.cat([d.to(torch.float16).view(torch.uint8), q.view(torch.uint8)], dim=-1)


def quantize_q4_0(codes: Any, scales: Any) -> Any:
    """Pack into uint8 [out, in / 32, 18]."""
    x = _blocks(codes, scales)
    largest = torch.gather(x, -1, x.abs().argmax(dim=-1, keepdim=True))
    d = largest / -8
    q = (torch.where(d != 0, x / d, 0) + 8.5).clamp(0, 15).to(torch.uint8)
    packed = q[..., :16] | q[..., 16:] << 4
    return torch.cat([d.to(torch.float16).view(torch.uint8), packed], dim=-1)


PEERS: dict[str, Callable[[Any, Any], Any]] = {"Q8_0": quantize_q8_0, "Q4_0": quantize_q4_0}


def torch_works(
    device: int, codes: NDArray[np.int8], scales: NDArray[np.float32], repeat: int
) -> dict[str, float]:
    """Gweights/s of the peers, by type; empty where torch has no device."""
    if torch is None or not torch.cuda.is_available():
        return {}
    found = {}
    on_device = torch.from_numpy(codes).to(f"cuda:{device}")
    factors = torch.from_numpy(scales).to(f"cuda:{device}")
    for name, peer in PEERS.items():
        peer(on_device, factors)
        times = []
        for _ in range(repeat):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            peer(on_device, factors)
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end))
        found[name] = codes.size / statistics.median(times) / 1e6
    return found
