"""What evaluations are told by: numbers, lines for the terminal, summaries in Markdown, files."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tests.evaluation.report.evaluations import ARTIFACTS, evaluation
from weightcast.commands.text.evaluate import evaluation_lines
from weightcast.converters.report import pages
from weightcast.errors import CheckpointError, RequestError
from weightcast.evaluation.divergence import Perplexity, TokenRecords, kl_statistics
from weightcast.evaluation.evaluate import Judged
from weightcast.evaluation.report import (
    check_writable,
    read_evaluation,
    report_of,
    summary,
    write_evaluation,
)
from weightcast.evaluation.report.schema import Statistics
from weightcast.evaluation.report.text import (
    is_equal,
    llama_lines,
    number,
    perplexity,
    plus_minus,
    worst_layer_text,
)

# The end of what llama-perplexity --kl-divergence printed of a trained Grok-1 in Q4_K_M.
PRINTED = """\
====== Perplexity statistics ======
Mean PPL(Q)                   :  26.852879 ±   1.324717
Mean PPL(base)                :  26.817254 ±   1.321841
Cor(ln(PPL(Q)), ln(PPL(base))):  99.95%
Mean ln(PPL(Q)/PPL(base))     :   0.001328 ±   0.001626
Mean PPL(Q)/PPL(base)         :   1.001328 ±   0.001628
Mean PPL(Q)-PPL(base)         :   0.035625 ±   0.043722
====== KL divergence statistics ======
Mean    KLD:   0.003278 ±   0.000238
Maximum KLD:   0.260597
99.9%   KLD:   0.189498
99.0%   KLD:   0.054830
95.0%   KLD:   0.009115
90.0%   KLD:   0.004266
Median  KLD:   0.001056
10.0%   KLD:   0.000178
 5.0%   KLD:   0.000066
 1.0%   KLD:   0.000012
 0.1%   KLD:   0.000003
Minimum KLD:   0.000002
====== Token probability statistics ======
Mean    Δp: -0.001 ± 0.025 %
Maximum Δp: 33.469%
99.9%   Δp:  9.179%
99.0%   Δp:  3.490%
95.0%   Δp:  1.378%
90.0%   Δp:  0.697%
75.0%   Δp:  0.108%
Median  Δp:  0.000%
25.0%   Δp: -0.113%
10.0%   Δp: -0.727%
 5.0%   Δp: -1.429%
 1.0%   Δp: -3.386%
 0.1%   Δp: -11.333%
