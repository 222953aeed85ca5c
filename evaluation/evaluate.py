"""Evaluate artifacts beside their source, in one pass over the weights of all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from weightcast.converters.engine.progress import OnProgress, ignore_progress
from weightcast.converters.files.atomic import replacing
from weightcast.converters.graph import TensorGraph, stored_bytes
from weightcast.errors import LayoutError, RequestError
from weightcast.evaluation.arithmetic import F32
from weightcast.evaluation.divergence import (
    KLStatistics,
    Perplexity,
    TokenRecords,
    kl_statistics,
    perplexity,
)
from weightcast.evaluation.importance import Importance
from weightcast.evaluation.layers import Comparison, LayerErrors, Run
from weightcast.evaluation.networks import Ids, Machine, Network
from weightcast.evaluation.saved import SavedStates
from weightcast.evaluation.scoring import (
    OnLogits,
    Scores,
    score,
    score_against,
    scored_parts,
)
from weightcast.evaluation.settings import (
    Settings,
    layer_progress,
    machine,
    networks_of,
    unchanged,
)
from weightcast.evaluation.text import Chunks
from weightcast.formats.gguf.importance_sums import ImportanceSums
from weightcast.formats.kl_base import KLBase, KLBaseWriter
from weightcast.text import count

_MOST_TOKENS: Final = 20
USUAL: Final = Settings()


@dataclass(frozen=True, slots=True)
class Text:
    """A text as it is run: its name, its tokens in chunks, what gives the text of a token."""

    name: str
    chunks: Chunks
    piece: Callable[[int], str] | None = field(default=None, repr=False)

    @property
    def tokens(self) -> Ids:
        """Give what positions are scored by, int64 [chunks, context]."""
        return self.chunks.tokens.astype(np.int64)

    @property
    def inputs(self) -> Ids:
        """Give what models read, int64 [chunks, context]."""
        return self.chunks.inputs().astype(np.int64)

    @property
    def context(self) -> int:
        return self.chunks.n_ctx


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


def collect_importance(
    source: TensorGraph,
    text: Text,
    settings: Settings = USUAL,
    *,
    saved: SavedStates | None = None,
    scores: bool = True,
    on_progress: OnProgress = ignore_progress,
) -> tuple[ImportanceSums, Perplexity | None]:
    """Run a model over a text, and sum up the squared inputs of its matrices, as llama-imatrix.

    Gives the perplexity of the same pass, too, unless `scores` is False. With `saved`, states are
    kept after each layer, and a run that was killed goes on from there. Raises LayoutError for a
    model that cannot be run, ChangedError if its files change meanwhile.
    """
    importance, check = Importance(), unchanged([source])
    with machine(settings) as run_by:
        networks = networks_of([source], run_by)
        run = Run(
            networks,
            text.inputs,
            importance,
            kept=(importance,),
            saved=saved,
            activations=run_by.activations,
            check=check,
        )
        states = run.states(layer_progress([source], "run", on_progress))
        found = None
        if scores:
            found = perplexity(
                _scores([source], networks, states, text, settings, run_by, on_progress).losses
            )
            check()
    return importance.sums(text.name, text.context), found


def evaluate(
    source: TensorGraph,
    artifacts: Sequence[TensorGraph],
    text: Text,
    settings: Settings = USUAL,
    *,
    isolated: bool = False,
    saved: SavedStates | None = None,
    save_base: Path | None = None,
    on_progress: OnProgress = ignore_progress,
) -> Evaluation:
    """Run a source and its artifacts over a text, layer by layer, and compare what they predict.

    `isolated` measures each layer of an artifact alone, too. With `saved`, states are kept after
    each layer. `save_base` gets the source's predictions as a KL base file of llama.cpp.

    Raises LayoutError for models that cannot be run or are not of one kind, ChangedError if their
    files change meanwhile.
    """
    graphs = [source, *artifacts]
    check = unchanged(graphs)
    with ExitStack() as stack:
        run_by = stack.enter_context(machine(settings))
        networks = networks_of(graphs, run_by)
        comparison = Comparison(isolated)
        run = Run(
            networks,
            text.inputs,
            comparison=comparison,
            saved=saved,
            activations=run_by.activations,
            check=check,
        )
        states = run.states(layer_progress(graphs, "run", on_progress))
        writer = None
        if save_base is not None:
            file = stack.enter_context(replacing(save_base))
            writer = KLBaseWriter(file, text.chunks.tokens, networks[0].vocab_size)
        on_logits = _ignore if writer is None else writer.add
        scores = _scores(graphs, networks, states, text, settings, run_by, on_progress, on_logits)
        check()
        if writer is not None:
            writer.finish()
    return _evaluation(graphs, text, settings, scores, comparison)


def evaluate_against(
    base: KLBase,
    models: Sequence[TensorGraph],
    text: Text,
    settings: Settings = USUAL,
    *,
    on_progress: OnProgress = ignore_progress,
) -> Evaluation:
    """Compare what models predict with a KL base file, as llama-perplexity does, one by one.

    `text` has the tokens of that file. Raises LayoutError for models that cannot be run or have
    another vocabulary, RequestError if there are none.
    """
    for graph in models:
        rows = graph["token_embd.weight"].shape[-2]
        if rows != base.n_vocab:
            raise LayoutError(
                f"{graph.source}: {count(rows, 'token')} in the vocabulary, and {base.n_vocab:,} "
                f"in that of {base.path}: this is another model"
            )
    found, losses = [], None
    for graph in models:
        with machine(settings) as run_by:
            networks = networks_of([graph], run_by)
            run = Run(networks, text.inputs, activations=run_by.activations)
            (states,) = run.states(layer_progress([graph], "run", on_progress))
            records = score_against(base, networks[0], states, memory=settings.memory)
        statistics = kl_statistics(records, text.context, len(text.chunks.tokens))
        worst = worst_tokens(text.tokens, records)
        found.append(ArtifactEvaluation(Judged.of(graph), statistics, (), worst))
        losses = records.nll_base
    if losses is None:
        raise RequestError("name a model to compare with the base file")
    source = Judged(base.path.name, 0, 0.0)
    return Evaluation(source, text, settings, perplexity(losses), tuple(found))


def _ignore(logits: F32) -> None:
    return None


def _scores(
    graphs: Sequence[TensorGraph],
    networks: Sequence[Network],
    states: Sequence[F32],
    text: Text,
    settings: Settings,
    run_by: Machine,
    on_progress: OnProgress,
    on_logits: OnLogits = _ignore,
) -> Scores:
    return score(
        networks,
        states,
        text.tokens,
        run_by.pool,
        memory=settings.memory,
        on_logits=on_logits,
        on_part=layer_progress(graphs, "score", on_progress),
    )


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
            kl_statistics(records, text.context, len(text.chunks.tokens)),
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
