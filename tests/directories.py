"""What the tests of packed directories share: their tensors, and what ought to be in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

import weightcast
from tests.grok1 import Named as Place
from tests.grok1 import places
from tests.support import Golden
from weightcast.converters.sources import open_graph
from weightcast.formats.packed import LAYOUTS
from weightcast.formats.packed.layout import MatrixShape
from weightcast.quant.cpu.library import Matrix
from weightcast.quant.fp8 import dequantize_fp8, quantize_fp8
from weightcast.quant.groups import dequantize_groups, quantize_groups
from weightcast.quant.types import BF16, F16, Fp8Type, GroupType

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
Tensors = dict[str, NDArray[Any]]


def read_directory(path: Path) -> Tensors:
    """All tensors, by the safetensors package; 16-bit and 8-bit floats in their own dtypes."""
    import torch

    bits = {torch.bfloat16: (torch.int16, BFLOAT16)}
    bits[torch.float8_e4m3fn] = (torch.uint8, np.dtype(ml_dtypes.float8_e4m3fn))
    tensors: Tensors = {}
    for file in sorted(path.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                tensor = opened.get_tensor(name)
                if tensor.dtype in bits:
                    view, dtype = bits[tensor.dtype]
                    tensors[name] = tensor.view(view).numpy().view(dtype)
                else:
                    tensors[name] = tensor.numpy()
    return tensors


def matrices(golden: Golden) -> dict[str, tuple[Place, int | None, NDArray[np.float32]]]:
    """Every matrix of attention and experts as float32 [out, in], by its module's name."""
    exact = golden.exact()
    found = {}
    for place in places(open_graph(golden.path).spec.num_layers):
        if place.role.storage == "float32" or place.layer is None:
            continue
        stored = np.swapaxes(exact[place.name], -1, -2)
        for expert in range(len(stored)) if place.role.is_experts else (None,):
            name = place.hugging_face(expert).removesuffix(".weight")
            found[name] = (
                place,
                expert,
                np.ascontiguousarray(stored[() if expert is None else expert]),
            )
    return found


def parts_of(tensors: Tensors, module: str) -> Tensors:
    return {n.removeprefix(module): t for n, t in tensors.items() if n.startswith(f"{module}.")}


def unpacked(tensors: Tensors, module: str, layout: str, weight_type: Any, shape: Any) -> Any:
    """What a reader of the layout gets, float32."""
    parts = parts_of(tensors, module)
    if weight_type.is_plain:
        return parts[".weight"].astype(np.float32)
    stored = LAYOUTS[layout].matrix_layout(weight_type)
    rows = stored.unpack(parts, MatrixShape(weight_type, *shape))
    if isinstance(weight_type, GroupType):
        return dequantize_groups(rows, weight_type)
    if isinstance(weight_type, Fp8Type):
        return dequantize_fp8(rows, weight_type)
    return weightcast.dequantize(rows, weight_type.name)


def wanted(values: NDArray[np.float32], weight_type: Any, importance: Any = None) -> Any:
    """The values of a matrix after quantization, by the library."""
    if isinstance(weight_type, GroupType):
        n_out, n_in = values.shape
        matrix = Matrix(values.reshape(-1), "F32", n_out, n_in, n_in, 1)
        return dequantize_groups(quantize_groups(matrix, weight_type, importance), weight_type)
    if isinstance(weight_type, Fp8Type):
        rows = quantize_fp8(values, weight_type)
        scales, square = rows.scales, weight_type.columns
        if square:
            scales = np.repeat(np.repeat(scales, square, 0), square, 1)
            scales = scales[: values.shape[0], : values.shape[1]]
        return rows.weights.astype(np.float32) * scales
    if weight_type == BF16:
        return values.astype(BFLOAT16).astype(np.float32)
    if weight_type == F16:
        return values.astype(np.float16).astype(np.float32)
    return weightcast.dequantize(weightcast.quantize(values, weight_type.name), weight_type.name)
