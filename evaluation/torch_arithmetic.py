"""The operations that models are made of, by torch on the CPU or on a CUDA device."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from weightcast.errors import DeviceError
from weightcast.evaluation.arithmetic import BFLOAT16, F32, F64, Attention, visible


class TorchArithmetic:
    """Products in float32 or bfloat16 on one device; see `Arithmetic`.

    Raises DeviceError for a device that torch does not have.
    """

    def __init__(self, device: str, precision: str) -> None:
        self.precision = precision
        self._dtype = torch.bfloat16 if precision == BFLOAT16 else torch.float32
        try:
            self._device = torch.device(device)
            torch.zeros(1, device=self._device).cpu()
        except (RuntimeError, AssertionError) as problem:  # NotImplementedError is one
            said = str(problem).splitlines()[0]
            raise DeviceError(f"torch cannot use the device {device!r}: {said}") from None
        # Workers have a block each: threads inside of operations would only get in their way.
        torch.set_num_threads(1)
        # TF32 would round the inputs of float32 products to 10 bits.
        torch.backends.cuda.matmul.allow_tf32 = False

    def array(self, values: F32) -> torch.Tensor:
        return _from_numpy(values).to(self._device)

    def weights(self, values: F32) -> torch.Tensor:
        return _from_numpy(values).to(self._device, self._dtype)

    def values(self, x: torch.Tensor) -> F32:
        found: F32 = x.cpu().numpy()
        return found

    def linear(self, x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return functional.linear(x.to(self._dtype), weights).float()

    def norm(self, x: torch.Tensor, scale: torch.Tensor | None, eps: float) -> torch.Tensor:
        found = x / torch.sqrt(x.square().mean(dim=-1, keepdim=True) + eps)
        return found if scale is None else found * scale

    def rotate(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, is_paired: bool
    ) -> torch.Tensor:
        half = cos.shape[-1]
        turned = x[..., : 2 * half]
        c, s = cos[:, None], sin[:, None]
        if is_paired:
            a, b = turned[..., 0::2], turned[..., 1::2]
            pair = torch.stack([a * c - b * s, b * c + a * s], dim=-1).reshape(turned.shape)
        else:
            a, b = turned[..., :half], turned[..., half:]
            pair = torch.cat([a * c - b * s, b * c + a * s], dim=-1)
        return torch.cat([pair, x[..., 2 * half :]], dim=-1)

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, how: Attention
    ) -> torch.Tensor:
        n_tokens, heads, _ = q.shape
        kv_heads = k.shape[1]
        group = heads // kv_heads
        hidden = torch.from_numpy(~visible(n_tokens, how.window)).to(self._device)
        mixed = torch.empty((n_tokens, heads, v.shape[2]), device=self._device)
        for head in range(kv_heads):
            queries = slice(head * group, (head + 1) * group)
            scores = torch.einsum("tgd,sd->gts", q[:, queries], k[:, head]) * how.scale
            if how.cap is not None:
                scores = how.cap * torch.tanh(scores / how.cap)
            scores.masked_fill_(hidden, -torch.inf)
            mixed[:, queries] = torch.einsum("gts,sd->tgd", scores.softmax(-1), v[:, head])
        return mixed.reshape(n_tokens, -1)

    def gelu(self, x: torch.Tensor) -> torch.Tensor:
        return functional.gelu(x, approximate="tanh")

    def silu(self, x: torch.Tensor) -> torch.Tensor:
        return functional.silu(x)

    def softmax(self, x: torch.Tensor) -> torch.Tensor:
        return x.softmax(-1)

    def square_sums(self, x: torch.Tensor) -> F64:
        found: F64 = x.double().square().sum(dim=0).cpu().numpy()
        return found

    def sums(self, x: torch.Tensor) -> F64:
        found: F64 = x.sum(dim=0, dtype=torch.float64).cpu().numpy()
        return found


def _from_numpy(values: F32) -> torch.Tensor:
    """View values; torch refuses arrays that cannot be written to, though nothing writes here."""
    if not values.flags.writeable:
        values = np.require(values, requirements=["W"])
    return torch.from_numpy(values)
