"""Any GGUF file as a graph: names, shapes and metadata as they are, whatever the architecture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import gcd
from pathlib import Path
from typing import Any, Final

from weightcast.converters.graph import Family, Rows, Tensor, TensorGraph, scaled, stored
from weightcast.formats.array import StoredArray
from weightcast.formats.gguf.factors import read_factors
from weightcast.formats.gguf.header import Metadata
from weightcast.formats.gguf.layout import ggml_shape
from weightcast.formats.gguf.read import ARCHITECTURE_KEY, SPLIT_KEYS, GGUFIndex, whole_number
from weightcast.text import shown

_TOKENS: Final = "tokenizer.ggml.tokens"
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
    """A model described by its GGUF file alone: all metadata, raw."""

    metadata: Metadata = field(repr=False)

    @property
    def architecture(self) -> str:
        """The name of the architecture, in printable form."""
        value = self.metadata.get(ARCHITECTURE_KEY)
        if not isinstance(value, str):
            return "unknown architecture"
        return value if value.isprintable() and len(value) <= 64 else shown(value)

    @property
    def num_layers(self) -> int:
        """Number of layers; 0 if the file does not say."""
        return self._whole("block_count")

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding table; 0 if the file does not say."""
        tokens = self.metadata.array_type(_TOKENS) if _TOKENS in self.metadata else None
        return self._whole("vocab_size") if tokens is None else tokens[1]

    def _whole(self, key: str) -> int:
        architecture = self.metadata.get(ARCHITECTURE_KEY)
        if not isinstance(architecture, str):
            return 0
        return whole_number(self.metadata, f"{architecture}.{key}") or 0

    def describe(self) -> Mapping[str, Any]:
        """Metadata as JSON values; of long arrays type and length."""
        return {key: self._describe(key) for key in self.metadata if key not in SPLIT_KEYS}

    def _describe(self, key: str) -> Any:
        array = self.metadata.array_type(key)
        if array is not None and array[1] > _MAX_LISTED:
            return {"array": array[0], "length": array[1]}
        value = self.metadata[key]
        if array is None:
            return _finite(value)
        # Texts are in a list, numbers in an array.
        return list(map(_finite, value if isinstance(value, list) else value.tolist()))


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: those as text."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def any_gguf(path: Path, index: GGUFIndex) -> TensorGraph:
    """Make a graph of an index: names, order and metadata of the file, whatever the model is.

    Weights are multiplied by the factors beside them, which stay tensors of their own too. Raises
    LayoutError for factors that are none.
    """
    model = GGUFModel(index.metadata)
    family = Family(model.architecture, architecture=model.architecture)
    tensors = {name: stored_tensor(name, array) for name, array in index.tensors.items()}
    factors = read_factors(index.tensors)
    tensors |= {name: scaled(tensors[name], values) for name, values in factors.of.items()}
    return TensorGraph(
        family,
        str(path),
        model,
        tensors,
        "gguf",
        index.paths,
        index.metadata,
        factors=factors,
    )


def stored_tensor(name: str, array: StoredArray) -> Tensor:
    """A stored tensor, as experts or as one matrix, with rows of a bounded length."""
    shape = array.shape
    whole = stored(name, array)
    if not shape or not all(shape):
        return whole
    length, axes = shape[-1], ggml_shape(shape)
    if length > _MAX_ROW_ELEMENTS:
        length = gcd(length, _LARGEST_BLOCK)
    elif len(axes) <= 2 or (len(axes) == 3 and axes[0] <= _MAX_EXPERTS):
        return whole
    return Tensor(name, shape, array.dtype, Rows(whole, length))
