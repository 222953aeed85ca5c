"""One way to run layers: what `benchmarks.streamed` runs in a process of its own.

It measures products of blocks before and after the layers, by all workers at once, and prints as
JSON what the layers took: by operation in CPU seconds, by what workers are given in wall seconds.
"""

from __future__ import annotations

import json
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np

from weightcast.converters.sources import open_graph, parse_size
from weightcast.evaluation.arithmetic import F32, Arithmetic, NumpyArithmetic, arithmetic
from weightcast.evaluation.estimate import Bench
from weightcast.evaluation.memory import Activations
from weightcast.evaluation.networks import Heads, Machine, Part, network, run_layer
from weightcast.evaluation.settings import Settings, machine
from weightcast.evaluation.weights import Tile, Weights
from weightcast.evaluation.work import Extent, attention_products, memory_of
from weightcast.evaluation.workers import BLOCK_TOKENS, Pool


class TimedArithmetic:
    """Operations of another arithmetic, with the CPU seconds that each takes."""

    def __init__(self, inner: Arithmetic) -> None:
        self.inner = inner
        self.seconds: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.inner, name)
        if not callable(found):
            return found

        def timed(*arguments: Any, **named: Any) -> Any:
            start = time.thread_time()
            try:
                return found(*arguments, **named)
            finally:
                with self._lock:
                    self.seconds[name] += time.thread_time() - start

        return timed


@dataclass(frozen=True)
class TimedWeights(Weights):
    """Weights, with the wall seconds that are waited for them."""

    waited: Counter[str] = field(default_factory=Counter)

    def whole(self, name: str) -> F32:
        with _timed(self.waited, "whole"):
            return super().whole(name)

    def tiles(self, name: str, expert: int = 0) -> Iterator[Tile]:
        tiles = super().tiles(name, expert)
        while True:
            with _timed(self.waited, "tiles"):
                tile = next(tiles, None)
            if tile is None:
                return
            yield tile


class TimedPool:
    """A pool, with the wall seconds that its workers are given work."""

    def __init__(self, inner: Pool) -> None:
        self.inner, self.jobs = inner, inner.jobs
        self.seconds: Counter[str] = Counter()

    def each(self, items: Iterable[Any], function: Callable[[Any], Any]) -> list[Any]:
        with _timed(self.seconds, function.__name__):
            return self.inner.each(items, function)


@contextmanager
def _timed(seconds: Counter[str], name: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[name] += time.perf_counter() - start


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("way")
@click.argument("layers", type=int)
@click.argument("tokens", type=int)
@click.argument("context", type=int)
@click.argument("budget")
@click.argument("folder", type=click.Path(path_type=Path))
def main(
    source: Path, way: str, layers: int, tokens: int, context: int, budget: str, folder: Path
) -> None:
    """Run the first layers of a model in one way, and print what that took as JSON."""
    library, precision = way.split("-")
    memory = parse_size(budget, "memory") if budget else None
    graph = open_graph(source)
    extent = Extent(max(1, tokens // context), context)
    with machine(Settings(precision=precision, memory=memory, folder=folder)) as plain:
        inner = NumpyArithmetic() if library == "numpy" else arithmetic("cpu", precision)
        ops, workers = TimedArithmetic(inner), TimedPool(plain.pool)
        run_by = Machine(ops, workers, plain.activations, plain.group_tokens)  # type: ignore[arg-type]
        weights = TimedWeights(graph)
        model = network(weights, run_by)
        bench = Bench(Machine(inner, plain.pool, Activations(None, folder)), BLOCK_TOKENS)
        hidden = [graph[name].shape[-2:] for name in model.parts(0)[-1].matrices]
        before = bench.products(hidden)
        flops = 2 * sum(
            _products(weights, part, extent) for n in range(layers) for part in model.parts(n)
        )
        states = model.embed(np.arange(extent.tokens) % model.vocab_size)
        weights.waited.clear()
        wall, cpu = time.perf_counter(), time.process_time()
        for number in range(layers):
            run_layer(model, number, states, context)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        gemm = 2 * statistics.mean([before, bench.products(hidden)])
        counted = memory_of(
            [(weights, model)], extent, run_by.group_tokens, plain.pool.jobs, memory, precision
        )
    computed = dict(ops.seconds)
    report = {
        "wall_s": wall,
        "cpu_s": cpu,
        "tokens_per_s": extent.tokens * layers / wall,
        "gflops": flops / wall / 1e9,
        "gemm_gflops": gemm / 1e9,
        "share": flops / wall / gemm,
        "cpu_by_operation_s": {**computed, "decoding and all else": cpu - sum(computed.values())},
        "workers_busy_s": dict(workers.seconds),
        "waiting_for_weights_s": dict(weights.waited),
        "counted_memory": {key: value / 1e9 for key, value in asdict(counted).items()},
    }
    click.echo(json.dumps(report))


def _products(weights: Weights, part: Part, extent: Extent) -> int:
    """Count the products that a part makes, of weights and of attention."""
    stored = sum(int(np.prod(weights.shape(name))) for name in part.matrices)
    if isinstance(part.kind, Heads):
        attended = extent.chunks * attention_products(part.kind, extent.context)
        return extent.tokens * stored + attended
    return extent.tokens * stored * part.kind.used // part.kind.experts


if __name__ == "__main__":
    main()
