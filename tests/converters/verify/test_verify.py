"""Artifacts are verified: right ones of every kind, damaged ones, and other people's."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from click.testing import CliRunner

import weightcast
from tests import gguf_files, imatrices
from tests.grok1 import places
from tests.support import Golden
from weightcast.cli import commands
from weightcast.commands.text.verify import problem_lines, verification_lines
from weightcast.converters.compare.rows import PairedRows
from weightcast.converters.compare.stream import PairedBuffers
from weightcast.converters.graph.read import Slab, load_float32
from weightcast.converters.sources import open_graph
from weightcast.converters.verify.result import Verification
from weightcast.errors import CheckpointError
from weightcast.formats import safetensors
from weightcast.formats.gguf import read as gguf

GGUF = ("Q8_0", "Q4_K_M", "Q2_K", "IQ4_XS", "BF16", "F16", "F32", "MXFP4", "TQ1_0")
DIRECTORIES = (
    "bf16",
    "f32",
    "int8-g32",
    "int8-g32-gptq",
    "int8-g32-weightcast",
    "int4-g128",
    "int4-g64-asym",
    "int4-g64-gptq",
    "int4-g64-gptq_v2",
    "int4-g64-awq",
    "int4-g32-asym-weightcast",
    "mxfp4",
    "nvfp4",
    "fp8",
    "fp8-block",
)
SAME = {"same"}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, tokenizer_model: Path) -> Path:
    """A golden checkpoint with a tokenizer."""
    folder = tmp_path_factory.mktemp("source") / "wide"
    shutil.copytree(Golden("wide").path, folder)
    shutil.copyfile(tokenizer_model, folder / "tokenizer.model")
    return folder


@pytest.fixture(scope="module")
def artifacts(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Artifacts of four kinds; do not change them."""
    folder = tmp_path_factory.mktemp("artifacts")
    names = ("m-Q8_0.gguf", "m-Q4_K_M.gguf", "m-bf16", "m-int4-g128")
    weightcast.convert(source, *(folder / name for name in names))
    return folder


def copied(artifacts: Path, name: str, folder: Path) -> Path:
    copy = shutil.copytree if (artifacts / name).is_dir() else shutil.copyfile
    copy(artifacts / name, folder / name)
    return folder / name


def lines(found: Verification) -> str:
    return "\n".join(verification_lines(found))


# Right ones.


@pytest.mark.parametrize("type_name", GGUF)
def test_gguf_files_are_good(source: Path, tmp_path: Path, type_name: str) -> None:
    path = tmp_path / f"m-{type_name}.gguf"
    weightcast.convert(source, path)
    found = weightcast.verify(path, source)
    assert found.is_good, lines(found)
    assert found.matrices.keys() == SAME
    assert "metadata: every value is what weightcast writes" in found.checked
    assert found.unchecked == ("checksums: no SHA256SUMS was found",)


@pytest.mark.parametrize("type_name", DIRECTORIES)
def test_directories_are_good(source: Path, tmp_path: Path, type_name: str) -> None:
    path = tmp_path / f"m-{type_name}"
    weightcast.convert(source, path)
    found = weightcast.verify(path, source, jobs=3)
    assert found.is_good, lines(found)
    assert found.matrices.keys() == SAME
    assert "headers: every byte is what weightcast writes" in found.checked
    assert found.unchecked == ("checksums: no SHA256SUMS was found",)


def test_names_that_say_nothing_and_rules_do_not_matter(source: Path, tmp_path: Path) -> None:
    weightcast.convert(source, tmp_path / "a.gguf", types=["Q4_K_M"], tensor_types=["attn_q=Q6_K"])
    weightcast.convert(
        source,
        tmp_path / "b",
        types=["int4-g64"],
        tensor_types=[r"layers\.0\..*w3=int8-g64", "q_proj=bf16"],
    )
    for name in ("a.gguf", "b"):
        found = weightcast.verify(tmp_path / name, source)
        assert found.is_good, lines(found)
        assert found.matrices.keys() == SAME
        assert found.unchecked == ("checksums: no SHA256SUMS was found",), lines(found)


