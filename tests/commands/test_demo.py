"""`demo`: the trained model writes and is measured in llama.cpp, files agree with the shards."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader
from sentencepiece import SentencePieceProcessor

import weightcast
from tests.commands.command_line import names
from weightcast.commands import demo, llama_cpp
from weightcast.commands.generation import (
    WINDOW,
    continue_text,
    log_probabilities,
    token_losses,
)
from weightcast.commands.text.demo import Spoken, Table
from weightcast.commands.text.demo import quality as quality_lines
from weightcast.converters.families.grok1 import forward
from weightcast.converters.graph import take
from weightcast.converters.graph.read import load_float32

HELD_OUT = (demo.TRAINED / "held-out.txt").read_text()
TYPES = ("F32", "Q8_0", "Q4_K_M", "Q2_K")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder and the output of a demo of the trained model; do not change the files."""
    folder = tmp_path_factory.mktemp("demo") / "kept"
    return folder, "\n".join(demo.run_demo(demo.TRAINED, folder))


def quality(said: str) -> dict[str, tuple[float, ...]]:
    """MB, bits per weight and perplexity by type."""
    rows = re.findall(r"(?m)^(F32|Q\w+) +([\d.]+) +([\d.]+) +([\d.]+)", said)
    return {name: tuple(map(float, numbers)) for name, *numbers in rows}


def test_sizes_and_perplexities_are_in_their_order(kept: tuple[Path, str]) -> None:
    folder, said = kept
    found = quality(said)
    assert tuple(found) == TYPES
    sizes, bits, perplexities = ({t: found[t][n] for t in TYPES} for n in range(3))
    for name in TYPES:
        nbytes = (folder / f"tiny-grok-{name}.gguf").stat().st_size
        assert sizes[name] == pytest.approx(nbytes / 1e6, abs=0.006)
    assert bits["F32"] == 32
    assert 8.4 < bits["Q8_0"] < 8.6
    assert 4.5 < bits["Q4_K_M"] < 5.5
    assert 2.6 < bits["Q2_K"] < 4
    assert perplexities["Q8_0"] == pytest.approx(perplexities["F32"], rel=0.01)
    assert 0.995 * perplexities["F32"] < perplexities["Q4_K_M"] < perplexities["Q2_K"]
    assert perplexities["Q2_K"] < 2 * perplexities["F32"] < 150  # of 2,048 by chance


def test_the_readme_of_the_model_has_its_numbers(kept: tuple[Path, str]) -> None:
    said = (demo.TRAINED / "README.md").read_text()
    told = {name: float(value) for value, name in re.findall(r"([\d.]+) from\s(\w+)", said)}
    assert told == pytest.approx({t: row[2] for t, row in quality(kept[1]).items()}, rel=5e-3)
    assert f"{weightcast.open(demo.TRAINED / 'ckpt-0').parameters:,}" in said


def test_changes_of_perplexity_come_with_their_standard_error() -> None:
    first = Spoken("F32", 0, 32, np.full(10_000, np.log(20.0)), "")
    rng = np.random.default_rng(1)
    other = Spoken("Q2_K", 0, 3, first.losses + rng.normal(0.05, 0.5, 10_000), "")
    (line,) = (line for line in quality_lines([first, other]) if line.startswith("Q2_K"))
    found = re.search(r"([\d.]+)  ([+-][\d.]+) % \+- ([\d.]+)$", line)
    assert found is not None
    value, change, error = map(float, found.groups())
    assert value == pytest.approx(20 * (1 + change / 100), abs=0.01)
    assert error == pytest.approx(100 * np.exp(0.05) * 0.5 / 100, rel=0.05)
    assert abs(change - 100 * np.expm1(0.05)) < 4 * error


def test_no_type_falls_back_for_widths_that_fit_no_super_block(kept: tuple[Path, str]) -> None:
    for name, allowed in (("Q2_K", {"Q2_K", "Q3_K"}), ("Q4_K_M", {"Q4_K", "Q5_K", "Q6_K"})):
        tensors = GGUFReader(kept[0] / f"tiny-grok-{name}.gguf").tensors
        types = {t.name: t.tensor_type.name for t in tensors if "exps" in t.name}
        assert len(types) == 9
        assert set(types.values()) <= allowed, types


