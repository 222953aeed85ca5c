"""The type COPY, and outputs in as many parts as their source: types that stay as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import weightcast
from tests import gguf_files as files
from tests.gguf_files import Part, floats, read, string, strings, u16, u32, write
from weightcast.errors import CheckpointError, LayoutError, RequestError

Q4_0, Q6_K, MXFP4 = 2, 14, 39
METADATA = {
    "general.architecture": string("never heard of"),
    "general.file_type": u32(15),
    "mine": strings("a", b"\xff"),
}


def mixture() -> dict[str, Part]:
    """Many types in one file; what is in the blocks does not matter."""
    noise = np.random.default_rng(1).integers(1, 60, 4096, np.uint8).tobytes()
    return {
        "output.weight": Part(Q6_K, (4, 256), noise[: 4 * 210]),
        "blk.1.ffn_down_exps.weight": Part(MXFP4, (2, 4, 64), noise[: 2 * 4 * 34]),
        "blk.0.attn_v.weight": Part(files.Q8_0, (4, 64), noise[: 4 * 68]),
        "blk.0.attn_q.weight": Part(Q4_0, (4, 64), noise[: 4 * 36]),
        "blk.0.attn_norm.weight": floats(np.ones(64, np.float32)),
        "blk.0.ids": Part(files.I64, (4,), noise[:32]),
        "token_embd.weight": files.bf16(np.ones((4, 64), np.float32)),
    }


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "m.gguf", METADATA, mixture())


def write_parts(folder: Path) -> Path:
    """The same in three parts, the first without tensors, in an order of their own."""
    tensors = mixture()
    names = list(tensors)
    for number, part in enumerate(([], names[:4], names[4:])):
        numbers = {"split.no": u16(number), "split.count": u16(3), "split.tensors.count": u32(7)}
        metadata = numbers if number else {**METADATA, **numbers}
        path = folder / f"parts-{number + 1:05}-of-00003.gguf"
        write(path, metadata, {name: tensors[name] for name in part})
    return folder / "parts-00001-of-00003.gguf"


def test_no_type_changes(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "m-COPY.gguf"
    summary = weightcast.convert(source, output)
    made = read(output)
    assert made.tensors == mixture()
    assert made.metadata == {**METADATA, "general.quantization_version": u32(2)}
    assert summary.outputs[0].type == "COPY"
    assert weightcast.verify(output, source).is_good
    weightcast.convert(write_parts(tmp_path), tmp_path / "n.gguf", types="copy")
    assert (tmp_path / "n.gguf").read_bytes() == output.read_bytes()


@pytest.mark.parametrize("name", ["m-UD-Q4_K_XL", "m-Q4_K_M", "m.i1-Q4_K_M", "m-F16"])
def test_a_copy_has_any_name(name: str, source: Path, tmp_path: Path) -> None:
    """Such as that of its source, which says what most tensors are."""
    weightcast.convert(source, tmp_path / f"{name}.gguf", types="COPY")
    assert read(tmp_path / f"{name}.gguf").tensors == mixture()
    assert weightcast.verify(tmp_path / f"{name}.gguf", source).is_good


def test_into_parts_and_back(source: Path, tmp_path: Path) -> None:
    parts = weightcast.convert(source, tmp_path / "m-COPY.gguf", split=1000).outputs[0].files
    assert len(parts) > 2
    found = [part for path in parts for part in read(path).tensors.items()]
    assert dict(found) == mixture()
    assert weightcast.verify(parts[0], source).is_good
    weightcast.merge(parts, tmp_path / "merged.gguf")
    assert read(tmp_path / "merged.gguf").tensors == mixture()


def test_split_and_merged_files_keep_what_the_source_says(tmp_path: Path) -> None:
    """Or does not say: nothing is renewed, and `verify` finds nothing that it would write."""
    for name, metadata in (("a", {}), ("b", {"general.quantization_version": u32(1)})):
        metadata["general.architecture"] = string("x")
        source = write(tmp_path / f"{name}.gguf", metadata, mixture())
        parts = weightcast.split(source, tmp_path / f"{name}-parts", max_tensors=3).outputs[0].files
        weightcast.merge(parts, tmp_path / f"{name}-merged.gguf")
        assert read(tmp_path / f"{name}-merged.gguf").metadata.items() >= metadata.items()
        for made in (parts[0], tmp_path / f"{name}-merged.gguf"):
            found = weightcast.verify(made, source)
            assert found.is_good
            assert "metadata: every value is what weightcast writes" in found.checked


def test_rules_change_what_they_name(source: Path, tmp_path: Path) -> None:
    rules = {"token_embd": "Q8_0"}
    weightcast.convert(source, tmp_path / "m-COPY.gguf", tensor_types=rules)
    made = read(tmp_path / "m-COPY.gguf").tensors
    assert made.pop("token_embd.weight").kind == files.Q8_0
    assert made.items() <= mixture().items()
    recipe = tmp_path / "r.toml"
    recipe.write_text('base = "COPY"\n[[rule]]\npattern = "token_embd"\ntype = "Q8_0"\n')
    weightcast.convert(source, tmp_path / "n.gguf", recipe=recipe)
    assert (tmp_path / "n.gguf").read_bytes() == (tmp_path / "m-COPY.gguf").read_bytes()
    with pytest.raises(LayoutError, match="types='COPY' keeps all types as they are"):
        weightcast.convert(source, tmp_path / "o-COPY.gguf", tensor_types={"output": "Q4_0"})


@pytest.mark.parametrize(
    ("kind", "row_bytes", "file_type"),
    [(Q6_K, 210, 18), (Q4_0, 144, 2), (files.Q8_0, 272, 7), (MXFP4, 136, 0), (files.I8, 256, 0)],
)
def test_a_file_type_that_is_not_said_is_guessed(
    kind: int, row_bytes: int, file_type: int, tmp_path: Path
) -> None:
    """By the type that most tensors have; 1024 says that it is a guess. As in llama.cpp."""
    tensors = {f"t{n}": Part(kind, (1, 256), bytes(row_bytes)) for n in range(2)}
    tensors["a"] = floats(np.ones(8, np.float32))
    source = write(tmp_path / "m.gguf", {"general.architecture": string("x")}, tensors)
    weightcast.convert(source, tmp_path / "m-COPY.gguf")
    assert read(tmp_path / "m-COPY.gguf").metadata["general.file_type"] == u32(1024 | file_type)


def test_only_of_gguf(tiny: Path, source: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"COPY is for GGUF made of GGUF, and .* is none"):
        weightcast.convert(tiny, tmp_path / "m-COPY.gguf")
    for keyword in ("keep_split", "keep_order"):
        with pytest.raises(RequestError, match=f"{keyword}=True is for GGUF made of GGUF"):
            weightcast.convert(tiny, tmp_path / "m-Q8_0.gguf", **{keyword: True})
    with pytest.raises(RequestError, match="keeps all that a GGUF file says; leave spec, tok"):
        weightcast.convert(source, tmp_path / "m-COPY.gguf", no_tokenizer=True)
    mixed = [tmp_path / "m-COPY.gguf", tmp_path / "m-F16.gguf"]
    weightcast.plan(source, *mixed, override_kv=["a=int:4"])
    for options in ({"pure": True}, {"imatrix": "none.gguf"}):
        with pytest.raises(RequestError, match="COPY leaves every tensor as it is"):
            weightcast.convert(source, tmp_path / "m-COPY.gguf", **options)
    # What file managers call a copy is none.
    with pytest.raises(CheckpointError, match="the name does not end in a type"):
        weightcast.convert(source, tmp_path / "m copy.gguf")


def test_parts_are_kept(tmp_path: Path) -> None:
    """Each tensor in the part of the same number, in the order of their places in it."""
    source = write_parts(tmp_path)
    kept = weightcast.convert(source, tmp_path / "m-F16.gguf", keep_split=True).outputs[0].files
    assert [path.name for path in kept] == [f"m-F16-{n:05}-of-00003.gguf" for n in (1, 2, 3)]
    names = list(mixture())
    found = [read(path) for path in kept]
    assert [list(file.tensors) for file in found] == [[], names[:4], names[4:]]
    assert list(found[0].metadata) == [
        *("general.architecture", "mine", "general.quantization_version", "general.file_type"),
        *("split.no", "split.count", "split.tensors.count"),
    ]
    assert list(found[1].metadata) == ["split.no", "split.count", "split.tensors.count"]
    with pytest.raises(RequestError, match="keeps the parts of the source, split=SIZE makes oth"):
        weightcast.convert(source, tmp_path / "m-F16.gguf", keep_split=True, split="1G")
