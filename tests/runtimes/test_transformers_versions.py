"""Directories compute what they say in every version of transformers that the docs name.

docs/transformers.md has the table: a cell says what does not hold. One test a version, so that a
new release that breaks something is one failing test.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weightcast
from tests.runtimes.environments import environment
from tests.support import Golden
from weightcast.converters.families.grok1 import forward
from weightcast.converters.sources import open_graph

PAGE = Path(__file__).parents[2] / "docs" / "transformers.md"
SCRIPT = Path(__file__).with_name("check_transformers.py")

_EXACT: dict[str, Any] = {"tolerance": 1e-4}
# Of transformers' own arithmetic in bfloat16, or on activations that are rounded, too.
_ROUNDED: dict[str, Any] = {"tolerance": 0.03, "rows": 0.9}
COMPRESSED: dict[str, dict[str, Any]] = {
    "f32": {**_EXACT, "more": True},
    "bf16": {**_ROUNDED, "dtype": "bfloat16"},
    "int8-g32": _EXACT,
    "int4-g128": _EXACT,
    "int4-g64-asym": {"tolerance": 0.02, "rows": 0.9, "dequantize": True},
    "mxfp4": {**_ROUNDED, "dtype": "bfloat16"},
    "nvfp4": {**_ROUNDED, "dtype": "bfloat16"},
    "fp8": {"tolerance": 0.3, "rows": 0.9},
    "fp8-block": {"tolerance": 0.3, "rows": 0.9},
}
GPTQMODEL: dict[str, dict[str, Any]] = {
    name: _ROUNDED
    for name in (
        "int4-g128-gptq",
        "int8-g32-gptq",
        "int4-g128-gptq_v2",
        "int4-g64-asym-gptq_v2",
        "int4-g128-awq",
        "int4-g64-asym-awq",
    )
}
# By the heading of their column.
VERSIONS = {
    "4.57": ("transformers==4.57.6", "compressed-tensors==0.20.1"),
    "5.0": ("transformers==5.0.0", "compressed-tensors==0.13.0"),
    "5.23": ("transformers==5.23.0", "compressed-tensors==0.20.0"),
    "newest": ("transformers", "compressed-tensors"),
}


@pytest.fixture(scope="module")
def folder(tokenizer_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every directory with what it computes."""
    folder = tmp_path_factory.mktemp("directories")
    golden = Golden("wide")
    paths = [folder / f"m-{name}" for name in (*COMPRESSED, *GPTQMODEL)]
    options = {"tokenizer": tokenizer_model, "allow_requantize": True}
    weightcast.convert(golden.path, *paths, **options)
    for path in paths:
        logits = forward.logits(open_graph(path), golden.tokens)
        np.savez(path.with_suffix(".npz"), tokens=golden.tokens, logits=logits)
    return folder


def failing(python: Path, folder: Path, directories: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Run the checks in an environment: what does not hold, by directory, as a cell says it."""
    scratch = folder / python.parents[1].name
    scratch.mkdir(exist_ok=True)
    said = {f"m-{name}": options for name, options in directories.items()}
    (folder / "directories.json").write_text(json.dumps(said))
    run = subprocess.run(
        [python, SCRIPT, folder, scratch], capture_output=True, text=True, timeout=900
    )
    assert run.returncode == 0, run.stderr[-3000:]
    found = json.loads(run.stdout.splitlines()[-1])["failures"]
    print(json.dumps(found, indent=1))  # shown where the comparison fails
    return {name.removeprefix("m-"): ", ".join(found[name]) or "-" for name in found}


def table(column: str) -> dict[str, str]:
    """Read a column of the docs' tables, by directory."""
    found: dict[str, str] = {}
    heading: list[str] = []
    for line in PAGE.read_text().splitlines():
        cells = [re.sub(r" \(\d\)", "", cell).strip(" `") for cell in line.strip("|").split("|")]
        if not line.startswith("|") or set(line) <= set("|-: "):
            continue
        if cells[0] == "directory":
            heading = cells
        elif column in heading:
            found[cells[0]] = cells[heading.index(column)]
    return found


@pytest.mark.exhaustive
@pytest.mark.parametrize("column", VERSIONS)
def test_directories_in_a_version_of_transformers(folder: Path, column: str) -> None:
    found = failing(environment(*VERSIONS[column]), folder, COMPRESSED)
    assert found == table(column)


@pytest.mark.exhaustive
def test_directories_in_gptqmodel(folder: Path) -> None:
    python = environment("transformers", "optimum", "gptqmodel", "torch==2.13.0")
    assert failing(python, folder, GPTQMODEL) == table("GPTQModel")
