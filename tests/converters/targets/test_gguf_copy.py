"""GGUF to GGUF, any architecture: metadata as they are, types as the recipe says.

Files are written and taken apart by hand (gguf_files); values are checked against gguf-py's.
"""

from __future__ import annotations

import ast
import json
import re
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import weightcast
from tests import gguf_files as files
from tests.gguf_files import Part, floats, read, string, strings, u16, u32, write
from weightcast.converters.convert import prepare
from weightcast.converters.families import generic
from weightcast.converters.plan import budget as memory
from weightcast.converters.sources import open_graph
from weightcast.converters.sources.options import ConvertOptions
from weightcast.errors import CheckpointError, FormatError, LayoutError, OutputError, RequestError
from weightcast.formats.gguf import layout as gguf_layout

# Every type of metadata, with what a decoding and encoding again would lose.
METADATA = {
    "general.architecture": string("llama"),
    "tokenizer.chat_template": string("{{ a }}\n\u2581\U0001f600"),
    "uint8": struct.pack("<IB", 0, 255),
    "int8": struct.pack("<Ib", 1, -128),
    "uint16": struct.pack("<IH", 2, 65535),
    "int16": struct.pack("<Ih", 3, -32768),
    "general.file_type": struct.pack("<Ii", 5, 1),
    "uint32": u32((1 << 32) - 1),
    "int32": struct.pack("<Ii", 5, -1),
    "float32": struct.pack("<If", 6, 1 / 3),
    "a signalling NaN": struct.pack("<II", 6, 0x7FA00001),
    "true": struct.pack("<I?", 7, True),
    "another true": struct.pack("<IB", 7, 2),
    "general.quantization_version": u32(1),
    "uint64": struct.pack("<IQ", 10, (1 << 64) - 1),
    "int64": struct.pack("<Iq", 11, -(1 << 63)),
    "float64": struct.pack("<Id", 12, -1e300),
    "no UTF-8": string(b"\xff\xfe\x00a"),
    "empty": string(""),
    "tokenizer.ggml.tokens": strings("a", "", b"\xc3", "\u2581b", b"\x00"),
    "no strings": strings(),
    "no numbers": files.array(4, b""),
    "uint8s": files.array(0, bytes(range(256))),
    "bools": files.array(7, b"\0\1\2"),
    "float32s": files.array(6, struct.pack("<4I", 0x7FA00001, 0x7F800000, 0x80000000, 1)),
    "uint64s": files.array(10, struct.pack("<2Q", 0, (1 << 64) - 1)),
    "int64s": files.array(11, struct.pack("<2q", -1, 1)),
    "float64s": files.array(12, struct.pack("<2d", 0.1, 1e-320)),
    "schl\u00fcssel": u32(7),
}
CHANGED = {"general.file_type", "general.quantization_version"}


