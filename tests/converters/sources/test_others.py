"""Grok-1 as other people have it: under other names, for ranks, in .bin files, in old GGUF."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import weightcast
from tests import gguf_files
from tests.support import Golden
from weightcast.converters.sources import open_graph
from weightcast.errors import CheckpointError, LayoutError, MissingTensorError

WIDE = Golden("wide")
Names = Callable[[str], str]
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden checkpoint as a directory of bf16; do not change it."""
    path = tmp_path_factory.mktemp("plain") / "m-bf16"
    weightcast.convert(WIDE.path, path, no_tokenizer=True)
    return path


@pytest.fixture(scope="module")
def tensors(plain: Path) -> Tensors:
    return load_file(plain / "model.safetensors")


@pytest.fixture(scope="module")
def wanted(plain: Path) -> bytes:
    """The GGUF file that every way to say the same leads to."""
    weightcast.convert(plain, plain.parent / "m-Q8_0.gguf", no_tokenizer=True)
    return (plain.parent / "m-Q8_0.gguf").read_bytes()


def replaced(name: str, pairs: dict[str, str]) -> str:
    for part, other in pairs.items():
        name = name.replace(part, other)
    return name


def leaf(name: str, owner: str) -> str:
    """Experts' matrices by the names that they have in the shards."""
    leaves = {"w1": "linear", "w2": "linear_1", "w3": "linear_v"}
    pattern = r"block_sparse_moe\.experts\.(\d+)\.(w\d)"
    return re.sub(pattern, lambda m: f"{owner}.{m[1]}.{leaves[m[2]]}", name)


def keyfan(name: str) -> str:
    norms = ("pre_attn_norm", "post_attn_norm", "pre_moe_norm", "post_moe_norm")
    pairs = {norm: f"rms_norm_{n}".removesuffix("_0") for n, norm in enumerate(norms)}
    pairs |= {"model.embed_tokens": "transformer.in_out_embed"}
    pairs |= {"model.norm": "transformer.rms_norm"}
    pairs |= {"model.layers": "transformer.decoder_layer", "block_sparse_moe.gate": "router"}
    for mine, theirs in zip("qkvo", ("query", "key", "value", "linear"), strict=True):
        pairs[f"self_attn.{mine}_proj"] = f"multi_head_attention.{theirs}"
    return replaced(leaf(name, "moe"), pairs)


def hpcai(name: str) -> str:
    name = replaced(leaf(name, "moe_block.experts"), {"self_attn": "attn"})
    name = name.replace("block_sparse_moe.gate", "moe_block.gate")
    return re.sub(r"norm\.weight$", "norm.scale", name)


def llama_norms(name: str) -> str:
    return replaced(
        name,
        {
            "pre_attn_norm": "input_layernorm",
            "post_attn_norm": "post_attention_layernorm",
            "pre_moe_norm": "pre_feedforward_layernorm",
            "post_moe_norm": "post_feedforward_layernorm",
        },
    )


DIALECTS: dict[str, tuple[Names, str]] = {
    "keyfan": (keyfan, "names of tensors as others have them: keyfan/grok-1-hf"),
    "hpcai": (hpcai, "names of tensors as others have them: hpcai-tech/grok-1"),
    "llama": (llama_norms, "names of tensors as others have them: Llama's norms"),
    "DDP": (lambda n: f"module.{n}", "names of tensors without 'module.', which a wrapper"),
    "compiled": (lambda n: f"_orig_mod.{n}", "names of tensors without '_orig_mod.'"),
    "peft": (lambda n: f"base_model.model.{n}", "without 'base_model.model.'"),
    "nested": (lambda n: f"module._orig_mod.{n}", "without 'module._orig_mod.'"),
    "wrapped keyfan": (lambda n: f"module.{keyfan(n)}", "keyfan/grok-1-hf"),
}
CONFIGS: dict[str, Callable[[dict[str, Any]], None]] = {
    "as it is": lambda config: None,
    "intermediate_size": lambda config: config.pop("moe_intermediate_size"),
    "num_experts": lambda config: config.pop("num_local_experts"),
    "rope_parameters": lambda config: config.update(
        rope_parameters={"rope_type": "default", "rope_theta": config.pop("rope_theta")}
    ),
    "max_attn_value": lambda config: config.update(
        max_attn_value=config.pop("attn_logit_softcapping")
    ),
    "num_selected_experts": lambda config: config.update(
        num_selected_experts=config.pop("num_experts_per_tok")
    ),
}


