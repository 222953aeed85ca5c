#!/usr/bin/env python3
"""Load a directory with vLLM's own loader and compare every parameter with the safetensors.

vLLM's Grok loader skips tensors whose names it does not know, and then leaves a parameter as it was
allocated: "it loaded" says nothing. So every parameter holds a pattern before loading (NaN, or
0x5A5A5A5A); afterwards each must hold the bits of the tensors it is made of, in the dtype that vLLM
gave it. Loading ends before vLLM repacks weights for its kernels.

Kernels for packed weights are chosen as on a GPU: vLLM is told that there is one of compute
capability 9.0, so its own checks of bits, group sizes and shapes decide, not those of its CPU
kernels. Nothing runs on it. The virtual environment is described in the README beside this file.

    python benchmarks/runtimes/vllm_load.py DIRECTORY...
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import vllm
from safetensors import safe_open
from torch import nn
from vllm import _custom_ops
from vllm.config import set_current_vllm_config
from vllm.distributed import ensure_model_parallel_initialized, init_distributed_environment
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.model_loader.utils import initialize_model
from vllm.platforms.cpu import CpuPlatform
from vllm.platforms.interface import DeviceCapability, PlatformEnum
from vllm.utils.torch_utils import set_default_torch_dtype
from vllm_parameters import Expected, Tensors, expected_parameters, is_stored

PATTERN = 0x5A5A5A5A
# Where vLLM's methods and schemes keep the kernel that they chose.
_KERNELS = ("kernel", "linear_kernel", "fp8_linear", "experts_cls")


class NominalCuda(CpuPlatform):
    """A CPU that vLLM takes for a GPU of compute capability 9.0 when it chooses kernels."""

    _enum = PlatformEnum.CUDA

    @classmethod
    def get_device_capability(cls, device_id: int = 0) -> DeviceCapability:
        return DeviceCapability(9, 0)

    @classmethod
    def supports_fp8(cls) -> bool:
        return bool(cls.has_device_capability(89))


def answer_as_cuda_build() -> None:
    """Give the answer that vLLM's CUDA extension gives for this GPU; the CPU build has no such."""
    _custom_ops.cutlass_scaled_mm_supports_block_fp8 = lambda capability: capability >= 90


def read_tensors(directory: Path) -> Tensors:
    """Read every tensor of every file."""
    tensors: Tensors = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            tensors.update({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    return tensors


def load(
    directory: Path, config: dict[str, Any], prepare: Callable[[nn.Module], None]
) -> nn.Module:
    """Build vLLM's model, let `prepare` change it, then run vLLM's loader over the directory.

    The dtype is said because vLLM's "auto" makes bfloat16 of float32 on a CPU.
    """
    platform = vllm.platforms.current_platform
    # Not earlier: on a GPU, vLLM imports extensions that its CPU build does not have.
    platform.__class__ = NominalCuda if "quantization_config" in config else CpuPlatform
    engine = EngineArgs(
        model=str(directory),
        dtype=config["torch_dtype"],
        skip_tokenizer_init=True,
        enforce_eager=True,
    ).create_engine_config()
    with (
        tempfile.TemporaryDirectory() as folder,
        set_current_vllm_config(engine),
        set_default_torch_dtype(engine.model_config.dtype),
    ):
        init_distributed_environment(1, 0, f"file://{folder}/store", 0, "gloo")
        ensure_model_parallel_initialized(1, 1)
        model = initialize_model(engine)
        prepare(model)
        DefaultModelLoader(engine.load_config).load_weights(model, engine.model_config)
    return model


def fill(model: nn.Module) -> None:
    """Give every parameter a value that no weight has, so that what is left out shows."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(_unloaded(parameter))


def _unloaded(parameter: torch.Tensor) -> float | int:
    if parameter.is_floating_point():
        return torch.nan
    return PATTERN & ((1 << 8 * min(parameter.itemsize, 4)) - 1)


def is_unloaded(parameter: torch.Tensor) -> torch.Tensor:
    """Where a parameter is still as `fill` left it."""
    if parameter.is_floating_point():
        return parameter.isnan()
    return parameter == _unloaded(parameter)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors have the same shape, dtype and bytes."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def is_equal(parameter: torch.Tensor, alternatives: tuple[torch.Tensor, ...]) -> bool:
    """Whether a parameter holds one of these, converted to its dtype."""
    return any(same_bits(parameter, wanted.to(parameter.dtype)) for wanted in alternatives)


def methods(model: nn.Module) -> dict[str, int]:
    """Count what vLLM chose to compute modules with: the method, the scheme, the kernel."""
    chosen: Counter[str] = Counter()
    for name, module in model.named_modules():
        method = getattr(module, "quant_method", None)
        if method is None or not any(word in name for word in ("_proj", ".routed_experts", "gate")):
            continue
        words = [name.rpartition(".")[2], type(method).__name__]
        scheme = getattr(module, "scheme", None)
        for holder in (scheme, method):
            found = (getattr(holder, name, None) for name in _KERNELS)
            for kernel in filter(None, found):
                words.append(getattr(kernel, "__name__", type(kernel).__name__))
        chosen[" ".join(words)] += 1
    return dict(chosen)


def compare(model: nn.Module, expected: Expected) -> dict[str, Any]:
    """Compare the parameters with what they should hold; tied ones once."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    names = {name for name in parameters if is_stored(name) or name in expected}
    equal = {n for n in names & expected.keys() if is_equal(parameters[n], expected[n])}
    never_loaded = {n for n in names - equal if is_unloaded(parameters[n]).any()}
    return {
        "parameters_compared": len(names),
        "parameters_equal": len(equal),
        "parameters_never_loaded": len(never_loaded),
        "differing": sorted((names | expected.keys()) - equal),
        "never_loaded": sorted(never_loaded),
        "not_stored": sorted({n.rpartition(".")[2] for n in parameters.keys() - names}),
    }


def check(directory: Path) -> dict[str, Any]:
    """Load a directory and compare; if vLLM refuses it, say where and why."""
    config = json.loads((directory / "config.json").read_bytes())
    about = {"directory": directory.name, "vllm": vllm.__version__, "dtype": config["torch_dtype"]}
    try:
        model = load(directory, config, fill)
    except Exception as problem:
        last = traceback.extract_tb(problem.__traceback__)[-1]
        where = f"{Path(last.filename).name}:{last.lineno} {last.line}"
        return about | {"refused": f"{type(problem).__name__}: {problem}", "at": where}
    tensors = read_tensors(directory)
    expected: Expected = {}
    try:
        expected = expected_parameters(tensors, config)
    except KeyError as missing:
        about["missing"] = str(missing)
    result = compare(model, expected)
    about |= {"model": type(model).__name__, "methods": methods(model)}
    return about | result | {"tensors_not_used": sorted(tensors)}


def main() -> None:
    """Print the result of each directory as JSON; fail unless every parameter is equal."""
    if len(sys.argv) < 2:
        sys.exit("usage: vllm_load.py DIRECTORY...")
    answer_as_cuda_build()
    failed = False
    for directory in sys.argv[1:]:
        result = check(Path(directory).resolve())
        print(json.dumps(result, indent=2), flush=True)
        failed = failed or "refused" in result or bool(result["differing"])
    sys.exit(failed)


if __name__ == "__main__":
    main()
