"""The figures of `benchmarks/peers.py` as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_TO_Q8_0, _TO_Q4_K_M = "weightcast: Q8_0", "weightcast: Q4_K_M"
_CELLS = (
    ("wall", "wall_s", "{:.1f} s"),
    ("CPU", "cpu_s", "{:.1f} s"),
    ("peak memory", "peak_gb", "{:.2f} GB"),
    ("not files", "own_gb", "{:.2f} GB"),
    ("reads", "read_gb", "{:.1f} GB"),
    ("from the disk", "disk_read_gb", "{:.1f} GB"),
    ("makes", "made_gb", "{:.1f} GB"),
)


def markdown(report: Mapping[str, Any]) -> str:
    """Two tables, of ways and of their steps."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: Mapping[str, Any]) -> Iterator[str]:
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    yield "# One real-size layer to Q8_0 and Q4_K_M, beside other ways"
    yield ""
    yield (
        f"`python -m benchmarks.peers` on {report['date']}: {report['machine']}; {versions}; "
        f"llama.cpp of {report['llama_cpp']}. Caches: {report['cache']}. Medians of "
        f"{report['repeat']}."
    )
    yield ""
    yield (
        "llama.cpp starts from the bf16 directory that weightcast wrote of the same shards, which "
        "is not counted; its files have the embedding twice (`output.weight`), 6.5 instead of 5.7 "
        "billion weights. Peak memory is the resident set, mapped files included; the next column "
        "leaves files out. gguf-py and torch have no Q4_K quantizer."
    )
    yield ""
    yield from _table("way", report["ways"], times=True)
    yield ""
    yield from _table("step", report["steps"], times=False)


def _table(first: str, rows: Mapping[str, Mapping[str, float]], *, times: bool) -> Iterator[str]:
    heads = [first, *(head for head, _, _ in _CELLS)]
    heads += [f"{what} / weightcast's" for what in ("wall", "peak", "not files")] * times
    yield f"| {' | '.join(heads)} |"
    yield f"| --- |{' ---: |' * (len(heads) - 1)}"
    for name, row in rows.items():
        cells = [text.format(row[key]) for _, key, text in _CELLS]
        yield f"| {' | '.join([name, *cells, *(_ratios(name, row, rows) if times else [])])} |"


def _ratios(
    name: str, row: Mapping[str, float], rows: Mapping[str, Mapping[str, float]]
) -> list[str]:
    ours = rows.get(_TO_Q4_K_M if "Q4_K_M" in name else _TO_Q8_0)
    if ours is None or name.startswith("weightcast"):
        return ["", "", ""]
    return [f"{row[key] / ours[key]:.2f}" for key in ("wall_s", "peak_gb", "own_gb")]
