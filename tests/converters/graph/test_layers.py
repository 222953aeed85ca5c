"""Names taken apart at their layer."""

from __future__ import annotations

import pytest

from weightcast.converters.graph.layers import LayerName, any_expert, find_layer


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("blk.0.attn_q.weight", LayerName("", 0, "attn_q.weight")),
        ("blk.63.ffn_down_exps.weight", LayerName("", 63, "ffn_down_exps.weight")),
        ("v.blk.3.attn_q.weight", LayerName("v.", 3, "attn_q.weight")),
        ("v.sam.blk.3.mlp.weight", LayerName("v.sam.", 3, "mlp.weight")),
        ("token_embd.weight", None),
        ("ablk.3.attn_q.weight", None),
        ("blk.x.attn_q.weight", None),
        ("blk.1234567890.attn_q.weight", None),
        ("model.layers.3.self_attn.q_proj.weight", None),
    ],
)
def test_gguf_names(name: str, layer: LayerName | None) -> None:
    assert find_layer(name, "gguf") == layer


def test_conventions_are_asked_in_turn() -> None:
    of_jax, of_hub = "transformer/decoder_layer_7/router/w", "model.layers.7.mlp.gate.weight"
    assert find_layer(of_jax, "gguf", "jax") == LayerName("", 7, "router/w")
    assert find_layer(of_hub, "hugging_face") == LayerName("", 7, "mlp.gate.weight")
    assert find_layer(of_hub, "gguf", "jax") is find_layer(of_jax, "hugging_face") is None
    assert find_layer("blk.1.x") is None


def test_any_expert() -> None:
    wanted = "model.layers.0.block_sparse_moe.experts.*.w1.weight"
    assert any_expert(wanted.replace("*", "12")) == wanted
    assert any_expert(wanted.replace("*", "None")) == wanted
    assert any_expert("blk.0.ffn_down_exps.weight") == "blk.0.ffn_down_exps.weight"
