"""Second moments of inputs meet outputs: which matrices are rounded with error feedback."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from weightcast.converters.graph import Quantize, matrices
from weightcast.converters.targets.target import FeedbackMap, Output, PlannedTensor
from weightcast.errors import LayoutError
from weightcast.formats.hessians import Hessians, StoredMoments
from weightcast.quant.feedback import as_weights, has_feedback
from weightcast.quant.types import WeightType

Moments = tuple[StoredMoments | None, ...]


def with_feedback(output: Output, hessians: Hessians | None) -> Output:
    """Give the tensors of an output that are quantized the second moments of their inputs.

    Where nothing else says how columns weigh, these do. Raises CheckpointError for entries of
    another size, LayoutError if the file has nothing to do with the model.
    """
    rounded = [planned for planned in output.tensors if _is_rounded(planned)]
    if hessians is None or not rounded:
        return output
    found = {planned.tensor.name: _find(hessians, planned) for planned in rounded}
    if not any(any(moments) for moments in found.values()):
        raise LayoutError(
            f"{hessians.path}: belongs to another model: none of its {len(hessians.entries)} "
            "entries is named like a quantized tensor of this one (its first is "
            f"{min(hessians.entries)})"
        )
    missing = [p.gguf_name for p in rounded if not any(found[p.tensor.name])]
    without = [p.gguf_name for p in rounded if not has_feedback(_type(p))]
    tensors, unused = [], {}
    for planned in output.tensors:
        moments = found.get(planned.tensor.name, ())
        if any(moments):
            planned, zeros = _given(planned, moments)
            if zeros:
                unused[planned.tensor.name] = zeros
        tensors.append(planned)
    feedback = FeedbackMap(
        hessians, tuple(dict.fromkeys(missing)), tuple(dict.fromkeys(without)), unused
    )
    notes = (*output.notes, *feedback.notes())
    return replace(output, tensors=tuple(tensors), feedback=feedback, notes=notes)


def _type(planned: PlannedTensor) -> WeightType:
    return planned.type if planned.packed is None else planned.packed.packing.type


def _is_rounded(planned: PlannedTensor) -> bool:
    """Tell whether a tensor is quantized anew, to more than plain floats."""
    packing = None if planned.packed is None else planned.packed.packing
    keeps = packing is not None and packing.keeps_codes
    is_made = isinstance(planned.tensor.origin, Quantize)
    return is_made and not keeps and not _type(planned).is_plain and len(planned.tensor.shape) > 1


def _find(hessians: Hessians, planned: PlannedTensor) -> Moments:
    """Find the moments of each matrix, by the name in the output or else by that of GGUF."""
    of, n_in = len(matrices(planned.tensor)), planned.tensor.shape[-1]
    if planned.tensor.name in hessians.entries:
        name = planned.tensor.name
        return tuple(hessians.find(name, number, of, n_in) for number in range(of))
    if planned.expert is not None:
        return (hessians.find(planned.gguf_name, planned.expert, None, n_in),)
    return tuple(hessians.find(planned.gguf_name, number, of, n_in) for number in range(of))


def _given(planned: PlannedTensor, found: Moments) -> tuple[PlannedTensor, tuple[int, ...]]:
    """Give a tensor its moments, and the importance of their diagonals; tell which are zeros."""
    diagonals = [None if moments is None else moments.diagonal() for moments in found]
    zeros = tuple(n for n, d in enumerate(diagonals) if d is not None and not d.any())
    usable = tuple(None if n in zeros else moments for n, moments in enumerate(found))
    importance = planned.importance
    if importance is None:
        nothing = np.zeros(planned.tensor.shape[-1], np.float32)
        importance = np.stack([as_weights(nothing if d is None else d) for d in diagonals])
    if not has_feedback(_type(planned)):
        usable = ()
    return replace(planned, importance=importance, moments=usable), zeros
