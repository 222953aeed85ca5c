"""Plans, graphs and results in words: what `inspect` and `convert` print."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Final

from weightcast.converters.bundle_files import bundle_paths
from weightcast.converters.convert import Summary
from weightcast.converters.devices import PROCESSOR, Devices
from weightcast.converters.disk_space import disk_space
from weightcast.converters.estimate import Estimate, estimate
from weightcast.converters.execute import memory_estimate
from weightcast.converters.graph import Spec, Tensor, TensorGraph, View, first_array, matrices
from weightcast.converters.outputs import Output
from weightcast.converters.plan import Plan
from weightcast.converters.words import count, some
from weightcast.formats.small_files import shown

_LAYER: Final = re.compile(r"^(transformer/decoder_layer_[0-9]+/|([a-z]+\.)?blk\.[0-9]+\.)")


def bytes_text(nbytes: int) -> str:
    """Bytes in full and in a readable unit."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= size:
            return f"{nbytes:,} bytes ({nbytes / size:.2f} {unit})"
    return f"{nbytes:,} bytes"


def stored_as(tensor: Tensor) -> str:
    """The stored form of a tensor: I8 x BF16[groups], F32, Q8_0; of experts it may be several."""
    return " + ".join(dict.fromkeys(map(_stored_as, matrices(tensor))))


def _stored_as(view: View) -> str:
    if view.scales is None or view.array.packed is not None:
        return view.array.dtype
    return f"{view.array.dtype} x {view.scales.array.dtype}[{view.scales.shape[1]}]"


def stored_bytes(tensor: Tensor) -> int:
    """Bytes that a tensor takes in its files, scales included."""
    arrays = set()
    for view in matrices(tensor):
        arrays.add(view.array)
        if view.scales is not None and view.array.packed is None:
            arrays.add(view.scales.array)
    return sum(array.nbytes for array in arrays)


def graph_values(graph: TensorGraph[Spec], notes: Sequence[str] = ()) -> dict[str, Any]:
    """A graph as JSON values."""
    return {
        "family": graph.family,
        "source": graph.source,
        "parameters": graph.parameters,
        "hyperparameters": graph.spec.describe(),
        "tensors": [
            {
                "name": tensor.name,
                "shape": list(tensor.shape),
                "stored_as": stored_as(tensor),
                "bytes": stored_bytes(tensor),
                "file": first_array(tensor).path.name,
            }
            for tensor in graph.values()
        ],
        "notes": [*notes, *sparse_notes(graph)],
    }


def sparse_notes(graph: TensorGraph[Spec]) -> list[str]:
    """Warn of files with holes: a download that reserved its space before it had the data."""
    paths = sorted({first_array(tensor).path for tensor in graph.values()})
    holes = []
    for path in paths:
        try:
            status = os.stat(path)
        except OSError:  # gone since it was read
            continue
        # Compressing file systems also take fewer blocks, but hardly less than half for weights.
        if status.st_blocks * 512 < status.st_size // 2:
            holes.append(path.name)
    if not holes:
        return []
    return [
        f"{count(len(holes), 'file')} are mostly holes ({holes[0]}): "
        "if this was downloaded, the download is not complete"
    ]


def graph_lines(
    graph: TensorGraph[Spec], notes: Sequence[str] = (), *, all_tensors: bool
) -> Iterator[str]:
    """A graph for reading: a line for each kind of tensor, or for each tensor."""
    spec = graph.spec
    total = sum(stored_bytes(tensor) for tensor in graph.values())
    yield f"{graph.source}: {graph.family}, {graph.parameters:,} parameters"
    files = {view.array.path for tensor in graph.values() for view in matrices(tensor)}
    yield f"{count(len(graph), 'tensor')} in {count(len(files), 'file')}, {bytes_text(total)}"
    values = spec.describe()
    width = max(28, min(46, max(map(len, values), default=0)))
    for name, value in values.items():
        yield f"  {name:<{width}} {_value_text(value)}"
    yield ""
    if all_tensors:
        for tensor in graph.values():
            yield _tensor_line(tensor.name, tensor, first_array(tensor).path.name)
    else:
        kinds: dict[tuple[str, tuple[int, ...], str], list[Tensor]] = {}
        for tensor in graph.values():
            leaf = _LAYER.sub("layer N: ", tensor.name)
            kinds.setdefault((leaf, tensor.shape, stored_as(tensor)), []).append(tensor)
        for (leaf, _, _), tensors in kinds.items():
            yield _tensor_line(leaf, tensors[0], f"x {len(tensors)}")
    yield from (f"note: {note}" for note in (*notes, *sparse_notes(graph)))


def _value_text(value: Any) -> str:
    """A hyperparameter, or metadata: numbers in a column, the rest in short."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:>17}"
    if isinstance(value, dict):
        return f"{value['length']:,} x {value['array']}"
    return shown(value)


def _tensor_line(name: str, tensor: Tensor, last: str) -> str:
    shape = " x ".join(map(str, tensor.shape))
    return f"  {name:<52} {shape:>20}  {stored_as(tensor):<14} {last}"


def output_lines(output: Output) -> Iterator[str]:
    """An output's size and what is in it."""
    types = Counter(planned.type_name for planned in output.tensors)
    listed = ", ".join(f"{name} {n:,}" for name, n in sorted(types.items()))
    yield f"{output.request.path}: {bytes_text(output.size)}"
    yield (
        f"  tensor data {output.data_bytes:,} bytes = {output.data_bytes / 2**20:,.2f} MiB, "
        f"{output.bits_per_weight:.2f} bits per weight; "
        f"{count(len(output.tensors), 'tensor')} ({listed}) in {count(len(output.files), 'file')}"
    )
    if len(output.files) > 1:
        yield from (f"    {file.path.name}: {file.size:,} bytes" for file in output.files)
    yield from (f"  note: {note}" for note in output.notes)


