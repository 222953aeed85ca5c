"""A new layout is one file and one word: a trial one is written, read back, verified, explained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import weightcast
from tests.directories import matrices, parts_of, read_directory, wanted
from tests.formats.packed.trial_layout import CODES, SCALES, Trial
from tests.support import Golden
from weightcast.converters.recipes.weight_types import directory_type
from weightcast.converters.sources import open_graph
from weightcast.formats import safetensors
from weightcast.formats.packed import LAYOUTS
from weightcast.formats.packed.layout import MatrixShape
from weightcast.quant.groups import Groups, dequantize_groups
from weightcast.quant.types import BF16, GroupType

WIDE = Golden("wide")
TYPES = {
    "m-trial": GroupType(4, 32, scale_dtype="F32"),
    "m-int4-g64-trial": GroupType(4, 64),
    "m-int4-channel-trial": GroupType(4, 0),
}


@pytest.fixture(autouse=True)
def trial(monkeypatch: pytest.MonkeyPatch) -> Trial:
    """The word."""
    layout = Trial()
    monkeypatch.setitem(LAYOUTS, layout.name, layout)
    return layout


@pytest.fixture
def made(tmp_path: Path) -> Path:
    path = tmp_path / "m-trial"
    weightcast.convert(WIDE.path, path, no_tokenizer=True, tensor_types=["q_proj=bf16"])
    return path


@pytest.mark.parametrize("name", TYPES)
def test_it_is_written_as_its_name_says(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    summary = weightcast.convert(WIDE.path, path, no_tokenizer=True)
    assert summary.describe()["outputs"][0]["type"] == name.removeprefix("m-")
    tensors = read_directory(path)
    for module, (_, _, values) in matrices(WIDE).items():
        parts = parts_of(tensors, module)
        assert parts.keys() == {CODES, SCALES}
        assert parts[CODES].shape == values.shape
        groups = Groups(parts[CODES], parts[SCALES], None)
        found = dequantize_groups(groups, TYPES[name])
        np.testing.assert_array_equal(found, wanted(values, TYPES[name]), err_msg=module)
    config = json.loads((path / "config.json").read_text())["quantization_config"]
    assert config == {"quant_method": "trial", "bits": 4, "ignore": ["lm_head", "re:.*gate$"]}


@pytest.mark.parametrize("name", TYPES)
def test_it_is_verified(name: str, tmp_path: Path) -> None:
    weightcast.convert(WIDE.path, tmp_path / name, no_tokenizer=True)
    found = weightcast.verify(tmp_path / name, WIDE.path)
    assert found.is_good, "\n".join(found.lines())
    assert found.matrices.keys() == {"same"}
    assert "headers: every byte is what weightcast writes" in found.checked


def test_it_is_verified_under_another_name_and_with_rules(made: Path, tmp_path: Path) -> None:
    shutil.move(made, tmp_path / "x")
    found = weightcast.verify(tmp_path / "x", WIDE.path)
    assert found.is_good, "\n".join(found.lines())
    assert "headers: every byte is what weightcast writes" in found.checked


def test_damage_is_found(made: Path) -> None:
    file = made / "model.safetensors"
    raw = bytearray(file.read_bytes())
    first = safetensors.read_index(file)["model.layers.1.self_attn.k_proj" + CODES]
    raw[first.offset] ^= 1
    file.write_bytes(raw)
    found = weightcast.verify(made, WIDE.path)
    assert [problem.tensor for problem in found.problems] == [
        "model.layers.1.self_attn.k_proj.weight"
    ]


def test_it_is_read_back(made: Path, tmp_path: Path) -> None:
    weightcast.convert(made, tmp_path / "m-F32.gguf", no_tokenizer=True)
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "m-F32.gguf").tensors}
    for place, expert, values in matrices(WIDE).values():
        stored = found[place.gguf].data
        stored = stored if expert is None else stored[expert]
        weight_type = BF16 if place.gguf.endswith("attn_q.weight") else TYPES["m-trial"]
        np.testing.assert_array_equal(stored, wanted(values, weight_type), err_msg=place.gguf)


def test_an_opened_directory_names_it(made: Path) -> None:
    tensor = open_graph(made)["transformer/decoder_layer_0/moe/linear/w"]
    origin = tensor.describe()["origin"]["sources"][0]["origin"]
    assert origin["layout"] == "trial"
    assert origin["parts"].keys() == {CODES, SCALES}


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (None, "packed in a way that no quantization_config explains"),
        ({"quant_method": "tryal"}, "is not read, only weightcast, .*, awq, fp8, trial$"),
        ({"quant_method": "trial", "bits": 8}, "is 4 bits with groups of 32 by its tensors, but"),
    ],
)
def test_a_config_that_says_something_else_is_refused(
    said: dict[str, Any] | None, message: str, made: Path
) -> None:
    config = json.loads((made / "config.json").read_text())
    (made / "config.json").write_text(json.dumps(config | {"quantization_config": said}))
    with pytest.raises(weightcast.LayoutError, match=message):
        open_graph(made)


def test_messages_know_it(tmp_path: Path) -> None:
    with pytest.raises(weightcast.RequestError, match=r"did you mean int4-g128-trial\?"):
        weightcast.convert(WIDE.path, tmp_path / "m", types="int4-g128-trail", no_tokenizer=True)
    for asked, message in (
        ("int4-g32-asym", "trial holds int4 without zero points"),
        ("int8-g32", "trial holds int4 without zero points"),
        ("fp8", "trial holds int4 and int8 in groups, and bf16, f16, f32"),
    ):
        with pytest.raises(weightcast.RequestError, match=message):
            weightcast.convert(
                WIDE.path, tmp_path / "m-trial", no_tokenizer=True, tensor_types=[f"w1={asked}"]
            )
    assert directory_type("int8-trial") is None
    assert directory_type("int4-asym-trial") is None


def test_a_model_card_says_who_does_not_read_it(tmp_path: Path) -> None:
    weightcast.convert(WIDE.path, tmp_path / "m-trial", no_tokenizer=True, bundle=True)
    card = (tmp_path / "m-trial" / "README.md").read_text()
    assert "- **transformers** does not read the layout of a test." in card
    assert "- **vLLM** does not run it: it does not know the layout of a test." in card
    assert "- **SGLang** does not read the layout of a test." in card


def test_a_part_with_wrong_codes_is_refused(trial: Trial) -> None:
    shape = MatrixShape(TYPES["m-trial"], 2, 32)
    parts = {CODES: np.full((2, 32), 16, np.uint8), SCALES: np.ones((2, 1), np.float32)}
    with pytest.raises(weightcast.LayoutError, match="has 16 with 4 bits"):
        trial.unpack(parts, shape)
