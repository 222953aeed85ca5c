"""GGUF files drawn at random, as odd as the format allows and odder: all that reads them agrees."""

from __future__ import annotations

import json
import struct
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import weightcast
from tests import gguf_files
from tests.gguf_files import (
    BF16,
    F16,
    F32,
    F64,
    I8,
    I16,
    I32,
    I64,
    Q8_0,
    Part,
    string,
    strings,
    u32,
)
from weightcast.commands.text.graph import graph_lines, graph_values
from weightcast.converters.sources import open_to_inspect
from weightcast.errors import CheckpointError, visible
from weightcast.formats.gguf.layout import ggml_shape
from weightcast.formats.gguf.read import SPLIT_KEYS

ALIGNMENT = b"general.alignment"
Q4_K = 12
# ggml's number -> values and bytes of a block.
BLOCKS = {
    **{F32: (1, 4), F16: (1, 2), BF16: (1, 2), Q8_0: (32, 34), Q4_K: (256, 144)},
    **{I8: (1, 1), I16: (1, 2), I32: (1, 4), I64: (1, 8), F64: (1, 8)},
}
NUMPY = {F32: "<f4", F16: "<f2", I8: "i1", I16: "<i2", I32: "<i4", I64: "<i8", F64: "<f8"}
CHANGED = {"general.file_type", "general.quantization_version", "general.alignment"}


