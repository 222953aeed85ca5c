"""Directories of adapters as peft saves them, and those that are more than a LoRA."""

from __future__ import annotations

import json
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.adapters import write_peft
from weightcast.errors import CheckpointError, FormatError, LayoutError, MissingTensorError
from weightcast.formats.peft import is_adapter, read_adapter

MODULES = {"model.layers.0.self_attn.q_proj": (6, 4), "model.layers.1.mlp.up_proj": (8, 4)}


@pytest.mark.parametrize("ending", [".weight", ".default.weight", ".my-adapter.weight", ""])
def test_names_of_factors(tmp_path: Path, ending: str) -> None:
    found = read_adapter(write_peft(tmp_path / "a", MODULES, ending=ending))
    assert set(found.modules) == set(MODULES)
    for name, (n_out, n_in) in MODULES.items():
        module = found.modules[name]
        assert (module.a.shape, module.b.shape) == ((4, n_in), (n_out, 4))
        assert (module.rank, module.multiplier) == (4, 2.0)
        assert not module.is_embedding


def test_factors_of_an_embedding(tmp_path: Path) -> None:
    extra = {
        "base_model.model.model.embed_tokens.lora_embedding_A": np.zeros((3, 10), np.float32),
        "base_model.model.model.embed_tokens.lora_embedding_B": np.zeros((4, 3), np.float32),
    }
    found = read_adapter(write_peft(tmp_path / "a", {}, extra=extra))
    (module,) = found.modules.values()
    assert module.is_embedding
    assert module.multiplier == 8 / 3


def test_a_file_of_pytorch(tmp_path: Path) -> None:
    folder = write_peft(tmp_path / "a", MODULES)
    (folder / "adapter_model.safetensors").unlink()
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_"
    tensors = {f"{name}A.weight": torch.ones(2, 4), f"{name}B.weight": torch.ones(6, 2).half()}
    torch.save(tensors, folder / "adapter_model.bin")
    (module,) = read_adapter(folder).modules.values()
    assert (module.name, module.a.dtype, module.b.dtype) == (
        "model.layers.0.mlp.up_proj",
        "F32",
        "F16",
    )


def test_multipliers(tmp_path: Path) -> None:
    patterns = {"layers.1.mlp.up_proj": 2, "q_pro": 100, r"model\.layers\.7.*": 50}
    by_rank = read_adapter(write_peft(tmp_path / "a", MODULES, alpha_pattern=patterns))
    assert [m.multiplier for m in by_rank.modules.values()] == [2.0, 0.5]
    by_root = read_adapter(
        write_peft(tmp_path / "b", MODULES, alpha_pattern=patterns, use_rslora=True, rank=5)
    )
    expected = [8 / sqrt(5), 2 / sqrt(5)]
    assert [m.multiplier for m in by_root.modules.values()] == expected


@pytest.mark.parametrize("start", [True, False, None, "gaussian", "eva"])
def test_starts_that_leave_the_model_as_it_is(tmp_path: Path, start: object) -> None:
    assert read_adapter(write_peft(tmp_path / "a", MODULES, init_lora_weights=start)).modules


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_16", "olora", "corda", "loftq"])
def test_starts_that_change_the_model(tmp_path: Path, start: str) -> None:
    folder = write_peft(tmp_path / "a", MODULES, init_lora_weights=start)
    with pytest.raises(LayoutError, match=f"taken from the model's weights .*'{start}'"):
        read_adapter(folder)


