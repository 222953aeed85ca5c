"""llama-quantize's own options in whole conversions: files, resuming, verifying, comparing.

The digests are of what llama-quantize (llama.cpp as in llama-cpp-python 0.3.36) made of the same
file with the same options; `python -m tests.converters.targets.test_llama_quantize_words PROGRAM`
prints them.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weightcast
from tests import gguf_files as files
from tests.gguf_files import Part, floats, u32
from tests.imatrices import Floats, sample, write_gguf
from weightcast.converters.output.fingerprint import changes, fingerprint
from weightcast.converters.sources.options import ConvertOptions
from weightcast.errors import CheckpointError, LayoutError, RequestError
from weightcast.formats.gguf.header import Metadata, raw_array, raw_float, raw_uint
from weightcast.text import speaking_of_options

LAYERS = 6
MATRICES = {
    "attn_q": (128, 256),
    "attn_k": (64, 256),
    "attn_v": (64, 256),
    "attn_output": (256, 128),
    "ffn_gate": (256, 256),
    "ffn_up": (256, 256),
    "ffn_down": (256, 256),
}
METADATA = {
    "general.architecture": files.string("llama"),
    "llama.block_count": u32(LAYERS),
    "llama.context_length": u32(64),
    "llama.embedding_length": u32(256),
    "llama.feed_forward_length": u32(256),
    "llama.attention.head_count": u32(8),
    "llama.attention.head_count_kv": raw_array("int32", np.array([4, 2, 4, 4, 4, 1], np.int32)),
    "llama.attention.layer_norm_rms_epsilon": raw_float(1e-5),
    "llama.rope.dimension_sections": raw_array("int32", np.arange(LAYERS, dtype=np.int32)),
    "llama.leading_dense_block_count": raw_uint(2),
}


def weights(name: str, *shape: int) -> Part:
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")
    return floats(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def tensors() -> dict[str, Part]:
    found = {
        "token_embd.weight": weights("token_embd", 64, 256),
        "output_norm.weight": weights("output_norm", 256),
        "output.weight": weights("output", 64, 256),
    }
    for layer in range(LAYERS):
        for kind in ("attn_norm", "ffn_norm"):
            found[f"blk.{layer}.{kind}.weight"] = weights(f"{layer} {kind}", 256)
        for kind, shape in MATRICES.items():
            found[f"blk.{layer}.{kind}.weight"] = weights(f"{layer} {kind}", *shape)
    return found


def write_model(folder: Path) -> Path:
    return files.write(folder / "m.gguf", METADATA, tensors())


def entries() -> dict[str, tuple[Floats, Floats]]:
    names = [f"blk.{layer}.{kind}.weight" for layer in range(LAYERS) for kind in MATRICES]
    sizes = [MATRICES[name.split(".")[2]][1] for name in names]
    return {name: sample(1, n, k) for k, (name, n) in enumerate(zip(names, sizes, strict=True))}


def write_imatrix(folder: Path) -> Path:
    return write_gguf(folder / "imatrix.gguf", entries())


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path)


@pytest.fixture
def imatrix(tmp_path: Path) -> Path:
    return write_imatrix(tmp_path)


# Type and options of Python; the entries of importance matrices that are counted; the digest.
CASES: dict[str, tuple[str, dict[str, Any], int | None, str]] = {
    "ends": (
        "Q4_K_M",
        {"output_tensor_type": "Q5_K", "token_embedding_type": "IQ4_XS"},
        None,
        "c3f949e365d37bb3",
    ),
    "leave": ("Q3_K_S", {"leave_output_tensor": True}, None, "cd8b5ba198339d4c"),
    "number": ("15", {}, None, "61d4852766d1d14b"),
    "file of rules": ("Q4_K_M", {"tensor_type_file": "rules.txt"}, None, "23e5c133f2d38c1f"),
    "included": (
        "Q4_K_M",
        {"imatrix": "imatrix.gguf", "include_weights": ["attn_", "blk.1."]},
        27,
        "afe69a943a1b0418",
    ),
    "excluded": (
        "IQ3_M",
        {"imatrix": "imatrix.gguf", "exclude_weights": ["ffn_down", "attn_v"]},
        30,
        "6e7d8f2441b3740f",
    ),
    "none left": (
        "Q4_K_M",
        {"imatrix": "imatrix.gguf", "exclude_weights": ["blk."]},
        None,
        "61d4852766d1d14b",
    ),
    "array that stays": (
        "Q4_K_M",
        {"override_kv": ["llama.attention.head_count_kv=int:8"]},
        None,
        "61d4852766d1d14b",
    ),
    "pruned": ("Q4_K_M", {"prune_layers": "1,4"}, None, "b63742269d1cf624"),
    "pruned, weighed": (
        "IQ2_S",
        {"prune_layers": [0], "imatrix": "imatrix.gguf"},
        42,
        "e1ca7224fe3df498",
    ),
}
RULES = "attn_v=q8_0\n\nblk.0.ffn_up=q6_K blk.1.FFN_UP=q5_K\n"


def digest(path: Path) -> str:
    """Digest types and bytes of all tensors, in the order of their names."""
    made = hashlib.sha256()
    for name, part in sorted(files.read(path).tensors.items()):
        made.update(f"{name} {part.kind} {part.shape} ".encode() + part.data)
    return made.hexdigest()[:16]


def in_folder(folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Give options whose files lie in the folder."""
    (folder / "rules.txt").write_text(RULES)
    named = {key: folder / options[key] for key in options.keys() & {"imatrix", "tensor_type_file"}}
    return {**options, **named}


