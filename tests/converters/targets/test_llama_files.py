"""Whole files, byte for byte those of llama-quantize and llama-gguf-split.

Their digests are recorded (tests/data/llama_quantize/make_files.py), of models of many kinds.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

import weightcast
from tests import imatrices, llama_models
from tests.support import DATA
from weightcast.errors import CheckpointError

FILES: dict[str, Any] = json.loads((DATA / "llama_quantize" / "files.json").read_text())
IMATRIX = "imatrix.gguf"  # as it was called then: outputs say it
# What every change runs: of each model the recipe with most rules, plain floats, and copies.
QUICK = {"Q4_K_M", "BF16", f"IQ3_M {IMATRIX}"}


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def cases() -> list[Any]:
    return [
        pytest.param(name, case, marks=() if case in QUICK else pytest.mark.exhaustive)
        for name, recorded in FILES["models"].items()
        for case, made in recorded.items()
        if made is not None
    ]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def model(folder: Path, name: str) -> Path:
    path = folder / f"{name}.gguf"
    return path if path.exists() else llama_models.write_model(path, name)


@pytest.mark.parametrize(("name", "case"), cases())
def test_files_are_those_of_llama_quantize(
    name: str, case: str, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe, _, imatrix = case.partition(" ")
    if imatrix:
        imatrices.write_gguf(Path(imatrix), llama_models.importance(name))
    weightcast.convert(
        model(models, name),
        "out.gguf",
        types=recipe,
        imatrix=imatrix or None,
        allow_requantize=True,
    )
    assert digest(Path("out.gguf")) == FILES["models"][name][case]


def test_every_kind_of_model_is_recorded() -> None:
    assert list(FILES["models"]) == list(llama_models.MODELS)
    for recorded in FILES["models"].values():
        assert len(recorded) == 20
        assert sum(made is None for made in recorded.values()) <= 6  # what llama.cpp gives up


@pytest.mark.parametrize(
    "recorded", FILES["changes"], ids=lambda r: " ".join((r["recipe"], *r["options"]))
)
def test_changed_metadata_lie_where_llama_quantize_puts_them(
    recorded: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    imatrices.write_gguf(Path(IMATRIX), llama_models.importance("llama"))
    given = list(zip(recorded["options"][::2], recorded["options"][1::2], strict=True))
    options: dict[str, Any] = {
        "prune_layers": dict(given)["--prune-layers"],
        "imatrix": dict(given).get("--imatrix"),
        "override_kv": [value for option, value in given if option == "--override-kv"],
    }
    source = model(tmp_path, "llama")
    weightcast.convert(source, "out.gguf", types=recorded["recipe"], **options)
    assert digest(Path("out.gguf")) == recorded["file"]
    found = weightcast.verify("out.gguf", source, **options)
    assert found.is_good
    assert "metadata: every value is what weightcast writes" in found.checked


def arguments(options: list[str]) -> dict[str, Any]:
    """Options of llama-gguf-split as keywords of `weightcast.split`."""
    given = iter(options)
    found: dict[str, Any] = {}
    for option in given:
        if option == "--no-tensor-first-split":
            found["no_tensor_first_split"] = True
        elif option == "--split-max-tensors":
            found["max_tensors"] = int(next(given))
        else:
            assert option == "--split-max-size"
            found["max_size"] = next(given)
    return found


@pytest.mark.parametrize(
    "recorded", FILES["splits"], ids=lambda r: " ".join((r["model"], *r["options"]))
)
def test_split_and_merge_as_llama_gguf_split(recorded: dict[str, Any], tmp_path: Path) -> None:
    """And copied, and quantized in the same parts, as llama-quantize does."""
    source = model(tmp_path, recorded["model"])
    given = arguments(recorded["options"])
    parts = weightcast.split(source, tmp_path / "part", **given).outputs[0].files
    assert list(map(digest, parts)) == recorded["parts"]
    assert weightcast.verify(parts[0], source).is_good
    merged = tmp_path / "merged.gguf"
    weightcast.merge(parts[0], merged)
    assert [digest(merged)] == recorded["merged"]
    assert weightcast.verify(merged, source).is_good
    weightcast.convert(parts[0], tmp_path / "a-COPY.gguf")
    assert [digest(tmp_path / "a-COPY.gguf")] == recorded["COPY"]
    kept = weightcast.convert(parts[0], tmp_path / "a-Q4_K_M.gguf", keep_split=True).outputs[0]
    assert list(map(digest, kept.files)) == recorded["keep-split"]


@pytest.mark.parametrize("alignment", [8, 64, 4096])
def test_other_alignments_are_written_rightly(alignment: int, tmp_path: Path) -> None:
    """llama-gguf-split pads to 32 whatever the header says, and so makes files it cannot read."""
    metadata, tensors = llama_models.odd_rows()
    metadata["general.alignment"] = llama_models.whole(alignment)
    parts = {
        name: llama_models.part(kind, shape, n) for n, (name, shape, kind) in enumerate(tensors)
    }
    source = llama_models.files.write(tmp_path / "m.gguf", metadata, parts, alignment)
    split = weightcast.split(source, tmp_path / "p", max_tensors=5).outputs[0]
    assert len(split.files) == 4
    found = [llama_models.files.read(path) for path in split.files]
    assert {name: part for file in found for name, part in file.tensors.items()} == parts
    weightcast.merge(split.files[0], tmp_path / "merged.gguf")
    assert llama_models.files.read(tmp_path / "merged.gguf").tensors == parts
    assert weightcast.verify(tmp_path / "merged.gguf", source).is_good


def test_a_whole_file_cannot_be_merged(tmp_path: Path) -> None:
    source = model(tmp_path, "odd_rows")
    with pytest.raises(CheckpointError, match="a whole file, not a part of one"):
        weightcast.merge(source, tmp_path / "m.gguf")
    weightcast.split(source, tmp_path / "p")
    weightcast.merge(tmp_path / "p-00001-of-00001.gguf", tmp_path / "m.gguf")
    with pytest.raises(CheckpointError, match="a whole file, not a part of one"):
        weightcast.merge(tmp_path / "m.gguf", tmp_path / "n.gguf")
