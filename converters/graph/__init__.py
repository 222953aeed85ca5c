"""Tensors of a model as a graph, and the rows of their matrices read from files.

The graph knows stored arrays and operations on tensors (transpose, concatenate, scale, ...), how
these resolve to windows on files, how rows of a matrix come into memory, and in which terms a
family of models is described. It knows no concrete family, no recipe and no output.

What reads (`read`, `gather`, `values`) is imported from there: who only describes needs no numpy.
"""

from weightcast.converters.graph.assembly import Assembly
from weightcast.converters.graph.dimensions import Dimensions, Number
from weightcast.converters.graph.model import (
    Card,
    Download,
    Example,
    Family,
    Hyperparameter,
    Key,
    Module,
    ModuleNames,
    Place,
    Quirks,
    Role,
    Spec,
    Stored,
    TensorGraph,
)
from weightcast.converters.graph.resolve import (
    check_readable,
    first_array,
    is_stored_as,
    matrices,
    windows,
)
from weightcast.converters.graph.stored import stored_as, stored_bytes, stored_files
from weightcast.converters.graph.sums import StoredMatrix
from weightcast.converters.graph.tensor import (
    AddLowRank,
    Quantize,
    Rows,
    Scaled,
    Tensor,
    affine,
    concatenated,
    dequantized,
    interleaved_halves,
    is_sum,
    permuted,
    quantized,
    reshaped,
    scaled,
    sliced,
    split_factor,
    split_pairs,
    stacked,
    stored,
    take,
    transposed,
    unscaled,
    with_low_rank,
)
from weightcast.converters.graph.view import View

__all__ = [
    "AddLowRank",
    "Assembly",
    "Card",
    "Dimensions",
    "Download",
    "Example",
    "Family",
    "Hyperparameter",
    "Key",
    "Module",
    "ModuleNames",
    "Number",
    "Place",
    "Quantize",
    "Quirks",
    "Role",
    "Rows",
    "Scaled",
    "Spec",
    "Stored",
    "StoredMatrix",
    "Tensor",
    "TensorGraph",
    "View",
    "affine",
    "check_readable",
    "concatenated",
    "dequantized",
    "first_array",
    "interleaved_halves",
    "is_stored_as",
    "is_sum",
    "matrices",
    "permuted",
    "quantized",
    "reshaped",
    "scaled",
    "sliced",
    "split_factor",
    "split_pairs",
    "stacked",
    "stored",
    "stored_as",
    "stored_bytes",
    "stored_files",
    "take",
    "transposed",
    "unscaled",
    "windows",
    "with_low_rank",
]
