"""What others write and weightcast only reads: the values are those of their own readers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

if sys.version_info < (3, 11):
    pytest.skip("compressed-tensors needs Python 3.11", allow_module_level=True)

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig, preset_name_to_scheme
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam
from safetensors.torch import save_file

from weightcast.converters.compare import rows_float32
from weightcast.converters.graph import stored, windows
from weightcast.converters.sources.packed import join_packed
from weightcast.errors import CheckpointError
from weightcast.formats.safetensors import read_directory

N_OUT, N_IN = 96, 256
FLOATS = (torch.bfloat16, torch.float16)
# Schemes of llm-compressor, by compressed-tensors' names, with the labels that reports give them.
SCHEMES = {
    "FP8": ("float-quantized", "FP8-TENSOR"),
    "FP8_DYNAMIC": ("float-quantized", "FP8"),
    "FP8_BLOCK": ("float-quantized", "FP8-BLOCK"),
    "MXFP8A16": ("mxfp8-quantized", "MXFP8"),
    "NVFP4A16": ("nvfp4-pack-quantized", "NVFP4"),
    "NVFP4": ("nvfp4-pack-quantized", "NVFP4"),
    "MXFP4": ("mxfp4-pack-quantized", "MXFP4"),
    "W8A8": ("int-quantized", "INT8-CHANNEL"),
    "W4A8": ("int-quantized", "INT4-G128"),
    "W4A16_ASYM": ("pack-quantized", "INT4-G128-ASYM"),
}


def weights() -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    rows = torch.randn(N_OUT, 1, generator=generator).exp()
    return torch.randn(N_OUT, N_IN, generator=generator) * rows


def scales(scheme: Any, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Scales as llm-compressor's observers find them: of the largest magnitudes."""
    args = scheme.weights
    strategy = str(args.strategy)
    runs = {"tensor": x.reshape(1, -1), "channel": x}
    shape = {"tensor": (1,), "channel": (N_OUT, 1)}
    if strategy == "block":
        tiles = torch.nn.functional.pad(x, (0, 0, 0, 128 - N_OUT)).reshape(1, 128, -1, 128)
        runs["block"], shape["block"] = tiles.movedim(1, 2).reshape(1, -1, 128 * 128), (1, 2)
    elif strategy in ("group", "tensor_group"):
        runs[strategy] = x.reshape(N_OUT, -1, args.group_size)
        shape[strategy] = (N_OUT, N_IN // args.group_size)
    low, high = runs[strategy].amin(-1), runs[strategy].amax(-1)
    found, zero_point = {}, None
    given = {}
    if strategy == "tensor_group":
        given["global_scale"] = generate_gparam(x.amin()[None], x.amax()[None])
        found["weight_global_scale"] = given["global_scale"]
    scale, zero_point = calculate_qparams(low, high, args, **given)
    found["weight_scale"] = scale.reshape(shape[strategy])
    if not args.symmetric:
        found["weight_zero_point"] = zero_point.reshape(shape[strategy])
    return found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", SCHEMES)
def test_schemes_of_llm_compressor(name: str, dtype: str, tmp_path: Path) -> None:
    scheme = preset_name_to_scheme(name, ["Linear"])
    config = QuantizationConfig(config_groups={"group_0": scheme}, ignore=["lm_head"])
    x = weights()
    made = scales(scheme, x)
    if scheme.weights.scale_dtype is None:
        made["weight_scale"] = made["weight_scale"].to(getattr(torch, dtype))
    form, label = SCHEMES[name]
    compressor = BaseCompressor.get_value_from_registry(form)
    assert compressor.can_compress(torch.nn.Linear, scheme)
    packed = compressor.compress({"weight": x, **made}, scheme)
    tensors = {f"m.{key}": value.contiguous() for key, value in packed.items()}
    tensors |= {"m.input_scale": torch.ones(1), "m.k_scale": torch.ones(1)}
    save_file(tensors, tmp_path / "model.safetensors")
    said = json.loads(config.model_dump_json()) | {"quant_method": "compressed-tensors"}
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": said}))

    arrays = read_directory(tmp_path)
    joined = join_packed(tmp_path, tmp_path / "config.json", arrays)
    assert list(joined) == ["m.weight"]
    assert joined["m.weight"].dtype == label
    # Readers compute in the dtype of the scales.
    wide = {key: value.float() if value.dtype in FLOATS else value for key, value in packed.items()}
    expected = compressor.decompress(wide, scheme)["weight"].float().numpy()
    (view,) = windows(stored("m.weight", joined["m.weight"]))
    for row0, row1 in ((0, N_OUT), (0, 32), (0, 1)):
        step = joined["m.weight"].packed.row_multiple
        row1 = min(N_OUT, -(-row1 // step) * step)
        found = rows_float32(view, row0, row1)
        if form == "nvfp4-pack-quantized":  # decompressed to bfloat16 alone
            found = found.astype(ml_dtypes.bfloat16).astype(np.float32)
        np.testing.assert_array_equal(found, expected[row0:row1])


@pytest.mark.parametrize(
    ("config", "scale", "suffix", "label"),
    [
        ({}, (), ".weight_scale", "FP8-TENSOR"),
        ({"activation_scheme": "static"}, (1,), ".weight_scale", "FP8-TENSOR"),
        ({}, (N_OUT,), ".weight_scale", "FP8"),
        ({"weight_block_size": [128, 128]}, (1, 2), ".weight_scale_inv", "FP8-BLOCK"),
        ({"weight_block_size": [32, 64]}, (3, 4), ".weight_scale_inv", "FP8-32X64"),
    ],
)
def test_quant_method_fp8(
    config: dict[str, Any], scale: tuple[int, ...], suffix: str, label: str, tmp_path: Path
) -> None:
    """AMD's and DeepSeek's: the product of each weight and the scale over it."""
    generator = torch.Generator().manual_seed(5)
    codes = (torch.randn(N_OUT, N_IN, generator=generator) * 50).to(torch.float8_e4m3fn)
    scales = torch.rand(scale, generator=generator) + 0.1
    save_file({"m.weight": codes, f"m{suffix}": scales}, tmp_path / "model.safetensors")
    said = {"quantization_config": {"quant_method": "fp8", **config}}
    (tmp_path / "config.json").write_text(json.dumps(said))
    joined = join_packed(tmp_path, tmp_path / "config.json", read_directory(tmp_path))
    assert (list(joined), joined["m.weight"].dtype) == (["m.weight"], label)
    spread = scales.reshape(scale if len(scale) == 2 else (-1, 1))
    for axis, size in enumerate((N_OUT, N_IN)):
        times = -(-size // spread.shape[axis])
        if len(scale) == 2:
            times = config["weight_block_size"][axis]
        spread = spread.repeat_interleave(times, axis)
    expected = codes.float() * spread[:N_OUT, :N_IN]
    (view,) = windows(stored("m.weight", joined["m.weight"]))
    np.testing.assert_array_equal(rows_float32(view, 0, N_OUT), expected.numpy())


@pytest.mark.parametrize(
    ("config", "scale", "words"),
    [
        ({}, torch.ones(1, 2), "m: the config has no weight_block_size for its scales"),
        ({"weight_block_size": [128]}, torch.ones(1, 2), "weight_block_size is [128], not two"),
        ({"weight_block_size": [0, 1]}, torch.ones(1, 2), "weight_block_size is [0, 1], not two"),
        ({"weight_block_size": [128, 128]}, torch.ones(2, 2), "where F32 [1, 2] belongs"),
        ({"weight_block_size": [128, 128]}, torch.ones(1, 2).long(), "I64, which scales of FP8"),
    ],
)
def test_what_does_not_go_together(
    config: dict[str, Any], scale: torch.Tensor, words: str, tmp_path: Path
) -> None:
    codes = torch.ones(N_OUT, N_IN).to(torch.float8_e4m3fn)
    save_file({"m.weight": codes, "m.weight_scale_inv": scale}, tmp_path / "model.safetensors")
    said = {"quantization_config": {"quant_method": "fp8", **config}}
    (tmp_path / "config.json").write_text(json.dumps(said))
    with pytest.raises(CheckpointError) as caught:
        join_packed(tmp_path, tmp_path / "config.json", read_directory(tmp_path))
    assert words in str(caught.value)


def test_codes_that_do_not_fit_their_bits(tmp_path: Path) -> None:
    scheme = preset_name_to_scheme("W4A8", ["Linear"])
    config = json.loads(QuantizationConfig(config_groups={"group_0": scheme}).model_dump_json())
    said = {"quantization_config": config | {"quant_method": "compressed-tensors"}}
    (tmp_path / "config.json").write_text(json.dumps(said))
    tensors = {
        "m.weight": torch.full((N_OUT, N_IN), 8, dtype=torch.int8),
        "m.weight_scale": torch.ones(N_OUT, 2),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    joined = join_packed(tmp_path, tmp_path / "config.json", read_directory(tmp_path))
    (view,) = windows(stored("m.weight", joined["m.weight"]))
    with pytest.raises(CheckpointError, match="m: a code that does not fit 4 bits"):
        rows_float32(view, 0, N_OUT)
