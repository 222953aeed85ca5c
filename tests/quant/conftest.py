"""Fixtures of the kernel tests."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from unittest import mock

import pytest

from tests.quant import instruction_sets
from weightcast.quant.cpu import library


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ctypes.CDLL]:
    """The library forced to each instruction set that this processor has."""
    folder = tmp_path_factory.mktemp("isa")
    return {
        isa: instruction_sets.load_copy(isa, folder / isa) for isa in instruction_sets.available()
    }


@pytest.fixture(scope="module", params=instruction_sets.available())
def isa(request: pytest.FixtureRequest, libraries: dict[str, ctypes.CDLL]) -> Iterator[str]:
    """Make the Python API use one instruction set; a test that asks for it runs once with each."""
    with mock.patch.object(library, "load", return_value=libraries[request.param]):
        yield request.param
