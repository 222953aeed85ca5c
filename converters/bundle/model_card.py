"""Write the model card of an output: a README.md with front matter that model hubs read.

It says what the files are, how they were made and what runs them; nothing about the machine.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from weightcast.converters.bundle.runtimes import running
from weightcast.converters.families import of_architecture
from weightcast.converters.files import SUMS, TENSORS, bundle_paths, weightcast_version
from weightcast.converters.graph import Card, TensorGraph
from weightcast.converters.plan import Plan
from weightcast.converters.sources import (
    ConvertOptions,
    Form,
    hub_repository,
    without_folders,
    written_size,
)
from weightcast.converters.targets.target import Output, PlannedTensor
from weightcast.errors import visible
from weightcast.text import count, in_code

_NUMBER: Final = re.compile(r"(?<=\.)[0-9]+(?=\.)")
_LICENSE_KEY: Final = "general.license"
_BASE_URL_KEY: Final = "general.base_model.0.repo_url"
_HUB_URL: Final = re.compile(r"https://huggingface\.co/([\w.-]{1,96}/[\w.-]{1,96})/?")
# How model hubs write licences; anything else in metadata is left out.
_LICENSE: Final = re.compile(r"[a-z0-9][a-z0-9.+-]{0,40}")


@dataclass(frozen=True, slots=True)
class CardErrors:
    """The section of a card on errors, in lines of Markdown, and the baseline of the errors."""

    lines: Sequence[str]
    baseline: str = "stored"


def model_card(plan: Plan, number: int, errors: CardErrors | None = None) -> str:
    """Write the card of output `number`, with a section on errors if they were measured."""
    output = plan.outputs[number]
    sections = [
        _front_matter(plan, output),
        [f"# {_title(output)}", "", *_what_it_is(plan, output)],
        ["## Files", "", *_files(output)],
        ["## Types", "", *_types(output)],
        ["## How it was made", "", *_how(plan, number, errors)],
        [
            "## Running it",
            "",
            *running(output, plan.graph, no_tokenizer=plan.inputs.options.no_tokenizer),
        ],
    ]
    if errors is not None:
        sections.append(["## Errors", "", *errors.lines])
    sections.append(["## License", "", *_license_text(plan.graph)])
    return "\n\n".join("\n".join(lines) for lines in sections) + "\n"


def card_of(graph: TensorGraph) -> Card | None:
    """Find what cards say of a model's family, of whatever size the model is."""
    family = of_architecture(graph.family.architecture)
    return None if family is None else family.card


def is_release(graph: TensorGraph) -> bool:
    """Tell whether a model has the dimensions of the release that its family is named after."""
    family = of_architecture(graph.family.architecture)
    if family is None or family.card is None:
        return False
    said = graph.spec.describe()
    for row in family.hyperparameters:
        if row.name not in family.card.release_sizes or row.gguf is None:
            continue
        # A GGUF file under its own names says its hyperparameters in GGUF's keys.
        size = said.get(row.name, said.get(row.gguf.name))
        if size != row.released and not (size is None and row.gguf.optional):
            return False
    return True


def _license(graph: TensorGraph) -> str | None:
    """Name the licence as model hubs do: what a GGUF file says, or the family's."""
    told = graph.spec.describe().get(_LICENSE_KEY)
    if isinstance(told, str) and _LICENSE.fullmatch(told.lower()):
        return told.lower()
    card = card_of(graph)
    return None if card is None else card.license


def _base_model(plan: Plan) -> str | None:
    """Name the repository of the model: the release's, or what a GGUF file or a cache says."""
    card = card_of(plan.graph)
    if card is not None and is_release(plan.graph):
        return card.base_model
    told = plan.graph.spec.describe().get(_BASE_URL_KEY)
    if isinstance(told, str) and (match := _HUB_URL.fullmatch(told)):
        return match[1]
    cached = hub_repository(Path(os.path.abspath(plan.inputs.source)))
    return None if cached is None else cached[0]


def _front_matter(plan: Plan, output: Output) -> list[str]:
    graph = plan.graph
    target, card = output.request.target, card_of(graph)
    values: dict[str, Any] = {}
    told = _license(graph)
    if told is not None:
        values["license"] = told
    base_model = _base_model(plan)
    if base_model is not None:
        values["base_model"] = base_model
        is_adapter = graph.container == "peft"
        values["base_model_relation"] = "adapter" if is_adapter else "quantized"
    values["library_name"] = target.library
    values["pipeline_tag"] = "text-generation"
    directory = output.request.directory
    tags = [] if card is None else [card.tag]
    tags += ["weightcast", target.name, output.request.type_name.lower()]
    if directory is not None and directory.is_packed:
        tags.append(directory.layout)
    lines = ["---"]
    for key, value in values.items():
        plain = re.fullmatch(r"[a-z][\w./-]*", value)
        lines.append(f"{key}: {value if plain else json.dumps(value)}")
    # A JSON list is YAML too, whatever is in it.
    return [*lines, f"tags: {json.dumps(list(dict.fromkeys(tags)))}", "---"]


