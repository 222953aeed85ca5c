"""Write quant/kernels/blocks/iq_grids.h from the gguf package, which carries the IQ types' grids.

python -m tests.quant.iq_grids > quant/kernels/blocks/iq_grids.h
"""

from __future__ import annotations

import numpy as np
from gguf import quants
from numpy.typing import NDArray

HEADER = """\
// The grids of the IQ types: which combinations of levels a group of 4 or 8 weights can have.
//
// Element i of an entry is the level (entry >> bits * i) & (2^bits - 1); bits are 3 in groups of 4,
// 2 in groups of 8. Made by tests/quant/iq_grids.py from `grid_hex`, `grid_shape` and `grid_map` of
// the classes in gguf.quants (MIT licence, https://github.com/ggml-org/llama.cpp, gguf-py).
#pragma once

#include <cstdint>

namespace weightcast {
namespace {
"""
FOOTER = """
}  // namespace
}  // namespace weightcast
"""
GRIDS = {
    "kGridIQ2XXS": quants.IQ2_XXS,
    "kGridIQ2XS": quants.IQ2_XS,
    "kGridIQ2S": quants.IQ2_S,
    "kGridIQ1": quants.IQ1_S,  # and IQ1_M
    "kGridIQ3XXS": quants.IQ3_XXS,
    "kGridIQ3S": quants.IQ3_S,
}
PER_LINE = 12


def levels(quant: type[quants.__Quant]) -> NDArray[np.intp]:
    """Give the level of each element of a grid, [entries, elements], as indices of `grid_map`."""
    quant.init_grid()
    assert quant.grid is not None
    grid = quant.grid.reshape(quant.grid_shape)
    found: NDArray[np.intp] = np.searchsorted(quant.grid_map, grid)
    assert (np.array(quant.grid_map)[found] == grid).all()
    return found


def packed(quant: type[quants.__Quant]) -> NDArray[np.uint16]:
    """Pack the levels of a grid as the header says."""
    found = levels(quant)
    elements = found.shape[1]
    bits = {4: 3, 8: 2}[elements]
    codes: NDArray[np.uint16] = (found << bits * np.arange(elements)).sum(1).astype(np.uint16)
    return codes


def header() -> str:
    """Compose the C++ header."""
    lines = [HEADER]
    for name, quant in GRIDS.items():
        codes = packed(quant)
        lines.append(f"constexpr uint16_t {name}[{codes.size}] = {{")
        for start in range(0, codes.size, PER_LINE):
            lines.append(
                "    " + " ".join(f"0x{code:04x}," for code in codes[start : start + PER_LINE])
            )
        lines.append("};")
    return "\n".join(lines) + "\n" + FOOTER


if __name__ == "__main__":
    print(header(), end="")
