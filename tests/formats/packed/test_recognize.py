"""Which layout a directory has: every layout is recognized from what we write, the rest refused."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest

import weightcast
from tests.formats.packed.packing import OF_INTEGERS, pack_fp8, pack_rows, pack_whole, random_groups
from weightcast.errors import FormatError, LayoutError, MissingTensorError
from weightcast.formats import safetensors
from weightcast.formats.packed import LAYOUTS
from weightcast.formats.packed.fp4 import FP4_LAYOUTS
from weightcast.formats.packed.layout import NUMPY_DTYPES, MatrixShape, PackedMatrix, Scheme
from weightcast.formats.packed.recognize import recognize
from weightcast.quant.types import Fp8Type, GroupType

NAMES = {dtype: name for name, dtype in NUMPY_DTYPES.items()}
LINEAR = ("Linear",)
CT = LAYOUTS["compressed-tensors"]
header_metadata = LAYOUTS["weightcast"].header_metadata


@pytest.fixture
def index(tmp_path):
    """Write arrays by name into one file and index it."""

    def make(arrays, metadata=None, name="model.safetensors"):
        entries = [safetensors.Entry(n, NAMES[a.dtype], a.shape) for n, a in arrays.items()]
        layout = safetensors.lay_out(entries, metadata or {})
        order = sorted(arrays, key=layout.offsets.__getitem__)
        (tmp_path / name).write_bytes(layout.header + b"".join(arrays[n].tobytes() for n in order))
        return safetensors.read_index(tmp_path / name)

    return make


def named(name, parts):
    return {name + suffix: array for suffix, array in parts.items()}


PLAIN = {"norm.weight": np.ones(64, np.float32)}
CASES = [
    (name, GroupType(bits, size, symmetric, dtype))
    for name in OF_INTEGERS
    for bits in ((4,) if name == "awq" else (4, 8))
    for size, dtype in ((0, "F16"), (32, "BF16"), (64, "F32"))
    for symmetric in ((True,) if name == "gptq" else (True, False))
]


@pytest.mark.parametrize(("name", "group_type"), CASES, ids=str)
def test_groups(name, group_type, index):
    layout = LAYOUTS[name]
    shape = (24, 192)
    parts = pack_whole(layout, random_groups(group_type, *shape), group_type)
    config = layout.quantization_config([Scheme(LINEAR, group_type)])
    arrays = index(
        PLAIN | named("a.b", parts),
        layout.header_metadata({"a.b": MatrixShape(group_type, *shape)}),
    )
    # Zero points of awq are always there, so symmetric ones are read like others.
    expected = group_type
    if name == "awq":
        expected = GroupType(4, group_type.group_size, False, group_type.scale_dtype)
    stored = {suffix: arrays["a.b" + suffix] for suffix in parts}
    matrix_layout = layout.matrix_layout(expected)
    found = PackedMatrix(layout, matrix_layout, MatrixShape(expected, *shape), stored)
    assert recognize(config, arrays) == {"a.b": found}


def test_a_file_of_ours_needs_no_config(index):
    group_type = GroupType(4, 32)
    parts = pack_whole(LAYOUTS["weightcast"], random_groups(group_type, 8, 64), group_type)
    arrays = index(named("m", parts), header_metadata({"m": MatrixShape(group_type, 8, 64)}))
    assert recognize(None, arrays)["m"].shape.type == group_type
    assert recognize(None, index(PLAIN)) == {}
    with pytest.raises(MissingTensorError, match=r"^quant_method weightcast, but no file descr"):
        recognize({"quant_method": "weightcast"}, index(PLAIN))


@pytest.mark.parametrize("shape", [(9, 33), (3, 7), (5, 100)])
@pytest.mark.parametrize("bits", [4, 8])
def test_words_that_are_not_full(shape, bits, index):
    layout, group_type = LAYOUTS["compressed-tensors"], GroupType(bits, 0, symmetric=False)
    parts = pack_whole(layout, random_groups(group_type, *shape), group_type)
    config = layout.quantization_config([Scheme(LINEAR, group_type)])
    found = recognize(config, index(named("m", parts)))["m"]
    assert found.shape == MatrixShape(group_type, *shape)


def test_a_mixed_directory(index):
    """Groups of two kinds, MXFP4, NVFP4, FP8 by channel: each from its own tensors."""
    rng = np.random.default_rng(0)
    types = {"a": GroupType(4, 32), "b": GroupType(8, 64, symmetric=False)}
    arrays = dict(PLAIN)
    for name, group_type in types.items():
        groups = random_groups(group_type, 8, 128)
        arrays |= named(name, pack_whole(LAYOUTS["compressed-tensors"], groups, group_type))
    weights = rng.standard_normal((8, 128), np.float32)
    for name, layout in FP4_LAYOUTS.items():
        blocks = weightcast.quantize(weights, name)
        arrays |= named(name, pack_rows(layout, blocks, MatrixShape(layout.type, 8, 128)))
    fp8 = Fp8Type()
    arrays |= named("fp8", pack_fp8(weights, fp8))
    every = [*types.values(), *(layout.type for layout in FP4_LAYOUTS.values()), fp8]
    config = CT.quantization_config([Scheme((str(n),), t) for n, t in enumerate(every)])
    found = recognize(config, index(arrays))
    assert {name: (m.stored_as.name, m.shape.type) for name, m in found.items()} == {
        "a": ("compressed-tensors", types["a"]),
        "b": ("compressed-tensors", types["b"]),
        "MXFP4": ("mxfp4-pack-quantized", FP4_LAYOUTS["MXFP4"].type),
        "NVFP4": ("nvfp4-pack-quantized", FP4_LAYOUTS["NVFP4"].type),
        "fp8": ("float-quantized", fp8),
    }
    assert {m.layout for m in found.values()} == {CT}
    assert all((m.shape.n_out, m.shape.n_in) == (8, 128) for m in found.values())


@pytest.mark.parametrize("shape", [(256, 384), (100, 300), (100, 100)])
def test_fp8_in_blocks(shape, index):
    fp8 = Fp8Type(128, 128)
    weights = np.random.default_rng(1).standard_normal(shape, np.float32)
    arrays = index(named("m", pack_fp8(weights, fp8)))
    config = CT.quantization_config([Scheme(LINEAR, fp8)])
    found = recognize(config, arrays)["m"]
    assert found.shape == MatrixShape(fp8, *shape)
    config["config_groups"]["group_0"]["weights"]["block_structure"] = [128, 64]
    with pytest.raises(LayoutError, match=r"^m: its block_structure is not a single square"):
        recognize(config, arrays)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"quant_method": "bitsandbytes"}, r"^quant_method 'bitsandbytes' is not read, only weig"),
        ({"quant_method": ["gptq"]}, r"^quant_method \['gptq'\] is not read"),
        (
            {"quant_method": "gptq", "checkpoint_format": "marlin"},
            r"^checkpoint_format 'marlin' is",
        ),
        ({"quant_method": "gptq", "desc_act": True}, r"^desc_act: columns in the order of activ"),
        ({"quant_method": "awq", "version": "gemv"}, r"^awq of version 'gemv' is not read, only g"),
        ({"quant_method": "awq", "version": 1}, r"^awq of version 1 is not read"),
        ([1], r"^quantization_config is \[1\], not an object$"),
    ],
)
def test_methods_that_are_not_read(config, message, index):
    with pytest.raises(LayoutError, match=message):
        recognize(config, index(PLAIN))


def test_packed_tensors_without_a_word_about_them(index):
    group_type = GroupType(4, 32)
    parts = pack_whole(LAYOUTS["gptq"], random_groups(group_type, 8, 64), group_type)
    arrays = index(named("m", parts))
    with pytest.raises(
        LayoutError, match=r"^m\.qweight: packed in a way that no quantization_conf"
    ):
        recognize(None, arrays)
    with pytest.raises(
        LayoutError, match=r"^m\.qweight: packed in a way that quant_method compres"
    ):
        recognize({"quant_method": "compressed-tensors"}, arrays)
    order = index({"m.weight_g_idx": np.zeros(4, "<i4")})
    with pytest.raises(LayoutError, match=r"^m\.weight_g_idx: packed in a way that"):
        recognize({"quant_method": "compressed-tensors"}, order)


@pytest.mark.parametrize("name", OF_INTEGERS)
def test_parts_that_are_missing_or_of_other_shapes(name, index):
    layout, group_type = LAYOUTS[name], GroupType(4, 32, symmetric=name == "gptq")
    parts = pack_whole(layout, random_groups(group_type, 16, 64), group_type)
    config = layout.quantization_config([Scheme(LINEAR, group_type)])
    metadata = layout.header_metadata({"m": MatrixShape(group_type, 16, 64)})
    first = next(iter(parts))
    for suffix, array in parts.items():
        rest = {key: value for key, value in parts.items() if key != suffix}
        # Without these it is another matrix.
        if suffix not in (first, ".weight_zero_point", ".g_idx"):
            with pytest.raises(MissingTensorError, match=rf"^m\{suffix} is not there, but other"):
                recognize(config, index(named("m", rest), metadata))
        other = array.astype(np.float32 if array.dtype == np.uint8 else np.uint8)
        for wrong in (array[None], other, array[:-1]):
            with pytest.raises(LayoutError, match=r"^m: "):
                recognize(config, index(named("m", rest | {suffix: wrong}), metadata))


@pytest.mark.parametrize("shape", [[0, 64], [-1, 64], [16, -64], [16, 8], [1 << 62, 1 << 62]])
def test_shapes_that_lie(shape, index):
    layout, group_type = LAYOUTS["compressed-tensors"], GroupType(4, 32)
    parts = pack_whole(layout, random_groups(group_type, 16, 64), group_type)
    parts[".weight_shape"] = np.array(shape, "<i8")
    config = layout.quantization_config([Scheme(LINEAR, group_type)])
    with pytest.raises(LayoutError, match=r"^m"):
        recognize(config, index(named("m", parts)))


def test_kinds_of_compressed_tensors_that_are_not_read(index):
    config = {"quant_method": "compressed-tensors"}
    int16 = {"m.weight": np.zeros((4, 4), "<i4"), "m.weight_scale": np.ones((4, 1), np.float32)}
    with pytest.raises(LayoutError, match=r"^m: weights of I32 with scales are not read$"):
        recognize(config, index(int16))
    fp6 = {"m.weight_packed": np.zeros((4, 24), np.uint8)}
    fp6["m.weight_scale"] = np.ones((4, 1), np.float16)
    with pytest.raises(LayoutError, match=r"^m: U8 codes with F16 scales are neither MXFP4 nor NV"):
        recognize(config, index(fp6))


@pytest.mark.parametrize("name", ["gptq", "gptq_v2"])
def test_symmetric_is_what_the_config_of_gptq_says(name, index):
    layout, group_type = LAYOUTS[name], GroupType(4, 32)
    arrays = index(named("m", pack_whole(layout, random_groups(group_type, 16, 64), group_type)))
    config = layout.quantization_config([Scheme(LINEAR, group_type)])
    assert recognize(config, arrays)["m"].shape.type.symmetric
    config |= {"sym": False, "dynamic": None}
    assert not recognize(config, arrays)["m"].shape.type.symmetric
    config["dynamic"] = {"-:x": {}, "+:y": {"bits": 8}}
    assert not recognize(config, arrays)["m"].shape.type.symmetric


@pytest.mark.parametrize("of_all", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", ["gptq", "gptq_v2"])
def test_symmetric_is_what_the_zero_points_are_where_gptq_has_both(name, bits, of_all, index):
    """The names in rules are those of a runtime's modules, and say nothing here."""
    layout, group_type = LAYOUTS[name], GroupType(bits, 32)
    parts = pack_whole(layout, random_groups(group_type, 1024, 4096), group_type)
    first, last = ({k: a.copy() for k, a in parts.items()} for _ in range(2))
    first[".qzeros"].view(np.uint8)[0, 0] ^= 1
    last[".qzeros"].view(np.uint8)[-1, -1] ^= 1
    assert parts[".qzeros"].nbytes >= 65536
    arrays = index(named("same", parts) | named("first", first) | named("last", last))
    config = layout.quantization_config([Scheme(LINEAR, group_type)])
    config |= {"sym": of_all, "dynamic": {"+:x": {"sym": not of_all}}}
    found = {n: matrix.shape.type.symmetric for n, matrix in recognize(config, arrays).items()}
    assert found == {"same": True, "first": False, "last": False}


def test_header_metadata_that_are_wrong(tmp_path):
    def write(value):
        text = json.dumps({"__metadata__": value}).encode()
        (tmp_path / "f").write_bytes(struct.pack("<Q", len(text)) + text)
        return tmp_path / "f"

    assert safetensors.read_header_metadata(write({"a": "b"})) == {"a": "b"}
    for wrong in ([], {"a": 1}, "x", None):
        with pytest.raises(FormatError, match=r"__metadata__ is not a map of texts$"):
            safetensors.read_header_metadata(write(wrong))


def test_metadata_that_are_wrong_name_the_file(index):
    arrays = index({"m.codes": np.zeros((1, 1), np.uint8)}, {"weightcast": "{"}, "x.safetensors")
    with pytest.raises(LayoutError, match=r"x\.safetensors: the weightcast metadata are not"):
        recognize(None, arrays)
