"""Every published way to run code from a pickle is refused, and nothing is run or imported."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.formats.jax import pickle_attacks
from tests.formats.jax.pickle_attacks import ATTACKS, Marker
from weightcast.errors import FormatError, UnsafePickleError
from weightcast.formats.jax.arrays import read_pickle

ARMED = [name for name, attack in ATTACKS.items() if attack.armed]
# Refused as bytes that are no single pickle of an array, before there is a name to refuse.
NOT_BY_NAME = (
    "protocol 0", "protocol 1", "two headers", "an array, then", "a frame that", "in a ZIP",
    "in a 7z", "behind another", "names by PUT", "a memo entry set twice", "MEMOIZE beside",
    "an attribute of", "protocol 0 with",
)  # fmt: skip


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_is_refused_and_not_run(
    name: str, tmp_path: Path, write: Callable[..., Path]
) -> None:
    attack = ATTACKS[name]
    marker = tmp_path / "marker"
    path = write(attack.make(Marker(marker)))
    imported = set(sys.modules)
    with pytest.raises(FormatError) as caught:
        read_pickle(path)
    if not name.startswith(NOT_BY_NAME):
        assert isinstance(caught.value, UnsafePickleError)
    assert str(path) in str(caught.value)
    assert str(caught.value).isprintable()
    assert set(sys.modules) == imported
    assert not marker.exists()


def test_armed_attacks_would_have_worked(tmp_path: Path) -> None:
    """CPython's pickle runs them: else their refusal would prove nothing."""
    folder = tmp_path / "pickles"
    folder.mkdir()
    markers = {name: tmp_path / f"marker{number}" for number, name in enumerate(ARMED)}
    for name, marker in markers.items():
        (folder / marker.name).write_bytes(ATTACKS[name].make(Marker(marker)))
    subprocess.run(
        [sys.executable, "-W", "ignore", pickle_attacks.__file__, folder],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
        timeout=120,
    )
    for _ in range(100):  # some start processes and do not wait for them
        missing = [name for name, marker in markers.items() if not marker.exists()]
        if not missing:
            break
        time.sleep(0.1)
    assert not missing
    assert len(ARMED) > 50


def test_sources_are_named() -> None:
    assert all(attack.source.startswith("https://") for attack in ATTACKS.values())
