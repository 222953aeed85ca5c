"""Metadata and companion files, by the names that llama.cpp, vLLM, SGLang and transformers read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
from gguf import GGUFValueType as T

import weightcast
from tests.support import RELEASED_TOKENIZER, Golden, needs_released_tokenizer
from weightcast.converters.families.grok1.spec import HYPERPARAMETERS
from weightcast.converters.families.grok1.synthetic import tiny_spec, write_checkpoint
from weightcast.converters.sources import open_graph
from weightcast.formats.gguf.read import read_file

# key -> type, as llama.cpp's own converter writes them.
GGUF_TYPES = {
    "general.architecture": T.STRING,
    "general.type": T.STRING,
    "general.name": T.STRING,
    "general.size_label": T.STRING,
    "general.license": T.STRING,
    "general.file_type": T.UINT32,
    "general.quantization_version": T.UINT32,
    "grok.block_count": T.UINT32,
    "grok.context_length": T.UINT32,
    "grok.embedding_length": T.UINT32,
    "grok.feed_forward_length": T.UINT32,
    "grok.attention.head_count": T.UINT32,
    "grok.attention.head_count_kv": T.UINT32,
    "grok.rope.freq_base": T.FLOAT32,
    "grok.attention.layer_norm_rms_epsilon": T.FLOAT32,
    "grok.expert_count": T.UINT32,
    "grok.expert_used_count": T.UINT32,
    "grok.attention.key_length": T.UINT32,
    "grok.attention.value_length": T.UINT32,
    "grok.attn_logit_softcapping": T.FLOAT32,
    "grok.router_logit_softcapping": T.FLOAT32,
    "grok.expert_feed_forward_length": T.UINT32,
    "grok.attention.output_scale": T.FLOAT32,
    "grok.embedding_scale": T.FLOAT32,
    "grok.logit_scale": T.FLOAT32,
}
TOKENIZER_TYPES = {
    "tokenizer.ggml.model": T.STRING,
    "tokenizer.ggml.pre": T.STRING,
    "tokenizer.ggml.tokens": T.ARRAY,
    "tokenizer.ggml.scores": T.ARRAY,
    "tokenizer.ggml.token_type": T.ARRAY,
    "tokenizer.ggml.bos_token_id": T.UINT32,
    "tokenizer.ggml.eos_token_id": T.UINT32,
    "tokenizer.ggml.unknown_token_id": T.UINT32,
    "tokenizer.ggml.padding_token_id": T.UINT32,
    "tokenizer.ggml.add_bos_token": T.BOOL,
    "tokenizer.ggml.add_eos_token": T.BOOL,
    "tokenizer.ggml.add_space_prefix": T.BOOL,
}


def fields_of(path: Path) -> dict[str, gguf.ReaderField]:
    fields = dict(gguf.GGUFReader(path).fields)
    return {key: field for key, field in fields.items() if not key.startswith("GGUF.")}


def test_gguf_metadata(golden: Golden, tmp_path: Path) -> None:
    weightcast.convert(golden.path, tmp_path / "m-BF16.gguf", no_tokenizer=True)
    fields = fields_of(tmp_path / "m-BF16.gguf")
    extra = {"tokenizer.ggml.model": T.STRING, "grok.vocab_size": T.UINT32}
    assert {key: field.types[0] for key, field in fields.items()} == {**GGUF_TYPES, **extra}
    values = {key: field.contents() for key, field in fields.items()}
    spec = open_graph(golden.path).spec
    assert values["general.architecture"] == "grok"
    assert values["general.file_type"] == gguf.LlamaFileType.MOSTLY_BF16
    assert values["tokenizer.ggml.model"] == "no_vocab"
    assert values["grok.vocab_size"] == spec.vocab_size
    assert values["grok.block_count"] == spec.num_layers
    assert values["grok.attention.head_count"] == spec.num_q_heads
    assert values["grok.expert_used_count"] == 2
    assert values["grok.router_logit_softcapping"] == 0.0
    assert values["grok.embedding_scale"] == pytest.approx(spec.embedding_multiplier_scale, 1e-7)


@pytest.mark.parametrize(
    ("type_name", "file_type"), [("F32", 0), ("F16", 1), ("BF16", 32), ("Q8_0", 7)]
)
def test_file_types(tiny: Path, tmp_path: Path, type_name: str, file_type: int) -> None:
    path = tmp_path / f"m-{type_name}.gguf"
    weightcast.convert(tiny, path, no_tokenizer=True)
    fields = fields_of(path)
    assert fields["general.file_type"].contents() == file_type


def test_gguf_tokenizer(tiny: Path, tokenizer_model: Path, tmp_path: Path) -> None:
    weightcast.convert(tiny, tmp_path / "m-F16.gguf", tokenizer=tokenizer_model)
    fields = fields_of(tmp_path / "m-F16.gguf")
    found = {key: field.types[0] for key, field in fields.items()}
    assert found == {**GGUF_TYPES, **TOKENIZER_TYPES}
    values = {key.removeprefix("tokenizer.ggml."): f.contents() for key, f in fields.items()}
    assert values["model"] == "llama"
    assert [values[f"{n}_token_id"] for n in ("padding", "bos", "eos", "unknown")] == [0, 1, 2, 3]
    assert values["add_bos_token"] is False
    assert len(values["tokens"]) == len(values["scores"]) == len(values["token_type"]) == 1024
    assert values["tokens"][:5] == ["<pad>", "<s>", "</s>", "<unk>", "<|sep|>"]
    # User-defined pieces are normal ones, and rows without a piece are unused.
    assert values["token_type"][:5] == [3, 3, 3, 2, 1]
    assert values["tokens"][1023] == "[PAD1023]"
    assert values["token_type"][1023] == 5


def test_the_tokenizer_of_a_gguf_goes_into_the_next_one(
    tiny: Path, tokenizer_model: Path, tmp_path: Path
) -> None:
    weightcast.convert(tiny, tmp_path / "a-F16.gguf", tokenizer=tokenizer_model)
    weightcast.convert(tmp_path / "a-F16.gguf", tmp_path / "b-F16.gguf", keep_order=True)
    assert (tmp_path / "a-F16.gguf").read_bytes() == (tmp_path / "b-F16.gguf").read_bytes()


def test_a_tokenizer_beside_the_source_is_found(tokenizer_model: Path, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "m", tiny_spec())
    (tmp_path / "m" / "tokenizer.model").write_bytes(tokenizer_model.read_bytes())
    weightcast.convert(tmp_path / "m" / "ckpt-0", tmp_path / "m-bf16")
    copied = tmp_path / "m-bf16" / "tokenizer.model"
    assert copied.read_bytes() == tokenizer_model.read_bytes()
    weightcast.convert(tmp_path / "m-bf16", tmp_path / "m-F16.gguf")
    assert fields_of(tmp_path / "m-F16.gguf")["tokenizer.ggml.model"].contents() == "llama"


def test_a_tokenizer_of_another_model(tokenizer_model: Path, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, tiny_spec(vocab_size=64))
    with pytest.raises(weightcast.LayoutError, match="has 400 pieces, but the model has a vocab"):
        weightcast.convert(tmp_path, tmp_path / "m-F16.gguf", tokenizer=tokenizer_model)


def test_a_gguf_needs_a_tokenizer_or_a_word(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(weightcast.CheckpointError, match="no_tokenizer=True"):
        weightcast.convert(tiny, tmp_path / "m-F16.gguf")


@needs_released_tokenizer
def test_the_tokenizer_of_the_release(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, tiny_spec(vocab_size=131072, emb_size=32, num_q_heads=8, key_size=4))
    path = tmp_path / "m-Q8_0.gguf"
    weightcast.convert(tmp_path, path, tokenizer=RELEASED_TOKENIZER)
    types = read_file(path).metadata["tokenizer.ggml.token_type"].tolist()
    assert {n: types.count(n) for n in set(types)} == {1: 130812, 2: 1, 3: 3, 6: 256}


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def test_config_json(golden: Golden, tmp_path: Path) -> None:
    weightcast.convert(golden.path, tmp_path / "m-bf16")
    config = read_json(tmp_path / "m-bf16" / "config.json")
    spec = open_graph(golden.path).spec
    assert config["architectures"] == ["Grok1ForCausalLM"]
    assert config["model_type"] == "mixtral"
    assert config["moe_intermediate_size"] == config["intermediate_size"] == spec.ffn_size
    assert config["rope_theta"] == 10000.0
    assert config["router_logit_softcapping"] == 0.0
    assert config["moe_router_renormalize"] is False
    assert config["load_presharded_moe"] is False
    assert config["tie_word_embeddings"] is True
    assert config["torch_dtype"] == "bfloat16"
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (1, 2, 0)
    # Each of these makes one of the runtimes compute something else.
    forbidden = {
        "attn_output_multiplier",
        "residual_moe",
        "final_logit_softcapping",
        "rope_type",
        "attn_temperature_len",
    }
    assert not forbidden & config.keys()
    reread = open_graph(tmp_path / "m-bf16").spec.describe()
    assert reread == pytest.approx(spec.describe(), rel=1e-12)


def test_tokenizer_files_of_a_directory(tiny: Path, tokenizer_model: Path, tmp_path: Path) -> None:
    weightcast.convert(tiny, tmp_path / "m-bf16", tokenizer=tokenizer_model)
    values = read_json(tmp_path / "m-bf16" / "tokenizer_config.json")
    assert values["add_bos_token"] is False
    assert (values["bos_token"], values["eos_token"]) == ("<s>", "</s>")
    assert values["tokenizer_class"] == "PreTrainedTokenizerFast"
    model = read_json(tmp_path / "m-bf16" / "tokenizer.json")["model"]
    # The rows without a piece have names too, so that every id can be decoded.
    assert len(model["vocab"]) == 1024
    # llama.cpp's converter changes the pieces that are listed under this key.
    assert "added_tokens_decoder" not in values
    assert read_json(tmp_path / "m-bf16" / "config.json")["unk_token_id"] == 3
    assert "unk_token_id" not in read_json(tmp_path / "m-bf16" / "generation_config.json")


def test_an_unusual_attention_scale_is_kept_and_said(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, tiny_spec(attn_output_multiplier=0.2))
    summary = weightcast.convert(tmp_path, tmp_path / "m-f32", no_tokenizer=True)
    config = read_json(tmp_path / "m-f32" / "config.json")
    assert config["attn_output_multiplier"] == 0.2
    assert open_graph(tmp_path / "m-f32").spec.attn_output_multiplier == 0.2
    assert any("vLLM and SGLang will be wrong" in n for n in summary.plan.outputs[0].notes)


@pytest.mark.parametrize(
    "key",
    sorted(row.config.name for row in HYPERPARAMETERS if row.config and not row.config.default),
)
@pytest.mark.parametrize("value", [None, "x", 0, -1, [1]])
def test_a_config_with_a_bad_value_is_refused(
    tiny: Path, tmp_path: Path, key: str, value: object
) -> None:
    weightcast.convert(tiny, tmp_path / "m-bf16", no_tokenizer=True)
    config = tmp_path / "m-bf16" / "config.json"
    others = next(
        row.config.others for row in HYPERPARAMETERS if row.config and row.config.name == key
    )
    values = {name: said for name, said in read_json(config).items() if name not in others}
    config.write_text(json.dumps({**values, key: value}))
    with pytest.raises(weightcast.CheckpointError, match=r"config\.json"):
        open_graph(tmp_path / "m-bf16")
