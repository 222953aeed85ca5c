"""Release bundles: provenance, checksums, a list of tensors and a model card for each output.

They are made when the outputs are complete, from what is then on the disk, and get their names
with them; docs/bundle.md says what is in them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from os import stat_result
from pathlib import Path

from weightcast.converters.bundle import provenance
from weightcast.converters.bundle.model_card import CardErrors, model_card
from weightcast.converters.engine import Digests, FileToHash, hash_files
from weightcast.converters.files import (
    CARD,
    STATEMENT,
    SUMS,
    TENSORS,
    bundle_paths,
    explained,
    foreign_files,
    sha256,
    write_flushed,
    written_before,
)
from weightcast.converters.output import grown_path
from weightcast.converters.plan import Plan, choose_workers
from weightcast.converters.targets.target import Output, Request, Target
from weightcast.errors import FormatError, LayoutError, OutputError
from weightcast.formats.array import StoredArray
from weightcast.text import option


def earlier_notes(request: Request) -> Iterator[str]:
    """Say what becomes of the bundle of an earlier output where no new one is asked for."""
    paths = bundle_paths(request.path, request.target.is_directory)
    if not written_before(paths):
        return
    yield (
        "the release bundle of the earlier output goes with it; "
        f"{option('bundle', True)} makes a new one"
    )
    if not request.target.is_directory:  # of a directory it is refused that they go
        for path in foreign_files(paths):
            yield f"{path.name} was edited and stays, though it describes the earlier output"


def make_bundles(
    plan: Plan,
    jobs: int | None = None,
    on_progress: Callable[[int], None] = lambda nbytes: None,
    errors: Mapping[int, CardErrors] | None = None,
) -> tuple[dict[Path, Path], ...]:
    """Hash what was read and written, and write bundles where they wait for their names.

    The files of outputs are complete and flushed, and have no names yet, either. `errors` are what
    was measured of an output, by its number. Returns where each file of a bundle waits, by its
    name, in the order in which they are to get them. Raises ChangedError if a source file is no
    longer what was converted, CheckpointError if a file cannot be read, or an output is not what
    was written.
    """
    outputs = [_Contents.of(output) for output in plan.outputs]
    files = [file for contents in outputs for file in contents.files]
    files += [FileToHash(file.path, file.check) for file in plan.inputs.files]
    digests = hash_files(files, choose_workers(jobs).count, on_progress)
    known = {file.path: found for file, found in zip(files, digests, strict=True)}
    for contents in outputs:
        contents.check_again(known)
    waiting: list[dict[Path, Path]] = []
    try:
        for number, contents in enumerate(outputs):
            bundle = _make(plan, number, contents, known, (errors or {}).get(number))
            waiting.append({path: grown_path(contents.output, path) for path in bundle})
            for path, place in waiting[-1].items():
                _write(path, place, bundle[path])
    except BaseException:
        for place in (place for places in waiting for place in places.values()):
            place.unlink(missing_ok=True)
        raise
    return tuple(waiting)


def _write(path: Path, place: Path, content: bytes) -> None:
    try:
        write_flushed(place, content)
    except OSError as problem:
        raise explained(problem, path) from None


@dataclass(frozen=True, slots=True)
class _Grown:
    """A file of an output where it grew, as it was when it was complete."""

    path: Path
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path, size: int) -> _Grown:
        """Raise OutputError if it has not the `size` that was written."""
        status = _status(path)
        if status.st_size != size:
            raise OutputError(
                f"{path}: {status.st_size:,} bytes, not the {size:,} that were written"
            )
        return cls(path, size, status.st_mtime_ns)

    def check(self, status: stat_result) -> None:
        """Raise OutputError if it is no longer what it was."""
        if (status.st_size, status.st_mtime_ns) != (self.size, self.mtime_ns):
            raise OutputError(f"{self.path}: was changed by something else")


@dataclass(frozen=True)
class _Contents:
    """The files of one output on the disk, by their final names, and the tensors in each."""

    output: Output
    grown: dict[Path, _Grown]
    tensors: dict[Path, dict[str, StoredArray]]

    @classmethod
    def of(cls, output: Output) -> _Contents:
        """Take stock of a complete output. Raises OutputError if it is not what was planned."""
        sizes = {file.path: file.size for file in output.files}
        sizes.update({output.request.path / n: len(raw) for n, raw in output.companions.items()})
        grown = {path: _Grown.of(grown_path(output, path), size) for path, size in sizes.items()}
        tensors = {
            file.path: _tensors_in(grown[file.path].path, output.request.target)
            for file in output.files
        }
        return cls(output, grown, tensors)

    @property
    def files(self) -> list[FileToHash]:
        """The files, with the places of their tensors."""
        return [
            FileToHash(
                grown.path,
                grown.check,
                tuple((a.offset, a.nbytes) for a in self.tensors.get(path, {}).values()),
            )
            for path, grown in self.grown.items()
        ]

    def hashed_tensors(self, known: Mapping[Path, Digests]) -> list[provenance.HashedTensor]:
        """The tensors with their digests, in files of their final names."""
        return [
            provenance.HashedTensor(name, replace(array, path=path), sha)
            for path, tensors in self.tensors.items()
            for (name, array), sha in zip(
                tensors.items(), known[self.grown[path].path].regions, strict=True
            )
        ]

    def check_again(self, known: Mapping[Path, Digests]) -> None:
        """Raise OutputError if something changed a file, small ones at any time."""
        for grown in self.grown.values():
            grown.check(_status(grown.path))
        for name, raw in self.output.companions.items():
            path = self.grown[self.output.request.path / name].path
            if known[path].sha256 != sha256(raw):
                raise OutputError(f"{path}: not what was written")


def _tensors_in(path: Path, target: Target) -> dict[str, StoredArray]:
    """Read the names of a written file's tensors from its header."""
    try:
        read = target.read(path)
    except (FormatError, LayoutError) as problem:
        raise OutputError(f"{problem}: not what was written") from None
    except OSError as problem:
        raise _unreadable(path, problem) from None
    return dict(read)


def _status(path: Path) -> stat_result:
    try:
        return path.stat()
    except OSError as problem:
        raise _unreadable(path, problem) from None


def _unreadable(path: Path, problem: OSError) -> OutputError:
    return OutputError(f"{path}: cannot be read: {problem.strerror}")


def _make(
    plan: Plan,
    number: int,
    contents: _Contents,
    known: Mapping[Path, Digests],
    errors: CardErrors | None,
) -> dict[Path, bytes]:
    """Make the files of one bundle, in the order in which they get their names."""
    output = contents.output
    paths = bundle_paths(output.request.path, output.request.target.is_directory)
    files = {path.name: known[grown.path].sha256 for path, grown in contents.grown.items()}
    tensors = provenance.tensor_list(contents.hashed_tensors(known))
    card = model_card(plan, number, errors).encode("utf-8", "replace")
    statement = provenance.statement(
        output.request,
        plan.inputs,
        {file: known[file.path].sha256 for file in plan.inputs.files},
        files,
        {paths.path(TENSORS).name: sha256(tensors), paths.path(CARD).name: sha256(card)},
    )
    described = {TENSORS: tensors, STATEMENT: statement}
    # The card is left out: people add to it.
    sums = provenance.checksums(
        {**files, **{paths.path(name).name: sha256(raw) for name, raw in described.items()}}
    )
    made = {STATEMENT: statement, TENSORS: tensors, CARD: card, SUMS: sums}
    return {paths.path(name): raw for name, raw in made.items()}
