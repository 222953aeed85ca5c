"""Proposals of better types: their arithmetic, and that `convert` does what they say."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weightcast
from benchmarks.typical_sqnr import GROUP_TYPES, gaussian, sqnr_db
from tests.converters.report import error_reports
from tests.support import GOLDEN
from weightcast.converters.recipes import RECIPES, facts_from_metadata, parse_tensor_type
from weightcast.converters.recipes.decide import decide
from weightcast.converters.report import read_report
from weightcast.converters.report.schema import OutputErrors
from weightcast.converters.report.text import entries
from weightcast.converters.report.typical import TYPICAL_SQNR
from weightcast.converters.report.upgrades import BUDGETS, FEW, GGUF_TYPES, Proposal, propose
from weightcast.quant.types import TYPES

WIDE = GOLDEN / "wide"
# Gaussian weights of 64 rows differ from those of 256 by less.
CLOSE_DB = 0.3


def proposals_of(tmp_path: Path, *values: error_reports.Json, number: int = 0) -> list[Proposal]:
    reports = []
    for place, value in enumerate(values):
        path = tmp_path / f"{place}.json"
        path.write_text(json.dumps(value))
        reports.append(read_report(path))
    labelled = entries(reports)
    return propose(labelled[number], labelled)


def one_output(tensors: list[error_reports.Json], type_name: str = "Q4_K") -> error_reports.Json:
    return error_reports.report([error_reports.output("a.gguf", type_name, tensors)])


def tensor(name: str, sqnr: float, rows: int = 64, type_name: str = "Q4_K") -> error_reports.Json:
    """A matrix [rows, 256] with an SQNR of its own."""
    kind = name.split(".")[2]
    made = error_reports.tensor(name, kind, int(name.split(".")[1]), type_name, (rows, 256))
    made["metrics"] = error_reports.metrics(rows * 256, sqnr)
    return made


def test_the_table_is_that_of_the_kernels() -> None:
    weights = gaussian(64)
    assert set(TYPICAL_SQNR) == {*TYPES, *GROUP_TYPES} - {"F32"}
    for label, typical in TYPICAL_SQNR.items():
        assert sqnr_db(label, weights) == pytest.approx(typical, abs=CLOSE_DB), label


def test_better_types_need_no_importance_matrix() -> None:
    assert not any(TYPES[name].importance == "required" for name in GGUF_TYPES)
    assert min(TYPICAL_SQNR[name] for name in GGUF_TYPES) > TYPICAL_SQNR["Q2_K"]


def check_arithmetic(output: error_reports.Json, proposal: Proposal) -> None:
    """Compute what a proposal says anew, from the numbers of the report."""
    tensors = {each["name"]: each for each in output["tensors"]}
    errors = {name: each["metrics"]["error_squares"] for name, each in tensors.items()}
    nbytes = 0
    for upgrade in proposal.upgrades:
        before = tensors[upgrade.tensor.name]
        n_in, weights = before["shape"][-1], before["metrics"]["weights"]
        quant_type = TYPES[proposal.type]
        made = weights // n_in * (n_in // quant_type.block_elements) * quant_type.block_bytes
        nbytes += made - before["bytes"]
        if not upgrade.is_measured:
            step = TYPICAL_SQNR[proposal.type] - TYPICAL_SQNR[before["type"]]
            errors[before["name"]] /= 10 ** (step / 10)
        else:
            errors[before["name"]] = upgrade.error_squares
    signal = sum(each["metrics"]["source_squares"] for each in output["tensors"])
    assert proposal.more_bytes == nbytes
    assert proposal.new_sqnr_db == pytest.approx(10 * math.log10(signal / sum(errors.values())))
    assert proposal.sqnr_db == pytest.approx(output["total"]["sqnr_db"])
    assert proposal.gained_db == pytest.approx(proposal.new_sqnr_db - output["total"]["sqnr_db"])


@pytest.mark.parametrize("recipe", ["Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K"])
@pytest.mark.parametrize("layers", [1, 2, 7])
def test_arithmetic_and_budgets(tmp_path: Path, recipe: str, layers: int) -> None:
    value = error_reports.report([error_reports.grok1_output(recipe, layers, experts=2)])
    (output,) = value["outputs"]
    found = proposals_of(tmp_path, value)
    assert found
    for proposal in found:
        check_arithmetic(output, proposal)
        assert not proposal.is_measured
        if proposal.budget is None:
            assert len(proposal.upgrades) <= FEW
        else:
            assert proposal.more_bytes <= proposal.budget * output["tensor_bytes"]
            check_nothing_left(output, proposal)
    assert len({proposal.upgrades for proposal in found}) == len(found) <= 1 + len(BUDGETS)


def check_nothing_left(output: error_reports.Json, proposal: Proposal) -> None:
    """No tensor that removes more error per byte than one of those chosen is left and fits."""
    assert proposal.budget is not None
    room = proposal.budget * output["tensor_bytes"] - proposal.more_bytes
    chosen = {upgrade.tensor.name for upgrade in proposal.upgrades}
    to = TYPES[proposal.type]
    for each in output["tensors"]:
        if each["name"] in chosen or len(each["shape"]) < 2 or each["type"] not in TYPICAL_SQNR:
            continue
        if TYPICAL_SQNR[each["type"]] >= TYPICAL_SQNR[to.name]:
            continue
        more = each["metrics"]["weights"] // to.block_elements * to.block_bytes - each["bytes"]
        assert more > room, each["name"]


def test_the_few_are_those_that_pay_most(tmp_path: Path) -> None:
    """Against every set of tensors and every type, at the price of a bit more for all."""
    chance = np.random.default_rng(3)
    for _ in range(20):
        sqnr = chance.uniform(14, 26, 8)
        rows = chance.integers(1, 9, 8) * 32
        tensors = [tensor(f"blk.{n}.attn_q.weight", float(sqnr[n]), int(rows[n])) for n in range(8)]
        value = one_output(tensors)
        total = value["outputs"][0]["total"]
        price = 0.75 * total["error_squares"] / (total["weights"] / 8)
        best: tuple[float, str, set[str]] = (0.0, "", set())
        for name in GGUF_TYPES:
            gains = {}
            for each in tensors:
                step = TYPICAL_SQNR[name] - TYPICAL_SQNR["Q4_K"]
                removed = each["metrics"]["error_squares"] * (1 - 10 ** (-step / 10))
                size = each["metrics"]["weights"] // TYPES[name].block_elements
                more = size * TYPES[name].block_bytes - each["bytes"]
                gains[each["name"]] = removed - price * more if removed > 0 else 0
            few = sorted(gains, key=gains.__getitem__, reverse=True)[:FEW]
            few = [each for each in few if gains[each] > 0]
            best = max(best, (sum(gains[each] for each in few), name, set(few)))
        found = proposals_of(tmp_path, value)
        assert found[0].budget is None
        assert (found[0].type, {each.tensor.name for each in found[0].upgrades}) == best[1:]


def test_errors_that_were_measured_come_before_estimates(tmp_path: Path) -> None:
    bad = tensor("blk.0.attn_v.weight", 14.0)
    rest = [tensor(f"blk.{n}.attn_q.weight", 23.0) for n in range(4)]
    better = tensor("blk.0.attn_v.weight", 40.0, type_name="Q6_K")
    value = one_output([bad, *rest])
    value["outputs"].append(error_reports.output("b.gguf", "Q6_K", [better]))
    found = proposals_of(tmp_path, value)
    (upgrade,) = found[0].upgrades
    assert (upgrade.type, upgrade.is_measured) == ("Q6_K", True)
    assert upgrade.error_squares == better["metrics"]["error_squares"]
    check_arithmetic(value["outputs"][0], found[0])
    # Of another source, or against another baseline, they say nothing.
    alone = one_output([bad, *rest])
    for change in ({"baseline": "bf16"}, {"source": {**value["source"], "path": "other"}}):
        other = {**value, **change, "outputs": value["outputs"][1:]}
        assert not any(
            upgrade.is_measured
            for proposal in proposals_of(tmp_path, alone, other)
            for upgrade in proposal.upgrades
        )


def test_nothing_is_proposed_where_nothing_can_be(tmp_path: Path) -> None:
    lossless = error_reports.grok1_output("Q8_0", 1, 2)
    assert not proposals_of(tmp_path, error_reports.report([lossless]))
    broken = one_output([tensor("blk.0.attn_q.weight", 23.0)])
    broken["outputs"][0]["tensors"][0]["metrics"]["error_squares"] = None
    assert not proposals_of(tmp_path, broken)
    shards = one_output([tensor("blk.0.attn_q.weight", 23.0)])
    shards["outputs"][0]["kind"] = "shards"
    assert not proposals_of(tmp_path, shards)
    odd = one_output([tensor("blk.0.attn_q.weight", 23.0)])
    odd["outputs"][0]["tensors"][0].update(type="Q4_K, Q6_K")
    assert not proposals_of(tmp_path, odd)
    # Rows that fill no block, and no rows at all.
    for shape in ([64, 250], []):
        value = one_output([tensor("blk.0.attn_q.weight", 23.0)])
        value["outputs"][0]["tensors"][0]["shape"] = shape
        assert not proposals_of(tmp_path, value)


def split(command: str) -> list[str]:
    words = shlex.split(command.replace("\\\n", " "))
    assert words[::2] == ["--tensor-type"] * (len(words) // 2)
    return words[1::2]


def test_names_are_matched_and_quoted_as_they_are(tmp_path: Path) -> None:
    names = ["a b's+(odd)=name", "blk.3.x", "h.3.mlp.weight", "blk.3", "b.layers.12.w$"]
    tensors = []
    for name in names:
        made = tensor("blk.0.attn_q.weight", 20.0)
        made.update(name=name, kind=name, layer=None)
        tensors.append(made)
    for proposal in proposals_of(tmp_path, one_output(tensors)):
        assert split(proposal.command) == list(proposal.options)
        rules = [parse_tensor_type(option) for option in proposal.options]
        chosen = {upgrade.tensor.name for upgrade in proposal.upgrades}
        assert {n for n in names if any(r.pattern.fullmatch(n) for r in rules)} == chosen


def shapes(layers: int, *, experts: bool) -> list[tuple[str, tuple[int, ...]]]:
    stack = (8,) if experts else ()
    suffix = "_exps" if experts else ""
    found: list[tuple[str, tuple[int, ...]]] = [("token_embd.weight", (512, 256))]
    for n in range(layers):
        found += [(f"blk.{n}.attn_{kind}.weight", (256, 256)) for kind in ("q", "k", "v", "output")]
        found += [
            (f"blk.{n}.ffn_{kind}{suffix}.weight", (*stack, 256, 256))
            for kind in ("gate", "up", "down")
        ]
        found.append((f"blk.{n}.attn_norm.weight", (256,)))
    return [*found, ("output.weight", (512, 256))]


@pytest.mark.parametrize("experts", [False, True])
@pytest.mark.parametrize("layers", [1, 5, 32])
@pytest.mark.parametrize("recipe", ["Q2_K", "Q3_K_M", "Q4_0", "Q4_K_S", "Q4_K_M", "Q5_K_M", "Q6_K"])
def test_other_tensors_keep_their_types(
    tmp_path: Path, recipe: str, layers: int, experts: bool
) -> None:
    """llama.cpp's rules count tensors; those with a type of their own are left out."""
    model = shapes(layers, experts=experts)
    metadata = {"general.architecture": "llama", "llama.block_count": layers}
    metadata |= {"llama.expert_count": 8} if experts else {}
    facts = facts_from_metadata(metadata, has_importance=False)
    before = decide(RECIPES[recipe], model, facts)
    chance = np.random.default_rng(layers)
    tensors = []
    for (name, shape), decision in zip(model, before, strict=True):
        type_name = "F32" if decision.type is None else decision.type.name
        layer = int(name.split(".")[1]) if name.startswith("blk") else None
        sqnr = None if type_name == "F32" else TYPICAL_SQNR[type_name] + chance.normal(0, 1.5)
        made = error_reports.tensor(name, name.split(".")[-2], layer, "F32", shape)
        made["metrics"] = error_reports.metrics(math.prod(shape), sqnr)
        made["experts"] = []
        made["type"] = type_name
        quant_type = TYPES[type_name]
        made["bytes"] = math.prod(shape) // quant_type.block_elements * quant_type.block_bytes
        tensors.append(made)
    found = proposals_of(tmp_path, one_output(tensors, recipe))
    assert found
    for proposal in found:
        rules = [parse_tensor_type(option) for option in proposal.options]
        after = decide(RECIPES[recipe], model, facts, rules)
        raised = {upgrade.tensor.name for upgrade in proposal.upgrades}
        for (name, _), old, new in zip(model, before, after, strict=True):
            wanted = TYPES[proposal.type] if name in raised else old.type
            assert new.type == wanted, name