@pytest.mark.parametrize("case", CASES)
def test_as_llama_quantize(case: str, model: Path, imatrix: Path, tmp_path: Path) -> None:
    kind, options, entries, expected = CASES[case]
    path = tmp_path / "made.gguf"
    weightcast.convert(model, path, types=kind, **in_folder(tmp_path, options))
    assert digest(path) == expected
    metadata = files.read(path).metadata
    counted = metadata.get("quantize.imatrix.entries_count")
    assert counted == (None if entries is None else u32(entries))
    known = ("imatrix", "include_weights", "exclude_weights", "override_kv", "prune_layers")
    told = {key: value for key, value in in_folder(tmp_path, options).items() if key in known}
    found = weightcast.verify(path, model, **told)
    assert found.is_good
    assert "metadata: every value is what weightcast writes" in found.checked


def test_reports_tell_of_the_types_of_ends(model: Path, tmp_path: Path) -> None:
    options = {"output_tensor_type": "F16", "token_embedding_type": "Q8_0", "baseline": "stored"}
    summary = weightcast.convert(model, tmp_path / "o-Q4_K_M.gguf", **options)
    assert summary.report is not None
    assert summary.report["outputs"][0]["recipe"]["rules"] == [
        {"pattern": pattern, "type": kind, "origin": origin}
        for pattern, kind, origin in (
            (r"^output\.weight$", "F16", "output_tensor_type"),
            (r"^(per_layer_)?token_embd\.weight$", "Q8_0", "token_embedding_type"),
        )
    ]


def test_notes_name_the_options_that_ask(model: Path, tmp_path: Path) -> None:
    asked = {"output_tensor_type": "F16", "imatrix": write_imatrix(tmp_path)}
    plan = weightcast.plan(model, tmp_path / "o-Q4_K_M.gguf", include_weights="none", **asked)
    notes = "\n".join(plan.outputs[0].notes)
    assert "stored as F16, as output_tensor_type asks: 1 tensor" in notes
    with speaking_of_options():
        plan = weightcast.plan(model, tmp_path / "o-Q4_K_M.gguf", include_weights="none", **asked)
    notes = "\n".join(plan.outputs[0].notes)
    assert "stored as F16, as --output-tensor-type asks: 1 tensor" in notes


def test_what_is_overridden(model: Path, tmp_path: Path) -> None:
    asked = ["general.name=str:New", "llama.x=float:0.5", "a.b=bool:true", "llama.x=int:3"]
    path = tmp_path / "made.gguf"
    weightcast.convert(model, path, types="Q8_0", override_kv=asked)
    metadata = Metadata(files.read(path).metadata)
    assert [metadata[key] for key in ("general.name", "llama.x", "a.b")] == ["New", 3, True]
    found = weightcast.verify(path, model, override_kv=asked)
    assert found.is_good
    assert "metadata: every value is what weightcast writes" in found.checked
    assert "metadata: every value is what" not in str(weightcast.verify(path, model).checked)


