"""Two checkpoints side by side: the tensors that both have, and what one differs by from the other.

A is what errors are measured against, B what is measured: either can be anything that is read. Of
each matrix the same rows of both come into memory, a slab at a time, and workers measure pieces.
"""

from __future__ import annotations

import mmap
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from math import ceil, lcm
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from weightcast.converters.describe import stored_as, stored_bytes
from weightcast.converters.devices import as_matrix
from weightcast.converters.execute import (
    MAX_PIECES_BYTES,
    MAX_WORKERS,
    PIECE_BYTES,
    slab_buffer,
)
from weightcast.converters.graph import Tensor, View, first_array, matrices
from weightcast.converters.grok1 import LAYER_ROLES, Place, places
from weightcast.converters.grok1_gguf import ARCHITECTURE
from weightcast.converters.grok1_spec import Grok1Spec
from weightcast.converters.measured import Collector, MatrixErrors
from weightcast.converters.plan import SLAB_BYTES, whole
from weightcast.converters.slabs import Slab, check_readable, read_slab, rows_per_slab, slab_bytes
from weightcast.converters.sources import AnyGraph, kind_of, open_carried, open_grok1
from weightcast.formats.packed_parts import NUMPY_DTYPES
from weightcast.formats.stored import read_into
from weightcast.quant.error import Baseline, Errors
from weightcast.quant.error_library import measure_matrix
from weightcast.quant.errors import CheckpointError, LayoutError, RequestError
from weightcast.quant.library import Matrix, SourceValueError, quantize_matrix
from weightcast.quant.types import F32, TYPES, QuantType

Shape = tuple[int, ...]
Sample = int | float | None
# Rows of a sample come in runs: the cache lines of int8 columns, 64 of them side by side.
_RUN_ROWS: Final = 64


@dataclass(frozen=True, slots=True)
class Pair:
    """A tensor [..., out, in] that both have: its name in B and in GGUF, and how B stores it.

    `type` is in the words of `inspect`; `nbytes` counts B's scales and other parts too. Of experts
    that are tensors of their own there is one pair, named experts.*.
    """

    name: str
    gguf: str
    source: Tensor
    output: Tensor
    type: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class Pairing:
    """Tensors in the order of B, and those without a counterpart.

    `plain` are numbers that no kernel reads, whole ones and float64, stored alike in both; where
    they are not stored alike, the names are in `unlike`.
    """

    pairs: tuple[Pair, ...]
    only_source: tuple[str, ...]
    only_output: tuple[str, ...]
    reshaped: tuple[tuple[str, Shape, Shape], ...]
    plain: tuple[Pair, ...] = ()
    unlike: tuple[str, ...] = ()


def open_pair(
    a: Path, b: Path, spec_a: Path | None = None, spec_b: Path | None = None
) -> tuple[AnyGraph, AnyGraph]:
    """Open two checkpoints so that their tensors can be paired; no weights are read.

    Both as Grok-1 where both are; GGUF files of whatever else under their own names. A GGUF file
    that is a Grok, but not a whole Grok-1, also goes with a Grok-1. Raises CheckpointError.
    """
    first, second = _open(a, spec_a), _open(b, spec_b)
    if _is_grok1(first) == _is_grok1(second):
        return first, second
    own = [
        open_carried(path) if spec is None else None for path, spec in ((a, spec_a), (b, spec_b))
    ]
    if own[0] is not None and own[1] is not None:
        return own[0], own[1]
    other, grok1 = (second, first) if _is_grok1(first) else (first, second)
    if other.family != ARCHITECTURE:
        raise LayoutError(
            f"{other.source} is a GGUF file of {other.family} and {grok1.source} a Grok-1: only "
            "GGUF files of one model, or checkpoints of Grok-1, can be compared"
        )
    return first, second


def _open(path: Path, spec: Path | None) -> AnyGraph:
    try:
        return open_grok1(path, spec)
    except CheckpointError:
        carried = open_carried(path) if spec is None else None
        if carried is None:
            raise
        return carried


def _is_grok1(graph: AnyGraph) -> bool:
    return isinstance(graph.spec, Grok1Spec)