def errors_of(path: Path) -> OutputErrors:
    return read_report(path).outputs[0]


def converted(folder: Path, name: str, options: Sequence[str] = ()) -> OutputErrors:
    folder.mkdir()
    settings: dict[str, Any] = {"no_tokenizer": True, "report": folder / "r.json"}
    weightcast.convert(WIDE, folder / name, tensor_types=tuple(options), **settings)
    return errors_of(folder / "r.json")


def carried_out(folder: Path, name: str) -> Iterator[tuple[Proposal, OutputErrors, OutputErrors]]:
    """Convert with the options of each proposal: what changes are its types and its bytes."""
    before = converted(folder / "before", name)
    (entry,) = entries([read_report(folder / "before" / "r.json")])
    found = propose(entry, [entry])
    assert found
    for number, proposal in enumerate(found):
        after = converted(folder / str(number), name, proposal.options)
        assert after.tensor_bytes == before.tensor_bytes + proposal.more_bytes
        raised = {upgrade.tensor.name for upgrade in proposal.upgrades}
        for old, new in zip(before.tensors, after.tensors, strict=True):
            assert new.type == (proposal.type if old.name in raised else old.type)
        yield proposal, before, after


@pytest.mark.parametrize("name", ["m-Q4_K_M.gguf", "m-Q2_K.gguf", "m-Q4_0.gguf"])
def test_a_conversion_with_the_options_does_what_was_said(tmp_path: Path, name: str) -> None:
    for number, (proposal, _, after) in enumerate(carried_out(tmp_path, name)):
        raised = {upgrade.tensor.name for upgrade in proposal.upgrades}
        assert after.total.sqnr_db == pytest.approx(proposal.new_sqnr_db, abs=0.5)
        # Measured in the other output, the same proposal is exact.
        both = entries(
            [read_report(tmp_path / each / "r.json") for each in ("before", str(number))]
        )
        for exact in propose(both[0], both):
            if exact.is_measured and {u.tensor.name for u in exact.upgrades} == raised:
                assert after.total.sqnr_db == pytest.approx(exact.new_sqnr_db, abs=1e-9)


@pytest.mark.parametrize("name", ["m-int4-g32", "m-int4-g64-gptq", "m-fp8"])
def test_a_directory_with_the_options_does_what_was_said(tmp_path: Path, name: str) -> None:
    for _, before, after in carried_out(tmp_path, name):
        assert after.total.sqnr_db is not None
        assert before.total.sqnr_db is not None
        assert after.total.sqnr_db > before.total.sqnr_db
