"""Adapters merged into models while these are converted, beside numpy's sums."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import weightcast
from tests import gguf_files
from tests.adapters import (
    HEADS,
    KV_HEADS,
    LAYER,
    factors,
    interleaved,
    llama_modules,
    llama_tensors,
    product,
    write_adapter,
    write_llama,
    write_peft,
)
from tests.support import Golden
from weightcast.converters.families.grok1.synthetic import tiny_spec, write_checkpoint
from weightcast.converters.sources.options import parse_lora, written_lora
from weightcast.errors import CheckpointError, LayoutError, RequestError

Pairs = Mapping[str, tuple[NDArray[Any], NDArray[Any]]]


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return write_llama(tmp_path / "llama-F32.gguf")


def values(path: Path) -> dict[str, NDArray[np.float32]]:
    """The tensors of an F32 file."""
    found = gguf_files.read(path).tensors
    return {n: np.frombuffer(p.data, np.float32).reshape(p.shape) for n, p in found.items()}


def gguf_pairs(pairs: Pairs) -> dict[str, tuple[NDArray[Any], NDArray[Any]]]:
    """Factors by the names of the tiny Llama's tensors, rows of q and k in llama.cpp's order."""
    found = {}
    for name, (a, b) in pairs.items():
        _, _, layer, module = name.split(".", 3)
        stem = LAYER[module][0]
        heads = {"attn_q": HEADS, "attn_k": KV_HEADS}.get(stem)
        found[f"blk.{layer}.{stem}.weight"] = (a, interleaved(b, heads) if heads else b)
    return found


def added(
    tensors: Mapping[str, NDArray[np.float32]], pairs: Pairs, multiplier: float
) -> dict[str, NDArray[np.float32]]:
    by = np.float32(multiplier)
    return dict(tensors) | {n: tensors[n] + product(a, b) * by for n, (a, b) in pairs.items()}


def assert_same(
    found: Mapping[str, NDArray[np.float32]], expected: Mapping[str, NDArray[np.float32]]
) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, name)


@pytest.mark.parametrize("rank", [1, 3, 16, 70])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_directory_of_peft_to_the_bit(llama: Path, tmp_path: Path, rank: int, dtype: Any) -> None:
    modules = llama_modules()
    adapter = write_peft(tmp_path / "a", modules, rank=rank, seed=rank, dtype=dtype)
    weightcast.convert(llama, tmp_path / "m-F32.gguf", lora=adapter)
    pairs = gguf_pairs(factors(modules, rank, rank, dtype))
    assert_same(values(tmp_path / "m-F32.gguf"), added(llama_tensors(), pairs, 8 / rank))


# SHA-256 of all tensors, in the order of names, that llama-export-lora (llama.cpp of August 2026)
# makes of the same files with --lora-scaled a-F32.gguf:0.7. With other ranks than 8 it fuses some
# multiplications with additions, and differs by 2.4e-7 at most.
EXPORTED = "c76e2e5e503460afbeb3a17b0b8263af3dd95dbac6caad478c6dad485fcb4003"


def test_sums_are_those_of_llama_export_lora(llama: Path, tmp_path: Path) -> None:
    adapter = write_peft(tmp_path / "a", llama_modules(), rank=8, seed=8, lora_alpha=7)
    weightcast.convert(adapter, tmp_path / "a-F32.gguf", base=llama)
    weightcast.convert(llama, tmp_path / "m-F32.gguf", lora={tmp_path / "a-F32.gguf": 0.7})
    tensors = gguf_files.read(tmp_path / "m-F32.gguf").tensors
    made = b"".join(tensors[name].data for name in sorted(tensors))
    assert hashlib.sha256(made).hexdigest() == EXPORTED


def test_several_adapters_with_scales_in_their_order(llama: Path, tmp_path: Path) -> None:
    modules = llama_modules()
    some = dict(list(modules.items())[3:9])
    first = write_peft(tmp_path / "a", modules, use_rslora=True, rank=4)
    second = write_peft(tmp_path / "b", some, seed=5, lora_alpha=3, rank=2)
    scales = {first: -0.5, str(second): 2}
    weightcast.convert(llama, tmp_path / "m-F32.gguf", lora=scales)
    expected = added(llama_tensors(), gguf_pairs(factors(modules)), -0.5 * 8 / 2)
    expected = added(expected, gguf_pairs(factors(some, 2, 5)), 2 * 3 / 2)
    assert_same(values(tmp_path / "m-F32.gguf"), expected)
    as_texts = [f"{first}=-0.5", f"{second}=2"]
    weightcast.convert(llama, tmp_path / "t-F32.gguf", lora=as_texts)
    assert (tmp_path / "t-F32.gguf").read_bytes() == (tmp_path / "m-F32.gguf").read_bytes()


def test_a_gguf_adapter_is_the_same_as_the_directory(llama: Path, tmp_path: Path) -> None:
    adapter = write_peft(tmp_path / "a", llama_modules(), rank=3)
    weightcast.convert(adapter, tmp_path / "a-F32.gguf", base=llama)
    for lora, name in ((adapter, "m"), (tmp_path / "a-F32.gguf", "g")):
        weightcast.convert(llama, tmp_path / f"{name}-F32.gguf", lora=lora)
    assert (tmp_path / "m-F32.gguf").read_bytes() == (tmp_path / "g-F32.gguf").read_bytes()


def test_a_gguf_adapter_in_parts(llama: Path, tmp_path: Path) -> None:
    whole = tmp_path / "a-F32.gguf"
    weightcast.convert(write_peft(tmp_path / "a", llama_modules()), whole, base=llama)
    parts = weightcast.split(whole, tmp_path / "parts", max_tensors=5).outputs[0].files
    made = []
    for adapter in (whole, parts[0]):
        made.append(tmp_path / f"{adapter.stem}-F16.gguf")
        conversion = weightcast.plan(llama, made[-1], lora=adapter)
        conversion.run()
    assert made[0].read_bytes() == made[1].read_bytes()
    assert {file.path for file in conversion.plan.inputs.files} == {llama, *parts}
    parts[1].unlink()
    with pytest.raises(CheckpointError, match="parts-00002-of-00006"):
        weightcast.plan(llama, tmp_path / "m-F16.gguf", lora=parts[0])


@pytest.mark.parametrize("alpha", [None, 0.0, 6.0])
def test_an_alpha_of_zero_is_a_multiplier_of_one(
    llama: Path, tmp_path: Path, alpha: float | None
) -> None:
    """As in llama.cpp, where it stands for files that have none."""
    rng = np.random.default_rng(2)
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((3, 64), (96, 3)))
    name = "blk.1.ffn_up.weight"
    adapter = write_adapter(
        tmp_path / "a.gguf", {f"{name}.lora_a": a, f"{name}.lora_b": b}, alpha=alpha
    )
    weightcast.convert(llama, tmp_path / "m-F32.gguf", lora=adapter)
    expected = added(llama_tensors(), {name: (a, b)}, alpha / 3 if alpha else 1)
    assert_same(values(tmp_path / "m-F32.gguf"), expected)


def test_an_embedding_is_looked_up_by_rows(llama: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 48), (64, 2)))
    stem = "base_model.model.model.embed_tokens.lora_embedding_"
    adapter = write_peft(tmp_path / "a", {}, extra={f"{stem}A": a, f"{stem}B": b})
    expected = added(llama_tensors(), {"token_embd.weight": (b.T, a.T)}, 8 / 2)
    weightcast.convert(llama, tmp_path / "m-F32.gguf", lora=adapter)
    assert_same(values(tmp_path / "m-F32.gguf"), expected)
    weightcast.convert(adapter, tmp_path / "a-F32.gguf", base=llama)
    made = values(tmp_path / "a-F32.gguf")
    assert {name: array.shape for name, array in made.items()} == {
        "token_embd.weight.lora_a": (48, 2),
        "token_embd.weight.lora_b": (64, 2),
    }
    weightcast.convert(llama, tmp_path / "g-F32.gguf", lora=tmp_path / "a-F32.gguf")
    assert_same(values(tmp_path / "g-F32.gguf"), expected)


def test_blocks_are_not_turned_for_an_embedding(llama: Path, tmp_path: Path) -> None:
    """The line names what makes an adapter of the same values that can be merged."""
    stem = "base_model.model.model.embed_tokens.lora_embedding_"
    extra = {f"{stem}A": np.ones((32, 48), np.float32), f"{stem}B": np.ones((64, 32), np.float32)}
    adapter = write_peft(tmp_path / "a", {}, extra=extra)
    weightcast.convert(adapter, tmp_path / "a-Q8_0.gguf", base=llama)
    with pytest.raises(LayoutError) as raised:
        weightcast.convert(llama, tmp_path / "m-F32.gguf", lora=tmp_path / "a-Q8_0.gguf")
    problem, rule = "token_embd.weight.lora_b is Q8_0", ".*lora_[ab]=F32"
    assert problem in str(raised.value)
    assert rule in str(raised.value)
    source, path = tmp_path / "a-Q8_0.gguf", tmp_path / "b-F32.gguf"
    weightcast.convert(source, path, tensor_types=rule)
    weightcast.convert(llama, tmp_path / "m-F32.gguf", lora=path)
    changed = values(tmp_path / "m-F32.gguf")["token_embd.weight"]
    np.testing.assert_allclose(changed - llama_tensors()["token_embd.weight"], 8, rtol=1e-3)


@pytest.mark.parametrize("type_name", ["Q8_0", "Q4_K_M", "BF16", "F16"])
def test_tensors_without_an_adapter_are_as_without_one(
    llama: Path, tmp_path: Path, type_name: str
) -> None:
    only = {"model.layers.1.self_attn.v_proj": (32, 64)}
    adapter = write_peft(tmp_path / "a", only)
    made = []
    for name, lora in (("with", adapter), ("without", None)):
        weightcast.convert(llama, tmp_path / f"{name}-{type_name}.gguf", lora=lora)
        made.append(gguf_files.read(tmp_path / f"{name}-{type_name}.gguf"))
    assert made[0].metadata == made[1].metadata
    different = [n for n, part in made[0].tensors.items() if part != made[1].tensors[n]]
    assert different == ["blk.1.attn_v.weight"]


def test_quantized_sources_and_their_permission(llama: Path, tmp_path: Path) -> None:
    adapter = write_peft(tmp_path / "a", llama_modules())
    source = tmp_path / "llama-Q8_0.gguf"
    weightcast.convert(llama, source)
    weightcast.convert(source, tmp_path / "plain-F32.gguf")
    weightcast.convert(source, tmp_path / "m-F32.gguf", lora=adapter)
    expected = added(values(tmp_path / "plain-F32.gguf"), gguf_pairs(factors(llama_modules())), 2)
    assert_same(values(tmp_path / "m-F32.gguf"), expected)
    with pytest.raises(CheckpointError, match=r"is Q8_0, and Q8_0 made of that loses more"):
        weightcast.convert(source, tmp_path / "m-Q8_0.gguf", lora=adapter)
    weightcast.convert(source, tmp_path / "m-Q8_0.gguf", lora=adapter, allow_requantize=True)
    weightcast.convert(tmp_path / "m-F32.gguf", tmp_path / "twice-Q8_0.gguf")
    found, twice = (gguf_files.read(tmp_path / f"{n}-Q8_0.gguf").tensors for n in ("m", "twice"))
    assert found == twice


def test_a_kept_type_is_kept(tmp_path: Path) -> None:
    """What is not quantized, such as a router, has the type of the source."""
    x = np.linspace(-1, 1, 8 * 64, dtype=np.float32).reshape(8, 64)
    metadata = {"general.architecture": gguf_files.string("llama")}
    name = "blk.0.ffn_gate_inp.weight"
    source = gguf_files.write(
        tmp_path / "s.gguf", metadata, {name: gguf_files.floats(x.astype(np.float16))}
    )
    a, b = np.full((1, 64), 0.5, np.float32), np.full((8, 1), 0.25, np.float32)
    adapter = write_adapter(
        tmp_path / "a.gguf", {f"{name}.lora_a": a, f"{name}.lora_b": b}, alpha=1
    )
    weightcast.convert(source, tmp_path / "m-Q4_K_M.gguf", lora=adapter)
    part = gguf_files.read(tmp_path / "m-Q4_K_M.gguf").tensors[name]
    expected = (x.astype(np.float16).astype(np.float32) + np.float32(0.125)).astype(np.float16)
    assert (part.kind, part.data) == (gguf_files.F16, expected.tobytes())


# Grok-1.


def grok_modules(golden: Golden) -> dict[str, tuple[int, int]]:
    """All linear layers of the first two layers, by their names in Hugging Face directories."""
    checkpoint = weightcast.open(golden.path)
    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "block_sparse_moe.gate": "ffn_gate_inp",
    }
    experts = {"w1": "ffn_gate_exps", "w2": "ffn_down_exps", "w3": "ffn_up_exps"}
    found = {}
    for n in range(2):
        for module, stem in names.items():
            found[f"model.layers.{n}.{module}"] = checkpoint[f"blk.{n}.{stem}.weight"].shape
        for word, stem in experts.items():
            n_experts, *shape = checkpoint[f"blk.{n}.{stem}.weight"].shape
            for e in range(n_experts):
                found[f"model.layers.{n}.block_sparse_moe.experts.{e}.{word}"] = tuple(shape)
    return found


def grok_names(modules: Mapping[str, Any]) -> dict[str, str]:
    """The same layers under the names of keyfan/grok-1-hf, the official port."""
    words = {
        "model.layers": "transformer.decoder_layer",
        "self_attn.q_proj": "multi_head_attention.query",
        "self_attn.k_proj": "multi_head_attention.key",
        "self_attn.v_proj": "multi_head_attention.value",
        "self_attn.o_proj": "multi_head_attention.linear",
        "block_sparse_moe.gate": "router",
        "block_sparse_moe.experts": "moe",
        ".w1": ".linear",
        ".w2": ".linear_1",
        ".w3": ".linear_v",
    }
    found = {}
    for name in modules:
        other = name
        for word, replaced in words.items():
            other = other.replace(word, replaced)
        found[name] = other
    return found


def test_grok_with_experts(golden: Golden, tmp_path: Path) -> None:
    modules = grok_modules(golden)
    adapter = write_peft(tmp_path / "a", modules, rank=2)
    plain, merged = tmp_path / "g-F32.gguf", tmp_path / "m-F32.gguf"
    weightcast.convert(golden.path, plain, no_tokenizer=True)
    weightcast.convert(golden.path, merged, no_tokenizer=True, lora=f"{adapter}=0.5")
    before, after, pairs = values(plain), values(merged), factors(modules, 2)
    for n in range(2):
        a, b = pairs[f"model.layers.{n}.self_attn.k_proj"]
        name = f"blk.{n}.attn_k.weight"
        expected = before[name] + product(a, b) * np.float32(0.5 * 8 / 2)
        np.testing.assert_array_equal(after[name], expected)
        for e in range(before[f"blk.{n}.ffn_down_exps.weight"].shape[0]):
            a, b = pairs[f"model.layers.{n}.block_sparse_moe.experts.{e}.w2"]
            name = f"blk.{n}.ffn_down_exps.weight"
            expected = before[name][e] + product(a, b) * np.float32(0.5 * 8 / 2)
            np.testing.assert_array_equal(after[name][e], expected)
    np.testing.assert_array_equal(before["token_embd.weight"], after["token_embd.weight"])
    weightcast.convert(plain, tmp_path / "again-F32.gguf", lora={adapter: 0.5})
    assert_same(values(tmp_path / "again-F32.gguf"), after)


def test_names_of_groks_official_port(golden: Golden, tmp_path: Path) -> None:
    modules = grok_modules(golden)
    first = write_peft(tmp_path / "a", modules, rank=2)
    others = grok_names(modules)
    second = write_peft(tmp_path / "b", {others[n]: s for n, s in modules.items()}, rank=2)
    for name, adapter in (("a", first), ("b", second)):
        weightcast.convert(adapter, tmp_path / f"{name}-F32.gguf", base=golden.path)
    a, b = (values(tmp_path / f"{name}-F32.gguf") for name in "ab")
    assert a.keys() == b.keys()
    assert all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("output", ["m-bf16", "m-int4-g128", "m-Q8_0.gguf"])
def test_groks_outputs_verify(golden: Golden, tmp_path: Path, output: str) -> None:
    layers = {n: s for n, s in grok_modules(golden).items() if ".0." in n and "experts" not in n}
    adapter = write_peft(tmp_path / "a", layers)
    path = tmp_path / output
    weightcast.convert(golden.path, path, no_tokenizer=True, lora=adapter)
    assert weightcast.verify(path, golden.path, lora=adapter).is_good
    assert not weightcast.verify(path, golden.path).is_good
    assert not weightcast.verify(path, golden.path, lora={adapter: 0.9}).is_good


def test_an_int8_directory_verifies(tmp_path: Path) -> None:
    """What is merged is quantized anew, the rest keeps the codes of the release."""
    source = tmp_path / "grok"
    write_checkpoint(source, tiny_spec(widening_factor=12, num_experts=2), seed=5)
    _, *shape = weightcast.open(source)["blk.0.ffn_gate_exps.weight"].shape
    experts = "model.layers.0.block_sparse_moe.experts"
    modules = {f"{experts}.{e}.w1": (shape[0], shape[1]) for e in range(2)}
    adapter = write_peft(tmp_path / "a", modules)
    path = tmp_path / "m-int8"
    summary = weightcast.convert(source, path, no_tokenizer=True, lora=adapter)
    origins = summary.describe()["outputs"][0]["int8_groups"]
    assert len(origins["lossless"]) == 5 * 2
    assert weightcast.verify(path, source, lora=adapter).is_good
    assert not weightcast.verify(path, source).is_good


def test_int8_codes_stay_where_no_adapter_is_for_them(golden: Golden, tmp_path: Path) -> None:
    adapter = write_peft(tmp_path / "a", {"model.layers.0.self_attn.q_proj": _q(golden)})
    summary = weightcast.convert(
        golden.path, tmp_path / "m-Q8_0.gguf", no_tokenizer=True, lora=adapter
    )
    origins = summary.describe()["outputs"][0]["q8_0"]
    assert "blk.0.attn_q.weight" in origins["quantized"]
    assert "blk.0.attn_k.weight" in origins["lossless"]
    (note,) = [n for n in summary.outputs[0].notes if "merged" in n]
    assert note == "merged a (scale 1) into 1 tensor, which are made anew, not carried over"


def _q(golden: Golden) -> tuple[int, int]:
    n_out, n_in = weightcast.open(golden.path)["blk.0.attn_q.weight"].shape
    return n_out, n_in


# Verify, compare, go on, describe.


def test_compare_and_verify_merge_as_convert_does(llama: Path, tmp_path: Path) -> None:
    adapter = write_peft(tmp_path / "a", llama_modules())
    path = tmp_path / "m-F32.gguf"
    weightcast.convert(llama, path, lora={adapter: 0.25})
    assert weightcast.verify(path, llama, lora={adapter: 0.25}).is_good
    assert weightcast.compare(llama, path, lora={adapter: 0.25}).total.relative_rms == 0
    assert weightcast.compare(llama, path).total.relative_rms > 0.01
    with pytest.raises(RequestError, match="of use with a source only"):
        weightcast.verify(path, lora=adapter)


def test_records_name_adapters_without_folders(llama: Path, tmp_path: Path) -> None:
    adapter = write_peft(tmp_path / "deep" / "mine", llama_modules())
    gguf = tmp_path / "a-F16.gguf"
    weightcast.convert(adapter, gguf, base=llama)
    path = tmp_path / "m-Q8_0.gguf"
    weightcast.convert(llama, path, lora=[f"{adapter}=0.5", str(gguf)], bundle=True)
    statement = json.loads((tmp_path / "m-Q8_0.intoto.json").read_text())
    definition = statement["predicate"]["buildDefinition"]
    assert definition["externalParameters"]["lora"] == ["mine=0.5", "a-F16.gguf=1"]
    roles = [d["annotations"]["role"] for d in definition["resolvedDependencies"]]
    assert roles == ["source", "adapter 2", "adapter config", "adapter"]
    card = (tmp_path / "m-Q8_0.README.md").read_text()
    assert "--lora mine=0.5 --lora a-F16.gguf=1" in card
    assert str(tmp_path) not in card


def test_another_adapter_does_not_go_on_with_the_work_of_one(llama: Path, tmp_path: Path) -> None:
    from weightcast.converters.convert import prepare
    from weightcast.converters.output.fingerprint import changes, fingerprint
    from weightcast.converters.sources import ConvertOptions

    adapter = write_peft(tmp_path / "a", llama_modules())

    def noted(*lora: str) -> tuple[dict[str, Any], ConvertOptions]:
        options = ConvertOptions(lora=lora)
        plan = prepare(llama, [str(tmp_path / "m-F32.gguf")], options)
        return fingerprint(plan.inputs, plan.outputs[0]), options

    first, options = noted(str(adapter))
    assert noted(str(adapter))[0] == first
    assert "lora was a=1 and is a=0.5" in changes(first, noted(f"{adapter}=0.5")[0], options)
    near = changes(first, noted(f"{adapter}=1.0000001")[0], options)
    assert near == "lora was a=1 and is a=1.0000001"
    assert changes(first, noted()[0], options).startswith("lora was a=1 and is not given")
    write_peft(tmp_path / "a", llama_modules(), seed=9)
    assert changes(first, noted(str(adapter))[0], options) == "the adapter file has changed since"


def test_memory_is_bounded_however_large_the_matrix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slab holds some rows of a matrix and of one factor, and no more than it may."""
    from weightcast.converters.convert import prepare
    from weightcast.converters.sources import ConvertOptions

    name, shape = "blk.0.ffn_up.weight", (40_000, 2048)
    metadata = {"general.architecture": gguf_files.string("llama")}
    part = gguf_files.Part(gguf_files.F16, shape, bytes(2 * shape[0] * shape[1]))
    source = gguf_files.write(tmp_path / "s.gguf", metadata, {name: part})
    a, b = np.ones((8, shape[1]), np.float32), np.ones((shape[0], 8), np.float32)
    adapter = write_adapter(
        tmp_path / "a.gguf", {f"{name}.lora_a": a, f"{name}.lora_b": b}, alpha=8
    )
    monkeypatch.setattr("weightcast.converters.plan.budget.resident_bytes", lambda: 200 << 20)
    options = ConvertOptions(lora=(str(adapter),), memory="500M")
    plan = prepare(source, [str(tmp_path / "m-F32.gguf")], options)
    assert plan.slab_bytes <= plan.budget.slab
    assert len(plan.items) > 1
    whole = sum(item.out1 - item.out0 for item in plan.items)
    assert whole == shape[0]


