"""The commands `evaluate` and `sensitivity`."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import weightcast
from tests.evaluation.dense_models import write_dense
from tests.evaluation.running import EXAMPLE

TEXT = EXAMPLE / "held-out.txt"
SHORT = ("--text", TEXT, "-c", 64, "--chunks", 3)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("evaluate") / "grok-Q3_K_M.gguf"
    weightcast.convert(EXAMPLE, path)
    return path


def test_an_artifact_is_compared_with_its_source(run, artifact: Path) -> None:
    done = run("evaluate", EXAMPLE, artifact, *SHORT)
    assert (done.code, done.err) == (0, "")
    assert "KL divergence 0.0" in done.out
    assert "Weights only" in done.out
    values = json.loads(run("evaluate", EXAMPLE, artifact, *SHORT, "--json", "--isolate").out)
    assert values["format"] == "weightcast.evaluation"
    found = values["artifacts"][0]
    assert found["statistics"]["kld_mean"] > 0
    assert len(found["layers"]) == weightcast.open(EXAMPLE).spec.num_layers
    assert found["layers"][0]["alone"] > 0


@pytest.mark.parametrize("ending", ["json", "md", "html"])
def test_reports_are_written(run, artifact: Path, tmp_path: Path, ending: str) -> None:
    report = tmp_path / f"report.{ending}"
    done = run("evaluate", EXAMPLE, artifact, *SHORT, "--report", report)
    assert done.code == 0, done.err
    assert "grok-Q3_K_M" in report.read_text()
    assert list(tmp_path.iterdir()) == [report]


def test_a_dry_run_estimates(run, artifact: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    done = run("evaluate", EXAMPLE, artifact, *SHORT, "--report", report, "-n")
    assert done.code == 0, done.err
    assert [line.partition(" ")[0] for line in done.out.splitlines()] == [
        *("reads", "computes", "memory:", "time:"),
    ]
    values = json.loads(run("imatrix", EXAMPLE, *SHORT[1:], "--json", "--dry-run").out)
    assert values["dry_run"] is True
    assert not list(tmp_path.iterdir())


def test_a_base_file_takes_the_place_of_the_source(run, artifact: Path, tmp_path: Path) -> None:
    base = tmp_path / "source.kld"
    assert run("evaluate", EXAMPLE, *SHORT, "--save-base", base).code == 0
    done = run("evaluate", artifact, "--base", base, "--all")
    assert done.code == 0, done.err
    assert "Mean    KLD:" in done.out
    assert "worst layer" not in done.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([EXAMPLE], "give a text (--text FILE), or a KL base file (--base FILE)"),
        ([EXAMPLE, "--text", TEXT, "--base", TEXT], "--base has tokens of its own"),
        ([EXAMPLE, "--base", TEXT], "held-out.txt at byte 0: not a KL base file"),
        ([EXAMPLE, "--base", TEXT, "--isolate"], "--isolate: of no use with --base, which has"),
        ([EXAMPLE, "--base", TEXT, "--save-base", "x"], "--save-base: of no use with --base"),
        ([EXAMPLE, "--text", TEXT, "--folder", "none"], "none: no such directory; create it first"),
        ([EXAMPLE, "--text", TEXT, "-c", "9999"], "held-out.txt: "),
        (
            [EXAMPLE, "--text", TEXT, "--report", "x.json", "--save-base", "./x.json"],
            "x.json: is or lies in what is read or written",
        ),
        ([EXAMPLE, "--text", TEXT, "--report", "x.txt"], "x.txt: the ending says the form"),
        ([EXAMPLE, "--text", TEXT, "--save-base", TEXT], "is or lies in what is read or written"),
        ([EXAMPLE, "nothing.gguf", "--text", TEXT], "nothing.gguf: "),
    ],
)
def test_what_is_wrong_is_said_in_a_line(
    run, arguments: list[object], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run("evaluate", *arguments)
    assert done.code != 0
    assert said in done.err
    assert len(done.err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_base_file_of_another_vocabulary_is_refused(run, tmp_path: Path) -> None:
    base, other = tmp_path / "source.kld", tmp_path / "dense.gguf"
    write_dense(other, "llama")
    assert run("evaluate", EXAMPLE, *SHORT, "--save-base", base).code == 0
    done = run("evaluate", EXAMPLE, other, "--base", base)
    said = f"{other}: 48 tokens in the vocabulary, and 2,048 in that of {base}: this is another"
    assert (done.code, done.err) == (1, f"error: {said} model\n")


def test_tokens_need_no_tokenizer(run, tmp_path: Path) -> None:
    path, tokens = tmp_path / "dense.gguf", tmp_path / "tokens.npy"
    write_dense(path, "llama")
    np.save(tokens, np.arange(96) % 48)
    done = run("evaluate", path, "--text", tokens, "-c", 32)
    assert done.code == 0, done.err
    done = run("evaluate", path, "--text", TEXT, "-c", 32)
    assert "give llama.cpp's token ids in a .npy in place of the text" in done.err


def test_sensitivities_choose_types_for_a_size(run, tmp_path: Path) -> None:
    costs, made = tmp_path / "costs.json", tmp_path / "grok.gguf"
    types = "Q4_0,Q4_K,Q8_0"
    done = run(
        *("sensitivity", EXAMPLE, TEXT, "-o", costs, "-c", 64, "--chunks", 2),
        *("--types", types, "--probe", "Q4_0"),
    )
    assert done.code == 0, done.err
    tensors = json.loads(costs.read_text())["tensors"]
    assert all(set(tensor["probe"]) == {"Q4_0"} for tensor in tensors.values())
    done = run("convert", EXAMPLE, made, "--sensitivity", costs, "--target-bpw", "5.5")
    assert done.code == 0, done.err
    found = {tensor.type for tensor in weightcast.open(made).values()}
    assert len(found & set(types.split(","))) > 1


def command(folder: Path, report: Path) -> list[str]:
    tokens = folder / "tokens.npy"
    if not tokens.exists():
        vocabulary = weightcast.open(EXAMPLE).spec.vocab_size
        np.save(tokens, np.random.default_rng(2).integers(0, vocabulary, 16 * 256))
    arguments = [EXAMPLE, folder / "grok-Q4_K_M.gguf", "--text", tokens, "-c", 256, "--json"]
    words = ["evaluate", *arguments, "--report", report]
    return [sys.executable, "-m", "weightcast", *map(str, words)]


def test_a_killed_evaluation_goes_on_to_the_same_numbers(tmp_path: Path) -> None:
    weightcast.convert(EXAMPLE, tmp_path / "grok-Q4_K_M.gguf")
    expected = subprocess.run(
        command(tmp_path, tmp_path / "whole.json"), check=True, capture_output=True
    ).stdout
    report = tmp_path / "killed.json"
    states = tmp_path / ".killed.json.states"
    for layer in (1, 2):
        process = subprocess.Popen(command(tmp_path, report), stdout=subprocess.DEVNULL)
        while process.poll() is None and not (states / f"layer-{layer}.npz").exists():
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert states.exists() or report.exists()
    found = subprocess.run(command(tmp_path, report), check=True, capture_output=True).stdout
    assert found == expected
    assert not states.exists()
    assert report.read_bytes() == (tmp_path / "whole.json").read_bytes()
