"""The library is quiet: it prints nothing, sets up no logging, imports what it uses only."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BEFORE = """
import logging, sys, warnings
import numpy, ml_dtypes  # which have warnings of their own
filters, level = list(warnings.filters), logging.root.level
import weightcast
"""
AFTER = """
assert warnings.filters == filters, [f for f in warnings.filters if f not in filters]
assert not logging.root.handlers and logging.root.level == level
loggers = [l for l in logging.root.manager.loggerDict.values() if isinstance(l, logging.Logger)]
loud = [l.name for l in loggers if any(not isinstance(h, logging.NullHandler) for h in l.handlers)]
assert not loud, loud
heavy = {"torch", "transformers", "tensorflow", "click", "tqdm.auto"} & set(sys.modules)
assert not heavy, heavy
"""
USES = {
    "everything": """
out, directory = folder / "m-Q4_K_M.gguf", folder / "m-int4-g128"
weightcast.convert(tiny, out, directory, no_tokenizer=True, bundle=True, report=folder / "r.json")
assert weightcast.verify(out, tiny).is_good
assert weightcast.compare(tiny, directory).problem is None
for tensor in weightcast.open(directory).values():
    tensor.numpy()
weights = numpy.random.default_rng(0).standard_normal((4, 256), numpy.float32)
for name in ("Q4_K", "int4-g128", "fp8"):
    weightcast.measure(weights, weightcast.quantize(weights, name), name)
""",
    "mistakes": """
garbage = folder / "tokenizer.model"
for content in (b"", b"x" * 100, bytes(range(256)) * 10):
    garbage.write_bytes(content)
    try:
        weightcast.convert(tiny, folder / "m-Q8_0.gguf", tokenizer=garbage)
    except weightcast.CheckpointError:
        pass
    try:
        weightcast.open(garbage)
    except weightcast.CheckpointError:
        pass
""",
}


@pytest.mark.parametrize("use", USES)
def test_nothing_is_printed_and_nothing_is_set_up(use: str, tiny: Path, tmp_path: Path) -> None:
    given = f"import pathlib; tiny, folder = map(pathlib.Path, {(str(tiny), str(tmp_path))!r})\n"
    program = BEFORE + given + USES[use] + AFTER
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_importing_brings_nothing_along() -> None:
    program = "import sys, weightcast; dir(weightcast); print({'numpy', 'gguf'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "set()\n"


def test_the_command_as_a_module(tiny: Path) -> None:
    by_module = [sys.executable, "-m", "weightcast"]
    done = subprocess.run([*by_module, "inspect", tiny], capture_output=True, text=True)
    assert done.returncode == 0
    assert "grok-1, 6,953,216 parameters" in done.stdout
    done = subprocess.run([*by_module, "inspect", "nothing"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: nothing: ")
