"""The forward equals the reference over every artifact, and notices each known mistake."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import weightcast
from tests.support import MAX_LOGIT_ERROR, Golden, relative_error
from weightcast.converters.families.grok1 import forward
from weightcast.converters.graph.read import load_float32
from weightcast.converters.graph.tensor import take
from weightcast.converters.sources import open_graph

# A mistake must be far outside what rounding does.
MISTAKE = 10 * MAX_LOGIT_ERROR

Load = Callable[..., NDArray[np.float32]]


def plain_load(golden: Golden) -> Load:
    graph = open_graph(golden.path)

    def load(name: str, expert: int | None = None) -> NDArray[np.float32]:
        return load_float32(graph[name] if expert is None else take(graph[name], expert))

    return load


def error_of(golden: Golden, load: Load, **options: object) -> float:
    spec = open_graph(golden.path).spec
    result = forward.forward(spec, load, golden.tokens, **options)
    return relative_error(result.logits, golden.logits)


def test_from_the_shards(golden: Golden) -> None:
    logits = forward.logits(open_graph(golden.path), golden.tokens)
    assert logits.dtype == np.float32
    assert relative_error(logits, golden.logits) < MAX_LOGIT_ERROR


@pytest.mark.parametrize("name", ["model-F32.gguf", "model-f32"])
def test_from_float32_outputs(golden: Golden, tmp_path: Path, name: str) -> None:
    weightcast.convert(golden.path, tmp_path / name, no_tokenizer=True)
    logits = forward.logits(open_graph(tmp_path / name), golden.tokens)
    assert relative_error(logits, golden.logits) < MAX_LOGIT_ERROR


def test_routing_of_the_golden_tokens_is_clear(golden: Golden) -> None:
    result = forward.run(open_graph(golden.path), golden.tokens)
    assert result.margins.shape == golden.tokens.shape
    assert result.margins.min() > 7e-3


def test_unmutated_load_is_within_tolerance(golden: Golden) -> None:
    assert error_of(golden, plain_load(golden)) < MAX_LOGIT_ERROR


def test_layers_numbered_by_position_are_noticed() -> None:
    golden = Golden("deep")
    load = plain_load(golden)
    order = sorted(range(11), key=str)  # 0, 1, 10, 2, ...: what lies where layer n would

    def wrong(name: str, expert: int | None = None) -> NDArray[np.float32]:
        if name.startswith("blk."):
            _, layer, rest = name.split(".", 2)
            name = f"blk.{order[int(layer)]}.{rest}"
        return load(name, expert)

    assert error_of(golden, wrong) > MISTAKE


def test_swapped_gate_and_up_are_noticed(golden: Golden) -> None:
    load = plain_load(golden)
    swap = {"ffn_gate_exps": "ffn_up_exps", "ffn_up_exps": "ffn_gate_exps"}

    def wrong(name: str, expert: int | None = None) -> NDArray[np.float32]:
        return load(".".join(swap.get(part, part) for part in name.split(".")), expert)

    assert error_of(golden, wrong) > MISTAKE


def test_groups_along_the_wrong_axis_are_noticed(golden: Golden) -> None:
    """Row i of 8 groups belongs to group i // (in / 8), not to group i % 8."""
    load = plain_load(golden)
    graph = open_graph(golden.path)

    def wrong(name: str, expert: int | None = None) -> NDArray[np.float32]:
        values = load(name, expert)
        if not name.endswith(("ffn_down_exps.weight", "attn_output.weight")):
            return values
        dequantize = graph[name].origin.source.origin
        scales = load_float32(dequantize.scales)
        scales = scales if expert is None else scales[expert]
        n_in = values.shape[1]
        right = np.repeat(scales, n_in // 8, axis=0).T
        interleaved = np.tile(scales, (n_in // 8, 1)).T
        return values / right * interleaved

    assert error_of(golden, wrong) > MISTAKE


def test_an_erf_gelu_is_noticed(golden: Golden) -> None:
    erf = np.vectorize(math.erf, otypes=[np.float32])

    def gelu_erf(x: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.float32(0.5) * x * (1 + erf(x / np.float32(np.sqrt(2))))

    assert error_of(golden, plain_load(golden), gelu=gelu_erf) > MISTAKE


def test_transposed_attention_is_noticed(golden: Golden) -> None:
    load = plain_load(golden)

    def wrong(name: str, expert: int | None = None) -> NDArray[np.float32]:
        values = load(name, expert)
        return values.T if name.endswith("attn_q.weight") else values

    assert error_of(golden, wrong) > MISTAKE


def test_token_ids_outside_the_vocabulary(golden: Golden) -> None:
    graph = open_graph(golden.path)
    with pytest.raises(weightcast.LayoutError, match="token ids must lie in"):
        forward.logits(graph, [[0, graph.spec.vocab_size]])


def test_one_sequence_is_a_batch_of_one(golden: Golden) -> None:
    graph = open_graph(golden.path)
    one = forward.logits(graph, golden.tokens[2])
    assert one.shape == (1, *golden.logits.shape[1:])
    assert relative_error(one[0], golden.logits[2]) < MAX_LOGIT_ERROR
