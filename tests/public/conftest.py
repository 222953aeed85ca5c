"""Outputs of a tiny checkpoint in every container, made once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import weightcast

KINDS = (
    "m-Q8_0.gguf",
    "m-Q4_K_M.gguf",
    "m-Q2_K.gguf",
    "m-BF16.gguf",
    "m-bf16",
    "m-int8-g32-gptq",
    "m-int4-g128",
    "m-int4-g32-asym-gptq_v2",
    "m-int4-g32-awq",
    "m-mxfp4",
    "m-nvfp4",
    "m-fp8",
    "m-weightcast-int4",
)
CONTAINERS = ("shards", "torch", *KINDS)


@pytest.fixture(scope="session")
def made(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every container by its name, those that are converted made in one read."""
    folder = tmp_path_factory.mktemp("made")
    paths = {name: folder / name for name in KINDS}
    weightcast.convert(tiny, list(paths.values()), no_tokenizer=True)
    as_torch = folder / "torch"
    as_torch.mkdir()
    (file,) = paths["m-bf16"].glob("*.safetensors")
    torch.save(load_file(file), as_torch / "pytorch_model.bin")
    config = json.loads((paths["m-bf16"] / "config.json").read_text())
    (as_torch / "config.json").write_text(json.dumps(config))
    return {"shards": tiny, "torch": as_torch, **paths}
