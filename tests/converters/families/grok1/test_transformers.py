"""Directories run in transformers: the code beside the weights computes what the reference does."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

# Read when transformers is imported: no network, and the cache for remote code is not the user's.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="weightcast-modules-")

import numpy as np
import pytest
import torch
from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    CompressedTensorsConfig,
    StaticCache,
)

import weightcast
from tests.support import MAX_LOGIT_ERROR, NAMES, Golden, relative_error
from weightcast.converters.families.grok1 import forward
from weightcast.converters.families.grok1.synthetic import tiny_spec, write_checkpoint
from weightcast.converters.sources import open_graph

TYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
PROMPT, NEW = 8, 8


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every golden checkpoint in every float type: deep-f32, wide-bf16 and so on."""
    folder = tmp_path_factory.mktemp("directories")
    for name in NAMES:
        outputs = [folder / f"{name}-{type_name}" for type_name in TYPES]
        weightcast.convert(Golden(name).path, *outputs, no_tokenizer=True)
    return folder


def load(path: Path, dtype: torch.dtype | str = torch.float32, **options: Any) -> Any:
    """Load a model, and insist that its tensors and the files' are the same ones."""
    model, found = AutoModelForCausalLM.from_pretrained(
        path, trust_remote_code=True, dtype=dtype, output_loading_info=True, **options
    )
    assert not any(found.values()), found
    return model


def logits(model: Any, tokens: NDArray[np.integer], **given: Any) -> NDArray[np.float32]:
    with torch.no_grad():
        return model(torch.tensor(tokens), **given).logits.float().numpy()


def assert_greedy(path: Path, prompts: NDArray[np.integer], found: NDArray[np.integer]) -> None:
    """Compare with the tokens that the numpy forward chooses.

    One forward over all of them: each is the choice behind those before it.
    """
    length = prompts.shape[1]
    np.testing.assert_array_equal(found[:, :length], prompts)
    assert found.shape == (len(prompts), length + NEW)
    chosen = forward.logits(open_graph(path), found)[:, length - 1 : -1].argmax(-1)
    np.testing.assert_array_equal(found[:, length:], chosen)


def generate(model: Any, prompts: NDArray[np.integer], **options: Any) -> NDArray[np.integer]:
    # No end token: an end would pad the rest of a row.
    model.generation_config.eos_token_id = None
    given = {"attention_mask": torch.ones(prompts.shape, dtype=torch.long), **options}
    return model.generate(
        torch.tensor(prompts), max_new_tokens=NEW, do_sample=False, **given
    ).numpy()


def test_float32_logits_are_the_reference_s(golden: Golden, directories: Path) -> None:
    model = load(directories / f"{golden.name}-f32")
    assert relative_error(logits(model, golden.tokens), golden.logits) < MAX_LOGIT_ERROR


@pytest.mark.parametrize("type_name", ["bf16", "f16"])
def test_half_directories_equal_numpy_on_their_weights(
    golden: Golden, directories: Path, type_name: str
) -> None:
    path = directories / f"{golden.name}-{type_name}"
    expected = forward.logits(open_graph(path), golden.tokens)
    assert relative_error(logits(load(path), golden.tokens), expected) < MAX_LOGIT_ERROR


@pytest.mark.parametrize("type_name", TYPES)
def test_a_directory_s_own_dtype(directories: Path, type_name: str) -> None:
    """Matrices are loaded as stored, norms and routers in float32; logits are near float32's."""
    golden = Golden("wide")
    model = load(directories / f"wide-{type_name}", "auto")
    for name, parameter in model.named_parameters():
        stays = "norm" in name or ".gate." in name
        assert parameter.dtype == (torch.float32 if stays else TYPES[type_name]), name
    assert relative_error(logits(model, golden.tokens), golden.logits) < 0.02


@pytest.mark.parametrize("mistake", ["clamp", "erf", "scale"])
def test_mistakes_would_be_noticed(
    directories: Path, monkeypatch: pytest.MonkeyPatch, mistake: str
) -> None:
    """Scores that are clamped instead of capped by tanh, GELU's erf form, another scale."""
    golden = Golden("wide")
    model = load(directories / "wide-f32")
    if mistake == "clamp":
        monkeypatch.setattr(torch, "tanh", lambda x: x.clamp(-1, 1))
    elif mistake == "erf":
        gelu = torch.nn.functional.gelu
        monkeypatch.setattr(torch.nn.functional, "gelu", lambda x, approximate: gelu(x))
    else:
        for layer in model.model.layers:
            layer.self_attn.scale *= 1.01
    assert relative_error(logits(model, golden.tokens), golden.logits) > 10 * MAX_LOGIT_ERROR


