"""How many workers there are, and how slabs are cut for them."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.stand_in_devices import Machine
from weightcast.converters.plan.tiling import ROW_STEP, Tiling
from weightcast.converters.plan.workers import MAX_WORKERS, Workers, choose_workers
from weightcast.errors import RequestError


@given(
    rows=st.integers(1, 40_000),
    row_bytes=st.integers(1, 1 << 20),
    workers=st.integers(1, MAX_WORKERS),
    task_bytes=st.integers(1, 64 << 20),
    multiple=st.sampled_from([1, 2, 8, 32, 128]),
    step=st.sampled_from([1, ROW_STEP]),
)
def test_rows_per_task(
    rows: int, row_bytes: int, workers: int, task_bytes: int, multiple: int, step: int
) -> None:
    found = Tiling(workers, task_bytes).rows_per_task(rows, row_bytes, multiple, step)
    assert found >= 1
    assert found % multiple == 0
    # In memory only if one task at least fits; rows that are packed together stay together.
    assert found * row_bytes <= task_bytes or found == max(multiple, 1) or found == step
    if found > max(multiple, ROW_STEP):
        assert found % step == 0
        assert found <= -(-rows // workers)  # so that every worker gets some


@pytest.mark.parametrize(
    ("rows", "row_bytes", "multiple", "step", "expected"),
    [
        (10_000, 1024, 1, 64, 1024),  # as many as fit a MiB
        (10_000, 1000, 1, 64, 1024),  # 1048 of them, in cache lines
        (10_000, 1000, 1, 1, 1048),
        (1_000, 1024, 1, 64, 448),  # 500 for each of two workers
        (1_000, 1024, 8, 1, 496),
        (100, 1024, 1, 64, 64),  # no less than a cache line of columns
        (10_000, 1 << 20, 1, 64, 1),
        (10_000, 1 << 20, 128, 64, 128),  # packed together, though they take more
        (10_000, 1 << 15, 1, 64, 32),
    ],
)
def test_rows_of_two_workers(
    rows: int, row_bytes: int, multiple: int, step: int, expected: int
) -> None:
    assert Tiling(2, 1 << 20).rows_per_task(rows, row_bytes, multiple, step) == expected


def test_default_workers() -> None:
    assert choose_workers() == Workers(len(os.sched_getaffinity(0)) + 1)
    three, many = Machine(3).chosen, Machine(1000).chosen
    assert choose_workers(None, three) == Workers(12, three)
    assert choose_workers(None, many).count == MAX_WORKERS
    assert choose_workers(5, three) == Workers(5, three)


@pytest.mark.parametrize("jobs", [0, -1, 513, True, 2.0, "2"])
def test_other_numbers_of_workers_are_refused(jobs: int) -> None:
    with pytest.raises(RequestError) as caught:
        choose_workers(jobs)
    assert str(caught.value) == f"{jobs!r} jobs; 1 to 512 are possible"
