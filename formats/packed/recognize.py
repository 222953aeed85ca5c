"""Find the parts of packed matrices among the tensors of a safetensors directory.

The layout comes from `quant_method` in the quantization_config of config.json, nearly everything
else from the tensors' own shapes and dtypes: so a recipe's rules need not be matched with names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weightcast.errors import LayoutError
from weightcast.formats.array import StoredArray
from weightcast.formats.packed import LAYOUTS
from weightcast.formats.packed.layout import PackedMatrix
from weightcast.text import shown


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
    marks = tuple(mark for layout in layouts for mark in layout.traits.marks)
    for name in arrays:
        if name.endswith(marks) and name not in taken:
            said = f"quant_method {method} does not explain"
            if method is None:
                said = "no quantization_config explains"
            raise LayoutError(f"{name}: packed in a way that {said}")
    return found
