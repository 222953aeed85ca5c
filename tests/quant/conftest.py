"""Fixtures of the kernel tests."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import pytest

from tests.quant import instruction_sets


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ctypes.CDLL]:
    """The library forced to each instruction set that this processor has.

    A test whose oracle is slow makes what it expects once, and goes through these.
    """
    folder = tmp_path_factory.mktemp("isa")
    return {
        isa: instruction_sets.load_copy(isa, folder / isa) for isa in instruction_sets.available()
    }


@pytest.fixture(scope="module", params=instruction_sets.available())
def isa(request: pytest.FixtureRequest, libraries: dict[str, ctypes.CDLL]) -> Iterator[str]:
    """Make the Python API use one instruction set; a test that asks for it runs once with each."""
    with instruction_sets.using(libraries[request.param]):
        yield request.param
