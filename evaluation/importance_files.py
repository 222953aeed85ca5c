"""Write importance matrices under their names when they are whole."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from weightcast.converters.files.atomic import replacing
from weightcast.formats.gguf.imatrix_write import encode_dat, encode_gguf
from weightcast.formats.gguf.importance_sums import ImportanceSums


def write_gguf_imatrix(path: str | Path, sums: ImportanceSums, *, plain: bool = False) -> None:
    """Write a file as llama-imatrix does; with `plain`, sums of inputs beside those of squares.

    Raises LayoutError for sums that cannot be written, OutputError if the file cannot.
    """
    _write(Path(path), encode_gguf(sums, plain=plain))


def write_dat_imatrix(path: str | Path, sums: ImportanceSums) -> None:
    """Write a file of the older format, which has no counts of experts; see write_gguf_imatrix."""
    _write(Path(path), encode_dat(sums))


def _write(path: Path, pieces: Iterable[bytes]) -> None:
    with replacing(path) as file:
        for piece in pieces:
            file.write(piece)
