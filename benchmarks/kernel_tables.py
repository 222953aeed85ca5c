"""Tables of what kernels.py measured, beside the targets."""

from __future__ import annotations

import statistics
from typing import Any

# Ratios to ggml_quantize_chunk from int8 [in, out] on AVX-512; AVX2 is to reach 60 % of them, and
# row-major float32 75 % of the speed from int8.
TARGETS = {
    **{"Q4_K": 12, "Q5_K": 11, "Q6_K": 8, "Q8_0": 4, "Q8_0 lossless": 5, "Q4_0": 3},
    **{"Q2_K": 5, "Q3_K": 5, "IQ4_NL": 10, "IQ4_XS": 10, "MXFP4": 4},
    **dict.fromkeys(("IQ3_S", "IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS"), 5),
}
AVX2_SHARE, ROWS_SHARE, THREADS_SHARE = 0.6, 0.75, 0.9

Speeds = dict[str, list[float]]


def ratio(speeds: Speeds, ours: str, theirs: str) -> float | None:
    """Divide the medians of two candidates."""
    if ours not in speeds or theirs not in speeds:
        return None
    return statistics.median(speeds[ours]) / statistics.median(speeds[theirs])


def spread(speeds: Speeds, ours: str, theirs: str) -> str:
    """Show the ratio of medians and the least and largest ratio of one repeat."""
    middle = ratio(speeds, ours, theirs)
    if middle is None:
        return "-"
    each = [a / b for a, b in zip(speeds[ours], speeds[theirs], strict=True)]
    return f"{middle:.1f} [{min(each):.1f}..{max(each):.1f}]"


def speed(speeds: Speeds, name: str) -> str:
    """Show a median with at most one decimal."""
    if name not in speeds:
        return "-"
    median = statistics.median(speeds[name])
    return f"{median:.0f}" if median >= 100 else f"{median:.1f}"


def judged(value: float | None, target: float | None, shown: str) -> str:
    """Show a value, with a cross where it misses its target."""
    missed = value is not None and target is not None and value < target
    return f"{shown} ✗" if missed else shown


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def quantize_table(speeds_by_type: dict[str, Speeds]) -> str:
    header = ["type", "ggml", "AVX-512", "ratio", "target", "from F32", "of int8"]
    header += ["AVX2", "ratio", "target", "SSE2", "ratio"]
    rows = []
    for name, speeds in speeds_by_type.items():
        target = TARGETS.get(name)
        lower = None if target is None else target * AVX2_SHARE
        from_rows = ratio(speeds, "avx512 F32", "avx512 int8")
        best, avx2 = ratio(speeds, "avx512 int8", "ggml"), ratio(speeds, "avx2 int8", "ggml")
        shown = "-" if from_rows is None else f"{from_rows:.2f}"
        rows.append(
            [
                name,
                speed(speeds, "ggml"),
                speed(speeds, "avx512 int8"),
                judged(best, target, spread(speeds, "avx512 int8", "ggml")),
                "-" if target is None else str(target),
                speed(speeds, "avx512 F32"),
                judged(from_rows, ROWS_SHARE, shown),
                speed(speeds, "avx2 int8"),
                judged(avx2, lower, spread(speeds, "avx2 int8", "ggml")),
                "-" if lower is None else f"{lower:.1f}",
                speed(speeds, "sse2 int8"),
                spread(speeds, "sse2 int8", "ggml"),
            ]
        )
    return table(header, rows)


def dequantize_table(speeds_by_type: dict[str, Speeds]) -> str:
    header = ["type", "ggml"]
    for name in ("AVX-512", "AVX2", "SSE2", "scalar"):
        header += [name, "ratio"]
    rows = []
    for name, speeds in speeds_by_type.items():
        cells = [name, speed(speeds, "ggml")]
        for isa in ("avx512", "avx2", "sse2", "scalar"):
            cells += [speed(speeds, isa), spread(speeds, isa, "ggml")]
        rows.append(cells)
    return table(header, rows)


def threads_table(scaling: dict[str, Speeds]) -> str:
    rows = []
    for name, found in scaling.items():
        kernel, loop = (statistics.median(found[key]) for key in ("kernel", "loop"))
        share = kernel / loop
        rows.append(
            [name, f"{kernel:.2f}", f"{loop:.2f}", judged(share, THREADS_SHARE, f"{share:.2f}")]
        )
    return table(["type", "two threads / one", "pure arithmetic", "share"], rows)


def markdown(report: dict[str, Any]) -> str:
    """Write the whole report: the machine, then three tables."""
    machine = report["machine"]
    weighed = "with an importance matrix" if report["importance"] else "without importance"
    return (
        f"# Kernels, {report['date']}\n\n"
        f"{machine['processor']}, {machine['processors']} processors, load {machine['load_before']}"
        f" before the run; {machine['system']}; ggml: {machine['ggml']}.\n"
        f"Millions of weights per second of CPU time on one thread, medians of {report['repeat']}"
        " interleaved repeats; ratios of medians [least..largest of one repeat]; ✗ misses its"
        " target.\n\n"
        f"## Quantize, from int8 [in, out] and scales, {weighed} where it is optional\n\n"
        f"{quantize_table(report['quantize_mweights_per_s'])}\n"
        f"## Dequantize\n\n{dequantize_table(report['dequantize_mweights_per_s'])}\n"
        "## Two threads, by the clock\n\n"
        f"{threads_table(report['two_threads'])}"
    )
