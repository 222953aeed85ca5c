"""Checkpoints as they lie on disks: clones, hub caches, what desktops and downloads leave there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import weightcast
from tests.support import Golden
from weightcast.converters.convert import prepare
from weightcast.converters.families.grok1.synthetic import RELEASE, tiny_spec, write_checkpoint
from weightcast.converters.sources import ConvertOptions, open_graph, open_vocabulary
from weightcast.errors import CheckpointError, FormatError, LayoutError
from weightcast.formats.directory import entries, is_trace

WIDE = Golden("wide")
POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4cac64ae1ac1a6f0e0d2ad0f5d7e3c5b4b1d4a3a0a0d4c9f9b8a7a6f5e4d3c2b\n"
    b"size 1610740034\n"
)
STAND_INS = {
    "pointer": (POINTER, "a pointer of Git LFS to 1,610,740,034 bytes, not the file; run `git lfs"),
    "page": (b"\n<!DOCTYPE html>\n<html><body>429</body></html>", "a web page, not the file"),
    "bucket": (
        b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>',
        "a storage server's refusal (NoSuchKey)",
    ),
    "answer": (
        b"Entry not found\n",
        "a text, not the file: 'Entry not found'; download the file again",
    ),
    "login": (b"Invalid username or password.", "not the file: 'Invalid username or password.'"),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, tokenizer_model: Path) -> Path:
    """A directory with all that it can have; do not change it."""
    path = tmp_path_factory.mktemp("plain") / "m-bf16"
    weightcast.convert(WIDE.path, path, tokenizer=tokenizer_model, split="4M")
    return path


@pytest.mark.parametrize("name", STAND_INS)
@pytest.mark.parametrize(
    "file", ["config.json", "model.safetensors.index.json", "model-00002-of-00004.safetensors"]
)
def test_stand_ins_in_a_directory(file: str, name: str, plain: Path, tmp_path: Path) -> None:
    raw, words = STAND_INS[name]
    path = shutil.copytree(plain, tmp_path / "m-bf16")
    (path / file).write_bytes(raw)
    with pytest.raises(FormatError) as caught:
        open_graph(path)
    assert f"{path / file}: " in str(caught.value)
    assert words in str(caught.value)
    what = words.partition(";")[0]
    assert any(what in problem.line for problem in weightcast.verify(path).problems)


@pytest.mark.parametrize("name", STAND_INS)
def test_stand_ins_of_gguf_files(name: str, tmp_path: Path) -> None:
    raw, words = STAND_INS[name]
    for path in (tmp_path / "m.gguf", tmp_path / "m"):
        path.write_bytes(raw)
        with pytest.raises(CheckpointError) as caught:
            open_graph(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert words in str(caught.value)


@pytest.mark.parametrize("name", STAND_INS)
@pytest.mark.parametrize("option", ["imatrix", "recipe", "tokenizer", "spec"])
def test_stand_ins_of_files_beside(option: str, name: str, tmp_path: Path) -> None:
    raw, words = STAND_INS[name]
    if option == "recipe" and name in ("answer", "login"):  # texts, as recipes are
        words = "not valid TOML"
    path = tmp_path / "file"
    path.write_bytes(raw)
    given: Any = {"no_tokenizer": option != "tokenizer", option: path}
    with pytest.raises(CheckpointError) as caught:
        weightcast.convert(WIDE.path, tmp_path / "m-Q4_K.gguf", **given)
    assert str(caught.value).startswith(f"{path}: ")
    assert words in str(caught.value)


@pytest.mark.parametrize("name", STAND_INS)
def test_stand_ins_of_shards(name: str, tmp_path: Path) -> None:
    raw, words = STAND_INS[name]
    source = shutil.copytree(WIDE.path.parent / "wide", tmp_path / "m")
    (source / "ckpt-0" / "tensor00007_000").write_bytes(raw)
    with pytest.raises(FormatError) as caught:
        open_graph(source)
    assert "tensor00007_000: " in str(caught.value)
    assert words in str(caught.value)


def test_the_release_as_its_readme_says(tokenizer_model: Path, tmp_path: Path) -> None:
    """The shards in `checkpoints` of a clone of the code, the tokenizer in the clone."""
    clone = tmp_path / "grok-1"
    shutil.copytree(WIDE.path / "ckpt-0", clone / "checkpoints" / "ckpt-0")
    shutil.copy(WIDE.path / "spec.json", clone)
    shutil.copy(tokenizer_model, clone / "tokenizer.model")
    for name in ("run.py", "model.py", "README.md", "checkpoints/README.md"):
        (clone / name).touch()
    for source in (clone, clone / "checkpoints", clone / "checkpoints" / "ckpt-0"):
        assert len(open_graph(source)) == 26
        vocabulary = open_vocabulary(source)
        assert vocabulary is not None
        assert vocabulary.model_file == clone / "tokenizer.model"


def hub_cache(folder: Path, source: Path, revisions: tuple[str, ...] = ("abc",)) -> Path:
    """As huggingface_hub lays it out: snapshots of links to blobs."""
    cache = folder / "models--xai-org--grok-1"
    for revision in revisions:
        for file in sorted(source.rglob("*")):
            if not file.is_file():
                continue
            place = cache / "snapshots" / revision / file.relative_to(source)
            blob = cache / "blobs" / "-".join(file.relative_to(source).parts)
            place.parent.mkdir(parents=True, exist_ok=True)
            blob.parent.mkdir(exist_ok=True)
            shutil.copy(file, blob)
            place.symlink_to(blob)
    (cache / "refs").mkdir()
    return cache


def test_a_hub_cache(plain: Path, tmp_path: Path) -> None:
    for source in (WIDE.path, plain):
        folder = tmp_path / source.name
        cache = hub_cache(folder, source)
        (cache / "refs" / "main").write_text("abc")
        assert len(open_graph(cache)) == 26
        weightcast.convert(cache, folder / "m-Q8_0.gguf", no_tokenizer=True, bundle=True)
        card = (folder / "m-Q8_0.README.md").read_text()
        assert "weightcast convert xai-org/grok-1 m-Q8_0.gguf" in card
        assert "base_model: xai-org/grok-1\n" in card
        assert "abc" not in card
        statement = json.loads((folder / "m-Q8_0.intoto.json").read_text())
        given = statement["predicate"]["buildDefinition"]["externalParameters"]
        assert given["source"] == "xai-org/grok-1"
        assert weightcast.verify(folder / "m-Q8_0.gguf", cache).is_good
        assert weightcast.compare(cache, folder / "m-Q8_0.gguf").pairing.only_source == ()


def test_revisions_of_a_hub_cache(plain: Path, tmp_path: Path) -> None:
    cache = hub_cache(tmp_path, plain, ("abc", "def"))
    with pytest.raises(CheckpointError, match=r"several revisions \(abc, def\); name one of them"):
        open_graph(cache)
    (cache / "refs" / "main").write_text("def\n")
    assert open_graph(cache).source.endswith("snapshots/def")
    assert open_graph(cache / "snapshots" / "abc").source.endswith("abc")
    (cache / "refs" / "main").write_text("ghi")
    with pytest.raises(CheckpointError, match=r"refs/main is .*ghi.*, which is not in snapshots"):
        open_graph(cache)


def test_an_index_stands_for_its_directory(plain: Path) -> None:
    index = plain / "model.safetensors.index.json"
    assert open_graph(index).source == str(plain)
    assert weightcast.verify(index).is_good


TRACES = [
    *("._model.safetensors", ".DS_Store", "Thumbs.db", "ehthumbs.db", "desktop.ini", "Icon\r"),
    *("x:Zone.Identifier", "System Volume Information", "$RECYCLE.BIN", "@eaDir", "lost+found"),
    *(".directory", ".nfs0000000012", ".fuse_hidden0001", "__MACOSX", ".Trash-1000"),
]


@pytest.mark.parametrize("name", TRACES)
def test_traces_of_desktops_are_ignored(name: str, plain: Path, tmp_path: Path) -> None:
    source = shutil.copytree(WIDE.path, tmp_path / "m")
    path = shutil.copytree(plain, tmp_path / "m-bf16")
    for folder in (source, source / "ckpt-0", path):
        (folder / name).write_bytes(b"\0\5\x16\7" + bytes(100))
    (path / f"._{path.name}").touch()
    assert is_trace(name)
    assert name not in [entry.name for entry in entries(path)]
    assert len(open_graph(source)) == len(open_graph(path)) == 26
    assert weightcast.verify(source).is_good
    assert weightcast.verify(path, source).is_good
    weightcast.convert(source, path, no_tokenizer=True)  # over it


@pytest.mark.parametrize(
    "name", ["model.safetensors", "tensor00000_000", "notes", ".cache", "Icon"]
)
def test_other_names_are_no_traces(name: str) -> None:
    assert not is_trace(name)


def test_byte_order_marks(plain: Path, tmp_path: Path) -> None:
    """As Windows' editors write them."""
    path = shutil.copytree(plain, tmp_path / "m-bf16")
    for name in ("config.json", "model.safetensors.index.json", "generation_config.json"):
        (path / name).write_bytes(b"\xef\xbb\xbf" + (path / name).read_bytes())
    assert len(open_graph(path)) == 26
    assert weightcast.verify(path).is_good
    (tmp_path / "r.toml").write_bytes(b'\xef\xbb\xbfbase = "Q8_0"\n')
    weightcast.convert(path, tmp_path / "m.gguf", recipe=tmp_path / "r.toml", no_tokenizer=True)
    (path / "config.json").write_text((plain / "config.json").read_text(), encoding="utf-16")
    with pytest.raises(FormatError, match=r"config\.json: JSON in UTF-16; save it as UTF-8"):
        open_graph(path)


