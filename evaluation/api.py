"""Calibrate and evaluate models by the paths of files: what the command line and Python call."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Final

from weightcast.converters.engine.progress import OnProgress, ignore_progress
from weightcast.converters.graph import TensorGraph
from weightcast.converters.output.overwrite import check_place
from weightcast.converters.recipes.sensitivity import (
    MeasuredSource,
    Measurement,
    Sensitivities,
    TensorSensitivity,
    fingerprint_of,
    write_sensitivities,
)
from weightcast.converters.sources import open_graph, source_files
from weightcast.errors import (
    CheckpointError,
    FormatError,
    LayoutError,
    MissingTensorError,
    RequestError,
)
from weightcast.evaluation.arithmetic import F32
from weightcast.evaluation.divergence import Perplexity
from weightcast.evaluation.estimate import Estimate, estimate
from weightcast.evaluation.evaluate import (
    USUAL,
    Evaluation,
    Text,
    collect_importance,
    evaluate_against,
)
from weightcast.evaluation.evaluate import evaluate as evaluate_graphs
from weightcast.evaluation.importance_files import write_dat_imatrix, write_gguf_imatrix
from weightcast.evaluation.networks import prepare
from weightcast.evaluation.report import check_writable, write_evaluation
from weightcast.evaluation.sensitivity import OnTensor, Sensitivity
from weightcast.evaluation.settings import (
    Settings,
    check_settings,
    digest,
    fingerprint,
    layer_progress,
    machine,
    saved_beside,
    unchanged,
)
from weightcast.evaluation.text import TOKENS_SUFFIX, Chunks, cut, tokens_of
from weightcast.evaluation.tokenizers import Tokenizer, open_tokenizer
from weightcast.evaluation.weights import Weights
from weightcast.evaluation.work import Extent
from weightcast.formats.gguf.imatrix import read_imatrix, read_sums
from weightcast.formats.gguf.importance_sums import CHUNK_SIZE, ImportanceSums, merge_sums
from weightcast.formats.kl_base import read_kl_base
from weightcast.quant.names import hint
from weightcast.quant.search import GGML, Search
from weightcast.quant.types import TYPES, QuantType
from weightcast.text import option, shown

OLD_SUFFIX: Final = ".dat"
# Types that recipes are made of: one or two for each size, of all families of blocks.
USUAL_TYPES: Final = (
    *("IQ2_XXS", "IQ2_S", "Q2_K", "IQ3_XXS", "IQ3_S", "Q3_K"),
    *("IQ4_XS", "Q4_K", "Q5_K", "Q6_K", "Q8_0"),
)
# Where rows do not fill the blocks of 256 that most of these have.
FALLBACK_TYPES: Final = ("Q4_0", "IQ4_NL", "Q4_1", "Q5_0", "Q5_1")


@dataclass(frozen=True, slots=True)
class TextOptions:
    """What to run a model over.

    `path` is a text in UTF-8, or token ids in a .npy; it is cut to chunks of `context` tokens, of
    which the first `chunks` are taken, or all. `tokenizer` is a tokenizer.model or tokenizer.json,
    where the source has none.
    """

    path: Path
    context: int = CHUNK_SIZE
    chunks: int | None = None
    tokenizer: Path | None = None


def open_model(source: Path, spec: Path | None = None) -> TensorGraph:
    """Open a model that is to be run. Raises CheckpointError, also if no network can run it."""
    graph = open_graph(source, spec)
    prepare(graph)
    return graph


def load_text(graph: TensorGraph, options: TextOptions) -> Text:
    """Tokenize a text as llama.cpp does for a model, and cut it.

    Raises CheckpointError for what is no text, has ids that the model has not, or too few of them.
    """
    if options.path.suffix == TOKENS_SUFFIX:
        tokenizer = _tokenizer(graph, options)
    else:
        tokenizer = open_tokenizer(graph.source, options.tokenizer)
    ids = tokens_of(options.path, tokenizer)
    rows = graph["token_embd.weight"].shape[0]
    bos = None if tokenizer is None else tokenizer.bos
    try:
        chunks = cut(ids, options.context, options.chunks, bos=bos, n_vocab=rows)
    except LayoutError as problem:
        raise LayoutError(f"{options.path}: {problem}") from None
    return _text(str(options.path), chunks, tokenizer)


def _text(name: str, chunks: Chunks, tokenizer: Tokenizer | None) -> Text:
    return Text(name, chunks, None if tokenizer is None else tokenizer.piece)


def _tokenizer(graph: TensorGraph, options: TextOptions) -> Tokenizer | None:
    """Find what tells the token that chunks begin with, if it is there and can be used."""
    try:
        return open_tokenizer(graph.source, options.tokenizer)
    except (MissingTensorError, FormatError):
        if options.tokenizer is not None:
            raise
        return None


def imatrix(
    source: Path,
    text: TextOptions,
    output: Path | None,
    settings: Settings = USUAL,
    *,
    spec: Path | None = None,
    merge: Sequence[Path] = (),
    scores: bool = True,
    resume: bool = True,
    on_progress: OnProgress = ignore_progress,
) -> tuple[ImportanceSums, Perplexity | None]:
    """Make an importance matrix of a model over a text, add those in `merge`, and write it.

    The `output` is the GGUF file of llama-imatrix, or, named .dat, its older format; None writes
    nothing. An interrupted run with that output is gone on with, unless `resume` is False. Gives
    the sums, and the perplexity of the same pass if it `scores`.

    Raises CheckpointError for what cannot be read or run, TakenError if another run has the output.
    """
    check_settings(settings)
    graph = open_model(source, spec)
    _check_output(output, [*merge, text.path, *source_files(graph)])
    earlier = [read_sums(path) for path in merge]
    loaded = load_text(graph, text)
    said = fingerprint([graph], loaded.inputs, settings, collects="importance")
    with saved_beside(output, said, resume=resume) as saved:
        found, losses = collect_importance(
            graph, loaded, settings, saved=saved, scores=scores, on_progress=on_progress
        )
        found = merge_sums([*earlier, found], found.chunk_size)
        if output is not None:
            _write_imatrix(output, found)
    return found, losses


def estimate_run(
    source: Path,
    artifacts: Sequence[Path],
    text: TextOptions,
    settings: Settings = USUAL,
    *,
    spec: Path | None = None,
    isolated: bool = False,
) -> tuple[Estimate, Extent]:
    """Estimate what running models over a text takes; of their weights some tiles are read."""
    graphs = [open_model(path, spec) for path in (source, *artifacts)]
    tokens = load_text(graphs[0], text).chunks.tokens
    extent = Extent(len(tokens), tokens.shape[1], isolated)
    return estimate(graphs, extent, settings), extent


def merge_imatrices(paths: Sequence[Path], output: Path | None) -> ImportanceSums:
    """Put importance matrices together as llama-imatrix does, and write the sum of them.

    Raises CheckpointError for files that are none or do not fit one another, OutputError.
    """
    _check_output(output, paths)
    found = merge_sums([read_sums(path) for path in paths])
    if output is not None:
        _write_imatrix(output, found)
    return found


def _write_imatrix(output: Path, sums: ImportanceSums) -> None:
    if output.suffix == OLD_SUFFIX:
        write_dat_imatrix(output, sums)
    else:
        write_gguf_imatrix(output, sums, plain=True)


def evaluate(
    source: Path,
    artifacts: Sequence[Path],
    text: TextOptions | None,
    settings: Settings = USUAL,
    *,
    spec: Path | None = None,
    isolated: bool = False,
    base: Path | None = None,
    save_base: Path | None = None,
    report: Path | None = None,
    resume: bool = True,
    on_progress: OnProgress = ignore_progress,
) -> Evaluation:
    """Run a source and its artifacts over a text, compare what they predict, write the `report`.

    With a `base`, a KL base file of llama-perplexity, the source too is compared with that, over
    its tokens. `save_base` gets the source's predictions for llama-perplexity. States are kept
    beside the report, or else the base file, and an interrupted run is gone on with, unless
    `resume` is False.

    Raises CheckpointError for what cannot be read or run, TakenError if another run has the output.
    """
    check_settings(settings)
    if report is not None:
        check_writable(report)
    graphs = [open_model(path, spec) for path in (source, *artifacts)]
    read = [file for graph in graphs for file in source_files(graph)]
    if base is not None:
        _refuse_with_base(isolated=isolated, save_base=save_base)
        stored = read_kl_base(base)
        _check_output(report, [*read, base])
        tokenizer = _tokenizer(graphs[0], TextOptions(base))
        chunks = Chunks(stored.tokens, None if tokenizer is None else tokenizer.bos)
        against = _text(str(base), chunks, tokenizer)
        found = evaluate_against(stored, graphs, against, settings, on_progress=on_progress)
        if report is not None:
            write_evaluation(report, found)
        return found
    if text is None:
        raise RequestError(f"give a text ({option('text', 'FILE')})")
    _check_output(save_base, [*read, text.path])
    _check_output(report, [*read, text.path, *([] if save_base is None else [save_base])])
    loaded = load_text(graphs[0], text)
    said = fingerprint(graphs, loaded.inputs, settings, isolated=isolated)
    with saved_beside(report or save_base, said, resume=resume) as saved:
        found = evaluate_graphs(
            graphs[0],
            graphs[1:],
            loaded,
            settings,
            isolated=isolated,
            saved=saved,
            save_base=save_base,
            on_progress=on_progress,
        )
        if report is not None:
            write_evaluation(report, found)
    return found


def _refuse_with_base(**useless: object) -> None:
    """Refuse what has no effect beside a base file. Raises RequestError."""
    for name, value in useless.items():
        if value:
            raise RequestError(
                f"{option(name)}: of no use with {option('base')}, which has the predictions of a "
                "source, and not its states"
            )


def sensitivity(
    source: Path,
    text: TextOptions,
    output: Path | None,
    settings: Settings = USUAL,
    *,
    spec: Path | None = None,
    types: Iterable[str] = USUAL_TYPES,
    imatrix: Path | None = None,
    search: Search = GGML,
    probe: str | None = None,
    resume: bool = True,
    on_progress: OnProgress = ignore_progress,
) -> Sensitivities:
    """Measure what each type costs each tensor of a model, and write it for `convert`.

    `probe` names a type in which each tensor alone is also judged by the model's predictions. An
    interrupted run with that output is gone on with, unless `resume` is False.

    Raises CheckpointError for what cannot be read or run, RequestError for unknown types,
    TakenError if another run has the output.
    """
    chosen, probed = list(map(_type_named, types)), None if probe is None else _type_named(probe)
    check_settings(settings)
    graph = open_model(source, spec)
    read = [text.path, *source_files(graph)]
    _check_output(output, read if imatrix is None else [*read, imatrix])
    importance = {} if imatrix is None else _importance(graph, imatrix)
    loaded = load_text(graph, text)
    said = fingerprint(
        [graph],
        loaded.inputs,
        settings,
        types=[each.name for each in chosen],
        probe=probe,
        search=search.describe(),
        importance={name: digest(rows) for name, rows in importance.items()},
    )
    names = tuple(each.name for each in chosen)
    fallbacks = [TYPES[name] for name in FALLBACK_TYPES if names == USUAL_TYPES]
    tell = layer_progress([graph], "run", on_progress)
    with saved_beside(output, said, resume=resume) as saved, machine(settings) as run_by:
        measuring = Sensitivity(
            Weights(graph),
            run_by,
            loaded.inputs,
            chosen,
            importance,
            search,
            probed,
            fallbacks,
            saved,
            unchanged([graph]),
        )
        found = _measured(graph, loaded, measuring, tell, output)
        if output is not None:
            write_sensitivities(output, found)
    return found


def _measured(
    graph: TensorGraph, text: Text, measuring: Sensitivity, tell: OnTensor, output: Path | None
) -> Sensitivities:
    effects = measuring.measure(tell)
    shapes = {name: tensor.shape for name, tensor in graph.tensors.items()}
    search, has_importance = measuring.search.name, bool(measuring.importance)
    return Sensitivities(
        MeasuredSource(Path(graph.source).name, graph.parameters, fingerprint_of(shapes.items())),
        Measurement(text.name, text.tokens.size, text.context, search, has_importance),
        {
            name: TensorSensitivity(name, shapes[name], each.local, each.probe)
            for name, each in effects.items()
        },
        output,
    )


def _importance(graph: TensorGraph, path: Path) -> dict[str, F32]:
    """Read the importance [matrices, in] of the tensors that an importance matrix knows."""
    matrix = read_imatrix(path)
    found: dict[str, F32] = {}
    for name, entry in matrix.entries.items():
        shape = graph.tensors[name].shape if name in graph.tensors else ()
        n_matrices = prod(shape[:-2]) if len(shape) >= 2 else 0
        if n_matrices and entry.size == n_matrices * shape[-1]:
            found[name] = matrix.rows(name, n_matrices)
    if not found:
        raise CheckpointError(f"{path}: has nothing for the tensors of {graph.source}")
    return found


def _type_named(name: str) -> QuantType:
    found = TYPES.get(name.upper())
    if found is None:
        raise RequestError(f"unknown type {shown(name)}{hint(name.upper(), TYPES)}")
    return found


def _check_output(output: Path | None, read: Iterable[Path]) -> None:
    if output is not None:
        check_place(output, read)
