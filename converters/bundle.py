"""Release bundles: provenance, checksums, a list of tensors and a model card for each output.

They are made when the outputs are complete, from what is then on the disk, and get their names
right after them; docs/bundle.md says what is in them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from os import stat_result
from pathlib import Path

from weightcast.converters import provenance
from weightcast.converters.bundle_files import (
    CARD,
    STATEMENT,
    SUMS,
    TENSORS,
    bundle_paths,
    foreign_files,
    sha256,
    written_before,
)
from weightcast.converters.complete_files import write_files
from weightcast.converters.execute import default_workers
from weightcast.converters.hashing import Digests, FileToHash, hash_files
from weightcast.converters.inputs import InputFile
from weightcast.converters.model_card import CardErrors, model_card
from weightcast.converters.output_files import grown_path
from weightcast.converters.outputs import Output, Request
from weightcast.converters.plan import Plan
from weightcast.formats import gguf, safetensors
from weightcast.formats.stored import StoredArray
from weightcast.quant.errors import CheckpointError, OutputError


def earlier_notes(request: Request) -> Iterator[str]:
    """Say what becomes of the bundle of an earlier output where no new one is asked for."""
    paths = bundle_paths(request.path, request.kind)
    if not written_before(paths):
        return
    yield "the release bundle of the earlier output goes with it; --bundle makes a new one"
    if request.kind == "gguf":  # of a directory it is refused that they go
        for path in foreign_files(paths):
            yield f"{path.name} was edited and stays, though it describes the earlier output"


class Bundles:
    """The bundles of all outputs of a plan: made, then written."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._made: list[tuple[_Contents, dict[Path, bytes]]] = []
        self._problem: CheckpointError | None = None

    def make(
        self,
        workers: int | None = None,
        on_progress: Callable[[int], None] = lambda nbytes: None,
        errors: Mapping[int, CardErrors] | None = None,
        where: Callable[[Output, Path], Path] = grown_path,
    ) -> None:
        """Hash what was read and written; `errors` are those of an output, by its number.

        The files of outputs need not have their names: `where` says where they lie. What is wrong
        with a file that was read is kept for `write`: the outputs are good without a bundle.
        Raises CheckpointError if an output is not what was planned.
        """
        plan = self._plan
        outputs = [_Contents.of(output, where) for output in plan.outputs]
        try:
            files = [FileToHash(file.path, file.check) for file in plan.inputs.files]
            for contents in outputs:
                files += contents.files
            digests = hash_files(files, workers or default_workers(), on_progress)
            dependencies = dict(zip(plan.inputs.files, digests, strict=False))
            known = {file.path: found for file, found in zip(files, digests, strict=True)}
            self._made = [
                (contents, _make(plan, n, contents, dependencies, known, (errors or {}).get(n)))
                for n, contents in enumerate(outputs)
            ]
        except CheckpointError as problem:
            self._problem = problem

    def write(self) -> tuple[tuple[Path, ...], ...]:
        """Write the bundles beside the outputs, which have their names; returns their files.

        Raises CheckpointError if a file vanished or changed since the conversion; the outputs are
        complete then, but have no bundle, or not all of them. KeyboardInterrupt says so, too.
        """
        written = 0
        try:
            if self._problem is not None:
                raise self._problem
            for contents, bundle in self._made:
                contents.check_again()
                write_files(bundle)
                written += 1
        except CheckpointError as problem:
            raise CheckpointError(f"{problem} ({_complete_but(written)})") from None
        except KeyboardInterrupt:
            raise KeyboardInterrupt(_complete_but(written)) from None
        return tuple(tuple(bundle) for _, bundle in self._made)


def _complete_but(written: int) -> str:
    lacking = "not all have a bundle" if written else "have no bundle"
    return f"the outputs are complete, but {lacking}"


@dataclass(frozen=True)
class _Contents:
    """What is on the disk of one output: its files as they are now, the tensors in each.

    All by the names that the files have in the end.
    """

    output: Output
    states: dict[Path, InputFile]
    tensors: dict[str, StoredArray]

    @classmethod
    def of(cls, output: Output, where: Callable[[Output, Path], Path]) -> _Contents:
        """Take stock of a complete output. Raises CheckpointError if it is not what was planned."""
        sizes = {file.path: file.size for file in output.files}
        sizes.update({output.request.path / n: len(raw) for n, raw in output.companions.items()})
        states = {path: _state(where(output, path), size) for path, size in sizes.items()}
        tensors = {}
        for file in output.files:
            grown = where(output, file.path)
            is_gguf = output.request.kind == "gguf"
            found = gguf.read_file(grown).tensors if is_gguf else safetensors.read_index(grown)
            tensors.update({n: replace(array, path=file.path) for n, array in found.items()})
        return cls(output, states, tensors)

    @property
    def files(self) -> list[FileToHash]:
        """The files, with the places of their tensors."""
        return [
            FileToHash(
                state.path,
                state.check,
                tuple((a.offset, a.nbytes) for _, a in self._tensors_in(path)),
            )
            for path, state in self.states.items()
        ]

    def _tensors_in(self, path: Path) -> list[tuple[str, StoredArray]]:
        return [(name, array) for name, array in self.tensors.items() if array.path == path]

    def hashed_tensors(self, known: Mapping[Path, Digests]) -> list[provenance.HashedTensor]:
        """The tensors with their digests."""
        return [
            provenance.HashedTensor(name, array, sha)
            for path, state in self.states.items()
            for (name, array), sha in zip(
                self._tensors_in(path), known[state.path].regions, strict=True
            )
        ]

    def check_again(self) -> None:
        """Raise CheckpointError if another output has taken the place of what was hashed."""
        for path, state in self.states.items():
            replace(state, path=path).check(_status(path))


def _state(path: Path, size: int) -> InputFile:
    """A file of an output as it is now."""
    status = _status(path)
    if status.st_size != size:
        raise OutputError(
            f"{path}: {status.st_size:,} bytes, not the {size:,} that were written; convert again"
        )
    return InputFile(path, "output", size, status.st_mtime_ns)


def _status(path: Path) -> stat_result:
    try:
        return path.stat()
    except OSError as problem:
        raise CheckpointError(f"{path}: cannot be read: {problem.strerror}") from None


def _make(
    plan: Plan,
    number: int,
    contents: _Contents,
    dependencies: Mapping[InputFile, Digests],
    known: Mapping[Path, Digests],
    errors: CardErrors | None,
) -> dict[Path, bytes]:
    """Make the files of one bundle, in the order in which they get their names."""
    output = contents.output
    paths = bundle_paths(output.request.path, output.request.kind)
    files = {path.name: known[state.path].sha256 for path, state in contents.states.items()}
    tensors = provenance.tensor_list(contents.hashed_tensors(known))
    card = model_card(plan, number, errors).encode("utf-8", "replace")
    statement = provenance.statement(
        output.request,
        plan.inputs,
        {file: found.sha256 for file, found in dependencies.items()},
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
