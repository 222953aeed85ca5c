"""Sensitivities beside changes of the states that are computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

import weightcast
from tests.evaluation.running import EXAMPLE, draw_tokens, machine, network_of
from weightcast.converters.sources import open_graph
from weightcast.errors import LayoutError
from weightcast.evaluation.networks import network, run_layer
from weightcast.evaluation.scoring import score
from weightcast.evaluation.sensitivity import Sensitivity, local_effect
from weightcast.evaluation.weights import Rounding, Weights
from weightcast.quant.search import Search
from weightcast.quant.types import TYPES

GRAPH = open_graph(EXAMPLE)
TOKENS = draw_tokens(2, 40, GRAPH.spec.vocab_size)


def types(*names: str) -> list:
    return [TYPES[name] for name in names]


def test_effects_are_those_of_a_model_with_one_tensor_in_another_type() -> None:
    with machine() as run_by:
        measuring = Sensitivity(
            Weights(GRAPH), run_by, TOKENS, types("Q4_0", "Q8_0"), {}, probe=TYPES["Q4_0"]
        )
        found = measuring.measure()
        source = network_of(GRAPH, run_by)
        names = [
            name for n in range(source.num_layers) for p in source.parts(n) for name in p.matrices
        ]
        assert list(found) == ["token_embd.weight", *names]
        for name in ("blk.1.attn_k.weight", "blk.0.ffn_down_exps.weight"):
            values = weightcast.open(EXAMPLE)[name].numpy()
            blocks = weightcast.quantize(values, "Q4_0")
            expected = weightcast.dequantize(blocks, "Q4_0")
            weights = Weights(GRAPH, {name: Rounding(TYPES["Q4_0"])})
            assert np.array_equal(weights.whole(name), expected)
            one = network(weights, run_by)
            states, other = source.embed(TOKENS.reshape(-1)), source.embed(TOKENS.reshape(-1))
            layer = int(name.split(".")[1])
            for number in range(source.num_layers):
                run_layer(source, number, states, TOKENS.shape[1])
                run_layer(one, number, other, TOKENS.shape[1])
                if number == layer:
                    difference = np.square(other.astype(float) - states).sum(axis=1)
                    local = (difference / np.square(states.astype(float)).sum(axis=1)).mean()
            assert found[name].local["Q4_0"] == pytest.approx(local, rel=1e-6)
            scores = score((source, one), (states, other), TOKENS, run_by.pool)
            assert found[name].probe["Q4_0"] == pytest.approx(
                scores.records[0].kld.mean(), rel=1e-4
            )
            assert 0 <= found[name].local["Q8_0"] < found[name].local["Q4_0"]
            assert set(found[name].probe) == {"Q4_0"}


def test_embedding_and_head_are_layers_too() -> None:
    """Here they are one: what it costs as both adds up, and a probe changes both."""
    name = "token_embd.weight"
    with machine() as run_by:
        measuring = Sensitivity(
            Weights(GRAPH), run_by, TOKENS, types("Q4_0"), {}, probe=TYPES["Q4_0"]
        )
        found = measuring.measure()[name]
        source = network_of(GRAPH, run_by)
        one = network(Weights(GRAPH, {name: Rounding(TYPES["Q4_0"])}), run_by)
        states, other = (each.embed(TOKENS.reshape(-1)) for each in (source, one))
        embedded = local_effect(states, other)
        for number in range(source.num_layers):
            for own in (states, other):
                run_layer(source, number, own, TOKENS.shape[1])
        rows = states[20:39]  # the second half of the first sequence, but for its last position
        own, changed = (each.logits(rows, [slice(0, 19)]).astype(float) for each in (source, one))
        own, changed = (x - x.mean(axis=1, keepdims=True) for x in (own, changed))
        shares = np.square(changed - own).sum(axis=1) / np.square(own).sum(axis=1)
        assert found.local["Q4_0"] == pytest.approx(embedded + shares.mean(), rel=1e-4)
        scores = score((source, one), (states, other), TOKENS, run_by.pool)
    assert found.probe["Q4_0"] == pytest.approx(scores.records[0].kld.mean(), rel=1e-4)


def test_types_that_a_tensor_cannot_have_are_left_out() -> None:
    with machine() as run_by:
        measuring = Sensitivity(
            Weights(GRAPH), run_by, TOKENS[:, :8], types("IQ2_XXS", "Q4_K", "Q4_0"), {}
        )
        found = measuring.measure()
    for name, effects in found.items():
        n_in = GRAPH[name].shape[-1]
        assert set(effects.local) == {"Q4_0", *(["Q4_K"] if n_in % 256 == 0 else [])}


def test_importance_and_search_change_what_is_measured() -> None:
    name = "blk.0.ffn_gate_exps.weight"
    n_experts, _, n_in = GRAPH[name].shape
    importance = {name: np.random.default_rng(2).random((n_experts, n_in), np.float32) ** 4}

    def measured(given: dict, search: Search) -> float:
        with machine() as run_by:
            measuring = Sensitivity(
                Weights(GRAPH), run_by, TOKENS[:, :8], types("Q4_0"), given, search
            )
            return measuring.measure()[name].local["Q4_0"]

    plain = measured({}, Search())
    assert measured(importance, Search()) != plain
    assert measured({}, Search(1)) != plain
    values = weightcast.open(EXAMPLE)[name].numpy()
    expected = [
        weightcast.dequantize(weightcast.quantize(matrix, "Q4_0", row, "least-error", 1), "Q4_0")
        for matrix, row in zip(values, importance[name], strict=True)
    ]
    rounding = Rounding(TYPES["Q4_0"], importance[name], Search(1))
    assert np.array_equal(Weights(GRAPH, {name: rounding}).whole(name), np.stack(expected))


def test_local_effects_are_means_over_tokens() -> None:
    expected = np.array([[3, 4], [0, 5], [0, 0]], np.float32)
    changed = np.array([[3, 5], [0, 5], [1, 0]], np.float32)
    # Of states without any size nothing can be said but how far they moved.
    assert local_effect(expected, changed) == pytest.approx((1 / 25 + 0 + 1) / 3)


def test_values_that_a_type_cannot_hold_are_named() -> None:
    rounding = Rounding(TYPES["Q8_0"])
    with pytest.raises(LayoutError, match=r"^blk.0.x: values too large for the float16 scale"):
        rounding.apply("blk.0.x", np.full((1, 32), 1e38, np.float32), 0)
