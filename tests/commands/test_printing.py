"""Colours where they are wanted, forms of JSON, errors in one style."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from weightcast.commands.printing import styled, wants_color

VARIABLES = ("NO_COLOR", "FORCE_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "TERM")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("said", "on_a_terminal", "elsewhere"),
    [
        ({}, True, False),
        ({"NO_COLOR": "1"}, False, False),
        ({"NO_COLOR": ""}, True, False),
        ({"NO_COLOR": "0", "FORCE_COLOR": "1"}, False, False),
        ({"FORCE_COLOR": "1"}, True, True),
        ({"FORCE_COLOR": "3", "TERM": "dumb"}, True, True),
        ({"FORCE_COLOR": "0"}, False, False),
        ({"CLICOLOR_FORCE": "1"}, True, True),
        ({"CLICOLOR_FORCE": "0"}, True, False),
        ({"CLICOLOR": "0"}, False, False),
        ({"CLICOLOR": "1"}, True, False),
        ({"TERM": "dumb"}, False, False),
    ],
)
def test_colour(
    said: dict[str, str], on_a_terminal: bool, elsewhere: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    assert (wants_color(Terminal()), wants_color(io.StringIO())) == (on_a_terminal, elsewhere)


def test_what_lines_say_is_coloured() -> None:
    assert styled("error: a: b") == "\x1b[31m\x1b[1merror\x1b[0m: a: b"
    assert styled("note: error: b") == "\x1b[36mnote\x1b[0m: error: b"
    assert styled("good") == "\x1b[32m\x1b[1mgood\x1b[0m"
    assert styled("1,234 problems") == "\x1b[31m\x1b[1m1,234 problems\x1b[0m"
    for line in ("errors against the stored values: none", "goods", "", "x: error: y"):
        assert styled(line) == line


def test_colour_is_asked_for(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    done = run("inspect", tmp_path / "nothing\x1b[2J")
    assert done.err.startswith("\x1b[31m\x1b[1merror\x1b[0m: ")
    assert "nothing\\x1b[2J" in done.err
    monkeypatch.setenv("NO_COLOR", "1")
    assert run("inspect", tmp_path / "nothing").err.startswith("error: ")


@pytest.mark.parametrize(
    ("arguments", "code", "kind"),
    [
        (["inspect", "absent"], 1, "MissingTensorError"),
        (["convert", "absent", "x-Q9.gguf"], 2, "RequestError"),
        (["convert", "--split", "x", "absent", "x-Q8_0.gguf"], 2, "RequestError"),
        (["verify"], 2, "MissingParameter"),
        (["convert", "--jobs", "0", "a", "b"], 2, "BadParameter"),
        (["verify", "--nonsense", "a"], 2, "NoSuchOption"),
        (["nonsense"], 2, "NoSuchCommand"),
        (["clean", "absent"], 1, "OutputError"),
    ],
)
def test_errors_are_json_too(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    plain = run(*arguments)
    assert (plain.code, plain.out) == (code, "")
    label = "usage error: " if code == 2 else "error: "
    assert plain.err.startswith(label)
    assert plain.err.count("\n") == 1
    done = run(*arguments, "--json")
    found = json.loads(done.out)
    assert list(found) == ["format", "version", "error"]
    assert (found["format"], found["version"]) == ("weightcast.error", 1)
    assert (done.code, found["error"]["exit_code"]) == (code, code)
    if kind not in ("MissingTensorError", "NoSuchOption"):
        assert found["error"]["kind"] == kind
    assert done.err == f"{label}{found['error']['message']}\n"
    # After --, it is a name.
    assert run(*arguments, "--", "--json").out == ""


def test_every_result_has_a_form(run, tiny: Path, tmp_path: Path) -> None:
    output = tmp_path / "a-Q8_0.gguf"
    commands = {
        "inspect": [tiny],
        "convert": ["--no-tokenizer", tiny, output],
        "verify": [output],
        "compare": [tiny, output],
        "clean": [tmp_path],
    }
    for name, arguments in commands.items():
        for options in ([], ["--dry-run"]) if name in ("convert", "clean") else ([],):
            done = run(name, "--json", *options, *arguments)
            assert (done.code, done.err) == (0, "")
            found = json.loads(done.out)
            assert list(found)[:2] == ["format", "version"]
            assert (found["format"], found["version"]) == (f"weightcast.{name}", 1)
            assert found.get("dry_run", False) is bool(options)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["quantize", "a"],
            "no such command 'quantize'; did you mean 'convert'? (see weightcast --help)",
        ),
        (
            ["/dev", "x"],
            "no such command '/dev'; did you mean 'convert /dev OUT'? (see weightcast --help)",
        ),
        (["covnert"], "no such command 'covnert'; did you mean 'convert'? (see weightcast --help)"),
        (
            ["convert", "--splt", "1G", "a", "b"],
            "no such option '--splt'; did you mean '--keep-split' or '--spec' or '--split'? "
            "(see weightcast convert --help)",
        ),
        (["verify"], "missing argument 'ARTIFACT' (see weightcast verify --help)"),
        (
            ["compare", "a", "b", "--jobs", "many"],
            "invalid value for '-j' / '--jobs': 'many' is not a valid integer range "
            "(see weightcast compare --help)",
        ),
    ],
)
def test_usage_errors_are_one_line(run, arguments: list[str], line: str) -> None:
    done = run(*arguments)
    assert (done.code, done.out, done.err) == (2, "", f"usage error: {line}\n")
