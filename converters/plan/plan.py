"""The plan: what is read, what is made of it and where it goes, known before a weight is read.

A work item is one slab of one stored matrix with everything that is made of it, so one read feeds
all outputs. Items are independent and write to places of their own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import lcm

import numpy as np
from numpy.typing import NDArray

from weightcast.converters.files import page_cache
from weightcast.converters.graph import Quantize, StoredMatrix, TensorGraph, matrices
from weightcast.converters.plan.budget import Budget, budget_of
from weightcast.converters.recipes import is_quantized
from weightcast.converters.sources import Inputs
from weightcast.converters.targets.target import Output, Packed
from weightcast.formats.hessians import StoredMoments
from weightcast.quant.search import GGML, Search
from weightcast.quant.types import QuantType


@dataclass(frozen=True, slots=True)
class Destination:
    """The place of one matrix's rows: output, file, byte offset of the first row.

    `importance`, float32 [in], is what weighs the columns; `is_copied` says that the stored bytes
    go there as they are; what is `packed` goes to several places. Weights are the rows times the
    `factor` that lies beside them; `search` is the rule that makes them. With `moments`, codes are
    chosen with error feedback.
    """

    output: int
    file: int
    offset: int
    type: QuantType
    tensor: str
    expert: int | None
    importance: NDArray[np.float32] | None = field(default=None, compare=False, repr=False)
    is_copied: bool = False
    packed: Packed | None = None
    stays_float: bool = False  # a norm, a router: nothing rounds it
    factor: float = 1.0
    moments: StoredMoments | None = field(default=None, compare=False, repr=False)
    search: Search = GGML

    @property
    def is_least_error(self) -> bool:
        """True if a search for the least error makes the rows in place of ggml's rule."""
        if self.packed is not None:
            return self.packed.packing.is_least_error
        return self.search.is_least_error and not self.type.is_plain

    def row_bytes(self, n_in: int) -> int:
        """Bytes that a row takes while it is made."""
        made = self.type if self.packed is None else self.packed.packing
        return made.row_bytes(n_in)

    @property
    def row_multiple(self) -> int:
        """Rows that must be made together."""
        return 1 if self.packed is None else self.packed.packing.row_multiple()


@dataclass(frozen=True, slots=True)
class WorkItem:
    """Rows [out0, out1) of a stored matrix and all that is made of them."""

    view: StoredMatrix
    out0: int
    out1: int
    destinations: tuple[Destination, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the rows in memory."""
        return self.view.slab_bytes(self.out0, self.out1)

    @property
    def read_bytes(self) -> int:
        """Bytes to read: those in memory, unless the matrix is packed."""
        return self.view.bytes_to_read(self.out0, self.out1)


@dataclass(frozen=True)
class Plan:
    """All outputs and all work; with `has_bundles` each output is to have a release bundle."""

    graph: TensorGraph
    inputs: Inputs = field(repr=False)
    outputs: tuple[Output, ...] = field(repr=False)
    items: tuple[WorkItem, ...] = field(repr=False)
    budget: Budget = field(repr=False)
    has_bundles: bool = False

    @property
    def read_bytes(self) -> int:
        return sum(item.read_bytes for item in self.items)

    @property
    def hash_bytes(self) -> int:
        """Bytes that are read again for the digests of bundles: those of all files."""
        return self.inputs.nbytes + self.write_bytes if self.has_bundles else 0

    @property
    def write_bytes(self) -> int:
        return sum(output.size for output in self.outputs)

    @cached_property
    def outgrows_cache(self) -> bool:
        """True if the run is too large to leave what it reads and writes in the page cache."""
        return page_cache.outgrows(self.read_bytes + self.write_bytes)

    @property
    def slab_bytes(self) -> int:
        """The largest slab."""
        return max((item.nbytes for item in self.items), default=0)


def whole(rows: int, multiple: int) -> int:
    """Round rows down to a multiple, but to no less than one."""
    return max(rows // multiple, 1) * multiple


def _factor(factors: Sequence[float], matrix: int) -> float:
    if not factors:
        return 1.0
    return factors[matrix] if len(factors) > 1 else factors[0]


def make_plan(
    graph: TensorGraph,
    inputs: Inputs,
    outputs: Sequence[Output],
    *,
    memory: int | None = None,
    has_bundles: bool = False,
) -> Plan:
    """Cut the work for laid out outputs into items in the order of the source files.

    Raises RequestError if it cannot be done with `memory` bytes.
    """
    budget = budget_of(memory)
    by_view: dict[StoredMatrix, list[Destination]] = defaultdict(list)
    for number, output in enumerate(outputs):
        for planned in output.tensors:
            offset = planned.offset
            views = matrices(planned.tensor)
            for n, view in enumerate(views):
                by_view[view].append(
                    Destination(
                        number,
                        planned.file,
                        offset,
                        planned.type,
                        planned.tensor.name,
                        n if len(views) > 1 else None,
                        None if planned.importance is None else planned.importance[n],
                        is_copied=not isinstance(planned.tensor.origin, Quantize),
                        packed=planned.packed,
                        stays_float=not is_quantized(planned.gguf_name, planned.tensor.shape),
                        factor=_factor(planned.factors, n),
                        search=output.request.search,
                        moments=planned.moments[n] if planned.moments else None,
                    )
                )
                if planned.packed is None:
                    offset += view.shape[0] * planned.type.row_bytes(view.shape[1])
    items = []
    for view in sorted(by_view, key=lambda v: v.order):
        multiple = lcm(view.row_multiple, *(d.row_multiple for d in by_view[view]))
        rows = whole(view.rows_per_slab(budget.slab), multiple)
        for out0 in range(0, view.shape[0], rows):
            out1 = min(out0 + rows, view.shape[0])
            items.append(WorkItem(view, out0, out1, tuple(by_view[view])))
    return Plan(graph, inputs, tuple(outputs), tuple(items), budget, has_bundles)
