"""Evaluate artifacts beside their source, in one pass over the weights of all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from weightcast.converters.engine.progress import OnProgress, ignore_progress
from weightcast.converters.files import weightcast_version
from weightcast.converters.graph import TensorGraph, stored_bytes
from weightcast.evaluation.divergence import (
    KLStatistics,
    Perplexity,
    TokenRecords,
    kl_statistics,
    perplexity,
)
from weightcast.evaluation.importance import Importance
from weightcast.evaluation.layers import Comparison, LayerErrors, Run
from weightcast.evaluation.networks import Ids
from weightcast.evaluation.scoring import Scores, score, scored_parts
from weightcast.evaluation.session import (
    Settings,
    fingerprint,
    layer_progress,
    machine,
    networks_of,
    saved_beside,
)
from weightcast.formats.gguf.importance_sums import ImportanceSums
from weightcast.formats.kl_base import KLBaseWriter

FORMAT: Final = "weightcast.evaluation"
VERSION: Final = 1
_MOST_TOKENS: Final = 20
USUAL: Final = Settings()


@dataclass(frozen=True, slots=True)
class Text:
    """A text as it was run: its name, and tokens int64 [chunks, context]."""

    name: str
    tokens: Ids

    @property
    def context(self) -> int:
        return int(self.tokens.shape[1])

    def describe(self) -> dict[str, Any]:
        """Describe it as JSON values."""
        chunks, context = self.tokens.shape
        return {"name": self.name, "chunks": chunks, "context": context}


@dataclass(frozen=True, slots=True)
class Judged:
    """A model that was run: its name, the bytes of its tensors, and bits per weight."""

    name: str
    nbytes: int
    bits_per_weight: float

    @classmethod
    def of(cls, graph: TensorGraph) -> Judged:
        nbytes = sum(map(stored_bytes, graph.tensors.values()))
        return cls(Path(graph.source).name, nbytes, 8 * nbytes / max(1, graph.parameters))


@dataclass(frozen=True, slots=True)
class Token:
    """A token that an artifact predicts differently: where it is, and what both make of it.

    `position` is that of the token itself in its chunk. Losses and divergence are in nats.
    """

    chunk: int
    position: int
    token: int
    kld: float
    nll_base: float
    nll_q: float


@dataclass(frozen=True, slots=True)
class ArtifactEvaluation:
    """What an artifact loses: statistics over the tokens, errors by layer, the worst tokens."""

    model: Judged
    statistics: KLStatistics
    layers: tuple[LayerErrors, ...]
    worst: tuple[Token, ...]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A source and its artifacts over a text.

    Only weights differ: llama.cpp also rounds activations, and loses a little more than this.
    """

    source: Judged
    text: Text
    settings: Settings
    perplexity: Perplexity
    artifacts: tuple[ArtifactEvaluation, ...]

    def describe(self) -> dict[str, Any]:
        """Describe it as JSON values."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "weightcast": weightcast_version(),
            "differs_in": "weights only",
            "text": self.text.describe(),
            "precision": self.settings.precision,
            "device": self.settings.device,
            "source": {**asdict(self.source), **asdict(self.perplexity)},
            "artifacts": [
                {
                    **asdict(each.model),
                    "statistics": each.statistics.as_json(),
                    "layers": [_without_none(asdict(layer)) for layer in each.layers],
                    "tokens": [asdict(token) for token in each.worst],
                }
                for each in self.artifacts
            ],
        }


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def collect_importance(
    source: TensorGraph,
    text: Text,
    settings: Settings = USUAL,
    *,
    output: Path | None = None,
    scores: bool = True,
    on_progress: OnProgress = ignore_progress,
) -> tuple[ImportanceSums, Perplexity | None]:
    """Run a model over a text, and sum up the squared inputs of its matrices, as llama-imatrix.

    Gives the perplexity of the same pass, unless `scores` is False. States are kept beside
    `output` after each layer; a run that was killed goes on from there.
    """
    importance = Importance()
    with machine(settings) as run_by:
        networks = networks_of([source], run_by)
        said = fingerprint([source], text.tokens, settings, collects="importance")
        saved = saved_beside(output, said)
        run = Run(networks, text.tokens, importance, kept=(importance,), saved=saved)
        states = run.states(layer_progress([source], "run", on_progress))
        found = None
        if scores:
            on_part = layer_progress([source], "score", on_progress)
            memory = settings.memory
            scored = score(
                networks, states, text.tokens, run_by.pool, memory=memory, on_part=on_part
            )
            found = perplexity(scored.losses)
    return importance.sums(text.name, text.context), found


def evaluate(
    source: TensorGraph,
    artifacts: Sequence[TensorGraph],
    text: Text,
    settings: Settings = USUAL,
    *,
    isolated: bool = False,
    output: Path | None = None,
    save_base: Path | None = None,
    on_progress: OnProgress = ignore_progress,
) -> Evaluation:
    """Run a source and its artifacts over a text, layer by layer, and compare what they predict.

    `isolated` measures each layer of an artifact alone, too. States are kept beside `output` after
    each layer. `save_base` gets the source's predictions as a KL base file of llama.cpp.

    Raises LayoutError for models that cannot be run or are not of one kind.
    """
    graphs = [source, *artifacts]
    with ExitStack() as stack:
        run_by = stack.enter_context(machine(settings))
        networks = networks_of(graphs, run_by)
        comparison = Comparison(isolated)
        said = fingerprint(graphs, text.tokens, settings, isolated=isolated)
        run = Run(networks, text.tokens, comparison=comparison, saved=saved_beside(output, said))
        states = run.states(layer_progress(graphs, "run", on_progress))
        on_logits = None
        if save_base is not None:
            vocab_size = networks[0].vocab_size
            tokens = text.tokens.astype(np.int32)
            writer = KLBaseWriter(stack.enter_context(save_base.open("wb")), tokens, vocab_size)
            on_logits = writer.add
        scores = score(
            networks,
            states,
            text.tokens,
            run_by.pool,
            memory=settings.memory,
            on_logits=on_logits or (lambda logits: None),
            on_part=layer_progress(graphs, "score", on_progress),
        )
        if save_base is not None:
            writer.finish()
    return _evaluation(graphs, text, settings, scores, comparison)


def _evaluation(
    graphs: Sequence[TensorGraph],
    text: Text,
    settings: Settings,
    scores: Scores,
    comparison: Comparison,
) -> Evaluation:
    source, *artifacts = graphs
    found = [
        ArtifactEvaluation(
            Judged.of(graph),
            kl_statistics(records, text.context, len(text.tokens)),
            tuple(layers),
            worst_tokens(text.tokens, records),
        )
        for graph, records, layers in zip(artifacts, scores.records, comparison.errors, strict=True)
    ]
    losses = perplexity(scores.losses)
    return Evaluation(Judged.of(source), text, settings, losses, tuple(found))


def worst_tokens(tokens: Ids, records: TokenRecords) -> tuple[Token, ...]:
    """List the tokens whose predictions diverge most, the worst first."""
    places = [
        (part.chunk, position)
        for part in scored_parts(*tokens.shape)
        for position in range(part.start + 1, part.start + 1 + part.count)
    ]
    order = np.argsort(-records.kld, kind="stable")[:_MOST_TOKENS]
    return tuple(
        Token(
            chunk,
            position,
            int(tokens[chunk, position]),
            float(records.kld[n]),
            float(records.nll_base[n]),
            float(records.nll_q[n]),
        )
        for n, (chunk, position) in ((n, places[n]) for n in order.tolist())
        if records.kld[n] > 0
    )
