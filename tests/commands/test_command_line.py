"""The command line as a whole: commands by name, signals, streams, exit codes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest

from tests import gguf_files
from tests.commands.command_line import names
from weightcast import cli
from weightcast.commands import COMMANDS


def test_an_unknown_command_is_exit_2(run) -> None:
    assert run("covnert").code == 2


def test_help_imports_no_command() -> None:
    """Help and version come at once: what commands need takes ten times as long to import."""
    script = (
        "import atexit, sys\n"
        "from weightcast.start import main\n"
        "heavy = 'numpy', 'weightcast.converters'\n"
        "atexit.register(lambda: print([name for name in heavy if name in sys.modules]))\n"
        "main()\n"
    )
    for arguments in (["--help"], ["--version"], ["nothing"]):
        done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True)
        assert done.stdout.endswith(b"[]\n")


def test_looking_at_files_imports_nothing_that_computes(tiny: Path, tmp_path: Path) -> None:
    """Some packages take longer to import than a checkpoint takes to describe."""
    x = gguf_files.floats(np.ones((2, 256), np.float32))
    gguf = gguf_files.write(tmp_path / "m.gguf", {"key": gguf_files.u32(1)}, {"w.weight": x})
    script = (
        "import atexit, sys\n"
        "from weightcast.start import main\n"
        "slow = 'numpy', 'ml_dtypes', 'gguf', 'hashlib', 'zipfile', 'weightcast.formats.packed'\n"
        "atexit.register(lambda: print([name for name in slow if name in sys.modules]))\n"
        "main()\n"
    )
    for source in (tiny, gguf):
        done = subprocess.run(
            [sys.executable, "-c", script, "inspect", source], capture_output=True
        )
        assert done.stdout.startswith(bytes(source))
        assert done.stdout.endswith(b"\n[]\n")


@pytest.mark.parametrize("name", COMMANDS)
def test_the_table_has_the_first_sentence_of_help(name: str) -> None:
    text = " ".join(cli.load(name).help.split())
    assert text.startswith(COMMANDS[name])
    assert text.removeprefix(COMMANDS[name])[:1] in ("", " ")


def test_the_command_starts_there() -> None:
    (script,) = entry_points(group="console_scripts", name="weightcast")
    assert script.value == "weightcast.start:main"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("module", "arguments"),
    [("click", ["--version"]), ("numpy", ["convert", ".", "m-F16.gguf"])],
)
def test_ctrl_c_in_the_first_moment(number: int, module: str, arguments: list[str]) -> None:
    """While the command is imported, wherever that is: no traceback."""
    script = (
        "import os, sys\n"
        "class Stop:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}:\n"
        f"            os.kill(os.getpid(), {number:d})\n"
        "sys.meta_path.insert(0, Stop())\n"
        "from weightcast.start import main\n"
        "print('started', flush=True)\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "started\n", "interrupted\n")


IMPORTING = """
class Stop:
    def find_spec(self, name, path=None, target=None):
        if name == "weightcast.converters":
            interrupt()
sys.meta_path.insert(0, Stop())
"""
READING = """
from weightcast.formats.jax import shards
shards.read_shards = interrupt
"""


@pytest.mark.parametrize("arrange", [IMPORTING, READING], ids=["importing", "reading"])
def test_an_interrupt_is_said_as_json_at_any_moment(arrange: str, tiny: Path) -> None:
    script = (
        "import signal, sys\n"
        "def interrupt(*_):\n"
        "    signal.raise_signal(signal.SIGINT)\n"
        f"{arrange}"
        "from weightcast.start import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "inspect", "--json", str(tiny)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (130, "interrupted\n")
    error = {"kind": "KeyboardInterrupt", "message": "interrupted", "exit_code": 130}
    assert json.loads(done.stdout) == {"format": "weightcast.error", "version": 1, "error": error}


def test_sigterm_ends_a_real_process_cleanly(tiny: Path, tmp_path: Path) -> None:
    script = (
        "import sys, time\n"
        "from weightcast.converters.engine import executor as execute\n"
        "real = execute.read_slab\n"
        "def slow(*a):\n"
        "    print('reading', flush=True)\n"
        "    time.sleep(0.2)\n"
        "    return real(*a)\n"
        "execute.read_slab = slow\n"
        "from weightcast.cli import main\n"
        "main()\n"
    )
    arguments = ["convert", "--no-tokenizer", str(tiny), str(tmp_path / "a-Q8_0.gguf")]
    with subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "reading\n"
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in err
    assert names(tmp_path) == []


def test_nohup_is_respected(tiny: Path, tmp_path: Path) -> None:
    """A signal that was ignored from the start, as in background jobs too, stays ignored."""
    arguments = ["convert", "--no-tokenizer", str(tiny), str(tmp_path / "a-F16.gguf")]
    with subprocess.Popen(
        [sys.executable, "-c", "from weightcast.cli import main; main()", *arguments],
        stdout=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    ) as process:
        while process.poll() is None:
            process.send_signal(signal.SIGHUP)
            time.sleep(0.01)
    assert process.returncode == 0
    assert names(tmp_path) == ["a-F16.gguf"]


def test_closed_streams_do_not_matter(tiny: Path, tmp_path: Path) -> None:
    script = "from weightcast.cli import main; main()"
    command = f"{sys.executable} -c '{script}' convert --no-tokenizer {tiny} {tmp_path}/a-F16.gguf"
    for redirection in (">&-", "2>&-", "<&- >&- 2>&-"):
        done = subprocess.run(["bash", "-c", f"{command} {redirection}"], capture_output=True)
        assert done.returncode == 0, done.stderr
    assert names(tmp_path) == ["a-F16.gguf"]


def test_printing_to_a_full_device(tiny: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", "from weightcast.cli import main; main()", "inspect", str(tiny)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 1
    assert done.stderr.startswith("error: the result cannot be printed: No space left on device")


def test_a_reader_that_has_enough(tiny: Path) -> None:
    command = f"{sys.executable} -c 'from weightcast.cli import main; main()' inspect --all {tiny}"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{command} | head -n 1"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_names_cannot_control_the_terminal(run, any_gguf: Path) -> None:
    x = gguf_files.floats(np.full((2, 256), np.inf, np.float32))
    metadata = {"key\n\x1b[31m": gguf_files.u32(1)}
    gguf_files.write(any_gguf, metadata, {"w\n\x1b[2J\u202e.weight": x})
    for command in (["inspect"], ["inspect", "--json"], ["convert", "--dry-run"], ["convert"]):
        outputs = [any_gguf.parent / "\x1b[2J-Q8_0.gguf"] if command[0] == "convert" else []
        done = run(*command, any_gguf, *outputs)
        assert done.code == (1 if command == ["convert"] else 0)
        printed = done.out + done.err
        assert all(line.isprintable() for line in printed.splitlines())
        assert printed.count("\n") == len(printed.splitlines())
    assert done.err.count("\n") == 1
    assert "w\\n\\x1b[2J\\u202e.weight: NaN or infinity at [0, 0]" in done.err


def test_a_signal_after_the_end_changes_nothing(tiny: Path) -> None:
    """Python is still at work then, and has forgotten its handlers."""
    script = (
        "import os, signal, sys\n"
        "class Late:\n"
        "    def __del__(self, kill=os.kill, pid=os.getpid(), number=signal.SIGTERM):\n"
        "        kill(pid, number)\n"
        "sys.late = Late()\n"
        "from weightcast.start import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", script, "inspect", str(tiny)], capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