@pytest.mark.parametrize("name", ["m-Q8_0.gguf", "m-bf16"])
def test_split_outputs_are_good(source: Path, tmp_path: Path, name: str) -> None:
    weightcast.convert(source, tmp_path / name, split="2M")
    path = tmp_path / name
    if name.endswith(".gguf"):
        path = sorted(tmp_path.glob("*.gguf"))[1]  # any part will do
    found = weightcast.verify(path, source)
    assert found.is_good, lines(found)
    assert found.unchecked == ("checksums: no SHA256SUMS was found",), lines(found)


def test_importance_is_used_if_it_is_given(source: Path, tmp_path: Path) -> None:
    graph = open_graph(source)
    shapes = {p.gguf: graph[p.name].shape for p in places(2)}
    matrix = imatrices.write_gguf(tmp_path / "imatrix.gguf", imatrices.model_entries(shapes))
    weightcast.convert(source, tmp_path / "m-Q4_K_M.gguf", imatrix=matrix)
    found = weightcast.verify(tmp_path / "m-Q4_K_M.gguf", source, imatrix=matrix)
    assert found.is_good
    assert found.matrices.keys() == SAME
    without = weightcast.verify(tmp_path / "m-Q4_K_M.gguf", source)
    assert without.is_good, lines(without)
    assert without.matrices["similar"] > 40


def test_gguf_of_another_model(tmp_path: Path) -> None:
    x = np.random.default_rng(1).standard_normal((64, 256), np.float32)
    metadata = {"general.architecture": gguf_files.string("llama")}
    numbers = gguf_files.Part(gguf_files.I32, (4,), bytes(range(16)))
    tensors = {"blk.0.attn_q.weight": gguf_files.floats(x), "table": numbers}
    model = gguf_files.write(tmp_path / "model.gguf", metadata, tensors)
    weightcast.convert(model, tmp_path / "m-Q6_K.gguf")
    assert weightcast.verify(tmp_path / "m-Q6_K.gguf", model).is_good
    raw = bytearray((tmp_path / "m-Q6_K.gguf").read_bytes())
    raw[raw.rindex(bytes(range(16)))] ^= 1
    (tmp_path / "m-Q6_K.gguf").write_bytes(raw)
    (problem,) = weightcast.verify(tmp_path / "m-Q6_K.gguf", model).problems
    assert (problem.tensor, problem.mistake) == ("table", "numbers")


def test_gguf_and_directories_are_sources_too(source: Path, tmp_path: Path) -> None:
    weightcast.convert(source, tmp_path / "m-F32.gguf", tmp_path / "m-int8-g32", no_tokenizer=True)
    weightcast.convert(tmp_path / "m-F32.gguf", tmp_path / "m-Q5_K_M.gguf")
    weightcast.convert(
        tmp_path / "m-int8-g32", tmp_path / "m-Q8_0.gguf", tmp_path / "m-bf16", no_tokenizer=True
    )
    for name, made_of in (
        ("m-Q5_K_M.gguf", "m-F32.gguf"),
        ("m-Q8_0.gguf", "m-int8-g32"),
        ("m-bf16", "m-int8-g32"),
        ("m-int8-g32", "m-F32.gguf"),
    ):
        found = weightcast.verify(tmp_path / name, tmp_path / made_of)
        assert found.is_good, lines(found)
        if name != "m-int8-g32":
            assert found.matrices.keys() == SAME, (name, lines(found))
            assert found.unchecked == ("checksums: no SHA256SUMS was found",), lines(found)


def test_mistakes_in_directories_are_named(artifacts: Path, source: Path, tmp_path: Path) -> None:
    """w1 and w3 exchanged by their names in the header, of plain and of packed ones."""
    for name in ("m-bf16", "m-int4-g128"):
        path = copied(artifacts, name, tmp_path)
        file = path / "model.safetensors"
        raw = file.read_bytes()
        for old, new in ((b".w1.", b".wX."), (b".w3.", b".w1."), (b".wX.", b".w3.")):
            raw = raw.replace(b"experts.5" + old, b"experts.5" + new)
        file.write_bytes(raw)
        found = weightcast.verify(path, source)
        weights = [p for p in found.problems if p.mistake == "exchanged"]
        assert len(weights) == 4, lines(found)
        assert any("holds ffn_up_exps, not ffn_gate_exps" in p.line for p in weights)


