"""The compressed-tensors package as the independent reader of what we pack."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig
from numpy.typing import NDArray

from weightcast.quant.groups import Groups


def as_torch(array: NDArray[Any]) -> torch.Tensor:
    """Make a tensor of the same bits; torch has no way in for the dtypes of ml_dtypes."""
    own = {"bfloat16": torch.bfloat16, "float8_e4m3fn": torch.float8_e4m3fn}
    if array.dtype.name not in own:
        return torch.from_numpy(array.copy())
    bits = array.view(np.dtype(f"i{array.itemsize}")).copy()
    return torch.from_numpy(bits).view(own[array.dtype.name])


def decompress(
    parts: Mapping[str, NDArray[Any]], config: Mapping[str, Any], group: str = "group_0"
) -> NDArray[np.float32]:
    """Decompress one matrix as the config says; fails if the package does not accept it."""
    said = QuantizationConfig.model_validate(config)
    scheme = said.config_groups[group]
    state = {suffix.removeprefix("."): as_torch(array) for suffix, array in parts.items()}
    compressor = BaseCompressor.get_value_from_registry(scheme.format)
    assert set(state) >= set(compressor.compression_param_names(scheme))
    return compressor.decompress(state, scheme)["weight"].to(torch.float32).numpy()


def compress(
    weights: NDArray[np.float32], groups: Groups, config: Mapping[str, Any]
) -> dict[str, NDArray[Any]]:
    """Quantize [out, in] weights with the given scales and zero points, and pack them."""
    said = QuantizationConfig.model_validate(config)
    scheme = said.config_groups["group_0"]
    state = {"weight": torch.from_numpy(weights), "weight_scale": torch.from_numpy(groups.scales)}
    if groups.zero_points is not None:
        # The package counts codes and zero points from -2**(bits - 1).
        signed = groups.zero_points.astype(np.int16) - (1 << scheme.weights.num_bits - 1)
        state["weight_zero_point"] = torch.from_numpy(signed.astype(np.int8))
    compressor = BaseCompressor.get_value_from_registry(scheme.format)
    return {f".{k}": v.numpy() for k, v in compressor.compress(state, scheme).items()}
