"""Options of `convert` that choose types for a size: what is shown, recipes that are saved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import sensitivities
from tests.support import GOLDEN
from weightcast.converters.sources import open_graph
from weightcast.converters.targets.types import shapes_of

WIDE = GOLDEN / "wide"
SHAPES = dict(shapes_of(open_graph(WIDE)))


@pytest.fixture
def costs(tmp_path: Path) -> Path:
    tensors = sensitivities.costs_of(SHAPES, probes=True)
    return sensitivities.write(tmp_path / "costs.json", SHAPES, tensors)


def test_a_plan_shows_the_recipe_and_what_else_fits(run, costs: Path, tmp_path: Path) -> None:
    made = tmp_path / "m.gguf"
    asked = ("--no-tokenizer", "--target-size", "4M", "--sensitivity", costs)
    done = run("convert", WIDE, made, "--dry-run", *asked)
    assert done.code == 0
    lines = done.out.splitlines()
    said = "recipe for 4,000,000 bytes (4.00 MB): predicted divergence (KL) "
    at = next(n for n, line in enumerate(lines) if said in line)
    assert lines[at].endswith(", the least that there is")
    assert lines[at + 1].startswith("    plain rule, attention and ends Q8_0, the rest ")
    assert any(line.startswith("    Q3_K_M of llama-quantize: ") for line in lines)
    assert not made.exists()
    assert run("convert", WIDE, made, *asked).code == 0
    assert made.stat().st_size <= 4_000_000


def test_a_recipe_is_saved_and_nothing_converted(run, costs: Path, tmp_path: Path) -> None:
    made, saved = tmp_path / "m.gguf", tmp_path / "r.toml"
    asked = ("--no-tokenizer", "--target-bpw", "3.5", "--sensitivity", costs)
    done = run("convert", WIDE, made, *asked, "--save-recipe", saved)
    assert (done.code, made.exists()) == (0, False)
    assert done.out.endswith(f"wrote {saved}: --recipe takes it\n")
    assert run("convert", WIDE, made, "--no-tokenizer", "--recipe", saved).code == 0
    by_recipe = made.read_bytes()
    assert run("convert", WIDE, made, *asked).code == 0
    assert made.read_bytes() == by_recipe


def test_json_tells_what_was_chosen(run, costs: Path, tmp_path: Path) -> None:
    asked = ("--max-kl", "0.01", "--sensitivity", costs, "--target-type", "Q2_K,Q4_K")
    done = run("convert", WIDE, tmp_path / "m.gguf", "--no-tokenizer", *asked, "-n", "--json")
    (output,) = json.loads(done.out)["outputs"]
    sized = output["sized"]
    assert sized["goal"] == {"bytes": None, "bits_per_weight": None, "divergence": 0.01}
    assert (sized["cost_is"], sized["is_best"]) == ("kl", True)
    assert sized["cost"] <= 0.01
    assert set(output["types"]) <= {"F32", "Q2_K", "Q4_K"}


def test_a_recipe_without_a_size_is_refused(run, tmp_path: Path) -> None:
    saved = tmp_path / "r.toml"
    done = run("convert", WIDE, tmp_path / "m-Q8_0.gguf", "--no-tokenizer", "--save-recipe", saved)
    assert (done.code, saved.exists()) == (2, False)
    assert "name one GGUF output and --target-size SIZE" in done.err
