"""GGUF outputs for a size: as large as they may be, of the types that cost least, and recorded."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import weightcast
from tests import gguf_files, imatrices, sensitivities
from tests.adapters import write_peft
from tests.support import GOLDEN
from weightcast.converters.convert import plan_conversion
from weightcast.converters.recipes.size import SizedRecipe
from weightcast.converters.sources import open_graph
from weightcast.converters.sources.options import ConvertOptions
from weightcast.converters.targets.types import shapes_of
from weightcast.errors import CheckpointError, LayoutError, RequestError

WIDE = GOLDEN / "wide"
SHAPES = dict(shapes_of(open_graph(WIDE)))
PLAIN = {"no_tokenizer": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Costs as local effects and as divergences, and the model as a GGUF file; left unchanged."""
    made = tmp_path_factory.mktemp("sized")
    sensitivities.write(made / "local.json", SHAPES, sensitivities.costs_of(SHAPES))
    probed = sensitivities.costs_of(SHAPES, probes=True)
    sensitivities.write(made / "kl.json", SHAPES, probed)
    weightcast.convert(WIDE, made / "m-F16.gguf", **PLAIN)
    return made


def sized(conversion: weightcast.Conversion, number: int = 0) -> SizedRecipe:
    found = conversion.plan.outputs[number].sized
    assert found is not None
    return found


def types_in(path: Path) -> dict[str, str]:
    return {t.name: t.tensor_type.name for t in gguf.GGUFReader(path).tensors}


def size_in(kind: str, name: str) -> int:
    return gguf.quant_shape_to_byte_shape(SHAPES[name], gguf.GGMLQuantizationType[kind])[-1] * (
        math.prod(SHAPES[name][:-1])
    )


@pytest.mark.parametrize("size", ["2.5M", "3M", "4M", "5.5M"])
def test_a_file_is_as_large_as_it_may_be(size: str, folder: Path, tmp_path: Path) -> None:
    made = tmp_path / "m.gguf"
    done = weightcast.convert(
        WIDE, made, target_size=size, sensitivity=folder / "local.json", **PLAIN
    )
    limit = int(float(size[:-1]) * 1e6)
    nbytes, types = made.stat().st_size, types_in(made)
    assert done.outputs[0].size == nbytes <= limit
    costs = json.loads((folder / "local.json").read_text())["tensors"]
    # Nothing cheaper fits into the room that is left.
    for name, found in costs.items():
        now = found["local"][types[name]]
        for kind, cost in found["local"].items():
            more = size_in(kind, name) - size_in(types[name], name)
            assert not (cost < now and more <= limit - nbytes), (name, kind)
    said = done.describe()["outputs"][0]["sized"]
    total = math.fsum(costs[name]["local"][types[name]] for name in costs)
    assert said["cost"] == pytest.approx(total)
    assert said["is_best"] is True
    assert said["cost_is"] == "local"
    assert total < said["plain_rule"]["cost"]
    assert said["plain_rule"]["bytes"] <= limit
    for mix in said["llama_quantize"]:
        assert mix["bytes"] <= limit
        assert total < mix["cost"]
    checked = weightcast.verify(made, WIDE)
    assert (checked.is_good, set(checked.matrices)) == (True, {"same"})
    assert "metadata: every value is what weightcast writes" in checked.checked


def test_recipes_of_llama_quantize_have_the_size_that_is_said(folder: Path, tmp_path: Path) -> None:
    planned = weightcast.plan(
        WIDE, tmp_path / "m.gguf", target_size="6M", sensitivity=folder / "local.json", **PLAIN
    )
    mixes = sized(planned).mixes
    assert {"Q2_K", "Q3_K_M", "Q4_K_M"} <= {mix.name for mix in mixes}
    costs = json.loads((folder / "local.json").read_text())["tensors"]
    for mix in mixes:
        path = tmp_path / f"m-{mix.name}.gguf"
        weightcast.convert(WIDE, path, **PLAIN)
        assert path.stat().st_size == mix.nbytes
        types = types_in(path)
        total = math.fsum(costs[name]["local"][types[name]] for name in costs)
        assert mix.cost == pytest.approx(total)


