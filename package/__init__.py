"""Convert checkpoints to GGUF and safetensors, read their weights, measure what is lost.

checkpoint = weightcast.open("grok-1")                       # names, shapes; nothing is loaded
rows = checkpoint["blk.0.attn_q.weight"][10:20]              # reads ten rows
weightcast.convert("grok-1", "grok-1-Q4_K_M.gguf")           # a file that llama.cpp runs
weightcast.verify("grok-1-Q4_K_M.gguf", "grok-1").is_good    # proves what is in it
weightcast.evaluate("grok-1", "grok-1-Q4_K_M.gguf", text="test.txt")  # what it loses
blocks = weightcast.quantize(array, "Q4_K")                  # numpy or torch, CPU or CUDA
"""

from __future__ import annotations

from importlib import import_module

# `typing` takes a moment to import, in which an interrupt would be a traceback.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from weightcast.converters.checkpoint import Checkpoint, Tensor, open
    from weightcast.converters.compare import Comparison, compare
    from weightcast.converters.convert import Conversion, Summary, convert, plan
    from weightcast.converters.engine.progress import Progress
    from weightcast.converters.report import Metrics, OutputErrors, Report, TensorErrors
    from weightcast.converters.split import merge, split
    from weightcast.converters.summary import OutputSummary
    from weightcast.converters.targets.catalog import TypeInfo, types
    from weightcast.converters.verify import Problem, Verification, verify
    from weightcast.errors import (
        ChangedError,
        CheckpointError,
        DeviceError,
        FormatError,
        LayoutError,
        LimitError,
        MissingPackageError,
        MissingTensorError,
        OutputError,
        RequestError,
        TakenError,
        UnknownTensorError,
        UnsafePickleError,
    )
    from weightcast.evaluation.evaluate import Evaluation
    from weightcast.evaluation.public import evaluate, imatrix, sensitivity
    from weightcast.quant.arrays import dequantize, measure, quantize
    from weightcast.quant.coded import Quantized
    from weightcast.quant.metrics import Errors

    __version__: str

__all__ = [
    "ChangedError",
    "Checkpoint",
    "CheckpointError",
    "Comparison",
    "Conversion",
    "DeviceError",
    "Errors",
    "Evaluation",
    "FormatError",
    "LayoutError",
    "LimitError",
    "Metrics",
    "MissingPackageError",
    "MissingTensorError",
    "OutputError",
    "OutputErrors",
    "OutputSummary",
    "Problem",
    "Progress",
    "Quantized",
    "Report",
    "RequestError",
    "Summary",
    "TakenError",
    "Tensor",
    "TensorErrors",
    "TypeInfo",
    "UnknownTensorError",
    "UnsafePickleError",
    "Verification",
    "compare",
    "convert",
    "dequantize",
    "evaluate",
    "imatrix",
    "measure",
    "merge",
    "open",
    "plan",
    "quantize",
    "sensitivity",
    "split",
    "types",
    "verify",
]

# Imported at their first use, so that the command starts fast and can be interrupted quietly. What
# is not listed is in `errors`.
_MODULES = {
    "Checkpoint": "converters.checkpoint",
    "Comparison": "converters.compare",
    "Conversion": "converters.convert",
    "Errors": "quant.metrics",
    "Evaluation": "evaluation.evaluate",
    "Metrics": "converters.report",
    "OutputErrors": "converters.report",
    "OutputSummary": "converters.summary",
    "Problem": "converters.verify",
    "Progress": "converters.engine.progress",
    "Quantized": "quant.coded",
    "Report": "converters.report",
    "Summary": "converters.convert",
    "Tensor": "converters.checkpoint",
    "TensorErrors": "converters.report",
    "TypeInfo": "converters.targets.catalog",
    "Verification": "converters.verify",
    "compare": "converters.compare",
    "convert": "converters.convert",
    "dequantize": "quant.arrays",
    "evaluate": "evaluation.public",
    "imatrix": "evaluation.public",
    "measure": "quant.arrays",
    "merge": "converters.split",
    "open": "converters.checkpoint",
    "plan": "converters.convert",
    "quantize": "quant.arrays",
    "sensitivity": "evaluation.public",
    "split": "converters.split",
    "types": "converters.targets.catalog",
    "verify": "converters.verify",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("weightcast")
    elif name in __all__:
        module = import_module(f"{__name__}.{_MODULES.get(name, 'errors')}")
        value = getattr(module, name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    kept = (name for name in globals() if name.startswith("__"))
    return sorted({*kept, *__all__, "__version__"})
