"""Options of a conversion: a row each, from which all else about them follows."""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass, field
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import weightcast
from weightcast.commands.work_options import convert_options
from weightcast.converters.bundle import provenance
from weightcast.converters.bundle.model_card import model_card
from weightcast.converters.convert import prepare
from weightcast.converters.output.fingerprint import changes, fingerprint
from weightcast.converters.plan.plan import Plan
from weightcast.converters.sources.options import ConvertOptions, Option, parse_size, written_size
from weightcast.errors import RequestError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("48G", 48 * 10**9),
        ("500M", 5 * 10**8),
        ("4GiB", 4 * 2**30),
        ("1.5k", 1500),
        (7, 7),
        ("7B", 7),
    ],
)
def test_sizes(text: str | int, size: int) -> None:
    assert parse_size(text) == size
    assert parse_size(written_size(size)) == size


@pytest.mark.parametrize(
    ("size", "text"),
    [(48 * 10**9, "48G"), (4 * 2**30, "4GiB"), (1500, "1500B"), (12_000, "12K"), (3072, "3KiB")],
)
def test_sizes_in_the_largest_unit_that_fits(size: int, text: str) -> None:
    assert written_size(size) == text


@pytest.mark.parametrize("text", ["48", " 48 ", "1.5"])
def test_sizes_need_a_unit(text: str) -> None:
    with pytest.raises(
        RequestError, match=r"has no unit; write .*G for GB, .*M for MB, or .*B for bytes"
    ):
        parse_size(text)


def test_the_keywords_of_convert_are_the_options() -> None:
    parameters = inspect.signature(weightcast.convert).parameters.values()
    keywords = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    del keywords["on_progress"]
    assert keywords == {row.name: row.default for row in ConvertOptions.rows()}


def test_positions_in_records_are_unique() -> None:
    for record in ("fingerprint", "provenance", "card"):
        places = [getattr(row.option, record) for row in ConvertOptions.rows()]
        taken = [place for place in places if place is not None]
        assert len(taken) == len(set(taken)) > 3


@dataclass(frozen=True, slots=True)
class MoreOptions(ConvertOptions):
    """Two more options, of one row each."""

    dither: bool = field(
        default=False,
        metadata=Option(
            "--dither",
            "Add noise before rounding.",
            "flag",
            forms=("gguf",),
            fingerprint=80,
            provenance=80,
            card=80,
        ).metadata,
    )
    noise_seed: str | None = field(
        default=None,
        metadata=Option(
            "--noise-seed", "Where the noise starts.", fingerprint=81, provenance=81, card=81
        ).metadata,
    )


def more(tiny: Path, output: Path, **options: object) -> Plan:
    return prepare(tiny, [output], MoreOptions(no_tokenizer=True, **options))


def test_a_row_is_an_option_of_the_command_line() -> None:
    found = []

    @click.command()
    @convert_options(MoreOptions)
    def convert(**options: object) -> None:
        found.append(MoreOptions(**options))

    done = CliRunner().invoke(convert, ["--dither", "--noise-seed", "7", "--type", "Q8_0"])
    assert (done.exit_code, found) == (0, [MoreOptions(("Q8_0",), dither=True, noise_seed="7")])
    assert CliRunner().invoke(convert, []).exit_code == 0
    assert found[1] == MoreOptions()
    said = CliRunner().invoke(convert, ["--help"]).output
    assert "--dither  " in said
    assert "Add noise before rounding." in said


def test_a_row_counts_for_the_fingerprint(tiny: Path, tmp_path: Path) -> None:
    without = more(tiny, tmp_path / "m-Q8_0.gguf")
    plan = more(tiny, tmp_path / "m-Q8_0.gguf", dither=True, noise_seed="7")
    before, now = (fingerprint(p.inputs, p.outputs[0]) for p in (without, plan))
    assert list(now["options"].items())[-2:] == [("dither", True), ("noise_seed", "7")]
    assert changes(before, now, plan.inputs.options).startswith("dither was not given and is")


def test_a_row_counts_for_provenance(tiny: Path, tmp_path: Path) -> None:
    plan = more(tiny, tmp_path / "m-Q8_0.gguf", dither=True, noise_seed="7")
    raw = provenance.statement(plan.outputs[0].request, plan.inputs, {}, {}, {})
    said = json.loads(raw)["predicate"]["buildDefinition"]["externalParameters"]
    assert list(said.items())[-2:] == [("dither", True), ("noiseSeed", "7")]


def test_a_row_counts_for_the_model_card(tiny: Path, tmp_path: Path) -> None:
    plan = more(tiny, tmp_path / "m-Q8_0.gguf", dither=True, noise_seed="7")
    assert "--no-tokenizer --dither --noise-seed 7 --bundle\n" in model_card(plan, 0)


def test_a_row_says_for_which_outputs_it_is(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"^dither: of use for GGUF outputs only"):
        more(tiny, tmp_path / "m-bf16", dither=True)