def test_keys_that_are_set_anew_come_last(model: Path, imatrix: Path, tmp_path: Path) -> None:
    """In the order of llama-quantize's files, unless the source's is to be kept."""
    asked = ["llama.context_length=int:9", "a.b=bool:true"]
    options: dict[str, Any] = {"override_kv": asked, "prune_layers": [5], "imatrix": imatrix}
    weightcast.convert(model, tmp_path / "m-Q8_0.gguf", **options)
    last = [
        *("general.quantization_version", "general.file_type", "llama.context_length", "a.b"),
        *(f"quantize.imatrix.{end}" for end in ("file", "dataset", "entries_count")),
        *("quantize.imatrix.chunks_count", "llama.block_count"),
    ]
    kept = [key for key in METADATA if key not in last]
    assert list(files.read(tmp_path / "m-Q8_0.gguf").metadata) == kept + last
    weightcast.convert(model, tmp_path / "k-Q8_0.gguf", keep_order=True, **options)
    assert list(files.read(tmp_path / "k-Q8_0.gguf").metadata)[: len(METADATA)] == list(METADATA)


def test_a_copy_can_have_other_metadata_and_fewer_layers(model: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"override_kv": "general.name=str:New", "prune_layers": [5]}
    path = tmp_path / "m-COPY.gguf"
    weightcast.convert(model, path, **options)
    made, source = files.read(path), files.read(model)
    assert Metadata(made.metadata)["general.name"] == "New"
    assert made.tensors == {n: t for n, t in source.tensors.items() if "blk.5." not in n}
    assert weightcast.verify(path, model, **options).is_good


def test_keys_that_are_set_are_last(model: Path, imatrix: Path, tmp_path: Path) -> None:
    """The order is what llama-quantize wrote with the same options."""
    asked = ["a.b=int:1", "llama.context_length=int:128", "general.file_type=int:3"]
    asked.append("a.b=bool:true")
    path = tmp_path / "made.gguf"
    options: dict[str, Any] = {"override_kv": asked, "prune_layers": "1", "imatrix": imatrix}
    weightcast.convert(model, path, types="Q4_K_M", **options)
    metadata = Metadata(files.read(path).metadata)
    assert [*metadata] == [
        "general.architecture",
        "llama.embedding_length",
        "llama.feed_forward_length",
        "llama.attention.head_count",
        "llama.attention.head_count_kv",
        "llama.attention.layer_norm_rms_epsilon",
        "llama.rope.dimension_sections",
        "llama.leading_dense_block_count",
        "general.quantization_version",
        "llama.context_length",
        "general.file_type",
        "a.b",
        "quantize.imatrix.file",
        "quantize.imatrix.dataset",
        "quantize.imatrix.entries_count",
        "quantize.imatrix.chunks_count",
        "llama.block_count",
    ]
    assert metadata["general.file_type"] == 3
    assert metadata["llama.block_count"] == LAYERS - 1
    assert weightcast.verify(path, model, **options).is_good


def test_copies_without_layers_and_with_other_metadata(model: Path, tmp_path: Path) -> None:
    """Files are quantized first, and pruned or renamed without a loss later."""
    path, again = tmp_path / "m-Q4_K_M.gguf", tmp_path / "again-COPY.gguf"
    weightcast.convert(model, path)
    options: dict[str, Any] = {"override_kv": "general.name=str:New", "prune_layers": [1]}
    weightcast.convert(path, again, **options)
    before, after = files.read(path), files.read(again)
    assert [*before.metadata, "general.name", "llama.block_count"][-2:] == [*after.metadata][-2:]
    assert len(after.tensors) == len(before.tensors) - 9
    for name, part in after.tensors.items():
        layer = int(name.split(".")[1]) if name.startswith("blk.") else 0
        old = before.tensors[name.replace(f"blk.{layer}.", f"blk.{layer + 1}.") if layer else name]
        assert (part.kind, part.data) == (old.kind, old.data)
    found = weightcast.verify(again, path, **options)
    assert found.is_good
    assert "metadata: every value is what weightcast writes" in found.checked


def test_what_is_asked_for_goes_before_what_is_counted(
    model: Path, imatrix: Path, tmp_path: Path
) -> None:
    asked = ["llama.block_count=int:9", "quantize.imatrix.file=str:mine"]
    path = tmp_path / "made.gguf"
    options: dict[str, Any] = {"override_kv": asked, "prune_layers": "1", "imatrix": imatrix}
    weightcast.convert(model, path, types="Q4_K_M", **options)
    metadata = Metadata(files.read(path).metadata)
    assert metadata["llama.block_count"] == 9
    assert metadata["quantize.imatrix.file"] == "mine"


