"""Estimate what running models over a text takes, from what this machine does in a second or so.

Blocks of the sizes that a run has are multiplied, activated, attended and compared by all workers
at once, and some of each model's largest matrix is decoded. Reading overlaps with all of it. The
same counts give the time on a machine whose rates are known.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from math import inf, prod
from pathlib import Path
from typing import Any, Final

import numpy as np

from weightcast.converters.graph import TensorGraph
from weightcast.converters.plan.estimate import disk_rate
from weightcast.converters.sources import source_files
from weightcast.evaluation.arithmetic import F32
from weightcast.evaluation.divergence import compare_logits
from weightcast.evaluation.layers import compare_states
from weightcast.evaluation.networks import Heads, Hidden, Machine, Network
from weightcast.evaluation.settings import Settings, machine, networks_of
from weightcast.evaluation.weights import TILE_WEIGHTS, Weights
from weightcast.evaluation.work import Extent, Memory, Work, attention_products, memory_of, work_of
from weightcast.evaluation.workers import BLOCK_TOKENS, Pool

# So long is each kind of work measured, and at least once after the first time.
_SECONDS: Final = 0.1
# Longest sequence that attention is measured with; it takes as long as the square of it.
_LONGEST: Final = 512
# Values of logits that are compared to see how fast that is.
_LOGITS: Final = 1 << 19
# Tiles that are decoded side by side: of the two matrices before an activation.
_DECODERS: Final = 2


@dataclass(frozen=True, slots=True)
class Rates:
    """What a machine does in a second, all workers together; decoding is that of one thread.

    `decoded` are weights by model, `products` those with weights and `attended` those of attention,
    the others values, and `read` bytes. What is infinite or None is not known, and left out.
    """

    products: float
    decoded: Sequence[float]
    attended: float = inf
    activated: float = inf
    passed: float = inf
    compared: float = inf
    logits: float = inf
    read: float | None = None


@dataclass(frozen=True, slots=True)
class Seconds:
    """How long the kinds of work take by themselves, and all of it together.

    `decode` is what is decoded while nobody works and `beside` the rest, by one thread.
    """

    read: float
    decode: float
    beside: float
    products: float
    attention: float
    others: float
    total: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run takes; `flops_per_s` is what products of weights reach, all workers together."""

    read_bytes: int
    flops: int
    flops_per_s: float
    memory: Memory
    seconds: Seconds

    def describe(self) -> dict[str, Any]:
        """Describe it as JSON values."""
        memory = self.memory
        return {
            "read_bytes": self.read_bytes,
            "flops": self.flops,
            "flops_per_s": round(self.flops_per_s),
            "memory": {
                **asdict(memory),
                "activations": memory.activations,
                "resident": memory.resident,
            },
            "seconds": {name: round(value, 3) for name, value in asdict(self.seconds).items()},
        }


def estimate(graphs: Sequence[TensorGraph], extent: Extent, settings: Settings) -> Estimate:
    """Estimate a run of a source and its artifacts. Raises what running them would raise first."""
    with machine(settings) as run_by:
        networks = networks_of(graphs, run_by)
        models = list(zip(map(Weights, graphs), networks, strict=True))
        works = [work_of(*model, extent, run_by.group_tokens) for model in models]
        memory = memory_of(
            models,
            extent,
            run_by.group_tokens,
            run_by.pool.jobs,
            settings.memory,
            settings.precision,
            _resident_bytes(),
        )
        rates = measure(models, extent, run_by)
        # A device computes while all cores decode.
        cores = run_by.pool.jobs if settings.device == "cpu" else inf
        return Estimate(
            sum(work.read_bytes for work in works),
            sum(work.flops for work in works),
            2 * rates.products,
            memory,
            seconds_of(works, extent, networks[0], rates, cores),
        )


def seconds_of(
    works: Sequence[Work], extent: Extent, network: Network, rates: Rates, cores: float
) -> Seconds:
    """Tell how long models' work takes at some rates; decoding takes turns on so many cores."""
    read = 0.0 if rates.read is None else sum(work.read_bytes for work in works) / rates.read
    pairs = list(zip(works, rates.decoded, strict=True))
    decode = sum(work.whole / rate for work, rate in pairs)
    beside = sum(work.tiles / rate for work, rate in pairs)
    products = sum(work.products for work in works) / rates.products
    attention = sum(work.attended for work in works) / rates.attended
    others = sum(work.activated / rates.activated + work.passed / rates.passed for work in works)
    others += sum(work.passed / 2 for work in works[1:]) / rates.compared
    others += len(works) * extent.scored * network.vocab_size / rates.logits
    busy = products + attention + others
    total = decode + max(busy + beside / cores, beside / _DECODERS)
    return Seconds(read, decode, beside, products, attention, others, max(read, total))


