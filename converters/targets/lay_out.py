"""Open a source and lay out all requested outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from weightcast.converters.graph import TensorGraph
from weightcast.converters.recipes import COPY
from weightcast.converters.sources import (
    SourceOptions,
    open_as_it_is,
    open_family,
    open_vocabulary,
)
from weightcast.converters.sources.adapters import with_adapters
from weightcast.converters.targets.target import Context, Output, Request, with_split_note
from weightcast.errors import CheckpointError, RequestError
from weightcast.formats.tokenizer import Vocabulary
from weightcast.text import option


def lay_out_all(
    source: Path,
    requests: Sequence[Request],
    given: SourceOptions,
    context: Context,
) -> tuple[TensorGraph, list[Output]]:
    """Open the source and lay out all outputs; `context` still lacks the vocabulary.

    A target that keeps metadata copies a source that has them, of whatever model, unless options
    say how to read the model; all else is written anew from what its family's table says.
    """
    as_it_is = None
    if given.takes_any and any(request.target.keeps_metadata for request in requests):
        as_it_is = open_as_it_is(source, given.base)
    if as_it_is is not None:
        as_it_is = with_adapters(as_it_is, given.lora)
    anew = [r for r in requests if as_it_is is None or not r.target.keeps_metadata]
    if as_it_is is None:
        _check_no_copy(source, requests, given, context)
    written: dict[int, Output] = {}
    graph = as_it_is
    if anew:
        graph = with_adapters(open_family(source, given.spec), given.lora)
        vocabulary, notes = _vocabulary(source, graph, anew, given)
        context = replace(context, vocabulary=vocabulary)
        file = None if vocabulary is None else vocabulary.model_file
        for request in anew:
            output = request.target.lay_out(graph, request, context)
            output = with_split_note(output, context.split_bytes)
            said = (*graph.notes, *notes, *output.notes)
            written[id(request)] = replace(output, notes=said, tokenizer=file)
    assert graph is not None
    outputs = []
    for request in requests:
        if id(request) in written:
            outputs.append(written[id(request)])
        else:
            assert as_it_is is not None
            copied = request.target.lay_out(as_it_is, request, context)
            outputs.append(with_split_note(copied, context.split_bytes))
    return graph, outputs


def _check_no_copy(
    source: Path, requests: Sequence[Request], given: SourceOptions, context: Context
) -> None:
    """Refuse what only GGUF made of GGUF can have. Raises RequestError."""
    copies = [f"{r.path}: COPY" for r in requests if r.recipe == COPY and r.target.keeps_metadata]
    options = [
        option(name, True) for name in ("keep_split", "keep_order") if getattr(context, name)
    ]
    if not copies and not options:
        return
    asked = (copies + options)[0]
    if not given.takes_any and open_as_it_is(source) is not None:
        others = ", ".join(map(option, ("spec", "tokenizer", "no_tokenizer")))
        raise RequestError(f"{asked} keeps all that a GGUF file says; leave {others} out")
    remedy = "name a type, as in NAME-Q8_0.gguf" if copies else "leave it out"
    raise RequestError(f"{asked} is for GGUF made of GGUF, and {source} is none; {remedy}")


def _vocabulary(
    source: Path, graph: TensorGraph, requests: Sequence[Request], given: SourceOptions
) -> tuple[Vocabulary | None, tuple[str, ...]]:
    """Find the tokenizer of a model, as long as its vocabulary, and what is to be said of it."""
    found = None if given.no_tokenizer else open_vocabulary(source, given.tokenizer)
    # A release's own tokenizer fills its table.
    is_released = graph.spec.vocab_size == graph.family.released.get("vocab_size")
    needed = next((r.target.needs_tokenizer for r in requests if r.target.needs_tokenizer), None)
    if found is None and not given.no_tokenizer and needed is not None:
        download = graph.family.download if is_released else None
        folder = source if source.is_dir() else source.parent
        fetch = f"download it ({download.tokenizer_command(folder)}), " if download else ""
        raise CheckpointError(
            f"{source}: no tokenizer.model in or beside it, and {needed} needs one; {fetch}"
            f"pass {option('tokenizer', 'FILE')}, or {option('no_tokenizer', True)} to do without"
        )
    if found is None:
        return None, ()
    pieces, size = len(found.tokens), graph.spec.vocab_size
    padded = found.padded(size, 0) if is_released else found.padded(size)
    if pieces < size:
        return padded, (f"the tokenizer has {pieces:,} pieces for a vocabulary of {size:,}",)
    return padded, ()