def test_what_else_the_configuration_says(tmp_path: Path) -> None:
    folder = write_peft(
        tmp_path / "a",
        MODULES,
        base_model_name_or_path="meta/llama",
        alora_invocation_tokens=[5, 7],
        extra={"base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight": np.ones(3)},
    )
    found = read_adapter(folder)
    assert is_adapter(folder)
    assert (found.base_model, found.invocation) == ("meta/llama", (5, 7))
    assert found.files == (folder / "adapter_model.safetensors", folder / "adapter_config.json")


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"peft_type": "LOHA"}, "an adapter of type 'LOHA', not LORA"),
        ({"peft_type": None}, "an adapter of type None"),
        ({"use_dora": True}, "a DoRA, which scales columns by their magnitudes too"),
        ({"modules_to_save": ["lm_head"]}, "an adapter with whole modules beside it"),
        ({"bias": "lora_only"}, "an adapter with trained biases"),
        ({"lora_bias": True}, "an adapter with biases of its own"),
        ({"fan_in_fan_out": True}, "an adapter of transposed layers"),
        ({"target_parameters": ["experts"]}, "an adapter of parameters that are no layers"),
        ({"trainable_token_indices": [1]}, "an adapter with rows of the embedding"),
        ({"layer_replication": [[0, 4]]}, "an adapter of a model with repeated layers"),
    ],
)
def test_kinds_that_are_not_supported(
    tmp_path: Path, config: dict[str, object], problem: str
) -> None:
    folder = write_peft(tmp_path / "a", MODULES, **config)
    with pytest.raises(LayoutError) as caught:
        read_adapter(folder)
    assert str(caught.value).startswith(f"{folder / 'adapter_config.json'}: {problem}")
    assert "merge_and_unload" in str(caught.value)


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"lora_alpha": "16"}, "lora_alpha is '16', not a number"),
        ({"lora_alpha": True}, "lora_alpha is True"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
        ({"lora_alpha": 10**400}, "lora_alpha is 1000"),
        ({"alpha_pattern": {"q_proj": None}}, "alpha_pattern is None"),
        ({"alpha_pattern": {"(a+)+$": 2}}, "is too complex to match"),
        ({"alpha_pattern": {"(a|aa)*$": 2}}, "is too complex to match"),
        ({"alpha_pattern": {"a*a*a*b": 2}}, "is too complex to match"),
        ({"alpha_pattern": [1]}, "alpha_pattern is no object of numbers"),
        ({"invocation_string": "<|start|>"}, "an invocation_string without its tokens"),
        ({"alora_invocation_tokens": [-1]}, "alora_invocation_tokens is no list of tokens"),
    ],
)
def test_values_that_make_no_sense(tmp_path: Path, config: dict[str, object], problem: str) -> None:
    with pytest.raises(FormatError, match=problem):
        read_adapter(write_peft(tmp_path / "a", MODULES, **config))


Q_PROJ = "base_model.model.model.layers.5.self_attn.q_proj"


@pytest.mark.parametrize(
    ("shapes", "problem"),
    [
        ({f"{Q_PROJ}.lora_A.weight": (2, 4)}, "has no lora_B"),
        ({f"{Q_PROJ}.lora_A.weight": (2, 4), f"{Q_PROJ}.lora_B.weight": (4, 3)}, "ranks differ"),
        ({f"{Q_PROJ}.lora_A.weight": (0, 4), f"{Q_PROJ}.lora_B.weight": (4, 0)}, "or are 0"),
        ({f"{Q_PROJ}.lora_A.weight": (2, 4), f"{Q_PROJ}.lora_B.weight": (4,)}, "no pair"),
        ({f"{Q_PROJ}.lora_magnitude_vector": (4,)}, "is no factor of a LoRA"),
        ({"base_model.model.lm_head.weight": (4, 4)}, "is no factor of a LoRA"),
        ({f"{Q_PROJ}.lora_A.a.weight": (2, 4), f"{Q_PROJ}.lora_A.b.weight": (2, 4)}, "there twice"),
        ({f"{Q_PROJ}.lora_A.a.weight": (2, 4), f"{Q_PROJ}.lora_B.b.weight": (4, 2)}, "of several"),
    ],
)
def test_tensors_that_are_no_pairs(
    tmp_path: Path, shapes: dict[str, tuple[int, ...]], problem: str
) -> None:
    extra = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    with pytest.raises(CheckpointError, match=problem):
        read_adapter(write_peft(tmp_path / "a", {}, extra=extra))


def test_files_that_are_missing(tmp_path: Path) -> None:
    assert not is_adapter(tmp_path)
    folder = write_peft(tmp_path / "a", {})
    with pytest.raises(MissingTensorError, match="no tensors of an adapter"):
        read_adapter(folder)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(MissingTensorError, match=r"adapter_model\.safetensors is missing"):
        read_adapter(folder)


def test_a_pattern_that_is_no_expression_is_a_name(tmp_path: Path) -> None:
    folder = write_peft(tmp_path / "a", MODULES, alpha_pattern={"(": 3, "q_proj": 4})
    assert json.loads((folder / "adapter_config.json").read_text())["alpha_pattern"]
    first, _ = read_adapter(folder).modules.values()
    assert first.multiplier == 1.0
