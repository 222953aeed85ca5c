"""GGUF with factors beside NVFP4 blocks: what is read, written, compared and verified.

Such files are written by hand, as llama.cpp's converter makes them. The values that count are
computed with numpy alone: gguf-py's dequantized blocks times the factors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants
from numpy.typing import NDArray

import weightcast
from tests.gguf_files import F16, F32, F64, Part, floats, read, string, u32, write
from weightcast.commands import llama_cpp
from weightcast.errors import CheckpointError, LayoutError
from weightcast.formats.gguf.factors import Factors, is_multiplied, read_factors

Floats = NDArray[np.float32]
NVFP4 = GGMLQuantizationType.NVFP4
METADATA = {"general.architecture": string("qwen3moe"), "qwen3moe.block_count": u32(1)}
# In a file that llama.cpp could take, and two that it multiplies in no other type than NVFP4.
SHAPES = {
    "output.weight": (48, 128),
    "blk.0.attn_q.weight": (64, 256),
    "blk.0.ffn_up_exps.weight": (3, 64, 128),
    "blk.0.ffn_down_exps.weight": (3, 128, 64),
    "blk.0.attn_kv_a_mqa.weight": (16, 64),
}
FOLDED = ("output.weight", "blk.0.attn_kv_a_mqa.weight")


def weights(seed: int = 5) -> dict[str, Floats]:
    """Weights of which experts differ in size by factors of ten; bfloat16 can hold them."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, shape in SHAPES.items():
        values = rng.standard_normal(shape)
        if len(shape) > 2:
            values *= 10.0 ** -np.arange(shape[0])[:, None, None]
        cut = values.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)
        found[name] = cut.view(np.float32)
    return found


def with_factor(name: str, values: Floats) -> Iterator[tuple[str, Part]]:
    """Blocks of values / factor, and the factor, which brings the largest to 6 * 448."""
    axes = (-2, -1)
    factor = (np.abs(values).max(axis=axes, keepdims=True) / (6 * 448)).astype(np.float32)
    blocks = weightcast.quantize(values / factor, "NVFP4")
    stem = name.removesuffix(".weight")
    yield name, Part(int(NVFP4), values.shape, blocks.tobytes())
    yield f"{stem}.scale", floats(factor.reshape(-1))
    yield f"{stem}.input_scale", floats(np.full(factor.size, 0.5, np.float32))


def write_factors(path: Path, values: Mapping[str, Floats], **metadata: bytes) -> Path:
    parts = dict(part for name, x in values.items() for part in with_factor(name, x))
    return write(path, {**METADATA, **metadata}, parts)


def decoded(path: Path, name: str) -> Floats:
    """Decode a tensor with gguf-py, and multiply by the factor that lies beside it."""
    tensors = read(path).tensors
    part = tensors[name]
    kind = GGMLQuantizationType(part.kind)
    raw = np.frombuffer(part.data, np.uint8).reshape(*part.shape[:-1], -1)
    values = quants.dequantize(raw, kind).reshape(part.shape).astype(np.float32)
    factor = tensors.get(name.replace(".weight", ".scale"))
    if factor is None:
        return values
    found = np.frombuffer(factor.data, "<f4")
    return values * found.reshape(-1, *[1] * (values.ndim - 1))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_factors(tmp_path_factory.mktemp("factors") / "m-NVFP4.gguf", weights())


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    parts = {name: floats(values) for name, values in weights().items()}
    return write(tmp_path_factory.mktemp("plain") / "m-F32.gguf", METADATA, parts)


# Values.