def directory(plain: Path, out: Path, config: Callable[[dict[str, Any]], None]) -> Path:
    """A directory with no weights yet."""
    out.mkdir()
    values = json.loads((plain / "config.json").read_text())
    config(values)
    (out / "config.json").write_text(json.dumps(values))
    return out


def check(path: Path, wanted: bytes, note: str = "") -> None:
    """It converts to the same bytes, is good beside the shards, and says what it is."""
    out = path.parent / "out-Q8_0.gguf"
    summary = weightcast.convert(path, out, no_tokenizer=True)
    assert out.read_bytes() == wanted
    found = weightcast.verify(path, WIDE.path)
    assert [problem.line for problem in found.problems] == []
    assert set(found.matrices) == {"same"}
    for notes in (summary.plan.outputs[0].notes, found.notes):
        assert any(note in each for each in notes) or not note, notes
    compared = weightcast.compare(WIDE.path, path)
    assert compared.pairing.only_source == compared.pairing.only_output == ()


@pytest.mark.parametrize("name", DIALECTS)
def test_names(name: str, plain: Path, tensors: Tensors, wanted: bytes, tmp_path: Path) -> None:
    rename, note = DIALECTS[name]
    path = directory(plain, tmp_path / "m-bf16", CONFIGS["as it is"])
    renamed = {rename(n): t for n, t in tensors.items() if n != "lm_head.weight"}
    assert len(renamed) == len(tensors) - 1
    save_file(renamed, path / "model.safetensors")
    check(path, wanted, note)


@pytest.mark.parametrize("name", CONFIGS)
def test_config_keys(
    name: str, plain: Path, tensors: Tensors, wanted: bytes, tmp_path: Path
) -> None:
    path = directory(plain, tmp_path / "m-bf16", CONFIGS[name])
    save_file(tensors, path / "model.safetensors")
    check(path, wanted)


def test_stacked_experts(plain: Path, tensors: Tensors, wanted: bytes, tmp_path: Path) -> None:
    path = directory(plain, tmp_path / "m-bf16", CONFIGS["as it is"])
    stacked = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    for name in tensors:
        if ".experts.0." in name:
            every = [tensors[name.replace(".0.w", f".{n}.w")] for n in range(8)]
            stacked[name.replace("experts.0.", "experts.")] = torch.stack(every)
    save_file(stacked, path / "model.safetensors")
    check(path, wanted, "stacked experts")


def test_buffers_are_left_out(plain: Path, tensors: Tensors, wanted: bytes, tmp_path: Path) -> None:
    path = directory(plain, tmp_path / "m-bf16", CONFIGS["as it is"])
    buffers = {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.ones(8) for n in (0, 1)}
    save_file(tensors | buffers, path / "model.safetensors")
    check(path, wanted, "left out: 2 buffers of rotary positions")


