#!/usr/bin/env python3
"""Write the parts of pages that are made from the code, between the comments that name them.

.venv/bin/python docs/tools/generate.py            # write
.venv/bin/python docs/tools/generate.py --check    # or say what is stale, and exit with 1
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from html import escape
from pathlib import Path
from typing import Final

import click

import weightcast
from weightcast.cli import load
from weightcast.commands import COMMANDS
from weightcast.commands.exits import MEANINGS
from weightcast.commands.options import SECTIONS

DOCS: Final = Path(__file__).parents[1]
LOSSES: Final = DOCS.parent / "benchmarks" / "results" / "losses-2026-12-01.md"
PARAMETERS: Final = 315_684_820_992  # of Grok-1
_MAIN_LAYOUTS: Final = (None, "compressed-tensors")
_SLOW: Final = ("demo",)  # its own tests run it; what a page shows for a shell is run there
# What most people take: what runs it, the type, whose error is measured, and what that is.
_CHOICES: Final = (
    ("llama.cpp", "Q8_0", "released codes kept, embedding rounded"),
    ("llama.cpp", "Q4_K_M", ""),
    ("llama.cpp", "Q2_K", ""),
    ("vLLM", "int8", "released codes kept in experts, attention and embedding BF16"),
    ("vLLM", "int4-g128", ""),
    ("SGLang, transformers", "bf16", "what the reference multiplies with"),
)
_IMPORTANCE: Final = {"ignored": "", "optional": "helps", "required": "needed"}


def commands() -> Iterator[str]:
    """Describe every command: usage, help, options by section, examples."""
    for name in COMMANDS:
        command = load(name)
        context = click.Context(command, info_name=f"weightcast {name}")
        usage = command.get_usage(context).removeprefix("Usage: ")
        yield from (f"## {name}", "", "```text", " ".join(usage.split()), "```", "")
        yield from _prose(command.help or "")
        yield from _options(command, context)
        examples = getattr(command, "examples", ())
        if examples:
            yield from ("```text" if name in _SLOW else "```sh", *examples, "```", "")


def exit_codes() -> Iterator[str]:
    """List the exit codes, with options and commands as code."""
    yield from ("| exit code | means |", "| ---: | --- |")
    names = re.compile(rf"--[a-z-]+|\b(?:{'|'.join(COMMANDS)})\b")
    for code, words in MEANINGS.items():
        marked = names.sub(r"`\g<0>`", words)
        yield f"| {code} | {marked} |"


def _prose(text: str) -> Iterator[str]:
    """Write help as Markdown; what click is told to leave as it stands becomes a block."""
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        first, _, rest = paragraph.partition("\n")
        if first == "\b":
            yield from ("```text", rest, "```", "")
        else:
            yield from (" ".join(paragraph.split()), "")


def _options(command: click.Command, context: click.Context) -> Iterator[str]:
    options = [p for p in command.params if isinstance(p, click.Option) and not p.hidden]
    if options:
        yield from ("| option | |", "| --- | --- |")
    for section, title in (*SECTIONS.items(), (None, "Other")):
        records = [
            p.get_help_record(context) for p in options if getattr(p, "section", None) == section
        ]
        if records:
            yield f"| **{title}** | |"
            yield from (f"| {_code(r[0])} | {_cell(r[1])} |" for r in records if r)
    if options:
        yield ""


def _code(text: str) -> str:
    """Write what may hold a bar, which would end a cell."""
    return f"<code>{escape(text).replace('|', '&#124;')}</code>"


def _cell(text: str) -> str:
    return escape(text, quote=False).replace("|", "&#124;")


def choice() -> Iterator[str]:
    """List the outputs of Grok-1 that most people take."""
    losses = read_losses()
    found = {t.name: t for t in weightcast.types()}
    yield from ("| runs in | take | Grok-1 | loss |", "| --- | --- | ---: | --- |")
    for runtime, name, words in _CHOICES:
        ending = ".gguf" if found[name].target == "gguf" else ""
        loss = ": ".join(filter(None, (losses[name + ending], words)))
        yield f"| {runtime} | `grok-1-{name}{ending or '/'}` | {_size(found[name])} | {loss} |"


def gguf_types() -> Iterator[str]:
    """List the types of GGUF files, large ones first."""
    losses = read_losses()
    yield "| name | bits | Grok-1: bits | size | error | importance matrix | when |"
    yield "| --- | ---: | ---: | ---: | ---: | --- | --- |"
    found = [t for t in weightcast.types() if t.target == "gguf"]
    for t in sorted(found, key=lambda t: -t.model_bits):
        loss = losses.get(f"{t.name}.gguf", "")
        needs = _IMPORTANCE[t.importance]
        yield (
            f"| `{t.name}` | {t.bits:.2f} | {t.model_bits:.2f} | {_size(t)} | {loss} | {needs} "
            f"| {t.advice} |"
        )


def directory_types() -> Iterator[str]:
    """List the types of directories: plain and in the default layout, then the names of others."""
    losses = read_losses()
    found = [t for t in weightcast.types() if t.target != "gguf"]
    yield "| name | bits | Grok-1: bits | size | error | importance matrix | read by | when |"
    yield "| --- | ---: | ---: | ---: | ---: | --- | --- | --- |"
    for t in found:
        if t.layout in _MAIN_LAYOUTS:
            readers = ", ".join(t.runtimes) or "weightcast"
            yield (
                f"| `{t.name}` | {t.bits:.2f} | {t.model_bits:.2f} | {_size(t)} "
                f"| {losses.get(t.name, '')} | {_IMPORTANCE[t.importance]} | {readers} "
                f"| {t.advice} |"
            )
    yield from ("", "The same groups in other layouts, with the same errors:", "")
    yield from ("| layout | read by | names |", "| --- | --- | --- |")
    for layout, runtimes in dict.fromkeys((t.layout, t.runtimes) for t in found):
        if layout not in _MAIN_LAYOUTS:
            same = [t.name for t in found if (t.layout, t.runtimes) == (layout, runtimes)]
            names, readers = (", ".join(f"`{name}`" for name in same), ", ".join(runtimes))
            yield f"| {layout} | {readers or 'weightcast'} | {names} |"


def _size(t: weightcast.TypeInfo) -> str:
    return f"{t.model_bits * PARAMETERS / 8e9:.0f} GB"


def read_losses() -> dict[str, str]:
    """Read the measured relative errors, in percent, by the type of the output."""
    rows = re.findall(r"^\| x-(\S+) \| ([\d.]+) \|", LOSSES.read_text(), re.MULTILINE)
    return {name: _percent(100 * float(error)) for name, error in rows}


def _percent(value: float) -> str:
    if value == 0:
        return "none"
    return f"{value:.2g} %" if value < 1 else f"{value:.{int(value < 9.95)}f} %"


# Pages by their path in docs/.
PARTS: Final[dict[str, Callable[[], Iterable[str]]]] = {
    "../README.md: choice": choice,
    "index.md: choice": choice,
    "cli.md: commands": commands,
    "cli.md: exit codes": exit_codes,
    "types.md: gguf": gguf_types,
    "types.md: directories": directory_types,
}


def generated(page: str, text: str) -> str:
    """Give a page with its generated parts made anew."""
    for place, make in PARTS.items():
        of, _, name = place.partition(": ")
        if of != page:
            continue
        begin, end = f"<!-- generated: {name} -->", f"<!-- end: {name} -->"
        head, found, rest = text.partition(begin)
        _, closed, tail = rest.partition(end)
        if not (found and closed):
            sys.exit(f"docs/{page}: no {begin} ... {end}")
        body = "\n".join(make()).strip("\n")
        text = f"{head}{begin}\n\n{body}\n\n{end}{tail}"
    return text


def main() -> None:
    """Write the parts, or check them."""
    stale = []
    for page in sorted({place.partition(": ")[0] for place in PARTS}):
        path = DOCS / page
        old = path.read_text()
        new = generated(page, old)
        if new != old:
            stale.append(f"docs/{page}")
            if "--check" not in sys.argv:
                path.write_text(new)
    if stale and "--check" in sys.argv:
        sys.exit(f"stale: {', '.join(stale)}; run docs/tools/generate.py")


if __name__ == "__main__":
    main()
