"""From a request to files: name the outputs, plan, check, run, sum up."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from weightcast.converters import execute
from weightcast.converters.graph import first_array
from weightcast.converters.plan import Output, Plan, Request, check_free_space, make_plan
from weightcast.converters.sources import open_graph, open_vocabulary
from weightcast.quant.errors import CheckpointError, OutputError
from weightcast.quant.library import BlockCounts
from weightcast.quant.types import BF16, F16, F32, TYPES, QuantType

DIRECTORY_TYPES: Final = (F32, F16, BF16)
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(I?)B?", re.IGNORECASE)


class RequestError(CheckpointError):
    """The request itself makes no sense: an unknown type, a size that is none."""


@dataclass(frozen=True)
class Summary:
    """What a conversion did: its plan, how Q8_0 blocks came about, seconds."""

    plan: Plan
    counts: execute.Counts
    seconds: float

    def describe(self) -> dict[str, Any]:
        outputs = []
        for number, output in enumerate(self.plan.outputs):
            described = output.describe()
            described["q8_0"] = self.block_origins(number)
            outputs.append(described)
        return {
            "source": self.plan.graph.source,
            "parameters": self.plan.graph.parameters,
            "seconds": round(self.seconds, 3),
            "outputs": outputs,
        }

    def block_origins(self, number: int) -> dict[str, Any]:
        """Q8_0 tensors of an output: carried losslessly, quantized, or in part requantized."""
        lossless, quantized, partly = [], [], {}
        for (output, tensor), count in sorted(self.counts.items()):
            if output != number or count == BlockCounts():
                continue
            if not count.requantized:
                lossless.append(tensor)
            elif count.inexact_scales or count.exact:
                partly[tensor] = {
                    "requantized_blocks": count.requantized,
                    "blocks": count.exact + count.requantized,
                    "inexact_scales": count.inexact_scales,
                }
            else:
                quantized.append(tensor)
        return {"lossless": lossless, "quantized": quantized, "requantized": partly}


def parse_size(text: str) -> int:
    """Read a size such as 48G, 500M or 4GiB, in bytes. Raises RequestError."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise RequestError(f"{text!r} is not a size; write it like 48G, 500M or 4GiB")
    base = 1024 if match[3] else 1000
    power = " KMGT".index(match[2].upper() or " ")
    size = int(float(match[1]) * base**power)
    if size < 1:
        raise RequestError(f"{text!r} is less than one byte")
    return size


def parse_output(path: str | Path, type_name: str | None) -> Request:
    """Tell from its name what an output is: NAME-TYPE.gguf, or a directory NAME-TYPE.

    Raises RequestError if the name does not say so and no type is given, or the type is not one
    that such an output can have.
    """
    text = str(path)
    kind = "gguf" if text.endswith(".gguf") else "safetensors"
    if text.endswith(".safetensors"):
        raise RequestError(
            f"{text}: safetensors are written as a directory; name it like grok-1-bf16"
        )
    known = tuple(TYPES.values()) if kind == "gguf" else DIRECTORY_TYPES
    names = ", ".join(sorted(t.name for t in known))
    example = "grok-1-Q8_0.gguf" if kind == "gguf" else "grok-1-bf16/"
    last = re.split(r"[-.]", Path(text).name.removesuffix(".gguf"))[-1]
    found: QuantType | None = TYPES.get((type_name or last).upper())
    if found is None and type_name is None:
        raise RequestError(
            f"{text}: the name does not end in a type ({names}), as in {example}; "
            "rename it or pass --type"
        )
    if found not in known:
        what = "a GGUF file" if kind == "gguf" else "a safetensors directory"
        raise RequestError(f"{text}: {type_name or last} is not a type of {what}; known: {names}")
    return Request(Path(text), kind, found)


