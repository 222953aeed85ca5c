"""Directories in NVFP4 by the least-error search: a global scale for each matrix, or fused set."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

import weightcast
from tests.directories import parts_of, read_directory
from tests.support import GOLDEN
from weightcast.converters.convert import plan_conversion
from weightcast.converters.plan import budget as memory
from weightcast.converters.sources.options import ConvertOptions

WIDE = GOLDEN / "wide"
LEAST_ERROR: dict[str, Any] = {"no_tokenizer": True, "search": "least-error", "effort": 1}
GLOBAL_SCALE = ".weight_global_scale"
FUSED = (("q_proj", "k_proj", "v_proj"), ("w1", "w3"))
Floats = NDArray[np.float32]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plain") / "m-f32"
    weightcast.convert(WIDE, path, no_tokenizer=True)
    return path


def of_size(plain: Path, path: Path, size: float) -> Path:
    """Copy a model of floats, matrices of experts and attention with weights of an RMS."""
    shutil.copytree(plain, path)
    for file in path.glob("*.safetensors"):
        tensors = load_file(file)
        for name, x in tensors.items():
            if is_packed(name):
                tensors[name] = (x * (size / np.sqrt(np.square(x).mean()))).astype(np.float32)
        save_file(tensors, file, {"format": "pt"})
    return path


def is_packed(name: str) -> bool:
    return ".experts." in name or "self_attn" in name


def decompressed(parts: dict[str, Any]) -> Floats:
    """Give what compressed-tensors makes of a matrix, in bfloat16 as it does."""
    from tests.formats.packed.oracle import decompress
    from weightcast.formats.packed import LAYOUTS
    from weightcast.formats.packed.layout import Scheme
    from weightcast.quant.types import NVFP4

    config = LAYOUTS["compressed-tensors"].quantization_config([Scheme(("Linear",), NVFP4)])
    return decompress(parts, config)


def sqnr(made: Path, source: Path) -> float:
    """Decibels of all matrices, by numpy alone: codes times (scale / global scale)."""
    values, exact = read_directory(made), read_directory(source)
    noise = power = 0.0
    for name in filter(is_packed, exact):
        x = exact[name].astype(np.float64)
        y = by_hand(parts_of(values, name.removesuffix(".weight")))
        noise, power = noise + np.square(y - x).sum(), power + np.square(x).sum()
    return float(10 * np.log10(power / noise))


def by_hand(parts: dict[str, Any]) -> NDArray[np.float64]:
    """Decode the parts of a matrix."""
    packed = parts[".weight_packed"]
    codes = np.stack((packed & 15, packed >> 4), axis=-1).reshape(len(packed), -1)
    numbers = codes.astype(np.uint8).view(np.uint8)
    values = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])[numbers & 7] * np.where(numbers & 8, -1, 1)
    scales = parts[".weight_scale"].astype(np.float64) / parts[GLOBAL_SCALE].astype(np.float64)
    return values * scales.repeat(16, axis=1)


@pytest.mark.parametrize("size", [20.0, 0.01, 1e-3, 1e-5])
def test_weights_of_any_size_are_as_precise(plain: Path, tmp_path: Path, size: float) -> None:
    source, made = of_size(plain, tmp_path / "s-f32", size), tmp_path / "m-nvfp4"
    summary = weightcast.convert(source, made, **LEAST_ERROR, baseline="stored")
    decibels = sqnr(made, source)
    assert decibels > 21.5
    scaled = f"NVFP4 under a global scale: {len(global_scales(made))} tensors"
    assert scaled in summary.outputs[0].notes
    assert summary.errors is not None
    found = [t.metrics for t in summary.errors.outputs[0].tensors if t.type == "NVFP4"]
    noise, power = sum(m.error_squares for m in found), sum(m.source_squares for m in found)
    assert 10 * np.log10(power / noise) == pytest.approx(decibels, abs=1e-3)
    compared = weightcast.compare(source, made).errors.outputs[0].tensors
    assert {t.metrics.sqnr_db for t in compared} >= {m.sqnr_db for m in found}


def test_blocks_as_large_as_the_largest_keep_their_precision(plain: Path, tmp_path: Path) -> None:
    """ggml's rule takes the scale 448 for all from 248 on: no block may come there."""
    source, made = tmp_path / "s-f32", tmp_path / "m-nvfp4"
    shutil.copytree(plain, source)
    rng = np.random.default_rng(2)
    for file in source.glob("*.safetensors"):
        tensors = load_file(file)
        for name in filter(is_packed, tensors):
            tensors[name] = rng.uniform(-1.2, 1.2, tensors[name].shape).astype(np.float32)
        save_file(tensors, file, {"format": "pt"})
    weightcast.convert(source, made, **LEAST_ERROR)
    plainly, exact = tmp_path / "p-nvfp4", sqnr(made, source)
    weightcast.convert(source, plainly, no_tokenizer=True)
    assert exact > sqnr(plainly, source) + 1


