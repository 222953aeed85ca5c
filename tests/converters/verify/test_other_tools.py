"""Artifacts by other tools beside the source: what is said of each way to write the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import weightcast
from tests.support import Golden
from weightcast.converters.verify.result import Verification

WIDE = Golden("wide")
Tensors = dict[str, torch.Tensor]


def rewritten(
    path: Path,
    change: Callable[[Tensors], Tensors] = lambda tensors: tensors,
    config: Callable[[dict[str, Any]], None] = lambda config: None,
) -> Verification:
    """Convert, change what is there, and verify it."""
    weightcast.convert(WIDE.path, path, no_tokenizer=True)
    tensors = load_file(path / "model.safetensors")
    changed = {name: tensor.contiguous() for name, tensor in change(tensors).items()}
    save_file(changed, path / "model.safetensors", metadata={"format": "pt"})
    values = json.loads((path / "config.json").read_text())
    config(values)
    (path / "config.json").write_text(json.dumps(values))
    return weightcast.verify(path, WIDE.path)


def cut(tensor: torch.Tensor) -> torch.Tensor:
    """Keep the upper half of each float32, as a shift by 16 bits does."""
    return (tensor.view(torch.int32) >> 16).to(torch.int16).view(torch.bfloat16)


@pytest.mark.parametrize("keeps_float32", [False, True])
def test_norms_that_were_cut_to_bf16(keeps_float32: bool, tmp_path: Path) -> None:
    def change(tensors: Tensors) -> Tensors:
        made = {n: cut(t) if t.dtype == torch.float32 else t for n, t in tensors.items()}
        return {n: made[n].to(t.dtype) if keeps_float32 else made[n] for n, t in tensors.items()}

    found = rewritten(tmp_path / "m-bf16", change)
    assert len(found.problems) == 3  # a layer each, and the last norm
    for problem in found.problems:
        assert problem.mistake == "truncated"
        assert "was cut to bf16 without rounding, which doubles the error" in problem.line


def test_tables_of_float32_beside_packed_matrices(tmp_path: Path) -> None:
    """As transformers saves a packed directory that it loaded in float32."""

    def change(tensors: Tensors) -> Tensors:
        return {n: t.float() if t.dtype == torch.bfloat16 else t for n, t in tensors.items()}

    found = rewritten(tmp_path / "m-nvfp4", change)
    assert found.problems == ()
    assert any("F32 of weights that were rounded" in note for note in found.notes)


def without_sym(config: dict[str, Any]) -> None:
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 64}


def test_gptq_whose_config_does_not_say_that_it_is_symmetric(tmp_path: Path) -> None:
    """Without `sym` groups are asymmetric; version 1 cannot write these, but they are the same."""
    found = rewritten(tmp_path / "m-int4-g64-gptq", config=without_sym)
    assert found.problems == ()
    assert found.matrices["same"] == 69


def test_gptq_with_zero_points_of_its_own(tmp_path: Path) -> None:
    """Version 1 in asymmetric groups, which only others write, is measured."""

    def change(tensors: Tensors) -> Tensors:
        """Codes and zero points one up: the same values, but for codes that were 15."""
        made = dict(tensors)
        for name, tensor in tensors.items():
            if name.endswith(".qzeros"):
                made[name] = tensor + 0x11111111
            if name.endswith(".qweight"):
                made[name] = raised(tensor)
        return made

    found = rewritten(tmp_path / "m-int4-g64-gptq", change, without_sym)
    assert found.problems == ()
    assert found.matrices["similar"] == 56


def raised(words: torch.Tensor) -> torch.Tensor:
    """Add one to each of eight codes of a word, up to 15."""
    wide = words.long() & 0xFFFFFFFF
    codes = torch.stack([(wide >> shift & 15) for shift in range(0, 32, 4)])
    packed = (codes + 1).clamp(max=15) << torch.arange(0, 32, 4).reshape(-1, 1, 1)
    return packed.sum(0).to(torch.int64).to(torch.int32)


def test_what_was_requantized_is_one_note(tmp_path: Path) -> None:
    def change(tensors: Tensors) -> Tensors:
        generator = torch.Generator().manual_seed(1)
        return {
            name: (t * (1 + 0.003 * torch.randn(t.shape, generator=generator))).to(t.dtype)
            if ".experts." in name
            else t
            for name, t in tensors.items()
        }

    found = rewritten(tmp_path / "m-f16", change)
    assert found.problems == ()
    (note,) = (note for note in found.notes if note.startswith("requantized"))
    assert note.endswith(
        "48 tensors, for example model.layers.0.block_sparse_moe.experts.0.w1.weight"
    )


def test_scales_of_activations_are_said_to_be_left_out(tmp_path: Path) -> None:
    def change(tensors: Tensors) -> Tensors:
        scales = [name for name in tensors if name.endswith("weight_scale")]
        inputs = {n.replace("weight_scale", "input_scale"): torch.ones(1) for n in scales}
        cache = {f"model.layers.{n}.self_attn.k_scale": torch.ones(1) for n in (0, 1)}
        return tensors | inputs | cache

    found = rewritten(tmp_path / "m-fp8", change)
    assert found.problems == ()
    assert "left out: 58 scales of activations" in found.notes
    assert found.matrices["same"] == 69


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ("model.fp16.safetensors", "are also in model-00001-of-00003.safetensors, model-00002-of"),
        ("consolidated.safetensors", "; remove one of them"),
    ],
)
def test_a_copy_beside_files_with_an_index(extra: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "m-bf16"
    weightcast.convert(WIDE.path, path, no_tokenizer=True, split="6M")
    files = sorted(path.glob("*.safetensors"))
    assert len(files) == 3
    every = {name: tensor for file in files for name, tensor in load_file(file).items()}
    save_file(every, path / extra)
    found = weightcast.verify(path, WIDE.path)
    repeated = [problem.line for problem in found.problems if "also in" in problem.line]
    assert len(repeated) == 1
    assert repeated[0].startswith(f"{path / extra}: ")
    assert words in repeated[0]
    assert len(found.problems) <= 2  # and that the index does not name it


@pytest.mark.parametrize("pair", [(".w1.", ".w3."), ("k_proj", "v_proj")])
def test_the_same_in_all_layers_is_one_line(pair: tuple[str, str], tmp_path: Path) -> None:
    weightcast.convert(Golden("deep").path, tmp_path / "m-bf16", no_tokenizer=True)
    tensors = load_file(tmp_path / "m-bf16" / "model.safetensors")
    one, other = pair
    exchanged = {
        name.replace(one, "X").replace(other, one).replace("X", other): tensor
        for name, tensor in tensors.items()
    }
    save_file(exchanged, tmp_path / "m-bf16" / "model.safetensors")
    found = weightcast.verify(tmp_path / "m-bf16", Golden("deep").path)
    assert len(found.problems) == 2
    for problem in found.problems:
        assert problem.mistake == "exchanged"
        assert str(problem.tensor).endswith("and 7 more")
