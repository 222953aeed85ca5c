"""Directories that contradict themselves: refused, or told, and never read as something else."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import weightcast
from tests.support import Golden
from weightcast.converters.sources import open_graph
from weightcast.errors import CheckpointError, FormatError, LayoutError
from weightcast.formats import torch_zip

WIDE = Golden("wide")
Change = Callable[[dict[str, torch.Tensor]], None]
FIRST = "model.layers.0.block_sparse_moe.experts.0.w1"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Directories of the golden checkpoint, each converted once; do not change them."""
    folder = tmp_path_factory.mktemp("made")

    def make(name: str) -> Path:
        if not (folder / name).exists():
            weightcast.convert(WIDE.path, folder / name, no_tokenizer=True)
        return folder / name

    return make


def changed(source: Path, out: Path, change: Change = lambda tensors: None) -> Path:
    shutil.copytree(source, out)
    tensors = load_file(out / "model.safetensors")
    change(tensors)
    save_file(tensors, out / "model.safetensors")
    return out


def configured(source: Path, out: Path, values: dict[str, Any]) -> Path:
    shutil.copytree(source, out)
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | values))
    return out


# Packed matrices.


def drop(suffix: str) -> Change:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if name.endswith(suffix)]:
            del tensors[name]

    return change


def fill(suffix: str, value: float) -> Change:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[FIRST + suffix].fill_(value)

    return change


PACKED: dict[str, tuple[str, Change, str]] = {
    "no zero points": (
        "m-int4-g64-asym",
        drop(".weight_zero_point"),
        "is 4 bits with groups of 64 by its tensors, but .* with zero points",
    ),
    "no scale of FP8": (
        "m-fp8",
        lambda tensors: drop(f"{FIRST}.weight_scale")(tensors),
        rf"{FIRST}\.weight has no scales, which floats of 8 bits need",
    ),
    "no weights of FP8": (
        "m-fp8",
        lambda tensors: drop(f"{FIRST}.weight")(tensors),
        rf"{FIRST}\.weight_scale: packed in a way that .* or not whole",
    ),
    "an infinite global scale": (
        "m-nvfp4",
        fill(".weight_global_scale", float("inf")),
        "weight_global_scale is inf, not a positive number",
    ),
    "a negative global scale": (
        "m-nvfp4",
        fill(".weight_global_scale", -1.0),
        "weight_global_scale is -1, not a positive number",
    ),
}


@pytest.mark.parametrize("name", PACKED)
def test_packed_matrices_that_are_not_whole(
    name: str, made: Callable[[str], Path], tmp_path: Path
) -> None:
    kind, change, words = PACKED[name]
    path = changed(made(kind), tmp_path / kind, change)
    with pytest.raises(CheckpointError, match=words) as caught:
        open_graph(path)
    assert "\n" not in str(caught.value)
    assert weightcast.verify(path).problems


def test_negative_scales_of_fp8(made: Callable[[str], Path], tmp_path: Path) -> None:
    path = changed(made("m-fp8"), tmp_path / "m-fp8", fill(".weight_scale", -1.0))
    with pytest.raises(LayoutError, match="weight_scale has a negative number"):
        weightcast.convert(path, tmp_path / "m-F32.gguf", no_tokenizer=True)


@pytest.mark.parametrize("quantization", [None, {}])
@pytest.mark.parametrize("kind", ["m-fp8", "m-int8-g32", "m-nvfp4"])
def test_packed_matrices_without_an_explanation(
    kind: str, quantization: Any, made: Callable[[str], Path], tmp_path: Path
) -> None:
    said = {"quantization_config": quantization}
    path = configured(made(kind), tmp_path / kind, said)
    with pytest.raises(LayoutError, match="packed in a way that no quantization_config explains"):
        open_graph(path)


def test_packed_shares_of_ranks(made: Callable[[str], Path], tmp_path: Path) -> None:
    path = changed(made("m-fp8"), tmp_path / "m-fp8")
    tensors = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    common = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    save_file(common, path / "pytorch_model-00000-TP-common.safetensors")
    for rank in range(2):
        shares = {
            name: tensor.chunk(2, 1 if ".w2." in name and tensor.shape[1] > 1 else 0)[rank]
            for name, tensor in tensors.items()
            if ".experts." in name
        }
        file = path / f"pytorch_model-00000-TP-{rank:03}.safetensors"
        save_file({name: share.contiguous() for name, share in shares.items()}, file)
    with pytest.raises(LayoutError, match="packed weights of ranks are not read"):
        open_graph(path)


