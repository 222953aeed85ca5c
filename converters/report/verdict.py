"""Sum outputs up in a sentence or two, computed from the numbers of their reports.

A verdict is made of pieces, so that a page and a summary in Markdown can quote names each in its
way. The share of the signal that an output keeps is 1 - error energy / source energy, the squares
of all errors over those of all weights; its SQNR is the same ratio in decibels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from weightcast.converters.report.schema import Metrics, OutputErrors
from weightcast.converters.report.text import (
    Entry,
    is_lossless,
    search_text,
    sqnr_text,
    worst_tensors,
)
from weightcast.converters.report.upgrades import Proposal, is_comparable, propose
from weightcast.text import count, size_text

KEPT_MEANS: Final = (
    "The share of the signal that is kept is 1 - Σ(y - x)² / Σx², over all weights x and their "
    "values y in the output."
)
ESTIMATED_MEANS: Final = (
    "Errors in another type are measured where another output holds the tensor in that type, and "
    "else estimated from how the SQNR of Gaussian weights differs between the two types."
)
OPTIONS_MEAN: Final = (
    "Give the options to weightcast convert before any other --tensor-type, and for this output "
    "alone. Where a rule counts tensors, the others of the kind are listed with their types, so as "
    "to keep them."
)


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a sentence; a name from a file is shown as code."""

    text: str
    is_name: bool = False


Sentence = tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The judgement of an output: sentences, and the proposals of what would make it better."""

    entry: Entry
    sentences: tuple[Sentence, ...]
    proposals: tuple[Proposal, ...] = ()


def verdicts(entries: Sequence[Entry]) -> list[Verdict]:
    """Judge each output."""
    return [_verdict(entry, entries) for entry in entries]


def kept_text(metrics: Metrics) -> str:
    """Write the share of the signal that is kept, with two digits of what is lost."""
    lost = 100 * _lost(metrics)
    if lost >= 100:
        return "0 %"
    places = max(1, 1 - math.floor(math.log10(lost))) if lost else 0
    return f"{100 - lost:.{min(places, 12)}f} %"


def _lost(metrics: Metrics) -> float:
    """Give the share of the signal that is lost: error energy over source energy."""
    error, signal = metrics.error_squares or 0.0, metrics.source_squares or 0.0
    if error <= 0:
        return 0.0
    return error / signal if signal > 0 else math.inf


def _verdict(entry: Entry, entries: Sequence[Entry]) -> Verdict:
    output = entry.output
    if not output.tensors:
        return Verdict(entry, ((_name(entry.label), Piece(" has no tensors that were measured.")),))
    if is_lossless(output.total):
        return Verdict(entry, (_lossless(entry),))
    if output.total.relative_rms is None:
        return Verdict(entry, (_not_finite(entry),))
    proposals = propose(entry, entries)
    sentences = [_kept(entry), *_searched(output), *_beaten(entry, entries), *_worst(output)]
    if proposals:
        sentences.append(_proposed(proposals[0]))
    return Verdict(entry, tuple(sentences), tuple(proposals))


def _name(text: str) -> Piece:
    return Piece(text, is_name=True)


def _lossless(entry: Entry) -> Sentence:
    text = f" loses nothing: every weight is what it was, at {_bits(entry.output)}."
    return _name(entry.label), Piece(text)


def _bits(output: OutputErrors) -> str:
    return f"{output.bits_per_weight:.2f} bits per weight ({size_text(output.bytes)})"


def _not_finite(entry: Entry) -> Sentence:
    bad = [each for each in entry.output.tensors if each.metrics.relative_rms is None]
    if not bad:
        return _name(entry.label), Piece(" has an error that is not finite in total.")
    text = f" cannot be used as it is: NaN or infinity in {count(len(bad), 'tensor')}, first in "
    return _name(entry.label), Piece(text), _name(bad[0].name), Piece(".")


def _kept(entry: Entry) -> Sentence:
    total = entry.output.total
    at = f" at {_bits(entry.output)}."
    weighted = "" if total.weighted is None else f", weighted {sqnr_text(total.weighted)}"
    sqnr = f"(SQNR {sqnr_text(total)}{weighted})"
    if _lost(total) >= 1:
        text = f" loses the signal: its error is as large as the weights {sqnr}"
    else:
        text = f" keeps {kept_text(total)} of the signal {sqnr}"
    return _name(entry.label), Piece(text + at)


def _searched(output: OutputErrors) -> Iterator[Sentence]:
    if told := search_text(output):
        yield (Piece(f"Least-error search: {told}."),)


def _beaten(entry: Entry, entries: Sequence[Entry]) -> Iterator[Sentence]:
    """Name an output of the same source that is not larger and has less error."""
    for other in sorted(entries, key=lambda other: _lost(other.output.total)):
        is_finite = other.output.total.relative_rms is not None
        if is_finite and is_comparable(other, entry) and other.output.bytes <= entry.output.bytes:
            if _lost(other.output.total) < _lost(entry.output.total):
                size = "as large" if other.output.bytes == entry.output.bytes else "smaller"
                yield _name(other.label), Piece(f" is {size} and more exact.")
            return


def _worst(output: OutputErrors) -> Iterator[Sentence]:
    total = output.total.error_squares or 0.0
    for worst in worst_tensors(output, 1):
        part = 100 * (worst.metrics.error_squares or 0.0) / total if total > 0 else 0.0
        written = f"{part:.0f}" if part >= 10 else f"{part:.1f}"
        share = f", {written} % of the squared error" if 0.1 <= part <= 100 else ""
        told = f" ({worst.type}, {sqnr_text(worst.metrics)}{share})."
        yield Piece("Worst: "), _name(worst.name), Piece(told)


def _proposed(proposal: Proposal) -> Sentence:
    first, others = proposal.upgrades[0], len(proposal.upgrades) - 1
    more = f" and {count(others, 'more tensor')}" if others else ""
    effect = Piece(f"{more} to {proposal.type}: {effect_text(proposal)}.")
    return Piece("Raise "), _name(first.tensor.name), effect


def effect_text(proposal: Proposal) -> str:
    """Say what a proposal gains and takes: about +1.2 dB for 0.4 GB more."""
    about = "" if proposal.is_measured else "about "
    if math.isinf(proposal.gained_db):
        gain = "no error left"
    else:
        gain = f"{about}+{proposal.gained_db:.{1 if proposal.gained_db >= 0.95 else 2}f} dB"
    nbytes = proposal.more_bytes
    return f"{gain} for {size_text(abs(nbytes))} {'more' if nbytes >= 0 else 'less'}"


def basis_text(proposal: Proposal) -> str:
    """Say where the errors of a proposal come from."""
    measured = sum(upgrade.is_measured for upgrade in proposal.upgrades)
    if measured == len(proposal.upgrades):
        return "measured"
    return f"{measured} measured, the others estimated" if measured else "estimated"


def proposal_text(proposal: Proposal) -> str:
    """Say what a proposal does, and on what ground."""
    within = "" if proposal.budget is None else f"Within {100 * proposal.budget:.0f} % more bytes: "
    raised = f"{within}raise {count(len(proposal.upgrades), 'tensor')} to {proposal.type}"
    return f"{raised[0].upper()}{raised[1:]}: {effect_text(proposal)} ({basis_text(proposal)})."
