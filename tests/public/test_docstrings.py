"""Examples in the docstrings of the public face run, and everything public has a docstring."""

from __future__ import annotations

import doctest
import inspect
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import pytest

import weightcast

PUBLIC = [getattr(weightcast, name) for name in weightcast.__all__]


def documented() -> Iterator[tuple[str, Any]]:
    """Give what has docstrings: functions, classes, and the classes' own public members."""
    for value in PUBLIC:
        yield value.__name__, value
        if inspect.isclass(value) and not issubclass(value, Exception):
            for name, member in vars(value).items():
                if isinstance(member, classmethod):
                    member = member.__func__
                is_member = isinstance(member, FunctionType | property | cached_property)
                if is_member and not name.startswith("_"):
                    yield f"{value.__name__}.{name}", member


@pytest.mark.parametrize(("name", "value"), documented(), ids=[name for name, _ in documented()])
def test_what_is_public_has_a_docstring(name: str, value: Any) -> None:
    doc = inspect.getdoc(value)
    assert doc, name
    assert len(doc.splitlines()[0]) <= 100


def test_examples_in_docstrings_run(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "m-Q8_0.gguf"
    weightcast.convert(tiny, out, no_tokenizer=True)
    checkpoint = weightcast.open(tiny)
    text = tmp_path / "text.npy"
    vocabulary = checkpoint.spec.vocab_size
    np.save(text, np.random.default_rng(1).integers(0, vocabulary, 200))
    given = {
        "checkpoint": checkpoint,
        "folder": tmp_path,
        "imatrix_path": tmp_path / "imatrix.gguf",
        "np": np,
        "out": out,
        "path": tiny,
        "t": checkpoint["blk.0.attn_q.weight"],
        "text": text,
        "weightcast": weightcast,
    }
    finder, runner = doctest.DocTestFinder(recurse=False), doctest.DocTestRunner()
    examples, found = 0, list[str]()
    for name, value in documented():
        for test in finder.find(value, name, globs=dict(given)):
            examples += len(test.examples)
            runner.run(test, out=found.append)
    assert not found, "".join(found)
    assert examples > 30