@pytest.mark.parametrize("name", SHAPES)
def test_values_are_blocks_times_factors(source: Path, name: str) -> None:
    tensor = weightcast.open(source)[name]
    wanted = decoded(source, name)
    np.testing.assert_array_equal(tensor.numpy(), wanted)
    np.testing.assert_array_equal(tensor[..., 3:17:2, 5:40], wanted[..., 3:17:2, 5:40])
    np.testing.assert_array_equal(tensor[::-1], wanted[::-1])
    for index, values in tensor.chunks("1K"):
        np.testing.assert_array_equal(values, wanted[index])
    stored = tensor.stored()
    kept = weightcast.dequantize(stored["blocks"], "NVFP4")
    factors = stored["factors"].reshape(-1, *[1] * (wanted.ndim - 1))
    np.testing.assert_array_equal(kept * factors, wanted)
    assert (tensor.type, tensor.dtype) == ("NVFP4", np.float32)


def test_factors_are_tensors_too(source: Path) -> None:
    checkpoint = weightcast.open(source)
    assert list(checkpoint) == list(read(source).tensors)
    assert checkpoint["blk.0.ffn_up_exps.scale"].numpy().shape == (3,)


def test_errors_are_those_of_the_weights(source: Path, plain: Path) -> None:
    found = weightcast.compare(plain, source)
    assert found.problem is None
    assert found.total.relative_rms is not None
    assert 0.08 < found.total.relative_rms < 0.12
    assert {tensor.name for tensor in found.errors.outputs[0].tensors} == set(SHAPES)
    assert weightcast.compare(source, source).total.relative_rms == 0


def test_a_difference_of_factors_is_one_of_the_weights(source: Path, tmp_path: Path) -> None:
    file = read(source)
    name = "blk.0.ffn_up_exps.scale"
    twice = np.frombuffer(file.tensors[name].data, "<f4") * np.float32([1, 2, 1])
    other = write(tmp_path / "o.gguf", file.metadata, {**file.tensors, name: floats(twice)})
    found = weightcast.compare(source, other)
    wrong = {t.name: t.metrics.relative_rms for t in found.errors.outputs[0].tensors}
    assert {name for name, error in wrong.items() if error} == {"blk.0.ffn_up_exps.weight"}
    assert found.problem is None
    verification = weightcast.verify(other, source)
    assert [problem.tensor for problem in verification.problems] == [
        "blk.0.ffn_up_exps.weight, expert 1"
    ]


# Conversions.


@pytest.mark.parametrize("type_name", ["F32", "F16", "BF16", "Q8_0", "Q4_K_M"])
def test_conversions_keep_the_weights(
    source: Path, plain: Path, tmp_path: Path, type_name: str
) -> None:
    """Factors stay where llama.cpp takes them, and are multiplied in where it does not."""
    path = tmp_path / f"m-{type_name}.gguf"
    summary = weightcast.convert(source, path, allow_requantize=True, baseline="stored")
    tensors = read(path).tensors
    for name in SHAPES:
        stem = name.removesuffix(".weight")
        beside = {f"{stem}.scale", f"{stem}.input_scale"}
        assert beside & tensors.keys() == (set() if name in FOLDED else beside)
        if type_name == "F32":
            np.testing.assert_array_equal(decoded(path, name), decoded(source, name))
    notes = [note for note in summary.outputs[0].notes if "factor" in note]
    assert notes == [
        "multiplied by the factor beside it, which llama.cpp would not do with that type: "
        "2 tensors, for example output.weight"
    ]
    # What was measured on the way is what a comparison finds.
    assert summary.errors is not None
    compared = weightcast.compare(source, path).errors.outputs[0]
    measured = {tensor.name: tensor.metrics for tensor in summary.errors.outputs[0].tensors}
    for tensor in compared.tensors:
        error = measured[tensor.name]
        for field in ("error_squares", "source_squares"):
            wanted = getattr(tensor.metrics, field)
            assert getattr(error, field) == pytest.approx(wanted, rel=1e-5, abs=1e-12)
    assert weightcast.verify(path, source).is_good


def test_blocks_are_quantized_as_if_no_factor_were_there(source: Path, tmp_path: Path) -> None:
    """As llama-quantize does it."""
    file = read(source)
    bare = {name: part for name, part in file.tensors.items() if name.endswith(".weight")}
    alone = write(tmp_path / "bare.gguf", file.metadata, bare)
    outputs = [tmp_path / name for name in ("a-Q5_K_M.gguf", "b-Q5_K_M.gguf")]
    for path, made in zip((source, alone), outputs, strict=True):
        weightcast.convert(path, made, allow_requantize=True)
    kept, wanted = (read(path).tensors for path in outputs)
    for name in SHAPES:
        if name not in FOLDED:
            assert kept[name] == wanted[name]


