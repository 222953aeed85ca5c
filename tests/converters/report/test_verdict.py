"""Verdicts: sentences that say what the numbers of a report say."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

from tests.converters.report import error_reports
from weightcast.converters.report import read_report
from weightcast.converters.report.markdown import summary
from weightcast.converters.report.text import entries
from weightcast.converters.report.verdict import Verdict, kept_text, verdicts

NOT_FINITE = ("error_squares", "relative_rms", "sqnr_db", "cosine", "mean_error", "largest_error")


def judged(tmp_path: Path, *outputs: error_reports.Json) -> list[Verdict]:
    path = tmp_path / "report.json"
    path.write_text(json.dumps(error_reports.report(list(outputs))))
    return verdicts(entries([read_report(path)]))


def said(verdict: Verdict) -> str:
    return " ".join("".join(piece.text for piece in each) for each in verdict.sentences)


def test_a_lossy_output(tmp_path: Path) -> None:
    output = error_reports.grok1_output("Q4_K_M", 4, 2)
    (verdict,) = judged(tmp_path, output)
    total = output["total"]
    kept = 100 * (1 - total["error_squares"] / total["source_squares"])
    worst = max(output["tensors"], key=lambda each: each["metrics"]["relative_rms"])
    text = said(verdict)
    match = re.match(
        r"Q4_K_M keeps ([\d.]+) % of the signal \(SQNR ([\d.]+) dB\) at ([\d.]+) bits per weight "
        r"\(([\d.]+) GB\)\. "
        r"Worst: (\S+) \((\S+), ([\d.]+) dB(, [\d.]+ % of the squared error)?\)\. "
        r"Raise (\S+) and 4 more tensors to (\S+): about \+([\d.]+) dB for ([\d.]+) ([MG]B) more\.",
        text,
    )
    assert match, text
    assert float(match[1]) == pytest.approx(kept, abs=0.006)
    assert float(match[2]) == pytest.approx(total["sqnr_db"], abs=0.005)
    assert float(match[3]) == pytest.approx(output["bits_per_weight"], abs=0.005)
    assert float(match[4]) == pytest.approx(output["bytes"] / 1e9, rel=0.005)  # three digits
    assert (match[5], match[6]) == (worst["name"], worst["type"])
    assert float(match[7]) == pytest.approx(worst["metrics"]["sqnr_db"], abs=0.005)
    first = verdict.proposals[0]
    assert (match[9], match[10]) == (first.upgrades[0].tensor.name, first.type)
    assert float(match[11]) == pytest.approx(first.gained_db, abs=0.05)
    unit = {"MB": 1e6, "GB": 1e9}[match[13]]
    assert float(match[12]) == pytest.approx(first.more_bytes / unit, rel=0.005)  # three digits


@pytest.mark.parametrize(
    ("sqnr", "text"),
    [(21.5, "99.29 %"), (10.0, "90.0 %"), (0.5, "10.9 %"), (35.0, "99.968 %"), (0.0, "0 %"),
     (-3.0, "0 %"), (55.6, "99.99972 %"), (None, "100 %")],
)  # fmt: skip
def test_the_share_that_is_kept(tmp_path: Path, sqnr: float | None, text: str) -> None:
    one = error_reports.tensor("a", "a", None, "Q4_K", (1, 256))
    one["metrics"] = error_reports.metrics(256, sqnr)
    (verdict,) = judged(tmp_path, error_reports.output("a", "Q4_K", [one]))
    shown = kept_text(verdict.entry.output.total)
    assert shown == text
    kept = 100 * (1 - (0 if sqnr is None else 10 ** (-sqnr / 10)))
    digits = len(text.removesuffix(" %").partition(".")[2])
    assert float(shown[:-2]) == pytest.approx(max(kept, 0), abs=0.5 * 10**-digits + 1e-12)
    if sqnr is not None:
        assert not shown.startswith("100")


def test_outputs_that_lose_nothing_or_everything(tmp_path: Path) -> None:
    lossless = error_reports.grok1_output("Q8_0", 1, 2)
    noise = error_reports.tensor("a", "a", None, "Q2_K", (1, 256))
    noise["metrics"] = error_reports.metrics(256, -2.0)
    broken = error_reports.grok1_output("Q4_K_M", 2, 2)
    bad = broken["tensors"][5]
    for part in (bad["metrics"], broken["total"]):
        part.update(dict.fromkeys(NOT_FINITE))
    texts = [
        said(each)
        for each in judged(tmp_path, lossless, error_reports.output("n", "Q2_K", [noise]), broken)
    ]
    bits = f"{lossless['bits_per_weight']:.2f} bits per weight"
    assert texts[0].startswith(f"Q8_0 loses nothing: every weight is what it was, at {bits} (")
    assert texts[1].startswith(
        "Q2_K loses the signal: its error is as large as the weights (SQNR -2.00 dB) at 2.62 bits"
    )
    assert texts[2] == (
        f"Q4_K_M cannot be used as it is: NaN or infinity in 1 tensor, first in {bad['name']}."
    )


def test_an_output_without_tensors(tmp_path: Path) -> None:
    output = error_reports.grok1_output("Q4_K_M", 1, 2)
    output["tensors"], output["kinds"] = [], []
    (verdict,) = judged(tmp_path, output)
    assert said(verdict) == "Q4_K_M has no tensors that were measured."


def test_names_are_marked(tmp_path: Path) -> None:
    """Whoever shows a verdict quotes names, and nothing but names."""
    (verdict,) = judged(tmp_path, error_reports.grok1_output("Q4_K_M", 2, 2))
    names = [piece.text for each in verdict.sentences for piece in each if piece.is_name]
    worst = max(verdict.entry.output.tensors, key=lambda each: each.metrics.relative_rms or 0)
    assert names == ["Q4_K_M", worst.name, verdict.proposals[0].upgrades[0].tensor.name]


def test_what_was_measured_is_not_called_about(tmp_path: Path) -> None:
    one = error_reports.tensor("blk.0.attn_v.weight", "attn_v", 0, "Q4_K", (64, 256))
    one["metrics"] = error_reports.metrics(64 * 256, 10.0)
    more = error_reports.tensor("blk.0.attn_v.weight", "attn_v", 0, "Q6_K", (64, 256))
    rest = error_reports.tensor("blk.0.attn_q.weight", "attn_q", 0, "Q5_K", (640, 256))
    first, _ = judged(
        tmp_path,
        error_reports.output("a", "Q4_K", [one, rest]),
        error_reports.output("b", "Q6_K", [more]),
    )
    squares = rest["metrics"]["error_squares"] + more["metrics"]["error_squares"]
    total = first.entry.output.total
    assert total.error_squares
    gain = 10 * math.log10(total.error_squares / squares)
    assert f"Raise blk.0.attn_v.weight to Q6_K: +{gain:.1f} dB for 4.22 kB more." in said(first)


def test_an_output_that_is_smaller_and_more_exact_is_named(tmp_path: Path) -> None:
    def made(path: str, sqnr: float, nbytes: int) -> error_reports.Json:
        one = error_reports.tensor("a", "a", None, "Q4_K", (64, 256))
        one["metrics"] = error_reports.metrics(64 * 256, sqnr)
        output = error_reports.output(path, path, [one])
        output["bytes"] = nbytes
        return output

    outputs = [
        made("X", 20.0, 100),
        made("Y", 25.0, 90),
        made("Z", 21.0, 100),
        made("W", 30.0, 200),
    ]
    x, y, z, w = map(said, judged(tmp_path, *outputs))
    assert " Y is smaller and more exact. " in x
    assert " Y is smaller and more exact. " in z
    assert "more exact" not in y
    assert "more exact" not in w
    x, z = map(said, judged(tmp_path, outputs[0], outputs[2]))
    assert " Z is as large and more exact. " in x
    assert "more exact" not in z


def test_numbers_that_contradict_each_other_are_no_failure(tmp_path: Path) -> None:
    """Reports come from strangers: each number is one of its kind, but no more is known."""
    output = error_reports.grok1_output("Q4_K_M", 1, 2)
    keys = ("error_squares", "source_squares", "relative_rms", "sqnr_db", "weights")
    tensor = output["tensors"][2]
    for metrics in (output["total"], tensor["metrics"]):
        for key in keys:
            before = metrics[key]
            for odd in (0, 5, 1) if key == "weights" else (0.0, 1e-300, 1e300, None, -1.0):
                if key == "relative_rms" and odd == -1.0:
                    continue
                metrics[key] = odd
                (verdict,) = judged(tmp_path, output)
                assert said(verdict).startswith("Q4_K_M ")
                summary([verdict.entry.report])
            metrics[key] = before
    output["total"]["error_squares"] = output["total"]["source_squares"] = 1e-320
    for each in output["tensors"]:
        each["metrics"]["relative_rms"] = 0.0
        each["bytes"], each["shape"] = 0, [1]
    (verdict,) = judged(tmp_path, output)
    assert "Worst" not in said(verdict)
