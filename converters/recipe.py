"""Which type each tensor gets, given the type that the output is named after."""

from __future__ import annotations

from dataclasses import dataclass

from weightcast.converters.graph import Tensor, matrices
from weightcast.converters.grok1 import Place
from weightcast.quant.types import F16, F32, Q8_0, QuantType


@dataclass(frozen=True, slots=True)
class Choice:
    """A type, and why it is another one than the output's, if that needs saying."""

    type: QuantType
    reason: str | None = None


def choose(place: Place, tensor: Tensor, base: QuantType) -> Choice:
    """Choose a tensor's type: norms and the router stay F32, the rest gets `base` if it fits.

    Rows that do not fill blocks become F16, as in llama-quantize. An int8 tensor without an exact
    Q8_0 form, because its rows do not fill blocks or its scale groups end inside them, stays exact
    as F32; no tensor of the release is like that.
    """
    if place.role.stays_float32 or len(tensor.shape) < 2:
        return Choice(F32)
    n_in = tensor.shape[-1]
    scales = matrices(tensor)[0].scales
    if not base.fits(n_in):
        exact_or_not = F16 if scales is None else F32
        return Choice(exact_or_not, f"rows of {n_in} do not fill {base.name} blocks")
    if base == Q8_0 and scales is not None:
        group = n_in // scales.shape[1]
        if group % base.block_elements:
            return Choice(F32, f"scale groups of {group} rows end inside {base.name} blocks")
    return Choice(base)
