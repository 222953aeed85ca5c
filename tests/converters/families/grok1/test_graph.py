"""The graph names every leaf correctly, and refuses whatever contradicts itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weightcast
from tests.grok1 import places, shard_places
from tests.support import GOLDEN, Golden, as_stored
from weightcast.converters.families.grok1.spec import RELEASE, ffn_size
from weightcast.converters.families.grok1.synthetic import tiny_spec, write_checkpoint
from weightcast.converters.graph.read import load_float32
from weightcast.converters.graph.tensor import Take, Tensor
from weightcast.converters.sources import open_graph
from weightcast.errors import FormatError, LayoutError, MissingTensorError
from weightcast.formats.jax.writer import Payload, array_parts, quantized_parts

SPEC = json.loads((GOLDEN / "wide" / "spec.json").read_text())


def test_leaf_paths_follow_the_files(golden: Golden) -> None:
    graph = open_graph(golden.path)
    paths = [leaf["path"] for leaf in golden.leaves]
    assert [p.name for p in shard_places(graph.spec.num_layers)] == paths
    assert sorted(map(graph.spoken_name, graph)) == sorted(paths)
    assert all(graph[graph.spoken_name(name)] is graph[name] for name in graph)


def test_file_26_starts_layer_10() -> None:
    assert shard_places(64)[26].name == "transformer/decoder_layer_10/moe/linear/w"


def test_every_tensor_is_int8_times_scale_transposed(golden: Golden) -> None:
    graph = open_graph(golden.path)
    exact = golden.exact()
    assert len(graph) == len(exact)
    for name, tensor in graph.items():
        found = load_float32(tensor)
        assert found.shape == tensor.shape
        leaf = graph.spoken_name(name)
        np.testing.assert_array_equal(as_stored(found, leaf), exact[leaf])


def test_parameters_and_hyperparameters(golden: Golden) -> None:
    graph = open_graph(golden.path)
    assert graph.parameters == sum(np.prod(leaf["shape"]) for leaf in golden.leaves)
    spec = json.loads((golden.path / "spec.json").read_text())
    described = graph.spec.describe()
    for key in spec.keys() - {"seed", "widening_factor"}:
        assert described[key] == spec[key]
    assert graph.spec.ffn_size == ffn_size(spec["emb_size"], spec["widening_factor"])


def test_ffn_size_of_the_release() -> None:
    assert ffn_size(6144, 8) == 32768


def test_ckpt_directory_and_its_parent_are_the_same(golden: Golden) -> None:
    assert list(open_graph(golden.path)) == list(open_graph(golden.path / "ckpt-0"))


def test_description_is_json_and_names_the_stored_bytes(golden: Golden) -> None:
    graph = open_graph(golden.path)
    name = "transformer/decoder_layer_0/moe/linear/w"
    described = json.loads(json.dumps(graph[name].describe()))
    dequantize = described["origin"]["sources"][0]["origin"]
    assert described["origin"]["operation"] == "transpose"
    assert dequantize["operation"] == "dequantize"
    assert [s["dtype"] for s in dequantize["sources"]] == ["I8", "BF16"]
    assert dequantize["sources"][0]["origin"]["file"] == "tensor00002_000"


def test_a_taken_expert_is_a_tensor_of_its_own(golden: Golden) -> None:
    graph = open_graph(golden.path)
    experts = graph["transformer/decoder_layer_1/moe/linear_1/w"]
    one = Tensor("one", experts.shape[1:], "F32", Take(experts, 5))
    np.testing.assert_array_equal(load_float32(one), load_float32(experts)[5])


def with_spec(tmp_path: Path, **changes: Any) -> Path:
    """Write the wide golden's specification with changes; None removes a key."""
    values = {k: v for k, v in {**SPEC, **changes}.items() if v is not None}
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(values))
    return path


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vocab_size": 1000}, "vocab_size is 1024 by tensor00000_000"),
        ({"emb_size": 128}, "emb_size is 256 by tensor00000_000"),
        ({"num_layers": 3}, "num_layers is 2 by 26 shards"),
        ({"widening_factor": 4}, "ffn_size is 512 by tensor00002_000"),
        ({"num_experts": 4}, "num_experts is 8 by tensor00002_000"),
        ({"num_q_heads": 8}, "q_size is 256 by tensor00006_000"),
        ({"num_kv_heads": 4}, "kv_size is 128 by tensor00005_000"),
        ({"key_size": 12, "num_q_heads": None, "num_kv_heads": None}, "not a multiple of key_size"),
        ({"key_size": 128, "num_q_heads": 2, "num_kv_heads": 1, "num_selected_experts": 9}, "9"),
    ],
)
def test_a_specification_that_contradicts_the_shapes(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(LayoutError, match=said):
        open_graph(GOLDEN / "wide", with_spec(tmp_path, **changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"key_size": None}, "missing keys: key_size"),
        ({"attn_output_multiplier": None, "attn_output_multipler": 0.25}, "did you mean"),
        ({"emb_size": "256"}, "emb_size is missing or not a number"),
        ({"emb_size": 256.0}, "emb_size must be a positive whole number"),
        ({"context_length": 0}, "context_length must be a positive"),
        ({"context_length": True}, "context_length is missing or not a number"),
        ({"context_length": 2**40}, "context_length must be a positive whole number"),
        ({"attn_output_multiplier": 1e-300}, "attn_output_multiplier must be a positive number"),
        ({"output_multiplier_scale": float("nan")}, "output_multiplier_scale must be"),
    ],
)
def test_a_specification_that_is_wrong_in_itself(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(FormatError, match=said):
        open_graph(GOLDEN / "wide", with_spec(tmp_path, **changes))


@pytest.mark.parametrize("text", ["", "[1]", "{", "[" * 100_000])
def test_a_specification_that_is_not_a_json_object(tmp_path: Path, text: str) -> None:
    path = tmp_path / "spec.json"
    path.write_text(text)
    with pytest.raises(FormatError, match=r"spec\.json"):
        open_graph(GOLDEN / "wide", path)


def test_without_a_specification_it_must_be_the_release(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "wide" / "ckpt-0", tmp_path / "ckpt-0")
    with pytest.raises(LayoutError, match="grok-1 preset; if the model is another one") as caught:
        open_graph(tmp_path)
    assert "num_layers is 2 by 26 shards, but 64" in str(caught.value)


def test_the_sparse_release_needs_no_specification(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, RELEASE, sparse=True)
    (tmp_path / "spec.json").unlink()
    graph = open_graph(tmp_path)
    assert graph.parameters == 315_684_820_992
    assert graph.spec.num_q_heads == 48


def checkpoint(tmp_path: Path) -> Path:
    shutil.copytree(GOLDEN / "wide", tmp_path / "copy", ignore=lambda *_: ["logits_fp32.npz"])
    return tmp_path / "copy" / "ckpt-0"


def test_a_missing_last_shard(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    (folder / "tensor00025_000").unlink()
    with pytest.raises(MissingTensorError, match="25 shards"):
        open_graph(folder)


def replace_shard(path: Path, parts: list[bytes | Payload]) -> None:
    path.write_bytes(b"".join(bytes(p.nbytes) if isinstance(p, Payload) else p for p in parts))


@pytest.mark.parametrize(
    ("number", "parts", "said"),
    [
        (7, quantized_parts((256, 240), (1, 240)), "q_size is 240 by tensor00007_000"),
        (7, quantized_parts((256, 256), (3, 256)), "scales of shape"),
        (7, quantized_parts((256, 256), (1, 128)), "scales of shape"),
        (3, quantized_parts((8, 512, 256), (4, 8, 256)), "scales of shape"),
        (3, quantized_parts((512, 256), (8, 256)), "has 2 axes, expected 3"),
        (9, quantized_parts((256, 256), (1, 256)), "int8 with scales, expected plain numbers"),
        (0, quantized_parts((1024, 256), (1, 256)), "int8 with scales, expected plain numbers"),
        (9, array_parts("F32", (16, 16)), "has 2 axes, expected 1"),
        (13, array_parts("F32", (8, 256)), "num_experts is 256"),
        (2, array_parts("I8", (8, 256, 512)), "stored as I8"),
    ],
)
def test_a_shard_that_does_not_fit(
    tmp_path: Path, number: int, parts: list[bytes | Payload], said: str
) -> None:
    folder = checkpoint(tmp_path)
    path = folder / f"tensor{number:05}_000"
    replace_shard(path, parts)
    with pytest.raises(LayoutError, match=said) as caught:
        open_graph(folder)
    assert path.name in str(caught.value)


def test_plain_float_matrices_are_read_as_well(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    values = np.arange(256 * 128, dtype=np.float32).reshape(256, 128)
    parts = array_parts("F32", values.shape)
    raw = b"".join(values.tobytes() if isinstance(p, Payload) else p for p in parts)
    (folder / "tensor00005_000").write_bytes(raw)
    tensor = open_graph(folder)["transformer/decoder_layer_0/multi_head_attention/key/w"]
    np.testing.assert_array_equal(load_float32(tensor), values.T)


def test_places_name_each_tensor_once() -> None:
    names = [place.name for place in places(12)]
    assert len(set(names)) == len(names) == 2 + 12 * 12


def test_several_checkpoints_in_one_directory(tmp_path: Path) -> None:
    for name in ("ckpt-0", "ckpt-1"):
        shutil.copytree(GOLDEN / "wide" / "ckpt-0", tmp_path / name)
    with pytest.raises(weightcast.CheckpointError, match="several checkpoints"):
        open_graph(tmp_path)


def test_heads_of_another_number_follow_from_the_key_size(tmp_path: Path) -> None:
    spec = tiny_spec(num_q_heads=32, key_size=8, num_kv_heads=16)
    write_checkpoint(tmp_path, spec)
    graph = open_graph(tmp_path)
    assert (graph.spec.num_q_heads, graph.spec.num_kv_heads) == (32, 16)