@pytest.mark.parametrize("vocab_size", [RELEASE["vocab_size"], 400 + 4097])
def test_a_tokenizer_with_too_few_pieces_is_refused(
    vocab_size: int, tokenizer_model: Path, tmp_path: Path
) -> None:
    source = write_checkpoint(tmp_path, tiny_spec(vocab_size=vocab_size))
    words = f"has 400 pieces, but the model has a vocabulary of {vocab_size:,}: it belongs to"
    with pytest.raises(LayoutError, match=words):
        weightcast.convert(source, tmp_path / "m-Q8_0.gguf", tokenizer=tokenizer_model)
    source = write_checkpoint(tmp_path / "padded", tiny_spec(vocab_size=400 + 4096))
    weightcast.convert(source, tmp_path / "m-Q8_0.gguf", tokenizer=tokenizer_model)


@pytest.mark.parametrize(
    ("name", "split", "words"),
    [
        (
            "g-Q8_0.gguf",
            None,
            "335.43 GB), and model hubs take no file above 200 GB: split it",
        ),
        ("g-TQ1_0.gguf", None, "model hubs recommend 50 GB a file: split it"),
        ("g-Q8_0.gguf", "48G", None),
        ("g-bf16", None, None),
    ],
)
def test_files_above_the_limits_of_hubs(
    name: str, split: str | None, words: str | None, tmp_path: Path
) -> None:
    source = write_checkpoint(tmp_path, RELEASE, sparse=True)
    options = ConvertOptions(no_tokenizer=True, split=split)
    (output,) = prepare(source, [tmp_path / name], options).outputs
    notes = [note for note in output.notes if "model hubs" in note]
    assert len(notes) == (words is not None)
    assert all(words in note for note in notes if words)