def test_every_type_writes_and_what_differs_is_said(kept: tuple[Path, str]) -> None:
    said = kept[1]
    assert set(re.findall(r"--- (\w+)", said)) == set(TYPES)
    _, _, written = said.partition("--- F32")
    left = [line[:38].rstrip() for line in written.split("--- Q4_K_M")[0].splitlines()[1:]]
    text = " ".join(left).strip()
    assert text.startswith(demo.PROMPT)
    assert len(text.split()) > 30
    assert re.search(r"--- Q2_K: parts after \d+ words?\n", said)


def test_lines_fit_a_terminal(kept: tuple[Path, str]) -> None:
    folder, said = kept
    assert not [line for line in said.splitlines() if len(line) > 80 and str(folder) not in line]


def test_files_and_page_are_kept(kept: tuple[Path, str]) -> None:
    folder, said = kept
    outputs = [f"tiny-grok-{name}.gguf" for name in TYPES]
    assert names(folder) == sorted([*outputs, "tiny-grok-bf16", "errors.html", "errors.json"])
    assert said.endswith(f"Open {folder / 'errors.html'} in a browser: the errors of all tensors.")
    assert "Q2_K" in (folder / "errors.html").read_text()


def test_files_agree_with_the_shards(kept: tuple[Path, str]) -> None:
    found = re.findall(r"(?m)^(tiny-grok\S+) +(\S+) +\S+ +(\S+)  the same in (\d+) of 96$", kept[1])
    differences = {(name, runner): difference for name, runner, difference, _ in found}
    assert differences["tiny-grok-F32.gguf", "weightcast"] == "none"
    assert float(differences["tiny-grok-F32.gguf", "llama.cpp"]) < 5e-3
    assert float(differences["tiny-grok-Q8_0.gguf", "llama.cpp"]) < 0.5
    assert float(differences["tiny-grok-bf16", "weightcast"]) < 0.1
    assert min(int(same) for *_, same in found) >= 90


def test_misplaced_tensors_show() -> None:
    """What the demo says of them, on two matrices of the experts that changed places."""
    graph = weightcast.open(demo.TRAINED / "ckpt-0").graph
    swapped = {"ffn_gate": "ffn_up", "ffn_up": "ffn_gate", "blk.0": "blk.1", "blk.1": "blk.0"}

    def load(name: str, expert: int | None = None, *, swap: str) -> np.ndarray:
        name = re.sub(swap, lambda found: swapped[found[0]], name)
        return load_float32(graph[name] if expert is None else take(graph[name], expert))

    tokens = forward.clear_tokens(graph, 1)
    table = Table(forward.logits(graph, tokens))
    for swap in (r"ffn_gate(?=_exps)|ffn_up", r"blk\.[01](?=\.attn_output\.)"):
        logits = forward.forward(
            graph.spec, lambda name, expert=None, s=swap: load(name, expert, swap=s), tokens
        ).logits
        assert float(table.line("", "", logits).split()[1]) > 1


def test_perplexity_is_that_of_the_reference(kept: tuple[Path, str]) -> None:
    text = HELD_OUT[:3000]
    path = kept[0] / "tiny-grok-F32.gguf"
    with llama_cpp.loaded(path, threads=1) as model:
        found = token_losses(model, text)
    processor = SentencePieceProcessor(model_file=str(demo.TRAINED / "tokenizer.model"))
    tokens = processor.encode(text)
    assert len(tokens) > 2 * WINDOW
    graph = weightcast.open(path).graph
    losses: list[float] = []
    for start in range(0, len(tokens), WINDOW):
        window = tokens[start : start + WINDOW]
        logits = log_probabilities(forward.logits(graph, window))[0]
        losses += [-logits[n, window[n + 1]] for n in range(len(window) - 1)]
    np.testing.assert_allclose(found, losses, atol=2e-2)
    assert found.mean() == pytest.approx(np.mean(losses), abs=1e-3)