@dataclass(frozen=True)
class Drawn:
    """A file: metadata and tensors in order, the order of the data, and what else may differ."""

    metadata: list[tuple[bytes, bytes]]
    tensors: list[tuple[bytes, Part]]
    places: list[int]
    version: int
    alignment: int
    gap: int
    tail: bytes

    @property
    def is_valid(self) -> bool:
        keys, names = [key for key, _ in self.metadata], [name for name, _ in self.tensors]
        return (
            self.version in (2, 3)
            and len({*keys}) == len(keys)
            and len({*names}) == len(names) > 0
            and all(len(part.shape) <= 8 and _fits(part) for _, part in self.tensors)
            and self.alignment > 0
            and self.alignment & (self.alignment - 1) == 0
        )

    def write(self, path: Path) -> None:
        step = max(self.alignment, 1)
        starts, end = {}, 0
        for n in self.places:
            starts[n] = end
            end += -(-len(self.tensors[n][1].data) // step) * step + self.gap * step
        head = b"GGUF" + struct.pack("<IQQ", self.version, len(self.tensors), len(self.metadata))
        head += b"".join(gguf_files.text(key) + value for key, value in self.metadata)
        for n, (name, part) in enumerate(self.tensors):
            axes = struct.pack(f"<I{len(part.shape)}Q", len(part.shape), *reversed(part.shape))
            head += gguf_files.text(name) + axes + struct.pack("<IQ", part.kind, starts[n])
        raw = bytearray(head + bytes(-len(head) % step))
        start = len(raw)
        for n in self.places:
            raw += bytes(start + starts[n] - len(raw)) + self.tensors[n][1].data
        path.write_bytes(raw + self.tail)


def _fits(part: Part) -> bool:
    return (part.shape[-1] if part.shape else 1) % BLOCKS[part.kind][0] == 0


def _part(kind: int, shape: tuple[int, ...], seed: int) -> Part:
    """Small whole numbers, which are exact in every type of floats."""
    size = int(np.prod(shape, dtype=np.int64))
    values = np.random.default_rng(seed).integers(-8, 9, size)
    if kind == BF16:
        data = (values.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
    elif kind in NUMPY:
        data = values.astype(NUMPY[kind]).tobytes()
    else:
        elements, width = BLOCKS[kind]
        scales = struct.pack("<e", 0.5) if kind == Q8_0 else struct.pack("<ee", 0.5, 0)
        data = (scales + bytes(n % 8 for n in range(width - len(scales)))) * (size // elements)
    return Part(kind, shape, data)


NAMES = st.sampled_from(
    [b"blk.0.attn_q.weight", b"token_embd.weight", b"output.weight", b"logit_scale", b"scaled_fp8"]
) | st.binary(max_size=70).flatmap(lambda raw: st.sampled_from([raw, raw + b".weight"]))
# Of the axes of a tensor the last has the values of a row.
SHAPES = st.tuples(
    st.lists(st.sampled_from([0, 1, 1, 2, 3]), max_size=5),
    st.sampled_from([[], [0], [1], [32], [256]]),
).map(lambda drawn: (*drawn[0], *drawn[1]))
PARTS = st.builds(_part, st.sampled_from(sorted(BLOCKS)), SHAPES, st.integers(0, 99))
NUMBERS = st.one_of(
    *(
        st.binary(min_size=width, max_size=width).map(
            lambda raw, kind=kind: struct.pack("<I", kind) + raw
        )
        for kind, width in gguf_files.WIDTHS.items()
    )
)
ARRAYS = st.one_of(
    *(
        st.lists(st.binary(min_size=width, max_size=width), max_size=3).map(
            lambda items, kind=kind: gguf_files.array(kind, b"".join(items))
        )
        for kind, width in gguf_files.WIDTHS.items()
    )
)
TEXTS = st.binary(max_size=9)
VALUES = (
    NUMBERS | ARRAYS | TEXTS.map(string) | st.lists(TEXTS, max_size=3).map(lambda s: strings(*s))
)
# Keys that are looked up, whatever their type is, and others. split.* says how a file is cut.
KEYS = st.sampled_from(
    [
        b"general.architecture",
        b"general.name",
        b"general.type",
        b"general.file_type",
        b"general.quantization_version",
        b"tokenizer.ggml.tokens",
        b"tokenizer.ggml.model",
        b"llama.block_count",
        b"llama.attention.head_count_kv",
    ]
) | st.binary(max_size=12).filter(lambda key: key.decode(errors="ignore") not in SPLIT_KEYS)
ALIGNMENTS = st.sampled_from(["<IB", "<Ib", "<IH", "<Ih", "<II", "<Ii", "<IQ", "<Iq"])
KINDS = dict(zip("BbHhIiQq", (0, 1, 2, 3, 4, 5, 10, 11), strict=True))


@st.composite
def drawn_files(draw: st.DrawFn) -> Drawn:
    metadata = draw(st.lists(st.tuples(KEYS, VALUES), max_size=6))
    if draw(st.booleans()):
        metadata.append((b"general.architecture", string("llama")))
    if not draw(st.integers(0, 7)):  # else keys differ
        metadata = [*metadata, *metadata[:1]]
    else:
        metadata = [*dict(metadata).items()]
    alignment = draw(st.sampled_from([32, 32, 32, 1, 8, 64, 16, 48]))
    if alignment != 32 or draw(st.booleans()):
        form = draw(ALIGNMENTS)
        metadata.append((ALIGNMENT, struct.pack(form, KINDS[form[-1]], alignment)))
    tensors = draw(st.lists(st.tuples(NAMES, PARTS), min_size=draw(st.integers(0, 2)), max_size=5))
    if draw(st.integers(0, 7)):
        tensors = [*dict(tensors).items()]
    if draw(st.integers(0, 7)):
        tensors = [(name, part) for name, part in tensors if _fits(part)]
    return Drawn(
        metadata,
        tensors,
        draw(st.permutations(range(len(tensors)))),
        draw(st.sampled_from([3, 3, 3, 3, 2, 2, 2, 1])),
        alignment,
        draw(st.integers(0, 1)),
        draw(st.binary(max_size=3)),
    )


def _refusal(call: Callable[[], Any]) -> str | None:
    """Give the one line of a refusal; None if there is none."""
    try:
        call()
    except CheckpointError as problem:
        return str(problem)
    return None


def _inspect(path: Path) -> None:
    graph, notes = open_to_inspect(path, None)
    assert all(visible(line).isprintable() for line in graph_lines(graph, notes, all_tensors=True))
    list(graph_lines(graph, notes, all_tensors=False))
    json.dumps(graph_values(graph, notes), allow_nan=False)


def _values(path: Path) -> dict[str, np.ndarray]:
    with weightcast.open(path) as checkpoint:
        assert repr(checkpoint).replace("\n", "").isprintable()
        return {name: tensor.numpy() for name, tensor in checkpoint.items()}


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(drawn_files())
def test_all_that_reads_a_file_agrees(drawn: Drawn) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "m.gguf"
        drawn.write(source)
        outs = [folder / kind / f"o-{kind}.gguf" for kind in ("Q8_0", "BF16", "F32")]
        for out in outs:
            out.parent.mkdir()
        options = {"allow_requantize": True, "jobs": 1}
        refusals = {
            _refusal(lambda: _inspect(source)),
            _refusal(lambda: weightcast.open(source)),
            _refusal(lambda: weightcast.plan(source, *outs, **options)),
            _refusal(lambda: weightcast.convert(source, outs[0], **options)),
            _refusal(lambda: weightcast.convert(source, *outs[1:], split=64, **options)),
            _refusal(lambda: weightcast.compare(source, source)),
        }
        [refusal] = refusals
        assert (refusal is None) == drawn.is_valid
        if refusal is None:
            _check_outputs(drawn, source, [sorted(out.parent.iterdir()) for out in outs])
        else:
            assert refusal.startswith(f"{source}")
            assert refusal.isprintable()
            assert not any(any(out.parent.iterdir()) for out in outs)


def _check_outputs(drawn: Drawn, source: Path, outputs: list[list[Path]]) -> None:
    own = _values(source)
    for files in outputs:
        made = _read(files)
        _check_copied(drawn, made)
        found = weightcast.compare(source, files[0])
        assert found.problem is None
        json.dumps(found.describe(), allow_nan=False)
        checked = weightcast.verify(files[0], source)
        assert checked.is_good, checked.problems
        for name, values in _values(files[0]).items():
            assert values.shape == ggml_shape(own[name].shape)
            if made.tensors[name].kind in (F32, F16, BF16) or own[name].dtype != np.float32:
                np.testing.assert_array_equal(values, own[name].reshape(values.shape))


def _read(paths: list[Path]) -> gguf_files.File:
    """Read a file, or all parts of one."""
    read = [gguf_files.read(path) for path in paths]
    tensors = {name: part for file in read for name, part in file.tensors.items()}
    assert len(tensors) == sum(len(file.tensors) for file in read)
    return gguf_files.File(read[0].metadata, tensors, read[0].data_start)


def _check_copied(drawn: Drawn, made: gguf_files.File) -> None:
    for key, raw in drawn.metadata:
        name = key.decode(errors="surrogateescape")
        if name not in CHANGED:
            assert made.metadata[name] == raw
    if any(key == ALIGNMENT for key, _ in drawn.metadata):
        assert made.metadata[ALIGNMENT.decode()] == u32(drawn.alignment)
    assert len(made.tensors) == len(drawn.tensors)
    for raw_name, part in drawn.tensors:
        found = made.tensors[raw_name.decode(errors="surrogateescape")]
        assert found.shape == ggml_shape(part.shape)
        if found.kind == part.kind:
            assert found.data == part.data
