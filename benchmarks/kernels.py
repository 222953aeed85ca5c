#!/usr/bin/env python3
"""The kernels beside ggml_quantize_chunk, type by type, in one process and on one thread.

ggml, called inside the xllamacpp wheel, gets rows that are already dequantized and transposed. We
start from what a checkpoint has: int8 [in, out] with a bfloat16 scale per column, a slice of a
matrix as wide as Grok-1's; and from the rows that ggml gets. Every candidate runs once in each of
the repeats, in turn; figures are medians of thread CPU time, so that other load on the machine
disturbs them little. Blocks are compared with ggml's before anything is timed.

Two threads are timed by the clock, beside a loop of pure arithmetic: processors that share a core
let neither run twice as fast.

    .venv/bin/python -m benchmarks.kernels --output benchmarks/results/kernels.json
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from unittest import mock

import click
import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from benchmarks.kernel_tables import markdown
from tests.quant import instruction_sets, oracle
from weightcast.quant.cpu import library
from weightcast.quant.cpu.library import Matrix, dequantize_bytes, quantize_matrix
from weightcast.quant.types import I_TYPES, K_TYPES, SIMPLE_TYPES, TYPES, QuantType

N_IN, STORED_COLUMNS = 6144, 32768  # an expert matrix of Grok-1
EVICTING_BYTES = 64 << 20  # larger than the caches
LOSSLESS = "Q8_0 lossless"
# Columns that are timed: fewer where ggml is slow, so that a run stays under ten minutes.
COLUMNS = {
    **{t.name: 2048 for t in SIMPLE_TYPES},
    **{"Q2_K": 256, "Q3_K": 1024, "Q4_K": 256, "Q5_K": 256, "Q6_K": 512, LOSSLESS: 2048},
    **{"IQ4_NL": 128, "IQ4_XS": 128, "IQ3_S": 128, "IQ3_XXS": 128},
    **dict.fromkeys(("IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S"), 64),
}
NAMES = [t.name for t in (*SIMPLE_TYPES, *K_TYPES, *I_TYPES)]
ROWS = [row for name in NAMES for row in ((name, LOSSLESS) if name == "Q8_0" else (name,))]

LOOP = """
extern "C" float loop(long rounds) {
  float x[128];
  for (int i = 0; i < 128; ++i) x[i] = i;
  for (long r = 0; r < rounds; ++r) {
    for (int i = 0; i < 128; ++i) x[i] = x[i] * 0.999f + 0.5f;
  }
  float sum = 0;
  for (int i = 0; i < 128; ++i) sum += x[i];
  return sum;
}
"""


@dataclass(frozen=True, slots=True)
class Source:
    """One matrix [n_out, n_in] as stored codes with scales, and as the rows that ggml gets."""

    codes: Matrix
    rows: Matrix
    values: NDArray[np.float32]


def make_source(n_out: int, exact_scales: bool) -> Source:
    """Draw codes and scales; scales that float16 cannot hold make Q8_0 requantize."""
    rng = np.random.default_rng(1)
    stored = np.zeros((N_IN, STORED_COLUMNS), np.int8)
    codes = np.clip(rng.standard_normal((N_IN, n_out), np.float32) * 40, -128, 127).astype(np.int8)
    stored[:, :n_out] = codes
    scales = (10 ** rng.uniform(-4, -2, (1, n_out))).astype(np.float32)
    if exact_scales:
        scales = scales.astype(ml_dtypes.bfloat16).astype(np.float32)
    values = np.ascontiguousarray((codes.astype(np.float32) * scales).T)
    return Source(
        Matrix(stored.reshape(-1), "I8", n_out, N_IN, 1, STORED_COLUMNS, scales=scales),
        Matrix(values.reshape(-1), "F32", n_out, N_IN, N_IN, 1),
        values,
    )


def importance_for(quant_type: QuantType, wanted: bool) -> NDArray[np.float32] | None:
    """Draw an importance matrix where it is asked for or needed."""
    if quant_type.importance == "required" or (wanted and quant_type.importance == "optional"):
        return np.square(np.random.default_rng(2).standard_normal(N_IN, np.float32))
    return None


@contextmanager
def using(loaded: ctypes.CDLL) -> Iterator[None]:
    with mock.patch.object(library, "load", return_value=loaded):
        yield


def cpu_seconds(function: Callable[[], object]) -> float:
    start = time.thread_time()
    function()
    return time.thread_time() - start


def compare(
    candidates: dict[str, Callable[[], object]], repeat: int, n_weights: int
) -> dict[str, list[float]]:
    """Run all candidates in turn, `repeat` times; millions of weights per CPU second of each.

    None finds in the cache what the one before it left there, and each is sometimes the first.
    """
    speeds: dict[str, list[float]] = {name: [] for name in candidates}
    evicting = np.zeros(EVICTING_BYTES, np.uint8)
    order = list(candidates)
    for _ in range(repeat):
        for name in order:
            evicting += 1
            speeds[name].append(n_weights / cpu_seconds(candidates[name]) / 1e6)
        order.append(order.pop(0))
    return speeds


def ggml_quantize(
    values: NDArray[np.float32],
    quant_type: QuantType,
    importance: NDArray[np.float32] | None,
    rows: NDArray[np.uint8],
) -> Callable[[], object]:
    ggml = oracle.ggml()
    ggml.ggml_quantize_init(quant_type.ggml_id)
    n_out, n_in = values.shape
    return lambda: ggml.ggml_quantize_chunk(
        quant_type.ggml_id,
        values.ctypes.data,
        rows.ctypes.data,
        0,
        n_out,
        n_in,
        None if importance is None else importance.ctypes.data,
    )


def quantize_row(
    row: str, libraries: dict[str, ctypes.CDLL], repeat: int, quick: bool, weighed: bool
) -> dict[str, list[float]]:
    """Speeds of ggml and of ours, by "isa source", for one row of the table."""
    quant_type = TYPES[row.split()[0]]
    source = make_source(COLUMNS[row] // (4 if quick else 1), exact_scales=row != "Q8_0")
    importance = importance_for(quant_type, weighed)
    expected = np.zeros((len(source.values), quant_type.row_bytes(N_IN)), np.uint8)
    candidates = {"ggml": ggml_quantize(source.values, quant_type, importance, expected)}
    candidates["ggml"]()
    made = np.zeros_like(expected)

    def ours(loaded: ctypes.CDLL, matrix: Matrix) -> None:
        with using(loaded):
            quantize_matrix(matrix, quant_type, made, importance)

    sources = {"int8": source.codes, "F32": source.rows}
    if row == LOSSLESS:
        del sources["F32"]
    for isa, loaded in libraries.items():
        for kind, matrix in sources.items():
            ours(loaded, matrix)
            if row != LOSSLESS and not np.array_equal(made, expected):
                raise click.ClickException(f"{row} from {kind} on {isa} differs from ggml")
            candidates[f"{isa} {kind}"] = lambda a=loaded, b=matrix: ours(a, b)
    return compare(candidates, repeat, source.values.size)


def dequantize_row(
    name: str, libraries: dict[str, ctypes.CDLL], repeat: int, quick: bool
) -> dict[str, list[float]]:
    """Speeds of dequantize_row_* and of ours, by instruction set."""
    quant_type = TYPES[name]
    n_weights = N_IN * (512 if quick else 2048)
    values = make_source(16, exact_scales=True).values
    importance = importance_for(quant_type, wanted=False)
    some = oracle.quantize(values, quant_type.ggml_id, importance).reshape(-1)
    blocks = np.tile(some, n_weights // values.size)
    theirs = np.zeros(n_weights, np.float32)
    function = getattr(oracle.ggml(), f"dequantize_row_{name.lower().replace('_k', '_K')}")
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    candidates: dict[str, Callable[[], object]] = {
        "ggml": lambda: function(blocks.ctypes.data, theirs.ctypes.data, n_weights)
    }
    candidates["ggml"]()

    # The call beneath dequantize_bytes, which would make a new array each time.
    ours = np.zeros(n_weights, np.float32)

    def call(loaded: ctypes.CDLL) -> None:
        loaded.weightcast_dequantize(
            quant_type.ggml_id, blocks.ctypes.data, n_weights, ours.ctypes.data
        )

    for isa, loaded in libraries.items():
        with using(loaded):
            if not np.array_equal(dequantize_bytes(quant_type, blocks, n_weights), theirs):
                raise click.ClickException(f"dequantized {name} on {isa} differs from ggml")
        candidates[isa] = lambda a=loaded: call(a)
    return compare(candidates, repeat, n_weights)


def arithmetic_loop() -> Callable[[int], object]:
    """Compile a loop that touches no memory; ctypes lets go of the interpreter during a call."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "loop.cpp", Path(folder) / "loop.so"
        source.write_text(LOOP)
        flags = ["-O3", "-march=native", "-shared", "-fPIC"]
        subprocess.run(["g++", *flags, str(source), "-o", str(target)], check=True)
        loop = ctypes.CDLL(str(target)).loop
    loop.argtypes, loop.restype = [ctypes.c_long], ctypes.c_float
    return loop