@pytest.mark.parametrize("shape", [(1, -1), (-1, 1, 1), (-1,)])
def test_scales_with_other_axes(
    shape: tuple[int, ...], made: Callable[[str], Path], tmp_path: Path
) -> None:
    """And with the zero points that early versions wrote."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if name.endswith(".weight_scale")]:
            zeros = torch.zeros_like(tensors[name]).to(torch.float8_e4m3fn)
            tensors[name] = tensors[name].reshape(shape).contiguous()
            tensors[name.replace("_scale", "_zero_point")] = zeros

    path = changed(made("m-fp8"), tmp_path / "m-fp8", change)
    outs = [tmp_path / "a-F32.gguf", tmp_path / "b-F32.gguf"]
    for source, out in zip((made("m-fp8"), path), outs, strict=True):
        weightcast.convert(source, out, no_tokenizer=True)
    assert outs[0].read_bytes() == outs[1].read_bytes()


# config.json.


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"hidden_act": "silu"}, "hidden_act silu"),
        ({"moe_router_renormalize": True}, "moe_router_renormalize True"),
        ({"router_logit_softcapping": 30.0}, "router_logit_softcapping 30.0"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling.type linear"),
        ({"rope_scaling": {"factor": 4.0}}, "rope_scaling.factor 4.0"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters.rope_type yarn"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ({"sliding_window": 128}, "sliding_window 128"),
        ({"attention_bias": True}, "attention_bias True"),
    ],
)
def test_what_grok_1_does_not_have(
    values: dict[str, Any], said: str, made: Callable[[str], Path], tmp_path: Path
) -> None:
    path = configured(made("m-bf16"), tmp_path / "m-bf16", values)
    (note,) = open_graph(path).notes
    assert note.replace("'", "") == f"config.json says {said}, which Grok-1 does not have"
    summary = weightcast.convert(path, tmp_path / "m-Q8_0.gguf", no_tokenizer=True)
    assert note in summary.plan.outputs[0].notes


@pytest.mark.parametrize(
    "values",
    [
        {"sliding_window": None, "attention_bias": False, "router_logit_softcapping": 0},
        {"intermediate_size": 1024, "sliding_window": 0, "attn_logit_softcapping": 30.0000005},
        {"rope_theta": None, "rope_parameters": {"rope_theta": 10000.0000001}},
        {"rope_scaling": None, "rope_parameters": {"rope_type": "default", "rope_theta": 10000}},
        {"num_selected_experts": 2, "max_attn_value": 30, "hidden_act": "gelu_pytorch_tanh"},
    ],
)
def test_what_says_the_same(
    values: dict[str, Any], made: Callable[[str], Path], tmp_path: Path
) -> None:
    path = configured(made("m-bf16"), tmp_path / "m-bf16", values)
    assert open_graph(path).notes == ()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"rope_parameters": {"rope_theta": 5e5}},
            "rope_theta is 10000.0, but rope_parameters.rope_theta is 500000.0",
        ),
        ({"max_attn_value": 20}, "attn_logit_softcapping is 30.0, but max_attn_value is 20"),
        ({"num_selected_experts": 1}, "num_experts_per_tok is 2, but num_selected_experts is 1"),
        ({"num_experts": 4}, "num_local_experts is 8, but num_experts is 4"),
    ],
)
def test_keys_that_mean_the_same(
    values: dict[str, Any], words: str, made: Callable[[str], Path], tmp_path: Path
) -> None:
    path = configured(made("m-bf16"), tmp_path / "m-bf16", values)
    with pytest.raises(FormatError, match=rf"config\.json: {re.escape(words)}"):
        open_graph(path)


def test_a_directory_without_its_config(made: Callable[[str], Path], tmp_path: Path) -> None:
    path = changed(made("m-bf16"), tmp_path / "m-bf16")
    (path / "config.json").unlink()
    (problem,) = weightcast.verify(path).problems
    assert "config.json: missing" in problem.line


# Names.


def renamed(rule: Callable[[str], str]) -> Change:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[rule(name)] = tensors.pop(name)

    return change


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (
            lambda name: name.removeprefix("model."),
            r"no tensor of layer 0 is there \(model\.layers\.0\..*, but .embed_tokens.weight. is",
        ),
        (
            lambda name: name.replace("layers.0.", "layers.9."),
            r"no tensor of layer 0 is there \(model\.layers\.0\.",
        ),
        (lambda name: name.replace("layers.1.", "layers.3."), r"no tensor of layer 1 is there"),
    ],
)
def test_layers_that_are_not_found(
    rule: Callable[[str], str], words: str, made: Callable[[str], Path], tmp_path: Path
) -> None:
    path = changed(made("m-bf16"), tmp_path / "m-bf16", renamed(rule))
    with pytest.raises(CheckpointError, match=words):
        open_graph(path)


# PyTorch's files.


def to_bin(source: Path, out: Path, change: Change) -> Path:
    shutil.copytree(source, out)
    tensors = load_file(out / "model.safetensors")
    change(tensors)
    (out / "model.safetensors").unlink()
    torch.save(tensors, out / "pytorch_model.bin")
    return out


def test_matrices_that_lie_turned(made: Callable[[str], Path], tmp_path: Path) -> None:
    """Columns after columns: what is compared are numbers, not bytes of the file."""

    def turn(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name, tensor in tensors.items() if tensor.ndim == 2][::3]:
            tensors[name] = tensors[name].t().contiguous().t()

    path = to_bin(made("m-bf16"), tmp_path / "m-bf16", turn)
    found = weightcast.verify(path, WIDE.path)
    assert [problem.line for problem in found.problems] == []
    assert set(found.matrices) == {"same"}


def test_where_a_turned_matrix_is_damaged(made: Callable[[str], Path], tmp_path: Path) -> None:
    name = "model.layers.1.self_attn.o_proj.weight"

    def turn(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name] = tensors[name].t().contiguous().t()

    path = to_bin(made("m-bf16"), tmp_path / "m-bf16", turn)
    file = path / "pytorch_model.bin"
    array = torch_zip.read_torch(file)[name]
    assert array.axis_strides is not None
    at = array.offset + 2 * (3 * array.axis_strides[0] + 5 * array.axis_strides[1])
    raw = bytearray(file.read_bytes())
    raw[at] ^= 1
    file.write_bytes(raw)
    (problem,) = weightcast.verify(path, WIDE.path).problems
    assert f"the first at byte {at} of the file" in problem.line


@pytest.mark.parametrize(
    "head", [torch.tensor(1.0), torch.ones(4), torch.ones(2, 3), torch.ones(2, 3, 4)]
)
def test_heads_of_other_shapes(
    head: torch.Tensor, made: Callable[[str], Path], tmp_path: Path
) -> None:
    path = changed(
        made("m-bf16"),
        tmp_path / "m-bf16",
        lambda tensors: tensors.update({"lm_head.weight": head}),
    )
    with pytest.raises(LayoutError, match="the output head is not the embedding table"):
        open_graph(path)


@pytest.mark.parametrize("view", [torch._neg_view, lambda t: t])
def test_tensors_that_are_negated(view: Any, made: Callable[[str], Path], tmp_path: Path) -> None:
    def negate(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"{FIRST}.weight"] = view(tensors[f"{FIRST}.weight"].float())

    path = to_bin(made("m-bf16"), tmp_path / "m-bf16", negate)
    if view is torch._neg_view:
        with pytest.raises(FormatError, match="negated"):
            open_graph(path)
    else:
        assert weightcast.verify(path, WIDE.path).is_good


# One cause, one line.


@pytest.mark.parametrize("name", ["m-bf16", "m-Q8_0.gguf", "m-fp8"])
def test_another_model(name: str, made: Callable[[str], Path]) -> None:
    found = weightcast.verify(made(name), Golden("deep").path)
    (problem,) = found.problems
    assert "is of another model: " in problem.line
    assert ", in the source [512, 128]; name the source that this was made of" in problem.line
    assert "the weights: those of another model cannot be compared" in found.unchecked


def test_zero_points_that_are_all_wrong(made: Callable[[str], Path], tmp_path: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if name.endswith(".qzeros")]:
            tensors[name].zero_()

    path = changed(made("m-int4-g32-gptq"), tmp_path / "m-int4-g32-gptq", change)
    (problem,) = weightcast.verify(path, WIDE.path).problems
    assert "w1.qzeros" in problem.line
    assert "is not what belongs there" in problem.line
