"""Describe what running models would take."""

from __future__ import annotations

from collections.abc import Iterator

from weightcast.evaluation.estimate import Estimate
from weightcast.evaluation.work import Extent
from weightcast.text import bytes_text, count, duration, size_text


def estimate_lines(found: Estimate, extent: Extent) -> Iterator[str]:
    """Tell what is read and computed, what memory it takes, and how long it will be."""
    memory, seconds = found.memory, found.seconds
    tokens = f"{count(extent.chunks, 'chunk')} of {extent.context:,} tokens"
    yield f"reads {bytes_text(found.read_bytes)}"
    yield (
        f"computes {found.flops / 1e12:,.3g} TFLOP over {tokens}; products reach "
        f"{found.flops_per_s / 1e9:,.3g} GFLOP/s here"
    )
    yield (
        f"memory: about {size_text(memory.resident)}, with {size_text(memory.activations)} of "
        f"activations and {size_text(memory.weights)} of weights"
    )
    if memory.in_file:
        yield f"  {size_text(memory.in_file)} of the activations lie in a file"
    parts = (
        ("products", seconds.products),
        ("attention", seconds.attention),
        ("decoding", seconds.decode + seconds.beside),
        ("all else", seconds.others),
    )
    told = ", ".join(f"{name} {duration(value)}" for name, value in parts)
    reading = f"; reading {duration(seconds.read)}" if seconds.read else ""
    yield f"time: about {duration(seconds.total)} ({told}{reading})"