def pair_tensors(source: AnyGraph, output: AnyGraph) -> Pairing:
    """Pair tensors by name, those of a Grok-1 by their names in GGUF."""
    of_source, of_output = _by_gguf_name(source), _by_gguf_name(output)
    pairs, plain, unlike, reshaped = [], [], [], []
    for gguf, (name, tensor) in of_output.items():
        if gguf not in of_source:
            continue
        _, original = of_source[gguf]
        if original.shape != tensor.shape:
            reshaped.append((name, original.shape, tensor.shape))
            continue
        pair = Pair(name, gguf, original, tensor, stored_as(tensor), stored_bytes(tensor))
        if _is_weights(original) and _is_weights(tensor):
            pairs.append(pair)
        elif original.dtype == tensor.dtype:
            plain.append(pair)
        else:
            unlike.append(name)
    return Pairing(
        tuple(pairs),
        tuple(name for gguf, (name, _) in of_source.items() if gguf not in of_output),
        tuple(name for gguf, (name, _) in of_output.items() if gguf not in of_source),
        tuple(reshaped),
        tuple(plain),
        tuple(unlike),
    )


def _by_gguf_name(graph: AnyGraph) -> dict[str, tuple[str, Tensor]]:
    """Find the tensors with their names in the graph's own format."""
    if not isinstance(graph.spec, Grok1Spec):
        is_grok = graph.family == ARCHITECTURE
        return {_today(name) if is_grok else name: (name, t) for name, t in graph.items()}
    is_directory = kind_of(Path(graph.source)) == "safetensors"
    return {
        place.gguf: (_in_directory(place) if is_directory else place.gguf, graph[place.name])
        for place in places(graph.spec.num_layers)
    }


def _today(name: str) -> str:
    """The name that llama.cpp gives a tensor of Grok-1 now, if it gave it another one before."""
    for role in LAYER_ROLES:
        if role.old_gguf is not None and name.endswith(f".{role.old_gguf}.weight"):
            return name.replace(role.old_gguf, role.gguf)
    return name


def _in_directory(place: Place) -> str:
    return place.hugging_face().replace("experts.None", "experts.*")


def _is_weights(tensor: Tensor) -> bool:
    try:
        check_readable(tensor)
    except LayoutError:
        return False
    return True


def has_same_bytes(pair: Pair) -> bool:
    """Compare the stored bytes of numbers that no kernel reads."""
    one, other = first_array(pair.source), first_array(pair.output)
    if one.nbytes != other.nbytes:
        return False
    with one.path.open("rb") as a, other.path.open("rb") as b:
        for start in range(0, one.nbytes, PIECE_BYTES):
            pieces = [bytearray(min(PIECE_BYTES, one.nbytes - start)) for _ in range(2)]
            for file, array, piece in zip((a, b), (one, other), pieces, strict=True):
                read_into(file.fileno(), array.path, array.offset + start, memoryview(piece))
            if pieces[0] != pieces[1]:
                return False
    return True


# Measuring.


@dataclass(frozen=True, slots=True)
class _Item:
    """Rows [out0, out1) of a matrix in both; `row0` is the first among those that are measured."""

    key: tuple[int, int]
    source: View
    output: View
    out0: int
    out1: int
    row0: int

    @property
    def read_bytes(self) -> int:
        return sum(_read_bytes(v, self.out0, self.out1) for v in (self.source, self.output))


def _read_bytes(view: View, out0: int, out1: int) -> int:
    packed, n_out = view.array.packed, view.shape[0]
    if packed is None:
        return slab_bytes(view, out1 - out0)
    return view.array.nbytes * out1 // n_out - view.array.nbytes * out0 // n_out


@dataclass(slots=True)
class _Slot:
    """Buffers for the rows of both, and the pieces that are still measured of them."""

    source: mmap.mmap
    output: mmap.mmap
    pieces: list[Future[None]] = field(default_factory=list)

    def wait(self) -> None:
        for piece in self.pieces:
            piece.result()
        self.pieces.clear()