def test_the_plain_rule_has_the_size_that_is_said(folder: Path, tmp_path: Path) -> None:
    planned = weightcast.plan(
        WIDE, tmp_path / "m.gguf", target_size="3M", sensitivity=folder / "local.json", **PLAIN
    )
    plain, made = sized(planned).plain, tmp_path / "p-Q3_K_M.gguf"
    assert plain is not None
    assert plain.attention.name == "Q8_0"
    rules = {"attn_|token_embd": "Q8_0", "_exps": plain.rest.name}
    weightcast.convert(WIDE, made, tensor_types=rules, **PLAIN)
    assert made.stat().st_size == plain.choice.nbytes <= 3_000_000


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q8_0"])
def test_without_sensitivities_there_is_a_plain_rule(kind: str, tmp_path: Path) -> None:
    by_hand, made = tmp_path / "p-Q4_0.gguf", tmp_path / "m.gguf"
    weightcast.convert(
        WIDE, by_hand, tensor_types={"attn_|token_embd": "Q8_0", "_exps": kind}, **PLAIN
    )
    limit = by_hand.stat().st_size
    done = weightcast.convert(WIDE, made, target_size=limit, **PLAIN)
    assert types_in(made) == types_in(by_hand)
    assert made.stat().st_size == limit
    said = next(note for note in done.outputs[0].notes if "chosen by a plain rule" in note)
    assert said.endswith("chooses better: sensitivity=FILE")
    assert done.describe()["outputs"][0]["sized"]["cost"] is None
    less = weightcast.plan(WIDE, made, target_size=limit - 1, **PLAIN)
    assert less.outputs[0].size < limit


