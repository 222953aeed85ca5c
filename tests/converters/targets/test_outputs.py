"""What is written is what was stored: every output, read back by libraries of others."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import safe_open

import weightcast
from tests.grok1 import EMBEDDING, places
from tests.support import Golden, as_stored
from weightcast.converters.convert import Summary
from weightcast.converters.families.grok1.synthetic import tiny_spec, write_checkpoint
from weightcast.converters.graph.read import load_float32
from weightcast.converters.plan import budget as memory
from weightcast.converters.sources import open_graph


def convert(source: Path, *outputs: Path, **options: object) -> Summary:
    return weightcast.convert(source, *outputs, no_tokenizer=True, **options)


def read_gguf(path: Path) -> dict[str, gguf.ReaderTensor]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


def dequantized(tensor: gguf.ReaderTensor) -> NDArray[np.float32]:
    """A tensor of a GGUF file as float32 [..., out, in], by the gguf package."""
    values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    return values.reshape(tuple(reversed(tensor.shape.tolist())))


def read_directory(path: Path) -> dict[str, NDArray[np.generic]]:
    tensors = {}
    for file in sorted(path.glob("*.safetensors")):
        with safe_open(file, framework="numpy") as opened:
            assert opened.metadata() == {"format": "pt"}
            for name in opened.keys():  # noqa: SIM118
                tensors[name] = opened.get_tensor(name)
    return tensors


@pytest.mark.parametrize("type_name", ["F32", "Q8_0"])
def test_gguf_holds_int8_times_scale_exactly(
    golden: Golden, tmp_path: Path, type_name: str
) -> None:
    path = tmp_path / f"m-{type_name}.gguf"
    convert(golden.path, path)
    tensors = read_gguf(path)
    exact = golden.exact()
    for place in places(open_graph(golden.path).spec.num_layers):
        tensor = tensors.pop(place.gguf)
        if place.name == EMBEDDING and type_name == "Q8_0":
            continue  # float32 at the source, so it has no exact codes
        np.testing.assert_array_equal(as_stored(dequantized(tensor), place.name), exact[place.name])
    assert not tensors


def test_q8_0_of_the_embedding_is_what_ggml_makes(golden: Golden, tmp_path: Path) -> None:
    path = tmp_path / "m-Q8_0.gguf"
    convert(golden.path, path)
    found = read_gguf(path)["token_embd.weight"]
    expected = gguf.quants.quantize(golden.exact()[EMBEDDING], gguf.GGMLQuantizationType.Q8_0)
    assert found.tensor_type == gguf.GGMLQuantizationType.Q8_0
    np.testing.assert_array_equal(found.data, expected)


def test_q8_0_carries_the_codes_themselves(tmp_path: Path) -> None:
    golden = Golden("wide")
    path = tmp_path / "m-Q8_0.gguf"
    summary = convert(golden.path, path)
    origins = summary.block_origins(0)
    assert len(origins["lossless"]) == 14
    assert origins["quantized"] == ["token_embd.weight"]
    assert origins["requantized"] == {}
    types = {t.tensor_type.name for name, t in read_gguf(path).items() if "_exps" in name}
    assert types == {"Q8_0"}


def test_groups_that_end_inside_blocks_stay_exact_and_are_named(tmp_path: Path) -> None:
    """In `deep` eight groups share 128 rows, so two scales meet in a block of 32."""
    summary = convert(Golden("deep").path, tmp_path / "m-Q8_0.gguf")
    (note,) = summary.plan.outputs[0].notes
    assert note.startswith(
        "stored as F32, because scale groups of 16 rows end inside Q8_0 blocks: 22 tensors"
    )
    tensors = read_gguf(tmp_path / "m-Q8_0.gguf")
    assert tensors["blk.10.ffn_down_exps.weight"].tensor_type.name == "F32"
    assert tensors["blk.10.ffn_up_exps.weight"].tensor_type.name == "Q8_0"


def test_bf16_directory_is_bf16_of_the_product(golden: Golden, tmp_path: Path) -> None:
    convert(golden.path, tmp_path / "m-bf16")
    tensors = read_directory(tmp_path / "m-bf16")
    exact = golden.exact()
    head = tensors.pop("lm_head.weight")
    np.testing.assert_array_equal(head, tensors["model.embed_tokens.weight"])
    for place in places(open_graph(golden.path).spec.num_layers):
        source = exact[place.name]
        experts = range(8) if place.role.is_experts else [None]
        for expert in experts:
            found = tensors.pop(place.hugging_face(expert))
            expected = source if expert is None else source[expert]
            dtype = np.float32 if place.role.storage == "float32" else ml_dtypes.bfloat16
            assert found.dtype == dtype
            bits = f"u{found.itemsize}"
            np.testing.assert_array_equal(
                as_stored(found, place.name).view(bits)
                if found.ndim == 1
                else np.ascontiguousarray(as_stored(found, place.name)).view(bits),
                expected.astype(dtype).view(bits),
            )
    assert not tensors


@pytest.mark.parametrize("name", ["m-BF16.gguf", "m-F16.gguf", "m-bf16", "m-f16", "m-f32"])
def test_plain_float_outputs_agree_with_each_other(tiny: Path, tmp_path: Path, name: str) -> None:
    """A GGUF and a directory of one type hold the same values under their own names."""
    convert(tiny, tmp_path / name, tmp_path / "exact-F32.gguf")
    exact = read_gguf(tmp_path / "exact-F32.gguf")
    dtype = {"b": ml_dtypes.bfloat16, "f": np.float16}[name[2].lower()]
    dtype = np.float32 if "32" in name else dtype
    found = open_graph(tmp_path / name)
    for place in places(found.spec.num_layers):
        values = dequantized(exact[place.gguf])
        if place.role.storage != "float32":
            values = values.astype(dtype).astype(np.float32)
        loaded = load_float32(found[place.name])
        np.testing.assert_array_equal(loaded, values)


def test_a_scale_that_float16_cannot_hold_is_requantized_and_said(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, tiny_spec(), seed=1)
    shard = tmp_path / "ckpt-0" / "tensor00005_000"
    raw = bytearray(shard.read_bytes())
    # The key projection: scales bf16 (1, 128) are the last payload before 8 closing bytes.
    at = raw.rindex(b"B\x00\x01\x00\x00") + 5
    scales = np.frombuffer(raw, ml_dtypes.bfloat16, 128, at).copy()
    scales[[3, 70]] = [1e-6, 3e-7]
    raw[at : at + 256] = scales.tobytes()
    shard.write_bytes(raw)
    summary = convert(tmp_path, tmp_path / "m-Q8_0.gguf")
    said = summary.block_origins(0)["requantized"]
    inexact = int((scales.astype(np.float16).astype(np.float32) != scales.astype(np.float32)).sum())
    assert inexact > 0
    assert said == {
        "blk.0.attn_k.weight": {
            "requantized_blocks": inexact * 256 // 32,
            "blocks": 128 * 256 // 32,
            "inexact_scales": inexact,
        }
    }
    graph = open_graph(tmp_path)
    name = "transformer/decoder_layer_0/multi_head_attention/key/w"
    exact = load_float32(graph[name])
    expected = gguf.quants.quantize(exact, gguf.GGMLQuantizationType.Q8_0)
    found = read_gguf(tmp_path / "m-Q8_0.gguf")["blk.0.attn_k.weight"].data
    np.testing.assert_array_equal(found[[3, 70]], expected[[3, 70]])


def test_bytes_do_not_depend_on_workers_slabs_or_company(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["a-Q8_0.gguf", "a-BF16.gguf", "a-f32"]
    for folder in ("alone", "together"):
        (tmp_path / folder).mkdir()
    for name in names:
        convert(tiny, tmp_path / "alone" / name, jobs=1)
    # Slabs of a few columns, pieces of a few rows: gathered reads and many seams.
    monkeypatch.setattr(memory, "SLAB_BYTES", 20_000)
    monkeypatch.setattr(memory, "TASK_BYTES", 5_000)
    convert(tiny, *(tmp_path / "together" / name for name in names), jobs=5)
    files = [p.relative_to(tmp_path / "alone") for p in (tmp_path / "alone").rglob("*.*")]
    assert len([f for f in files if f.suffix in (".gguf", ".safetensors")]) == 3
    for file in files:
        one, other = tmp_path / "alone" / file, tmp_path / "together" / file
        if one.is_file():
            assert one.read_bytes() == other.read_bytes(), file


def test_gguf_and_directories_are_sources_too(tiny: Path, tmp_path: Path) -> None:
    """Shards -> Q8_0, F32 and f32 -> further outputs equal those made straight from the shards."""
    convert(tiny, tmp_path / "s-Q8_0.gguf", tmp_path / "s-F32.gguf", tmp_path / "s-bf16")
    convert(tmp_path / "s-Q8_0.gguf", tmp_path / "again-Q8_0.gguf")
    assert (tmp_path / "again-Q8_0.gguf").read_bytes() == (tmp_path / "s-Q8_0.gguf").read_bytes()
    convert(tmp_path / "s-F32.gguf", tmp_path / "second-bf16", tmp_path / "second-f32")
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "second-bf16" / file).read_bytes() == (
            tmp_path / "s-bf16" / file
        ).read_bytes()
    convert(tmp_path / "second-f32", tmp_path / "third-F32.gguf")
    assert (tmp_path / "third-F32.gguf").read_bytes() == (tmp_path / "s-F32.gguf").read_bytes()
    # The embedding is requantized from itself; the rest is exact.
    convert(tmp_path / "s-Q8_0.gguf", tmp_path / "from-q8-F32.gguf")
    exact = read_gguf(tmp_path / "s-F32.gguf")
    for name, tensor in read_gguf(tmp_path / "from-q8-F32.gguf").items():
        if name != "token_embd.weight":
            np.testing.assert_array_equal(dequantized(tensor), dequantized(exact[name]))


def test_split_gguf(tiny: Path, tmp_path: Path) -> None:
    convert(tiny, tmp_path / "one-Q8_0.gguf")
    convert(tiny, tmp_path / "many-Q8_0.gguf", split="1500K")
    parts = sorted(tmp_path.glob("many-Q8_0-*.gguf"))
    assert len(parts) > 2
    assert parts[0].name == f"many-Q8_0-00001-of-{len(parts):05}.gguf"
    whole = read_gguf(tmp_path / "one-Q8_0.gguf")
    found = {}
    for number, part in enumerate(parts):
        reader = gguf.GGUFReader(part)
        fields = {key: field.contents() for key, field in reader.fields.items()}
        assert fields["split.no"] == number
        assert fields["split.count"] == len(parts)
        assert fields["split.tensors.count"] == len(whole)
        assert ("general.architecture" in fields) == (number == 0)
        assert sum(t.n_bytes for t in reader.tensors) <= 1_500_000 or len(reader.tensors) == 1
        found.update({t.name: t for t in reader.tensors})
    assert found.keys() == whole.keys()
    for name, tensor in whole.items():
        np.testing.assert_array_equal(found[name].data, tensor.data)
    again = open_graph(parts[0])
    assert again.parameters == open_graph(tiny).parameters


def test_sharded_directory(tiny: Path, tmp_path: Path) -> None:
    convert(tiny, tmp_path / "one-bf16")
    convert(tiny, tmp_path / "many-bf16", split="3MB")
    index = json.loads((tmp_path / "many-bf16" / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert files == sorted(p.name for p in (tmp_path / "many-bf16").glob("*.safetensors"))
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    # llama.cpp's converter drops the experts of a layer after which no other tensor follows.
    assert index["weight_map"]["model.norm.weight"] == files[-1]
    one, many = read_directory(tmp_path / "one-bf16"), read_directory(tmp_path / "many-bf16")
    assert one.keys() == many.keys() == index["weight_map"].keys()
    for name, tensor in one.items():
        np.testing.assert_array_equal(many[name].view("u1"), tensor.view("u1"))
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in one.values())
    reread = open_graph(tmp_path / "many-bf16")
    assert reread.parameters == open_graph(tiny).parameters


def test_rows_that_do_not_fill_blocks(tmp_path: Path) -> None:
    """int8 tensors stay exact as F32; float ones become F16, as in llama-quantize."""
    spec = tiny_spec(emb_size=240, num_q_heads=15, num_kv_heads=5, vocab_size=64)
    write_checkpoint(tmp_path, spec)
    summary = convert(tmp_path, tmp_path / "m-Q8_0.gguf")
    tensors = read_gguf(tmp_path / "m-Q8_0.gguf")
    assert tensors["blk.0.attn_q.weight"].tensor_type.name == "F32"
    assert tensors["token_embd.weight"].tensor_type.name == "F16"
    assert any("rows of 240 do not fill Q8_0 blocks" in n for n in summary.plan.outputs[0].notes)


def test_odd_sizes_go_through_every_output(tmp_path: Path) -> None:
    """Nothing is a multiple of a lane, a block or a cache line."""
    spec = tiny_spec(
        emb_size=66,
        key_size=22,
        num_q_heads=3,
        num_kv_heads=1,
        vocab_size=77,
        num_layers=11,
        num_experts=3,
    )
    write_checkpoint(tmp_path, spec, seed=9)
    exact = open_graph(tmp_path)
    for name in ("m-F32.gguf", "m-f32"):
        convert(tmp_path, tmp_path / name)
        found = open_graph(tmp_path / name)
        for tensor in exact:
            np.testing.assert_array_equal(
                load_float32(found[tensor]),
                load_float32(exact[tensor]),
            )


def test_an_untied_head_is_refused(tiny: Path, tmp_path: Path) -> None:
    convert(tiny, tmp_path / "m-f32")
    file = tmp_path / "m-f32" / "model.safetensors"
    raw = bytearray(file.read_bytes())
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    start = 8 + int.from_bytes(raw[:8], "little") + header["lm_head.weight"]["data_offsets"][0]
    raw[start] ^= 1
    file.write_bytes(raw)
    with pytest.raises(weightcast.LayoutError, match="the output head is not the embedding table"):
        open_graph(tmp_path / "m-f32")
