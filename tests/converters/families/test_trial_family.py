"""A new family is a folder and a word: it converts, reads back, compares and verifies."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

import weightcast
from tests.converters.families.trial import TRIAL
from weightcast.converters.families import FAMILIES
from weightcast.converters.graph.read import load_float32
from weightcast.converters.sources import open_graph

VOCAB, EMB, FFN, LAYERS = 96, 64, 160, 2

Arrays = dict[str, NDArray[np.float32]]


@pytest.fixture(autouse=True)
def one_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "trial", TRIAL)


@pytest.fixture
def arrays() -> Arrays:
    rng = np.random.default_rng(7)

    def normal(*shape: int) -> NDArray[np.float32]:
        return rng.standard_normal(shape, np.float32)

    layers = {f"h.{n}.mlp.c_fc.weight": normal(EMB, FFN) for n in range(LAYERS)}
    return {"wte.weight": normal(VOCAB, EMB), **layers, "ln_f.weight": 1 + normal(EMB)}


@pytest.fixture
def checkpoint(arrays: Arrays, tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    save_file(arrays, folder / "model.safetensors")
    config = {"vocab_size": VOCAB, "n_embd": EMB, "n_inner": FFN, "n_layer": 2, "trial_scale": 0.5}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def canonical(arrays: Arrays) -> Arrays:
    layers = {f"blk.{n}.ffn_up.weight": arrays[f"h.{n}.mlp.c_fc.weight"].T for n in range(LAYERS)}
    outside = {
        "token_embd.weight": arrays["wte.weight"],
        "output_norm.weight": arrays["ln_f.weight"],
    }
    return {**layers, **outside}


def test_the_graph(checkpoint: Path, arrays: Arrays) -> None:
    graph = open_graph(checkpoint)
    assert graph.family.name == "trial"
    assert list(graph) == [
        "token_embd.weight",
        "blk.0.ffn_up.weight",
        "blk.1.ffn_up.weight",
        "output_norm.weight",
    ]
    for name, values in canonical(arrays).items():
        np.testing.assert_array_equal(load_float32(graph[name]), values)
    assert graph["h.1.mlp.c_fc.weight"] is graph["blk.1.ffn_up.weight"]
    assert graph.spec.describe()["scale"] == 0.5


def test_to_gguf(checkpoint: Path, arrays: Arrays, tmp_path: Path) -> None:
    target = tmp_path / "m-Q8_0.gguf"
    weightcast.convert(checkpoint, target, no_tokenizer=True)
    reader = gguf.GGUFReader(target)
    assert reader.fields["general.architecture"].contents() == "trial"
    assert reader.fields["trial.scale"].contents() == 0.5
    for tensor in reader.tensors:
        wanted = canonical(arrays)[tensor.name]
        if wanted.ndim > 1:
            blocks = gguf.quants.quantize(wanted, gguf.GGMLQuantizationType.Q8_0)
            np.testing.assert_array_equal(tensor.data, blocks)
        else:
            np.testing.assert_array_equal(tensor.data, wanted)
    found = weightcast.verify(target, checkpoint)
    assert not found.problems


def test_to_a_directory_and_back(checkpoint: Path, arrays: Arrays, tmp_path: Path) -> None:
    weightcast.convert(checkpoint, tmp_path / "m-f32", no_tokenizer=True)
    found = load_file(tmp_path / "m-f32" / "model.safetensors")
    assert found.keys() == arrays.keys()
    for name, values in arrays.items():
        np.testing.assert_array_equal(found[name], values)
    assert not weightcast.verify(tmp_path / "m-f32", checkpoint).problems
    weightcast.convert(tmp_path / "m-f32", tmp_path / "m-F32.gguf", no_tokenizer=True)
    weightcast.convert(checkpoint, tmp_path / "n-F32.gguf", no_tokenizer=True)
    assert (tmp_path / "m-F32.gguf").read_bytes() == (tmp_path / "n-F32.gguf").read_bytes()


def test_compared(checkpoint: Path, tmp_path: Path) -> None:
    weightcast.convert(checkpoint, tmp_path / "m-F16.gguf", no_tokenizer=True)
    found = weightcast.compare(checkpoint, tmp_path / "m-F16.gguf")
    assert found.problem is None
    assert {t["name"] for t in found.report["outputs"][0]["tensors"]} == {
        "token_embd.weight",
        "blk.0.ffn_up.weight",
        "blk.1.ffn_up.weight",
        "output_norm.weight",
    }


def test_an_exchanged_layer_is_named(checkpoint: Path, tmp_path: Path) -> None:
    """What verify knows of mistakes, it knows of any family."""
    weightcast.convert(checkpoint, tmp_path / "m-f32", no_tokenizer=True)
    file = tmp_path / "m-f32" / "model.safetensors"
    wrong = load_file(file)
    a, b = (f"h.{n}.mlp.c_fc.weight" for n in range(LAYERS))
    wrong[a], wrong[b] = wrong[b].copy(), wrong[a].copy()
    save_file(wrong, file)
    problems = weightcast.verify(tmp_path / "m-f32", checkpoint).problems
    assert any("layer 1's" in problem.what for problem in problems)


def test_shapes_that_contradict_are_refused(checkpoint: Path, arrays: Arrays) -> None:
    short = {**arrays, "ln_f.weight": arrays["ln_f.weight"][:-1].copy()}
    save_file(short, checkpoint / "model.safetensors")
    with pytest.raises(weightcast.LayoutError, match=r"emb_size is 63 by .*ln_f\.weight"):
        open_graph(checkpoint)


def test_packed_weights_need_names_of_modules(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(weightcast.LayoutError, match="its modules have no names yet"):
        weightcast.convert(checkpoint, tmp_path / "m-int4-g32", no_tokenizer=True)
