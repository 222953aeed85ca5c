"""What llm-compressor makes of our directories is read, converted, compared and verified."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import weightcast
from tests.runtimes.environments import environment
from tests.support import Golden
from weightcast.converters.sources import open_graph

SCRIPT = Path(__file__).with_name("compress.py")
WIDE = Golden("wide")
# By scheme: what reports call the type, and the least signal-to-noise ratio in decibels.
SCHEMES = {
    "FP8": ("FP8-TENSOR", 31),
    "FP8_DYNAMIC": ("FP8", 31),
    "FP8_BLOCK": ("FP8-BLOCK", 31),
    "MXFP8A16": ("MXFP8", 31),
    "NVFP4": ("NVFP4", 20),
    "NVFP4A16": ("NVFP4", 20),
    "MXFP4A16": ("MXFP4", 18),
    "W8A8": ("INT8-CHANNEL", 44),
    "W8A16": ("INT8-G128", 44),
    "W4A8": ("INT4-G128", 17),
    "W4A16_ASYM": ("INT4-G128-ASYM", 19),
}


@pytest.fixture(scope="module")
def made(tokenizer_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compressed")
    weightcast.convert(WIDE.path, folder / "m-bf16", tokenizer=tokenizer_model)
    python = environment("llmcompressor==0.14.0.1", "torch==2.13.0")
    command = [python, SCRIPT, folder / "m-bf16", folder, *SCHEMES]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr[-3000:]
    return folder


@pytest.mark.exhaustive
@pytest.mark.parametrize("scheme", SCHEMES)
def test_directories_of_llm_compressor(scheme: str, made: Path, tmp_path: Path) -> None:
    path, (label, decibels) = made / scheme, SCHEMES[scheme]
    packed = [t for t in open_graph(path).values() if len(t.shape) > 1 and "blk" in t.name]
    assert {label} == {t.dtype for t in packed if "gate_inp" not in t.name}
    found = weightcast.verify(path, WIDE.path)
    assert [problem.line for problem in found.problems] == []
    assert weightcast.verify(path).is_good
    weightcast.convert(path, tmp_path / "m-BF16.gguf", no_tokenizer=True, allow_requantize=True)
    for output in (path, tmp_path / "m-BF16.gguf"):
        (report,) = weightcast.compare(WIDE.path, output).report["outputs"]
        assert report["total"]["sqnr_db"] > decibels
