"""Report the errors of an artifact against its source."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from weightcast.converters.compare import Key
from weightcast.converters.graph import TensorGraph, stored, stored_as
from weightcast.converters.report import (
    AppliedRecipe,
    MeasuredOutput,
    MeasuredTensor,
    Report,
    build_report,
)
from weightcast.converters.targets.target import Target
from weightcast.converters.verify.content import MatrixCheck
from weightcast.converters.verify.expected import recipe_of
from weightcast.converters.verify.match import TensorMatch
from weightcast.converters.verify.structure import Structure
from weightcast.formats.gguf.imatrix import ImportanceMatrix
from weightcast.formats.hessians import Hessians
from weightcast.quant.metrics import Baseline


def errors_report(
    structure: Structure,
    graph: TensorGraph,
    imatrix: ImportanceMatrix | None,
    hessians: Hessians | None,
    tensors: Sequence[TensorMatch],
    checks: Mapping[Key, MatrixCheck],
) -> Report:
    """Report the errors of all tensors; experts that are tensors of their own are one tensor."""
    groups: dict[str, list[int]] = defaultdict(list)
    for number, tensor in enumerate(tensors):
        groups[tensor.name if tensor.expert is None else tensor.gguf].append(number)
    measured_tensors = []
    for numbers in groups.values():
        keys = [key for key in checks if key[0] in numbers and checks[key].failure is None]
        if keys:
            matched, measured = [tensors[n] for n in numbers], [checks[k] for k in keys]
            measured_tensors.append(_tensor(graph, structure.target, matched, measured))
    recipe = recipe_of(structure)
    type_name = structure.path.name if recipe is None else recipe.name
    output = MeasuredOutput(
        path=str(structure.path),
        container=structure.target.name,
        type=type_name,
        nbytes=sum(path.stat().st_size for path in structure.files),
        tensors=tuple(measured_tensors),
        recipe=AppliedRecipe(type_name),
        imatrix=None if imatrix is None else str(imatrix.path),
        hessian=None if hessians is None else str(hessians.path),
    )
    return build_report(graph, Baseline.STORED, [output])


def _tensor(
    graph: TensorGraph,
    target: Target,
    tensors: Sequence[TensorMatch],
    checks: Sequence[MatrixCheck],
) -> MeasuredTensor:
    first = tensors[0]
    types = dict.fromkeys(stored_as(stored(tensor.name, tensor.array)) for tensor in tensors)
    name, gguf_name, shape = first.name, first.tied or first.gguf, first.array.shape
    if first.expert is not None:
        assert first.place is not None
        name = graph.family.name_in(first.place, target.convention, "*")
        shape = (len(tensors), *shape)
    return MeasuredTensor(
        name,
        gguf_name,
        " + ".join(types),
        shape,
        sum(tensor.array.nbytes for tensor in tensors),
        tuple(check.made for check in checks),
    )