def test_what_is_pruned(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "made.gguf"
    summary = weightcast.convert(model, path, types="F32", prune_layers="4,1")
    assert summary.outputs[0].notes == ("2 layers left out: 1, 4",)
    made, source = files.read(path), files.read(model)
    metadata = Metadata(made.metadata)
    assert metadata["llama.block_count"] == 4
    assert metadata["llama.leading_dense_block_count"] == 1
    assert metadata["llama.attention.head_count_kv"].tolist() == [4, 4, 4, 1]
    assert metadata["llama.rope.dimension_sections"].tolist() == list(range(LAYERS))
    for new, old in enumerate((0, 2, 3, 5)):
        for kind in MATRICES:
            there = source.tensors[f"blk.{old}.{kind}.weight"]
            assert made.tensors[f"blk.{new}.{kind}.weight"] == there
    assert len(made.tensors) == 3 + 4 * (len(MATRICES) + 2)


def test_what_is_pruned_is_verified_and_compared(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "made.gguf"
    weightcast.convert(model, path, types="Q8_0", prune_layers=[2, 4])
    assert weightcast.verify(path, model, prune_layers="2,4").is_good
    assert not weightcast.verify(path, model, prune_layers="2,3").is_good
    told = [problem.remedy for problem in weightcast.verify(path, model).problems]
    assert any("if layers were left out, name them: prune_layers=N" in text for text in told)
    whole = weightcast.compare(model, path)
    assert whole.problem is not None
    assert "if layers were left out, name them: prune_layers=N" in whole.problem
    found = weightcast.compare(model, path, prune_layers=[2, 4])
    assert found.problem is None
    assert found.total.relative_rms < 0.01


def test_importance_that_was_raised_is_verified(model: Path, tmp_path: Path) -> None:
    """One tensor alone has importance that is lost without."""
    found = entries()
    sums, counts = found["blk.2.attn_q.weight"]
    found["blk.2.attn_q.weight"] = sums * np.float32(1e-36), counts
    imatrix = write_gguf(tmp_path / "small.gguf", found)
    path = tmp_path / "o-Q4_K_M.gguf"
    given: dict[str, Any] = {"imatrix": imatrix, "prune_layers": [1]}
    weightcast.convert(model, path, importance_floor=0.01, **given)
    assert weightcast.verify(path, model, importance_floor=0.01, **given).is_good
    assert not weightcast.verify(path, model, **given).is_good
    with pytest.raises(RequestError, match="importance_floor: of use with imatrix=FILE only"):
        weightcast.verify(path, model, importance_floor=0.01)
    with pytest.raises(RequestError, match="override_kv: give a text, a list of texts, not 5"):
        weightcast.verify(path, model, override_kv=5)  # type: ignore[arg-type]


def test_layers_of_encoder_and_decoder(tmp_path: Path) -> None:
    """Both stacks of T5 are counted alike; those of other encoders are left alone."""
    names = [f"{s}.blk.{n}.attn_q.weight" for s in ("enc", "dec", "v") for n in range(3)]
    metadata = {
        "general.architecture": files.string("t5"),
        "t5.block_count": u32(3),
        "t5.decoder_block_count": u32(3),
    }
    source = files.write(tmp_path / "m.gguf", metadata, {n: weights(n, 2, 32) for n in names})
    weightcast.convert(source, tmp_path / "o-F32.gguf", prune_layers="0", keep_order=True)
    made = files.read(tmp_path / "o-F32.gguf")
    assert made.metadata["t5.block_count"] == made.metadata["t5.decoder_block_count"] == u32(2)
    kept = ["enc.blk.1", "enc.blk.2", "dec.blk.1", "dec.blk.2", "v.blk.0", "v.blk.1", "v.blk.2"]
    assert [part.data for part in made.tensors.values()] == [
        weights(f"{name}.attn_q.weight", 2, 32).data for name in kept
    ]


def test_layers_that_predict_more_tokens_are_counted(tmp_path: Path) -> None:
    metadata = {
        "general.architecture": files.string("glm4moe"),
        "glm4moe.block_count": u32(4),
        "glm4moe.nextn_predict_layers": u32(1),
        "glm4moe.full_attention_interval": u32(2),
        "glm4moe.attention.shared_kv_layers": u32(2),
        "glm4moe.hash_layer_count": u32(2),
        "glm4moe.ple.layers": raw_array("uint32", np.array([0, 2], np.uint32)),
        "glm4moe.of_main_layers": raw_array("uint8", np.array([5, 6, 7], np.uint8)),
    }
    names = [f"blk.{n}.attn_q.weight" for n in range(4)]
    source = files.write(tmp_path / "m.gguf", metadata, {n: weights(n, 2, 32) for n in names})
    summary = weightcast.convert(source, tmp_path / "o-F32.gguf", prune_layers=[0, 3])
    made = Metadata(files.read(tmp_path / "o-F32.gguf").metadata)
    assert made["glm4moe.block_count"] == 2
    assert made["glm4moe.nextn_predict_layers"] == 0
    assert made["glm4moe.attention.shared_kv_layers"] == 1
    assert made["glm4moe.hash_layer_count"] == 1
    assert made["glm4moe.ple.layers"].tolist() == [1]
    assert made["glm4moe.of_main_layers"].tolist() == [6, 7]
    assert "glm4moe.full_attention_interval is 2: which layers" in summary.outputs[0].notes[1]


@pytest.mark.parametrize(
    ("layers", "problem"),
    [
        ("6", "m.gguf: prune_layers: there is no layer 6; its layers are 0 to 5"),
        (range(6), "m.gguf: prune_layers: no layer would be left"),
        ("1-2", "prune_layers: '1-2' is no list of layers; write it like 3,4,5"),
        ([True], "is no list of layers"),
        ([], "is no list of layers"),
    ],
)
def test_layers_that_cannot_be_pruned(
    layers: Any, problem: str, model: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError) as raised:
        weightcast.convert(model, tmp_path / "o-Q8_0.gguf", prune_layers=layers)
    assert problem in str(raised.value)
    assert not (tmp_path / "o-Q8_0.gguf").exists()


def test_a_layer_of_two_names(tmp_path: Path) -> None:
    names = [f"blk.{n}.a.weight" for n in ("0", "1", "01")]
    source = files.write(tmp_path / "m.gguf", {}, {n: weights(n, 2, 32) for n in names})
    with pytest.raises(LayoutError, match=r"'blk.01.a.weight': its layer has two names"):
        weightcast.convert(source, tmp_path / "o-F32.gguf", prune_layers=[0])


def test_only_gguf_files_are_pruned(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="makes a GGUF file of another one; convert this"):
        weightcast.convert(tiny, tmp_path / "o-Q8_0.gguf", prune_layers=[0], no_tokenizer=True)
    both = [tmp_path / "o-Q8_0.gguf", tmp_path / "o-bf16"]
    with pytest.raises(RequestError, match="prune_layers: directories keep all layers"):
        weightcast.convert(tiny, both, prune_layers=[0], no_tokenizer=True)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"include_weights": "a"}, "include_weights: of use with imatrix=FILE only"),
        (
            {"include_weights": "a", "exclude_weights": "b", "imatrix": "i"},
            "include_weights and exclude_weights are asked for at once",
        ),
        (
            {"output_tensor_type": "Q8_0", "leave_output_tensor": True},
            "output_tensor_type and leave_output_tensor are asked for at once",
        ),
        ({"output_tensor_type": "int4-g128"}, "INT4-G128 is a type of directories alone"),
        ({"token_embedding_type": "Q9"}, "token_embedding_type: unknown type 'Q9'"),
        ({"tensor_type_file": "absent.txt"}, "absent.txt: no such file"),
    ],
)
def test_options_that_cannot_be(
    options: dict[str, Any], problem: str, model: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError) as raised:
        weightcast.convert(model, tmp_path / "o-Q8_0.gguf", **options)
    assert problem in str(raised.value)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("attn_v=q8_0 attn_q", "rules.txt: rule 2: attn_q: write it as REGEX=TYPE"),
        ("[a=q8_0", "rules.txt: rule 1: [a=q8_0: pattern '[a' is not a regex"),
        ("attn=q9", "rules.txt: rule 1: attn=q9: unknown type 'q9'"),
    ],
)
def test_files_of_rules_that_are_none(
    content: str, problem: str, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "rules.txt").write_text(content)
    with pytest.raises(CheckpointError) as raised:
        weightcast.plan(model, tmp_path / "o-Q8_0.gguf", tensor_type_file=tmp_path / "rules.txt")
    assert problem in str(raised.value)


