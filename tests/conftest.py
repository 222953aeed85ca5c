"""Fixtures: golden checkpoints, tiny synthetic ones, a SentencePiece model made on the spot.

At the end of a run, what was skipped or left out, a line for each reason.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

# A worker each has a processor: more threads of OpenBLAS and torch would wait for each other, which
# takes several times as long. Read when these are imported, here and in what tests start.
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import hypothesis
import pytest

from tests.support import NAMES, Golden
from weightcast.converters.families.grok1.synthetic import tiny_spec, write_checkpoint

# No timed assertions: machines that run the tests are busy.
hypothesis.settings.register_profile("weightcast", deadline=None)
hypothesis.settings.load_profile("weightcast")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was skipped and why: a reason also says what would enable the tests."""
    reports = terminalreporter.stats.get("skipped", [])
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in reports)
    terminalreporter.write_line(f"skipped {reasons.total()}:" if reasons else "skipped 0")
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"  {count:4} {reason}")
    left_out = {
        "not exhaustive": "full products of types and sources, long searches: make test-exhaustive",
        "exhaustive": "all that `make test` runs",
    }
    if reason := left_out.get(terminalreporter.config.option.markexpr):
        terminalreporter.write_line(f"left out: {reason}")


@pytest.fixture(params=NAMES)
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint with 1024 tokens; do not change it."""
    folder = tmp_path_factory.mktemp("tiny")
    write_checkpoint(folder, tiny_spec(), seed=3)
    return folder


@pytest.fixture(scope="session")
def tokenizer_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece BPE model of 400 pieces with the release's special ids."""
    from sentencepiece import SentencePieceTrainer

    folder = tmp_path_factory.mktemp("tokenizer")
    words = [f"{a}{b}{c}" for a in "bdfgklmn" for b in "aeiou" for c in "lmnrst"]
    text = folder / "text.txt"
    text.write_text("\n".join(" ".join(words[n:] + words[:n]) for n in range(0, len(words), 5)))
    SentencePieceTrainer.Train(
        input=str(text),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        user_defined_symbols=["<|sep|>"],
        minloglevel=2,
    )
    return folder / "tokenizer.model"


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Let interrupts count, which a shell has its background jobs ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
