"""The compressed-tensors package as the independent reader of what we pack."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig
from numpy.typing import NDArray


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