# Bits.


@pytest.mark.parametrize("times", [2, pytest.param(10, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("name", ["m-Q8_0.gguf", "m-Q4_K_M.gguf", "m-bf16", "m-int4-g128"])
def test_flipped_bits_of_weights_are_found(
    artifacts: Path, source: Path, tmp_path: Path, name: str, times: int
) -> None:
    """A bit each of 20 tensors, of about as many in all: twice, so that most of them had one."""
    path = copied(artifacts, name, tmp_path)
    rng = np.random.default_rng(11)
    arrays = gguf.read_split(path).tensors if path.is_file() else safetensors.read_directory(path)
    shapes = [name for name in arrays if name.endswith(".weight_shape")]
    names = [name for name in arrays if name not in shapes]
    # What a damaged shape belongs to cannot be told, so nothing else is then.
    rounds = [[name] for name in shapes[:3]]
    rounds += [[names[n] for n in rng.choice(len(names), 20, replace=False)] for _ in range(times)]
    for chosen in rounds:
        places = {n: int(arrays[n].offset + rng.integers(arrays[n].nbytes)) for n in chosen}
        file = arrays[chosen[0]].path
        before = file.read_bytes()
        raw = bytearray(before)
        for place in places.values():
            raw[place] ^= 1 << rng.integers(8)
        file.write_bytes(raw)
        told = weightcast.verify(path, source).problems
        file.write_bytes(before)
        named = " ".join(problem.line for problem in told)
        for tensor in chosen:
            # A matrix is named, or the part of it that is always the same.
            stem = tensor.rsplit(".", 1)[0]
            assert any(f"{name}:" in named for name in (tensor, stem, f"{stem}.weight")) or (
                f"{tensor}, expert" in named
            ), (tensor, named)


@pytest.mark.parametrize("count", [20, pytest.param(100, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("name", ["m-Q8_0.gguf", "m-Q4_K_M.gguf", "m-bf16", "m-int4-g128"])
def test_flipped_bits_around_the_weights_are_found(
    artifacts: Path, source: Path, tmp_path: Path, name: str, count: int
) -> None:
    """Places in headers, metadata, padding and small files; even a few of them lie in all parts."""
    path = copied(artifacts, name, tmp_path)
    rng = np.random.default_rng(12)
    files = [path] if path.is_file() else sorted(path.iterdir())
    steps = -(-count // len(files))
    for step, file in product(range(steps), files):
        before = file.read_bytes()
        raw = bytearray(before)
        place = int((step + rng.random()) / steps * _header_bytes(file))
        raw[place] ^= 1 << rng.integers(8)
        file.write_bytes(raw)
        found = weightcast.verify(path, source, sample=1)
        file.write_bytes(before)
        assert not found.is_good, (file, lines(found))


def _header_bytes(file: Path) -> int:
    if file.suffix == ".gguf":
        return gguf.read_header(file).data_start
    if file.suffix == ".safetensors":
        return 8 + int.from_bytes(file.read_bytes()[:8], "little")
    return file.stat().st_size


@pytest.mark.parametrize("name", ["m-Q8_0.gguf", "m-int4-g128"])
def test_checksums_find_every_bit_without_the_source(
    artifacts: Path, tmp_path: Path, name: str
) -> None:
    path = copied(artifacts, name, tmp_path)
    files = [path] if path.is_file() else sorted(path.iterdir())
    sums = path.with_name("m-Q8_0.SHA256SUMS") if path.is_file() else path / "SHA256SUMS"
    text = [f"{hashlib.sha256(f.read_bytes()).hexdigest()}  {f.name}\n" for f in files]
    sums.write_text("".join(text))
    assert weightcast.verify(path).is_good
    rng = np.random.default_rng(13)
    for _ in range(20):
        file = files[rng.integers(len(files))]
        before = file.read_bytes()
        raw = bytearray(before)
        raw[rng.integers(len(raw))] ^= 1 << rng.integers(8)
        file.write_bytes(raw)
        told = [problem.line for problem in weightcast.verify(path).problems]
        file.write_bytes(before)
        assert any(str(file) in line and "SHA-256 is another" in line for line in told)


def test_checksums_name_tensors_missing_files_and_strangers(
    artifacts: Path, tmp_path: Path
) -> None:
    path = copied(artifacts, "m-bf16", tmp_path)
    weights = path / "model.safetensors"
    arrays = safetensors.read_index(weights)
    name = "model.layers.1.self_attn.q_proj.weight"
    raw = weights.read_bytes()
    listed = [
        {"name": n, "file": weights.name, "sha256": _sha(raw[a.offset : a.offset + a.nbytes])}
        for n, a in arrays.items()
    ]
    (path / "tensors.json").write_text(json.dumps({"tensors": listed}))
    sums = {file.name: _sha(file.read_bytes()) for file in path.iterdir()}
    text = "".join(f"{sha} *{n}\n" for n, sha in sums.items())
    (path / "SHA256SUMS").write_text(text + "not a line\n")
    changed = bytearray(raw)
    changed[arrays[name].offset] ^= 1
    weights.write_bytes(changed)
    (path / "config.json").unlink()
    (path / "extra.json").write_text("{}")
    others = ("LICENSE", "USE_POLICY.md", "logo.png", "model.sig", ".gitattributes", "._LICENSE")
    for other in others:
        (path / other).write_text("mine")
    told = lines(weightcast.verify(path))
    assert f"{name}: its SHA-256 is another than the list of tensors says" in told
    assert "config.json: missing, but SHA256SUMS names it" in told
    assert told.count("has no checksum") == 1
    assert "extra.json: has no checksum in SHA256SUMS" in told
    assert f"not checked: files that nothing loads: {', '.join(others[:4])}\n" in told
    assert f"line {len(sums) + 1}: is no line of sha256sum" in told


def _sha(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


# Structure.


def test_cut_and_longer_files(artifacts: Path, tmp_path: Path) -> None:
    path = copied(artifacts, "m-Q8_0.gguf", tmp_path)
    raw = path.read_bytes()
    path.write_bytes(raw[:-900])
    told = lines(weightcast.verify(path))
    size, end = len(raw) - 900, len(raw)
    assert (
        f"output_norm.weight: the file ends at byte {size:,}, its tensors at {end:,}: cut" in told
    )
    assert told.endswith("1 problem")
    path.write_bytes(raw + b"more")
    assert "4 more bytes after the last tensor" in lines(weightcast.verify(path))
    path.write_bytes(raw[:100])
    assert "are declared, but only" in lines(weightcast.verify(path))


def test_tensors_that_overlap_are_misplaced_or_occur_twice(artifacts: Path, tmp_path: Path) -> None:
    raw = (artifacts / "m-Q8_0.gguf").read_bytes()

    def at(name: str, change: Callable[[int], int]) -> bytes:
        end = raw.index(gguf_files.text(name)) + 8 + len(name)
        end += 4 + 8 * int.from_bytes(raw[end : end + 4], "little") + 4
        offset = struct.unpack_from("<Q", raw, end)[0]
        return raw[:end] + struct.pack("<Q", change(offset)) + raw[end + 8 :]

    path = tmp_path / "m-Q8_0.gguf"
    path.write_bytes(at("blk.0.attn_k.weight", lambda offset: offset - 64))
    told = lines(weightcast.verify(path))
    assert "blk.0.attn_k.weight: begins at byte" in told
    assert "inside blk.0.ffn_up_exps.weight" in told
    assert "64 bytes that no tensor has" in told
    path.write_bytes(at("output_norm.weight", lambda offset: offset - 4))
    told = lines(weightcast.verify(path))
    assert "output_norm.weight: begins at byte" in told
    assert "no multiple of 32" in told
    path.write_bytes(raw.replace(b"blk.0.attn_k.weight", b"blk.0.attn_q.weight", 1))
    assert "blk.0.attn_q.weight: occurs twice" in lines(weightcast.verify(path))


def test_missing_and_extra_tensors(artifacts: Path, source: Path, tmp_path: Path) -> None:
    file = gguf_files.read(artifacts / "m-Q8_0.gguf")
    tensors = dict(file.tensors)
    del tensors["blk.1.attn_norm.weight"]
    tensors["blk.0.rope.weight"] = gguf_files.floats(np.ones(32, np.float32))
    path = gguf_files.write(tmp_path / "m-Q8_0.gguf", file.metadata, tensors)
    told = {p.mistake: p.line for p in weightcast.verify(path, source).problems}
    assert "blk.1.attn_norm.weight: is missing" in told["missing"]
    assert "blk.0.rope.weight: is not in the source" in told["extra"]
    assert "blk.1.attn_norm.weight is missing" in lines(weightcast.verify(path))


def test_shapes_that_are_transposed_or_wrong(artifacts: Path, source: Path, tmp_path: Path) -> None:
    file = gguf_files.read(artifacts / "m-Q8_0.gguf")
    part = file.tensors["blk.0.ffn_gate_inp.weight"]
    tensors = dict(file.tensors)
    tensors["blk.0.ffn_gate_inp.weight"] = replace(part, shape=part.shape[::-1])
    path = gguf_files.write(tmp_path / "m-Q8_0.gguf", file.metadata, tensors)
    (problem,) = weightcast.verify(path, source).problems
    assert "is [256, 8], in the source [8, 256]: transposed" in problem.line


def test_split_files_that_do_not_belong_together(source: Path, tmp_path: Path) -> None:
    weightcast.convert(source, tmp_path / "m-Q8_0.gguf", split="2M")
    parts = sorted(tmp_path.glob("*.gguf"))
    parts[1].rename(tmp_path / "aside")
    told = lines(weightcast.verify(parts[0]))
    assert f"{parts[1]}: missing: part 2 of {len(parts)}" in told
    shutil.copyfile(parts[2], parts[1])
    shutil.copyfile(parts[2], tmp_path / "m-Q8_0-00001-of-00002.gguf")
    told = lines(weightcast.verify(parts[0]))
    assert f"{parts[1]}: split.no is 2 where the name says 1" in told
    assert f"are also in {parts[1].name}" in told
    assert "m-Q8_0-00001-of-00002.gguf: no part of the" in told


def test_indexes_that_contradict_the_files(source: Path, tmp_path: Path) -> None:
    weightcast.convert(source, tmp_path / "m-bf16", split="4M")
    index = tmp_path / "m-bf16" / "model.safetensors.index.json"
    right = json.loads(index.read_text())
    files = sorted(set(right["weight_map"].values()))
    wrong = json.loads(index.read_text())
    wrong["weight_map"]["lm_head.weight"] = files[-1]
    del wrong["weight_map"]["model.norm.weight"]
    wrong["weight_map"]["ghost"] = files[0]
    index.write_text(json.dumps(wrong))
    told = lines(weightcast.verify(tmp_path / "m-bf16"))
    holder = right["weight_map"]["lm_head.weight"]
    assert f"lm_head.weight: is in {holder}, where it names {files[-1]}" in told
    assert "model.norm.weight: is not in model.safetensors.index.json" in told
    assert f"ghost: is not in {files[0]}, which it names" in told
    right["metadata"]["total_size"] += 1
    index.write_text(json.dumps(right))
    assert "total_size is" in lines(weightcast.verify(tmp_path / "m-bf16"))
    right["metadata"]["total_size"] -= 1
    index.write_text(json.dumps(right))
    (tmp_path / "m-bf16" / files[1]).unlink()
    for given in (None, source):  # one cause, one line
        told = lines(weightcast.verify(tmp_path / "m-bf16", given))
        assert f"{files[1]}: missing" in told
        assert told.endswith("1 problem")
    every = {name: files[0] for name in right["weight_map"]}
    index.write_text(json.dumps({**right, "weight_map": every}))
    told = lines(weightcast.verify(tmp_path / "m-bf16"))
    assert "and so on; copy the file again" in told
    assert told.endswith("3 problems")


def test_hyperparameters_that_are_not_the_source_s(
    artifacts: Path, source: Path, tmp_path: Path
) -> None:
    path = copied(artifacts, "m-bf16", tmp_path)
    config = json.loads((path / "config.json").read_text())
    config["rope_theta"] = 1000000.0
    config["num_experts_per_tok"] = 1
    (path / "config.json").write_text(json.dumps(config))
    told = lines(weightcast.verify(path, source))
    assert "rope_base is 1000000.0, in the source 10000.0" in told
    assert "num_selected_experts is 1, in the source 2" in told
    file = gguf_files.read(artifacts / "m-Q8_0.gguf")
    metadata = {**file.metadata, "grok.expert_used_count": gguf_files.u32(4)}
    gguf_files.write(tmp_path / "m-Q8_0.gguf", metadata, file.tensors)
    told = lines(weightcast.verify(tmp_path / "m-Q8_0.gguf", source))
    assert "grok.expert_used_count is 4, where the source makes it 2" in told


# Files by others.


def _rewritten(
    artifacts: Path,
    source: Path,
    path: Path,
    make: Callable[[np.ndarray, str], np.ndarray],
    alignment: int = 32,
) -> Path:
    """Write a GGUF file by other means: other metadata, alignment, and rows by `make`."""
    file = gguf_files.read(artifacts / "m-Q8_0.gguf")
    graph = open_graph(source)
    tensors = {}
    for place in places(2):
        part = file.tensors[place.gguf]
        values = load_float32(graph[place.name])
        kind = {0: "F32", 8: "Q8_0"}[part.kind]
        tensors[place.gguf] = replace(part, data=make(values, kind).tobytes())
    metadata = {**file.metadata, "general.name": gguf_files.string("Somebody's")}
    if alignment != 32:
        metadata["general.alignment"] = gguf_files.u32(alignment)
    return gguf_files.write(path, metadata, tensors, alignment)


def test_q8_0_that_was_requantized_is_told(artifacts: Path, source: Path, tmp_path: Path) -> None:
    path = _rewritten(artifacts, source, tmp_path / "m.gguf", weightcast.quantize)
    found = weightcast.verify(path, source)
    assert found.is_good, lines(found)
    assert found.matrices["requantized"] > 50
    assert "requantized by ggml's rule instead of carried over: off by up to" in lines(found)
    assert "metadata that weightcast writes otherwise: general.name" in lines(found)


def test_weights_that_were_rounded_before_and_another_alignment(
    artifacts: Path, source: Path, tmp_path: Path
) -> None:
    def by_way_of_bf16(values: np.ndarray, kind: str) -> np.ndarray:
        if kind != "F32":
            values = values.astype(ml_dtypes.bfloat16).astype(np.float32)
        return weightcast.quantize(values, kind)

    path = _rewritten(artifacts, source, tmp_path / "m.gguf", by_way_of_bf16, 4096)
    found = weightcast.verify(path, source)
    assert found.is_good, lines(found)
    assert "made of weights that were rounded to bf16 before" in lines(found)


def test_another_quantizer_has_the_errors_of_the_type(
    artifacts: Path, source: Path, tmp_path: Path
) -> None:
    def away_from_zero(values: np.ndarray, kind: str) -> np.ndarray:
        if kind == "F32":
            return weightcast.quantize(values, kind)
        return weightcast.quantize(values * np.float32(1 + 2e-5), kind)

    path = _rewritten(artifacts, source, tmp_path / "m.gguf", away_from_zero)
    found = weightcast.verify(path, source)
    assert found.is_good, lines(found)
    assert found.matrices["similar"] > 50


# The command.


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(commands, ["verify", *map(str, arguments)])
    return result.exit_code, result.output


def test_the_command(artifacts: Path, source: Path, tmp_path: Path) -> None:
    import jsonschema

    path = copied(artifacts, "m-Q4_K_M.gguf", tmp_path)
    report = tmp_path / "errors.json"
    code, text = run(path, "--source", source, "--report", report, "--jobs", 2)
    assert code == 0
    assert text.endswith("good\n")
    values = json.loads(report.read_text())
    schema = Path(__file__).parents[3] / "docs" / "report.schema.json"
    jsonschema.validate(values, json.loads(schema.read_text()))
    assert values["outputs"][0]["total"]["relative_rms"] == pytest.approx(0.07, rel=0.2)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 4
    path.write_bytes(raw)
    code, text = run(path, "--source", source, "--quiet")
    assert code == 3
    assert text.count("\n") == 1
    assert "is damaged: 1 byte of" in text
    code, text = run(path, "--source", source, "--json")
    assert code == 3
    assert json.loads(text)["problems"][0]["mistake"] == "damaged"


def test_samples_find_gross_mistakes(artifacts: Path, source: Path, tmp_path: Path) -> None:
    file = gguf_files.read(artifacts / "m-Q8_0.gguf")
    tensors = dict(file.tensors)
    names = ["blk.0.attn_k.weight", "blk.0.attn_v.weight"]
    tensors[names[0]], tensors[names[1]] = (tensors[n] for n in reversed(names))
    path = gguf_files.write(tmp_path / "m-Q8_0.gguf", file.metadata, tensors)
    for sample in ("1", "0.05", "2%"):
        code, text = run(path, "--source", source, "--sample", sample)
        assert code == 3
        assert "holds attn_v, not attn_k" in text
        assert "not checked: rows that are not in the sample" in text


def test_what_cannot_be_verified_is_refused(artifacts: Path, source: Path, tmp_path: Path) -> None:
    path = artifacts / "m-Q8_0.gguf"
    cases = {
        (path, "--sample", "5"): "--sample: of use with a source only",
        (path, "--source", source, "--sample", "none"): "give a number of rows, or a share",
        (path, "--source", source, "--sample", "-1"): "give a number of rows, or a share",
        (path, "--report", tmp_path / "r.json"): "--report: of use with a source only",
        (path, "--source", source, "--report", tmp_path / "no" / "r"): "no such directory",
        (source, "--source", source): "is a source: verify it alone, or compare the two",
        (tmp_path / "nothing.gguf",): "no such file or directory",
        (path, "--source", tmp_path / "nothing"): "no such file or directory",
    }
    for arguments, message in cases.items():
        result = CliRunner().invoke(commands, ["verify", *map(str, arguments)])
        assert isinstance(result.exception, weightcast.CheckpointError)
        assert message in str(result.exception)


LISTS = {
    "split.count": gguf_files.array(4, struct.pack("<II", 1, 2)),
    "split.no": gguf_files.array(4, struct.pack("<II", 1, 2)),
    "split.tensors.count": gguf_files.array(4, struct.pack("<II", 1, 2)),
    "general.architecture": gguf_files.array(4, struct.pack("<II", 1, 2)),
    "general.file_type": gguf_files.array(4, struct.pack("<II", 1, 2)),
    "general.license": gguf_files.array(4, struct.pack("<II", 1, 2)),
    "tokenizer.ggml.model": gguf_files.array(4, struct.pack("<II", 1, 2)),
    "grok.block_count": gguf_files.array(4, struct.pack("<II", 1, 2)),
}


@pytest.mark.parametrize("name", ["a.gguf", "a-00001-of-00002.gguf"])
def test_metadata_of_another_type_than_they_have(name: str, tmp_path: Path) -> None:
    """Lists where numbers and names belong: problems, or nothing, never a failure."""
    tensor = gguf_files.floats(np.zeros((1, 32), np.float32))
    for key, value in [*LISTS.items(), ("", b"")]:
        metadata = {key: value} if key else LISTS
        path = gguf_files.write(tmp_path / name, metadata, {"a.weight": tensor})
        found = weightcast.verify(path)
        assert all(line.isprintable() for line in problem_lines(found))
        if key.startswith("split.") and name != "a.gguf":
            assert f"{key} is -1" in lines(found) or "split.tensors" in key


def test_lists_in_the_metadata_of_the_source_of_a_bundle(tmp_path: Path) -> None:
    """What a model card and a comparison look up."""
    tensor = gguf_files.floats(np.zeros((1, 32), np.float32))
    grok = {**LISTS, "general.architecture": gguf_files.string("grok")}
    del grok["split.count"]
    path = gguf_files.write(tmp_path / "a.gguf", grok, {"a.weight": tensor})
    out = tmp_path / "out-Q8_0.gguf"
    weightcast.convert(path, out, bundle=True)
    assert weightcast.compare(path, out).report["outputs"]
    other = {**grok, "general.architecture": gguf_files.string("llama")}
    path = gguf_files.write(tmp_path / "b.gguf", other, {"a.weight": tensor})
    out = tmp_path / "b-q.gguf"
    weightcast.convert(path, out, types=["Q8_0"])
    assert list(verification_lines(weightcast.verify(out, path)))


def test_names_in_checksums_that_no_file_can_have(tmp_path: Path) -> None:
    tensor = gguf_files.floats(np.zeros((1, 32), np.float32))
    path = gguf_files.write(tmp_path / "a.gguf", {}, {"a.weight": tensor})
    sums = path.with_name("a.gguf.SHA256SUMS")
    sums.write_bytes(b"%064d  %s\n%064d  a\0b\n" % (0, b"x" * 300, 0))
    assert lines(weightcast.verify(path)).count("is no name that a file can have") == 2


def test_what_is_wrong_many_times_is_told_some_times(tmp_path: Path) -> None:
    """A name that speaks of thousands of files, lines that are no checksums."""
    tensor = gguf_files.floats(np.zeros((1, 32), np.float32))
    path = gguf_files.write(tmp_path / "a-00001-of-65535.gguf", {}, {"a.weight": tensor})
    path.with_name(f"{path.stem}.SHA256SUMS").write_bytes(b"\n# sums\n" + b"x\n" * 100_000)
    found = weightcast.verify(path)
    assert len(found.problems) < 300
    assert "part 2 of 65535" in lines(found)
    assert "65,434 more files are missing" in lines(found)
    assert "lines 3, 4, 5, 6 and 99,996 more: are no lines of sha256sum" in lines(found)
    folder = tmp_path / "model"
    folder.mkdir()
    for count in range(2000, 2030):
        _empty_safetensors(folder / f"model-00001-of-{count:05}.safetensors")
    found = weightcast.verify(folder)
    assert len(found.problems) < 1100
    assert "1,899 more files are missing" in lines(found)


def _empty_safetensors(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 2) + b"{}")


def test_a_split_of_none(tmp_path: Path) -> None:
    tensor = gguf_files.floats(np.zeros((1, 32), np.float32))
    path = gguf_files.write(tmp_path / "a-00001-of-00000.gguf", {}, {"a.weight": tensor})
    assert "no part of the 0 files of a" in lines(weightcast.verify(path))


def test_rows_that_cannot_be_read_between_others_are_a_problem(
    artifacts: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a disk with a bad sector: the rows before and behind it are still read."""
    whole = PairedBuffers.read_output

    def read_output(buffers: PairedBuffers, rows: PairedRows) -> Slab:
        if rows.out0 > 0 and rows.out1 < rows.output.shape[0]:
            raise CheckpointError(f"{rows.output.views[0].path}: cannot be read: I/O error")
        return whole(buffers, rows)

    monkeypatch.setattr("weightcast.converters.compare.rows.SLAB_BYTES", 20_000)
    monkeypatch.setattr(PairedBuffers, "read_output", read_output)
    found = weightcast.verify(artifacts / "m-Q8_0.gguf", source)
    assert not found.is_good
    assert "m-Q8_0.gguf: cannot be read: I/O error" in lines(found)
