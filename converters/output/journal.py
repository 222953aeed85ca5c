"""The journal of an output that grows: what of it is finished, so that another run can go on.

.NAME.journal beside the output is text. A line is the XXH3 checksum (64 bits, hexadecimal digits)
of what follows it, a space, a JSON object:

    {"journal": 1, "settings": {...},       the first: what is made of what (`settings`), and how
     "data_bytes": ...}                     many bytes the weights take in all
    {"rows": [tensor, expert, out0, out1],  rows of a matrix that were written, how their blocks
     "counts": [...], "writes": [...]}      came about, and the writes that made them
    {"errors": [tensor, expert],            what a whole matrix differs by from its source, if that
     "baseline": ..., "values": ...}        is measured

Lines are appended and never changed. One that is not whole, as the last may be when a machine went
down, does not count. Nor does what is not in the files: each write has the digest of its bytes
(XXH3, 128 bits), which is compared when a run is continued.
Source of XXH3: https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md
"""

from __future__ import annotations

import json
import os
import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any, Final

import xxhash

from weightcast.converters.files import explained, journal_path, open_locked
from weightcast.errors import OutputError
from weightcast.quant.cpu.library import BlockCounts

_VERSION: Final = 1
# A machine that goes down loses so much work; the disk is not asked to flush more often.
_FLUSH_SECONDS: Final = 5.0
_READ_BYTES: Final = 4 << 20
# What the bytes of an output depend on, as JSON values; see fingerprint.py.
Fingerprint = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Write:
    """Runs of bytes in a file of an output, `stride` apart from `offset` on, and their digest."""

    file: int
    offset: int
    run_bytes: int
    runs: int
    stride: int
    digest: str

    def is_in(self, fd: int) -> bool:
        """Tell whether the file has these very bytes. Raises OSError."""
        size = os.fstat(fd).st_size
        end = self.offset + (self.runs - 1) * self.stride + self.run_bytes
        if self.runs < 1 or end > size or self.runs * max(self.run_bytes, 1) > size:
            return False
        state = xxhash.xxh3_128()
        for run in range(self.runs):
            start = self.offset + run * self.stride
            for done in range(0, self.run_bytes, _READ_BYTES):
                length = min(_READ_BYTES, self.run_bytes - done)
                state.update(os.pread(fd, length, start + done))
        return state.hexdigest() == self.digest


@dataclass(frozen=True, slots=True)
class RowRange:
    """Rows [out0, out1) of a matrix: of a tensor, or of one of its experts."""

    tensor: str
    expert: int | None
    out0: int
    out1: int


@dataclass(frozen=True, slots=True)
class FinishedRows:
    """Rows that were written: how their blocks came about, and where they went."""

    rows: RowRange
    counts: BlockCounts
    writes: tuple[Write, ...]

    @property
    def nbytes(self) -> int:
        return sum(write.runs * write.run_bytes for write in self.writes)


@dataclass(frozen=True, slots=True)
class MatrixRecord:
    """The error of a whole matrix against its source, beside a baseline's."""

    tensor: str
    expert: int | None
    baseline: str
    values: dict[str, Any]


@dataclass(slots=True)
class Contents:
    """The entries of a journal; the last line about the same rows counts.

    `data_bytes` are those that an output's rows take in all, 0 if that is not said.
    """

    fingerprint: Fingerprint | None = None
    data_bytes: int = 0
    finished: dict[RowRange, FinishedRows] = field(default_factory=dict)
    errors: dict[tuple[str, int | None, str], dict[str, Any]] = field(default_factory=dict)


def read_journal(path: Path, *, fingerprint_only: bool = False) -> Contents:
    """Read what a journal says, without a lock; nothing if it is no journal, or not there."""
    try:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with os.fdopen(os.open(path, flags), "rb") as file:
            return _contents((file.readline() if fingerprint_only else file.read()) or b"")
    except OSError:
        return Contents()


