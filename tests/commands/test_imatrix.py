"""The command `imatrix`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.evaluation.running import EXAMPLE
from weightcast.formats.gguf.imatrix import read_imatrix, read_sums

TEXT = EXAMPLE / "held-out.txt"


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "imatrix.gguf"


def test_a_text_makes_an_importance_matrix(run, output: Path) -> None:
    done = run("imatrix", EXAMPLE, TEXT, "-o", output, "-c", 64, "--chunks", 3)
    assert (done.code, done.err) == (0, "")
    first, second, *notes = done.out.splitlines()
    assert first == f"{output}: {len(read_sums(output).entries)} tensors, 3 chunks of 64 tokens"
    assert second.startswith("perplexity ")
    assert any(note.startswith("note: fewer than 256 tokens reached") for note in notes)
    matrix = read_imatrix(output)
    assert (matrix.chunks, matrix.datasets) == (3, (str(TEXT),))
    assert list(output.parent.iterdir()) == [output]


def test_it_is_of_use_to_convert(run, output: Path, tmp_path: Path) -> None:
    run("imatrix", EXAMPLE, TEXT, "-o", output, "-c", 64, "--chunks", 4)
    made = tmp_path / "grok-IQ2_XXS.gguf"
    done = run("convert", EXAMPLE, made, "--imatrix", output)
    assert done.code == 0, done.err
    assert made.is_file()


def test_merging_equals_one_run(run, output: Path, tmp_path: Path) -> None:
    tokens = np.random.default_rng(3).integers(0, 100, 256)
    texts = [tmp_path / f"{n}.npy" for n in range(3)]
    for path, ids in zip(texts, (tokens, tokens[:128], tokens[128:]), strict=True):
        np.save(path, ids)
    parts = [tmp_path / "a.gguf", tmp_path / "b.gguf"]
    run("imatrix", EXAMPLE, texts[0], "-o", output, "-c", 64)
    for text, part in zip(texts[1:], parts, strict=True):
        run("imatrix", EXAMPLE, text, "-o", part, "-c", 64)
    merged = tmp_path / "merged.gguf"
    options = [word for part in parts for word in ("--merge", part)]
    assert run("imatrix", *options, "-o", merged).code == 0
    added = tmp_path / "added.gguf"
    assert run("imatrix", EXAMPLE, texts[2], "-o", added, "-c", 64, "--merge", parts[0]).code == 0
    expected = read_sums(output)
    for path in (merged, added):
        found = read_sums(path)
        assert found.chunks == expected.chunks
        for name, entry in expected.entries.items():
            np.testing.assert_array_equal(found.entries[name].counts, entry.counts)
            np.testing.assert_allclose(found.entries[name].squares, entry.squares, rtol=1e-4)


def test_the_older_format_is_written_by_name(run, tmp_path: Path) -> None:
    output = tmp_path / "imatrix.dat"
    assert (
        run("imatrix", EXAMPLE, TEXT, "-o", output, "-c", 64, "--chunks", 2, "--no-ppl").code == 0
    )
    assert not output.read_bytes().startswith(b"GGUF")
    assert read_imatrix(output).chunks == 2


def test_statistics_are_shown(run, output: Path) -> None:
    run("imatrix", EXAMPLE, TEXT, "-o", output, "-c", 64, "--chunks", 2)
    done = run("imatrix", "--merge", output, "--show-statistics")
    assert done.code == 0
    assert "blk.0.attn_q.weight" in done.out
    assert "layer 0: share of tokens by expert" in done.out
    values = json.loads(run("imatrix", "--merge", output, "--show-statistics", "--json").out)
    assert values["format"] == "weightcast.imatrix"
    assert len(values["tensors"]) == len(read_sums(output).entries)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([EXAMPLE, TEXT], "name the file to write (-o FILE), or ask for --show-statistics"),
        ([EXAMPLE, "-o", "x.gguf"], "give a model and a text (SRC TEXT)"),
        ([EXAMPLE, TEXT, "-o", TEXT], "is or lies in what is read or written"),
        ([EXAMPLE, TEXT, "-o", "x.gguf", "-c", 100000], "tokens, and 200,000 are needed"),
        ([EXAMPLE, "none.txt", "-o", "x.gguf"], "none.txt: "),
        ([EXAMPLE, TEXT, "-o", "x.gguf", "--memory", "much"], "--memory: 'much' is not a size"),
        ([EXAMPLE, TEXT, "-o", "x.gguf", "--device", "tpu"], "torch cannot use the device 'tpu'"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(
    run, arguments: list[object], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = TEXT.read_bytes()
    done = run("imatrix", *arguments)
    assert done.code != 0
    assert said in done.err
    assert len(done.err.splitlines()) == 1
    assert not list(tmp_path.iterdir())
    assert TEXT.read_bytes() == before
