"""Open a source and lay out all requested outputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from weightcast.converters.families.grok1.spec import Grok1Spec
from weightcast.converters.graph.tensor import Spec, TensorGraph
from weightcast.converters.sources.open import open_carried, open_grok1, open_vocabulary
from weightcast.converters.sources.options import SourceOptions
from weightcast.converters.targets.gguf import lay_out_gguf
from weightcast.converters.targets.gguf_copy import lay_out_carried
from weightcast.converters.targets.safetensors import lay_out_directory
from weightcast.converters.targets.target import Output, Request, with_split_note
from weightcast.errors import CheckpointError
from weightcast.formats.gguf.imatrix import ImportanceMatrix


def lay_out_all(
    source: Path,
    requests: Sequence[Request],
    given: SourceOptions,
    split_bytes: int,
    imatrix: ImportanceMatrix | None,
) -> tuple[TensorGraph[Spec], list[Output]]:
    """Open the source and lay out all outputs.

    From GGUF to GGUF everything is kept, unless options say how to read a Grok-1; all else is
    written anew from what is known of Grok-1.
    """
    carried = open_carried(source) if given == SourceOptions() else None
    anew = [r for r in requests if carried is None or r.kind != "gguf"]
    graph: TensorGraph[Spec] | None = carried
    made: Iterator[Output] = iter(())
    if anew:
        graph = grok1 = open_grok1(source, given.spec)
        made = _lay_out_anew(source, grok1, anew, given, split_bytes, imatrix)
    assert graph is not None
    outputs = [
        next(made)
        if carried is None or request.kind != "gguf"
        else lay_out_carried(carried, request, split_bytes, imatrix)
        for request in requests
    ]
    return graph, outputs


def _lay_out_anew(
    source: Path,
    graph: TensorGraph[Grok1Spec],
    requests: Sequence[Request],
    given: SourceOptions,
    split_bytes: int,
    imatrix: ImportanceMatrix | None,
) -> Iterator[Output]:
    """Lay out outputs of a Grok-1, with its tokenizer."""
    vocabulary = None if given.no_tokenizer else open_vocabulary(source, given.tokenizer)
    if vocabulary is None and not given.no_tokenizer and any(r.kind == "gguf" for r in requests):
        raise CheckpointError(
            f"{source}: no tokenizer.model in or beside it, and llama.cpp needs one; "
            "pass --tokenizer FILE, or --no-tokenizer to do without"
        )
    notes: tuple[str, ...] = ()
    if vocabulary is not None:
        pieces, size = len(vocabulary.tokens), graph.spec.vocab_size
        vocabulary = vocabulary.padded(size)
        if pieces < size:
            notes = (f"the tokenizer has {pieces:,} pieces for a vocabulary of {size:,}",)
    for request in requests:
        lay_out = lay_out_gguf if request.kind == "gguf" else lay_out_directory
        output = lay_out(graph, request, vocabulary, split_bytes, imatrix)
        output = with_split_note(output, split_bytes)
        file = None if vocabulary is None else vocabulary.model_file
        yield replace(output, notes=(*notes, *output.notes), tokenizer=file)
