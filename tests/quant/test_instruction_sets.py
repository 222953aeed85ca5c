"""The library has kernels for each instruction set, uses the best, and a lower one if asked."""

from __future__ import annotations

import pytest

from tests.quant import instruction_sets
from weightcast.quant.cpu import library


def test_forced(isa):
    assert library.isa() == isa


def test_best_is_chosen(tmp_path):
    copy = instruction_sets.load_copy(None, tmp_path / "best")
    assert copy.weightcast_isa().decode() == instruction_sets.available()[0]


@pytest.mark.parametrize("wanted", ["avx512", "avx2", "sse2", "scalar"])
def test_never_more_than_the_processor_has(wanted, tmp_path):
    ranks = tuple(instruction_sets.NEEDS)
    copy = instruction_sets.load_copy(wanted, tmp_path / wanted)
    allowed = [
        isa for isa in instruction_sets.available() if ranks.index(isa) >= ranks.index(wanted)
    ]
    assert copy.weightcast_isa().decode() == allowed[0]


def test_environment_is_read_once(tmp_path, monkeypatch):
    copy = instruction_sets.load_copy("scalar", tmp_path / "once")
    monkeypatch.delenv("WEIGHTCAST_ISA", raising=False)
    assert copy.weightcast_isa() == b"scalar"
