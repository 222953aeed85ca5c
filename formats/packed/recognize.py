"""Find the parts of packed matrices among the tensors of a safetensors directory.

The layout comes from `quant_method` in the quantization_config of config.json, nearly everything
else from the tensors' own shapes and dtypes: so a recipe's rules need not be matched with names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from weightcast.errors import LayoutError
from weightcast.formats.array import StoredArray
from weightcast.formats.packed import LAYOUTS
from weightcast.formats.packed.layout import PackedMatrix
from weightcast.text import shown

_WEIGHT: Final = ".weight"


def recognize(
    config: Mapping[str, Any] | None, arrays: Mapping[str, StoredArray]
) -> dict[str, PackedMatrix]:
    """Find the packed matrices among all tensors of a directory, by the name of their module.

    `config` is its quantization_config. Parts are there, with the shapes that belong to the type.
    Raises LayoutError or MissingTensorError, with the tensor's name, for anything else.
    """
    config = config or {}
    if not isinstance(config, Mapping):
        raise LayoutError(f"quantization_config is {shown(config)}, not an object")
    method = config.get("quant_method")
    layouts = sorted(LAYOUTS.values(), key=lambda layout: not layout.traits.describes_itself)
    methods = dict.fromkeys(layout.traits.quant_method for layout in layouts)
    if not isinstance(method, str | None) or (method is not None and method not in methods):
        known = ", ".join(methods)
        raise LayoutError(f"quant_method {shown(method)} is not read, only {known}")
    found: dict[str, PackedMatrix] = {}
    for layout in layouts:
        traits = layout.traits
        if traits.describes_itself if method is None else traits.quant_method == method:
            found |= layout.find(config, arrays)
    taken = {name + suffix for name, matrix in found.items() for suffix in matrix.parts}
    for name in arrays:
        if is_part(name) and name not in taken:
            said = f"quant_method {method} does not explain"
            if method is None:
                said = "no quantization_config explains"
            raise LayoutError(f"{name}: packed in a way that {said}, or not whole")
        if name.endswith(_WEIGHT) and name not in taken and arrays[name].dtype == "F8_E4M3":
            raise LayoutError(f"{name} has no scales, which floats of 8 bits need")
    return found


def is_part(name: str) -> bool:
    """Tell names that only parts of packed matrices have."""
    return name.endswith(tuple(m for layout in LAYOUTS.values() for m in layout.traits.marks))
