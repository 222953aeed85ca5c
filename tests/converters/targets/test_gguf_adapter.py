"""Adapters in GGUF, as convert_lora_to_gguf.py of llama.cpp makes them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weightcast
from tests import gguf_files
from tests.adapters import (
    HEADS,
    KV_HEADS,
    factors,
    float32,
    interleaved,
    llama_modules,
    write_config,
    write_llama,
    write_peft,
)
from tests.gguf_files import string, u32
from weightcast.converters.output.fingerprint import changes, fingerprint
from weightcast.errors import CheckpointError, RequestError


def test_metadata_and_tensors(tmp_path: Path) -> None:
    modules = llama_modules(12)
    adapter = write_peft(tmp_path / "my-adapter", modules)
    weightcast.convert(adapter, tmp_path / "a-F32.gguf", base=write_llama(tmp_path / "m.gguf", 12))
    made = gguf_files.read(tmp_path / "a-F32.gguf")
    assert made.metadata == {
        "general.architecture": string("llama"),
        "general.type": string("adapter"),
        "adapter.type": string("lora"),
        "general.name": string("My Adapter"),
        "adapter.lora.alpha": float32(8),
        "general.quantization_version": u32(2),
    }
    assert len(made.tensors) == 2 * len(modules)
    pairs = factors(modules)
    for name, stem, heads in (
        ("self_attn.q_proj", "attn_q", HEADS),
        ("self_attn.k_proj", "attn_k", KV_HEADS),
        ("mlp.down_proj", "ffn_down", 0),
    ):
        for n in range(12):
            a, b = pairs[f"model.layers.{n}.{name}"]
            b = interleaved(b, heads) if heads else b
            for factor, expected in (("lora_a", a), ("lora_b", b)):
                part = made.tensors[f"blk.{n}.{stem}.weight.{factor}"]
                assert part == gguf_files.floats(expected)


# SHA-256 of all names, shapes, types and bytes, in the order of names, of what
# convert_lora_to_gguf.py (llama.cpp of August 2026) makes of the same directory by --outtype.
REFERENCE = {
    "F32": "c8875dc052f8251085eaa4d30604974425cf2f81bb095a93731c5dd508dfd4cf",
    "F16": "008550dc03668cfe6ff732bb845a638301befbb24108cb660d2b7e5d73885386",
    "BF16": "6856d26c1b5a18193c065e2da3270975a11e19f7563cc4abda1490f0c92fd91d",
    "Q8_0": "43965549ee3283ef13e6f54969b4892002f064998ffce4f6e2f1ee004b199a61",
}


def digest(path: Path) -> str:
    found = hashlib.sha256()
    for name, part in sorted(gguf_files.read(path).tensors.items()):
        found.update(f"{name} {part.kind} {part.shape}".encode() + part.data)
    return found.hexdigest()


def reference_adapter(folder: Path) -> Path:
    """The adapter of REFERENCE: of attention and of 4 experts in 2 layers of a Mixtral."""
    modules = {}
    for n in range(2):
        layer = f"model.layers.{n}."
        for word, shape in {"q": (64, 64), "k": (32, 64), "v": (32, 64), "o": (64, 64)}.items():
            modules[f"{layer}self_attn.{word}_proj"] = shape
        for e in range(4):
            for word, shape in {"w1": (96, 64), "w2": (64, 96), "w3": (96, 64)}.items():
                modules[f"{layer}block_sparse_moe.experts.{e}.{word}"] = shape
        modules[f"{layer}block_sparse_moe.gate"] = (4, 64)
    write_config(
        folder / "base",
        architectures=["MixtralForCausalLM"],
        num_local_experts=4,
        num_hidden_layers=2,
        hidden_size=64,
        intermediate_size=96,
        vocab_size=48,
    )
    return write_peft(folder / "adapter", modules, dtype=np.float16, rank=5)


@pytest.mark.parametrize("type_name", REFERENCE)
def test_bytes_are_those_of_llama_cpp(tmp_path: Path, type_name: str) -> None:
    adapter, path = reference_adapter(tmp_path), tmp_path / f"a-{type_name}.gguf"
    weightcast.convert(adapter, path, base=tmp_path / "base" / "config.json")
    assert digest(path) == REFERENCE[type_name]


def test_alphas_of_their_own(tmp_path: Path) -> None:
    """llama.cpp has one alpha: what it cannot say, lora_b does."""
    modules = llama_modules()
    adapter = write_peft(
        tmp_path / "a", modules, rank=4, use_rslora=True, alpha_pattern={"up_proj": 24}
    )
    base = write_llama(tmp_path / "m.gguf")
    summary = weightcast.convert(adapter, tmp_path / "a-F32.gguf", base=base)
    made = gguf_files.read(tmp_path / "a-F32.gguf")
    assert made.metadata["adapter.lora.alpha"] == float32(8 * 2)
    a, b = factors(modules)["model.layers.1.mlp.up_proj"]
    assert made.tensors["blk.1.ffn_up.weight.lora_a"] == gguf_files.floats(a)
    assert made.tensors["blk.1.ffn_up.weight.lora_b"] == gguf_files.floats(b * np.float32(3))
    (note,) = [n for n in summary.outputs[0].notes if "one alpha" in n]
    assert note == (
        "lora_b is scaled, as llama.cpp has one alpha (16): blk.0.ffn_up.weight, "
        "blk.1.ffn_up.weight"
    )
    weightcast.convert(base, tmp_path / "m-F32.gguf", lora=adapter)
    weightcast.convert(base, tmp_path / "g-F32.gguf", lora=tmp_path / "a-F32.gguf")
    found = weightcast.compare(tmp_path / "m-F32.gguf", tmp_path / "g-F32.gguf")
    assert found.total.relative_rms < 1e-7


def test_ranks_of_their_own(tmp_path: Path) -> None:
    """One alpha / rank each is one multiplier each: nothing is scaled."""
    modules = llama_modules(1)
    some = {"base_model.model.model.layers.0.mlp.up_proj.lora_A.weight": np.ones((2, 64), "f4")}
    some["base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"] = np.ones((96, 2), "f4")
    del modules["model.layers.0.mlp.up_proj"]
    adapter = write_peft(tmp_path / "a", modules, extra=some, rank_pattern={"up_proj": 2})
    base = write_llama(tmp_path / "m.gguf", 1)
    weightcast.convert(adapter, tmp_path / "a-F32.gguf", base=base)
    made = gguf_files.read(tmp_path / "a-F32.gguf")
    assert made.metadata["adapter.lora.alpha"] == float32(8)
    assert made.tensors["blk.0.ffn_up.weight.lora_b"] == gguf_files.floats(np.ones((96, 2), "f4"))


def test_an_activated_adapter_keeps_its_tokens(tmp_path: Path) -> None:
    adapter = write_peft(tmp_path / "a", llama_modules(), alora_invocation_tokens=[7, 300])
    weightcast.convert(adapter, tmp_path / "a-F32.gguf", base=write_config(tmp_path / "base"))
    made = gguf_files.read(tmp_path / "a-F32.gguf")
    expected = gguf_files.array(gguf_files.U32, np.array([7, 300], "<u4").tobytes())
    assert made.metadata["adapter.alora.invocation_tokens"] == expected


def test_the_card_of_an_adapter(tmp_path: Path) -> None:
    adapter = write_peft(tmp_path / "a", llama_modules())
    (adapter / "README.md").write_text("---\nbase_model: meta-llama/Llama-3.2-1B\n---\n")
    base = write_config(tmp_path / "base")
    weightcast.convert(adapter, tmp_path / "a-F16.gguf", base=base, bundle=True)
    card = (tmp_path / "a-F16.README.md").read_text()
    assert "base_model: meta-llama/Llama-3.2-1B\nbase_model_relation: adapter\n" in card
    assert "GGUF, F16, of an adapter (LoRA) for a model of architecture llama" in card
    assert "`llama-cli -m MODEL.gguf --lora a-F16.gguf`" in card
    assert "weightcast convert a a-F16.gguf --base base --bundle" in card


def test_a_card_is_described(tmp_path: Path) -> None:
    adapter = write_peft(tmp_path / "a", llama_modules())
    (adapter / "README.md").write_text(
        "---\nlicense: mit\nbase_model: meta-llama/Llama-3.2-1B\nversion: 1.5\ntags: [x]\n---\n"
    )
    weightcast.convert(adapter, tmp_path / "a-F32.gguf", base=write_config(tmp_path / "base"))
    made = gguf_files.read(tmp_path / "a-F32.gguf").metadata
    assert made["general.license"] == string("mit")
    assert made["general.base_model.0.name"] == string("Llama 3.2 1B")
    assert made["general.tags"] == gguf_files.strings("x")
    assert "general.version" not in made  # a number, where text belongs


@pytest.mark.parametrize(
    "card",
    ["---\n: {[\n---\n", "---\nbase_model: 5\n---\n", "---\ntags: {a: 1}\n---\n", "x" * 10**6],
)
def test_a_card_that_makes_no_sense_is_no_error(tmp_path: Path, card: str) -> None:
    adapter = write_peft(tmp_path / "my", llama_modules())
    (adapter / "README.md").write_text(card)
    weightcast.convert(adapter, tmp_path / "a-F32.gguf", base=write_config(tmp_path / "base"))
    made = gguf_files.read(tmp_path / "a-F32.gguf").metadata
    assert made["general.name"] in (string("My"), string("my"))


def test_types_rules_and_rows_that_fill_no_blocks(tmp_path: Path) -> None:
    adapter = write_peft(tmp_path / "a", llama_modules(1), rank=4)
    base = write_config(tmp_path / "base")
    rules = {"attn_q": "F32"}
    path = tmp_path / "a-Q8_0.gguf"
    summary = weightcast.convert(adapter, path, base=base, tensor_types=rules)
    kinds = {n: p.kind for n, p in gguf_files.read(path).tensors.items()}
    assert kinds["blk.0.attn_q.weight.lora_a"] == gguf_files.F32
    assert kinds["blk.0.attn_q.weight.lora_b"] == gguf_files.F32
    assert kinds["blk.0.ffn_up.weight.lora_a"] == gguf_files.Q8_0
    assert kinds["blk.0.ffn_up.weight.lora_b"] == gguf_files.F16
    assert any("rows of 4 do not fill blocks of 32" in note for note in summary.outputs[0].notes)
    with pytest.raises(CheckpointError, match="an adapter cannot be Q4_K_M; it can be F32"):
        weightcast.plan(adapter, tmp_path / "a-Q4_K_M.gguf", base=base)
    planned = weightcast.plan(adapter, path, base=base, tensor_types={"nothing": "F16"})
    [note] = [n for n in planned.outputs[0].notes if "changes nothing" in n]
    assert "no tensor has a name with this pattern in the adapter" in note


def test_where_the_model_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_config(Path("hub/llama"))
    adapter = write_peft(tmp_path / "a", llama_modules(), base_model_name_or_path="hub/llama")
    weightcast.convert(adapter, "a-F16.gguf")
    (adapter / "config.json").write_text(json.dumps({"architectures": ["Qwen2ForCausalLM"]}))
    weightcast.convert(adapter, "b-F16.gguf")
    metadata = gguf_files.read(Path("b-F16.gguf")).metadata
    assert metadata["general.architecture"] == string("qwen2")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"architectures": ["MambaForCausalLM"]}, r"\['MambaForCausalLM'\] in GGUF is not known"),
        ({"architectures": None}, "None in GGUF is not known here"),
        ({"num_attention_heads": 0}, "does not say how many heads a layer has"),
        ({"num_attention_heads": 5}, "64 rows are not 5 heads of two halves"),
    ],
)
def test_models_that_say_too_little(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    adapter = write_peft(tmp_path / "a", llama_modules())
    base = write_config(tmp_path / "base", **changes)
    with pytest.raises(CheckpointError, match=problem):
        weightcast.plan(adapter, tmp_path / "a-F16.gguf", base=base)


def test_requests_that_make_no_sense(tmp_path: Path) -> None:
    adapter, base = write_peft(tmp_path / "a", llama_modules()), write_llama(tmp_path / "m.gguf")
    with pytest.raises(CheckpointError, match="not a model; to merge it, name it as"):
        weightcast.plan(adapter, tmp_path / "a-F16.gguf")
    with pytest.raises(CheckpointError, match="not a model; to merge it, name it as"):
        weightcast.plan(adapter, tmp_path / "a-bf16")
    with pytest.raises(RequestError, match="of use for an adapter as source only"):
        weightcast.plan(base, tmp_path / "m-F16.gguf", base=base)


def test_options_of_models_are_refused(tmp_path: Path) -> None:
    adapter, base = write_peft(tmp_path / "a", llama_modules()), write_llama(tmp_path / "m.gguf")
    path = tmp_path / "a-F16.gguf"
    options: dict[str, Any] = {
        "output_tensor_type": "Q8_0",
        "token_embedding_type": "Q8_0",
        "leave_output_tensor": True,
        "prune_layers": "0",
        "nvfp4_factors": True,
        "keep_split": True,
        "keep_order": True,
    }
    for name, value in options.items():
        with pytest.raises(RequestError, match=f"{name}: of use for models only, and .* is an ada"):
            weightcast.plan(adapter, path, base=base, **{name: value})
    with pytest.raises(CheckpointError, match="an adapter itself, to which none can be added"):
        weightcast.plan(adapter, path, base=base, lora=adapter)
    with pytest.raises(CheckpointError, match="an adapter cannot be COPY"):
        weightcast.plan(adapter, tmp_path / "a-COPY.gguf", base=base)


def test_metadata_can_be_given(tmp_path: Path) -> None:
    adapter, base = write_peft(tmp_path / "a", llama_modules()), write_llama(tmp_path / "m.gguf")
    path = tmp_path / "a-F16.gguf"
    given = ["general.name=str:mine", "general.alignment=int:64"]
    weightcast.convert(adapter, path, base=base, override_kv=given)
    made = gguf_files.read(path)
    assert made.metadata["general.name"] == string("mine")
    assert len(made.tensors) == 2 * len(llama_modules())


@pytest.mark.parametrize("is_named", [True, False])
def test_another_model_does_not_go_on_with_the_work_for_one(tmp_path: Path, is_named: bool) -> None:
    """The number of heads says how rows lie, and nothing else of the output does."""
    adapter = write_peft(tmp_path / "a", llama_modules())
    folder = tmp_path / "model" if is_named else adapter

    def noted(heads: int) -> dict[str, Any]:
        write_config(folder, num_attention_heads=heads)
        base = folder if is_named else None
        plan = weightcast.plan(adapter, tmp_path / "o-F16.gguf", base=base).plan
        return fingerprint(plan.inputs, plan.outputs[0])

    before, after = noted(HEADS), noted(HEADS * 2)
    assert before["files"] == after["files"]
    told = "the base file has changed since" if is_named else "config.json of the source has cha"
    assert told in changes(before, after)


@pytest.mark.parametrize("type_name", ["F32", "Q8_0"])
def test_an_adapter_verifies_against_its_directory(tmp_path: Path, type_name: str) -> None:
    adapter = write_config(write_peft(tmp_path / "a", llama_modules()))
    path = tmp_path / f"a-{type_name}.gguf"
    weightcast.convert(adapter, path)
    assert weightcast.verify(path, adapter).is_good
    write_peft(adapter, llama_modules(), seed=2)
    assert not weightcast.verify(path, adapter).is_good


def test_what_is_read_is_not_replaced(tmp_path: Path) -> None:
    adapter, base = (
        write_peft(tmp_path / "a", llama_modules()),
        write_llama(tmp_path / "m-F16.gguf"),
    )
    weightcast.convert(adapter, tmp_path / "a-F16.gguf", base=base)
    before = base.read_bytes()
    with pytest.raises(CheckpointError):
        weightcast.convert(adapter, base, base=base)
    with pytest.raises(CheckpointError):
        weightcast.convert(base, tmp_path / "a-F16.gguf", lora=tmp_path / "a-F16.gguf")
    with pytest.raises(CheckpointError):
        weightcast.convert(
            base, tmp_path / "x-F16.gguf", lora=adapter, report=adapter / "adapter_config.json"
        )
    assert base.read_bytes() == before


@pytest.mark.parametrize(
    ("module", "problem"),
    [
        ("model.vision_tower.layers.0.self_attn.q_proj", "is no layer of the language model"),
        ("model.layers.0.self_attn.rotary", "is no layer that llama.cpp has of llama"),
        ("x" * 5000, "is no factor of a LoRA"),
    ],
)
def test_layers_that_llama_cpp_does_not_have(tmp_path: Path, module: str, problem: str) -> None:
    adapter = write_peft(tmp_path / "a", {module: (64, 64)})
    with pytest.raises(CheckpointError, match=problem):
        weightcast.plan(adapter, tmp_path / "a-F16.gguf", base=write_llama(tmp_path / "m.gguf"))


def test_experts_that_are_not_all_there(tmp_path: Path) -> None:
    base = write_config(tmp_path / "b", architectures=["MixtralForCausalLM"], num_local_experts=4)

    def adapter(name: str, *experts: int, **config: Any) -> Path:
        stem = "model.layers.0.block_sparse_moe.experts"
        return write_peft(tmp_path / name, {f"{stem}.{e}.w1": (96, 64) for e in experts}, **config)

    some, beyond = adapter("some", 0, 1, 3), adapter("beyond", 0, 1, 2, 3, 4)
    unlike = adapter("unlike", 0, 1, 2, 3, alpha_pattern={r"experts\.2\.w1": 3})
    for path, problem in (
        (some, "expert 2 of blk.0.ffn_gate_exps.weight is not adapted"),
        (beyond, "expert 4 of 4 in blk.0.ffn_gate_exps.weight"),
        (unlike, "have different ranks or alphas"),
    ):
        with pytest.raises(CheckpointError, match=problem):
            weightcast.plan(path, tmp_path / "a-F16.gguf", base=base)
