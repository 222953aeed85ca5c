"""Models with more, less or other than a network computes with are refused, by name."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import weightcast
from tests import gguf_files
from tests.adapters import float32
from tests.evaluation.dense_models import HIDDEN, KV_HEADS, VOCABULARY, WIDTH, write_dense
from tests.evaluation.running import EXAMPLE, draw_tokens, logits
from tests.gguf_files import array, floats, string, u32
from tests.support import MAX_LOGIT_ERROR, relative_error
from weightcast.commands import llama_cpp
from weightcast.converters.sources import open_graph
from weightcast.errors import CheckpointError, LayoutError, MissingTensorError
from weightcast.evaluation.networks import prepare

TOKENS = draw_tokens(2, 40, VOCABULARY)


def flag(value: bool) -> bytes:
    return b"\x07\x00\x00\x00" + bytes([value])


def refuse(path: Path, problem: str, kind: type[CheckpointError] = LayoutError) -> None:
    with pytest.raises(kind, match=f"^{re.escape(str(path))}: {problem}"):
        prepare(open_graph(path))


@pytest.mark.parametrize(
    ("architecture", "key", "value"),
    [
        ("llama", "logit_scale", float32(16.0)),
        ("llama", "embedding_scale", float32(12.0)),
        ("llama", "residual_scale", float32(0.22)),
        ("llama", "attention.scale", float32(0.015)),
        ("llama", "attn_logit_softcapping", float32(50.0)),
        ("llama", "nextn_predict_layers", u32(1)),
        ("llama", "attention.clamp_kqv", float32(8.0)),
        ("llama", "rope.scaling.attn_factor", float32(1.2)),
        ("llama", "anything.new", u32(3)),
        ("llama", "leading_dense_block_count", u32(1)),
        ("qwen2", "attention.causal", flag(False)),
        ("qwen2", "rope.dimension_sections", array(5, np.arange(4, dtype=np.int32).tobytes())),
        ("qwen3", "expert_weights_scale", float32(2.5)),
        ("gemma3", "final_logit_softcapping", float32(30.0)),
        ("gemma3", "attention.key_length_swa", u32(8)),
        ("qwen3", "attention.sliding_window_pattern", u32(4)),
    ],
)
def test_metadata_that_no_network_reads(
    tmp_path: Path, architecture: str, key: str, value: bytes
) -> None:
    more = {key.replace(".", "__"): value}
    path = write_dense(tmp_path / "model.gguf", architecture, **more)
    refuse(path, re.escape(f"{architecture}.{key} is "))


def test_values_that_change_nothing_are_no_reason(tmp_path: Path) -> None:
    more = {
        "logit_scale": float32(1.0),
        "residual_scale": float32(0.0),
        "expert_count": u32(0),
        "expert_used_count": u32(0),
        "attention__causal": flag(True),
        "final_logit_softcapping": float32(0.0),
        "rope__scaling__type": string("none"),
        "rope__scaling__original_context_length": u32(64),
    }
    path = write_dense(tmp_path / "model.gguf", "llama", **more)
    expected = logits(open_graph(write_dense(tmp_path / "plain.gguf", "llama")), TOKENS)
    assert np.array_equal(logits(open_graph(path), TOKENS), expected)


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("attention.head_count", u32(0), "llama.attention.head_count is 0, not a whole number"),
        ("attention.head_count_kv", u32(0), "llama.attention.head_count_kv is 0, not a whole"),
        ("attention.head_count_kv", u32(3), "4 heads cannot share 3 of keys and values"),
        ("block_count", float32(float("nan")), "llama.block_count is nan, not a whole number"),
        ("attention.layer_norm_rms_epsilon", float32(float("inf")), "llama.attention.layer_norm"),
        ("rope.dimension_count", u32(7), "7 rotary components of base 10000 in heads of 24"),
        ("rope.dimension_count", u32(48), "48 rotary components of base 10000 in heads of 24"),
        ("rope.freq_base", float32(0.0), "24 rotary components of base 0 in heads of 24"),
        ("rope.scaling.type", string("longrope"), "rotary positions scaled by 'longrope'"),
        ("attention.key_length", u32(12), "24 rotary components of base 10000 in heads of 12"),
        ("attention.value_length", u32(12), r"blk.0.attn_v.weight has the shape \[48, 64\]"),
        ("embedding_length", u32(32), r"blk.0.attn_norm.weight has the shape \[64\], and its"),
        ("attention.head_count", array(4, np.full(2, 4, np.uint32).tobytes()), "llama.attention"),
    ],
)
def test_metadata_that_do_not_fit(tmp_path: Path, key: str, value: bytes, problem: str) -> None:
    more = {key.replace(".", "__"): value}
    refuse(write_dense(tmp_path / "model.gguf", "llama", **more), problem)


def test_more_layers_than_tensors(tmp_path: Path) -> None:
    path = write_dense(tmp_path / "model.gguf", "llama", block_count=u32((1 << 31) - 1))
    refuse(path, "21 tensors for 2,147,483,647 layers", MissingTensorError)


def vector(n: int) -> gguf_files.Part:
    return floats(np.ones(n, np.float32))


@pytest.mark.parametrize(
    ("architecture", "name", "part"),
    [
        ("qwen2", "blk.0.attn_output.bias", vector(WIDTH)),
        ("llama", "blk.1.ffn_up.bias", vector(HIDDEN)),
        ("llama", "blk.1.ffn_down.bias", vector(WIDTH)),
        ("llama", "blk.0.attn_q_norm.weight", vector(24)),
        ("llama", "blk.0.post_ffw_norm.weight", vector(WIDTH)),
        ("llama", "blk.0.ffn_gate_inp.weight", floats(np.ones((4, WIDTH), np.float32))),
        ("llama", "blk.0.attn_qkv.weight", floats(np.ones((192, WIDTH), np.float32))),
        ("llama", "blk.2.attn_norm.weight", vector(WIDTH)),
        ("llama", "rope_factors_long.weight", vector(12)),
        ("qwen2", "output.bias", vector(VOCABULARY)),
        ("qwen3", "cls.output.weight", floats(np.ones((2, WIDTH), np.float32))),
        ("qwen3", "rope_freqs.weight", vector(12)),
        ("gemma3", "dense_2.weight", floats(np.ones((8, WIDTH), np.float32))),
        ("llama", "a\nb", vector(3)),
    ],
)
def test_tensors_that_no_network_uses(
    tmp_path: Path, architecture: str, name: str, part: gguf_files.Part
) -> None:
    path = write_dense(tmp_path / "model.gguf", architecture, tensors={name: part})
    shown = re.escape(ascii(name))
    refuse(path, f"has {shown}, with which the architecture {architecture} cannot be run$")


@pytest.mark.parametrize(
    "name",
    [
        "output_norm.weight",
        "blk.1.attn_norm.weight",
        "blk.0.attn_k_norm.weight",
        "blk.1.ffn_up.weight",
    ],
)
def test_tensors_that_are_missing(tmp_path: Path, name: str) -> None:
    path = write_dense(tmp_path / "model.gguf", "qwen3", tensors={name: None})
    refuse(path, f"tensor {name} is missing", MissingTensorError)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("blk.0.ffn_up.weight", (HIDDEN + 32, WIDTH)),
        ("blk.0.ffn_down.weight", (WIDTH, HIDDEN - 32)),
        ("output.weight", (VOCABULARY - 1, WIDTH)),
        ("blk.0.attn_q.bias", (24,)),
        ("rope_freqs.weight", (24,)),
    ],
)
def test_shapes_that_do_not_fit(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    part = floats(np.ones(shape, np.float32))
    path = write_dense(tmp_path / "model.gguf", "llama", tensors={name: part})
    refuse(path, re.escape(f"{name} has the shape {list(shape)}, and its metadata say "))


def test_a_bias_behind_attention_is_llamas_alone(tmp_path: Path) -> None:
    bias = np.linspace(-1, 1, WIDTH, dtype=np.float32)
    tensors = {"blk.0.attn_output.bias": floats(bias)}
    path = write_dense(tmp_path / "model.gguf", "llama", tensors=tensors)
    expected = llama_cpp.logits(path, TOKENS.tolist())
    assert relative_error(logits(open_graph(path), TOKENS), expected) < MAX_LOGIT_ERROR


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_a_head_of_its_own(tmp_path: Path, architecture: str) -> None:
    rng = np.random.default_rng(9)
    head = (rng.standard_normal((VOCABULARY, WIDTH)) / 8).astype(np.float32)
    biases = {f"blk.0.attn_{role}.bias": n for role, n in (("q", 96), ("k", 48), ("v", 48))}
    tensors = {"output.weight": floats(head)}
    if architecture == "qwen3":  # llama.cpp's has them too
        tensors |= {
            name: floats(rng.standard_normal(n).astype(np.float32)) for name, n in biases.items()
        }
    path = write_dense(tmp_path / "model.gguf", architecture, tensors=tensors)
    expected = llama_cpp.logits(path, TOKENS.tolist())
    assert relative_error(logits(open_graph(path), TOKENS), expected) < MAX_LOGIT_ERROR


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope__scaling__factor": float32(4.0)},
        {"rope__scale_linear": float32(3.0)},
        {"rope__scaling__type": string("none"), "rope__scaling__factor": float32(4.0)},
        {"rope__scaling__type": string("linear"), "rope__scaling__factor": float32(0.0)},
    ],
)
@pytest.mark.parametrize("has_factors", [False, True])
def test_scales_of_positions_are_read_as_llama_cpp_reads_them(
    tmp_path: Path, scaling: dict[str, bytes], has_factors: bool
) -> None:
    factors = floats(np.linspace(1, 8, 12, dtype=np.float32))
    tensors = {"rope_freqs.weight": factors} if has_factors else {}
    path = write_dense(tmp_path / "model.gguf", "llama", tensors=tensors, **scaling)
    expected = llama_cpp.logits(path, TOKENS.tolist())
    assert relative_error(logits(open_graph(path), TOKENS), expected) < MAX_LOGIT_ERROR


GELU = 1e-3


@pytest.mark.parametrize(
    "windows",
    [
        {},
        {"attention__sliding_window": u32(8), "attention__sliding_window_pattern": u32(2)},
        {"attention__sliding_window": u32(8), "attention__sliding_window_pattern": u32(0)},
        {
            "attention__sliding_window": u32(8),
            "attention__sliding_window_pattern": array(7, bytes([0, 1, 1])),
        },
        {"attention__sliding_window": u32(8), "rope__freq_base_swa": float32(500.0)},
        {"rope__scaling__type": string("linear"), "rope__scaling__factor": float32(8.0)},
        {
            "attention__sliding_window": u32(8),
            "attention__sliding_window_pattern": u32(2),
            "rope__scaling__type": string("linear"),
            "rope__scaling__factor": float32(8.0),
        },
    ],
)
def test_windows_of_gemma3_are_those_of_llama_cpp(
    tmp_path: Path, windows: dict[str, bytes]
) -> None:
    more = {"rope__freq_base": float32(1e6), **windows}
    path = write_dense(tmp_path / "model.gguf", "gemma3", 3, **more)
    expected = llama_cpp.logits(path, TOKENS.tolist())
    assert relative_error(logits(open_graph(path), TOKENS), expected) < GELU


def test_gemma3_27b_scales_scores_by_its_embedding(tmp_path: Path) -> None:
    """62 layers tell it; heads of 24 are not the 16 that the embedding is wide for each."""
    path = write_dense(tmp_path / "model.gguf", "gemma3", 62, attention__sliding_window=u32(8))
    tokens = TOKENS[:1, :20]
    expected = llama_cpp.logits(path, tokens.tolist())
    assert relative_error(logits(open_graph(path), tokens), expected) < 10 * GELU


def test_flags_of_windows_are_as_many_as_layers(tmp_path: Path) -> None:
    more = {
        "attention__sliding_window": u32(8),
        "attention__sliding_window_pattern": array(7, bytes([0, 1])),
    }
    path = write_dense(tmp_path / "model.gguf", "gemma3", 3, **more)
    refuse(path, "2 flags of sliding windows for 3 layers")


def test_a_window_that_llama_cpp_does_not_apply_bounds_the_context(tmp_path: Path) -> None:
    path = write_dense(tmp_path / "model.gguf", "llama", attention__sliding_window=u32(39))
    with pytest.raises(LayoutError, match="was trained with a window of 39 tokens, which llama"):
        logits(open_graph(path), TOKENS)
    plain = logits(open_graph(write_dense(tmp_path / "plain.gguf", "llama")), TOKENS[:, :39])
    assert np.array_equal(logits(open_graph(path), TOKENS[:, :39]), plain)


def test_grouped_heads_share_keys_in_runs(tmp_path: Path) -> None:
    assert KV_HEADS == 2
    more = {"attention__value_length": u32(24)}
    path = write_dense(tmp_path / "model.gguf", "qwen3", **more)
    expected = llama_cpp.logits(path, TOKENS.tolist())
    assert relative_error(logits(open_graph(path), TOKENS), expected) < MAX_LOGIT_ERROR


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("grok.final_logit_softcapping", float32(50.0)),
        ("grok.rope.scaling.type", string("yarn")),
        ("grok.attention.temperature_length", u32(1024)),
        ("grok.rope.dimension_count", u32(8)),
    ],
)
def test_metadata_that_grok1_has_not(tmp_path: Path, key: str, value: bytes) -> None:
    made = tmp_path / "grok-F32.gguf"
    weightcast.convert(EXAMPLE, made, types="F32")
    prepare(open_graph(made))
    file = gguf_files.read(made)
    path = gguf_files.write(tmp_path / "other.gguf", {**file.metadata, key: value}, file.tensors)
    refuse(path, re.escape(f"{key} is "))


def test_adapters_are_no_models(tmp_path: Path) -> None:
    metadata = {"general.type": string("adapter"), "general.architecture": string("llama")}
    factors = {f"blk.0.attn_q.weight.lora_{n}": vector(8) for n in "ab"}
    path = gguf_files.write(tmp_path / "adapter.gguf", metadata, factors)
    refuse(path, "an adapter, not a model; name the model it is for")


def test_states_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    huge = floats(np.full((KV_HEADS * 24, WIDTH), 3e38, np.float32))
    tensors = {"blk.1.attn_v.weight": huge}
    path = write_dense(tmp_path / "model.gguf", "llama", tensors=tensors)
    with pytest.raises(LayoutError, match=f"^{path}: layer 1 gives NaN or infinity: weights in it"):
        logits(open_graph(path), TOKENS)
