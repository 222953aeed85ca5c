"""The operations that models are made of, by numpy or by torch.

Both take and give blocks of some hundred tokens. What a block becomes does not depend on the other
blocks, nor on how many are worked on at a time: results are the same for any number of workers and
any amount of memory. Numpy is the reference; torch has faster products, also in bfloat16, and GPUs.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from weightcast.errors import MissingPackageError, RequestError

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
# An array of the arithmetic's own kind: numpy's or torch's.
Array = Any

FLOAT32: Final = "float32"
BFLOAT16: Final = "bfloat16"
PRECISIONS: Final = (FLOAT32, BFLOAT16)


@dataclass(frozen=True, slots=True)
class Attention:
    """How scores of queries and keys become weights.

    Scores are multiplied by `scale`, and capped with `cap * tanh(score / cap)` if there is a cap.
    A position attends to itself and those before it; with a `window`, to that many in all.
    """

    scale: float
    cap: float | None = None
    window: int | None = None


class Arithmetic(Protocol):
    """Operations on blocks of rows; `linear` rounds its inputs to the precision, all else is f32.

    Rows are [tokens, width] of one sequence or of several; vectors of weights are [width].
    """

    @property
    def precision(self) -> str:
        """Name what products round their inputs to, of PRECISIONS."""

    def array(self, values: F32) -> Array:
        """Take values of numpy."""

    def weights(self, values: F32) -> Array:
        """Take a matrix [out, in] for `linear`, in the precision of products."""

    def values(self, x: Array) -> F32:
        """Give values to numpy."""

    def linear(self, x: Array, weights: Array) -> Array:
        """Multiply rows [tokens, in] with a matrix [out, in]: [tokens, out], summed in float32."""

    def norm(self, x: Array, scale: Array | None, eps: float) -> Array:
        """Divide the last axis by its root mean square, and multiply by `scale` if given."""

    def rotate(self, x: Array, cos: Array, sin: Array, *, is_paired: bool) -> Array:
        """Turn heads [tokens, heads, width] by angles of positions [tokens, width / 2].

        Component i turns with i + width / 2, or, if they are paired, 2 i with 2 i + 1. Components
        behind the angles' width stay.
        """

    def attend(self, q: Array, k: Array, v: Array, how: Attention) -> Array:
        """Mix values [tokens, kv_heads, width] of one sequence by queries [tokens, heads, width].

        Query heads share keys and values in runs. Gives [tokens, heads * width].
        """

    def gelu(self, x: Array) -> Array:
        """Apply GELU in its form with tanh."""

    def silu(self, x: Array) -> Array:
        """Apply x * sigmoid(x)."""

    def softmax(self, x: Array) -> Array:
        """Give probabilities along the last axis."""

    def square_sums(self, x: Array) -> F64:
        """Sum the squares of rows [tokens, width] over the tokens, in float64."""

    def sums(self, x: Array) -> F64:
        """Sum rows [tokens, width] over the tokens, in float64."""


def arithmetic(device: str = "cpu", precision: str = FLOAT32) -> Arithmetic:
    """Choose torch if it is installed, else numpy.

    Raises MissingPackageError for what only torch can, RequestError for unknown names.
    """
    if precision not in PRECISIONS:
        raise RequestError(f"unknown precision {precision!r}; use {' or '.join(PRECISIONS)}")
    if find_spec("torch") is None:
        if device != "cpu" or precision != FLOAT32:
            what = f"{precision} products" if device == "cpu" else f"the device {device}"
            raise MissingPackageError(f"{what} need torch: pip install 'weightcast[torch]'")
        return NumpyArithmetic()
    from weightcast.evaluation.torch_arithmetic import TorchArithmetic

    return TorchArithmetic(device, precision)


class NumpyArithmetic:
    """The reference: float32 throughout."""

    precision = FLOAT32

    def array(self, values: F32) -> F32:
        return values

    def weights(self, values: F32) -> F32:
        return values

    def values(self, x: F32) -> F32:
        return x

    def linear(self, x: F32, weights: F32) -> F32:
        found: F32 = x @ weights.T
        return found

    def norm(self, x: F32, scale: F32 | None, eps: float) -> F32:
        mean_square = np.mean(x * x, axis=-1, keepdims=True, dtype=np.float32)
        found = x / np.sqrt(mean_square + np.float32(eps))
        return _float32(found if scale is None else found * scale)

    def rotate(self, x: F32, cos: F32, sin: F32, *, is_paired: bool) -> F32:
        half = cos.shape[-1]
        turned = x[..., : 2 * half]
        c, s = cos[:, None], sin[:, None]
        if is_paired:
            a, b = turned[..., 0::2], turned[..., 1::2]
            pair = np.stack([a * c - b * s, b * c + a * s], axis=-1).reshape(turned.shape)
        else:
            a, b = turned[..., :half], turned[..., half:]
            pair = np.concatenate([a * c - b * s, b * c + a * s], axis=-1)
        return np.concatenate([pair, x[..., 2 * half :]], axis=-1)

    def attend(self, q: F32, k: F32, v: F32, how: Attention) -> F32:
        n_tokens, heads, _ = q.shape
        kv_heads = k.shape[1]
        group = heads // kv_heads
        hidden = ~visible(n_tokens, how.window)
        mixed = np.empty((n_tokens, heads, v.shape[2]), np.float32)
        for head in range(kv_heads):
            queries = slice(head * group, (head + 1) * group)
            scores = np.einsum("tgd,sd->gts", q[:, queries], k[:, head], optimize=True)
            scores *= np.float32(how.scale)
            if how.cap is not None:
                scores = np.float32(how.cap) * np.tanh(scores / np.float32(how.cap))
            scores[:, hidden] = -np.inf
            weights = self.softmax(scores)
            mixed[:, queries] = np.einsum("gts,sd->tgd", weights, v[:, head], optimize=True)
        return mixed.reshape(n_tokens, -1)

    def gelu(self, x: F32) -> F32:
        inner = np.float32(np.sqrt(2 / np.pi)) * (x + np.float32(0.044715) * x**3)
        return _float32(np.float32(0.5) * x * (np.float32(1) + np.tanh(inner)))

    def silu(self, x: F32) -> F32:
        # For large -x the exponential is infinite, and the quotient 0, as it should be.
        with np.errstate(over="ignore"):
            return _float32(x / (np.float32(1) + np.exp(-x)))

    def softmax(self, x: F32) -> F32:
        e = np.exp(x - x.max(axis=-1, keepdims=True))
        found: F32 = e / e.sum(axis=-1, keepdims=True)
        return found

    def square_sums(self, x: F32) -> F64:
        found: F64 = np.square(x, dtype=np.float64).sum(axis=0)
        return found

    def sums(self, x: F32) -> F64:
        found: F64 = x.sum(axis=0, dtype=np.float64)
        return found


def _float32(x: NDArray[Any]) -> F32:
    """Tell the type checker so: numpy's stubs lose track of float32 in mixed expressions."""
    return np.asarray(x, np.float32)


def visible(n_tokens: int, window: int | None) -> NDArray[np.bool_]:
    """Tell which positions [query, key] of a sequence attend to which."""
    distance = np.arange(n_tokens)[:, None] - np.arange(n_tokens)
    found: NDArray[np.bool_] = distance >= 0
    return found if window is None else found & (distance < window)
