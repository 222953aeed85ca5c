"""The command `demo`: convert a tiny Grok-1, run what was made in llama.cpp and numpy, compare."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Final

import click

from weightcast.commands import llama_cpp
from weightcast.commands.generation import continue_text, token_losses
from weightcast.commands.options import PATH, Command, listed_option
from weightcast.commands.printing import print_lines
from weightcast.commands.text import demo as text
from weightcast.converters.convert import Summary, convert
from weightcast.converters.families import FAMILIES
from weightcast.converters.graph import Example
from weightcast.converters.report import show_reports
from weightcast.converters.sources import open_family
from weightcast.errors import CheckpointError, OutputError

# In a checkout and in the source distribution; a wheel does not carry it.
TRAINED: Final = Path(__file__).resolve().parents[1] / "examples" / "tiny-grok"
_HELD_OUT: Final = "held-out.txt"
_SEED: Final = 20
_TYPES: Final = ("F32", "Q8_0", "Q4_K_M", "Q2_K")
# Chosen from a dozen prompts and seeds: the smaller the type, the earlier its text parts. With
# others the order is less tidy; perplexity is the measure.
PROMPT: Final = "Anne could not help"
_TEXT_SEED: Final = 2
_N_TOKENS: Final = 64
# Outputs that have the source's weights, or nearly.
_FAITHFUL: Final = ("F32", "Q8_0", "BF16")
_ERRORS: Final = "errors.json"
_LEAST_WORDS: Final = 50


@click.command(
    cls=Command,
    examples=("weightcast demo", "weightcast demo examples/tiny-grok --keep demo"),
)
@click.argument("checkpoint", metavar="[CHECKPOINT]", type=PATH, required=False)
@listed_option(
    "--random",
    "is_random",
    section="source",
    is_flag=True,
    help="Make a checkpoint of random weights.",
)
@listed_option(
    "--keep",
    section="output",
    type=PATH,
    metavar="DIR",
    help="Write the files into this directory and keep them.",
)
def demo(checkpoint: Path | None, keep: Path | None, *, is_random: bool) -> None:
    """Convert a tiny Grok-1, let llama.cpp write with what was made, and compare.

    CHECKPOINT is a directory with ckpt-0, tokenizer.model and held-out.txt, by default
    examples/tiny-grok of the sources, a model trained on Jane Austen's novels.
    """
    if checkpoint is not None and is_random:
        raise click.UsageError("give CHECKPOINT or --random, not both")
    if checkpoint is None and not is_random and TRAINED.is_dir():
        checkpoint = TRAINED
    print_lines(run_demo(checkpoint, keep))


def run_demo(checkpoint: Path | None = None, keep: Path | None = None) -> Iterator[str]:
    """Run the demo and yield what to print; files go to `keep`, or are removed at the end.

    Without a checkpoint the weights are random: files are made and compared, but say nothing.
    """
    if checkpoint is not None:
        _check(checkpoint)
    if keep is not None:
        try:
            keep.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise OutputError(f"{keep}: cannot be written: {problem.strerror}") from None
    with tempfile.TemporaryDirectory() if keep is None else nullcontext(str(keep)) as folder:
        if checkpoint is None:
            yield from _run_random(Path(folder))
        else:
            yield from _run_trained(checkpoint, Path(folder))
    yield ""
    if llama_cpp.library_path() is None:
        yield "llama.cpp is not installed and ran nothing: pip install 'weightcast[llama-cpp]'"
    if keep is None:
        yield "--keep DIR keeps the files, with a page that shows the error of each tensor."
    else:
        yield f"The files are in {keep}."
        yield from _error_page(keep)


def _check(checkpoint: Path) -> None:
    """Raise CheckpointError if parts of a checkpoint to show are missing."""
    has = {
        "ckpt-0": (checkpoint / "ckpt-0").is_dir(),
        "tokenizer.model": (checkpoint / "tokenizer.model").is_file(),
        _HELD_OUT: (checkpoint / _HELD_OUT).is_file(),
    }
    for name, is_there in has.items():
        if not is_there:
            raise CheckpointError(
                f"{checkpoint}: has no {name}; give the directory examples/tiny-grok of "
                "weightcast's sources, or --random"
            )


def _held_out(checkpoint: Path) -> str:
    path = checkpoint / _HELD_OUT
    try:
        found = path.read_text("utf-8", errors="replace")
    except OSError as problem:
        raise CheckpointError(f"{path}: cannot be read: {problem.strerror}") from None
    if len(found.split()) < _LEAST_WORDS:
        raise CheckpointError(f"{path}: has fewer than {_LEAST_WORDS} words; give it a text")
    return found


def _run_trained(checkpoint: Path, folder: Path) -> Iterator[str]:
    source, held_out = checkpoint / "ckpt-0", _held_out(checkpoint)
    targets = [folder / f"tiny-grok-{name}.gguf" for name in _TYPES] + [folder / "tiny-grok-bf16"]
    yield from _described(source, "A tiny trained Grok-1 in the format of xAI's release")
    summary = convert(source, *targets, report=folder / _ERRORS)
    yield from _converted(summary)
    if llama_cpp.library_path() is not None:
        yield ""
        yield from _spoken(summary, held_out)
    yield ""
    yield from _compared(source, summary)


def _run_random(folder: Path) -> Iterator[str]:
    if not TRAINED.is_dir():
        yield "The trained model of this demo is not in the wheel (7 MB). To see it write, give"
        yield "the directory examples/tiny-grok of the sources: weightcast demo CHECKPOINT"
        yield ""
    source = _example().write(folder / "tiny-random", _SEED)
    yield from _described(source, "A tiny Grok-1 of random weights")
    targets = [folder / f"tiny-random-{name}" for name in ("F32.gguf", "Q8_0.gguf", "bf16")]
    summary = convert(source, *targets, no_tokenizer=True, report=folder / _ERRORS)
    yield from _converted(summary)
    yield ""
    yield from _compared(source, summary)


def _example() -> Example:
    example = FAMILIES["grok-1"].example
    assert example is not None
    return example()


def _described(source: Path, what: str) -> Iterator[str]:
    parameters = open_family(source).parameters
    shards = [file.stat().st_size for file in source.iterdir()]
    yield f"{what}:"
    yield f"  {parameters:,} parameters in {len(shards)} shards, {sum(shards) / 1e6:.1f} MB"


def _converted(summary: Summary) -> Iterator[str]:
    outputs = summary.plan.outputs
    yield f"Converted in one read, {summary.seconds:.2f} s:"
    for number, output in enumerate(outputs):
        note = ""
        if output.request.type_name == "Q8_0":
            lossless = len(summary.block_origins(number)["lossless"])
            note = f"  the int8 codes of {lossless} tensors, unchanged"
        yield f"  {output.request.path.name:<24} {output.size / 1e6:>6.2f} MB{note}"


def _spoken(summary: Summary, held_out: str) -> Iterator[str]:
    """Let llama.cpp measure perplexity and write, with every GGUF output."""
    made: list[text.Spoken] = []
    for output in summary.plan.outputs:
        if output.request.path.suffix != ".gguf":
            continue
        with llama_cpp.loaded(output.request.path, threads=1) as model:
            losses = token_losses(model, held_out)
            written = continue_text(model, PROMPT, _N_TOKENS, _TEXT_SEED)
        made.append(
            text.Spoken(
                output.request.type_name,
                output.size,
                output.bits_per_weight,
                losses,
                f"{PROMPT}{written}".rpartition(" ")[0],  # the last word may be cut
            )
        )
    first = made[0]
    yield from text.quality(made)
    yield ""
    yield f'What llama.cpp writes after "{PROMPT}",'
    yield "drawn with the same random numbers for each. Where texts part depends on these:"
    yield "judge by the perplexity."
    yield ""
    for left, right in zip(made[::2], made[1::2], strict=True):
        yield from text.beside(left, right, first)


def _compared(source: Path, summary: Summary) -> Iterator[str]:
    """Hold every output with the source's weights against the forward pass over the shards."""
    example = _example()
    graph = open_family(source)
    tokens = example.sample_tokens(graph, _SEED)
    table = text.Table(example.logits(graph, tokens))
    yield from table.HEADER
    for output in summary.plan.outputs:
        path = output.request.path
        if output.request.type_name not in _FAITHFUL:
            continue
        yield table.line(path.name, "weightcast", example.logits(open_family(path), tokens))
        if path.suffix == ".gguf" and llama_cpp.library_path() is not None:
            logits = llama_cpp.logits(path, tokens.tolist(), threads=1)
            yield table.line(path.name, "llama.cpp", logits)
    yield from table.FOOTER


def _error_page(folder: Path) -> Iterator[str]:
    page = folder / "errors.html"
    try:
        list(show_reports([folder / _ERRORS], page))
    except CheckpointError as problem:
        yield f"No page of their errors: {problem}"
    else:
        yield f"Open {page} in a browser: the errors of all tensors."