def test_an_interrupted_run_with_other_options_starts_over(model: Path, tmp_path: Path) -> None:
    def noted(**options: Any) -> dict[str, Any]:
        plan = weightcast.plan(model, tmp_path / "o-Q4_K_M.gguf", **options).plan
        return fingerprint(plan.inputs, plan.outputs[0])

    before = noted()
    for option, value in (
        ("output_tensor_type", "Q8_0"),
        ("token_embedding_type", "Q8_0"),
        ("leave_output_tensor", True),
        ("override_kv", ["a=int:4"]),
        ("prune_layers", [2]),
    ):
        assert option in changes(before, noted(**{option: value}))
    rules = tmp_path / "rules.txt"
    rules.write_text(RULES)
    assert noted(tensor_type_file=rules) != before
    given = ConvertOptions.of({**{r.name: r.default for r in ConvertOptions.rows()}})
    assert given.prune_layers is None


def test_tensors_of_five_axes_are_copied(tmp_path: Path) -> None:
    """As tools for video models write them; ggml has four axes, so they are never quantized."""
    part = weights("conv", 4, 2, 1, 2, 64)
    metadata = {"general.architecture": files.string("hyvid")}
    parts = {"img_in.proj.weight": part, "a.conv.weight": part, "a.weight": weights("a", 4, 256)}
    source = files.write(tmp_path / "m.gguf", metadata, parts)
    weightcast.convert(source, tmp_path / "o-Q8_0.gguf")
    made = files.read(tmp_path / "o-Q8_0.gguf").tensors
    assert made["img_in.proj.weight"] == made["a.conv.weight"] == part
    assert made["a.weight"].kind == files.Q8_0
    assert weightcast.verify(tmp_path / "o-Q8_0.gguf", source).is_good


