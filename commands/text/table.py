"""Tables for terminals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from weightcast.errors import visible


def aligned(rows: Sequence[Sequence[str]], left: Sequence[int] = (0, 1)) -> Iterator[str]:
    """Align the cells of some columns to the left, all others to the right."""
    rows = [[visible(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield f"  {'  '.join(cells)}".rstrip()