def prepare(
    source: str | Path,
    outputs: Sequence[str | Path],
    *,
    types: Sequence[str] = (),
    spec: str | Path | None = None,
    tokenizer: str | Path | None = None,
    no_tokenizer: bool = False,
    split: str | int | None = None,
) -> Plan:
    """Plan a conversion without writing anything. Raises CheckpointError."""
    if not outputs:
        raise RequestError("no output is named")
    if types and len(types) != len(outputs):
        raise RequestError(f"{len(types)} types for {len(outputs)} outputs; give one for each")
    if tokenizer is not None and no_tokenizer:
        raise RequestError("a tokenizer and no tokenizer are asked for at once")
    named = zip(outputs, types or itertools.repeat(None, len(outputs)), strict=True)
    requests = [parse_output(path, name) for path, name in named]
    split_bytes = parse_size(split) if isinstance(split, str) else split or 0
    graph = open_graph(source, spec)
    vocabulary = None if no_tokenizer else open_vocabulary(source, tokenizer)
    if vocabulary is None and not no_tokenizer and any(r.kind == "gguf" for r in requests):
        raise CheckpointError(
            f"{source}: no tokenizer.model in or beside it, and llama.cpp needs one; "
            "pass --tokenizer FILE, or --no-tokenizer to do without"
        )
    if vocabulary is not None:
        vocabulary = vocabulary.padded(graph.spec.vocab_size)
    plan = make_plan(graph, requests, vocabulary, split_bytes)
    _check_targets(plan, Path(source))
    return plan


def convert(
    source: str | Path,
    *outputs: str | Path,
    types: Sequence[str] = (),
    spec: str | Path | None = None,
    tokenizer: str | Path | None = None,
    no_tokenizer: bool = False,
    split: str | int | None = None,
    jobs: int | None = None,
    on_progress: Callable[[int], None] = lambda nbytes: None,
) -> Summary:
    """Convert a checkpoint to one or several outputs in one read.

    The name of an output says what it is: NAME-Q8_0.gguf, NAME-BF16.gguf, or a directory
    NAME-bf16; `types` overrides that, one for each output. `split` limits the bytes of one file,
    `jobs` is the number of workers. Raises CheckpointError, and then leaves no output behind.
    """
    plan = prepare(
        source,
        outputs,
        types=types,
        spec=spec,
        tokenizer=tokenizer,
        no_tokenizer=no_tokenizer,
        split=split,
    )
    return run(plan, jobs, on_progress)


def run(
    plan: Plan,
    jobs: int | None = None,
    on_progress: Callable[[int], None] = lambda nbytes: None,
) -> Summary:
    """Carry out a plan."""
    if jobs is not None and jobs < 1:
        raise RequestError(f"{jobs} jobs; at least one is needed")
    check_free_space(plan.outputs)
    start = time.monotonic()
    counts = execute.run(plan, jobs or execute.default_workers(), on_progress)
    return Summary(plan, counts, time.monotonic() - start)


def _check_targets(plan: Plan, source: Path) -> None:
    """Refuse to write where it would harm: over the source, over foreign directories."""
    sources = {first_array(tensor).path.resolve() for tensor in plan.graph.values()}
    folders = {path.parent for path in sources} | {source.resolve()}
    seen: set[Path] = set()
    for output in plan.outputs:
        path = output.request.path
        if not path.parent.is_dir():
            raise OutputError(f"{path.parent}: no such directory; create it first")
        for final in {path.resolve(), *(f.path.resolve() for f in output.files)}:
            if final in seen:
                raise RequestError(f"{path}: two outputs have the same name")
            seen.add(final)
            if final in sources or final in folders:
                raise OutputError(f"{path}: is the source itself; write elsewhere")
        _check_existing(output)


def _check_existing(output: Output) -> None:
    path = output.request.path
    if output.request.kind == "gguf":
        for file in output.files:
            if file.path.is_dir():
                raise OutputError(f"{file.path}: is a directory, not a GGUF file")
        return
    if path.exists() and not path.is_dir():
        raise OutputError(f"{path}: exists and is not a directory")
    if path.is_dir() and any(path.iterdir()) and not (path / "config.json").is_file():
        raise OutputError(
            f"{path}: exists and does not look like a converted model; "
            "name another directory, or empty this one"
        )