class Journal:
    """The open, locked journal of one output. `earlier` is what an interrupted run left in it."""

    def __init__(
        self, output: Path, fingerprint: Fingerprint, data_bytes: int, *, resume: bool
    ) -> None:
        """Open and lock that of an output; without `resume` what it says is forgotten.

        Raises OutputError if another run has it, or if what was finished was made otherwise.
        """
        self._path = path = journal_path(output)
        self._lock = threading.Lock()
        self._may_be_torn = False
        self._fd = open_locked(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, output)
        try:
            # What cannot be read is not nothing: then all that is finished would be forgotten.
            self.earlier = self._read() if resume else Contents()
            if not self.earlier.finished:
                self.earlier = Contents()
                os.ftruncate(self._fd, 0)
                self._append(
                    {"journal": _VERSION, "settings": fingerprint, "data_bytes": data_bytes}
                )
        except OSError as problem:
            os.close(self._fd)
            raise explained(problem, path) from None
        except BaseException:
            os.close(self._fd)
            raise
        self.has_work = self._may_be_torn = bool(self.earlier.finished)
        self._flushed = time.monotonic()

    def add_rows(self, done: FinishedRows) -> None:
        """Note rows that were written, from any thread. Raises OutputError."""
        said = {
            "rows": astuple(done.rows),
            "counts": astuple(done.counts),
            "writes": [astuple(write) for write in done.writes],
        }
        self._add(said)
        self.has_work = True

    def add_errors(self, record: MatrixRecord) -> None:
        """Note what a matrix differs by, from any thread. Raises OutputError."""
        named = [record.tensor, record.expert]
        self._add({"errors": named, "baseline": record.baseline, "values": record.values})

    def close(self) -> None:
        os.close(self._fd)

    def remove(self) -> None:
        """Delete it, before it is closed: the lock keeps others from an output without it."""
        self._path.unlink(missing_ok=True)

    def _read(self) -> Contents:
        """Read it where it is locked: some file systems let no other descriptor read it then."""
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):
            raise OutputError(f"{self._path}: is not a file; remove it")
        with open(self._fd, "rb", closefd=False) as file:
            return _contents(file.read())

    def _add(self, said: dict[str, Any]) -> None:
        try:
            with self._lock:
                self._append(said)
                now = time.monotonic()
                if now - self._flushed < _FLUSH_SECONDS:
                    return
                self._flushed = now
            os.fdatasync(self._fd)
        except OSError as problem:
            raise explained(problem, self._path) from None

    def _append(self, said: dict[str, Any]) -> None:
        text = json.dumps(said, separators=(",", ":")).encode()
        # The last line of an interrupted run may have no end.
        start = b"\n" if self._may_be_torn else b""
        self._may_be_torn = False
        line = memoryview(b"%s%s %s\n" % (start, checksum(text), text))
        while line:
            line = line[os.write(self._fd, line) :]


def checksum(text: bytes) -> bytes:
    """Compute the checksum that stands before a line."""
    return xxhash.xxh3_64_hexdigest(text).encode()


def _contents(raw: bytes) -> Contents:
    contents = Contents()
    for said in _lines(raw):
        if contents.fingerprint is None and said.get("journal") != _VERSION:
            break
        _add(contents, said)
    return contents


def _lines(raw: bytes) -> Iterator[dict[str, Any]]:
    """The objects of the lines that are whole."""
    for line in raw.split(b"\n"):
        before, _, text = line.partition(b" ")
        if not text or before != checksum(text):
            continue
        try:
            said = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(said, dict):
            yield said


def _add(contents: Contents, said: dict[str, Any]) -> None:
    """Take a line; one that says something else than these do is none."""
    if isinstance(said.get("settings"), dict):
        contents.fingerprint = said["settings"]
        if type(said.get("data_bytes")) is int:
            contents.data_bytes = max(said["data_bytes"], 0)
    elif "rows" in said:
        done = _finished(said)
        if done is not None:
            contents.finished[done.rows] = done
    elif "errors" in said:
        tensor, expert, *_ = _listed(said["errors"], 2)
        baseline, values = said.get("baseline"), said.get("values")
        if isinstance(values, dict) and _is_name(tensor, expert) and isinstance(baseline, str):
            contents.errors[tensor, expert, baseline] = values


def _finished(said: dict[str, Any]) -> FinishedRows | None:
    tensor, expert, *ends = _listed(said["rows"], 4)
    counts = _listed(said.get("counts"), 3)
    writes = [_listed(write, 6) for write in _listed(said.get("writes"))]
    numbers = (*ends, *counts, *(value for write in writes for value in write[:5]))
    digests = [write[5] for write in writes]
    if not _is_name(tensor, expert) or not all(type(n) is int and n >= 0 for n in numbers):
        return None
    if not all(isinstance(digest, str) for digest in digests):
        return None
    rows = RowRange(tensor, expert, *ends)
    return FinishedRows(rows, BlockCounts(*counts), tuple(Write(*write) for write in writes))


def _listed(value: object, length: int | None = None) -> list[Any]:
    """A list of that length; anything else becomes one of nothings."""
    if isinstance(value, list) and length in (None, len(value)):
        return value
    return [None] * (length or 0)


def _is_name(tensor: object, expert: object) -> bool:
    return isinstance(tensor, str) and (expert is None or type(expert) is int)
