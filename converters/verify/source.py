"""Verify a source, a checkpoint of shards: whether it is whole, and what was released.

Every byte is read once, and once more where a torrent has digests of pieces.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median_low
from typing import Final

import numpy as np
from numpy.typing import NDArray

from weightcast.converters.engine import FileToHash, Meter, Stream, hash_files
from weightcast.converters.files import Blank, ZeroRuns, find_holes, join_blanks, page_cache
from weightcast.converters.graph import TensorGraph, windows
from weightcast.converters.sources import checkpoint_directory, open_family
from weightcast.converters.verify.checksums import read_sums_of
from weightcast.converters.verify.pieces import check_pieces, find_torrents
from weightcast.converters.verify.result import MOST_ALIKE, Problem, Verification, refusal
from weightcast.errors import CheckpointError
from weightcast.formats.array import StoredArray, read_into
from weightcast.formats.jax import shards
from weightcast.formats.jax.arrays import read_pickle
from weightcast.formats.packed.layout import NUMPY_DTYPES
from weightcast.text import count, some

_CHUNK_BYTES: Final = 1 << 20
REMEDY: Final = "download it again"
# A million squares of smaller numbers have a sum in float32.
_LARGE: Final = 1e15
# Numbers of a tensor are suspicious if they are so many times larger or smaller than those of its
# kind in most layers. Layers of trained models differ by less than ten.
_OUT_OF_FAMILY: Final = 64.0
_MORE_ZEROS: Final = 1 / 32
_NUMBER: Final = re.compile(r"\d[\d,]*")


def verify_source(
    path: Path,
    spec: Path | None,
    jobs: int,
    meter: Meter,
) -> Verification:
    """Check a directory of shards: names, sizes, checksums, parts never written, numbers.

    Checksums are those of a SHA256SUMS or a torrent in or beside the directory. Raises
    CheckpointError if a file cannot be read.
    """
    directory = checkpoint_directory(path)
    assert directory is not None
    directory = Path(os.path.abspath(directory))  # "." has neighbours too
    found = _Findings()
    try:
        files = shards.list_shards(directory)
    except CheckpointError as problem:
        found.refused(problem)
        files = shards.shards_there(directory)
    graph = _opened(directory, spec, files, found)
    sums = read_sums_of(directory)
    torrents, unread = find_torrents(directory)
    found.unchecked += unread
    others = [path for path in sums.digests if path not in files and os.path.isfile(path)]
    contents = _read(files, graph, jobs, meter.start("verify", _size(files)))
    found.problems += sums.problems
    there = {content.path: content.sha256 for content in contents}
    hashed = sum(torrent.total_bytes for torrent, _ in torrents)
    if hashed or others:
        meter.start("hash", _size(others) + hashed)
    wanted = [FileToHash(path, check=lambda status: None) for path in others]
    hashes = hash_files(wanted, jobs, meter.add)
    there |= {path: made.sha256 for path, made in zip(others, hashes, strict=True)}
    _check_sums(there, sums.digests, sums.files, found)
    without = [file.name for file in files if sums.digests and file not in sums.digests]
    if without:
        named = some([path.name for path in sums.files])
        found.unchecked.append(f"checksums of {some(without)}, which {named} does not name")
    found.unchecked += (f"checksums: {path} names none of these files" for path in sums.useless)
    for torrent, places in torrents:
        problems = check_pieces(torrent, places, jobs, meter.add)
        found.problems += problems
        if not problems:
            whole = count(sum(place is not None for place in places), "file")
            found.checked.append(f"pieces: {whole} as in {torrent.path.name}")
        without = [file.name for file in files if file not in places]
        if without:
            said = f"pieces of {some(without)}, which {torrent.path.name} does not name"
            found.unchecked.append(said)
    _check_blanks(contents, found)
    if graph is not None:
        _check_repeated(contents, found)
        _check_numbers(graph, contents, found)
    mistakes = {problem.mistake for problem in found.problems}
    if contents and not mistakes & {"blank", "repeated"}:
        repeated = "" if graph is None else ", no repeated shards"
        found.checked.append(f"content: no holes, no long runs of zeros{repeated}")
    return Verification(
        str(directory),
        None,
        tuple(dict.fromkeys(found.problems)),
        (),
        tuple(found.checked),
        tuple(found.unchecked),
    )


@dataclass
class _Findings:
    """What is wrong, what was checked, and what could not be."""

    problems: list[Problem] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)

    def add(self, place: Path, what: str, mistake: str) -> None:
        self.problems.append(Problem(str(place), what, remedy=REMEDY, mistake=mistake))

    def refused(self, problem: CheckpointError) -> None:
        self.problems.append(refusal(problem))


def _opened(
    directory: Path, spec: Path | None, files: Sequence[Path], found: _Findings
) -> TensorGraph | None:
    """Open the model that the shards make; None if they make none, and then say why."""
    refused = None
    if not found.problems:
        try:
            graph = open_family(directory, spec)
        except CheckpointError as problem:
            refused = problem
        else:
            shards_there = count(len(files), "file")
            found.checked.append(f"shards: {shards_there}, names, pickles, sizes, shapes")
            return graph
    _find_bad_pickles(directory, files, found)
    if refused is not None and not found.problems:
        found.refused(refused)
    return None


def _find_bad_pickles(directory: Path, files: Sequence[Path], found: _Findings) -> None:
    """Read each pickle alone. The same of many files is one problem."""
    refused: dict[str, list[str]] = defaultdict(list)
    for file in files:
        try:
            read_pickle(file)
        except CheckpointError as problem:
            refused[str(problem).removeprefix(str(file)).partition(": ")[2]].append(file.name)
        except OSError as problem:
            refused[f"cannot be read: {problem.strerror}"].append(file.name)
    # Pointers of Git LFS say different sizes.
    alike: dict[str, list[str]] = defaultdict(list)
    for what in refused:
        alike[_NUMBER.sub("", what)].append(what)
    for first, *more in alike.values():
        names = sorted(name for what in (first, *more) for name in refused[what])
        found.problems.append(Problem(f"{directory}: {some(names)}", first, mistake="pickle"))


# Reading.


@dataclass
class Numbers:
    """Statistics of an array, or part of one."""

    size: int = 0
    squares: float = 0.0
    largest: float = 0.0
    not_finite: int = 0
    zeros: int = 0

    def add(self, values: NDArray[np.float32]) -> None:
        """Add some of its elements."""
        self.size += values.size
        self.zeros += int(values.size - np.count_nonzero(values))
        largest = float(np.abs(values).max(initial=0))
        if not largest < _LARGE:  # or NaN
            finite = np.isfinite(values)
            self.not_finite += int(values.size - np.count_nonzero(finite))
            values = values[finite]
            largest = float(np.abs(values).max(initial=0))
            self.squares += float(np.square(values, dtype=np.float64).sum())
        else:
            self.squares += float(np.dot(values, values))
        self.largest = max(self.largest, largest)

    @property
    def rms(self) -> float:
        return float(np.sqrt(self.squares / self.size)) if self.size else 0.0

    @property
    def share_of_zeros(self) -> float:
        return self.zeros / self.size if self.size else 0.0


@dataclass
class Contents:
    """The content of a file: its digest, parts that were never written, numbers by offset."""

    path: Path
    sha256: str = ""
    blanks: list[Blank] = field(default_factory=list)
    numbers: dict[int, Numbers] = field(default_factory=dict)


def _arrays(graph: TensorGraph | None) -> dict[Path, list[StoredArray]]:
    """List the arrays that lie in each file as they are."""
    found: dict[Path, dict[int, StoredArray]] = defaultdict(dict)
    for tensor in () if graph is None else graph.values():
        for view in windows(tensor):
            for array in (view.array, None if view.scales is None else view.scales.array):
                if array is not None and array.text is None and array.dtype in NUMPY_DTYPES:
                    found[array.path][array.offset] = array
    return {path: [arrays[at] for at in sorted(arrays)] for path, arrays in found.items()}


def _size(files: Iterable[Path]) -> int:
    return sum(file.stat().st_size for file in files)


def _read(
    files: Sequence[Path],
    graph: TensorGraph | None,
    jobs: int,
    on_progress: Callable[[int], None],
) -> list[Contents]:
    arrays = _arrays(graph)
    outgrows = page_cache.outgrows(_size(files))
    buffers = [memoryview(bytearray(_CHUNK_BYTES)) for _ in range(min(jobs, len(files)))]
    stream = Stream[memoryview, _Task, Contents](buffers)

    def work(task: _Task) -> Contents:
        return _contents(task, stream, on_progress, forgets=outgrows)

    return stream.run(
        files,
        lambda file, buffer: [_Task(file, arrays.get(file, []), buffer)],
        [work] * len(buffers),
    )


@dataclass(frozen=True, slots=True)
class _Task:
    path: Path
    arrays: list[StoredArray]
    buffer: memoryview


def _contents(
    task: _Task,
    stream: Stream[memoryview, _Task, Contents],
    on_progress: Callable[[int], None],
    *,
    forgets: bool,
) -> Contents:
    """Read a file from start to end. Raises CheckpointError."""
    made, sha = Contents(task.path), hashlib.sha256()
    try:
        fd = os.open(task.path, os.O_RDONLY)
        try:
            size = os.fstat(fd).st_size
            holes = find_holes(task.path, fd, 0, size)
            runs = ZeroRuns()
            zeros: list[tuple[int, int]] = []
            for start, end, array in _regions(task.arrays, size):
                numbers = None
                if array is not None:
                    numbers = made.numbers.setdefault(array.offset, Numbers())
                while start < end and not stream.is_stopping:
                    chunk = task.buffer[: end - start]
                    read_into(fd, task.path, start, chunk)
                    sha.update(chunk)
                    zeros += runs.add(start, chunk)
                    if numbers is not None and array is not None:
                        values = np.frombuffer(chunk, NUMPY_DTYPES[array.dtype])
                        numbers.add(values.astype(np.float32))
                    if forgets:
                        page_cache.forget(fd, start, len(chunk))
                    start += len(chunk)
                    on_progress(len(chunk))
            zeros += runs.finish()
        finally:
            os.close(fd)
    except OSError as problem:
        raise CheckpointError(f"{task.path}: cannot be read: {problem.strerror}") from None
    made.sha256 = sha.hexdigest()
    made.blanks = join_blanks(holes, (Blank(task.path, a, b, is_hole=False) for a, b in zeros))
    return made


def _regions(
    arrays: Sequence[StoredArray], size: int
) -> Iterator[tuple[int, int, StoredArray | None]]:
    """Cut a file into the arrays and what is between them."""
    at = 0
    for array in arrays:
        yield at, array.offset, None
        at = array.offset + array.nbytes
        yield array.offset, at, array
    yield at, size, None


# Judging.


def _check_sums(
    there: Mapping[Path, str],
    digests: Mapping[Path, str],
    origins: Sequence[Path],
    found: _Findings,
) -> None:
    if not digests:
        found.unchecked.append("checksums: there is no SHA256SUMS of these files")
        return
    named = some([path.name for path in origins])
    for path in digests:
        if path not in there:
            found.add(path, f"missing, but {named} names it", "missing")
    wrong = [path for path, digest in digests.items() if there.get(path, digest) != digest]
    if len(wrong) > MOST_ALIKE:
        listed = some([path.name for path in wrong])
        what = f"{listed}: their SHA-256 are others than {named} says"
        found.add(wrong[0].parent, what, "checksum")
    else:
        for path in wrong:
            found.add(path, f"its SHA-256 is another than {named} says", "checksum")
    matched = sum(there.get(path) == digest for path, digest in digests.items())
    if matched:
        found.checked.append(f"checksums: {count(matched, 'file')} as in {named}")


def _check_blanks(contents: Sequence[Contents], found: _Findings) -> None:
    """Name parts that were never written."""
    for content in contents:
        if content.blanks:
            first, *more = content.blanks
            what = str(first).removeprefix(f"{content.path}: ")
            if more:
                nbytes = sum(blank.end - blank.start for blank in content.blanks)
                what += f", and {count(len(more), 'more part')}; {nbytes:,} bytes in all"
            found.add(content.path, f"was never written as a whole: {what}", "blank")


def _check_repeated(contents: Sequence[Contents], found: _Findings) -> None:
    """Name files that are the same."""
    by_digest = defaultdict(list)
    for content in contents:
        by_digest[content.sha256].append(content)
    for original, *others in by_digest.values():
        if others and not _is_uniform(original):
            names = some([content.path.name for content in others])
            what = f"is the same as {names}: one shard was put in the place of others"
            found.add(original.path, what, "repeated")


def _is_uniform(content: Contents) -> bool:
    """Tell arrays of one value, such as norms before training, which may all be alike."""
    return all(
        np.isclose(numbers.rms, numbers.largest, rtol=1e-5, atol=0)
        for numbers in content.numbers.values()
    )


def _check_numbers(graph: TensorGraph, contents: Sequence[Contents], found: _Findings) -> None:
    """Hold the numbers of each tensor against those of its kind in the other layers."""
    there = {content.path: content.numbers for content in contents}
    kinds: dict[tuple[str, str], dict[str, tuple[Path, Numbers]]] = defaultdict(dict)
    for name, place in graph.places.items():
        for view in windows(graph[name]):
            scales = None if view.scales is None else view.scales.array
            main = "weights" if scales is None else "codes"
            for array, part in ((view.array, main), (scales, "scales")):
                numbers = None if array is None else there.get(array.path, {}).get(array.offset)
                if array is not None and numbers is not None:
                    spoken = graph.spoken_name(name)
                    kinds[place.role.name, part][spoken] = array.path, numbers
    strange: set[Path] = set()
    for (_, part), tensors in kinds.items():
        usual_rms = float(np.median([numbers.rms for _, numbers in tensors.values()]))
        usual_largest = float(np.median([numbers.largest for _, numbers in tensors.values()]))
        usual_zeros = median_low(n.share_of_zeros for _, n in tensors.values())
        for name, (path, numbers) in tensors.items():
            strangeness = _strange(numbers, usual_rms, usual_largest)
            is_too_often = numbers.share_of_zeros > _MORE_ZEROS + 2 * usual_zeros
            if strangeness is None and is_too_often and part == "scales":
                share, usual = f"{numbers.share_of_zeros:.1%}", f"{usual_zeros:.1%}"
                strangeness = f"are zero in {share}, in most layers in {usual}"
            if strangeness is not None and path not in strange:
                strange.add(path)
                what = f"{part} {strangeness}"
                found.problems.append(Problem(str(path), what, name, REMEDY, "numbers"))
    if not strange:
        found.checked.append("numbers: finite, and in each layer as in the others")


def _strange(numbers: Numbers, usual_rms: float, usual_largest: float) -> str | None:
    """Say what is unlike the same tensor of other layers."""
    if numbers.not_finite:
        return f"have {count(numbers.not_finite, 'value')} that are NaN or infinite"
    if not numbers.rms:
        return "are all zero"
    for said, mine, usual in (
        ("of size", numbers.rms, usual_rms),
        ("of up to", numbers.largest, usual_largest),
    ):
        if usual and not 1 / _OUT_OF_FAMILY < mine / usual < _OUT_OF_FAMILY:
            return f"are {said} {mine:.3g}, in most layers {usual:.3g}"
    return None