@pytest.mark.parametrize("n_files", [1, 2])
def test_bin_files(
    n_files: int, plain: Path, tensors: Tensors, wanted: bytes, tmp_path: Path
) -> None:
    path = directory(plain, tmp_path / "m-bf16", CONFIGS["as it is"])
    renamed = {hpcai(name): tensor for name, tensor in tensors.items()}
    names, weight_map = sorted(renamed), {}
    for n in range(n_files):
        file = (
            f"pytorch_model-{n + 1:05}-of-{n_files:05}.bin" if n_files > 1 else "pytorch_model.bin"
        )
        part = {name: renamed[name].clone() for name in names[n::n_files]}
        torch.save(part, path / file)
        weight_map |= dict.fromkeys(part, file)
    if n_files > 1:
        index = {"metadata": {}, "weight_map": weight_map}
        (path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    check(path, wanted, "hpcai-tech/grok-1")
    if n_files > 1:
        (path / file).unlink()
        (problem,) = weightcast.verify(path, WIDE.path).problems
        assert f"{file}: missing" in problem.line


# Ranks.


def write_ranks(path: Path, tensors: Tensors, n_ranks: int) -> list[Path]:
    """As lmzheng/grok-1: experts cut along their width, all else in one file."""
    ranks: list[Tensors] = [{} for _ in range(n_ranks)]
    for name, tensor in tensors.items():
        if ".experts." in name:
            axis = 1 if ".w2." in name else 0
            for rank, share in zip(ranks, tensor.chunk(n_ranks, axis), strict=True):
                rank[name] = share.contiguous()
    common = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    files = [path / f"pytorch_model-00000-TP-{n:03}.safetensors" for n in range(n_ranks)]
    for file, rank in zip(files, ranks, strict=True):
        save_file(rank, file)
    save_file(common, path / "pytorch_model-00000-TP-common.safetensors")
    return files


@pytest.mark.parametrize("n_ranks", [1, 2, 4, 8])
def test_ranks(n_ranks: int, plain: Path, tensors: Tensors, wanted: bytes, tmp_path: Path) -> None:
    path = directory(plain, tmp_path / "m-bf16", CONFIGS["as it is"])
    write_ranks(path, tensors, n_ranks)
    noun = "rank" if n_ranks == 1 else "ranks"
    check(path, wanted, f"joined from the files of {n_ranks} {noun}: 48 tensors")


def test_ranks_of_several_files(
    plain: Path, tensors: Tensors, wanted: bytes, tmp_path: Path
) -> None:
    path = directory(plain, tmp_path / "m-bf16", CONFIGS["as it is"])
    for file in write_ranks(path, tensors, 2):
        held = load_file(file)
        late = {name for name in held if ".layers.1." in name}
        save_file({n: t for n, t in held.items() if n not in late}, file)
        second = file.with_name(file.name.replace("00000", "00001"))
        save_file({n: held[n] for n in late}, second)
    check(path, wanted, "joined from the files of 2 ranks: 48 tensors")


@pytest.mark.parametrize("is_tied", [True, False])
def test_heads_in_shares_of_ranks(
    is_tied: bool, plain: Path, tensors: Tensors, wanted: bytes, tmp_path: Path
) -> None:
    """Where each rank has rows of the embedding table, and of the head that repeats it."""
    path = directory(plain, tmp_path / "m-bf16", CONFIGS["as it is"])
    files = write_ranks(path, tensors, 2)
    table = tensors["model.embed_tokens.weight"]
    for file, rows in zip(files, table.chunk(2), strict=True):
        head = rows.clone()
        head[-1, -1] += 0 if is_tied else 1
        tables = {"model.embed_tokens.weight": rows.contiguous(), "lm_head.weight": head}
        save_file(load_file(file) | tables, file)
    common = path / "pytorch_model-00000-TP-common.safetensors"
    left = {n: t for n, t in load_file(common).items() if n not in tables}
    save_file(left, common)
    if is_tied:
        check(path, wanted)
    else:
        with pytest.raises(LayoutError, match="the output head is not the embedding table"):
            open_graph(path)


def damaged(path: Path, name: str) -> None:
    """Exchange two ranks' shares of a tensor."""
    files = sorted(path.glob("*-TP-0*.safetensors"))
    first, second = map(load_file, files)
    first[name], second[name] = second[name], first[name]
    save_file(first, files[0])
    save_file(second, files[1])


def test_ranks_that_are_exchanged_are_found(plain: Path, tensors: Tensors, tmp_path: Path) -> None:
    path = directory(plain, tmp_path / "m-bf16", CONFIGS["as it is"])
    write_ranks(path, tensors, 2)
    damaged(path, "model.layers.0.block_sparse_moe.experts.3.w1.weight")
    (problem,) = weightcast.verify(path, WIDE.path).problems
    assert "experts.3.w1.weight" in problem.line


def lose_a_rank(files: list[Path]) -> None:
    files[1].unlink()


def lose_a_tensor(files: list[Path]) -> None:
    tensors = load_file(files[1])
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, files[1])


