"""The command line: commands by name, signals, and errors as exit codes."""

from __future__ import annotations

import io
import os
import signal
import sys
from importlib import import_module

import click

from weightcast.commands import COMMANDS
from weightcast.errors import CheckpointError, RequestError, visible
from weightcast.text import speaking_of_options

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def load(name: str) -> click.Command:
    """Import a command's module, and what it needs, for the command."""
    command: click.Command = getattr(import_module(f"weightcast.commands.{name}"), name)
    return command


class _Commands(click.Group):
    """Commands that are imported when they are run; before that only name and help are known."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        return name, load(name) if name in COMMANDS else command, rest


@click.group(
    cls=_Commands,
    commands={name: click.Command(name, help=line) for name, line in COMMANDS.items()},
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="weightcast")
@click.pass_obj
def commands(stopping: tuple[signal.Signals, ...] | None) -> None:
    """Convert released JAX checkpoints (Grok-1) and GGUF files of any model."""
    click.get_current_context().with_resource(speaking_of_options())
    # The command is imported by now: an interrupt may be an exception from here on.
    for number in stopping or ():
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup, or a job in the background
            signal.signal(number, _stop)


def _stop(signum: int, frame: object) -> None:
    # Once is enough: another signal would interrupt the cleaning up.
    for number in _STOPPING:
        signal.signal(number, lambda signum, frame: None)
    raise KeyboardInterrupt


def _prepare_streams() -> None:
    """Make printing harmless: closed streams lead nowhere, odd names are escaped."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(2, "w")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 bad input, 2 wrong usage, 130 interrupted."""
    _prepare_streams()
    try:
        commands(standalone_mode=False, obj=_STOPPING)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt) as stop:
        told = str(stop.__cause__ or stop)  # click makes an Abort of an interrupt
        left = told or "nothing incomplete was left behind"
        _fail(130, f"interrupted: {left}; run the same command again")
    except RequestError as error:
        _fail(2, f"usage error: {error}")
    except CheckpointError as error:
        _fail(1, f"error: {error}")
    except OSError as problem:
        place = f"{problem.filename}: " if problem.filename else ""
        _fail(1, f"error: {place}{problem.strerror or problem}")
    except MemoryError:
        _fail(1, "error: out of memory")


def _fail(code: int, line: str) -> None:
    click.echo(visible(line), err=True)
    sys.exit(code)
