"""Checkpoint conversion and quantization: JAX shards in, GGUF and safetensors out."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from weightcast.converters.compare import compare
    from weightcast.converters.convert import convert
    from weightcast.converters.sources import open_graph as open
    from weightcast.converters.targets.catalog import TypeInfo, types
    from weightcast.converters.verify import verify
    from weightcast.errors import (
        CheckpointError,
        DeviceError,
        FormatError,
        LayoutError,
        MissingTensorError,
        OutputError,
        RequestError,
        UnsafePickleError,
    )
    from weightcast.quant.arrays import dequantize, measure, quantize
    from weightcast.quant.metrics import Errors

    __version__: str

__all__ = [
    "CheckpointError",
    "DeviceError",
    "Errors",
    "FormatError",
    "LayoutError",
    "MissingTensorError",
    "OutputError",
    "RequestError",
    "TypeInfo",
    "UnsafePickleError",
    "compare",
    "convert",
    "dequantize",
    "measure",
    "open",
    "quantize",
    "types",
    "verify",
]

# Imported at their first use, so that the command starts fast and can be interrupted quietly.
_MODULES = {
    "Errors": "quant.metrics",
    "TypeInfo": "converters.targets.catalog",
    "compare": "converters.compare",
    "convert": "converters.convert",
    "dequantize": "quant.arrays",
    "measure": "quant.arrays",
    "open": "converters.sources",
    "quantize": "quant.arrays",
    "types": "converters.targets.catalog",
    "verify": "converters.verify",
}
_NAMES = {"open": "open_graph"}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("weightcast")
    elif name in __all__:
        module = import_module(f"{__name__}.{_MODULES.get(name, 'errors')}")
        value = getattr(module, _NAMES.get(name, name))
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