def _title(output: Output) -> str:
    return in_code(output.request.path.name.removesuffix(".gguf"))


def _what_it_is(plan: Plan, output: Output) -> Iterator[str]:
    graph, request = plan.graph, output.request
    model = f"a model of architecture {in_code(graph.family.name)}"
    family = of_architecture(graph.family.architecture)
    if family is not None and family.card is not None:
        model = f"a model of {family.title}'s architecture"
        if is_release(graph):
            model = family.card.release
    if graph.container == "peft":
        model = f"an adapter (LoRA) for {model}"
    form, parameters = request.target.form, f"{graph.parameters:,} parameters"
    yield f"{form}, {request.type_name}, of {model}: {parameters}."


def _files(output: Output) -> Iterator[str]:
    yield "| file | bytes |"
    yield "| --- | ---: |"
    for file in output.files:
        yield f"| `{in_code(file.path.name)}` | {file.size:,} |"
    for name, content in sorted(output.companions.items()):
        yield f"| `{in_code(name)}` | {len(content):,} |"
    yield ""
    paths = bundle_paths(output.request.path, output.request.target.is_directory)
    sums = in_code(shlex.quote(paths.path(SUMS).name))
    yield f"`sha256sum -c {sums}` checks these files."
    yield f"`{in_code(paths.path(TENSORS).name)}` has the SHA-256 of each tensor."


def _types(output: Output) -> Iterator[str]:
    """List the types that each kind of tensor is stored in."""
    yield (
        f"{output.bits_per_weight:.2f} bits per weight: {output.data_bytes:,} bytes of "
        f"{count(len(output.tensors), 'tensor')}."
    )
    yield ""
    yield "| tensors | type | number | bytes | bits per weight |"
    yield "| --- | --- | ---: | ---: | ---: |"
    kinds: dict[tuple[str, str], list[PlannedTensor]] = {}
    for planned in output.tensors:
        kind = _NUMBER.sub("*", planned.tensor.name)
        kinds.setdefault((kind, planned.type_name), []).append(planned)
    for (kind, type_name), found in kinds.items():
        nbytes = sum(planned.nbytes for planned in found)
        weights = sum(planned.tensor.size for planned in found)
        bits = f"{8 * nbytes / weights:.2f}" if weights else ""
        yield f"| `{in_code(kind)}` | {type_name} | {len(found):,} | {nbytes:,} | {bits} |"


def _how(plan: Plan, number: int, errors: CardErrors | None) -> Iterator[str]:
    inputs = plan.inputs
    yield f"By weightcast {weightcast_version()}:"
    yield ""
    yield f"    {_command(plan, number, errors)}"
    yield ""
    yield (
        f"It read {count(len(inputs.files), 'file')}, {inputs.nbytes:,} bytes. The same command on "
        "the same files gives the same bytes on any machine. The in-toto statement beside this "
        "page has the SHA-256 of every file that was read and written."
    )
    notes = plan.outputs[number].notes
    if notes:
        yield ""
        yield from (f"- {_prose(without_folders(note, inputs.files))}" for note in notes)


def _command(plan: Plan, number: int, errors: CardErrors | None) -> str:
    """Write the command that makes this output and its bundle alone, files without folders."""
    inputs, request = plan.inputs, plan.outputs[number].request
    options = replace(
        inputs.options,
        types=inputs.options.types[number : number + 1],
        baseline=None if errors is None else errors.baseline,  # without errors: another card
        bundle=True,
    )
    names = {role: file.path.name for role, file in inputs.extras.items()}
    words = ["weightcast", "convert", inputs.source_name, request.path.name]
    words += _options(options, request.form, names)
    return visible(" ".join(map(shlex.quote, words)))


def _options(options: ConvertOptions, form: Form, names: Mapping[str, str]) -> Iterator[str]:
    """Spell the options that are given, and of use for an output of this form.

    Files go by their names, which may have been found.
    """
    for row in options.ordered(lambda option: option.card):
        flag, value = row.option.flag, options.recorded(row)
        if row.is_input:
            value = names.get(row.name)
        if not value or value == row.default or not row.option.is_for(form):
            continue
        if row.option.kind == "flag":
            yield flag
            continue
        if row.option.kind == "size":
            value = written_size(value)
        if row.option.kind == "layers":
            value = ",".join(map(str, value))
        for text in value if row.option.kind == "texts" else (value,):
            yield from (flag, str(text))


def _license_text(graph: TensorGraph) -> Iterator[str]:
    told = _license(graph)
    family = of_architecture(graph.family.architecture)
    if family is not None and family.card is not None and is_release(graph):
        yield family.card.license_text
    elif told is not None:
        whose = "what the source says" if family is None else f"{family.title}'s"
        yield f"{told}: {whose}."
    else:
        yield "That of the source, which does not say."


def _prose(text: str) -> str:
    """Escape whatever Markdown would take for its own."""
    return re.sub(r"([\\`*<\[])", r"\\\1", visible(text))