def test_an_adapter_says_what_it_is(tmp_path: Path) -> None:
    metadata = {
        "general.architecture": files.string("llama"),
        "general.type": files.string("adapter"),
    }
    parts = {f"blk.0.attn_q.weight.lora_{x}": weights(x, 32, 256) for x in "ab"}
    source = files.write(tmp_path / "m.gguf", metadata, parts)
    summary = weightcast.convert(source, tmp_path / "o-Q8_0.gguf")
    assert "nothing is Q8_0" in summary.outputs[0].notes[0]
    assert files.read(tmp_path / "o-Q8_0.gguf").metadata["general.file_type"] == u32(0)
    rules = {".*lora_[ab]": "Q8_0"}
    summary = weightcast.convert(source, tmp_path / "p-Q8_0.gguf", tensor_types=rules)
    assert [note[:14] for note in summary.outputs[0].notes] == ["stored as Q8_0"]
    assert files.read(tmp_path / "p-Q8_0.gguf").metadata["general.file_type"] == u32(7)


def test_the_lossless_rule_is_named_first(model: Path, tmp_path: Path) -> None:
    mixed = tmp_path / "mixed-F32.gguf"
    weightcast.convert(model, mixed, tensor_types={"ffn_(up|down)": "MXFP4"})
    with pytest.raises(LayoutError) as raised:
        weightcast.convert(mixed, tmp_path / "o-Q4_K_M.gguf")
    assert "allow_requantize=True" in str(raised.value)
    weightcast.convert(model, mixed, tensor_types={"ffn_down": "MXFP4"})
    with pytest.raises(LayoutError) as raised:
        weightcast.convert(mixed, tmp_path / "o-Q4_K_M.gguf")
    rule = "; tensor_types='ffn_down=MXFP4' keeps all such tensors as they are; allow_requ"
    assert rule in str(raised.value)
    weightcast.convert(mixed, tmp_path / "o-Q4_K_M.gguf", tensor_types="ffn_down=MXFP4")
    kept = files.read(mixed).tensors["blk.3.ffn_down.weight"]
    assert files.read(tmp_path / "o-Q4_K_M.gguf").tensors["blk.3.ffn_down.weight"] == kept


def _print_digests(program: str) -> None:
    """Make what the program makes, for CASES."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, made = write_model(folder), folder / "made.gguf"
        write_imatrix(folder)
        for case, (kind, options, _, _) in CASES.items():
            words = []
            for option, value in in_folder(folder, options).items():
                flag = f"--{option.replace('_', '-')}"
                if option == "prune_layers":
                    value = value if isinstance(value, str) else ",".join(map(str, value))
                for each in value if isinstance(value, list) else [value]:
                    words += [flag] if each is True else [flag, str(each)]
            subprocess.run(
                [program, *words, model, made, kind, "1"], check=True, capture_output=True
            )
            print(case, digest(made))


if __name__ == "__main__":
    _print_digests(sys.argv[1])