def test_ggmls_rule_leaves_the_scale_alone(plain: Path, tmp_path: Path) -> None:
    source, made = of_size(plain, tmp_path / "s-f32", 0.01), tmp_path / "m-nvfp4"
    weightcast.convert(source, made, no_tokenizer=True)
    assert global_scales(made) == dict.fromkeys(global_scales(made), 1.0)
    assert sqnr(made, source) < 19


def global_scales(made: Path) -> dict[str, float]:
    tensors = read_directory(made)
    return {
        name.removesuffix(GLOBAL_SCALE): float(array[0])
        for name, array in tensors.items()
        if name.endswith(GLOBAL_SCALE)
    }


def test_matrices_that_runtimes_fuse_share_a_scale(plain: Path, tmp_path: Path) -> None:
    """And the largest of each set comes between half of 6 * 240 and that."""
    source, made = tmp_path / "s-f32", tmp_path / "m-nvfp4"
    shutil.copytree(plain, source)
    for file in source.glob("*.safetensors"):
        tensors = load_file(file)
        for n, name in enumerate(sorted(filter(is_packed, tensors))):
            tensors[name] = (tensors[name] * 2.0 ** -(n % 13)).astype(np.float32)
        save_file(tensors, file, {"format": "pt"})
    weightcast.convert(source, made, **LEAST_ERROR)
    exact, found = read_directory(source), global_scales(made)
    sets: dict[tuple[str, ...], list[str]] = {}
    for module in found:
        stem, _, name = module.rpartition(".")
        fused = next((names for names in FUSED if name in names), (name,))
        sets.setdefault((stem, *fused), []).append(module)
    assert {len(modules) for modules in sets.values()} == {1, 2, 3}
    for modules in sets.values():
        (scale,) = {found[module] for module in modules}
        largest = max(np.abs(exact[f"{module}.weight"]).max() for module in modules)
        assert 720 < largest * scale <= 1440
        assert np.frexp(scale)[0] == 0.5
    assert len(set(found.values())) > 4
    assert weightcast.verify(made, source).matrices["same"] > len(found)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="compressed-tensors needs Python 3.11")
def test_readers_get_the_same_weights(plain: Path, tmp_path: Path) -> None:
    """compressed-tensors, which rounds to bfloat16, and weightcast, from every container."""
    source, made = of_size(plain, tmp_path / "s-f32", 0.003), tmp_path / "m-nvfp4"
    weightcast.convert(source, made, **LEAST_ERROR)
    floats, gguf = tmp_path / "f-f32", tmp_path / "f-F32.gguf"
    weightcast.convert(made, floats, gguf, no_tokenizer=True)
    tensors, read = read_directory(made), read_directory(floats)
    for name in filter(is_packed, read):
        parts = parts_of(tensors, name.removesuffix(".weight"))
        np.testing.assert_array_equal(read[name], by_hand(parts))
        np.testing.assert_array_equal(decompressed(parts), read[name].astype(ml_dtypes.bfloat16))
    assert weightcast.compare(made, gguf).total.relative_rms == 0


