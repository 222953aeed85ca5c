"""Describe what a conversion did."""

from __future__ import annotations

import math
from collections.abc import Iterator

from weightcast.commands.text.graph import sparse_notes
from weightcast.commands.text.plan import bundle_lines, output_lines
from weightcast.converters.convert import Summary
from weightcast.converters.report import Metrics, OutputErrors, search_text
from weightcast.text import count, size_text, some


def error_line(output: OutputErrors, baseline: str) -> str:
    """Sum up the errors of an output: in total, and those of its worst tensor."""
    against = "the stored values" if baseline == "stored" else "those rounded to bf16"
    if output.total.error_squares == 0:
        return f"  no error against {against}"
    sizes = [tensor.metrics.relative_rms for tensor in output.tensors]
    numbers = [math.inf if size is None else size for size in sizes]
    worst = output.tensors[numbers.index(max(numbers))]
    return (
        f"  errors against {against}: {_error_text(output.total)}; most in {worst.name}: "
        f"{_error_text(worst.metrics)}"
    )


def _error_text(metrics: Metrics) -> str:
    if metrics.relative_rms is None:
        return "not finite"
    if metrics.sqnr_db is None:
        return "none"
    return f"relative RMS {metrics.relative_rms:.3g}, SQNR {metrics.sqnr_db:.2f} dB"


def summary_lines(summary: Summary, *, all_tensors: bool = False) -> Iterator[str]:
    """Summarize a finished conversion."""
    plan = summary.plan
    yield from (f"note: {note}" for note in sparse_notes(plan.graph, plan.inputs.blanks))
    for number, output in enumerate(plan.outputs):
        yield from output_lines(output, all_tensors=all_tensors)
        yield from bundle_lines(plan, output)
        origins = summary.block_origins(number)
        codes = output.request.target.codes
        if origins["lossless"]:
            yield (
                f"  {count(len(origins['lossless']), 'tensor')} carry the source's int8 codes and "
                f"scales unchanged: lossless{codes.proof}"
            )
        if origins["quantized"] and (origins["lossless"] or origins["requantized"]):
            yield f"  quantized: {some(origins['quantized'])}"
        for name, numbers in origins["requantized"].items():
            inexact = numbers["inexact_scales"]
            reason = f", {inexact:,}{codes.reason}" if codes.reason else ""
            requantized = numbers["requantized_blocks"]
            total = f"{numbers['blocks']:,} {codes.unit}"
            yield f"  {name}: {requantized:,} of {total} requantized{reason}"
        if (errors := summary.errors) is not None:
            yield error_line(errors.outputs[number], errors.baseline)
            if told := search_text(errors.outputs[number]):
                yield f"  least-error search: {told}"
    rate = size_text(plan.read_bytes / max(summary.seconds, 1e-9))
    place = f" on {summary.devices.text}" if summary.devices.cuda else ""
    hashing = f", bundles in {summary.bundle_seconds:.1f} s" if summary.bundles else ""
    yield f"done in {summary.seconds:.1f} s ({rate}/s read){place}{hashing}"