def test_a_saved_recipe_makes_the_same_file(folder: Path, tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.gguf", "b.gguf", "c.toml")]
    asked = {
        **PLAIN,
        "target_size": "3M",
        "sensitivity": folder / "local.json",
        "tensor_types": {"blk.0.attn_q": "Q6_K", "blk.1.ffn_gate_inp.weight": "F16"},
        "token_embedding_type": "Q4_0",
    }
    conversion = weightcast.plan(WIDE, paths[0], **asked)
    conversion.save_recipe(paths[2])
    assert not paths[0].exists()
    conversion.run()
    weightcast.convert(WIDE, paths[1], recipe=paths[2], **PLAIN)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    types = types_in(paths[0])
    assert types["blk.0.attn_q.weight"] == "Q6_K"
    assert types["blk.1.ffn_gate_inp.weight"] == "F16"
    assert types["token_embd.weight"] == "Q4_0"
    text = paths[2].read_text()
    assert "# Types for 3,000,000 bytes (3.00 MB)" in text
    assert "# Measured on m (12,345 parameters) over 4,096 tokens of text.txt, 512 at a" in text
    assert "# Plain rule, attention and ends Q8_0" in text


def test_recipes_are_saved_where_nothing_is_overwritten(folder: Path, tmp_path: Path) -> None:
    planned = weightcast.plan(WIDE, tmp_path / "m.gguf", target_size="3M", **PLAIN)
    with pytest.raises(weightcast.OutputError, match="is or lies in what is read or written"):
        planned.save_recipe(tmp_path / "m.gguf")
    with pytest.raises(weightcast.OutputError, match="no such directory"):
        planned.save_recipe(tmp_path / "gone" / "r.toml")
    other = weightcast.plan(WIDE, tmp_path / "m-Q8_0.gguf", **PLAIN)
    with pytest.raises(RequestError, match="0 recipes for a size; a recipe file has one"):
        other.save_recipe(tmp_path / "r.toml")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("split", [None, "400K", "1M"])
def test_all_files_together_count(split: str | None, folder: Path, tmp_path: Path) -> None:
    done = weightcast.convert(
        folder / "m-F16.gguf",
        tmp_path / "m.gguf",
        target_size="3M",
        sensitivity=folder / "local.json",
        split=split,
    )
    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    assert (len(sizes) > 1) == (split is not None)
    assert 2_900_000 < sum(sizes) == done.outputs[0].size <= 3_000_000
    first = min(tmp_path.iterdir())
    assert weightcast.verify(first, folder / "m-F16.gguf").is_good


def test_the_same_of_a_gguf_file_as_of_shards(folder: Path, tmp_path: Path) -> None:
    made = [tmp_path / "a.gguf", tmp_path / "b.gguf"]
    for source, path in zip((WIDE, folder / "m-F16.gguf"), made, strict=True):
        weightcast.convert(
            source,
            path,
            target_size="3M",
            sensitivity=folder / "local.json",
            no_tokenizer=source == WIDE,
        )
    assert types_in(made[0]) == types_in(made[1])
    assert weightcast.verify(made[1], folder / "m-F16.gguf").is_good


def test_bits_for_each_weight(folder: Path, tmp_path: Path) -> None:
    for bits in (3.0, 4.25, 6):
        made = tmp_path / "m.gguf"
        planned = weightcast.plan(
            WIDE, made, target_bpw=bits, sensitivity=folder / "local.json", **PLAIN
        )
        assert bits - 0.05 < planned.outputs[0].bits_per_weight <= bits
        tensors = planned.plan.outputs[0].tensors
        assert 8 * sum(t.nbytes for t in tensors) <= bits * sum(t.tensor.size for t in tensors)


def test_the_smallest_file_of_a_divergence(folder: Path, tmp_path: Path) -> None:
    costs = folder / "kl.json"
    size = weightcast.plan(WIDE, tmp_path / "m.gguf", target_size="3M", sensitivity=costs, **PLAIN)
    cost = sized(size).choice.cost
    assert cost is not None
    same = weightcast.plan(WIDE, tmp_path / "m.gguf", max_kl=cost, sensitivity=costs, **PLAIN)
    found = sized(same).choice
    assert found.cost is not None
    assert found.cost <= cost
    assert same.outputs[0].size == found.nbytes <= size.outputs[0].size
    # Less is not possible within that, and a size that is one byte less costs more.
    less = weightcast.plan(
        WIDE, tmp_path / "m.gguf", target_size=found.nbytes - 1, sensitivity=costs, **PLAIN
    )
    more = sized(less).choice.cost
    assert more is not None
    assert more > cost
    assert same.plan.outputs[0].describe()["sized"]["cost_is"] == "kl"


def test_types_and_tensors_that_go_together(folder: Path, tmp_path: Path) -> None:
    made = tmp_path / "m.gguf"
    weightcast.convert(
        WIDE,
        made,
        target_size="3M",
        sensitivity=folder / "local.json",
        target_types=["q8_0,Q4_K", "Q2_K"],
        target_together=["attn_[qkv]", "_exps"],
        **PLAIN,
    )
    types = types_in(made)
    assert {t for name, t in types.items() if "norm" not in name} <= {"F32", "Q8_0", "Q4_K", "Q2_K"}
    for layer in range(2):
        for group in (("attn_q", "attn_k", "attn_v"), ("ffn_gate_exps", "ffn_up_exps")):
            assert len({types[f"blk.{layer}.{name}.weight"] for name in group}) == 1


def test_importance_allows_smaller_types(tmp_path: Path) -> None:
    low = (*sensitivities.MEASURED, "IQ2_XXS", "IQ1_M")
    costs = sensitivities.write(
        tmp_path / "c.json", SHAPES, sensitivities.costs_of(SHAPES, low), importance=True
    )
    imatrix = imatrices.write_gguf(tmp_path / "i.gguf", imatrices.model_entries(SHAPES))
    asked = {**PLAIN, "sensitivity": costs, "target_size": "2M"}
    with pytest.raises(LayoutError, match=r"no recipe fits into 2,000,000 bytes .* is the least"):
        weightcast.plan(WIDE, tmp_path / "m.gguf", **asked)
    made = tmp_path / "m.gguf"
    done = weightcast.convert(WIDE, made, **asked, imatrix=imatrix)
    assert {"IQ2_XXS", "IQ1_M"} & set(done.outputs[0].types)
    assert made.stat().st_size <= 2_000_000
    without = weightcast.plan(WIDE, made, **{**asked, "target_size": "3M"})
    note = "was measured with an importance matrix, and the output is made without one"
    assert any(note in said for said in without.outputs[0].notes)


def test_what_was_not_measured_is_fine_and_said(folder: Path, tmp_path: Path) -> None:
    costs = sensitivities.costs_of(SHAPES)
    left = ("token_embd.weight", "blk.1.attn_v.weight")
    for name in left:
        del costs[name]
    path = sensitivities.write(tmp_path / "c.json", SHAPES, costs, search="least-error")
    planned = weightcast.plan(
        WIDE, tmp_path / "m.gguf", target_size="3M", sensitivity=path, **PLAIN
    )
    types = {t.tensor.name: t.type_name for t in planned.plan.outputs[0].tensors}
    assert {types[name] for name in left} == {"Q8_0"}
    notes = planned.outputs[0].notes
    assert any("not measured, so as fine as Q8_0: 2 tensors" in note for note in notes)
    assert any("measured with the rule least-error, and the output" in note for note in notes)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (
            {"target_size": "1M"},
            r"no recipe fits into 1,000,000 bytes \(1\.00 MB\): 2,\d{3},\d{3} ",
        ),
        ({"target_bpw": 2}, r"no recipe fits into 2 bits per weight: 2\.\d+ bits .* with Q2_K 15"),
        (
            {"max_kl": 1e-9, "sensitivity": "kl.json"},
            r"no recipe has a predicted divergence of 1e-09 or less: .* least, with Q8_0 15, ",
        ),
        (
            {"target_size": "1M", "target_types": "Q8_0"},
            r"is the least, with Q8_0 15; target_types may allow smaller ones",
        ),
    ],
)
def test_what_is_not_possible(
    asked: dict[str, Any], said: str, folder: Path, tmp_path: Path
) -> None:
    if "sensitivity" in asked:
        asked = {**asked, "sensitivity": folder / asked["sensitivity"]}
    with pytest.raises(LayoutError, match=said):
        weightcast.plan(WIDE, tmp_path / "m.gguf", **asked, **PLAIN)