Minimum Δp: -18.072%
RMS Δp    :  1.373 ± 0.157 %
Same top p: 97.244 ± 0.297 %"""


def test_lines_of_llama_perplexity_are_as_it_prints_them() -> None:
    """The numbers that were printed, in the order of our fields, give the same lines again."""
    numbers = []
    for line in PRINTED.splitlines():
        told = re.split(r"Δp\s*:|KLD:|top p:|\s:|\)\):", line)[-1]
        scale = 100 if "%" in told else 1
        if "==" not in line:
            numbers += [float(each) / scale for each in re.findall(r"-?\d+\.\d+", told)]
    found = Statistics(*numbers, n=3048, n_ctx=256, first=128, chunks=24)
    assert list(llama_lines(found)) == PRINTED.splitlines()


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0.0032784, 0.000238, "0.00328 ± 0.00024"),
        (1.00133, 0.0016, "1.0013 ± 0.0016"),
        (97.244, 0.297, "97.24 ± 0.30"),
        (123.4, 45.6, "123 ± 46"),
        (0.5, 0.0, "0.500"),
        (0.0, 0.0, "0"),
        (3e-12, 2e-13, "3.00e-12 ± 2.0e-13"),
        (None, 0.1, "not finite"),
    ],
)
def test_numbers_have_the_digits_that_their_error_allows(
    value: float | None, error: float, text: str
) -> None:
    assert plus_minus(value, error) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.00105, "0.00105"),
        (2.3e-5, "2.30e-05"),
        (1234.5, "1234"),
        (None, "not finite"),
    ],
)
def test_numbers(value: float | None, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(26.852879, "26.853 ± 1.300"), (1.0, "1.0000 ± 1.3000"), (2e5, "200000 ± 1")],
)
def test_perplexities_have_five_digits(value: float, text: str) -> None:
    assert perplexity(value, 1.3) == text


def test_lines_are_few_and_say_what_is_lost() -> None:
    found = evaluation()
    lines = list(evaluation_lines(report_of(found)))
    assert lines[0] == "grok-1: 1 MB, 8.000 bits per weight"
    assert lines[2].startswith("wiki.test: 6 chunks of 64 tokens, 186 tokens scored, float32")
    for artifact in found.artifacts:
        at = next(n for n, line in enumerate(lines) if line.startswith(artifact.model.name))
        losses, divergence = map(_numbers, lines[at + 1 : at + 3])
        statistics = artifact.statistics
        assert losses[0] == pytest.approx(statistics.ppl_q, rel=1e-4)
        assert losses[2:] == pytest.approx([statistics.ppl_ratio, statistics.ppl_ratio_se], rel=0.1)
        assert divergence[0] == pytest.approx(statistics.kld_mean, rel=0.05)
        assert divergence[-1] == pytest.approx(statistics.kld_max, rel=0.01)
        assert lines[at + 3].startswith("  same top token ")
        assert lines[at + 4].startswith("  worst layer 3, ")
    assert len(lines) == 3 + 5 * len(ARTIFACTS) + 2
    assert any("llama.cpp also rounds activations" in line for line in lines)


def _numbers(line: str) -> list[float]:
    return [float(each) for each in re.findall(r"[\d.]+(?:e-\d+)?(?= |,|;|$)", line)]


def test_every_line_has_layers_tokens_and_what_llama_perplexity_prints() -> None:
    found = evaluation({"a": (4.0, 0.1)}, isolated=True)
    lines = list(evaluation_lines(report_of(found, lambda each: f"<{each}>"), everything=True))
    text = "\n".join(lines)
    assert all(word in text for word in ("same experts", "alone"))
    worst = found.artifacts[0].worst[0]
    assert f"[<{worst.token}>]" in text
    llama = [f"  {line}" for line in llama_lines(report_of(found).artifacts[0].statistics)]
    at = lines.index(llama[0])
    assert lines[at : at + len(llama)] == llama
    assert len(llama) == len(PRINTED.splitlines())


def test_equal_models_are_said_to_be() -> None:
    n = 186
    losses = np.linspace(0.1, 3, n)
    zeros = np.zeros(n)
    same = TokenRecords(losses, losses, zeros, zeros, np.ones(n, bool))
    found = evaluation({"a": (8.0, 0.1)})
    first = replace(found.artifacts[0], statistics=kl_statistics(same, 64, 6), worst=(), layers=())
    report = report_of(replace(found, artifacts=(first,)))
    assert is_equal(report.artifacts[0].statistics)
    lines = "\n".join(evaluation_lines(report, everything=True))
    assert "every prediction is the source's" in lines
    assert "1.00 times the source's" in lines


def test_a_kl_base_file_has_no_size_and_no_layers() -> None:
    found = evaluation({"a": (8.0, 0.1)}, n_layers=0)
    report = report_of(replace(found, source=Judged("base.kld", 0, 0.0)))
    lines = list(evaluation_lines(report, everything=True))
    assert lines[0] == "base.kld"
    assert not any("layer" in line for line in lines)
    assert "Source: `base.kld`, perplexity" in summary(report)


def test_layers_are_judged_alone_if_they_were_and_any_has_an_error() -> None:
    layers = report_of(evaluation({"a": (4.0, 0.1)}, isolated=True)).artifacts[0].layers
    assert worst_layer_text(layers) == "0 alone, 10.00 %"
    assert worst_layer_text([replace(each, alone=0.0) for each in layers]) == "3, 20.00 %"
    assert worst_layer_text([replace(layers[0], relative=0.0, alone=None)]) == "none"
    assert worst_layer_text([replace(layers[0], relative=None, alone=None)]) == "0, not finite"


def test_summary_has_tables_of_artifacts_and_layers() -> None:
    text = summary(report_of(evaluation(isolated=True)))
    for name in ARTIFACTS:
        (row,) = (line for line in text.splitlines() if line.startswith(f"| `{name}` |"))
        assert row.count("|") == 12
    assert text.count("| layer | states differ by | cosine | alone | same experts |") == 3
    assert "Weights only: llama.cpp also rounds activations" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    for head, line in pairwise(rows):
        if line.startswith("| ---"):
            assert head.count("|") == line.count("|")


def test_names_and_tokens_cannot_be_markdown(tmp_path: Path) -> None:
    hostile = "a`|<img>\n# x"
    found = evaluation({hostile: (4.0, 0.1)})
    text = summary(report_of(found, lambda each: "`|\n<b>"))
    assert not any(tag in text for tag in ("<img>", "<b>"))
    assert not any(line.startswith("# x") for line in text.splitlines())
    lines = list(evaluation_lines(report_of(found, lambda each: "\n\x1b[2J"), everything=True))
    assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize("ending", [".json", ".md", ".html"])
def test_files_are_written_by_their_ending(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"found{ending}"
    path.write_text("earlier")
    found = evaluation()
    write_evaluation(path, found)
    content = path.read_text()
    assert all(name in content for name in ARTIFACTS)
    if ending == ".json":
        assert read_evaluation(path) == report_of(found)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_other_endings_are_refused_before_anything_is_run(tmp_path: Path) -> None:
    for name in ("x.txt", "x"):
        with pytest.raises(RequestError, match=r"FILE\.json .* FILE\.html .* FILE\.md"):
            check_writable(tmp_path / name)
        with pytest.raises(RequestError):
            write_evaluation(tmp_path / name, evaluation())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["vl_convert", "jinja2"])
def test_pages_need_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    pages.library.cache_clear()
    with pytest.raises(CheckpointError, match=r"pip install 'weightcast\[report\]'"):
        check_writable(tmp_path / "x.html")
    check_writable(tmp_path / "x.md")


def test_perplexity_of_a_source_that_is_not_finite() -> None:
    found = replace(evaluation({}), perplexity=Perplexity(float("inf"), float("nan"), 5))
    assert list(evaluation_lines(report_of(found)))[1] == "  perplexity not finite"
