"""Describe what a conversion would do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from weightcast.commands.text.graph import sparse_notes
from weightcast.converters.engine import memory_estimate
from weightcast.converters.files import bundle_paths
from weightcast.converters.output.disk_space import disk_space
from weightcast.converters.plan import Estimate, Plan, Workers
from weightcast.converters.plan.estimate import estimate
from weightcast.converters.targets.target import Output
from weightcast.text import bytes_text, count, duration, size_text


def output_lines(output: Output, *, all_tensors: bool = False) -> Iterator[str]:
    """Tell an output's size and what is in it, with `all_tensors` each of them."""
    types = Counter(planned.type_name for planned in output.tensors)
    listed = ", ".join(f"{name} {n:,}" for name, n in sorted(types.items()))
    yield f"{output.request.path}: {bytes_text(output.size)}"
    yield (
        f"  tensor data {output.data_bytes:,} bytes, "
        f"{output.bits_per_weight:.2f} bits per weight; "
        f"{count(len(output.tensors), 'tensor')} ({listed}) in {count(len(output.files), 'file')}"
    )
    if output.sized is not None:
        first, *others = output.sized.lines()
        yield f"  {first}"
        yield from (f"    {line}" for line in others)
    if output.request.search.is_least_error:
        yield f"  search: {output.request.search}"
    if len(output.files) > 1:
        yield from (f"    {file.path.name}: {file.size:,} bytes" for file in output.files)
    if all_tensors:
        yield from (
            f"    {planned.tensor.name:<48} {planned.type_name:<12} {planned.nbytes:>15,} bytes"
            for planned in output.tensors
        )
    yield from (f"  note: {note}" for note in output.notes)


def bundle_lines(plan: Plan, output: Output) -> Iterator[str]:
    if plan.has_bundles:
        paths = bundle_paths(output.request.path, output.request.target.is_directory)
        yield f"  bundle: {', '.join(path.name for path in paths.all)}"


def plan_values(plan: Plan, workers: Workers) -> dict[str, Any]:
    """Describe a planned conversion as JSON values."""
    memory = memory_estimate(plan, workers)
    return {
        "source": plan.graph.source,
        "parameters": plan.graph.parameters,
        "read_bytes": plan.read_bytes,
        "outputs": [output.describe() for output in plan.outputs],
        "buffer_bytes": memory.host + memory.staged,
        "pinned_bytes": memory.host if workers.devices.cuda else 0,
        "bytes_on_each_device": memory.device,
        **workers.devices.describe(),
        "disk": [
            {"folder": str(space.folder), "needed_bytes": space.needed, "free_bytes": space.free}
            for space in disk_space(plan.outputs)
        ],
        "estimate": estimate(plan, workers).describe(),
        "notes": sparse_notes(plan.graph, plan.inputs.blanks),
    }


def plan_lines(plan: Plan, workers: Workers, *, all_tensors: bool = False) -> Iterator[str]:
    """Describe a planned conversion in lines of text."""
    graph = plan.graph
    yield f"{graph.source}: {graph.family.name}, {graph.parameters:,} parameters"
    yield from (f"note: {note}" for note in sparse_notes(graph, plan.inputs.blanks))
    yield f"reads {bytes_text(plan.read_bytes)} in {count(len(plan.items), 'work item')}"
    for output in plan.outputs:
        yield from output_lines(output, all_tensors=all_tensors)
        yield from bundle_lines(plan, output)
    memory = memory_estimate(plan, workers)
    kind = "page-locked buffers" if workers.devices.cuda else "buffers"
    yield f"memory: {size_text(memory.host)} of {kind} for {count(workers.count, 'worker')}"
    if memory.staged:
        yield f"  and {size_text(memory.staged)} to put words together that lie across rows"
    if workers.devices.cuda:
        yield f"  and {size_text(memory.device)} on each device: {workers.devices.text}"
    for space in disk_space(plan.outputs):
        yield f"disk: {bytes_text(space.needed)} needed, {space.free:,} free at {space.folder}"
        if space.needed > space.free:
            yield f"  NOT ENOUGH: {bytes_text(space.needed - space.free)} more must be freed"
    yield estimate_line(estimate(plan, workers))


def estimate_line(found: Estimate) -> str:
    """Tell how long the conversion will take, and what that is made of."""
    if found.disk_bytes_per_s is None:
        disk = "the disk's speed is not known"
    else:
        disk = f"reading {duration(found.read_s)} and writing {duration(found.write_s)} at "
        disk += f"{found.disk_bytes_per_s / 1e6:,.0f} MB/s"
    return f"time: about {duration(found.total_s)} (computing {duration(found.compute_s)}, {disk})"