def test_the_least_that_is_said_is_possible(folder: Path, tmp_path: Path) -> None:
    asked = {**PLAIN, "sensitivity": folder / "local.json"}
    with pytest.raises(LayoutError) as caught:
        weightcast.plan(WIDE, tmp_path / "m.gguf", target_size="1M", **asked)
    least = int(str(caught.value).split(": ")[2].split(" bytes")[0].replace(",", ""))
    made = weightcast.plan(WIDE, tmp_path / "m.gguf", target_size=least, **asked)
    assert made.outputs[0].size == least
    with pytest.raises(LayoutError):
        weightcast.plan(WIDE, tmp_path / "m.gguf", target_size=least - 1, **asked)


@pytest.mark.parametrize(
    ("name", "asked", "said"),
    [
        ("m.gguf", {"target_size": "2M", "target_bpw": 3}, "target_size and target_bpw are asked"),
        ("m-Q8_0.gguf", {"sensitivity": "x"}, "sensitivity: of use with target_size=SIZE or targ"),
        ("m-Q8_0.gguf", {"target_types": "Q8_0"}, "target_types: of use with target_size=SIZE"),
        ("m.gguf", {"target_size": "2"}, "target_size: '2' has no unit"),
        ("m.gguf", {"target_bpw": "x"}, "target_bpw: 'x' is not a number above 0"),
        ("m.gguf", {"target_bpw": -1}, "target_bpw: -1 is not a number above 0"),
        ("m.gguf", {"target_bpw": True}, "target_bpw: True is not a number above 0"),
        ("m.gguf", {"max_kl": 0.1}, "max_kl: of use with sensitivity=FILE only"),
        ("m.gguf", {"max_kl": 0.1, "sensitivity": "local.json"}, "has no probes for some tensors"),
        ("m.gguf", {"target_size": "2M", "target_types": "Q4_X"}, "target_types: unknown type"),
        (
            "m.gguf",
            {"target_size": "2M", "target_types": "int8-g32"},
            "is a type of directories alon",
        ),
        ("m.gguf", {"target_size": "2M", "target_together": "["}, "target_together: pattern '['"),
        ("m.gguf", {"target_size": "2M", "pure": True}, "pure and target_size are asked for at"),
        ("m.gguf", {"target_bpw": 3, "nvfp4_factors": True}, "nvfp4_factors and target_bpw are"),
        ("m-COPY.gguf", {"target_size": "2M"}, "target_size: COPY leaves every tensor as it is"),
        (
            "m-COPY.gguf",
            {"target_size": "2M", "tensor_types": "a=F16"},
            "COPY leaves tensors as they are, and target_size asks for other types",
        ),
        ("m-bf16", {"target_size": "2M"}, "target_size: of use for GGUF outputs only"),
        (
            "m.gguf",
            {"target_size": "2M", "sensitivity": "local.json", "prune_layers": "1"},
            "prune_layers gives layers other numbers than sensitivity=FILE has",
        ),
    ],
)
def test_refusals(
    name: str, asked: dict[str, Any], said: str, folder: Path, tmp_path: Path
) -> None:
    if "sensitivity" in asked:
        asked = {**asked, "sensitivity": folder / asked["sensitivity"]}
    with pytest.raises(RequestError) as caught:
        weightcast.plan(folder / "m-F16.gguf", tmp_path / name, **asked)
    assert said in str(caught.value)


def test_names_without_a_type_need_a_size(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="the name does not end in a type"):
        weightcast.plan(WIDE, tmp_path / "m.gguf", **PLAIN)
    named = weightcast.plan(WIDE, tmp_path / "m-Q4_K_M.gguf", target_size="3M", **PLAIN)
    assert named.outputs[0].type == "Q4_K_M"
    most = weightcast.plan(WIDE, tmp_path / "m.gguf", target_size="3M", **PLAIN)
    assert most.outputs[0].type == "Q2_K"
    beside = weightcast.plan(
        WIDE, tmp_path / "m.gguf", tmp_path / "m-bf16", target_size="3M", **PLAIN
    )
    assert [output.type for output in beside.outputs] == ["Q2_K", "BF16"]
    assert beside.plan.outputs[1].sized is None


