"""Packed directories as sources: what was written is what is read, whatever it becomes."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

import weightcast
from tests.formats.packed import packing as packed
from tests.grok1 import EMBEDDING, places
from tests.support import Golden
from weightcast.commands.text.graph import graph_lines, graph_values
from weightcast.converters.convert import Summary, prepare
from weightcast.converters.families.grok1 import forward
from weightcast.converters.graph import View, matrices
from weightcast.converters.graph import read as slabs
from weightcast.converters.graph.read import load_float32
from weightcast.converters.graph.tensor import take
from weightcast.converters.plan import budget as memory
from weightcast.converters.sources import open_graph
from weightcast.converters.sources.options import ConvertOptions
from weightcast.errors import CheckpointError, FormatError, LayoutError, MissingTensorError
from weightcast.formats import safetensors
from weightcast.formats.packed import LAYOUTS
from weightcast.formats.packed.fp4 import FP4_LAYOUTS
from weightcast.formats.packed.layout import NUMPY_DTYPES, MatrixShape, Scheme
from weightcast.quant.fp8 import dequantize_fp8, quantize_fp8
from weightcast.quant.types import MXFP4, NVFP4, Fp8Type, GroupType, QuantType

WIDE = Golden("wide")
NAMES = {dtype: name for name, dtype in NUMPY_DTYPES.items()}
LAYERS = 2
EXPERTS = 8
INT8 = GroupType(8, 32)

# Everything that is packed in integers: layout, type, and the type that a reader finds.
GROUPS = [
    ("compressed-tensors", GroupType(4, 128)),
    ("compressed-tensors", GroupType(4, 32, symmetric=False)),
    ("compressed-tensors", GroupType(4, 0, scale_dtype="F16")),
    ("compressed-tensors", INT8),
    ("compressed-tensors", GroupType(8, 64, symmetric=False, scale_dtype="F32")),
    ("gptq", GroupType(4, 128, scale_dtype="F16")),
    ("gptq", INT8),
    ("gptq_v2", GroupType(4, 64, symmetric=False)),
    ("gptq_v2", GroupType(8, 0)),
    ("awq", GroupType(4, 128, symmetric=False)),
    ("awq", GroupType(4, 64)),
    ("weightcast", GroupType(4, 64, symmetric=False)),
    ("weightcast", INT8),
]
FLOATS: list[QuantType | Fp8Type] = [MXFP4, NVFP4, Fp8Type(), Fp8Type(128, 128), Fp8Type(96, 96)]
Tensors = dict[str, NDArray[Any]]


def convert(source: Path, *outputs: Path) -> Summary:
    return weightcast.convert(source, *outputs, no_tokenizer=True)


def read_gguf(path: Path) -> dict[str, gguf.ReaderTensor]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


def dequantized(tensor: gguf.ReaderTensor) -> NDArray[np.float32]:
    values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    return values.reshape(tuple(reversed(tensor.shape.tolist())))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden checkpoint as a directory of plain floats; do not change it."""
    path = tmp_path_factory.mktemp("plain") / "m-f32"
    convert(WIDE.path, path)
    return path


def is_packed(name: str) -> bool:
    return "_proj." in name or ".experts." in name


def read_plain(directory: Path) -> Tensors:
    (file,) = directory.glob("*.safetensors")
    return {
        name: np.frombuffer(
            file.read_bytes()[a.offset : a.offset + a.nbytes], NUMPY_DTYPES[a.dtype]
        ).reshape(a.shape)
        for name, a in safetensors.read_index(file).items()
    }


def write(path: Path, tensors: Tensors, metadata: dict[str, str] | None = None) -> None:
    entries = [safetensors.Entry(n, NAMES[a.dtype], a.shape) for n, a in tensors.items()]
    layout = safetensors.lay_out(entries, metadata or {})
    order = sorted(tensors, key=layout.offsets.__getitem__)
    path.write_bytes(layout.header + b"".join(tensors[n].tobytes() for n in order))


def write_config(plain: Path, out: Path, quantization: dict[str, Any] | None) -> None:
    config = json.loads((plain / "config.json").read_text())
    config["quantization_config"] = quantization
    (out / "config.json").write_text(json.dumps(config))


