"""Pages and comments name files and modules that are there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = (
    *("benchmarks", "commands", "converters", "docs", "evaluation", "examples"),
    *("formats", "quant", "tests"),
)
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/**/README.md")]
)
_FILE = re.compile(
    rf"(?<![\w./])(?:{'|'.join(ROOMS)})/[\w./-]*\.(?:py|h|cpp|cu|inc|md|sh|c|json)\b"
)
_MODULE = re.compile(r"python -m ((?:tests|benchmarks)(?:\.\w+)+)")


def named_files(text: str) -> Iterator[str]:
    """Give the paths, from the root, that a text names; NAME is the reader's own."""
    yield from (path for path in _FILE.findall(text) if "NAME" not in path)
    for module in _MODULE.findall(text):
        path = module.replace(".", "/")
        yield f"{path}/__main__.py" if (ROOT / path).is_dir() else f"{path}.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_are_named_exist(page: Path) -> None:
    missing = [path for path in named_files(page.read_text()) if not (ROOT / path).exists()]
    assert not missing


def test_a_name_of_no_file_is_noticed() -> None:
    text = "see `tests/old.py`, tests/NAME.py, and run python -m benchmarks.none first"
    assert list(named_files(text)) == ["tests/old.py", "benchmarks/none.py"]
