"""Check that files keep to their format: every problem that can be found without the source.

Readers stop at the first contradiction; here all are listed, as far as the header can be read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final

from weightcast.converters.sources.weights import is_of_ranks
from weightcast.converters.targets.target import Target
from weightcast.converters.verify.result import Problem, plain, refusal
from weightcast.errors import CheckpointError
from weightcast.formats import safetensors, torch_zip
from weightcast.formats.array import StoredArray
from weightcast.formats.directory import files_ending
from weightcast.formats.gguf import read as gguf
from weightcast.formats.gguf.header import Metadata
from weightcast.formats.reading import read_json_object
from weightcast.formats.split import SPLIT_NAME, split_name
from weightcast.text import some

FETCH: Final = "copy the file again, or convert again"
_CHUNK_BYTES: Final = 1 << 20
# A file's name can speak of 99,999 others, those of a directory of as many sets as there are.
_MAX_MISSING: Final = 100
_MAX_SETS: Final = 10


@dataclass
class Structure:
    """The readable part of an artifact, and what is wrong with it.

    `tensors` are those that lie whole in their files; `metadata` that of a first GGUF file.
    `incomplete` are files that are missing, cut, or cannot be read: what is not there may be in
    them. `repeated` are tensors of a file that an earlier one has too, and which.
    """

    path: Path
    target: Target
    files: list[Path] = field(default_factory=list)
    tensors: dict[str, StoredArray] = field(default_factory=dict)
    metadata: Metadata | None = None
    by_file: dict[Path, dict[str, StoredArray]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    incomplete: set[Path] = field(default_factory=set)
    repeated: dict[Path, dict[str, Path]] = field(default_factory=dict)

    def add(self, file: Path, what: str, *tensors: str, remedy: str = FETCH) -> None:
        """Take note of a problem, of tensors or a file."""
        label = some([plain(name) for name in tensors]) if tensors else None
        self.problems.append(Problem(str(file), what, label, remedy))

    def add_missing(self, files: Iterable[tuple[Path, str]], total: int) -> None:
        """Take note of `total` files that are not there: of the first by name, then how many."""
        for file, what in islice(files, min(total, _MAX_MISSING)):
            self.add(file, what)
            self.incomplete.add(file)
        if total > _MAX_MISSING:
            self.add(self.path, f"{total - _MAX_MISSING:,} more files are missing")

    def refused(self, problem: Exception) -> None:
        """Take note of what a reader refused; the message names its place."""
        self.problems.append(refusal(problem, FETCH))

    def keep(self, name: str, array: StoredArray) -> None:
        """Take a tensor that lies in a file, unless another file has it too."""
        self.by_file.setdefault(array.path, {})[name] = array
        other = self.tensors.setdefault(name, array)
        if other is not array and not is_of_ranks(array.path):
            self.repeated.setdefault(array.path, {})[name] = other.path


def read_structure(path: Path, target: Target, container: str) -> Structure:
    """Read the headers of an artifact and list what is wrong."""
    structure = Structure(path, target)
    _READERS[container](structure)
    for file, others in structure.repeated.items():
        what = f"{_be([*others])} also in {some(sorted({path.name for path in others.values()}))}"
        structure.add(file, what, *others, remedy="remove one of them")
    return structure


def _be(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


@dataclass(frozen=True, slots=True)
class _Run:
    """Bytes [start, end) of a file that a tensor takes."""

    start: int
    end: int
    name: str


def _check_runs(
    structure: Structure, file: Path, runs: Sequence[_Run], first: int, size: int
) -> list[tuple[int, int]]:
    """Find overlaps and tensors beyond the file's end; give the gaps, the last one to the end."""
    gaps, end, before = [], first, ""
    cut = []
    for run in sorted(runs, key=lambda r: (r.start, r.end)):
        if run.start < end:
            what = f"begins at byte {run.start}, inside {plain(before)}, which ends at {end}"
            structure.add(
                file, what if before else what.split(",")[0] + ", in the header", run.name
            )
        elif run.start > end:
            gaps.append((end, min(run.start, size)))
        if run.end > size:
            cut.append(run.name)
        if run.end > end:
            end, before = run.end, run.name
    if cut:
        what = f"the file ends at byte {size:,}, its tensors at {end:,}: cut"
        structure.add(file, what, *cut)
        structure.incomplete.add(file)
    if end < size:
        gaps.append((end, size))
    return gaps