def _bundle_lines(plan: Plan, output: Output) -> Iterator[str]:
    if plan.has_bundles:
        paths = bundle_paths(output.request.path, output.request.kind)
        yield f"  bundle: {', '.join(path.name for path in paths.all)}"


def plan_values(plan: Plan, workers: int, devices: Devices = PROCESSOR) -> dict[str, Any]:
    """What a conversion would do, as JSON values."""
    memory = memory_estimate(plan, workers, devices)
    return {
        "source": plan.graph.source,
        "parameters": plan.graph.parameters,
        "read_bytes": plan.read_bytes,
        "outputs": [output.describe() for output in plan.outputs],
        "buffer_bytes": memory.host + memory.staged,
        "pinned_bytes": memory.host if devices.cuda else 0,
        "bytes_on_each_device": memory.device,
        **devices.describe(),
        "disk": [
            {"folder": str(space.folder), "needed_bytes": space.needed, "free_bytes": space.free}
            for space in disk_space(plan.outputs)
        ],
        "estimate": estimate(plan, workers, devices).describe(),
        "notes": sparse_notes(plan.graph),
    }


def plan_lines(plan: Plan, workers: int, devices: Devices = PROCESSOR) -> Iterator[str]:
    """What a conversion would do."""
    graph = plan.graph
    yield f"{graph.source}: {graph.family}, {graph.parameters:,} parameters"
    yield from (f"note: {note}" for note in sparse_notes(graph))
    yield f"reads {bytes_text(plan.read_bytes)} in {count(len(plan.items), 'work item')}"
    for output in plan.outputs:
        yield from output_lines(output)
        yield from _bundle_lines(plan, output)
    memory = memory_estimate(plan, workers, devices)
    kind = "page-locked buffers" if devices.cuda else "buffers"
    yield f"memory: {memory.host / 2**20:,.0f} MiB of {kind} for {count(workers, 'worker')}"
    if memory.staged:
        yield f"  and {memory.staged / 2**20:,.0f} MiB to put words together that lie across rows"
    if devices.cuda:
        yield f"  and {memory.device / 2**20:,.0f} MiB on each device: {devices.text}"
    for space in disk_space(plan.outputs):
        yield f"disk: {bytes_text(space.needed)} needed, {space.free:,} free at {space.folder}"
        if space.needed > space.free:
            yield f"  NOT ENOUGH: {bytes_text(space.needed - space.free)} more must be freed"
    yield estimate_line(estimate(plan, workers, devices))


def estimate_line(found: Estimate) -> str:
    """How long it will take, and what that is made of."""
    if found.disk_bytes_per_s is None:
        disk = "the disk's speed is not known"
    else:
        disk = f"reading {duration(found.read_s)} and writing {duration(found.write_s)} at "
        disk += f"{found.disk_bytes_per_s / 1e6:,.0f} MB/s"
    return f"time: about {duration(found.total_s)} (computing {duration(found.compute_s)}, {disk})"


def duration(seconds: float) -> str:
    """A time to read: 0.4 s, 35 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def error_line(output: dict[str, Any], baseline: str) -> str:
    """The errors of an output of a report in short."""
    total = output["total"]
    against = "the stored values" if baseline == "stored" else "those rounded to bf16"
    if total["error_squares"] == 0:
        return f"  no error against {against}"
    sizes = [tensor["metrics"]["relative_rms"] for tensor in output["tensors"]]
    sizes = [math.inf if size is None else size for size in sizes]
    worst = output["tensors"][sizes.index(max(sizes))]
    return (
        f"  errors against {against}: {_error_text(total)}; most in {worst['name']}: "
        f"{_error_text(worst['metrics'])}"
    )


def _error_text(metrics: dict[str, Any]) -> str:
    if metrics["relative_rms"] is None:
        return "not finite"
    if metrics["sqnr_db"] is None:
        return "none"
    return f"relative RMS {metrics['relative_rms']:.3g}, SQNR {metrics['sqnr_db']:.2f} dB"


def summary_lines(summary: Summary) -> Iterator[str]:
    """What a conversion did."""
    yield from (f"note: {note}" for note in sparse_notes(summary.plan.graph))
    for number, output in enumerate(summary.plan.outputs):
        yield from output_lines(output)
        yield from _bundle_lines(summary.plan, output)
        origins = summary.block_origins(number)
        is_gguf = output.request.kind == "gguf"
        if origins["lossless"]:
            proof = "" if is_gguf else ", each proved on the bytes written"
            yield (
                f"  {count(len(origins['lossless']), 'tensor')} carry the source's int8 codes and "
                f"scales unchanged: lossless{proof}"
            )
        if origins["quantized"]:
            yield f"  quantized: {some(origins['quantized'])}"
        what = "blocks" if is_gguf else "groups"
        for name, numbers in origins["requantized"].items():
            inexact = numbers["inexact_scales"]
            reason = f", {inexact:,} scales are not exact in float16" if is_gguf else ""
            requantized = numbers["requantized_blocks"]
            yield f"  {name}: {requantized:,} of {numbers['blocks']:,} {what} requantized{reason}"
        if summary.report is not None:
            yield error_line(summary.report["outputs"][number], summary.report["baseline"])
    rate = summary.plan.read_bytes / max(summary.seconds, 1e-9) / 1e9
    place = f" on {summary.devices.text}" if summary.devices.cuda else ""
    hashing = f", bundles in {summary.bundle_seconds:.1f} s" if summary.bundles else ""
    yield f"done in {summary.seconds:.1f} s ({rate:.2f} GB/s read){place}{hashing}"
