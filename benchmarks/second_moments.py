"""Importance matrices made inside the xllamacpp wheel: mean squares of what each matrix multiplies.

llama.cpp shows the tensors of its graph to a callback; those of a multiplication have the weights
and the inputs as sources. llama-imatrix does the same (collect_imatrix in tools/imatrix of
llama.cpp), and experts have a row each here, too.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from weightcast.commands.llama_cpp import library_path, loaded
from weightcast.errors import CheckpointError

_F32, _I32 = 0, 26


class _Tensor(ctypes.Structure):
    """ggml_tensor of ggml.h, as far as the data; the library is asked where the name lies."""

    _fields_ = [
        ("type", ctypes.c_int32),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int32),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
    ]


class Moments:
    """Sums of squared inputs of weights by name, float64 [matrices, in], and tokens [matrices]."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(str(library_path()))
        for function in (self._library.ggml_op_desc, self._library.ggml_get_name):
            function.argtypes = [ctypes.c_void_p]
        self._library.ggml_op_desc.restype = ctypes.c_char_p
        self._library.ggml_get_name.restype = ctypes.c_void_p
        self._problem: BaseException | None = None
        self.sums: dict[str, NDArray[np.float64]] = {}
        self.counts: dict[str, NDArray[np.int64]] = {}

    def see(self, address: int, ask: bool) -> bool:
        """Take in a tensor of the graph: see `TensorCallback`.

        Nothing can be raised through C, not even an interrupt: the first is kept for `check`.
        """
        operation = self._library.ggml_op_desc(address)
        if operation not in (b"MUL_MAT", b"MUL_MAT_ID") or self._problem:
            return not ask
        tensor = _Tensor.from_address(address)
        try:
            weights, inputs = self._tensor(tensor.src[0]), self._tensor(tensor.src[1])
            name = weights.name.decode()
            if ask or not name.endswith(".weight"):
                return not ask or name.endswith(".weight")
            ids = self._tensor(tensor.src[2]) if operation == b"MUL_MAT_ID" else None
            self._add(name, weights, _array(inputs, _F32), ids)
        except BaseException as problem:
            self._problem = problem
        return True

    def check(self) -> None:
        """Raise what happened while tensors were seen."""
        if self._problem:
            raise self._problem

    def means(self) -> dict[str, NDArray[np.float32]]:
        """Give mean squares, float32 [in], or [experts, in]; what no token reached is 1."""
        self.check()
        found = {}
        for name, sums in self.sums.items():
            counts = self.counts[name][:, None]
            means = np.where(counts > 0, sums / np.maximum(counts, 1), 1).astype(np.float32)
            found[name] = means[0] if len(means) == 1 else means
        return found

    def _tensor(self, address: int) -> _Tensor:
        tensor = _Tensor.from_address(address)
        if self._library.ggml_get_name(address) != address + _Tensor.name.offset:
            raise CheckpointError("this llama.cpp has another layout of ggml_tensor")
        return tensor

    def _add(
        self, name: str, weights: _Tensor, inputs: NDArray[np.float32], ids: _Tensor | None
    ) -> None:
        matrices, n_in = (1 if ids is None else weights.ne[2]), weights.ne[0]
        sums = self.sums.setdefault(name, np.zeros((matrices, n_in)))
        counts = self.counts.setdefault(name, np.zeros(matrices, np.int64))
        squares = np.square(inputs, dtype=np.float64)
        if ids is None:
            sums[0] += squares.reshape(-1, n_in).sum(0)
            counts[0] += squares.size // n_in
            return
        chosen = _array(ids, _I32)[0, 0]  # [tokens, used]
        each = np.broadcast_to(squares[0], (*chosen.shape, n_in))  # from [tokens, used or 1, in]
        for expert in range(matrices):
            rows = each[chosen == expert]
            sums[expert] += rows.sum(0)
            counts[expert] += len(rows)


def _array(tensor: _Tensor, expected: int) -> NDArray[np.generic]:
    """View a tensor's values in memory, [ne3, ne2, ne1, ne0]."""
    if tensor.type != expected:
        raise CheckpointError(f"{tensor.name.decode()}: type {tensor.type} of ggml, not {expected}")
    dtype = np.dtype(np.float32 if expected == _F32 else np.int32)
    shape, strides = tuple(tensor.ne)[::-1], tuple(tensor.nb)[::-1]
    nbytes = (
        sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True)) + dtype.itemsize
    )
    raw = (ctypes.c_char * nbytes).from_address(tensor.data)
    return np.ndarray(shape, dtype, raw, strides=strides)


def second_moments(
    path: Path, sequences: Sequence[Sequence[int]], threads: int = 2
) -> dict[str, NDArray[np.float32]]:
    """Run a GGUF file over sequences of tokens: mean squared inputs of its matrices, by name."""
    moments = Moments()
    with loaded(path, threads) as model:
        for tokens in sequences:
            with model.context(len(tokens), moments.see) as add:
                add(tokens)
            moments.check()
    return moments.means()