@pytest.mark.parametrize("use_cache", [True, False])
def test_generated_tokens_are_numpy_s(golden: Golden, directories: Path, use_cache: bool) -> None:
    path = directories / f"{golden.name}-f32"
    prompts = golden.tokens[:, :PROMPT]
    found = generate(load(path), prompts, use_cache=use_cache)
    assert_greedy(path, prompts, found)


@pytest.mark.parametrize("use_cache", [True, False])
def test_left_padding_changes_no_token(golden: Golden, directories: Path, use_cache: bool) -> None:
    path = directories / f"{golden.name}-f32"
    lengths = [PROMPT, 3, 5, 1]
    prompts = np.zeros((4, PROMPT), np.int64)
    mask = torch.zeros(4, PROMPT, dtype=torch.long)
    for row, length in enumerate(lengths):
        prompts[row, PROMPT - length :] = golden.tokens[row, :length]
        mask[row, PROMPT - length :] = 1
    found = generate(load(path), prompts, attention_mask=mask, use_cache=use_cache)
    for row, length in enumerate(lengths):
        prompt = golden.tokens[row : row + 1, :length]
        assert_greedy(path, prompt, found[row : row + 1, PROMPT - length :])


def test_right_padding_and_a_mask_without_positions(directories: Path) -> None:
    golden = Golden("wide")
    model = load(directories / "wide-f32")
    mask = torch.ones(4, 32, dtype=torch.long)
    mask[:, 20:] = 0
    right = logits(model, golden.tokens, attention_mask=mask)[:, :20]
    assert relative_error(right, golden.logits[:, :20]) < MAX_LOGIT_ERROR
    padded = np.concatenate([np.zeros((4, 5), np.int64), golden.tokens], axis=1)
    mask = torch.tensor(np.arange(37)[None] >= 5).long().expand(4, -1)
    left = logits(model, padded, attention_mask=mask)[:, 5:]
    assert relative_error(left, golden.logits) < MAX_LOGIT_ERROR


