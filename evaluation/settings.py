"""How models are run: the settings, the machine that they make, and where states are kept."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import xxhash
from numpy.typing import NDArray

from weightcast.converters.engine.progress import OnProgress, Phase, Progress, ignore_progress
from weightcast.converters.files import FileStates, weightcast_version
from weightcast.converters.graph import TensorGraph, stored_bytes
from weightcast.converters.plan import choose_workers
from weightcast.converters.sources import source_files
from weightcast.errors import ChangedError, FormatError, LayoutError, OutputError
from weightcast.evaluation.arithmetic import FLOAT32, Arithmetic, arithmetic
from weightcast.evaluation.memory import Activations
from weightcast.evaluation.networks import Ids, Machine, Network, network
from weightcast.evaluation.saved import SavedStates
from weightcast.evaluation.weights import Weights
from weightcast.evaluation.workers import BLOCK_TOKENS, pool

# Tokens that go through a feed-forward layer at once: enough that decoding its weights is nothing.
_GROUP_TOKENS: Final = 1 << 14


@dataclass(frozen=True, slots=True)
class Settings:
    """How models are run.

    `precision` is what products round their inputs to, "float32" or "bfloat16"; `device` is "cpu"
    or one of torch, as "cuda"; `memory` is how many bytes activations may take, beyond which they
    lie in a file in `folder`; None: all that they need. Neither memory nor `jobs` changes results.
    """

    precision: str = FLOAT32
    device: str = "cpu"
    jobs: int | None = None
    memory: int | None = None
    folder: Path | None = None


def check_settings(settings: Settings) -> Arithmetic:
    """Look whether models can be run so, and give the operations that run them.

    Raises RequestError, MissingPackageError, DeviceError and OutputError.
    """
    if settings.folder is not None and not settings.folder.is_dir():
        raise OutputError(f"{settings.folder}: no such directory; create it first")
    return arithmetic(settings.device, settings.precision)


@contextmanager
def machine(settings: Settings) -> Iterator[Machine]:
    """Start workers. Raises what `check_settings` raises."""
    ops = check_settings(settings)
    jobs = choose_workers(settings.jobs).count
    if settings.jobs is None:
        jobs -= 1  # nobody waits to write, so one worker for each core is enough
    folder = settings.folder or Path(tempfile.gettempdir())
    with pool(jobs if settings.device == "cpu" else 1) as workers:
        yield Machine(ops, workers, Activations(settings.memory, folder), _group(settings.memory))


def _group(memory: int | None) -> int:
    """Choose how many tokens go through a feed-forward layer at once: whole blocks."""
    if memory is None:
        return _GROUP_TOKENS
    # A hidden layer as wide as Grok-1's takes 128 KiB a token; it may have a third of the memory.
    return max(
        BLOCK_TOKENS, min(_GROUP_TOKENS, memory // 3 // (1 << 17) // BLOCK_TOKENS * BLOCK_TOKENS)
    )


def networks_of(graphs: Sequence[TensorGraph], run_by: Machine) -> list[Network]:
    """Make the networks of graphs. Raises LayoutError for what cannot be run."""
    return [network(Weights(graph), run_by) for graph in graphs]


def fingerprint(
    graphs: Sequence[TensorGraph], tokens: Ids, settings: Settings, **others: Any
) -> dict[str, Any]:
    """Give what the states of a run depend on, as JSON values."""
    return {
        "version": weightcast_version(),
        "arithmetic": type(check_settings(settings)).__name__,
        "precision": settings.precision,
        "device": settings.device,
        "tokens": digest(tokens),
        "shape": list(tokens.shape),
        "sources": [
            [
                [path.name, os.stat(path).st_size, os.stat(path).st_mtime_ns]
                for path in sorted(files)
            ]
            for files in map(source_files, graphs)
        ],
        # What a specification of one's own says is not in those.
        "specs": [graph.spec.describe() for graph in graphs],
        **others,
    }


def digest(values: NDArray[Any]) -> str:
    """Give what tells values from others: the XXH3 of their bytes."""
    return xxhash.xxh3_128_hexdigest(np.ascontiguousarray(values).tobytes())


@contextmanager
def saved_beside(
    output: Path | None, said: dict[str, Any], *, resume: bool = True
) -> Iterator[SavedStates | None]:
    """Keep the states of a run beside its output, and other runs away; None without an output.

    They are deleted when the output is there, and when nothing can be made of a source that is
    wrong. Raises TakenError if another run has the output, OutputError.
    """
    if output is None or (output.exists() and not output.is_file()):  # as /dev/null or a pipe
        yield None
        return
    with SavedStates(output, said, resume).locked() as saved:
        try:
            yield saved
        except (ChangedError, FormatError, LayoutError):
            saved.delete()
            raise
        saved.delete()


def unchanged(graphs: Sequence[TensorGraph]) -> Callable[[], None]:
    """Look at the files of graphs, and give what raises ChangedError if they were changed since."""
    return FileStates.of({path for graph in graphs for path in source_files(graph)}).check


def layer_progress(
    graphs: Sequence[TensorGraph], phase: Phase, on_progress: OnProgress = ignore_progress
) -> Callable[[int, int], None]:
    """Tell of layers that are done by the bytes of their weights."""
    total = sum(stored_bytes(tensor) for graph in graphs for tensor in graph.tensors.values())

    def tell(done: int, of: int) -> None:
        on_progress(Progress(phase, total * done // max(1, of), total))

    return tell