def pack_directory(
    plain: Path, out: Path, layout: str, group_type: GroupType, attention: GroupType | None = None
) -> dict[str, NDArray[np.float32]]:
    """Write random groups in place of every matrix; gives the values [out, in] by name."""
    out.mkdir()
    types = {"experts": group_type, "self_attn": attention or group_type}
    tensors, expected, described = {}, {}, {}
    for seed, (name, array) in enumerate(read_plain(plain).items()):
        if not is_packed(name):
            tensors[name] = array
            continue
        stem = name.removesuffix(".weight")
        kind = types["self_attn" if "self_attn" in name else "experts"]
        groups = packed.random_groups(kind, *array.shape, seed)
        parts = packed.pack_whole(LAYOUTS[layout], groups, kind)
        tensors |= {stem + suffix: part for suffix, part in parts.items()}
        expected[name] = packed.values(groups, kind)
        described[stem] = MatrixShape(kind, *array.shape)
    write(out / "model.safetensors", tensors, LAYOUTS[layout].header_metadata(described))
    schemes = [Scheme(("Linear",), group_type)]
    if attention is not None:
        schemes = [Scheme((f"re:.*{part}.*",), t) for part, t in types.items()]
    write_config(plain, out, LAYOUTS[layout].quantization_config(schemes, [], ["q_proj"]))
    return expected


Made = tuple[Path, dict[str, NDArray[np.float32]]]
Packed = Callable[[str, GroupType], Made]


