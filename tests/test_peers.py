"""benchmarks/peers.py: what it times makes the right weights, and what it says of that adds up."""

from __future__ import annotations

import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

from benchmarks.children import measured
from benchmarks.peers import WAYS, chosen, steps, summary
from benchmarks.peers_table import markdown
from benchmarks.torch_pipeline import converted
from tests.grok1 import places
from tests.support import Golden


@pytest.mark.parametrize("quantize", ["gguf", "torch"])
def test_weights(quantize: str) -> None:
    golden = Golden("wide")
    stored_as = golden.exact()
    exact = {place.gguf: stored_as[place.name] for place in places(2)}
    found: dict[str, list[np.ndarray]] = {}
    for name, values in converted(Path(golden.path), quantize):
        if values.dtype == np.uint8:
            values = gguf.quants.dequantize(values.reshape(-1, 34), gguf.GGMLQuantizationType.Q8_0)
        found.setdefault(name, []).append(values.reshape(-1))
    assert found.keys() == exact.keys()
    for name, matrices in found.items():
        stored = exact[name]
        is_table = name == "token_embd.weight" or stored.ndim == 1
        wanted = (stored if is_table else np.swapaxes(stored, -1, -2)).reshape(-1)
        error = np.concatenate(matrices) - wanted
        assert np.abs(error).max() <= np.abs(wanted).max() / 127, name
        assert np.sqrt(np.mean(error**2) / np.mean(wanted**2)) < 0.01, name


def test_what_a_child_takes(tmp_path: Path) -> None:
    script = "import time; x = b'x' * 300_000_000; time.sleep(1)"
    run = measured([sys.executable, "-c", script], tmp_path / "log.txt")
    assert 0.3 < run["own_gb"] <= run["peak_gb"]
    assert run["wall_s"] >= 1
    assert run["cpu_s"] > 0
    with pytest.raises(SystemExit, match=r"failed: (.|\n)*ZeroDivisionError"):
        measured([sys.executable, "-c", "1 / 0"], tmp_path / "log.txt")


def test_ways_are_made_of_steps(tmp_path: Path) -> None:
    everything = list(steps(tmp_path, tmp_path, tmp_path))
    assert {name for names in WAYS.values() for name in names} <= {s.name for s in everything}
    todo = [step.name for step in chosen(everything, "llama.cpp: llama-quantize Q4_K_M")]
    assert todo == [
        "weightcast: bf16 directory",
        "llama.cpp: bf16 GGUF",
        "llama.cpp: llama-quantize Q4_K_M",
    ]
    keys = ("wall_s", "cpu_s", "peak_gb", "own_gb", "disk_read_gb", "read_gb", "made_gb")
    runs = [
        {step.name: dict.fromkeys(keys, float(n * factor)) for n, step in enumerate(everything, 1)}
        for factor in (1, 5, 2)
    ]
    found = summary(runs)
    number = {step.name: n for n, step in enumerate(everything, 1)}
    one, other = WAYS["llama.cpp: Q4_K_M"]
    way = found["ways"]["llama.cpp: Q4_K_M"]
    assert way["wall_s"] == 2 * (number[one] + number[other])
    assert way["peak_gb"] == 2 * max(number[one], number[other])
    told = {"date": "", "machine": "", "cache": "", "versions": {}, "llama_cpp": "", "repeat": 3}
    lines = markdown({**told, **found}).splitlines()
    (row,) = [line for line in lines if line.startswith("| llama.cpp: Q4_K_M |")]
    ratio = way["wall_s"] / found["ways"]["weightcast: Q4_K_M"]["wall_s"]
    assert f"| {ratio:.2f} |" in row
