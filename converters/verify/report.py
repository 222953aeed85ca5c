"""The errors of an artifact as docs/report.schema.json says."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from weightcast.converters.compare.rows import Key
from weightcast.converters.graph import TensorGraph, stored, stored_as
from weightcast.converters.report.measured import (
    MeasuredOutput,
    MeasuredTensor,
    recipe_values,
    report_values,
)
from weightcast.converters.targets.target import Target
from weightcast.converters.verify.content import MatrixCheck
from weightcast.converters.verify.expected import recipe_of
from weightcast.converters.verify.match import Held
from weightcast.converters.verify.structure import Structure
from weightcast.formats.gguf.imatrix import ImportanceMatrix
from weightcast.quant.metrics import Baseline


def errors_report(
    structure: Structure,
    graph: TensorGraph,
    imatrix: ImportanceMatrix | None,
    held: Sequence[Held],
    checks: Mapping[Key, MatrixCheck],
) -> dict[str, Any]:
    """The errors of all tensors; experts that are tensors of their own are one."""
    groups: dict[str, list[int]] = defaultdict(list)
    for number, tensor in enumerate(held):
        groups[tensor.name if tensor.expert is None else tensor.gguf].append(number)
    measured = []
    for numbers in groups.values():
        keys = [key for key in checks if key[0] in numbers and checks[key].failure is None]
        if keys:
            matched, found = [held[n] for n in numbers], [checks[k] for k in keys]
            measured.append(_measured(graph, structure.target, matched, found))
    recipe = recipe_of(structure)
    name = structure.path.name if recipe is None else recipe.name
    output = MeasuredOutput(
        str(structure.path),
        structure.target.name,
        name,
        sum(path.stat().st_size for path in structure.files),
        tuple(measured),
        recipe_values(name, [], pure=False),
        None if imatrix is None else str(imatrix.path),
    )
    return report_values(graph, Baseline.STORED, [output])


def _measured(
    graph: TensorGraph, target: Target, held: Sequence[Held], checks: Sequence[MatrixCheck]
) -> MeasuredTensor:
    first = held[0]
    types = dict.fromkeys(stored_as(stored(t.name, t.array)) for t in held)
    name, gguf, shape = first.name, first.tied or first.gguf, first.array.shape
    if first.expert is not None:
        assert first.place is not None
        name = graph.family.name_in(first.place, target.convention, "*")
        shape = (len(held), *shape)
    return MeasuredTensor(
        name,
        gguf,
        " + ".join(types),
        shape,
        sum(tensor.array.nbytes for tensor in held),
        tuple(check.made for check in checks),
    )