def measure(models: Sequence[tuple[Weights, Network]], extent: Extent, run_by: Machine) -> Rates:
    """Measure what this machine does with blocks as the first of some models has them."""
    weights, network = models[0]
    heads = next(part.kind for part in network.parts(0) if isinstance(part.kind, Heads))
    hidden = next(part for part in network.parts(0) if isinstance(part.kind, Hidden))
    assert isinstance(hidden.kind, Hidden)
    routed = max(1, extent.tokens * hidden.kind.used // hidden.kind.experts)
    bench = Bench(run_by, min(BLOCK_TOKENS, routed))
    up, down = (weights.shape(hidden.matrices[n])[-2:] for n in (0, -1))
    emb_size = up[1]
    return Rates(
        bench.products((up, down)),
        [_decoded(own, model.parts(0)[-1].matrices[0]) for own, model in models],
        bench.attended(heads, min(_LONGEST, extent.context)),
        bench.activated(hidden.kind.activation, min(up[0], max(1, TILE_WEIGHTS // up[1]))),
        bench.passed(emb_size),
        _compared(emb_size),
        bench.logits(network.vocab_size),
        disk_rate(sorted({path for own, _ in models for path in source_files(own.graph)})),
    )


@dataclass(frozen=True, slots=True)
class Bench:
    """Measures operations on blocks of so many rows, by all workers at once."""

    run_by: Machine
    rows: int

    def products(self, shapes: Sequence[tuple[int, ...]]) -> float:
        """Measure multiplications a second with tiles of matrices [out, in]."""
        ops = self.run_by.arithmetic
        done = seconds = 0.0
        for n_out, n_in in shapes:
            step = min(n_out, max(1, TILE_WEIGHTS // n_in))
            tile, x = ops.weights(_random(step, n_in)), _random(self.rows, n_in)
            out = np.empty((self.rows, step), np.float32)

            def multiply(x: F32 = x, tile: Any = tile, out: F32 = out) -> None:
                out[:] = ops.values(ops.linear(ops.array(x), tile))

            done += self.rows * step * n_in
            seconds += seconds_each(self.run_by.pool, multiply)
        return done / seconds

    def activated(self, activation: Callable[[Any], Any], width: int) -> float:
        """Measure values a second that are activated and multiplied with others."""
        ops = self.run_by.arithmetic
        x = ops.array(_random(self.rows, width))
        return self.rows * width / seconds_each(self.run_by.pool, lambda: activation(x) * x)

    def passed(self, emb_size: int) -> float:
        """Measure values a second that come into a layer's part and out of it."""
        ops, x = self.run_by.arithmetic, _random(BLOCK_TOKENS, emb_size)
        scale = ops.array(_random(1, emb_size)[0])

        def run() -> None:
            before = ops.norm(ops.array(x), scale, 1e-5)
            x[:] = ops.values(ops.array(x) + ops.norm(before, scale, 1e-5))

        return BLOCK_TOKENS * emb_size / seconds_each(self.run_by.pool, run)

    def attended(self, heads: Heads, context: int) -> float:
        """Measure products a second of attention in a sequence."""
        ops = self.run_by.arithmetic
        sizes = (
            (heads.queries, heads.key_size),
            (heads.keys, heads.key_size),
            (heads.keys, heads.value_size),
        )
        q, k, v = (
            ops.array(_random(context, n * size).reshape(context, n, size)) for n, size in sizes
        )
        seconds = seconds_each(self.run_by.pool, lambda: ops.attend(q, k, v, heads.how))
        return attention_products(heads, context) / seconds

    def logits(self, n_vocab: int) -> float:
        """Measure logits a second that are compared."""
        rows = max(1, _LOGITS // n_vocab)
        base, targets = _random(rows, n_vocab), np.zeros(rows, np.int64)
        seconds = seconds_each(self.run_by.pool, lambda: compare_logits(base, base, targets))
        return rows * n_vocab / seconds


def seconds_each(pool: Pool, function: Callable[[], object]) -> float:
    """Measure the seconds that a call takes while all workers make such calls: wall by calls."""
    calls, start = 0, 0.0
    while not calls or time.perf_counter() - start < _SECONDS:
        pool.each(range(pool.jobs), lambda _: function())
        if not start:  # the first time is not like the others
            start = time.perf_counter()
            continue
        calls += pool.jobs
    return (time.perf_counter() - start) / calls


def _decoded(weights: Weights, name: str) -> float:
    """Measure the weights a second that one thread decodes, of a matrix as it is stored.

    Where a matrix has several tiles, reading it is not counted, which comes before the first.
    """
    size = prod(weights.shape(name)[-2:])
    tiles = weights.tiles(name)
    start = time.perf_counter()
    done = next(tiles).values.size
    if 2 * done <= size:
        start, done = time.perf_counter(), 0
        for tile in islice(tiles, 3):
            done += tile.values.size
            if time.perf_counter() - start > _SECONDS:
                break
    return done / (time.perf_counter() - start)


def _compared(emb_size: int) -> float:
    """Measure values of states a second that are compared, by one thread."""
    states = _random(BLOCK_TOKENS, emb_size)
    start = time.perf_counter()
    compare_states(states, states)
    return states.size / (time.perf_counter() - start)


def _random(rows: int, columns: int) -> F32:
    return np.random.default_rng(0).standard_normal((rows, columns), np.float32)


def _resident_bytes() -> int:
    """Read how much memory the process has now."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