# What is refused.


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("a", (Path("a"), 1.0)),
        ("a.gguf=0.5", (Path("a.gguf"), 0.5)),
        ("x=1/a=-2e-3", (Path("x=1/a"), -0.002)),
        ("a=0", (Path("a"), 0.0)),
    ],
)
def test_paths_and_scales(text: str, parsed: tuple[Path, float]) -> None:
    assert parse_lora(text) == parsed


@pytest.mark.parametrize("text", ["a=", "a=x", "a=nan", "a=inf", "=1", "a=1=two"])
def test_scales_that_are_none(text: str) -> None:
    with pytest.raises(RequestError, match="is not a scale; write PATH=SCALE"):
        parse_lora(text)


def test_a_path_that_is_there_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a=0.5").mkdir()
    assert parse_lora("a=0.5") == (Path("a=0.5"), 1.0)
    assert written_lora(["a=0.5", os.path.abspath("b=3")]) == ("a=0.5=1", "b=3")


def test_kinds_of_values_that_are_no_adapters(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="give a text"):
        weightcast.plan(llama, tmp_path / "m-F32.gguf", lora=[5])  # type: ignore[list-item]


NAME = "blk.0.ffn_up.weight"


@pytest.mark.parametrize(
    ("tensors", "alpha", "problem"),
    [
        (
            {"blk.9.ffn_up.weight": ((2, 64), (96, 2))},
            4,
            "which .* does not have; name",
        ),
        ({NAME: ((2, 64), (95, 2))}, 4, r"of shape \[95, 64\], but in .* it is \[96, 64\]; name"),
        ({NAME: ((2, 64), (2, 96))}, 4, "do not fit each other"),
        ({NAME: ((2, 64), (96, 3))}, 4, "do not fit each other"),
        ({NAME: ((2, 64), (1, 96, 2))}, 4, "do not fit each other"),
        ({NAME: ((2, 64), (96, 2))}, float("nan"), "adapter.lora.alpha is nan, not a number"),
        ({NAME: ((300_000, 64), (96, 300_000))}, 4, "rank 300,000 for .* which is too much"),
    ],
)
def test_adapters_of_other_models(
    llama: Path,
    tmp_path: Path,
    tensors: dict[str, tuple[tuple[int, ...], tuple[int, ...]]],
    alpha: float,
    problem: str,
) -> None:
    arrays = {}
    for name, (a, b) in tensors.items():
        arrays[f"{name}.lora_a"] = np.zeros(a, np.float16)
        arrays[f"{name}.lora_b"] = np.zeros(b, np.float16)
    adapter = write_adapter(tmp_path / "a.gguf", arrays, alpha=alpha)
    with pytest.raises(CheckpointError, match=problem) as caught:
        weightcast.plan(llama, tmp_path / "m-F32.gguf", lora=adapter)
    assert str(caught.value).startswith(str(adapter))


