"""Evaluations as files: the model that their JSON, its schema and all that is shown follow from.

`docs/evaluation.schema.json` is generated from these records (`json_schema`). Files may come from
strangers, so everything in them is checked before it is used.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Final

from weightcast.converters.files import weightcast_version
from weightcast.converters.report.records import (
    About,
    Bounds,
    OneOf,
    Unfit,
    codec_of,
    values_of,
)
from weightcast.errors import FormatError
from weightcast.evaluation.arithmetic import PRECISIONS
from weightcast.evaluation.evaluate import ArtifactEvaluation, Evaluation, Judged, Token
from weightcast.evaluation.networks import Ids
from weightcast.formats.foreign import refuse_foreign
from weightcast.formats.reading import parse_json, read_small
from weightcast.text import shown

FORMAT: Final = "weightcast.evaluation"
VERSION: Final = 1
DIFFERS_IN: Final = "weights only"
MAX_BYTES: Final = 1 << 26
_MAX_VALUES: Final = 1 << 22
# Tokens that are shown before one that diverges.
_BEFORE: Final = 12

Pieces = Callable[[int], str] | Mapping[int, str]
Count = Annotated[int, Bounds(0)]
Finite = Annotated[float | None, About("null: not a finite number")]
Above0 = Annotated[Finite, Bounds(0)]
Share = Annotated[float | None, Bounds(0, 1)]
Nats = Annotated[Finite, About("in nats")]
Change = Annotated[Finite, About("a share of 1: what the probability of the token gained")]


@dataclass(frozen=True, slots=True)
class TextRun:
    """The text that models ran over: its name, and how many chunks of how many tokens."""

    name: str
    chunks: Count
    context: Count


@dataclass(frozen=True, slots=True)
class SourceModel:
    """The source: bytes of its tensors, bits per weight, and its perplexity over n tokens."""

    name: str
    nbytes: Count
    bits_per_weight: Annotated[float, Bounds(0)]
    ppl: Above0
    ppl_se: Annotated[Above0, About("standard error")]
    n: Annotated[Count, About("scored tokens")]


@dataclass(frozen=True, slots=True)
class Statistics:
    """What llama-perplexity --kl-divergence prints of an artifact (q) and the source (base).

    `_se` are standard errors, 0 for up to 10 tokens; `_p99` are percentiles. `kld` is how far the
    artifact's predictions diverge from the source's, `dp` what the token's probability gained.
    """

    ppl_q: Above0
    ppl_q_se: Above0
    ppl_base: Above0
    ppl_base_se: Above0
    cor_ln_ppl: Annotated[Finite, About("correlation of the losses of both")]
    ln_ppl_ratio: Annotated[Finite, About("ln(ppl_q / ppl_base)")]
    ln_ppl_ratio_se: Above0
    ppl_ratio: Above0
    ppl_ratio_se: Above0
    ppl_difference: Annotated[Finite, About("ppl_q - ppl_base")]
    ppl_difference_se: Above0
    kld_mean: Nats
    kld_mean_se: Above0
    kld_max: Nats
    kld_p999: Nats
    kld_p99: Nats
    kld_p95: Nats
    kld_p90: Nats
    kld_median: Nats
    kld_p10: Nats
    kld_p05: Nats
    kld_p01: Nats
    kld_p001: Nats
    kld_min: Nats
    dp_mean: Change
    dp_mean_se: Above0
    dp_max: Change
    dp_p999: Change
    dp_p99: Change
    dp_p95: Change
    dp_p90: Change
    dp_p75: Change
    dp_median: Change
    dp_p25: Change
    dp_p10: Change
    dp_p05: Change
    dp_p01: Change
    dp_p001: Change
    dp_min: Change
    dp_rms: Annotated[Above0, About("root of the mean square of dp, a share of 1")]
    dp_rms_se: Above0
    same_top_p: Annotated[Share, About("share of tokens where both find the same one likeliest")]
    same_top_p_se: Above0
    n: Annotated[Count, About("scored tokens")]
    n_ctx: Annotated[Count, About("tokens of a chunk")]
    first: Annotated[Count, About("position in a chunk of the first that is scored")]
    chunks: Count


@dataclass(frozen=True, slots=True)
class Layer:
    """How far an artifact's hidden states are from the source's after a layer."""

    layer: Count
    relative: Annotated[
        Above0,
        About(
            "norm of the difference by that of the source's states, of this layer and all before"
        ),
    ]
    cosine: Annotated[Finite, About("mean cosine similarity of the states of a token")]
    same_experts: Annotated[
        Share,
        About("share of tokens that go to the same experts; absent without any", optional=True),
    ] = None
    same_first: Annotated[
        Share,
        About(
            "share of tokens whose most probable expert is the same; absent without any",
            optional=True,
        ),
    ] = None
    alone: Annotated[
        Above0,
        About(
            "`relative` where this layer alone is the artifact's; absent if not measured",
            optional=True,
        ),
    ] = None


@dataclass(frozen=True, slots=True)
class WorstToken:
    """A token that an artifact predicts differently: where it is, and what both make of it."""

    chunk: Count
    position: Annotated[Count, About("of the token itself in its chunk")]
    token: Annotated[Count, About("its id")]
    kld: Nats
    nll_base: Annotated[Finite, About("negative log-probability by the source, in nats")]
    nll_q: Annotated[Finite, About("negative log-probability by the artifact, in nats")]
    piece: Annotated[
        str | None, About("the token as text; absent if that is not known", optional=True)
    ] = None
    before: Annotated[str | None, About("the text before it; absent likewise", optional=True)] = (
        None
    )


@dataclass(frozen=True, slots=True)
class Artifact:
    """An artifact: its size, what it loses, errors by layer, and the worst tokens first."""

    name: str
    nbytes: Count
    bits_per_weight: Annotated[float, Bounds(0)]
    statistics: Statistics
    layers: tuple[Layer, ...]
    tokens: tuple[WorstToken, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationReport:
    """A source and its artifacts over a text: perplexity, divergence, errors by layer.

    Only weights differ between the models; llama.cpp also rounds activations. Standard errors take
    tokens as independent.
    """

    format: Annotated[str, OneOf((FORMAT,))] = FORMAT
    version: Annotated[int, OneOf((VERSION,))] = VERSION
    weightcast: Annotated[str, About("its version")]
    differs_in: Annotated[str, OneOf((DIFFERS_IN,))] = DIFFERS_IN
    text: TextRun
    precision: Annotated[
        str, OneOf(PRECISIONS), About("what products of matrices round their inputs to")
    ]
    device: str
    source: SourceModel
    artifacts: tuple[Artifact, ...]


def report_of(evaluation: Evaluation, pieces: Pieces | None = None) -> EvaluationReport:
    """Put an evaluation into the form of its file; `pieces` gives the text of a token's id.

    Without them the text's own tokenizer does, if it has one.
    """
    pieces = pieces or evaluation.text.piece
    chunks, context = evaluation.text.tokens.shape
    return EvaluationReport(
        weightcast=weightcast_version(),
        text=TextRun(evaluation.text.name, chunks, context),
        precision=evaluation.settings.precision,
        device=evaluation.settings.device,
        source=SourceModel(**_model(evaluation.source), **_finite(asdict(evaluation.perplexity))),
        artifacts=tuple(
            _artifact(each, evaluation.text.tokens, pieces) for each in evaluation.artifacts
        ),
    )


def read_evaluation(path: Path) -> EvaluationReport:
    """Read an evaluation. Raises FormatError if it is none, or of a newer version."""
    raw = read_small(path, MAX_BYTES, "evaluation")
    try:
        value = parse_json(path, raw, limit=_MAX_VALUES, parse_constant=_no_constant)
    except FormatError:
        refuse_foreign(path, "evaluation")
        raise
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        refuse_foreign(path, "evaluation")
        problem = f'not an evaluation (no "format": "{FORMAT}"); evaluate makes them'
        raise FormatError(path, None, problem)
    version = value.get("version")
    if type(version) is int and version > VERSION:
        problem = f"an evaluation of version {version}; this weightcast reads {VERSION}: upgrade it"
        raise FormatError(path, None, problem)
    if type(version) is not int or version != VERSION:
        raise FormatError(path, None, f"version {shown(version)} of evaluations does not exist")
    try:
        found: EvaluationReport = codec_of(EvaluationReport).read(value)
    except Unfit as problem:
        raise FormatError(path, None, f"{problem.path or 'evaluation'}{problem}") from None
    return found


def json_values(report: EvaluationReport) -> dict[str, Any]:
    """Turn an evaluation into JSON values."""
    return values_of(report)


def json_text(report: EvaluationReport) -> str:
    """Write an evaluation as the text of a JSON file."""
    return json.dumps(json_values(report), indent=1, allow_nan=False) + "\n"


def _no_constant(name: str) -> None:
    raise ValueError(name)  # NaN and infinities are no JSON


def _model(model: Judged) -> dict[str, Any]:
    return asdict(model)


def _artifact(found: ArtifactEvaluation, tokens: Ids, pieces: Pieces | None) -> Artifact:
    return Artifact(
        **_model(found.model),
        statistics=Statistics(**_finite(found.statistics.as_json())),
        layers=tuple(Layer(**_finite(asdict(layer))) for layer in found.layers),
        tokens=tuple(_token(token, tokens, pieces) for token in found.worst),
    )


def _token(token: Token, tokens: Ids, pieces: Pieces | None) -> WorstToken:
    values = _finite(asdict(token))
    if pieces is None:
        return WorstToken(**values)
    text = pieces.__getitem__ if isinstance(pieces, Mapping) else pieces
    start = max(0, token.position - _BEFORE)
    ids = tokens[token.chunk, start : token.position].tolist()
    return WorstToken(**values, piece=text(token.token), before="".join(map(text, ids)))


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """Take values with None for numbers that are not finite."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }
