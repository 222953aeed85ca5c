"""Checkpoints as Python's users meet them: a mapping from names to tensors that can be read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import DTypeLike, NDArray

from weightcast.converters import graph as graphs
from weightcast.converters.files import FileStates, as_optional_path, as_path
from weightcast.converters.graph import Spec, TensorGraph
from weightcast.converters.graph import values as reading
from weightcast.converters.sources import (
    find_unwritten,
    open_graph,
    parse_size,
    source_files,
    unwritten_note,
)
from weightcast.errors import (
    CheckpointError,
    LayoutError,
    MissingPackageError,
    UnknownTensorError,
    visible,
)
from weightcast.text import closest, count, shown, size_text

if TYPE_CHECKING:
    import torch

# Of the table that a checkpoint shows: rows at its start, and at its end.
_FIRST_ROWS: Final = 8
_LAST_ROWS: Final = 2


@dataclass(frozen=True, slots=True, repr=False)
class Tensor:
    """A tensor of a checkpoint: [..., out, in], experts [experts, out, in]; nothing is loaded.

    `name` is that of the checkpoint's own, which is GGUF's, whatever name it was found by.

    An index reads what it asks for, and no other rows: `t[10:20]`, `t[-1]`, `t[:, :128]`, and of
    stacked experts `t[3, 10:20]`. It takes whole numbers, slices of any step and `...`; for masks
    and lists of numbers load the tensor first. `np.asarray(t)`, and numpy's functions, load it all.

    Values of weights are float32, whatever they are stored as: floats and blocks as they decode,
    times the factor that a GGUF file may have beside them, and int8 codes times their scales.
    Numbers that are no weights, such as indices in a GGUF file, have the dtype that they are stored
    in.

    Reading raises ChangedError if a file is not the one that was opened, or was written to since.

    >>> checkpoint = weightcast.open(path)
    >>> t = checkpoint["blk.0.attn_q.weight"]
    >>> t.shape, t.dtype
    ((256, 256), dtype('float32'))
    >>> t[10:20].shape
    (10, 256)
    """

    name: str
    _described: graphs.Tensor
    _opened: FileStates = field(compare=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """Give the sizes of the axes, the length of rows last."""
        return self._described.shape

    @property
    def ndim(self) -> int:
        """Count the axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Count the values."""
        return self._described.size

    @property
    def dtype(self) -> np.dtype[Any]:
        """Give the dtype of values that are read: float32 for weights."""
        return reading.dtype_of(self._described)

    @property
    def type(self) -> str:
        """Name what it is stored as: BF16, Q4_K, I8 x BF16[8] (codes, with 8 scales a row)."""
        return graphs.stored_as(self._described)

    @property
    def nbytes(self) -> int:
        """Count the bytes that it takes in its files, scales included; in memory it is more."""
        return graphs.stored_bytes(self._described)

    @property
    def bits_per_weight(self) -> float:
        """Give the bits that a value takes in the files, scales included; 0 without values."""
        return 8 * self.nbytes / self.size if self.size else 0.0

    @property
    def files(self) -> tuple[Path, ...]:
        """List the files that it lies in."""
        return graphs.stored_files(self._described)

    @contextmanager
    def _unchanged(self) -> Iterator[None]:
        """Raise ChangedError if a file changed before what is read meanwhile, or while it is."""
        files = self.files
        self._opened.check(files)
        try:
            yield
        except CheckpointError:
            self._opened.check(files)
            raise
        self._opened.check(files)

    def numpy(self, dtype: DTypeLike | None = None) -> NDArray[Any]:
        """Load all values as an array [..., out, in] of numpy.

        `dtype` is float32 by default, or float16, bfloat16 (of ml_dtypes) or float64; values beyond
        it become infinite. Reading takes some 100 MB of memory beside the array itself.

        Raises LayoutError for another dtype, CheckpointError if a file cannot be read.

        >>> checkpoint["blk.0.attn_norm.weight"].numpy().dtype
        dtype('float32')
        """
        wanted = reading.checked_dtype(self._described, dtype)
        with self._unchanged():
            return reading.load(self._described, wanted)

    def torch(self, dtype: torch.dtype | str | None = None) -> torch.Tensor:
        """Load all values as a tensor [..., out, in] of torch, in this machine's memory.

        `dtype` is float32 by default, or any of torch's floats, "bfloat16" by name too; for part of
        a tensor write `torch.from_numpy(t[10:20])`. Raises LayoutError for another dtype,
        MissingPackageError without torch.
        """
        try:
            import torch
        except ModuleNotFoundError:
            raise MissingPackageError(
                "torch is not installed: pip install 'weightcast[torch]', or use .numpy()"
            ) from None
        if dtype is None:
            return torch.from_numpy(self.numpy())
        wanted = _torch_dtype(self, dtype)
        made = torch.empty(self.shape, dtype=wanted)
        for index, values in self.chunks():
            made[index] = torch.from_numpy(values).to(wanted)
        return made

    def chunks(
        self, max_bytes: int | str = reading.CHUNK_BYTES
    ) -> Iterator[tuple[Any, NDArray[Any]]]:
        """Read all values in order, whole rows of at most `max_bytes` at a time, a row at least.

        `max_bytes` is a number of bytes, or text as "64M".

        Gives pairs of an index and the array that `t[index]` is, so that tensors of any size go
        through bounded memory. Raises RequestError for what is no size, CheckpointError if a file
        cannot be read.

        >>> sum(float(np.square(values).sum()) for _, values in t.chunks()) > 0
        True
        """
        return self._chunks(reading.chunks(self._described, parse_size(max_bytes)))

    def _chunks(
        self, pieces: Iterator[tuple[Any, NDArray[Any]]]
    ) -> Iterator[tuple[Any, NDArray[Any]]]:
        while True:
            with self._unchanged():
                piece = next(pieces, None)
            if piece is None:
                return
            yield piece

    def stored(self) -> dict[str, NDArray[Any]]:
        """Load what lies in the files, undecoded: the parts of the tensor by their names.

        Floats are "values" in their own dtype, [..., out, in]. GGUF's quantized types are "blocks",
        uint8 [..., out, bytes per row], as `weightcast.dequantize` takes them; where a factor lies
        beside the weights "factors" has it, float32 [1], or [experts]. int8 with scales has
        "codes", int8 [..., out, in], and "scales", float32 [..., out, groups]. Matrices of packed
        directories have the parts of their layout, such as "weight_packed" and "weight_scale".

        Raises LayoutError for what is not stored as one matrix, as the shares of ranks.

        >>> sorted(t.stored())
        ['codes', 'scales']
        """
        with self._unchanged():
            return reading.load_stored(self._described)

    def __getitem__(self, index: Any) -> Any:
        """Read some entries as an array of numpy; one value as a scalar.

        Raises IndexError for entries that are not there, TypeError for indices other than whole
        numbers, slices and `...`, CheckpointError if a file cannot be read.
        """
        selected = reading.select(self._described, index)
        with self._unchanged():
            return selected.load(self.dtype)[()]

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError(f"{visible(self.name)}: one value, without axes, has no length")
        return self.shape[0]

    def __iter__(self) -> Iterator[Any]:
        """Read the entries of the first axis, rows of a matrix, one after another."""
        if self.ndim == 2 and self.size:
            return (row for _, rows in self.chunks() for row in rows)
        return (self[n] for n in range(len(self)))

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError(f"{self.name} is read from files: it cannot be had without a copy")
        return self.numpy(dtype)

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (Tensor, self.files, self._opened, self.name, self._described)

    def __repr__(self) -> str:
        return f"<Tensor {shown(self.name)[1:-1]} {_columns(self)}>"


@dataclass(frozen=True, eq=False, repr=False)
class Checkpoint(Mapping[str, Tensor]):
    """The tensors of a checkpoint by name, in order: what `weightcast.open` gives.

    Names are GGUF's. A tensor is also found by any name that its family has for it, those of the
    source among them: "transformer/decoder_layer_0/router/w" in shards, or in directories
    "model.layers.0.moe_block.gate.weight", and single experts by their own names. Under any name it
    is [..., out, in]. GGUF files of other models have the names that are in the file.

    Opening reads names and shapes only. To go through a checkpoint of any size in bounded memory,
    take the tensors one by one, in chunks:

    >>> for name, tensor in checkpoint.items():
    ...     for index, values in tensor.chunks():
    ...         assert np.isfinite(values).all()

    No file stays open, so nothing has to be closed; `with` works all the same. Files must stay as
    they are: where one was replaced or written to, reading raises ChangedError, as does unpickling.
    `graph` is what weightcast itself works with.
    """

    graph: TensorGraph = field(repr=False)
    _opened: FileStates = field(repr=False)

    @property
    def path(self) -> Path:
        """Give the file or directory that was opened."""
        return Path(self.graph.source)

    @property
    def container(self) -> str:
        """Name what it was read from: "shards", "gguf", "safetensors" or "torch"."""
        return self.graph.container

    @property
    def family(self) -> str:
        """Name the family of the model, as "grok-1"; of another GGUF file its architecture."""
        return self.graph.family.name

    @property
    def spec(self) -> Spec:
        """Give the hyperparameters as attributes, such as `spec.num_layers`."""
        return self.graph.spec

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Give the hyperparameters as JSON values; of another model's GGUF file all metadata."""
        return dict(self.graph.spec.describe())

    @property
    def parameters(self) -> int:
        """Count the weights, each once."""
        return self.graph.parameters

    @property
    def nbytes(self) -> int:
        """Count the bytes that the tensors take in their files."""
        return sum(tensor.nbytes for tensor in self.values())

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """Say in lines what is odd about the source, such as shards that were never finished.

        A few samples of each shard are read for that.
        """
        self._opened.check()
        unwritten = unwritten_note(find_unwritten(self.graph))
        return self.graph.notes if unwritten is None else (unwritten, *self.graph.notes)

    def __getitem__(self, name: str) -> Tensor:
        """Find a tensor by name. Raises UnknownTensorError, a KeyError, if there is none."""
        if name in self.graph.tensors:
            return Tensor(name, self.graph.tensors[name], self._opened)
        if isinstance(name, str) and name in self._others:
            own, expert = self._others[name]
            tensor = self.graph.tensors[own]
            found = tensor if expert is None else graphs.take(tensor, expert)
            return Tensor(found.name, found, self._opened)
        raise UnknownTensorError(f"{self.path}: no tensor {shown(name)}{self._hint(name)}")

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (Checkpoint, None, self._opened, self.graph)

    def __iter__(self) -> Iterator[str]:
        return iter(self.graph.tensors)

    def __len__(self) -> int:
        return len(self.graph.tensors)

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *problem: object) -> None:
        """Do nothing: no file is held open."""

    def __repr__(self) -> str:
        rows = list(self.values())
        left = len(rows) - _FIRST_ROWS - _LAST_ROWS
        cut = rows if left < 2 else [*rows[:_FIRST_ROWS], *rows[-_LAST_ROWS:]]
        width = max((len(tensor.name) for tensor in cut), default=0)
        lines = [f"  {tensor.name:{width}}  {_columns(tensor)}" for tensor in cut]
        if left >= 2:
            lines.insert(_FIRST_ROWS, f"  ... {left:,} more ...")
        title = (
            f"<Checkpoint {self.path}: {self.family}, {count(len(self), 'tensor')}, "
            f"{self.parameters:,} parameters, {size_text(self.nbytes)}>"
        )
        return "\n".join(map(visible, [title, *lines]))

    @cached_property
    def _others(self) -> dict[str, tuple[str, int | None]]:
        """Map other names of tensors, and names of single experts, to the tensors' own."""
        return self.graph.other_names()

    def _hint(self, name: object) -> str:
        if not isinstance(name, str):
            return "; names are text"
        meant = closest(name, self) or closest(name, self._others)
        if meant is not None:
            return f"; did you mean {meant!r}?"
        return f"; there are {count(len(self), 'tensor')}, such as {next(iter(self), '')!r}"


def _torch_dtype(tensor: Tensor, given: object) -> torch.dtype:
    """Give the dtype of torch that is asked for. Raises LayoutError if values cannot have it."""
    import torch

    dtype = getattr(torch, given, None) if isinstance(given, str) else given
    if not isinstance(dtype, torch.dtype):
        raise LayoutError(f"{tensor.name}: {shown(given)} is not a dtype of torch")
    try:
        torch.zeros(1).to(dtype)  # of some packed ones torch makes nothing
        is_possible = tensor.dtype == np.float32 and dtype.is_floating_point
    except (RuntimeError, TypeError):
        is_possible = False
    if not is_possible:
        raise LayoutError(f"{tensor.name}: values are {tensor.dtype}, and cannot be {dtype}")
    return dtype


def _unpickled(
    kind: Callable[..., Any], files: Iterable[Path] | None, opened: FileStates, *parts: Any
) -> Any:
    """Make a tensor or checkpoint of its parts again. Raises ChangedError if its files changed."""
    opened.check(files)
    return kind(*parts, opened)


def _columns(tensor: Tensor) -> str:
    return f"{list(tensor.shape)}  {tensor.type}  {size_text(tensor.nbytes)}"


def open(path: str | os.PathLike[str], spec: str | os.PathLike[str] | None = None) -> Checkpoint:
    """Open a checkpoint as a mapping from names to tensors; no weights are read yet.

    `path` is a ckpt-0 directory or what holds one, a GGUF file (a split one by its first
    part, or by the name that all go by), a safetensors file or directory, a directory with
    PyTorch's .bin files, or a repository of these in a model hub's cache. `spec` is a JSON file of
    Grok-1's hyperparameters; without it they come from spec.json in or beside the shards, or else
    are those of the release.

    Raises CheckpointError, or a child of it, for what is no checkpoint or cannot be read.

    >>> checkpoint = weightcast.open(path)
    >>> len(checkpoint), "blk.0.attn_q.weight" in checkpoint
    (26, True)
    >>> rows = checkpoint["blk.0.attn_q.weight"][10:20]  # reads these ten rows
    >>> rows.shape, rows.dtype
    ((10, 256), dtype('float32'))
    """
    graph = open_graph(as_path(path, "path"), as_optional_path(spec, "spec"))
    return Checkpoint(graph, FileStates.of(source_files(graph)))