def normal(seed: int, *shape: int) -> NDArray[np.float32]:
    """Values that are exact in bfloat16."""
    x = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return (x.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def dense() -> dict[str, Part]:
    """Tensors of a llama, in an order of their own."""
    return {
        "output.weight": floats(normal(0, 96, 64)),
        "blk.1.attn_q.weight": files.bf16(normal(1, 64, 64)),
        "blk.1.attn_norm.weight": floats(normal(2, 64)),
        "blk.0.ffn_down.weight": floats(normal(3, 64, 128).astype(np.float16)),
        "rope_freqs.weight": floats(np.array([1, np.inf, np.nan, -0.0], np.float32)),
        "blk.0.attn_q.bias": floats(normal(4, 64).astype(np.float16)),
        "token_embd.weight": files.bf16(normal(5, 96, 64)),
    }


def mixture() -> dict[str, Part]:
    """Tensors of a model with experts."""
    return {
        "blk.0.ffn_gate_inp.weight": floats(normal(0, 4, 64)),
        "blk.0.ffn_gate_exps.weight": files.bf16(normal(1, 4, 96, 64)),
        "blk.0.ffn_down_exps.weight": floats(normal(2, 4, 64, 96)),
        "blk.0.ffn_up_exps.weight": floats(normal(3, 4, 96, 64).astype(np.float16)),
    }


def unknown() -> dict[str, Part]:
    """Names and shapes that no table has: a vision projector's, and numbers that are no weights."""
    return {
        "v.patch_embd.weight": floats(normal(0, 8, 3, 14, 14)),
        "mm.2.weight": floats(normal(1, 32, 64)),
        "some.thing": floats(normal(2, 4, 64)),
        "four.axes.weight": floats(normal(3, 2, 3, 4, 32)),
        "odd.weight": floats(normal(4, 3, 33)),
        "ids.weight": Part(files.I32, (2, 32), bytes(range(256))),
        "long.weight": Part(files.I64, (1, 32), bytes(range(256))),
        "short": Part(files.I16, (32,), bytes(range(64))),
        "bytes": Part(files.I8, (2, 32), bytes(range(64))),
        "double.weight": Part(files.F64, (2, 16), normal(5, 2, 16).astype(np.float64).tobytes()),
    }


MODELS: dict[str, tuple[str, Callable[[], dict[str, Part]]]] = {
    "dense": ("llama", dense),
    "experts": ("mixtral-like", mixture),
    "projector": ("clip", unknown),
}
# What stays in every output; all others are quantized.
KEPT = {
    "blk.1.attn_norm.weight",
    "rope_freqs.weight",
    "blk.0.attn_q.bias",
    "blk.0.ffn_gate_inp.weight",
    "v.patch_embd.weight",
    "some.thing",
    "ids.weight",
    "long.weight",
    "short",
    "bytes",
    "double.weight",
}
STORED = {files.F32: np.float32, files.F16: np.float16}


def values(part: Part) -> NDArray[np.float32]:
    if part.kind == files.BF16:
        raw = np.frombuffer(part.data, np.uint16).astype(np.uint32) << 16
        return raw.view(np.float32).reshape(part.shape)
    return np.frombuffer(part.data, STORED[part.kind]).astype(np.float32).reshape(part.shape)


def write_model(path: Path, name: str = "dense", alignment: int = 32) -> dict[str, Part]:
    architecture, tensors = MODELS[name]
    metadata = {**METADATA, "general.architecture": string(architecture)}
    if alignment != 32:
        metadata["general.alignment"] = u32(alignment)
    made = tensors()
    write(path, metadata, made, alignment)
    return made


@pytest.mark.parametrize("type_name", ["F32", "F16", "BF16", "Q8_0"])
@pytest.mark.parametrize("name", MODELS)
def test_any_model(name: str, type_name: str, tmp_path: Path) -> None:
    source = write_model(tmp_path / "m.gguf", name)
    output = tmp_path / f"m-{type_name}.gguf"
    summary = weightcast.convert(tmp_path / "m.gguf", output, keep_order=True)
    made = read(output)
    assert list(made.tensors) == list(source)
    wanted = GGMLQuantizationType[type_name]
    for key, part in source.items():
        found = made.tensors[key]
        assert found.shape == part.shape
        if key in KEPT:
            assert found == part
            continue
        kind = GGMLQuantizationType.F16 if key == "odd.weight" and type_name == "Q8_0" else wanted
        assert found.kind == kind
        if kind == part.kind:
            assert found.data == part.data
        else:
            assert found.data == quants.quantize(values(part), kind).tobytes()
    odd = [n for n in summary.plan.outputs[0].notes if "rows of 33 do not fill Q8_0" in n]
    assert len(odd) == (name == "projector" and type_name == "Q8_0")


@pytest.mark.parametrize(("type_name", "file_type"), [("Q8_0", 7), ("F32", 0), ("Q4_K_M", 15)])
def test_metadata_is_carried(type_name: str, file_type: int, tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", METADATA, {"a.weight": floats(normal(0, 2, 256))})
    weightcast.convert(tmp_path / "m.gguf", tmp_path / f"o-{type_name}.gguf", keep_order=True)
    made = read(tmp_path / f"o-{type_name}.gguf").metadata
    assert list(made) == list(METADATA)
    weightcast.convert(tmp_path / "m.gguf", tmp_path / f"p-{type_name}.gguf")
    moved = read(tmp_path / f"p-{type_name}.gguf").metadata
    assert moved == made
    kept = [key for key in METADATA if key not in CHANGED]
    assert list(moved) == [*kept, "general.quantization_version", "general.file_type"]
    for key, raw in METADATA.items():
        if key not in CHANGED:
            assert made[key] == raw, key
    assert made["general.file_type"] == u32(file_type)
    assert made["general.quantization_version"] == u32(2)


def test_tensors_are_in_the_order_of_llama_quantize(tmp_path: Path) -> None:
    """By layer, then by name; and axes of 1 before the others are not written."""
    names = ["token_embd.weight", "blk.10.b", "v.blk.0.a", "blk.2.b", "output", "blk.2.a", "A"]
    tensors = {name: floats(normal(n, 1, 1, 32)) for n, name in enumerate(names)}
    write(tmp_path / "m.gguf", METADATA, tensors)
    weightcast.convert(tmp_path / "m.gguf", tmp_path / "o-F16.gguf")
    made = read(tmp_path / "o-F16.gguf").tensors
    ordered = ["A", "output", "token_embd.weight", "v.blk.0.a", "blk.2.a", "blk.2.b", "blk.10.b"]
    assert list(made) == ordered
    assert {part.shape for part in made.values()} == {(32,)}
    assert all(made[name].data == tensors[name].data for name in names if "weight" not in name)
    assert weightcast.verify(tmp_path / "o-F16.gguf", tmp_path / "m.gguf").is_good
    assert weightcast.compare(tmp_path / "m.gguf", tmp_path / "o-F16.gguf").problem is None


def test_metadata_that_was_not_there_is_added(tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", {"a": u32(1)}, {"a.weight": floats(normal(0, 1, 64))})
    weightcast.convert(tmp_path / "m.gguf", tmp_path / "o-BF16.gguf")
    made = read(tmp_path / "o-BF16.gguf").metadata
    assert made["a"] == u32(1)
    assert set(made) == {"a", *CHANGED}
    assert made["general.file_type"] == u32(32)


@pytest.mark.parametrize("alignment", [8, 64, 4096])
def test_alignment_is_kept(alignment: int, tmp_path: Path) -> None:
    source = write_model(tmp_path / "m.gguf", alignment=alignment)
    weightcast.convert(tmp_path / "m.gguf", tmp_path / "o-F32.gguf")
    weightcast.convert(tmp_path / "m.gguf", tmp_path / "p-F32.gguf", split="10k")
    made = read(tmp_path / "o-F32.gguf")
    assert made.metadata["general.alignment"] == u32(alignment)
    assert made.data_start % alignment == 0
    parts = [read(path) for path in sorted(tmp_path.glob("p-F32-0*.gguf"))]
    assert len(parts) > 2
    assert {k: v for part in parts for k, v in part.tensors.items()} == made.tensors
    assert sorted(made.tensors) == sorted(source)
    for number, part in enumerate(parts):
        assert part.metadata["general.alignment"] == u32(alignment)
        assert part.metadata["split.no"] == u16(number)
        assert part.metadata["split.count"] == u16(len(parts))
        assert part.metadata["split.tensors.count"] == struct.pack("<Ii", 5, len(source))
    assert parts[0].metadata.keys() - made.metadata.keys() == {
        "split.no",
        "split.count",
        "split.tensors.count",
    }


def write_split(folder: Path) -> dict[str, Part]:
    """Three parts, of which the first has no tensors."""
    tensors = dense()
    names = list(tensors)
    for number, part in enumerate(([], names[:3], names[3:])):
        metadata = {"split.no": u16(number), "split.count": u16(3)}
        if number == 0:
            metadata = {**METADATA, "split.tensors.count": struct.pack("<Ii", 5, 7), **metadata}
        path = folder / f"m-{number + 1:05}-of-00003.gguf"
        write(path, metadata, {name: tensors[name] for name in part})
    return tensors


def test_split_source(tmp_path: Path) -> None:
    tensors = write_split(tmp_path)
    write(tmp_path / "whole.gguf", METADATA, tensors)
    weightcast.convert(tmp_path / "m-00001-of-00003.gguf", tmp_path / "a-Q8_0.gguf")
    weightcast.convert(tmp_path / "whole.gguf", tmp_path / "b-Q8_0.gguf")
    assert (tmp_path / "a-Q8_0.gguf").read_bytes() == (tmp_path / "b-Q8_0.gguf").read_bytes()


def test_no_part_of_the_source_is_overwritten(tmp_path: Path) -> None:
    """Nor one without tensors, which no work item reads."""
    write_split(tmp_path)
    first = tmp_path / "m-00001-of-00003.gguf"
    before = first.read_bytes()
    for number in (1, 2, 3):
        target = tmp_path / f"m-{number:05}-of-00003.gguf"
        with pytest.raises(OutputError, match="is or holds the source; write elsewhere"):
            weightcast.convert(first, target, types=["F16"])
    assert first.read_bytes() == before


def test_several_outputs_of_one_read(tmp_path: Path) -> None:
    write_model(tmp_path / "m.gguf", "experts")
    alone = {}
    for type_name in ("Q8_0", "F16", "F32"):
        weightcast.convert(tmp_path / "m.gguf", tmp_path / f"a-{type_name}.gguf")
        alone[type_name] = (tmp_path / f"a-{type_name}.gguf").read_bytes()
    outputs = [tmp_path / f"b-{type_name}.gguf" for type_name in alone]
    summary = weightcast.convert(tmp_path / "m.gguf", *outputs)
    assert [path.read_bytes() for path in outputs] == list(alone.values())
    assert summary.plan.read_bytes == sum(len(part.data) for part in mixture().values())


@pytest.mark.parametrize("type_name", ["Q8_0", "F16", "F32", "Q4_0", "MXFP4"])
def test_slabs_do_not_change_bytes(
    type_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small slabs, long rows cut, stacks read as one matrix: the same file."""
    for name in MODELS:
        write_model(tmp_path / f"{name}.gguf", name)
        weightcast.convert(
            tmp_path / f"{name}.gguf", tmp_path / f"{name}-1.gguf", types=[type_name]
        )
    monkeypatch.setattr(memory, "SLAB_BYTES", 1000)
    monkeypatch.setattr(generic, "_MAX_ROW_ELEMENTS", 80)
    monkeypatch.setattr(generic, "_MAX_EXPERTS", 3)
    for name in MODELS:
        source, target = tmp_path / f"{name}.gguf", tmp_path / f"{name}-2.gguf"
        cut = prepare(source, [target], ConvertOptions(types=(type_name,)))
        assert cut.slab_bytes <= 1000
        assert len(cut.items) > len(cut.outputs[0].tensors)
        weightcast.convert(source, target, types=[type_name])
        assert target.read_bytes() == (tmp_path / f"{name}-1.gguf").read_bytes()


# Quantized sources.


def quantized_model(path: Path, type_name: str) -> dict[str, Part]:
    source = path.with_name("original.gguf")
    tensors = {
        "token_embd.weight": floats(normal(0, 32, 256)),
        "blk.0.attn_norm.weight": floats(normal(1, 256)),
        "blk.0.ffn_up_exps.weight": floats(normal(2, 3, 5, 512)),
    }
    write(source, METADATA, tensors)
    weightcast.convert(source, path, types=[type_name], pure=True)
    return read(path).tensors


SOURCES = [
    "Q8_0",
    "Q4_0",
    "Q5_1",
    "MXFP4",
    "Q2_K",
    "Q3_K",
    "Q4_K",
    "Q5_K",
    "Q6_K",
    "IQ4_XS",
    "TQ2_0",
]


@pytest.mark.parametrize("type_name", SOURCES)
def test_dequantized(type_name: str, tmp_path: Path) -> None:
    """To floats, without asking for leave: what gguf-py dequantizes."""
    source = quantized_model(tmp_path / "q.gguf", type_name)
    weightcast.convert(tmp_path / "q.gguf", tmp_path / "o-F32.gguf", tmp_path / "o-F16.gguf")
    made, halves = read(tmp_path / "o-F32.gguf").tensors, read(tmp_path / "o-F16.gguf").tensors
    assert made["blk.0.attn_norm.weight"] == source["blk.0.attn_norm.weight"]
    for name in ("token_embd.weight", "blk.0.ffn_up_exps.weight"):
        part = source[name]
        kind = GGMLQuantizationType(part.kind)
        blocks = np.frombuffer(part.data, np.uint8).reshape(int(np.prod(part.shape[:-1])), -1)
        expected = quants.dequantize(blocks, kind)
        assert made[name].data == expected.tobytes()
        assert halves[name].data == expected.astype(np.float16).tobytes()


@pytest.mark.parametrize("type_name", SOURCES)
def test_the_same_type_is_copied(type_name: str, tmp_path: Path) -> None:
    source = quantized_model(tmp_path / "q.gguf", type_name)
    weightcast.convert(tmp_path / "q.gguf", tmp_path / "o.gguf", types=[type_name], pure=True)
    assert read(tmp_path / "o.gguf").tensors == source


@pytest.mark.parametrize(("old", "new"), [("Q4_K", "Q8_0"), ("Q8_0", "Q4_K"), ("Q6_K", "Q2_K")])
def test_quantizing_again_must_be_allowed(old: str, new: str, tmp_path: Path) -> None:
    quantized_model(tmp_path / "q.gguf", old)
    with pytest.raises(LayoutError) as caught:
        weightcast.convert(tmp_path / "q.gguf", tmp_path / f"o-{new}.gguf", pure=True)
    message = str(caught.value)
    for said in (str(tmp_path / "q.gguf"), "token_embd.weight", old, new, "allow_requantize=True"):
        assert said in message
    assert "\n" not in message
    assert not list(tmp_path.glob("o-*"))
    weightcast.convert(tmp_path / "q.gguf", tmp_path / "f-F32.gguf")
    weightcast.convert(tmp_path / "f-F32.gguf", tmp_path / f"f-{new}.gguf", pure=True)
    weightcast.convert(
        tmp_path / "q.gguf", tmp_path / f"o-{new}.gguf", pure=True, allow_requantize=True
    )
    assert read(tmp_path / f"o-{new}.gguf").tensors == read(tmp_path / f"f-{new}.gguf").tensors


# Overrides, refusals.


def test_types_by_hand(tmp_path: Path) -> None:
    write_model(tmp_path / "m.gguf")
    weightcast.convert(
        tmp_path / "m.gguf",
        tmp_path / "o-Q8_0.gguf",
        tensor_types=["attn_q.weight=F16", "blk.1.attn_norm.weight=BF16"],
    )
    made = read(tmp_path / "o-Q8_0.gguf").tensors
    assert made["blk.1.attn_q.weight"].kind == files.F16
    assert made["blk.1.attn_norm.weight"].kind == files.BF16
    assert made["token_embd.weight"].kind == files.Q8_0


def test_whole_numbers_cannot_be_quantized_by_hand(tmp_path: Path) -> None:
    write_model(tmp_path / "m.gguf", "projector")
    with pytest.raises(LayoutError, match=r"'ids.weight' is I32, which cannot become F16"):
        weightcast.convert(
            tmp_path / "m.gguf", tmp_path / "o-Q8_0.gguf", tensor_types=["ids.weight=F16"]
        )


def test_a_bad_value_is_named(tmp_path: Path) -> None:
    x = normal(0, 2, 3, 64)
    x[1, 2, 5] = np.nan
    write(tmp_path / "m.gguf", METADATA, {"a.weight": floats(x)})
    with pytest.raises(LayoutError, match=r"a.weight, expert 1: NaN or infinity at \[2, 5\]"):
        weightcast.convert(tmp_path / "m.gguf", tmp_path / "o-Q8_0.gguf")


@pytest.mark.parametrize(
    ("shape", "index"), [((2, 3, 4, 64), [1, 2, 3, 5]), ((2, 1 << 16), [1, 40009]), ((64,), [7])]
)
def test_a_bad_value_in_other_rows_is_named(
    shape: tuple[int, ...], index: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generic, "_MAX_ROW_ELEMENTS", 1 << 12)
    x = normal(0, *shape)
    x[tuple(index)] = np.nan
    write(tmp_path / "m.gguf", METADATA, {"a.weight": floats(x)})
    problem = re.escape(f"a.weight: NaN or infinity at {index}")
    with pytest.raises(LayoutError, match=problem):
        weightcast.convert(
            tmp_path / "m.gguf", tmp_path / "o-F16.gguf", tensor_types=["a.weight=F16"]
        )


NOTHING = [(0,), (0, 256), (3, 0), (2, 0, 256), (1, 0, 0, 256)]
ONE_OR_NONE = [
    *((kind, shape) for kind in (files.F32, files.F16, files.Q8_0, files.I64) for shape in NOTHING),
    *((kind, shape) for kind in (files.F32, files.F16, files.I64) for shape in ((), (1, 1, 1, 1))),
]


@pytest.mark.parametrize(("kind", "shape"), ONE_OR_NONE)
@pytest.mark.parametrize("type_name", ["F32", "BF16", "Q8_0", "Q4_K_M"])
def test_tensors_of_one_value_and_of_none_stay(
    kind: int, shape: tuple[int, ...], type_name: str, tmp_path: Path
) -> None:
    """llama-quantize fails at most of those of none, and writes [256, 0] as [256] without data."""
    data = b"" if 0 in shape else bytes(range(8))[: {files.F16: 2, files.I64: 8}.get(kind, 4)]
    part = Part(kind, shape, data)
    tensors = {"first": part, "a.weight": floats(normal(0, 2, 256)), "odd.weight": part}
    write(tmp_path / "m.gguf", METADATA, tensors)
    out = tmp_path / f"o-{type_name}.gguf"
    report = tmp_path / "r.json"
    made = weightcast.convert(tmp_path / "m.gguf", out, report=report, keep_order=True)
    found = read(out).tensors
    assert found["first"] == found["odd.weight"] == part
    assert found["a.weight"].shape == (2, 256)
    assert made.plan.outputs[0].size == out.stat().st_size
    json.loads(report.read_text(), parse_constant=pytest.fail)  # NaN, Infinity
    assert weightcast.compare(tmp_path / "m.gguf", out).problem is None
    assert weightcast.verify(out, tmp_path / "m.gguf").is_good
    opened = weightcast.open(out)["odd.weight"]
    assert opened.numpy().shape == opened.shape == shape
    assert opened.nbytes == len(data)


@pytest.mark.parametrize("shapes", [[(0,)], [(0,)] * 3000, [()], [(), (0,), (2, 0)]])
def test_files_of_little(shapes: list[tuple[int, ...]], tmp_path: Path) -> None:
    source, out = tmp_path / "m.gguf", tmp_path / "o-Q4_0.gguf"
    parts = {f"t{n}": Part(files.F32, s, b"" if 0 in s else b"1234") for n, s in enumerate(shapes)}
    write(source, METADATA, parts)
    weightcast.convert(source, out, report=tmp_path / "r.html", bundle=True, keep_order=True)
    assert read(out).tensors == parts
    found = weightcast.compare(source, out)
    assert found.problem is None
    assert sorted([*found.same, *(t.name for t in found.errors.outputs[0].tensors)]) == sorted(
        parts
    )
    assert weightcast.verify(out, source).is_good
    assert weightcast.open(out).parameters == sum(0 not in shape for shape in shapes)


@pytest.mark.parametrize("shape", NOTHING)
def test_a_rule_gives_a_tensor_without_values_its_type(
    shape: tuple[int, ...], tmp_path: Path
) -> None:
    tensors = {"a.weight": floats(normal(0, 2, 256)), "none.weight": Part(files.F32, shape, b"")}
    write(tmp_path / "m.gguf", METADATA, tensors)
    out = tmp_path / "o-Q8_0.gguf"
    weightcast.convert(tmp_path / "m.gguf", out, tensor_types=["none.weight=F16"])
    assert read(out).tensors["none.weight"] == Part(files.F16, shape, b"")


RECIPES = ("Q8_0", "F16", "BF16", "Q4_K_M")
KEEPS = " keeps it as it is stored"
NOT_A_NUMBER, LARGE, HUGE = np.float32(np.nan), np.float32(1e5), np.float32(1e7)
# llama-quantize (llama-cpp-python 0.3.36) fails at the same ones, and also at what would be copied.
UNFIT: list[tuple[np.float32, int, str, str | None]] = [
    *((value, files.F32, "F32", None) for value in (NOT_A_NUMBER, np.float32(-np.inf), HUGE)),
    *((NOT_A_NUMBER, files.F32, name, "NaN or infinity at [3, 17] (out, in)") for name in RECIPES),
    *((-np.float32(np.inf), files.F32, name, "NaN or infinity at [3, 17]") for name in RECIPES),
    (NOT_A_NUMBER, files.BF16, "BF16", None),
    (NOT_A_NUMBER, files.BF16, "F32", "NaN or infinity at [3, 17] (out, in)"),
    (NOT_A_NUMBER, files.F16, "Q4_0", "NaN or infinity at [3, 17] (out, in)"),
    (LARGE, files.BF16, "Q8_0", None),
    (LARGE, files.BF16, "Q4_K_M", None),
    (LARGE, files.BF16, "F16", "a value beyond the range of F16 at [3, 17] (out, in)"),
    (HUGE, files.F32, "F16", "a value beyond the range of F16 at [3, 17] (out, in)"),
    (HUGE, files.F32, "Q8_0", "values too large for the float16 scale of Q8_0 at [3, 0] (out, in)"),
    (HUGE, files.F32, "BF16", None),
]
UNFIT_NAMES = {files.F32: "F32", files.BF16: "BF16", files.F16: "F16"}


def with_value(kind: int, value: np.float32) -> Part:
    """A matrix [8, 256] of a type of floats that has a value at [3, 17]."""
    x = normal(0, 8, 256)
    x[3, 17] = value
    if kind == files.BF16:
        x[3, 17] = np.uint32(int(value.view(np.uint32)) & 0xFFFF0000).view(np.float32)
        return files.bf16(x)
    return floats(x.astype(np.float16) if kind == files.F16 else x)


@pytest.mark.parametrize(("value", "kind", "type_name", "problem"), UNFIT)
def test_values_that_do_not_fit_are_refused_with_a_remedy_that_keeps_them(
    value: np.float32, kind: int, type_name: str, problem: str | None, tmp_path: Path
) -> None:
    part = with_value(kind, value)
    write(tmp_path / "m.gguf", METADATA, {"a.weight": part, "b.weight": floats(normal(1, 2, 256))})
    call = partial(weightcast.convert, tmp_path / "m.gguf", tmp_path / f"o-{type_name}.gguf")
    if problem is None:
        call()
        return
    rule = f"a.weight={UNFIT_NAMES[kind]}"
    with pytest.raises(LayoutError) as caught:
        call()
    said = f"{tmp_path / 'm.gguf'}: a.weight: {problem}"
    assert str(caught.value).startswith(said)
    assert str(caught.value).endswith(f"; tensor_types={rule!r} keeps it as it is stored")
    assert not list(tmp_path.glob("o-*"))
    call(tensor_types=[rule])
    assert read(tmp_path / f"o-{type_name}.gguf").tensors["a.weight"] == part


@pytest.mark.parametrize("name", ["a+(b).weight", "x=y.weight", "a b.weight", "\u6a21.weight"])
def test_a_remedy_names_the_tensor_as_a_rule_does(name: str, tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", METADATA, {name: with_value(files.F32, NOT_A_NUMBER)})
    with pytest.raises(LayoutError) as caught:
        weightcast.convert(tmp_path / "m.gguf", tmp_path / "o-Q8_0.gguf")
    rule = ast.literal_eval(str(caught.value).partition("tensor_types=")[2].removesuffix(KEEPS))
    weightcast.convert(tmp_path / "m.gguf", tmp_path / "o-Q8_0.gguf", tensor_types=[rule])


def test_values_of_tensors_that_stay_are_not_looked_at(tmp_path: Path) -> None:
    """Masks of attention hold minus infinity."""
    mask = floats(np.full(256, -np.inf, np.float32))
    tensors = {"a.weight": floats(normal(0, 2, 256)), "blk.0.mask.bias": mask}
    write(tmp_path / "m.gguf", METADATA, tensors)
    weightcast.convert(tmp_path / "m.gguf", tmp_path / "o-Q4_K_M.gguf")
    assert read(tmp_path / "o-Q4_K_M.gguf").tensors["blk.0.mask.bias"] == mask


def test_what_llama_cpp_cannot_read_is_noted(tmp_path: Path) -> None:
    tensors = {
        "x" * 63: floats(normal(0, 32)),
        "y" * 64: floats(normal(0, 32)),
        "conv.weight": floats(normal(0, 1, 1, 2, 2, 32)),
    }
    write(tmp_path / "m.gguf", {**METADATA, "": u32(1)}, tensors)
    made = weightcast.convert(tmp_path / "m.gguf", tmp_path / "o-F32.gguf")
    assert read(tmp_path / "o-F32.gguf").tensors == tensors
    assert made.plan.outputs[0].notes == (
        "llama.cpp cannot read the output: a metadata key is empty",
        "llama.cpp cannot read the output: names of more than 63 bytes "
        f"(1 tensor, for example {'y' * 64!r})",
        "llama.cpp cannot read the output: more than 4 axes (1 tensor, for example 'conv.weight')",
    )


def test_a_file_without_tensors_is_no_model(tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", METADATA, {})
    with pytest.raises(CheckpointError, match="a vocabulary without a model; give the file that"):
        weightcast.convert(tmp_path / "m.gguf", tmp_path / "o-Q8_0.gguf")


@pytest.mark.parametrize("alignment", [u32(1 << 31), struct.pack("<IQ", 10, 1 << 63)])
def test_alignments_beyond_reason(alignment: bytes, tmp_path: Path) -> None:
    metadata = {**METADATA, "general.alignment": alignment}
    write(tmp_path / "m.gguf", metadata, {"a.weight": floats(normal(0, 2, 32))})
    with pytest.raises(
        CheckpointError, match=r"alignment is [\d,]{13,}, and up to 1,048,576 is read"
    ):
        weightcast.convert(tmp_path / "m.gguf", tmp_path / "o-Q8_0.gguf")


@pytest.mark.parametrize(
    "alignment", [struct.pack("<IQ", 10, 64), struct.pack("<Ib", 1, 64), struct.pack("<Iq", 11, 64)]
)
@pytest.mark.parametrize("split", [None, 1])
def test_an_alignment_of_another_type_becomes_the_one_that_is_read(
    alignment: bytes, split: int | None, tmp_path: Path
) -> None:
    """llama.cpp and the gguf package take uint32 alone."""
    tensors = {name: floats(normal(0, 3, 32)) for name in ("a.weight", "b.weight")}
    write(tmp_path / "m.gguf", {**METADATA, "general.alignment": alignment}, tensors, 64)
    made = weightcast.convert(tmp_path / "m.gguf", tmp_path / "o-Q8_0.gguf", split=split)
    kind = {10: "uint64", 1: "int8", 11: "int64"}[alignment[0]]
    said = f"general.alignment is {kind} in the source; written as uint32, as llama.cpp reads it"
    assert said in made.plan.outputs[0].notes
    files_there = sorted(tmp_path.glob("o-*.gguf"))
    assert len(files_there) == (2 if split else 1)
    for path in files_there:
        assert read(path).metadata["general.alignment"] == u32(64)


def test_more_parts_than_can_be_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_layout, "_MAX_PARTS", 6)
    write_model(tmp_path / "m.gguf")
    with pytest.raises(CheckpointError, match="7 files; split into larger ones"):
        weightcast.convert(tmp_path / "m.gguf", tmp_path / "o-Q8_0.gguf", split=1)


def test_what_is_for_grok_alone(tmp_path: Path) -> None:
    write_model(tmp_path / "m.gguf")
    for outputs, told in ((["o-bf16"], {}), (["o-F16.gguf"], {"no_tokenizer": True})):
        with pytest.raises(FormatError, match="architecture 'llama': directories, spec"):
            weightcast.convert(tmp_path / "m.gguf", *(tmp_path / o for o in outputs), **told)
    with pytest.raises(RequestError, match="two outputs have the same name"):
        weightcast.convert(tmp_path / "m.gguf", *[tmp_path / "o-F16.gguf"] * 2)


@settings(max_examples=150)
@given(st.data())
def test_damaged_headers(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Converted, or refused in one line; nothing is left behind then."""
    folder = tmp_path_factory.mktemp("damaged")
    tensors = {
        "blk.0.a.weight": floats(normal(0, 2, 2, 64)),
        "b": floats(normal(1, 8)),
        "c.weight": Part(files.Q8_0, (2, 32), bytes(68)),
    }
    metadata = {
        "general.architecture": string("llama"),
        "llama.attention.head_count": files.array(4, bytes(8)),
        "general.alignment": u32(32),
    }
    path = write(folder / "m.gguf", metadata, tensors)
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(8, read(path).data_start - 1))
        raw[position] = data.draw(st.sampled_from([0, 1, 2, 3, 128, 255]) | st.integers(0, 255))
    path.write_bytes(raw)
    try:
        weightcast.convert(path, folder / "o-Q4_K_M.gguf", allow_requantize=True)
        problem = None
    except CheckpointError as error:
        problem = str(error)
    if problem is not None:
        assert "\n" not in problem
        assert [entry.name for entry in folder.iterdir()] == ["m.gguf"]


# Grok-1.


def test_grok_keeps_everything_too(tiny: Path, tmp_path: Path) -> None:
    """A Grok GGUF with keys of its own, without a tokenizer, and nobody asks for one."""
    weightcast.convert(tiny, tmp_path / "a-F32.gguf", no_tokenizer=True)
    made = read(tmp_path / "a-F32.gguf")
    names = list(made.tensors)[::-1]
    metadata = {**made.metadata, "mine": string(b"\xff")}
    write(tmp_path / "b.gguf", metadata, {name: made.tensors[name] for name in names})
    weightcast.convert(tmp_path / "b.gguf", tmp_path / "c-BF16.gguf", tmp_path / "c-bf16")
    carried = read(tmp_path / "c-BF16.gguf")
    assert sorted(carried.tensors) == sorted(names)
    assert {**carried.metadata, "general.file_type": u32(0)} == metadata
    weightcast.convert(tiny, tmp_path / "d-BF16.gguf", tmp_path / "d-bf16", no_tokenizer=True)
    assert carried.tensors == read(tmp_path / "d-BF16.gguf").tensors
    for path in (tmp_path / "d-bf16").iterdir():
        assert path.read_bytes() == (tmp_path / "c-bf16" / path.name).read_bytes()


# What is shown.


def test_described(tmp_path: Path) -> None:
    write_model(tmp_path / "m.gguf")
    graph = open_graph(tmp_path / "m.gguf")
    assert list(graph) == list(dense())
    assert graph.family.name == "llama"
    told = graph.spec.describe()
    assert told["uint64"] == (1 << 64) - 1
    assert told["tokenizer.ggml.tokens"] == ["a", "", "\udcc3", "\u2581b", "\0"]
    assert told["uint8s"] == {"array": "uint8", "length": 256}
    assert told["a signalling NaN"] == "nan"
    assert told["bools"] == [False, True, True]
    assert json.loads(json.dumps(told, allow_nan=False)) == told


@pytest.mark.parametrize(
    ("shape", "written"),
    [
        ((), (1,)),
        ((1, 1), (1,)),
        ((1, 256), (256,)),
        ((1, 1, 8, 256), (8, 256)),
        ((8, 256), (8, 256)),
    ],
)
def test_leading_axes_of_one_are_left_out_by_ggml(
    shape: tuple[int, ...], written: tuple[int, ...], tmp_path: Path
) -> None:
    """llama-quantize writes the shapes `written`; a file of either is no other model."""
    source, out = tmp_path / "m.gguf", tmp_path / "o-F32.gguf"
    tensors = {"a": floats(normal(0, *shape)), "b.weight": floats(normal(1, 2, 32))}
    write(source, METADATA, tensors)
    part = Part(files.F32, written, tensors["a"].data)
    for keep_order in (True, False):
        weightcast.convert(source, out, keep_order=keep_order)
        made = read(out)
        assert made.tensors == tensors | ({} if keep_order else {"a": part})
        assert weightcast.verify(out, source).is_good
        found = weightcast.compare(source, out)
        assert found.problem is None
        assert found.total.relative_rms == 0
    write(out, made.metadata, {**made.tensors, "a": Part(files.F32, (2, *written), 2 * part.data)})
    assert not weightcast.verify(out, source).is_good
    assert weightcast.compare(source, out).problem is not None


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("none", None),
        ("none", Part(files.F32, (0, 2), b"")),
        ("none", Part(files.F32, (1,), bytes(4))),
        ("extra", Part(files.F32, (0,), b"")),
        ("scale", None),
        ("scale", Part(files.F32, (2,), bytes(8))),
    ],
)
def test_what_is_missing_of_little_is_found(name: str, part: Part | None, tmp_path: Path) -> None:
    source, out = tmp_path / "m.gguf", tmp_path / "o-Q8_0.gguf"
    none, scale = Part(files.F32, (0,), b""), floats(normal(0))
    write(source, METADATA, {"none": none, "scale": scale, "a.weight": floats(normal(1, 2, 32))})
    weightcast.convert(source, out)
    made = read(out)
    tensors = {**made.tensors, name: part}
    write(out, made.metadata, {n: p for n, p in tensors.items() if p is not None})
    [problem] = weightcast.verify(out, source).problems
    assert problem.tensor == name
    assert weightcast.compare(source, out).problem is not None


def test_a_file_type_that_is_none_is_guessed_anew(tmp_path: Path) -> None:
    """Metadata have whole numbers of 64 bits, too, and the key is written as 32."""
    metadata = {
        "general.architecture": string("a"),
        "general.file_type": struct.pack("<IQ", 10, 1 << 40),
    }
    tensors = {"x.weight": floats(np.ones((2, 32), np.float16))}
    source = write(tmp_path / "m.gguf", metadata, tensors)
    out = tmp_path / "copy.gguf"
    weightcast.convert(source, out, types="COPY")
    assert read(out).metadata["general.file_type"] == u32(1024 | 1)  # guessed: mostly F16