def test_costs_of_another_model(tmp_path: Path) -> None:
    shapes = {**SHAPES, "blk.0.attn_q.weight": (128, 256)}
    path = sensitivities.write(tmp_path / "c.json", shapes, sensitivities.costs_of(shapes))
    with pytest.raises(LayoutError, match=r"measured on another model \('m'\): 'blk\.0\.attn_q"):
        weightcast.plan(WIDE, tmp_path / "m.gguf", target_size="3M", sensitivity=path, **PLAIN)


def test_adapters_have_no_size(tmp_path: Path) -> None:
    write_peft(tmp_path / "lora", {"model.layers.0.self_attn.v_proj": (8, 256)})
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "config.json").write_text(
        '{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}\n'
    )
    with pytest.raises(RequestError, match="types are chosen for a size in models only"):
        weightcast.plan(
            tmp_path / "lora", tmp_path / "m.gguf", target_size="3M", base=tmp_path / "llama"
        )


def test_records_tell_what_was_asked(folder: Path, tmp_path: Path) -> None:
    made = tmp_path / "m.gguf"
    asked = {**PLAIN, "target_size": "3M", "sensitivity": folder / "local.json"}
    weightcast.convert(WIDE, made, **asked, target_types="Q2_K,Q8_0", bundle=True)
    statement = json.loads((tmp_path / "m.intoto.json").read_text())
    parameters = statement["predicate"]["buildDefinition"]["externalParameters"]
    assert parameters["targetBytes"] == 3_000_000
    assert parameters["sensitivity"]["name"] == "local.json"
    assert parameters["targetTypes"] == ["Q2_K,Q8_0"]
    assert parameters["maxKl"] is None
    assert {rule["type"] for rule in parameters["rules"]} == {"Q2_K", "Q8_0"}
    card = (tmp_path / "m.README.md").read_text()
    assert "--target-size 3M --sensitivity local.json --target-type Q2_K,Q8_0 --bundle" in card


def test_an_interrupted_run_is_not_finished_for_another_size(folder: Path, tmp_path: Path) -> None:
    made = tmp_path / "m.gguf"

    def gate(report: object) -> None:
        raise weightcast.LimitError("closed")

    asked = {"no_tokenizer": True, "target_size": "3M", "target_types": ("Q2_K,Q8_0",)}
    conversion = plan_conversion(WIDE, [made], ConvertOptions(**asked, baseline="stored"))
    with pytest.raises(weightcast.LimitError):
        conversion.run(gate=gate)
    for changed, said in (
        ({"target_size": "2.9M"}, "target_size was 3,000,000 bytes and is 2,900,000 bytes"),
        ({"target_types": "Q2_K"}, "target_types was Q2_K,Q8_0 and is Q2_K"),
        ({"sensitivity": folder / "local.json"}, "the sensitivity file was not there"),
    ):
        with pytest.raises(CheckpointError, match=said):
            weightcast.convert(WIDE, made, **{**asked, **changed})
    weightcast.convert(WIDE, made, **asked)
    assert weightcast.verify(made, WIDE).is_good


def test_headers_count_that_only_quantized_files_have(folder: Path, tmp_path: Path) -> None:
    """What tells of the search and the matrix makes a header longer: the file still fits."""
    imatrix = imatrices.write_gguf(tmp_path / "i.gguf", imatrices.model_entries(SHAPES))
    asked: dict[str, Any] = {**PLAIN, "search": "least-error", "imatrix": imatrix}
    plain = weightcast.plan(WIDE, tmp_path / "m.gguf", target_size="3M", **asked)
    for size in (plain.outputs[0].size, plain.outputs[0].size - 1):
        made = weightcast.plan(WIDE, tmp_path / "m.gguf", target_size=size, **asked)
        assert made.outputs[0].size <= size
    assert made.outputs[0].size < plain.outputs[0].size


def test_a_file_without_matrices(tmp_path: Path) -> None:
    metadata = {"general.architecture": gguf_files.string("my-arch")}
    norm = gguf_files.floats(np.ones(64, np.float32))
    source = gguf_files.write(tmp_path / "a.gguf", metadata, {"output_norm.weight": norm})
    made = weightcast.plan(source, tmp_path / "m.gguf", target_size="1K")
    assert made.outputs[0].types == {"F32": 1}
    assert "no tensor can have another type" in next(sized(made).lines())
    with pytest.raises(LayoutError, match="is the least, with nothing to choose"):
        weightcast.plan(source, tmp_path / "m.gguf", target_size="100B")
