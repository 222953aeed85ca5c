"""Numbers and sizes in words."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightcast.text import bytes_text, size_text


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (999, "999 bytes"),
        (1000, "1 kB"),
        (66_560, "66.6 kB"),
        (999_600, "1 MB"),
        (335_426_000_000, "335 GB"),
        (1_262_739_000_000, "1.26 TB"),
    ],
)
def test_sizes(nbytes: int, text: str) -> None:
    assert size_text(nbytes) == text


@given(st.floats(0, 9e14))
def test_every_size_has_three_digits_at_most(nbytes: float) -> None:
    number, _, unit = size_text(nbytes).partition(" ")
    assert re.fullmatch(r"\d{1,3}|\d\.\d{1,2}|\d\d\.\d", number)
    assert unit in ("byte", "bytes", "kB", "MB", "GB", "TB")


def test_bytes_in_full() -> None:
    assert bytes_text(1) == "1 byte"
    assert bytes_text(999_999) == "999,999 bytes (1.00 MB)"
    assert bytes_text(66_560) == "66,560 bytes (66.56 kB)"