def _first_nonzero(file: Path, start: int, end: int) -> int | None:
    """Find the first byte of a run that is not zero."""
    with file.open("rb") as opened:
        opened.seek(start)
        while start < end:
            raw = opened.read(min(_CHUNK_BYTES, end - start))
            if not raw:
                return None
            if raw.strip(b"\0"):
                return start + len(raw) - len(raw.lstrip(b"\0"))
            start += len(raw)
    return None


# GGUF


def _read_gguf(structure: Structure) -> None:
    path = structure.path
    match = SPLIT_NAME.fullmatch(path.name)
    if match is None:
        header = _read_gguf_file(structure, path)
        if header is None:
            return
        said = gguf.whole_number(header.metadata, "split.count")
        if said not in (None, 0, 1):
            structure.add(
                path,
                f"is one of {said} files, but not named like it",
                remedy="give it the name it had, NAME-00001-of-0000N.gguf",
            )
        return
    count = int(match[3])
    there = _parts_there(structure, match[1], count)
    for number, part in sorted(there.items()):
        _check_part(structure, part, number, count, _read_gguf_file(structure, part))
    missing = (n for n in range(count) if n not in there)
    names = ((split_name(match[1], n, count), n + 1) for n in missing)
    files = ((path.with_name(name), f"missing: part {n} of {count}") for name, n in names)
    structure.add_missing(files, count - len(there))
    told = gguf.whole_number(structure.metadata or {}, "split.tensors.count")
    is_whole = len(there) == count and not structure.incomplete
    if is_whole and told not in (None, len(structure.tensors)):
        what = f"{len(structure.tensors)} tensors in {count} files, where the first says {told}"
        structure.add(path.with_name(split_name(match[1], 0, count)), what)


def _parts_there(structure: Structure, stem: str, count: int) -> dict[int, Path]:
    """The parts of a split that are there, by their number from 0; others of its name are told."""
    there = {}
    for file in files_ending(structure.path.parent, ".gguf"):
        found = SPLIT_NAME.fullmatch(file.name)
        if found is None or found[1] != stem:
            continue
        number = int(found[2]) - 1
        if not 0 <= number < count or file.name != split_name(stem, number, count):
            structure.add(file, f"no part of the {count} files of {stem}", remedy="remove it")
        elif file.is_file():
            there[number] = file
    return there


def _check_part(
    structure: Structure, part: Path, number: int, count: int, header: gguf.GGUFHeader | None
) -> None:
    """Compare what a part says with its name."""
    if header is None:
        return
    said = {key: gguf.whole_number(header.metadata, key) for key in gguf.SPLIT_KEYS}
    wanted = {"split.no": number, "split.count": count}
    for key, value in wanted.items():
        if said[key] != value:
            structure.add(part, f"{key} is {said[key]} where the name says {value}")
    first = structure.metadata
    if number and first is not None:
        total = gguf.whole_number(first, "split.tensors.count")
        if said["split.tensors.count"] != total:
            what = (
                f"split.tensors.count is {said['split.tensors.count']}, in the first file {total}"
            )
            structure.add(part, what)


def _read_gguf_file(structure: Structure, path: Path) -> gguf.GGUFHeader | None:
    structure.files.append(path)
    try:
        header = gguf.read_header(path)
    except CheckpointError as problem:
        structure.refused(problem)
        structure.incomplete.add(path)
        return None
    if structure.metadata is None:
        structure.metadata = header.metadata
    runs, seen = [], set()
    for info in header.tensors:
        if info.name in seen:
            structure.add(path, "occurs twice", info.name)
            continue
        seen.add(info.name)
        end = info.start + info.nbytes
        if info.nbytes:
            runs.append(_Run(info.start, end, info.name))
        if info.start % header.alignment:
            what = f"begins at byte {info.start}, no multiple of {header.alignment}"
            structure.add(path, what, info.name)
        if end <= header.size or not info.nbytes:
            structure.keep(info.name, info.stored(path, header.size))
    _check_gguf_gaps(structure, path, header, runs)
    return header