def test_bytes_do_not_depend_on_the_cut_nor_on_other_outputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards with int8 codes, whose factors are found expert by expert."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    weightcast.convert(WIDE, whole / "m-nvfp4", **LEAST_ERROR, jobs=1)
    monkeypatch.setattr(memory, "SLAB_BYTES", 50_000)
    monkeypatch.setattr(memory, "TASK_BYTES", 5_000)
    others = [cut / "m-fp8", cut / "m-Q4_K_M.gguf"]
    weightcast.convert(WIDE, cut / "m-nvfp4", *others, **LEAST_ERROR, jobs=3)
    names = sorted(file.name for file in (whole / "m-nvfp4").iterdir())
    for name in names:
        assert (whole / "m-nvfp4" / name).read_bytes() == (cut / "m-nvfp4" / name).read_bytes()
    found = weightcast.verify(cut / "m-nvfp4", WIDE)
    assert (found.is_good, set(found.matrices)) == (True, {"same"})
    assert "headers: every byte is what weightcast writes" in found.checked


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    def gate(report: object) -> None:
        raise weightcast.LimitError("closed")

    whole, made = tmp_path / "w-nvfp4", tmp_path / "m-nvfp4"
    weightcast.convert(WIDE, whole, **LEAST_ERROR)
    conversion = plan_conversion(WIDE, [made], ConvertOptions(**LEAST_ERROR, baseline="stored"))
    with pytest.raises(weightcast.LimitError):
        conversion.run(gate=gate)
    again = plan_conversion(WIDE, [made], ConvertOptions(**LEAST_ERROR))
    again.run()
    for file in whole.iterdir():
        assert file.read_bytes() == (made / file.name).read_bytes()


def test_blocks_and_their_scale_are_copied(tmp_path: Path) -> None:
    """To directories; GGUF files have no place for the factor, in a family of their own table."""
    made, copy = tmp_path / "m-nvfp4", tmp_path / "c-nvfp4"
    weightcast.convert(WIDE, made, **LEAST_ERROR)
    weightcast.convert(made, copy, no_tokenizer=True)
    kept, wanted = read_directory(copy), read_directory(made)
    assert kept.keys() == wanted.keys()
    for name in kept:
        assert kept[name].tobytes() == wanted[name].tobytes()
    found = weightcast.verify(copy, made)
    assert (found.is_good, set(found.matrices)) == (True, {"same"})
    refused = r"is NVFP4 times a factor that the output has no place for, and NVFP4 made of that "
    with pytest.raises(weightcast.LayoutError, match=refused):
        weightcast.convert(made, tmp_path / "m-NVFP4.gguf", no_tokenizer=True)


def change(made: Path, name: str, at: int, bits: int) -> str:
    """Flip bits of a byte of a tensor; gives the tensor's name."""
    (file,) = made.glob("*.safetensors")
    raw = bytearray(file.read_bytes())
    length = int.from_bytes(raw[:8], "little")
    start, _ = json.loads(raw[8 : 8 + length])[name]["data_offsets"]
    raw[8 + length + start + at] ^= bits
    file.write_bytes(raw)
    return name


@pytest.mark.parametrize(
    ("part", "at", "bits", "mistakes"),
    [
        (".weight_packed", 3, 0x10, ["damaged"]),
        (".weight_scale", 0, 0x08, ["damaged"]),
        (GLOBAL_SCALE, 2, 0x80, ["damaged", "error", "scaled"]),  # half, or twice
        (GLOBAL_SCALE, 0, 0x01, ["damaged", "error", "scaled"]),  # no power of two
    ],
)
def test_damage_is_found(
    tmp_path: Path, part: str, at: int, bits: int, mistakes: list[str]
) -> None:
    made, module = tmp_path / "m-nvfp4", "model.layers.1.self_attn.o_proj"
    weightcast.convert(WIDE, made, **LEAST_ERROR)
    change(made, module + part, at, bits)
    found = weightcast.verify(made, WIDE)
    assert [problem.tensor for problem in found.problems] == [f"{module}.weight"]
    assert found.problems[0].mistake in mistakes
