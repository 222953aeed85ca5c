"""Compare two checkpoints tensor by tensor: rows of both are read together and measured.

`pair` matches tensors by name and shape, `stream` reads slabs of both through the engine's stream,
`rows` and `measure` hold one against the other. `verify` works on the same pairs.
"""

from weightcast.converters.compare.comparison import Comparison, compare, measure_both, open_both
from weightcast.converters.compare.measure import has_same_bytes, rows_float32
from weightcast.converters.compare.rows import (
    Key,
    PairedRows,
    Sample,
    cut_rows,
    floats,
    measure_rows,
    read_rows,
    row_multiple,
)
from weightcast.converters.compare.stream import (
    PairedBuffers,
    PairedTask,
    cut_tasks,
    stream_rows,
    tiling_of,
)

__all__ = [
    "Comparison",
    "Key",
    "PairedBuffers",
    "PairedRows",
    "PairedTask",
    "Sample",
    "compare",
    "cut_rows",
    "cut_tasks",
    "floats",
    "has_same_bytes",
    "measure_both",
    "measure_rows",
    "open_both",
    "read_rows",
    "row_multiple",
    "rows_float32",
    "stream_rows",
    "tiling_of",
]