@pytest.fixture(scope="module")
def packed_as(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Packed:
    """The model packed in one of the ways, and its values; do not change it."""

    @cache
    def make(layout: str, group_type: GroupType) -> Made:
        path = tmp_path_factory.mktemp("packed") / "src"
        return path, pack_directory(plain, path, layout, group_type)

    return make


@pytest.fixture
def own(packed_as: Packed, tmp_path: Path) -> Callable[[str, GroupType], Path]:
    """The same to change at will."""

    def copy(layout: str, group_type: GroupType) -> Path:
        shutil.copytree(packed_as(layout, group_type)[0], tmp_path / "src")
        return tmp_path / "src"

    return copy


def pack_floats(
    plain: Path, out: Path, kind: QuantType | Fp8Type
) -> dict[str, NDArray[np.float32]]:
    out.mkdir()
    tensors, expected = {}, {}
    for name, array in read_plain(plain).items():
        if not is_packed(name):
            tensors[name] = array
            continue
        stem = name.removesuffix(".weight")
        if isinstance(kind, Fp8Type):
            parts = packed.pack_fp8(array, kind)
            expected[name] = dequantize_fp8(quantize_fp8(array, kind), kind)
        else:
            layout, blocks = FP4_LAYOUTS[kind.name], weightcast.quantize(array, kind.name)
            parts = packed.pack_rows(layout, blocks, MatrixShape(kind, *array.shape))
            expected[name] = weightcast.dequantize(blocks, kind.name)
        tensors |= {stem + suffix: part for suffix, part in parts.items()}
    write(out / "model.safetensors", tensors)
    write_config(plain, out, LAYOUTS[CT].quantization_config([Scheme(("Linear",), kind)]))
    return expected


def by_gguf_name(expected: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """Hugging Face's matrices under GGUF's names, experts stacked."""
    named = {}
    for place in places(LAYERS):
        if place.role.is_experts:
            named[place.gguf] = np.stack([expected[place.hugging_face(n)] for n in range(EXPERTS)])
        elif place.hugging_face() in expected:
            named[place.gguf] = expected[place.hugging_face()]
    return named


def check_values(source: Path, out: Path, expected: dict[str, NDArray[np.float32]]) -> None:
    """F32 and BF16 outputs hold what the parts mean, and the rest of the source."""
    convert(source, out / "m-F32.gguf", out / "m-bf16")
    found = {name: dequantized(t) for name, t in read_gguf(out / "m-F32.gguf").items()}
    for name, values in by_gguf_name(expected).items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)
    floats = read_plain(out / "m-bf16")
    assert set(expected) < set(floats)
    for name, values in expected.items():
        np.testing.assert_array_equal(floats[name], values.astype(ml_dtypes.bfloat16), err_msg=name)


@pytest.mark.parametrize(("layout", "group_type"), GROUPS, ids=str)
def test_groups_become_what_they_mean(
    layout: str,
    group_type: GroupType,
    packed_as: Packed,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Slabs of a few rows: every matrix is read in pieces.
    monkeypatch.setattr(memory, "SLAB_BYTES", 24 << 10)
    source, expected = packed_as(layout, group_type)
    assert len(prepare(source, [tmp_path / "n-F32.gguf"],
        ConvertOptions(no_tokenizer=True)).items) > 150  # fmt: skip
    check_values(source, tmp_path, expected)


@pytest.mark.parametrize("layout", ["compressed-tensors", "gptq_v2", "weightcast"])
def test_two_types_in_one_directory(layout: str, plain: Path, tmp_path: Path) -> None:
    types = GroupType(4, 128, symmetric=layout == "weightcast"), INT8
    expected = pack_directory(plain, tmp_path / "src", layout, *types)
    check_values(tmp_path / "src", tmp_path, expected)


@pytest.mark.parametrize("kind", FLOATS, ids=str)
def test_floats_become_what_they_mean(
    kind: QuantType | Fp8Type, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "SLAB_BYTES", 24 << 10)
    expected = pack_floats(plain, tmp_path / "src", kind)
    check_values(tmp_path / "src", tmp_path, expected)
    if isinstance(kind, QuantType):
        # GGUF has the same blocks: they go there as they are.
        again = tmp_path / f"m-{kind.name.lower()}"
        convert(tmp_path / "src", tmp_path / f"m-{kind.name}.gguf", again)
        written = read_plain(again)
        for name, part in read_plain(tmp_path / "src").items():
            if is_packed(name):
                np.testing.assert_array_equal(written[name], part, err_msg=name)
        tensors = read_gguf(tmp_path / f"m-{kind.name}.gguf")
        for name, values in by_gguf_name(expected).items():
            assert tensors[name].tensor_type.name == kind.name
            rows = weightcast.dequantize(np.ascontiguousarray(tensors[name].data), kind.name)
            np.testing.assert_array_equal(rows.reshape(values.shape), values)


@pytest.mark.parametrize(("layout", "group_type"), GROUPS, ids=str)
def test_rows_are_read_alone(layout: str, group_type: GroupType, packed_as: Packed) -> None:
    source, expected = packed_as(layout, group_type)
    name = "model.layers.0.block_sparse_moe.experts.3.w1.weight"
    tensor = open_graph(source)["transformer/decoder_layer_0/moe/linear/w"]
    view = matrices(tensor)[3]
    for rows in ((0, 512), (0, 96), (96, 384), (384, 512)):
        np.testing.assert_array_equal(
            rows_in_memory(view, *rows), expected[name][rows[0] + 8 : rows[1]]
        )


def rows_in_memory(view: View, start: int, stop: int) -> NDArray[np.float32]:
    """Rows [start + 8, stop), which is a piece of what was read."""
    buffer = bytearray(view.slab_bytes(start, stop))
    slab = slabs.read_slab(view, start, stop, memoryview(buffer))
    matrix = slab.matrix(8, stop - start)
    values = np.array(matrix.data).view(np.int8 if matrix.dtype == "I8" else np.float32)
    values = values[matrix.start :].reshape(-1, view.shape[1])
    if matrix.scales is not None:
        repeats = view.shape[1] // len(matrix.scales)
        values = values * np.repeat(matrix.scales.T, repeats, axis=1)
    return values


@pytest.mark.parametrize("name", ["int8-g32", "int8-g32-gptq", "int8-g32-weightcast"])
def test_int8_comes_back_unchanged(name: str, tmp_path: Path) -> None:
    """Carried out and carried in: Q8_0 and other layouts have the released codes and scales."""
    source, direct = tmp_path / f"m-{name}", tmp_path / "direct"
    direct.mkdir()
    other = "int8-g32" if "gptq" in name else "int8-g32-gptq"
    convert(WIDE.path, source, direct / "m-Q8_0.gguf", direct / f"m-{other}")
    summary = convert(source, tmp_path / "m-Q8_0.gguf", tmp_path / f"m-{other}")
    assert len(summary.block_origins(0)["lossless"]) == 14
    expected = read_gguf(direct / "m-Q8_0.gguf")
    for tensor, found in read_gguf(tmp_path / "m-Q8_0.gguf").items():
        if tensor != "token_embd.weight":  # which was rounded to bf16
            np.testing.assert_array_equal(found.data, expected[tensor].data, err_msg=tensor)
    written = read_plain(direct / f"m-{other}")
    for tensor, array in read_plain(tmp_path / f"m-{other}").items():
        np.testing.assert_array_equal(array, written[tensor], err_msg=tensor)


@pytest.mark.parametrize("name", ["int4-g64", "int4-g64-asym-awq", "int4-g32-gptq", "int4-channel"])
def test_int4_that_a_conversion_wrote(name: str, tmp_path: Path) -> None:
    """Q8_0 of int4 is what the quantizer makes of the dequantized values."""
    convert(WIDE.path, tmp_path / f"m-{name}")
    convert(tmp_path / f"m-{name}", tmp_path / "m-F32.gguf", tmp_path / "m-Q8_0.gguf")
    floats = read_gguf(tmp_path / "m-F32.gguf")
    for tensor, found in read_gguf(tmp_path / "m-Q8_0.gguf").items():
        values = dequantized(floats[tensor])
        if found.tensor_type.name == "Q8_0":
            rows = weightcast.quantize(values.reshape(-1, values.shape[-1]), "Q8_0")
            np.testing.assert_array_equal(found.data.reshape(rows.shape), rows)
    exact = WIDE.exact()
    error = 0.0
    for place in places(LAYERS):
        if place.gguf in floats and len(place.role.axes) > 1:
            values, true = dequantized(floats[place.gguf]), exact[place.name]
            true = true if place.name == EMBEDDING else np.swapaxes(true, -1, -2)
            error = max(error, float(np.linalg.norm(values - true) / np.linalg.norm(true)))
    assert 0.02 < error < 0.15


def test_logits_over_int8_are_those_over_the_shards(tmp_path: Path) -> None:
    """But for the embedding, which directories hold as bf16."""
    convert(WIDE.path, tmp_path / "m-int8-g32")
    shards, found = open_graph(WIDE.path), open_graph(tmp_path / "m-int8-g32")

    def load(name: str, expert: int | None = None) -> NDArray[np.floating[Any]]:
        tensor = shards[name]
        if expert is not None:
            tensor = take(tensor, expert)
        values = load_float32(tensor)
        is_table = name == "token_embd.weight"
        return values.astype(ml_dtypes.bfloat16).astype(np.float32) if is_table else values

    expected = forward.forward(shards.spec, load, WIDE.tokens[:1]).logits
    np.testing.assert_array_equal(forward.logits(found, WIDE.tokens[:1]), expected)


def test_what_inspect_says(packed_as: Packed, tmp_path: Path) -> None:
    source, _ = packed_as("compressed-tensors", GroupType(4, 128))
    graph = open_graph(source)
    name = graph["transformer/decoder_layer_1/moe/linear_1/w"].name
    described = next(t for t in graph_values(graph)["tensors"] if t["name"] == name)
    parts = 256 * (512 // 2 + 2 * 512 // 128) + 16
    assert described["stored_as"] == "INT4-G128"
    assert described["bytes"] == EXPERTS * parts
    stored = sum(a.nbytes for a in read_plain(source).values())
    head = graph[EMBEDDING].size * 4
    assert sum(t["bytes"] for t in graph_values(graph)["tensors"]) == stored - head
    assert any("INT4-G128" in line for line in graph_lines(graph, all_tensors=True))
    origin = graph[name].describe()["origin"]["sources"][0]["origin"]
    assert origin["layout"] == "compressed-tensors"
    assert set(origin["parts"]) == {".weight_packed", ".weight_scale", ".weight_shape"}
    work = prepare(source, [tmp_path / "m-F32.gguf"], ConvertOptions(no_tokenizer=True))
    assert work.read_bytes == stored - head


def rewritten(source: Path, change: Any, metadata: dict[str, str] | None = None) -> None:
    tensors = read_plain(source)
    change(tensors)
    (source / "model.safetensors").unlink()
    write(source / "model.safetensors", tensors, metadata)


FIRST = "model.layers.0.block_sparse_moe.experts.0.w1"


def without(suffix: str) -> Any:
    return lambda tensors: tensors.pop(FIRST + suffix)


def with_part(suffix: str, make: Any) -> Any:
    def change(tensors: Tensors) -> None:
        tensors[FIRST + suffix] = make(tensors.get(FIRST + suffix))

    return change


CT, GPTQ, AWQ = "compressed-tensors", "gptq_v2", "awq"
INT4 = GroupType(4, 64, symmetric=False)
HOSTILE = {
    "a missing scale": (CT, without(".weight_scale"), "weight_scale is not there, but other"),
    "a missing shape": (CT, without(".weight_shape"), "weight_shape is not there, but other"),
    "a missing g_idx": (GPTQ, without(".g_idx"), "g_idx is not there, but other"),
    "missing zero points": (AWQ, without(".qzeros"), "qzeros is not there, but other"),
    "missing codes": (CT, without(".weight_packed"), "w1.weight_.*does not explain, or not whole"),
    "another shape": (
        CT,
        with_part(".weight_shape", lambda a: a[::-1].copy()),
        "weight_packed|words for|belongs",
    ),
    "codes turned": (CT, with_part(".weight_packed", lambda a: a.T.copy()), "belongs|words for"),
    "codes turned in gptq": (GPTQ, with_part(".qweight", lambda a: a.T.copy()), "belongs|words"),
    "scales turned": (AWQ, with_part(".scales", lambda a: a.T.copy()), "groups|belongs"),
    "a part less": (CT, with_part(".weight_packed", lambda a: a[:-1].copy()), "belongs"),
    "codes as bytes": (AWQ, with_part(".qweight", lambda a: a.view(np.int8).copy()), "belongs"),
    "no rows": (AWQ, with_part(".qweight", lambda a: a[:0].copy()), "not a matrix"),
    "plain and packed": (
        GPTQ,
        with_part(".weight", lambda a: np.ones((512, 256), np.float32)),
        "there packed and as plain",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_bad_directories_are_refused_by_name(case: str, own: Any) -> None:
    layout, change, message = HOSTILE[case]
    source = own(layout, INT4)
    rewritten(source, change)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_graph(source)
    assert "src" in str(caught.value)
    assert FIRST in str(caught.value)
    assert "\n" not in str(caught.value)


# Found only where the part itself is read: what is wrong, and that nothing is left behind.
LATE = {
    "columns in another order": (
        GPTQ,
        with_part(".g_idx", lambda a: a[::-1].copy()),
        "g_idx orders columns by activation",
    ),
    "scales that are NaN": (
        CT,
        with_part(".weight_scale", lambda a: np.full_like(a, np.nan)),
        "NaN or infinity at",
    ),
}


@pytest.mark.parametrize("case", LATE)
def test_bad_values_are_refused_by_name(case: str, own: Any, tmp_path: Path) -> None:
    layout, change, message = LATE[case]
    source = own(layout, INT4)
    rewritten(source, change)
    with pytest.raises(LayoutError, match=message) as caught:
        convert(source, tmp_path / "m-F32.gguf")
    assert "src/model.safetensors" in str(caught.value)
    assert ("ffn_gate_exps" in str(caught.value)) or (FIRST in str(caught.value))
    assert os.listdir(tmp_path) == ["src"]
    graph = open_graph(source)
    with pytest.raises(LayoutError, match=message):
        load_float32(graph["transformer/decoder_layer_0/moe/linear/w"])


def test_a_truncated_file(own: Any) -> None:
    source = own("gptq", INT8)
    file = source / "model.safetensors"
    graph = open_graph(source)
    os.truncate(file, file.stat().st_size - 100)
    with pytest.raises(FormatError, match="safetensors"):
        open_graph(source)
    # Cut after it was opened: whatever part ends too early is found when it is read.
    os.truncate(file, 100_000)
    with pytest.raises(FormatError, match=r"the file ends \d+ bytes too early"):
        load_float32(graph["transformer/decoder_layer_0/moe/linear/w"])
    file.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_float32(graph["transformer/decoder_layer_0/moe/linear/w"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quant_method": "hqq"}, "quant_method 'hqq' is not read, only weightcast"),
        ({"quant_method": 3}, "quant_method 3 is not read"),
        ("gptq", "quantization_config is 'gptq', not an object"),
        (None, "packed in a way that no quantization_config explains"),
        ({"quant_method": "awq"}, "packed in a way that quant_method awq does not explain"),
    ],
)
def test_unknown_methods(change: Any, message: str, plain: Path, own: Any) -> None:
    source = own(CT, INT4)
    write_config(plain, source, change)
    with pytest.raises(LayoutError, match=message):
        open_graph(source)


@pytest.mark.parametrize("layout", [CT, GPTQ, AWQ, "weightcast"])
@pytest.mark.parametrize(
    ("said", "text"),
    [
        (GroupType(4, 128, symmetric=False), "says 4 bits with groups of 128"),
        (GroupType(4, 0, symmetric=False), "says 4 bits with a scale a row"),
        (GroupType(8, 64, symmetric=False), "says 8 bits with groups of 64"),
    ],
)
def test_a_config_that_contradicts_the_tensors(
    layout: str, said: GroupType, text: str, plain: Path, own: Any
) -> None:
    source = own(layout, INT4)
    config = LAYOUTS[layout].quantization_config([Scheme(("Linear",), INT4)], [], ["q_proj"])
    size = said.group_size if layout == "weightcast" else said.group_size or -1
    for arguments in (
        [group["weights"] for group in config.get("config_groups", {}).values()]
        or config.get("groups")
        or [config]
    ):
        arguments["num_bits" if layout == CT else "bits"] = said.bits
        arguments["group_size"] = size
    write_config(plain, source, config)
    with pytest.raises(LayoutError, match=f"is 4 bits with groups of 64 by its tensors.*{text}"):
        open_graph(source)


def test_parts_in_several_files(packed_as: Packed, own: Any, tmp_path: Path) -> None:
    """Scales away from their codes; outputs may overwrite none of these files."""
    source, (_, expected) = own(CT, INT8), packed_as(CT, INT8)
    tensors = read_plain(source)
    (source / "model.safetensors").unlink()
    scales = {name for name in tensors if name.endswith("_scale")}
    write(source / "a.safetensors", {n: a for n, a in tensors.items() if n not in scales})
    write(source / "b.safetensors", {n: tensors[n] for n in scales})
    graph = open_graph(source)
    assert graph.files == (source / "a.safetensors", source / "b.safetensors")
    check_values(source, tmp_path, expected)
    (tmp_path / "linked-bf16").mkdir()
    os.rename(source / "b.safetensors", tmp_path / "linked-bf16" / "model.safetensors")
    (source / "b.safetensors").symlink_to(tmp_path / "linked-bf16" / "model.safetensors")
    with pytest.raises(CheckpointError, match="is or holds the source"):
        convert(source, tmp_path / "linked-bf16")
    (source / "b.safetensors").unlink()
    with pytest.raises(MissingTensorError, match="weight_scale is not there"):
        open_graph(source)


def test_zero_points_and_negative_scales_in_q8_0(plain: Path, tmp_path: Path) -> None:
    """Random int8 groups, scales of either sign: Q8_0 has them unchanged where it can."""
    expected = pack_directory(plain, tmp_path / "src", CT, GroupType(8, 64, scale_dtype="F16"))
    convert(tmp_path / "src", tmp_path / "m-Q8_0.gguf")
    tensors = read_gguf(tmp_path / "m-Q8_0.gguf")
    for name, values in by_gguf_name(expected).items():
        np.testing.assert_array_equal(dequantized(tensors[name]), values, err_msg=name)