def test_tokens_make_the_text_again(kept: tuple[Path, str]) -> None:
    with llama_cpp.loaded(kept[0] / "tiny-grok-Q2_K.gguf", threads=1) as model:
        for text in ("Anne", HELD_OUT[:900], "two\nlines \u00a3 5", "\u65e5\u672c"):
            assert model.detokenize(model.tokenize(text)).removeprefix(" ") == text
        assert model.tokenize("") == []


def test_a_context_that_grows_gives_the_logits_of_the_whole(kept: tuple[Path, str]) -> None:
    with llama_cpp.loaded(kept[0] / "tiny-grok-F32.gguf", threads=1) as model:
        tokens = model.tokenize(HELD_OUT)[:40]
        with model.context(40) as add:
            whole = add(tokens)
        with model.context(40) as add:
            parts = [add(tokens[:30]), *(add([token]) for token in tokens[30:])]
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=2e-2)


def test_the_same_seed_writes_the_same_text(kept: tuple[Path, str]) -> None:
    with llama_cpp.loaded(kept[0] / "tiny-grok-Q8_0.gguf", threads=1) as model:
        first, again, other = (continue_text(model, demo.PROMPT, 12, seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_random_weights_agree_too(run) -> None:
    done = run("demo", "--random")
    assert done.code == 0
    assert done.out.count("the same in 96 of 96") == 5
    assert "--keep DIR keeps the files" in done.out
    assert "not in the wheel" not in done.out


def test_a_wheel_says_where_the_trained_model_is(run, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(demo, "TRAINED", tmp_path / "absent")
    monkeypatch.setattr(llama_cpp, "library_path", lambda: None)
    done = run("demo", "--keep", tmp_path / "kept")
    assert done.code == 0
    assert "the directory examples/tiny-grok of the sources: weightcast demo CHECKPOINT" in done.out
    assert "tiny-random-Q8_0.gguf" in names(tmp_path / "kept")


def test_without_llama_cpp_the_rest_is_done(run, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(llama_cpp, "library_path", lambda: None)
    for _ in range(2):  # the second time over what the first has left
        done = run("demo", "--keep", tmp_path / "kept")
        assert done.code == 0
        assert "tiny-grok-Q8_0.gguf    weightcast" in done.out
        missing = "llama.cpp is not installed and ran nothing: pip install 'weightcast[llama-cpp]'"
        assert missing in done.out
        assert "perplexity" not in done.out


def test_without_the_extra_the_page_is_left_out(run, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(llama_cpp, "library_path", lambda: None)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    done = run("demo", "--random", "--keep", tmp_path / "kept")
    assert done.code == 0
    assert "No page of their errors: jinja2 is not installed: pip install" in done.out
    assert "errors.json" in names(tmp_path / "kept")


@pytest.mark.parametrize("missing", ["ckpt-0", "tokenizer.model", "held-out.txt"])
def test_a_folder_without_its_parts_is_refused(tmp_path: Path, missing: str) -> None:
    (tmp_path / "ckpt-0").mkdir()
    for name in ("tokenizer.model", "held-out.txt"):
        (tmp_path / name).touch()
    (tmp_path / missing).rename(tmp_path / "elsewhere")
    with pytest.raises(weightcast.CheckpointError) as caught:
        list(demo.run_demo(tmp_path))
    assert str(caught.value) == (
        f"{tmp_path}: has no {missing}; give the directory examples/tiny-grok of weightcast's "
        "sources, or --random"
    )


def test_a_short_text_is_refused(tmp_path: Path) -> None:
    for name in ("ckpt-0", "tokenizer.model"):
        (tmp_path / name).symlink_to(demo.TRAINED / name)
    (tmp_path / "held-out.txt").write_text("Anne was persuaded.\n")
    with pytest.raises(weightcast.CheckpointError, match=r"held-out\.txt: has fewer than 50 words"):
        list(demo.run_demo(tmp_path))


def test_a_checkpoint_or_random_weights(run, tmp_path: Path) -> None:
    done = run("demo", tmp_path, "--random")
    assert done.code == 2
    assert "give CHECKPOINT or --random, not both" in done.err
