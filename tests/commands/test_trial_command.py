"""A new command is one module and one line, as docs/contributing/add-a-command.md says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from weightcast.converters.sources import open_graph

PAGE = Path(__file__).parents[2] / "docs" / "contributing" / "add-a-command.md"

# The editor's part: a file in commands/, and a line in its table.
EDITED = """
import sys
from weightcast import commands
commands.__path__.append(sys.argv.pop(1))
commands.COMMANDS.update({LINE})
from weightcast.start import main
main()
"""


@pytest.fixture
def trial(tmp_path: Path):
    """Run a command line that has the page's command, too."""
    module, line = re.findall(r"(?s)```python\n(.*?)```", PAGE.read_text())
    (tmp_path / "commands").mkdir()
    (tmp_path / "commands" / "count.py").write_text(textwrap.dedent(module))
    script = EDITED.replace("LINE", line.strip())

    def run(*words: object) -> tuple[int, str, str]:
        done = subprocess.run(
            [sys.executable, "-c", script, tmp_path / "commands", *map(str, words)],
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stdout, done.stderr

    return run


def test_the_command_runs(trial, tiny: Path) -> None:
    tensors = len(open_graph(tiny))
    assert trial("count", tiny) == (0, f"{tensors} tensors\n", "")
    code, out, err = trial("count", "--json", tiny)
    assert (code, json.loads(out), err) == (
        0,
        {"format": "weightcast.count", "version": 1, "tensors": tensors},
        "",
    )


def test_its_errors_are_exit_codes(trial, tmp_path: Path) -> None:
    nothing = tmp_path / "nothing"
    assert trial("count", nothing) == (1, "", f"error: {nothing}: no such file or directory\n")
    code, out, err = trial("count")
    assert (code, out) == (2, "")
    assert "missing argument 'PATH'" in err


def test_what_it_finds_is_an_exit_code(trial, tiny: Path) -> None:
    tensors = len(open_graph(tiny))
    assert trial("count", tiny, "--at-least", tensors)[0] == 0
    assert trial("count", tiny, "--at-least", tensors + 1) == (3, f"{tensors} tensors\n", "")


def test_help_knows_it(trial) -> None:
    code, out, _ = trial("--help")
    assert code == 0
    assert re.search(r"\n  count +Count the tensors of a checkpoint\.\n", out)
    code, out, _ = trial("count", "--help")
    assert code == 0
    assert "\n  Count the tensors of a checkpoint. Reads no weights.\n" in out
    assert "\nRunning:\n  --at-least N" in out
    assert "\nExamples:\n  weightcast count grok-1 --at-least 2\n" in out
