"""Going on with an interrupted run: what of a plan is finished, and what is left to do."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from weightcast.converters.files import journal_path
from weightcast.converters.output.files import OutputFiles, noted_paths
from weightcast.converters.output.journal import FinishedRows, RowRange, read_journal
from weightcast.converters.plan import Destination, Plan, WorkItem, is_measured
from weightcast.converters.report.collector import Measuring, matrix_errors
from weightcast.quant.cpu.library import BlockCounts
from weightcast.text import option, spoken

_Matrix = tuple[int, str, int | None]


def how_to_go_on(*, resume: bool) -> str:
    """Say how the work that is kept is gone on with, by whether `resume` was asked for."""
    same, over = spoken("the same command", "the same call"), option("resume", False)
    return f"{same} goes on, {over} starts over" if resume else f"{same} without {over} goes on"


@dataclass(frozen=True, slots=True)
class Remainder:
    """The rest of a plan: items, with the destinations that have to be made.

    `counts` are those of what is finished, by output and tensor, `read_bytes` what of the source
    need not be read again.
    """

    items: tuple[WorkItem, ...]
    counts: dict[tuple[int, str], BlockCounts]
    read_bytes: int


def remainder(
    plan: Plan,
    files: OutputFiles,
    measuring: Measuring | None,
    start: Callable[[int], Callable[[int], None]] = lambda total: lambda nbytes: None,
) -> Remainder:
    """Find what is left, after every write that an interrupted run noted was read and compared.

    With `measuring` a matrix is finished if its errors were noted, too: these are restored.
    `start` gets the bytes to compare, if there are any, and gives what is told of those compared.
    Raises OutputError.
    """
    finished = _finished_rows(plan, files, start)
    if measuring is not None:
        finished = _measured_rows(plan, files, measuring, finished)
    counts: dict[tuple[int, str], BlockCounts] = defaultdict(BlockCounts)
    for (output, rows), done in finished.items():
        counts[output, rows.tensor] += done.counts
    items = []
    for item in plan.items:
        left = tuple(d for d in item.destinations if (d.output, rows_of(item, d)) not in finished)
        if left:
            items.append(replace(item, destinations=left))
    read_bytes = plan.read_bytes - sum(item.read_bytes for item in items)
    return Remainder(tuple(items), dict(counts), read_bytes)


def rows_of(item: WorkItem, destination: Destination) -> RowRange:
    """Name the rows of an item that go to a destination, as a journal does."""
    return RowRange(destination.tensor, destination.expert, item.out0, item.out1)


def kept_work(outputs: Iterable[Path]) -> str:
    """Tell what an interrupted run keeps of each output for another one; nothing if it is none."""
    shares = ((path, kept_share(path)) for path in outputs)
    return ", ".join(f"{share:.0%} of {path.name}" for path, share in shares if share)


def kept_share(output: Path) -> float:
    """Read from a journal what share of an output an interrupted run keeps."""
    noted = read_journal(journal_path(output))
    done = sum(found.nbytes for found in noted.finished.values())
    # A run that was killed when it was complete may have left a journal alone.
    if not noted.data_bytes or not any(map(os.path.lexists, noted_paths(output, noted))):
        return 0.0
    # Runs that cut their work otherwise may have noted some rows twice.
    return min(done / noted.data_bytes, 1)


def _finished_rows(
    plan: Plan, files: OutputFiles, start: Callable[[int], Callable[[int], None]]
) -> dict[tuple[int, RowRange], FinishedRows]:
    """The rows that are noted, and in the files."""
    noted = {}
    for item in plan.items:
        for destination in item.destinations:
            rows = rows_of(item, destination)
            done = files.earlier(destination.output).finished.get(rows)
            if done is not None:
                noted[destination.output, rows] = done
    if not noted:
        return noted
    on_progress = start(sum(done.nbytes for done in noted.values()))
    found = {}
    for (output, rows), done in noted.items():
        if files.has(output, done):
            found[output, rows] = done
        on_progress(done.nbytes)
    return found


def _measured_rows(
    plan: Plan,
    files: OutputFiles,
    measuring: Measuring,
    finished: dict[tuple[int, RowRange], FinishedRows],
) -> dict[tuple[int, RowRange], FinishedRows]:
    """Those of matrices that are finished as a whole and whose errors are noted."""
    by_matrix: dict[_Matrix, list[tuple[WorkItem, Destination]]] = defaultdict(list)
    for item in plan.items:
        for destination in item.destinations:
            key = destination.output, destination.tensor, destination.expert
            by_matrix[key].append((item, destination))
    found = {}
    for made in by_matrix.values():
        keys = [(destination.output, rows_of(item, destination)) for item, destination in made]
        if all(key in finished for key in keys) and _restored(made, files, measuring):
            found.update({key: finished[key] for key in keys})
    return found


def _restored(
    made: Sequence[tuple[WorkItem, Destination]], files: OutputFiles, measuring: Measuring
) -> bool:
    """Restore the errors of a matrix; False if they are not noted."""
    item, destination = made[0]
    if not is_measured(item, destination):
        return True
    baseline = measuring.baseline_of(destination).name
    errors = files.earlier(destination.output).errors
    values = errors.get((destination.tensor, destination.expert, baseline))
    found = None if values is None else matrix_errors(values)
    if found is None or (measuring.compares(destination) and found.by_ggml is None):
        return False
    measuring.restore(destination, found, item.view.shape[0])
    return True