@pytest.mark.parametrize("at_once", [1, 7, 512])
def test_pieces_and_caches_give_the_same_logits(
    directories: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    """However many queries are attended at a time, and whichever cache keeps the keys."""
    golden = Golden("wide")
    model = load(directories / "wide-f32")
    monkeypatch.setitem(type(model).forward.__globals__, "QUERIES_AT_ONCE", at_once)
    for cache in (None, StaticCache(config=model.config, max_cache_len=48)):
        parts = []
        for start, end in ((0, 20), (20, 21), (21, 32)):
            with torch.no_grad():
                result = model(torch.tensor(golden.tokens[:, start:end]), past_key_values=cache)
            cache = result.past_key_values
            parts.append(result.logits.numpy())
        assert relative_error(np.concatenate(parts, 1), golden.logits) < MAX_LOGIT_ERROR


def test_what_a_forward_can_return(directories: Path) -> None:
    golden = Golden("wide")
    model = load(directories / "wide-f32")
    tokens = torch.tensor(golden.tokens).long()
    with torch.no_grad():
        result = model(
            tokens,
            labels=tokens,
            logits_to_keep=0,
            output_hidden_states=True,
            output_attentions=True,
        )
        last = model(tokens, logits_to_keep=1).logits
        embedded = model(inputs_embeds=model.model.embed_tokens(tokens)).logits
    assert len(result.hidden_states) == 3
    assert [w.shape for w in result.attentions] == [(4, 16, 32, 32)] * 2
    assert all(torch.allclose(w.sum(-1), torch.ones(())) for w in result.attentions)
    torch.testing.assert_close(last, result.logits[:, -1:], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(embedded, result.logits, rtol=1e-5, atol=1e-5)
    expected = torch.tensor(golden.logits)[:, :-1].flatten(0, 1)
    loss = torch.nn.functional.cross_entropy(expected, tokens[:, 1:].flatten())
    torch.testing.assert_close(result.loss, loss, rtol=1e-5, atol=1e-5)


def test_gradients_reach_every_parameter(directories: Path) -> None:
    """Through gradient checkpoints too: the same gradients."""
    golden = Golden("wide")
    tokens = torch.tensor(golden.tokens).long()
    found = []
    for checkpointing in (False, True):
        model = load(directories / "wide-f32").train()
        if checkpointing:
            model.activation_checkpointing_enable()
        model(tokens, labels=tokens, use_cache=False).loss.backward()
        found.append({name: p.grad for name, p in model.named_parameters()})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(found[1][name], gradient)


def test_saved_and_loaded_again(directories: Path, tmp_path: Path) -> None:
    """What save_pretrained writes is complete, and still what the other runtimes read."""
    golden = Golden("wide")
    model = load(directories / "wide-bf16", "auto")
    model.save_pretrained(tmp_path / "saved")
    again = load(tmp_path / "saved", "auto")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    np.testing.assert_array_equal(logits(again, golden.tokens), logits(model, golden.tokens))
    written = json.loads((directories / "wide-bf16" / "config.json").read_text())
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    for key in written.keys() - {"torch_dtype", "auto_map"}:
        assert saved.get(key) == written[key], key
    assert saved["auto_map"].keys() <= written["auto_map"].keys()
    assert saved["auto_map"].items() <= written["auto_map"].items()
    assert "attn_output_multiplier" not in saved
    # Our own reader takes it for the same model.
    found = forward.logits(open_graph(tmp_path / "saved"), golden.tokens)
    expected = forward.logits(open_graph(directories / "wide-bf16"), golden.tokens)
    np.testing.assert_array_equal(found, expected)


def test_a_head_that_is_stored_once(directories: Path, tmp_path: Path) -> None:
    """SGLang needs lm_head.weight; transformers does with and without it."""
    golden = Golden("wide")
    for path in (directories / "wide-f32").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    assert torch.equal(tensors.pop("lm_head.weight"), tensors["model.embed_tokens.weight"])
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    for path in (tmp_path, directories / "wide-f32"):
        model = load(path)
        assert model.lm_head.weight is model.model.embed_tokens.weight
        assert relative_error(logits(model, golden.tokens), golden.logits) < MAX_LOGIT_ERROR


def test_an_unusual_attention_scale(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, tiny_spec(attn_output_multiplier=0.2), seed=5)
    weightcast.convert(tmp_path, tmp_path / "m-f32", no_tokenizer=True)
    tokens = np.random.default_rng(0).integers(0, 1024, (2, 16))
    model = load(tmp_path / "m-f32")
    assert model.config.attention_scale == 0.2
    expected = forward.logits(open_graph(tmp_path / "m-f32"), tokens)
    assert relative_error(logits(model, tokens), expected) < MAX_LOGIT_ERROR


def test_auto_classes(directories: Path, tokenizer_model: Path, tmp_path: Path) -> None:
    path = directories / "wide-f32"
    trusted = AutoConfig.from_pretrained(path, trust_remote_code=True)
    assert type(trusted).__name__ == "Grok1Config"
    assert (trusted.attention_scale, trusted.rope_theta) == (0.25, 10000.0)
    assert trusted.to_dict()["model_type"] == "mixtral"
    # Runtimes that bring their own model see the same values as before.
    for options in ({}, {"trust_remote_code": False}):
        config = AutoConfig.from_pretrained(path, **options)
        assert type(config).__name__ == "MixtralConfig"
        assert config.architectures == ["Grok1ForCausalLM"]
    base = AutoModel.from_pretrained(path, trust_remote_code=True)
    assert type(base).__name__ == "Grok1Model"
    write_checkpoint(tmp_path, tiny_spec(), seed=3)
    weightcast.convert(tmp_path, tmp_path / "m-bf16", tokenizer=tokenizer_model)
    text = "balim dofus <|sep|>\n \u65e5"
    ids = [
        AutoTokenizer.from_pretrained(tmp_path / "m-bf16", trust_remote_code=trust)(text).input_ids
        for trust in (False, True)
    ]
    assert ids[0] == ids[1]
    assert len(ids[0]) > 3


@pytest.mark.parametrize(
    "wrong",
    [
        {"router_logit_softcapping": 30.0},
        {"moe_router_renormalize": True},
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    ],
)
def test_settings_that_the_model_does_not_compute_are_refused(
    directories: Path, wrong: dict[str, Any]
) -> None:
    config = type(AutoConfig.from_pretrained(directories / "wide-f32", trust_remote_code=True))
    with pytest.raises(ValueError, match="Grok-1's"):
        config(**wrong)


def compress(source: Path, target: Path, plain: Path, weights: QuantizationArgs) -> None:
    """Quantize a directory with compressed-tensors itself; `plain` gets its values as floats."""
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    packed, values = {}, {}
    for name, tensor in load_file(source / "model.safetensors").items():
        module = name.removesuffix(".weight")
        packed[name] = values[name] = tensor
        if ".experts." not in name and "_proj" not in name:
            continue
        groups = tensor.unflatten(-1, (-1, weights.group_size))
        scale = groups.abs().amax(-1) / (2 ** (weights.num_bits - 1) - 1)
        made = PackedQuantizationCompressor.compress(
            {"weight": packed.pop(name), "weight_scale": scale}, scheme
        )
        packed.update({f"{module}.{part}": t.contiguous() for part, t in made.items()})
        values[name] = PackedQuantizationCompressor.decompress(made, scheme)["weight"].contiguous()
    config = json.loads((source / "config.json").read_text())
    for folder, tensors in ((target, packed), (plain, values)):
        folder.mkdir()
        for path in source.glob("*.[jp]*"):
            (folder / path.name).write_bytes(path.read_bytes())
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": scheme.model_dump(mode="json", exclude_none=True)},
        "ignore": ["lm_head", "re:.*gate$"],
    }
    (target / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(("name", "group"), [("wide", 128), ("deep", 32)])
@pytest.mark.parametrize("bits", [8, 4])
def test_compressed_tensors(
    directories: Path, tmp_path: Path, name: str, group: int, bits: int
) -> None:
    golden = Golden(name)
    weights = QuantizationArgs(
        num_bits=bits, type="int", symmetric=True, strategy="group", group_size=group
    )
    compress(directories / f"{name}-f32", tmp_path / "packed", tmp_path / "plain", weights)
    expected = logits(load(tmp_path / "plain"), golden.tokens)
    of_numpy = forward.logits(open_graph(tmp_path / "plain"), golden.tokens)
    assert relative_error(expected, of_numpy) < MAX_LOGIT_ERROR
    model = load(tmp_path / "packed")
    quantized = {n for n, m in model.named_modules() if hasattr(m, "quantization_scheme")}
    layers = model.config.num_hidden_layers
    assert len(quantized) == layers * (4 + 8 * 3)
    assert not [n for n in quantized if "gate" in n or "lm_head" in n]
    assert relative_error(logits(model, golden.tokens), expected) < MAX_LOGIT_ERROR
    plain = load_file(tmp_path / "plain" / "model.safetensors")
    for module in quantized:  # decompressed by the first forward
        assert torch.equal(model.get_submodule(module).weight, plain[f"{module}.weight"]), module


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`:UserWarning")
@pytest.mark.parametrize("kind", ["int8-g32", "int4-g32", "int4-g32-asym"])
def test_packed_directories(golden: Golden, tmp_path: Path, kind: str) -> None:
    """What weightcast packs has the weights that it reads there itself."""
    # compressed-tensors 0.20 makes no room for packed zero points, unless it unpacks on loading,
    # which rounds to the scales' bfloat16.
    is_asymmetric = kind.endswith("asym")
    path = tmp_path / f"m-{kind}"
    plain = tmp_path / ("plain-bf16" if is_asymmetric else "plain-f32")
    # Scales of `deep` cover 16 values in places, so that int8 cannot be carried everywhere.
    weightcast.convert(golden.path, path, no_tokenizer=True, allow_requantize=True)
    weightcast.convert(path, plain, no_tokenizer=True)
    unpack = {"quantization_config": CompressedTensorsConfig(dequantize=True)}
    model = load(path, **(unpack if is_asymmetric else {}))
    of_numpy = forward.logits(open_graph(plain), golden.tokens)
    assert relative_error(logits(model, golden.tokens), of_numpy) < MAX_LOGIT_ERROR
    values = load_file(plain / "model.safetensors")
    packed = [n for n, _ in model.named_modules() if n.endswith(("_proj", "w1", "w2", "w3"))]
    assert len(packed) == model.config.num_hidden_layers * (4 + 8 * 3)
    for module in packed:
        weight = model.get_submodule(module).weight
        assert torch.equal(weight.float(), values[f"{module}.weight"].float()), module


RULES = {
    "int4-g32": ["attn_=int8-g32"],
    "int8-g32": [r"blk\.1\.attn_=int4-g64", r"experts\.[2-4]\.w1=bf16", r"blk\.1\..*down=int8-g32"],
    "bf16": ["attn_[qkv]=int8-g32", r"experts\.7\.=int4-g32", r"layers\.0\..*w3=int4-channel"],
    "mxfp4": ["attn_=int4-g32", "attn_v=f16", "ffn_up=int8-channel"],
}


@pytest.mark.parametrize("kind", RULES)
def test_rules_for_single_tensors(
    golden: Golden, tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Each module of a mixed directory is built with its own type, and gives the same logits."""
    path, plain = tmp_path / f"m-{kind}", tmp_path / "plain-f32"
    options = {"no_tokenizer": True, "allow_requantize": True}
    weightcast.convert(golden.path, path, tensor_types=RULES[kind], **options)
    weightcast.convert(path, plain, no_tokenizer=True)
    # compressed-tensors makes bfloat16 of MXFP4, whatever the model's dtype is.
    dtype = torch.bfloat16 if kind == "mxfp4" else torch.float32
    model = load(path, dtype)
    found = logits(model, golden.tokens)
    if dtype == torch.float32:
        expected = forward.logits(open_graph(plain), golden.tokens)
        assert relative_error(found, expected) < MAX_LOGIT_ERROR
    assert not caplog.records  # such as patterns that match nothing
    stored = load_file(path / "model.safetensors")
    values = load_file(plain / "model.safetensors")
    for name, module in model.named_modules():
        if name.endswith(("_proj", "w1", "w2", "w3")):
            assert hasattr(module, "quantization_scheme") == (f"{name}.weight" not in stored), name
            assert torch.equal(module.weight, values[f"{name}.weight"].to(dtype)), name