def test_what_stays_is_copied(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "m-NVFP4.gguf"
    weightcast.convert(source, path)
    assert read(path).tensors == read(source).tensors
    assert weightcast.verify(path, source).is_good


# Factors for other weights.


SMALL = {
    "output.weight": (32, 64),
    "blk.0.attn_q.weight": (64, 128),
    "blk.0.ffn_up_exps.weight": (3, 64, 128),
    "blk.0.attn_q_a.weight": (16, 64),  # llama.cpp knows no factor of it
}


@pytest.mark.parametrize("kind", ["NVFP4", "Q8_0"])
def test_layers_that_move_up_keep_their_own_weights(tmp_path: Path, kind: str) -> None:
    of_layers = {
        f"blk.{n}.{stem}.weight": weights(seed=n)[f"blk.0.{stem}.weight"]
        for n in range(3)
        for stem in ("attn_q", "ffn_up_exps")
    }
    metadata = {"qwen3moe.block_count": u32(3)}
    source = write_factors(tmp_path / "m-NVFP4.gguf", of_layers, **metadata)
    given: dict[str, Any] = {"allow_requantize": True}
    whole, path = tmp_path / f"whole-{kind}.gguf", tmp_path / f"o-{kind}.gguf"
    weightcast.convert(source, whole, **given)
    weightcast.convert(source, path, prune_layers=[1], **given)
    before, after = read(whole).tensors, read(path).tensors
    moved = {
        name.replace("blk.2", "blk.1"): part for name, part in before.items() if "1" not in name
    }
    assert after == moved
    assert weightcast.verify(path, source, prune_layers=[1]).is_good
    assert not weightcast.verify(path, source, prune_layers=[2]).is_good


def small(path: Path, sizes: tuple[float, ...] = (1e-3, 3e-5, 20.0)) -> Path:
    """Weights of which blocks alone would lose most; experts of different sizes."""
    rng = np.random.default_rng(3)
    parts = {}
    for name, shape in SMALL.items():
        x = rng.standard_normal(shape).astype(np.float32) * np.float32(sizes[0])
        if len(shape) == 3:
            x *= (np.array(sizes, np.float32) / np.float32(sizes[0]))[:, None, None]
        parts[name] = floats(x)
    return write(path, METADATA, parts)


def sqnr(path: Path, source: Path, name: str) -> NDArray[np.float64]:
    """Decibels of a tensor's matrices."""
    y, x = (decoded(file, name).astype(np.float64) for file in (path, source))
    axes = (-2, -1)
    return 10 * np.log10((x**2).sum(axis=axes) / ((y - x) ** 2).sum(axis=axes))


@pytest.mark.parametrize("split", [None, "16K"])
def test_small_weights_keep_their_precision_with_factors(tmp_path: Path, split: str | None) -> None:
    source, path = small(tmp_path / "m-F32.gguf"), tmp_path / "f-NVFP4.gguf"
    options: dict[str, Any] = {"nvfp4_factors": True, "baseline": "stored"}
    summary = weightcast.convert(source, path, split=split, **options)
    assert "NVFP4 with a factor beside it: 3 tensors" in summary.outputs[0].notes
    opened = weightcast.open(sorted(tmp_path.glob("f-NVFP4*"))[0])
    whole = write(
        tmp_path / "d-F32.gguf", METADATA, {name: floats(opened[name].numpy()) for name in SMALL}
    )
    for name in SMALL:
        if name == "blk.0.attn_q_a.weight":
            assert not opened[name].numpy().any()
            continue
        assert sqnr(whole, source, name).min() > 19.5
        factors = opened[name.replace(".weight", ".scale")].numpy()
        assert factors.shape == SMALL[name][:-2] or factors.shape == (1,)
        mantissas, _ = np.frexp(factors)
        np.testing.assert_array_equal(mantissas, 0.5)
        blocks = np.abs(decoded(source, name)).max(axis=(-2, -1)).reshape(-1) / factors
        assert (blocks <= 1440).all()
        assert (blocks > 720).all()
    compared = weightcast.compare(source, sorted(tmp_path.glob("f-NVFP4*"))[0])
    assert summary.errors is not None
    measured = summary.errors.outputs[0].total.relative_rms
    assert measured == pytest.approx(compared.total.relative_rms, rel=1e-5)
    found = weightcast.verify(sorted(tmp_path.glob("f-NVFP4*"))[0], source)
    assert found.is_good, found.problems
    assert found.matrices == {"same": 6}  # byte for byte


def test_without_factors_bytes_are_those_of_the_blocks(tmp_path: Path) -> None:
    """As llama-quantize --tensor-type X=nvfp4 makes them."""
    source, path = small(tmp_path / "m-F32.gguf"), tmp_path / "m-NVFP4.gguf"
    weightcast.convert(source, path)
    tensors = read(path).tensors
    assert tensors.keys() == SMALL.keys()
    for name in SMALL:
        wanted = weightcast.quantize(decoded(source, name), "NVFP4")
        assert tensors[name].data == wanted.tobytes()


def test_a_factor_does_not_depend_on_what_is_not_there(tmp_path: Path) -> None:
    """Of zeros it is 1; beside a bias llama.cpp would stop, and a factor that is there stays."""
    zeros = np.zeros((64, 64), np.float32)
    parts = {
        "blk.0.attn_q.weight": floats(zeros),
        "blk.0.ffn_up.weight": floats(zeros + 6),
        "blk.0.ffn_up.bias": floats(zeros[0]),
        "blk.0.ffn_down.weight": floats(zeros + 6),
        "blk.0.ffn_down.scale": floats(np.array([0.25], np.float32)),
        "blk.0.attn_v.weight": floats(zeros + 1440),
    }
    metadata = {**METADATA, "general.architecture": string("llama")}
    source, path = write(tmp_path / "m.gguf", metadata, parts), tmp_path / "m-NVFP4.gguf"
    weightcast.convert(source, path, nvfp4_factors=True)
    tensors = read(path).tensors
    scales = {n: np.frombuffer(p.data, "<f4")[0] for n, p in tensors.items() if "scale" in n}
    assert scales == {
        "blk.0.attn_q.scale": 1,
        "blk.0.ffn_down.scale": 0.25,
        "blk.0.attn_v.scale": 1,
    }
    assert weightcast.compare(source, path).total.relative_rms == 0


# Verifying.


def test_an_artifact_may_have_factors_that_its_source_lacks(source: Path, plain: Path) -> None:
    found = weightcast.verify(source, plain)
    assert found.is_good, found.problems
    assert found.errors is not None
    total = found.errors.outputs[0].total.relative_rms
    assert total == pytest.approx(weightcast.compare(plain, source).total.relative_rms, rel=1e-3)


def test_an_artifact_without_the_factors_of_its_source_is_wrong(
    source: Path, tmp_path: Path
) -> None:
    file = read(source)
    bare = {name: part for name, part in file.tensors.items() if name.endswith(".weight")}
    found = weightcast.verify(write(tmp_path / "m-NVFP4.gguf", file.metadata, bare), source)
    named = {(problem.tensor or "").partition(",")[0] for problem in found.problems}
    assert named == set(SHAPES)
    assert all("is scaled by" in problem.what for problem in found.problems)


def test_a_factor_of_zero_leaves_no_weights(source: Path, tmp_path: Path) -> None:
    file = read(source)
    zero = {"blk.0.attn_q.scale": floats(np.zeros(1, np.float32))}
    path = write(tmp_path / "m-NVFP4.gguf", file.metadata, file.tensors | zero)
    assert not weightcast.open(path)["blk.0.attn_q.weight"].numpy().any()
    (problem,) = weightcast.verify(path, source).problems
    assert problem.what == "the factor beside it is 0, which leaves no weights"


# Files that are none.


def one(path: Path, scale: Part, kind: str = "NVFP4", name: str = "blk.0.attn_q") -> Path:
    values = np.linspace(-1, 1, 8 * 64, dtype=np.float32).reshape(8, 64)
    number = int(GGMLQuantizationType[kind])
    data = weightcast.quantize(values, kind).tobytes()
    return write(
        path,
        METADATA,
        {f"{name}.weight": Part(number, (8, 64), data), f"{name}.scale": scale},
    )


def part(values: Any, kind: int = F32, dtype: str = "<f4") -> Part:
    array = np.atleast_1d(np.asarray(values, dtype))
    return Part(kind, array.shape, array.tobytes())


@pytest.mark.parametrize(
    ("scale", "said"),
    [
        (part(np.nan), "'blk.0.attn_q.scale' is nan, by which 'blk.0.attn_q.weight' would be"),
        (part(-np.inf), "'blk.0.attn_q.scale' is -inf, by which"),
        (part([1, 2]), r"is F32 \[2\], where the factor of 'blk.0.attn_q.weight' is F32 \[1\]"),
        (part(np.ones((8, 1))), r"is F32 \[8, 1\], where the factor"),
        (part(1, F16, "<f2"), r"is F16 \[1\], where the factor"),
        (part(1, F64, "<f8"), r"is F64 \[1\], where the factor"),
    ],
)
def test_bad_factors_are_refused(tmp_path: Path, scale: Part, said: str) -> None:
    path = one(tmp_path / "m-NVFP4.gguf", scale)
    with pytest.raises(CheckpointError, match=said) as refused:
        weightcast.open(path)
    assert str(refused.value).startswith(f"{path}: ")
    (problem,) = weightcast.verify(path).problems
    assert problem.place == str(path)


@pytest.mark.parametrize("factor", [-0.5, 1.0, 1e-42, 3e38])
def test_odd_factors_are_numbers(tmp_path: Path, factor: float) -> None:
    path = one(tmp_path / "m-NVFP4.gguf", part(factor))
    with np.errstate(over="ignore"):
        wanted = decoded(path, "blk.0.attn_q.weight")
    np.testing.assert_array_equal(weightcast.open(path)["blk.0.attn_q.weight"].numpy(), wanted)


@pytest.mark.parametrize(
    ("kind", "name", "scale"),
    [
        ("F32", "blk.0.attn_q", part([1, 2])),  # no factor by its shape
        ("F32", "blk.0.attn_q", part(3, F16, "<f2")),
        ("F32", "blk.0.ffn_gate_inp", part(3)),  # of Gemma 4, which scales its inputs
        ("Q8_0", "output", part(3)),
        ("F32", "v.blk.0.attn_q", part(3)),
    ],
)
def test_what_is_no_factor_changes_nothing(
    tmp_path: Path, kind: str, name: str, scale: Part
) -> None:
    path = one(tmp_path / "m.gguf", scale, kind, name)
    with_none = write(tmp_path / "n.gguf", METADATA, {**read(path).tensors} | {"x": part(0)})
    assert read_factors({}) == Factors()
    values = weightcast.open(path)[f"{name}.weight"].numpy()
    tensors = dict(read(with_none).tensors)
    tensors.pop(f"{name}.scale")
    alone = write(tmp_path / "a.gguf", METADATA, tensors)
    np.testing.assert_array_equal(weightcast.open(alone)[f"{name}.weight"].numpy(), values)


@pytest.mark.parametrize("kind", ["F32", "BF16", "Q8_0"])
def test_llama_cpp_multiplies_other_types_too(tmp_path: Path, kind: str) -> None:
    """As in BitNet, in Gemma 4, and in what llama-quantize makes of NVFP4."""
    path = one(tmp_path / "m.gguf", part(3), kind)
    np.testing.assert_array_equal(
        weightcast.open(path)["blk.0.attn_q.weight"].numpy(), decoded(path, "blk.0.attn_q.weight")
    )


@pytest.mark.parametrize(
    ("architecture", "name", "type_name", "is_applied"),
    [
        ("llama", "blk.12.ffn_down.weight", "Q4_K", True),
        ("qwen2", "blk.12.ffn_down.weight", "Q4_K", False),
        ("qwen2", "blk.12.attn_q.weight", "Q4_K", True),
        ("mimo2", "blk.12.attn_q.weight", "NVFP4", False),
        ("qwen3moe", "blk.1.ffn_up_exps.weight", "Q8_0", True),
        ("grok", "blk.1.ffn_up_exps.weight", "NVFP4", False),
        ("llama", "blk.1.ffn_up_shexp.weight", "Q8_0", False),
        ("llama", "output.weight", "NVFP4", True),
        ("llama", "output.weight", "Q8_0", False),
        ("llama", "token_embd.weight", "NVFP4", False),
        ("llama", "blk.0.ffn_gate_up_exps.weight", "NVFP4", False),
    ],
)
def test_what_llama_cpp_multiplies(
    architecture: str, name: str, type_name: str, *, is_applied: bool
) -> None:
    assert is_multiplied(architecture, name, type_name) == is_applied


def test_factors_of_other_types_stay_in_any_architecture(tmp_path: Path) -> None:
    """BitNet's own tools use them, whatever llama.cpp does."""
    path = one(tmp_path / "m.gguf", part(3), "BF16", "blk.0.ffn_up")
    file = read(path)
    metadata = {**file.metadata, "general.architecture": string("bitnet-b1.58")}
    source = write(path, metadata, dict(file.tensors))
    out = tmp_path / "m-Q8_0.gguf"
    weightcast.convert(source, out)
    assert read(out).tensors["blk.0.ffn_up.scale"] == file.tensors["blk.0.ffn_up.scale"]
    assert (weightcast.compare(source, out).total.relative_rms or 0) < 0.01


def test_what_llama_cpp_would_run_wrong_is_told(source: Path, tmp_path: Path) -> None:
    file = read(source)
    metadata = {**file.metadata, "general.architecture": string("grok")}
    other = write(tmp_path / "g.gguf", metadata, dict(file.tensors))
    copied, made = tmp_path / "m-NVFP4.gguf", tmp_path / "m-BF16.gguf"
    notes = [weightcast.convert(other, path).outputs[0].notes for path in (copied, made)]
    assert any("refuses or ignores in this architecture" in note for note in notes[0])
    assert any(note.startswith("multiplied by the factor beside it") for note in notes[1])
    assert {name for name in read(made).tensors if name.endswith("scale")} == {
        "blk.0.attn_q.scale",
        "blk.0.attn_q.input_scale",
    }


def test_the_architecture_that_is_asked_for_counts(
    source: Path, plain: Path, tmp_path: Path
) -> None:
    def factors(source: Path, architecture: str, kind: str, **options: Any) -> set[str]:
        given = [f"general.architecture=str:{architecture}"]
        path = tmp_path / f"{architecture}-{kind}.gguf"
        weightcast.convert(source, path, override_kv=given, **options)
        assert weightcast.verify(path, source, override_kv=given).is_good
        return {name for name in read(path).tensors if name.endswith(".scale")}

    found = factors(plain, "qwen3moe", "NVFP4", nvfp4_factors=True)
    assert "blk.0.attn_q.scale" in found
    assert found - factors(plain, "plm", "NVFP4", nvfp4_factors=True) >= {"blk.0.attn_q.scale"}
    assert "blk.0.attn_q.scale" in factors(source, "qwen3moe", "F16")
    assert "blk.0.attn_q.scale" not in factors(source, "plm", "F16")


def test_a_factor_for_each_expert_or_one(tmp_path: Path) -> None:
    from weightcast.converters.graph import scaled, stored
    from weightcast.formats.array import StoredArray

    array = StoredArray(tmp_path / "x", 0, 24, "F32", (2, 3))
    assert scaled(stored("w", array), [2.0]).shape == (2, 3)
    with pytest.raises(LayoutError, match=r"w \[2, 3\] cannot be multiplied by 3 factors"):
        scaled(stored("w", array), [1.0] * 3)
    with pytest.raises(LayoutError, match="w: a factor is not finite"):
        scaled(stored("w", array), [np.inf])


# Grok-1, whose tensors are found by a table.


def grok_with_factors(tiny: Path, folder: Path, sign: int = 1) -> Path:
    """A Grok-1 with experts and some of attention in NVFP4, the rest as float32."""
    whole = folder / "m-F32.gguf"
    weightcast.convert(tiny, whole, no_tokenizer=True)
    file, parts = read(whole), {}
    for name, tensor in file.tensors.items():
        if name.endswith(NVFP4_OF_GROK):
            values = np.frombuffer(tensor.data, "<f4").reshape(tensor.shape)
            parts.update(with_factor(name, values))
            stem = name.removesuffix(".weight")
            factors = np.frombuffer(parts[f"{stem}.scale"].data, "<f4")
            parts[f"{stem}.scale"] = floats(factors * np.float32(sign))
        else:
            parts[name] = tensor
    return write(folder / "m-NVFP4.gguf", file.metadata, parts)


NVFP4_OF_GROK = ("_exps.weight", "attn_output.weight", "attn_q.weight")


@pytest.mark.parametrize("sign", [1, -1])
def test_a_directory_gets_the_blocks_and_a_global_scale(
    tiny: Path, tmp_path: Path, sign: int
) -> None:
    """Which no global scale can be where it is negative: then blocks are made anew."""
    path = grok_with_factors(tiny, tmp_path, sign)
    summary = weightcast.convert(path, tmp_path / "m-nvfp4", no_tokenizer=True, baseline="stored")
    compared = weightcast.compare(path, tmp_path / "m-nvfp4").errors.outputs[0].tensors
    assert summary.errors is not None
    for tensors in (compared, summary.errors.outputs[0].tensors):
        kept = [tensor for tensor in tensors if f"{tensor.role}.weight".endswith(NVFP4_OF_GROK)]
        assert len(kept) == 10
        worst = max(tensor.metrics.relative_rms or 0 for tensor in kept)
        assert worst < 1e-6 if sign > 0 else 0.01 < worst < 0.12
    assert weightcast.verify(tmp_path / "m-nvfp4", path).is_good


def test_a_grok_1_with_factors(tiny: Path, tmp_path: Path) -> None:
    """Directories and GGUF get the weights that blocks and factors are; llama.cpp runs them so."""
    path = grok_with_factors(tiny, tmp_path)
    opened = weightcast.open(path)
    for name in ("blk.0.attn_q.weight", "blk.1.ffn_down_exps.weight"):
        np.testing.assert_array_equal(opened[name].numpy(), decoded(path, name))
    anew = {"no_tokenizer": True}
    outputs: dict[str, dict[str, Any]] = {"m-f32": anew, "o-F32.gguf": anew, "c-F32.gguf": {}}
    for name, options in outputs.items():
        weightcast.convert(path, tmp_path / name, **options)
        same = weightcast.compare(path, tmp_path / name)
        assert same.problem is None
        assert same.total.relative_rms == 0
        assert weightcast.verify(tmp_path / name, path).is_good
    assert "blk.0.attn_q.scale" in read(tmp_path / "c-F32.gguf").tensors
    assert "blk.0.ffn_up_exps.scale" not in read(tmp_path / "c-F32.gguf").tensors
    found, wanted = (
        llama_cpp.logits(tmp_path / name, [[1, 2, 3, 5, 7, 11]])
        for name in ("c-F32.gguf", "o-F32.gguf")
    )
    np.testing.assert_allclose(found, wanted, atol=1e-4 * np.abs(wanted).max())
