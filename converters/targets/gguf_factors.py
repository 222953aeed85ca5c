"""Factors beside weights in GGUF made of GGUF: those that are kept, and those found for NVFP4.

A factor (formats/gguf/factors.py) stays beside its weights, and their blocks are quantized without
it: llama.cpp multiplies by it whatever their type, and the bytes are llama-quantize's. Only where
llama.cpp would refuse or ignore the factor with a type that NVFP4 becomes, which depends on the
tensor and the architecture, are the weights multiplied, and the factor and the scale of activations
beside it left out. What stays NVFP4 stays as it is.

For other weights factors can be found (nvfp4_factors.py), so that small ones keep their precision.

llama.cpp's tools write factors only of models that were trained in NVFP4, and llama-quantize none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from weightcast.converters.graph import Scaled, Tensor, TensorGraph, is_sum, scaled, unscaled
from weightcast.converters.recipes import Decision
from weightcast.converters.targets.nvfp4_factors import factor_for, largest_magnitudes
from weightcast.converters.targets.target import Request
from weightcast.formats.array import StoredArray
from weightcast.formats.gguf.factors import FACTOR, INPUT_SCALE, factor_name, is_multiplied
from weightcast.formats.gguf.header import Metadata
from weightcast.formats.gguf.read import ARCHITECTURE_KEY
from weightcast.quant.types import NVFP4
from weightcast.text import count


@dataclass(frozen=True, slots=True)
class WrittenFactors:
    """The factors of an output by their tensors' names: all (`beside`), and those that are found.

    The `multiplied` have none any more. `architecture` is that of the output, by which llama.cpp
    multiplies.
    """

    architecture: str
    beside: Mapping[str, tuple[float, ...]]
    found: Mapping[str, tuple[float, ...]]
    multiplied: tuple[str, ...]

    @property
    def left_out(self) -> set[str]:
        """Name the tensors of the source that are not written."""
        return {factor_name(n, ending) for n in self.multiplied for ending in (FACTOR, INPUT_SCALE)}

    def divided(self, tensor: Tensor) -> Tensor:
        """Give what lies in an output beside factors: the stored blocks if these have them."""
        factors = self.beside.get(tensor.name, ())
        if not factors:
            return tensor
        if isinstance(tensor.origin, Scaled):
            return unscaled(tensor)
        return scaled(tensor, [1 / factor for factor in factors])


def written_factors(
    graph: TensorGraph, chosen: Mapping[str, Decision], request: Request
) -> WrittenFactors:
    """Tell which factors an output has; those that are asked for are found by reading weights.

    Raises CheckpointError.
    """
    asked = Metadata(request.metadata).get(ARCHITECTURE_KEY)
    architecture = asked if isinstance(asked, str) else graph.family.architecture
    multiplied = _multiplied(graph, chosen, architecture)
    kept = {name: of for name, of in graph.factors.of.items() if name not in multiplied}
    found = _find_factors(graph, chosen, architecture) if request.nvfp4_factors else {}
    return WrittenFactors(architecture, {**kept, **found}, found, multiplied)


def factor_notes(
    graph: TensorGraph, chosen: Mapping[str, Decision], written: WrittenFactors
) -> Iterator[str]:
    """Say what was multiplied, and what llama.cpp will not multiply."""
    sums = [name for name in written.multiplied if is_sum(graph[name])]
    if sums:
        yield (
            "multiplied by the factor beside it, as adapters are added to the product: "
            f"{count(len(sums), 'tensor')}, for example {sums[0]}"
        )
    others = [name for name in written.multiplied if name not in sums]
    if others:
        yield (
            "multiplied by the factor beside it, which llama.cpp would not do with that type: "
            f"{count(len(others), 'tensor')}, for example {others[0]}"
        )
    ignored = [
        name
        for name in graph.factors.of
        if name in chosen and name not in written.multiplied and graph[name].dtype == NVFP4.name
        if not is_multiplied(written.architecture, name, NVFP4.name)
    ]
    if ignored:
        yield (
            "copied with a factor beside it, which llama.cpp refuses or ignores in this "
            f"architecture, but not once it has another type: {count(len(ignored), 'tensor')}, "
            f"for example {ignored[0]}"
        )


def _multiplied(
    graph: TensorGraph, chosen: Mapping[str, Decision], architecture: str
) -> tuple[str, ...]:
    """List the tensors with factors that become something with none beside it.

    They are those of NVFP4 that become a type which llama.cpp multiplies by no factor, and those
    that adapters are added to.
    """
    return tuple(
        name
        for name in graph.factors.of
        if is_sum(graph[name])
        or (
            graph[name].dtype == NVFP4.name
            and (made := chosen[name].type) not in (None, NVFP4)
            and not is_multiplied(architecture, name, made.name)
        )
    )


def _find_factors(
    graph: TensorGraph, chosen: Mapping[str, Decision], architecture: str
) -> dict[str, tuple[float, ...]]:
    """Find factors, one or one for each expert, of tensors that llama.cpp will multiply by them.

    Reads these tensors whole, in bounded memory. Raises CheckpointError.
    """
    return {
        name: tuple(map(factor_for, largest_magnitudes(graph[name])))
        for name, decision in chosen.items()
        if decision.type == NVFP4 and _may_have_one(graph, name, architecture)
    }


def _may_have_one(graph: TensorGraph, name: str, architecture: str) -> bool:
    tensor = graph[name]
    # llama.cpp adds biases before it multiplies there, and stops rather than do it.
    has_bias = ".ffn_" in name and factor_name(name, ".bias") in graph
    is_matrix = isinstance(tensor.origin, StoredArray) and len(tensor.shape) > 1
    return (
        is_matrix
        and tensor.dtype != NVFP4.name
        and not has_bias
        and factor_name(name) not in graph
        and is_multiplied(architecture, name, NVFP4.name)
    )