def chosen_rows(n_out: int, sample: Sample, multiple: int = 1) -> list[tuple[int, int]]:
    """Choose rows of a matrix: all, or about `sample` of them (a float: that share of them).

    A sample is runs [row0, row1) of 64 rows or a few more, the first and the last row among them
    where there are several, evenly spread, the same each time. Runs start at multiples.
    """
    if sample is None:
        return [(0, n_out)]
    wanted = sample if isinstance(sample, int) else ceil(sample * n_out)
    run = lcm(_RUN_ROWS, multiple)
    n_runs, n_chosen = -(-n_out // run), max(1, -(-wanted // run))
    if n_chosen >= n_runs:
        return [(0, n_out)]
    if n_chosen == 1:
        chosen = [n_runs // 2]
    else:
        chosen = [n * (n_runs - 1) // (n_chosen - 1) for n in range(n_chosen)]
    return [(n * run, min((n + 1) * run, n_out)) for n in chosen]


def _row_multiple(*views: View) -> int:
    """Rows that are read together in a packed matrix."""
    return lcm(*(1 if v.array.packed is None else v.array.packed.row_multiple for v in views))


def _items(pairs: Sequence[Pair], sample: Sample) -> Iterator[_Item]:
    for number, pair in enumerate(pairs):
        views = zip(matrices(pair.source), matrices(pair.output), strict=True)
        for expert, (source, output) in enumerate(views):
            multiple = _row_multiple(source, output)
            most = whole(min(rows_per_slab(v, SLAB_BYTES) for v in (source, output)), multiple)
            done = 0
            for row0, row1 in chosen_rows(source.shape[0], sample, multiple):
                # Slabs of one size, so that none is only a few rows.
                share = -(-(row1 - row0) // -(-(row1 - row0) // most))
                step = -(-share // multiple) * multiple
                for out0 in range(row0, row1, step):
                    out1 = min(out0 + step, row1)
                    yield _Item((number, expert), source, output, out0, out1, done)
                    done += out1 - out0


def bytes_to_read(pairs: Sequence[Pair], sample: Sample = None) -> int:
    """How much `measure_pairs` reads, and tells of as progress."""
    return sum(item.read_bytes for item in _items(pairs, sample))


def measure_pairs(
    pairs: Sequence[Pair],
    baseline: Baseline,
    *,
    jobs: int,
    sample: Sample = None,
    on_progress: Callable[[int], None] = lambda nbytes: None,
) -> dict[Pair, tuple[MatrixErrors, ...]]:
    """Measure the errors of B against A: of each pair those of its matrices, experts in order.

    The numbers are the same for any number of workers (`jobs`). `sample` is `chosen_rows`'s;
    places are those in the whole matrix all the same. `on_progress` gets bytes of both that were
    finished, from any thread. Holds two slabs of each side. Raises CheckpointError.
    """
    if type(jobs) is not int or not 1 <= jobs <= MAX_WORKERS:
        raise RequestError(f"{jobs} jobs; 1 to {MAX_WORKERS} are possible")
    items = list(_items(pairs, sample))
    collector: Collector[tuple[int, int]] = Collector()
    sizes = [
        max((slab_bytes(getattr(i, side), i.out1 - i.out0) for i in items), default=0)
        for side in ("source", "output")
    ]
    slots = [_Slot(slab_buffer(sizes[0]), slab_buffer(sizes[1])) for _ in range(2)]
    with ThreadPoolExecutor(jobs) as pool:
        try:
            for number, item in enumerate(items):
                slot = slots[number % 2]
                slot.wait()
                slot.pieces += _hand_out(pool, jobs, item, slot, baseline, collector, on_progress)
            for slot in slots:
                slot.wait()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    found = collector.finished()
    by_pair: dict[Pair, list[MatrixErrors]] = defaultdict(list)
    for number, expert in sorted(found):
        pair = pairs[number]
        views = matrices(pair.source)[expert], matrices(pair.output)[expert]
        runs = chosen_rows(views[0].shape[0], sample, _row_multiple(*views))
        by_pair[pair].append(_in_place(found[number, expert], runs))
    return {pair: tuple(errors) for pair, errors in by_pair.items()}


def _hand_out(
    pool: ThreadPoolExecutor,
    jobs: int,
    item: _Item,
    slot: _Slot,
    baseline: Baseline,
    collector: Collector[tuple[int, int]],
    on_progress: Callable[[int], None],
) -> Iterator[Future[None]]:
    """Read the rows of an item from both and give them to the workers in pieces."""
    source = _read(item.source, item.out0, item.out1, memoryview(slot.source))
    output = _read(item.output, item.out0, item.out1, memoryview(slot.output))

    def measure(row0: int, row1: int, nbytes: int) -> None:
        errors = _measure(source, output, row0, row1, baseline)
        collector.add(item.key, item.row0 + row0, errors)
        on_progress(nbytes)

    limit = min(PIECE_BYTES, MAX_PIECES_BYTES // jobs) // (4 * item.source.shape[1])
    rows = min(max(1, limit), max(-(-source.rows // jobs), _RUN_ROWS))
    rows = whole(rows, _RUN_ROWS) if rows >= _RUN_ROWS else rows
    for row0 in range(0, source.rows, rows):
        row1 = min(row0 + rows, source.rows)
        share = item.read_bytes * row1 // source.rows - item.read_bytes * row0 // source.rows
        try:
            yield pool.submit(measure, row0, row1, share)
        except RuntimeError as problem:  # a limit of the system on threads
            raise CheckpointError(
                f"cannot start {jobs} workers ({problem}); use fewer --jobs"
            ) from None


def _read(view: View, out0: int, out1: int, buffer: memoryview) -> Slab:
    try:
        return read_slab(view, out0, out1, buffer)
    except OSError as problem:
        raise CheckpointError(f"{view.array.path}: cannot be read: {problem.strerror}") from None


def _measure(source: Slab, output: Slab, row0: int, row1: int, baseline: Baseline) -> Errors:
    """Measure rows [row0, row1) of two slabs; whatever is stored in rows goes in as it is."""
    matrix = as_matrix(source.piece(row0, row1))
    view = output.view
    stored: tuple[QuantType, NDArray[np.uint8]]
    is_row_major = view.is_blocked or view.strides == (view.shape[1], 1)
    if output.decode is None and output.scales is None and is_row_major:
        stored = TYPES[view.dtype], output.stored_rows(row0, row1)
    else:
        stored = F32, _floats(output, row0, row1).reshape(-1).view(np.uint8)
    return measure_matrix(matrix, *stored, baseline=baseline)


def rows_float32(view: View, out0: int, out1: int) -> NDArray[np.float32]:
    """Read rows [out0, out1) of a matrix as float32 [rows, in], finite or not.

    Of a packed matrix `out0` is a multiple of the rows that are packed together.
    """
    buffer = memoryview(slab_buffer(slab_bytes(view, out1 - out0)))
    return _floats(_read(view, out0, out1, buffer), 0, out1 - out0)


def _floats(slab: Slab, row0: int, row1: int) -> NDArray[np.float32]:
    matrix = as_matrix(slab.piece(row0, row1))
    values = np.empty((matrix.n_out, matrix.n_in), np.float32)
    try:
        quantize_matrix(matrix, F32, values.reshape(-1).view(np.uint8))
    except SourceValueError:  # NaN and infinity are values too
        return _any_floats(matrix)
    return values


def _any_floats(matrix: Matrix) -> NDArray[np.float32]:
    data = matrix.data.view(NUMPY_DTYPES[matrix.dtype])[matrix.start :]
    strides = [stride * data.itemsize for stride in (matrix.stride_out, matrix.stride_in)]
    shape = (matrix.n_out, matrix.n_in)
    with np.errstate(all="ignore"):
        values = np.lib.stride_tricks.as_strided(data, shape, strides).astype(np.float32)
        if matrix.scales is not None:
            repeats = matrix.n_in // matrix.scales.shape[0]
            values *= np.repeat(matrix.scales.T, repeats, axis=1)
    return values


def _in_place(errors: MatrixErrors, runs: Sequence[tuple[int, int]]) -> MatrixErrors:
    """Turn rows counted through a sample into rows of the matrix."""
    rows = np.concatenate([np.arange(*run) for run in runs])
    total = errors.total
    if total.largest_square > 0:
        total = replace(total, largest_row=rows[total.largest_row])
    return MatrixErrors(total, tuple((int(rows[row]), size) for row, size in errors.worst))