def cut_a_tensor(files: list[Path]) -> None:
    tensors = load_file(files[1])
    name = sorted(tensors)[0]
    save_file(tensors | {name: tensors[name][:-1].contiguous()}, files[1])


def share_what_is_common(files: list[Path]) -> None:
    save_file(load_file(files[1]) | {"model.norm.weight": torch.ones(256)}, files[1])


def copy_the_common_file(files: list[Path]) -> None:
    common = files[0].with_name("pytorch_model-00000-TP-common.safetensors")
    shutil.copy(common, files[0].with_name("pytorch_model-00001-TP-common.safetensors"))


def add_a_file_of_no_rank(files: list[Path]) -> None:
    save_file({"x": torch.ones(2)}, files[0].with_name("model.safetensors"))


RANKS: dict[str, tuple[Callable[[list[Path]], None], type[CheckpointError], str]] = {
    "a rank": (lose_a_rank, MissingTensorError, "there is no file of rank 001"),
    "a tensor": (lose_a_tensor, MissingTensorError, "is of 3 ranks, not of 4"),
    "shapes": (cut_a_tensor, LayoutError, "has other types or shapes in other ranks"),
    "common": (share_what_is_common, LayoutError, "is a rank's, and also in pytorch_model-00000"),
    "no rank": (add_a_file_of_no_rank, LayoutError, "model.safetensors: of no rank, but files"),
    "twice": (copy_the_common_file, LayoutError, "is also in pytorch_model-00000-TP-common"),
}


@pytest.mark.parametrize("name", RANKS)
def test_ranks_that_do_not_go_together(
    name: str, plain: Path, tensors: Tensors, tmp_path: Path
) -> None:
    change, error, words = RANKS[name]
    path = directory(plain, tmp_path / "m-bf16", CONFIGS["as it is"])
    change(write_ranks(path, tensors, 4))
    with pytest.raises(error, match=words):
        open_graph(path)
    assert any(words in problem.line for problem in weightcast.verify(path).problems)


def test_the_last_rank_is_missed_too(plain: Path, tensors: Tensors, tmp_path: Path) -> None:
    path = directory(plain, tmp_path / "m-bf16", CONFIGS["as it is"])
    write_ranks(path, tensors, 4)[-1].unlink()
    with pytest.raises(LayoutError, match=r"ffn_size is 384 by .* but 512 by .*config\.json"):
        open_graph(path)


# Old GGUF files.


def test_gguf_with_a_tensor_for_each_expert(tmp_path: Path, wanted: bytes) -> None:
    """As llama.cpp made them in March 2024; the last norm had another name, too."""
    (tmp_path / "new-Q8_0.gguf").write_bytes(wanted)
    file = gguf_files.read(tmp_path / "new-Q8_0.gguf")
    old = {}
    for name, tensor in file.tensors.items():
        name = name.replace("post_ffw_norm", "layer_output_norm")
        if "_exps" not in name:
            old[name] = tensor
            continue
        each = len(tensor.data) // tensor.shape[0]
        for n in range(tensor.shape[0]):
            data = tensor.data[n * each : (n + 1) * each]
            old[name.replace("_exps", f".{n}")] = replace(tensor, shape=tensor.shape[1:], data=data)
    path = gguf_files.write(tmp_path / "old-Q8_0.gguf", file.metadata, old)
    found = weightcast.verify(path, WIDE.path)
    assert [problem.line for problem in found.problems] == []
    assert "names of tensors as others have them: llama.cpp before April 2024" in found.notes
    weightcast.convert(path, tmp_path / "m-bf16", no_tokenizer=True)
    weightcast.convert(tmp_path / "new-Q8_0.gguf", tmp_path / "n-bf16", no_tokenizer=True)
    made, right = (tmp_path / name / "model.safetensors" for name in ("m-bf16", "n-bf16"))
    assert made.read_bytes() == right.read_bytes()
