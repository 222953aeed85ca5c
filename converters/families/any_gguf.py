"""Any GGUF file as a graph: names, shapes and metadata as they are, whatever the architecture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import gcd
from pathlib import Path
from typing import Any, Final

import numpy as np

from weightcast.converters.graph.tensor import Rows, Tensor, TensorGraph, stored
from weightcast.errors import LayoutError
from weightcast.formats.array import StoredArray
from weightcast.formats.gguf.header import Metadata
from weightcast.formats.gguf.read import SPLIT_KEYS, GGUFIndex
from weightcast.text import shown

ARCHITECTURE_KEY: Final = "general.architecture"
# Longer arrays are named by type and length only.
_MAX_LISTED = 16
# A tensor of three axes is a stack of experts; larger stacks than this are none.
_MAX_EXPERTS = 4096
# Rows of 16 MiB as float32: longer ones are cut, so that a piece of work stays small.
_MAX_ROW_ELEMENTS = 1 << 22
# Every type's blocks divide this.
_LARGEST_BLOCK = 256


@dataclass(frozen=True, slots=True)
class GGUFModel:
    """What a GGUF file says of itself: all metadata, raw."""

    metadata: Metadata = field(repr=False)

    @property
    def architecture(self) -> str:
        """The name of the architecture, in printable form."""
        value = self.metadata.get(ARCHITECTURE_KEY)
        if not isinstance(value, str):
            return "unknown architecture"
        return value if value.isprintable() and len(value) <= 64 else shown(value)

    def describe(self) -> Mapping[str, Any]:
        """Metadata as JSON values; of long arrays type and length."""
        return {key: self._describe(key) for key in self.metadata if key not in SPLIT_KEYS}

    def _describe(self, key: str) -> Any:
        array = self.metadata.array_type(key)
        if array is not None and array[1] > _MAX_LISTED:
            return {"array": array[0], "length": array[1]}
        value = self.metadata[key]
        if isinstance(value, np.ndarray):
            value = value.tolist()
        if isinstance(value, list):
            return [_finite(element) for element in value]
        return _finite(value)


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: those as text."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def graph_from_index(path: Path, index: GGUFIndex) -> TensorGraph[GGUFModel]:
    """Turn an index into a graph, tensors in their order. Raises LayoutError for empty ones."""
    model = GGUFModel(index.metadata)
    tensors = {name: stored_tensor(name, array) for name, array in index.tensors.items()}
    return TensorGraph(model.architecture, str(path), model, tensors, index.paths)


def stored_tensor(name: str, array: StoredArray) -> Tensor:
    """A stored tensor, as experts or as one matrix, with rows of a bounded length."""
    shape = array.shape
    if not all(shape):
        raise LayoutError(f"{array.path}: tensor {shown(name)} is empty: shape {list(shape)}")
    whole = stored(name, array)
    length = shape[-1]
    if length > _MAX_ROW_ELEMENTS:
        length = gcd(length, _LARGEST_BLOCK)
    elif len(shape) <= 2 or (len(shape) == 3 and shape[0] <= _MAX_EXPERTS):
        return whole
    return Tensor(name, shape, array.dtype, Rows(whole, length))