def wall_seconds(jobs: list[Callable[[], object]], pool: ThreadPoolExecutor) -> float:
    start = time.monotonic()
    for done in [pool.submit(job) for job in jobs]:
        done.result()
    return time.monotonic() - start


def scaling(names: list[str], repeat: int, quick: bool) -> dict[str, dict[str, list[float]]]:
    """Twice the time of one job, over the time of two at once: for each type, and for the loop."""
    loop = arithmetic_loop()
    rounds = 20_000_000 // (4 if quick else 1)
    results: dict[str, dict[str, list[float]]] = {}
    with ThreadPoolExecutor(2) as pool:
        for row in names:
            quant_type = TYPES[row.split()[0]]
            source = make_source(2048 // (4 if quick else 1), exact_scales=row != "Q8_0")
            importance = importance_for(quant_type, wanted=False)
            shape = (source.codes.n_out, quant_type.row_bytes(N_IN))
            rows = [np.zeros(shape, np.uint8) for _ in range(2)]

            def job(
                dst: NDArray[np.uint8],
                quant_type: QuantType = quant_type,
                source: Source = source,
                importance: NDArray[np.float32] | None = importance,
            ) -> Callable[[], object]:
                return lambda: quantize_matrix(source.codes, quant_type, dst, importance)

            kernel, pure = [job(dst) for dst in rows], [lambda: loop(rounds)] * 2
            wall_seconds(kernel, pool)
            found: dict[str, list[float]] = {"kernel": [], "loop": []}
            for _ in range(repeat):
                for name, jobs in (("kernel", kernel), ("loop", pure)):
                    alone = wall_seconds(jobs[:1], pool)
                    found[name].append(2 * alone / wall_seconds(jobs, pool))
            results[row] = found
    return results


def machine() -> dict[str, object]:
    """Describe the processor, and the build of ggml that is measured."""
    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    fields = dict(line.split(":", 1) for line in cpuinfo.splitlines() if ":" in line)
    named = {key.strip(): value.strip() for key, value in fields.items()}
    return {
        "processor": named.get("model name", platform.processor()),
        "family_model_stepping": [named.get(k) for k in ("cpu family", "model", "stepping")],
        "cache_per_processor": named.get("cache size"),
        "processors": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "ggml": f"xllamacpp {version('xllamacpp')}, x86-64 without FMA",
    }


@click.command()
@click.option("--types", help="Rows of the table, separated by commas; all if not given.")
@click.option("--repeat", default=7, show_default=True)
@click.option("--importance", is_flag=True, help="Give an importance matrix to all that take one.")
@click.option("--quick", is_flag=True, help="A quarter of the columns, for a look.")
@click.option("--output", type=click.Path(path_type=Path), help="Write JSON, and a table beside.")
def main(
    types: str | None, repeat: int, importance: bool, quick: bool, output: Path | None
) -> None:
    """Measure every kernel against ggml's in one run."""
    rows = types.split(",") if types else ROWS
    report: dict[str, object] = {
        "date": date.today().isoformat(),
        "machine": machine(),
        "repeat": repeat,
        "importance": importance,
        "columns": {row: COLUMNS[row] // (4 if quick else 1) for row in rows},
    }
    with tempfile.TemporaryDirectory() as folder:
        libraries = {
            isa: instruction_sets.load_copy(isa, Path(folder) / isa)
            for isa in instruction_sets.available()
        }
        quantized: dict[str, dict[str, list[float]]] = {}
        dequantized: dict[str, dict[str, list[float]]] = {}
        for row in rows:
            quantized[row] = quantize_row(row, libraries, repeat, quick, importance)
            if row != LOSSLESS:
                dequantized[row] = dequantize_row(row, libraries, repeat, quick)
            best = {name: f"{statistics.median(s):.1f}" for name, s in quantized[row].items()}
            click.echo(f"{row}: {best}", err=True)
        threads = [row for row in ("Q4_K", "Q6_K", LOSSLESS, "Q4_0") if row in rows]
        report["two_threads"] = scaling(threads, repeat, quick)
    report["quantize_mweights_per_s"] = quantized
    report["dequantize_mweights_per_s"] = dequantized
    table = markdown(report)
    click.echo(table)
    if output:
        output.write_text(json.dumps(report, indent=1) + "\n")
        output.with_suffix(".md").write_text(table)


if __name__ == "__main__":
    main()