def test_files_that_are_no_adapters(llama: Path, tmp_path: Path) -> None:
    one = {f"{NAME}.lora_a": np.zeros((2, 64), np.float32)}
    cases = [
        (write_adapter(tmp_path / "one.gguf", one), "has no lora_b"),
        (write_adapter(tmp_path / "x.gguf", {NAME: one[f"{NAME}.lora_a"]}), "is no factor"),
        (write_adapter(tmp_path / "q.gguf", one, architecture="qwen2"), "an adapter for 'qwen2'"),
        (llama, "a GGUF file of type 'model', not an adapter"),
        (tmp_path, "no adapter_config.json in it; an adapter is"),
        (tmp_path / "nowhere", "no such file or directory; an adapter is"),
    ]
    for path, problem in cases:
        with pytest.raises(CheckpointError, match=problem):
            weightcast.plan(llama, tmp_path / "m-F32.gguf", lora=path)


@pytest.mark.parametrize("factor", ["lora_a", "lora_b"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(llama: Path, tmp_path: Path, factor: str, bad: float) -> None:
    arrays = {f"{NAME}.lora_a": np.zeros((2, 64)), f"{NAME}.lora_b": np.zeros((96, 2))}
    arrays[f"{NAME}.{factor}"][1, 1] = bad
    adapter = write_adapter(
        tmp_path / "a.gguf", {n: x.astype(np.float32) for n, x in arrays.items()}
    )
    with pytest.raises(CheckpointError, match=rf"{factor}: {bad} at \[1, 1\]"):
        weightcast.plan(llama, tmp_path / "m-F32.gguf", lora=adapter)


def test_an_adapter_is_named_by_any_of_its_files(llama: Path, tmp_path: Path) -> None:
    adapter = write_peft(tmp_path / "a", llama_modules())
    sizes = {
        weightcast.plan(llama, tmp_path / "m-F32.gguf", lora=path).write_bytes
        for path in (adapter, *adapter.iterdir())
    }
    assert len(sizes) == 1
    for path in adapter.iterdir():
        weightcast.plan(path, tmp_path / "a-F32.gguf", base=llama)


def test_a_tied_head_is_refused(tmp_path: Path) -> None:
    name = "base_model.model.lm_head.lora_"
    arrays = {f"{name}A.weight": np.zeros((2, 64)), f"{name}B.weight": np.zeros((48, 2))}
    adapter = write_peft(
        tmp_path / "a", {}, extra={n: x.astype(np.float32) for n, x in arrays.items()}
    )
    tensors = llama_tensors()
    del tensors["output.weight"]
    metadata = {"general.architecture": gguf_files.string("llama")}
    tied = gguf_files.write(
        tmp_path / "t.gguf", metadata, {n: gguf_files.floats(x) for n, x in tensors.items()}
    )
    with pytest.raises(CheckpointError, match="adapts the output head, which is the embedding"):
        weightcast.plan(tied, tmp_path / "m-F32.gguf", lora=adapter)


def test_an_activated_adapter_is_not_merged(llama: Path, tmp_path: Path) -> None:
    adapter = write_peft(tmp_path / "a", llama_modules(), alora_invocation_tokens=[1, 2])
    weightcast.convert(adapter, tmp_path / "a-F16.gguf", base=llama)
    for lora in (adapter, tmp_path / "a-F16.gguf"):
        with pytest.raises(CheckpointError, match="an activated adapter"):
            weightcast.plan(llama, tmp_path / "m-F32.gguf", lora=lora)


def test_norms_in_a_gguf_adapter_are_left_out_with_a_note(llama: Path, tmp_path: Path) -> None:
    arrays = {
        f"{NAME}.lora_a": np.zeros((2, 64), np.float32),
        f"{NAME}.lora_b": np.zeros((96, 2), np.float32),
        "blk.0.attn_norm.weight": np.zeros(64, np.float32),
    }
    adapter = write_adapter(tmp_path / "a.gguf", arrays)
    (output,) = weightcast.plan(llama, tmp_path / "m-F32.gguf", lora=adapter).outputs
    assert "left out of a.gguf, as in llama.cpp: 1 norm" in output.notes