def _check_gguf_gaps(
    structure: Structure, path: Path, header: gguf.GGUFHeader, runs: list[_Run]
) -> None:
    """Between tensors there is padding, shorter than the alignment, of zeros."""
    gaps = _check_runs(structure, path, runs, header.end, header.size)
    for start, end in gaps:
        padded = -(-start // header.alignment) * header.alignment
        last = end == header.size
        if end > padded:
            what = "more bytes after the last tensor" if last else "bytes that no tensor has"
            structure.add(path, f"{end - padded:,} {what}, from byte {padded} on")
        nonzero = _first_nonzero(path, start, min(padded, end))
        if nonzero is not None:
            structure.add(path, f"the padding at byte {nonzero} is not zero")
    end = max((run.end for run in runs), default=header.end)
    if runs and header.size < -(-end // header.alignment) * header.alignment and end <= header.size:
        structure.add(path, f"ends at byte {header.size} without the padding of the last tensor")


# Safetensors


def _read_safetensors(structure: Structure) -> None:
    path = structure.path
    if path.is_file():
        _read_safetensors_file(structure, path)
        return
    index = path / safetensors.INDEX_NAME
    # Those that the index names first: a copy in another file is the one too many.
    named = _files_of(index) if index.is_file() else set()
    for file in sorted(files_ending(path, ".safetensors"), key=lambda f: f.name not in named):
        _read_safetensors_file(structure, file)
    _check_numbering(structure)
    if index.is_file():
        _check_index(structure, index)
    elif _needs_index(structure):
        structure.add(index, f"missing, where there are {len(structure.files)} files")
    for file in files_ending(path, ".json"):
        if file != index:
            _json_of(structure, file)


def _needs_index(structure: Structure) -> bool:
    """Tell whether there are several files, as far as can be told, that an index should name."""
    if structure.incomplete or any(map(is_of_ranks, structure.files)):
        return False
    return len(structure.files) > 1


def _files_of(index: Path) -> set[object]:
    """List the files that an index names, if it is one."""
    try:
        weight_map = read_json_object(index).get("weight_map")
    except CheckpointError:
        return set()
    if not isinstance(weight_map, dict):
        return set()
    return {name.removeprefix("./") for name in weight_map.values() if isinstance(name, str)}


def _json_of(structure: Structure, file: Path) -> dict[str, Any] | None:
    try:
        return read_json_object(file)
    except CheckpointError as problem:
        structure.refused(problem)
        return None


def _read_safetensors_file(structure: Structure, path: Path) -> None:
    structure.files.append(path)
    try:
        header, data_start, size = safetensors.read_header(path)
    except CheckpointError as problem:
        structure.refused(problem)
        structure.incomplete.add(path)
        return
    header.pop("__metadata__", None)
    runs = []
    for name, value in header.items():
        try:
            array = safetensors.read_entry(path, data_start, name, value)
        except CheckpointError as problem:
            structure.refused(problem)
            continue
        end = array.offset + array.nbytes
        runs.append(_Run(array.offset, end, name))
        if end <= size:
            structure.keep(name, array)
    for start, end in _check_runs(structure, path, runs, data_start, size):
        what = "more bytes after the last tensor" if end == size else "bytes that no tensor has"
        structure.add(path, f"{end - start:,} {what}, from byte {start} on")


def _check_numbering(structure: Structure) -> None:
    """Files named model-0000N-of-0000M: each N to M is there, and one M."""
    names = {file.name for file in structure.files}
    counts: dict[int, list[str]] = defaultdict(list)
    for name in names:
        words = name.removesuffix(".safetensors").split("-")
        if len(words) == 4 and words[2] == "of" and words[3].isdecimal():
            counts[int(words[3])].append(name)
    if len(counts) > 1:
        sets = sorted(counts.items())[:_MAX_SETS]
        said = ", ".join(f"{len(found)} of {total}" for total, found in sets)
        structure.add(structure.path, f"holds files of different sets: {said}")
    for total in sorted(counts)[:_MAX_SETS]:
        if total < 2:
            continue
        # Those that are there, by their number, are as many as the directory has at most.
        there = {n for n in _shard_numbers(counts[total]) if 0 <= n < total}
        missing = (safetensors.shard_name(n, total) for n in range(total) if n not in there)
        files = ((structure.path / name, "missing") for name in missing)
        structure.add_missing(files, total - len(there))


def _shard_numbers(names: Iterable[str]) -> Iterator[int]:
    """The numbers of files model-0000N-of-0000M, from 0, where they are written like that."""
    for name in names:
        _, number, _, total = name.removesuffix(".safetensors").split("-")
        if number.isdecimal() and name == safetensors.shard_name(int(number) - 1, int(total)):
            yield int(number) - 1


def _check_index(structure: Structure, index: Path) -> None:
    """Compare the index with the files, both ways."""
    values = _json_of(structure, index)
    if values is None:
        return
    weight_map = values.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        structure.add(index, "not an index of files (no weight_map)")
        return
    misplaced = _misplaced(structure, weight_map)
    elsewhere = [name for (_, holder), names in misplaced.items() if holder for name in names]
    if elsewhere:
        holder, file = structure.tensors[elsewhere[0]].path.name, weight_map[elsewhere[0]]
        more = ", and so on" if sum(holder is not None for _, holder in misplaced) > 1 else ""
        what = f"{_be(elsewhere)} in {holder}, where it names {plain(file)}{more}"
        structure.add(index, what, *elsewhere)
    for (file, other), names in misplaced.items():
        path = index.with_name(file) if safetensors.is_file_name(file) else None
        are = _be(names)
        if other is not None:
            continue
        if path is None or path.is_file():
            if path not in structure.incomplete:
                structure.add(index, f"{are} not in {plain(file)}, which it names", *names)
        elif path not in structure.incomplete:
            structure.add(path, f"missing, but {index.name} names it")
            structure.incomplete.add(path)
    unlisted = defaultdict(list)
    for name, array in structure.tensors.items():
        if name not in weight_map:
            unlisted[array.path].append(name)
    for path, names in unlisted.items():
        structure.add(path, f"{_be(names)} not in {index.name}", *names)
    said = values.get("metadata")
    total = said.get("total_size") if isinstance(said, Mapping) else None
    # Tensors that are tied may lie in one place.
    places = {(a.path, a.offset, a.nbytes) for a in structure.tensors.values()}
    found = sum(nbytes for _, _, nbytes in places)
    if total not in (None, found) and not structure.problems:
        structure.add(index, f"total_size is {total}, but the tensors take {found}")


def _misplaced(
    structure: Structure, weight_map: Mapping[str, str]
) -> dict[tuple[str, str | None], list[str]]:
    """Tensors that are not where the index says, by that file and the one that has them."""
    found = defaultdict(list)
    for name, said in weight_map.items():
        file, array = said.removeprefix("./"), structure.tensors.get(name)
        holder = None if array is None else array.path.name
        if holder != file:
            found[file, holder].append(name)
    return found


# PyTorch's files


def _read_torch(structure: Structure) -> None:
    path = structure.path
    index = path / torch_zip.INDEX_NAME
    files = [path] if path.is_file() else torch_zip.files_in(path)
    for file in files:
        structure.files.append(file)
        try:
            arrays = torch_zip.read_torch(file)
        except CheckpointError as problem:
            structure.refused(problem)
            structure.incomplete.add(file)
            continue
        for name, array in arrays.items():
            structure.keep(name, array)
    if index.is_file():
        _check_index(structure, index)


_READERS: Final = {"gguf": _read_gguf, "safetensors": _read_safetensors, "torch": _read_torch}
