"""The command line: commands by name, signals, and errors as exit codes.

An error is one line on stderr. With --json it is an object on stdout, too.
"""

from __future__ import annotations

import contextlib
import gc
import io
import os
import re
import signal
import sys
from collections.abc import Iterator
from importlib import import_module

import click

from weightcast.commands import COMMANDS
from weightcast.commands.exits import BAD_INPUT, FAILED_CHECK, INTERRUPTED, MEANINGS, USAGE
from weightcast.commands.printing import ERASE_LINE, on_terminal, print_json, tell, unprinted
from weightcast.errors import CheckpointError, LimitError, RequestError, visible
from weightcast.text import speaking_of_options

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# With these there is no progress to see, or no work.
_SILENT = frozenset(("-q", "--quiet", "--json", "-h", "--help"))
# Commands by which people ask for the same elsewhere.
_ELSEWHERE = {
    "check": "verify",
    "copy": "convert",
    "diff": "compare",
    "convert_lora_to_gguf": "convert ADAPTER OUT-F16.gguf --base MODEL",
    "dump": "inspect",
    "gguf-split": "split",
    "info": "inspect",
    "export-lora": "convert SRC OUT --lora ADAPTER",
    "join": "merge",
    "list": "types",
    "llama-gguf-split": "split",
    "merge-lora": "convert SRC OUT --lora ADAPTER",
    "quantize": "convert",
    "show": "inspect",
}
_EXIT_CODES = "\n".join(
    ("\b", "Exit codes:", *(f"  {code:<4} {words}" for code, words in MEANINGS.items()))
)


def load(name: str) -> click.Command:
    """Import a command's module, and what it needs, for the command.

    Modules stay: collecting garbage among them, now or later, would only take time.
    """
    gc.disable()
    try:
        command: click.Command = getattr(import_module(f"weightcast.commands.{name}"), name)
    finally:
        gc.freeze()
        gc.enable()
    return command


class _Commands(click.Group):
    """Commands that are imported when they are run; before that only name and help are known."""

    def invoke(self, ctx: click.Context) -> object:
        """Run a command; an interrupt comes out as click's, which prints no empty line for that."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            raise click.Abort from stop

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        _check_command(ctx, args[0])
        name, command, rest = super().resolve_command(ctx, args)
        if name not in COMMANDS:
            return name, command, rest
        with _announced():
            return name, load(name), rest


def _check_command(ctx: click.Context, name: str) -> None:
    """Say what was meant where a name is no command, but a path or another program's word."""
    if name in COMMANDS or name.startswith("-"):
        return
    if name == "help":
        ctx.fail("No such command 'help'; give --help to weightcast or to a command")
    if name in _ELSEWHERE:
        ctx.fail(f"No such command {name!r}; did you mean {_ELSEWHERE[name]!r}?")
    if os.path.exists(name):
        ctx.fail(f"No such command {name!r}; did you mean 'convert {name} OUT'?")


@contextlib.contextmanager
def _announced() -> Iterator[None]:
    """Show on a terminal that something happens while a command is imported."""
    if not on_terminal() or _SILENT.intersection(sys.argv):
        yield
        return
    click.echo("starting", nl=False, err=True)
    yield
    click.echo(ERASE_LINE, nl=False, err=True, color=True)


@click.group(
    cls=_Commands,
    commands={name: click.Command(name, help=line) for name, line in COMMANDS.items()},
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=_EXIT_CODES,
)
@click.version_option(None, "-V", "--version", package_name="weightcast")
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
    """Run the command line, and exit as the module says."""
    _prepare_streams()
    try:
        commands(prog_name="weightcast", standalone_mode=False, obj=_STOPPING)
        if unprinted:
            reason = unprinted[0].strerror
            tell(f"error: the result cannot be printed: {reason} (the work itself is done)")
            sys.exit(BAD_INPUT)
    except click.UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()
            sys.exit(USAGE)
        _fail(USAGE, error, _usage_text(error))
    except click.ClickException as error:
        _fail(BAD_INPUT, error, error.format_message())
    except (click.Abort, KeyboardInterrupt) as stop:
        told = str(stop.__cause__ or stop)  # click makes an Abort of an interrupt
        _fail(INTERRUPTED, KeyboardInterrupt(), told)
    except RequestError as error:
        _fail(USAGE, error, str(error))
    except LimitError as error:
        _fail(FAILED_CHECK, error, str(error))
    except CheckpointError as error:
        _fail(BAD_INPUT, error, str(error))
    except OSError as problem:
        place = f"{problem.filename}: " if problem.filename else ""
        _fail(BAD_INPUT, problem, f"{place}{problem.strerror or problem}")
    except MemoryError as problem:
        _fail(BAD_INPUT, problem, "out of memory")


def _usage_text(error: click.UsageError) -> str:
    """Put click's words as ours are, and say where there is help."""
    text = error.format_message().rstrip(".")
    text = text[:1].lower() + text[1:]
    if hint := re.fullmatch(r"(.*?)[.:]? \(?Did you mean(?: one of:)? (.*\?)\)?", text):
        meant = hint[2].replace("', '", "' or '")
        text = f"{hint[1]}; did you mean {meant}"
    command = "weightcast" if error.ctx is None else error.ctx.command_path
    return f"{text} (see {command} --help)"


def _fail(code: int, error: BaseException, message: str) -> None:
    """Print an error, with --json as JSON too, and exit."""
    label = {USAGE: "usage error", INTERRUPTED: "interrupted"}.get(code, "error")
    tell(f"{label}: {message}" if message else label)
    arguments = sys.argv[1:]
    if "--json" in arguments[: arguments.index("--") if "--" in arguments else None]:
        said: dict[str, object] = {
            "kind": type(error).__name__,
            "message": visible(message) or label,
        }
        said["exit_code"] = code
        if isinstance(error, LimitError):
            said["violations"] = list(error.violations)
        with contextlib.suppress(OSError):  # there is no more to say
            print_json({"error": said}, "error")
    sys.exit(code)
