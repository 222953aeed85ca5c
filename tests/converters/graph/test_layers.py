"""Names taken apart at their layer."""

from __future__ import annotations

import pytest

from weightcast.converters.graph.layers import LayerName, any_expert, find_layer, llama_cpp_order


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
def test_layers(name: str, layer: LayerName | None) -> None:
    assert find_layer(name) == layer


def test_any_expert() -> None:
    wanted = "model.layers.0.block_sparse_moe.experts.*.w1.weight"
    assert any_expert(wanted.replace("*", "12")) == wanted
    assert any_expert("blk.0.ffn_down_exps.weight") == "blk.0.ffn_down_exps.weight"


def test_the_order_of_llama_cpp() -> None:
    """Tensors outside the layers come first; names are compared as bytes, layers as numbers."""
    ordered = [
        *("V", "a", "blk.x", "enc.blk.0.a", "v.blk.0.a", "\u00e9", "\U0001f600", "\udcff"),
        *("blk.0.z", "blk.2.a", "blk.2.a.b", "blk.2.b", "blk.10.a", "blk.1234567890.a"),
    ]
    assert sorted(reversed(ordered), key=llama_cpp_order) == ordered
