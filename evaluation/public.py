"""Calibration and evaluation as functions of Python."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from weightcast.converters.engine.progress import OnProgress, callback
from weightcast.converters.files import as_optional_path, as_path
from weightcast.converters.recipes.sensitivity import Sensitivities
from weightcast.converters.sources import parse_size
from weightcast.converters.summary import StrPath
from weightcast.evaluation import api
from weightcast.evaluation.arithmetic import FLOAT32
from weightcast.evaluation.evaluate import Evaluation
from weightcast.evaluation.settings import Settings
from weightcast.formats.gguf.importance_sums import CHUNK_SIZE, ImportanceSums
from weightcast.quant.search import parse_search


def imatrix(
    source: StrPath,
    text: StrPath,
    output: StrPath | None = None,
    *,
    context: int = CHUNK_SIZE,
    chunks: int | None = None,
    merge: Sequence[StrPath] = (),
    spec: StrPath | None = None,
    tokenizer: StrPath | None = None,
    precision: str = FLOAT32,
    device: str = "cpu",
    jobs: int | None = None,
    memory: str | float | None = None,
    folder: StrPath | None = None,
    resume: bool = True,
    on_progress: OnProgress | None = None,
) -> ImportanceSums:
    """Make an importance matrix of a model over a text, as llama-imatrix does, and write it.

    `source` is what `weightcast.open` opens, `text` UTF-8, or token ids in a .npy; it is cut to
    chunks of `context` tokens, of which the first `chunks` are run, each on its own. The `output`
    is llama-imatrix's GGUF file, or, named .dat, its older format; the sums in `merge`, files of
    either, are added. The model runs layer by layer: `memory` is how much activations may take,
    beyond which they lie in a file in `folder`. Results depend neither on that nor on `jobs`, but a
    little on `precision` ("float32", or "bfloat16" with torch) and `device` ("cpu", or torch's). A
    run with an output that was killed goes on after the last layer it finished, unless `resume` is
    False.

    Raises CheckpointError for what cannot be read or run, RequestError for other options.

    >>> sums = weightcast.imatrix(path, text, imatrix_path, context=64)
    >>> sums.entries["blk.0.attn_q.weight"].counts.tolist() == [sums.chunks * 64]
    True
    """
    asked = _text(text, context, chunks, tokenizer)
    settings = _settings(precision, device, jobs, memory, folder)
    found, _ = api.imatrix(
        as_path(source, "source"),
        asked,
        as_optional_path(output, "output"),
        settings,
        spec=as_optional_path(spec, "spec"),
        merge=[as_path(path, "merge") for path in merge],
        scores=False,
        resume=resume,
        on_progress=callback(on_progress),
    )
    return found


def evaluate(
    source: StrPath,
    *artifacts: StrPath,
    text: StrPath | None = None,
    base: StrPath | None = None,
    context: int = CHUNK_SIZE,
    chunks: int | None = None,
    isolated: bool = False,
    save_base: StrPath | None = None,
    report: StrPath | None = None,
    spec: StrPath | None = None,
    tokenizer: StrPath | None = None,
    precision: str = FLOAT32,
    device: str = "cpu",
    jobs: int | None = None,
    memory: str | float | None = None,
    folder: StrPath | None = None,
    resume: bool = True,
    on_progress: OnProgress | None = None,
) -> Evaluation:
    """Run a source and its artifacts over a text, and measure what these lose.

    Gives the perplexity of each, the divergence of what they predict and all else that
    llama-perplexity --kl-divergence prints, and errors by layer. Only weights differ: llama.cpp
    also rounds activations. `isolated` measures each layer alone, too. `save_base` gets the
    source's predictions as a KL base file of llama-perplexity; with `base`, such a file takes the
    place of source and text, and all models named are compared with it. `report` is a file to
    write: .json, .html (a page) or .md (a summary). The rest is as for `imatrix`.

    Raises CheckpointError for what cannot be read or run, RequestError for other options.

    >>> found = weightcast.evaluate(path, out, text=text, context=64)
    >>> found.artifacts[0].statistics.kld_mean < 0.02
    True
    """
    asked = None if text is None else _text(text, context, chunks, tokenizer)
    return api.evaluate(
        as_path(source, "source"),
        [as_path(path, "artifacts") for path in artifacts],
        asked,
        _settings(precision, device, jobs, memory, folder),
        spec=as_optional_path(spec, "spec"),
        isolated=isolated,
        base=as_optional_path(base, "base"),
        save_base=as_optional_path(save_base, "save_base"),
        report=as_optional_path(report, "report"),
        resume=resume,
        on_progress=callback(on_progress),
    )


def sensitivity(
    source: StrPath,
    text: StrPath,
    output: StrPath | None = None,
    *,
    types: Sequence[str] = api.USUAL_TYPES,
    probe: str | None = None,
    imatrix: StrPath | None = None,
    search: str = "ggml",
    effort: int | None = None,
    context: int = CHUNK_SIZE,
    chunks: int | None = None,
    spec: StrPath | None = None,
    tokenizer: StrPath | None = None,
    precision: str = FLOAT32,
    device: str = "cpu",
    jobs: int | None = None,
    memory: str | float | None = None,
    folder: StrPath | None = None,
    resume: bool = True,
    on_progress: OnProgress | None = None,
) -> Sensitivities:
    """Measure what each of some types costs each tensor of a model, for `convert` to choose by.

    The cost is the mean over tokens of |h' - h|^2 / |h|^2, of what the tensor's layer gives with
    that tensor alone in that type. With `probe`, a type, the mean divergence of the model's
    predictions is measured for that one, too, which takes a run of the model for each tensor.
    `imatrix`, `search` and `effort` are as for `convert`, and the rest as for `weightcast.imatrix`.

    Raises CheckpointError for what cannot be read or run, RequestError for other options.

    >>> found = weightcast.sensitivity(path, text, types=["Q2_K", "Q6_K"], context=64, chunks=2)
    >>> costs = found.tensors["blk.0.attn_v.weight"].local
    >>> costs["Q2_K"] > costs["Q6_K"]
    True
    """
    return api.sensitivity(
        as_path(source, "source"),
        _text(text, context, chunks, tokenizer),
        as_optional_path(output, "output"),
        _settings(precision, device, jobs, memory, folder),
        spec=as_optional_path(spec, "spec"),
        types=types,
        imatrix=as_optional_path(imatrix, "imatrix"),
        search=parse_search(search, effort),
        probe=probe,
        resume=resume,
        on_progress=callback(on_progress),
    )


def _text(
    path: Any, context: int, chunks: int | None, tokenizer: StrPath | None
) -> api.TextOptions:
    named = as_path(path, "text")
    return api.TextOptions(named, context, chunks, as_optional_path(tokenizer, "tokenizer"))


def _settings(
    precision: str,
    device: str,
    jobs: int | None,
    memory: str | float | None,
    folder: StrPath | None,
) -> Settings:
    nbytes = None if memory is None else parse_size(memory, "memory")
    return Settings(precision, device, jobs, nbytes, as_optional_path(folder, "folder"))
