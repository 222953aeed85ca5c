"""Conversions that are killed, interrupted, or fail somewhere, until one may end undisturbed.

Each run is a process of its own (a fork), in which one call to the system is counted out, and kills
it, fails, or is interrupted. After it only complete files may have final names; after the last run
the outputs have the bytes of an undisturbed one, and nothing else is left. In the tests a few of
these, by the hundreds:

    python -m tests.converters.output.faults --runs 300 --seed 1
"""

from __future__ import annotations

import errno
import hashlib
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from weightcast import cli
from weightcast.converters.families.grok1.synthetic import tiny_spec, write_checkpoint
from weightcast.converters.files import page_cache
from weightcast.converters.output import files as output_files
from weightcast.converters.plan import budget as memory

_WRITES = ("pwrite", "write", "ftruncate", "fsync", "fdatasync")
_NAMES = ("replace", "rename", "unlink", "mkdir", "rmdir")
_READS = ("preadv", "pread")
# Calls to the system that Python does not have, by our own names.
_OWN = ("allocate", "exchange")
TORN, KILL, OTHERWISE = "killed in a write", "killed", "other options"
# Where each fault strikes, and what happens there.
FAULTS = {
    KILL: (*_WRITES, *_NAMES, *_READS, *_OWN, "posix_fadvise"),
    TORN: ("pwrite", "write"),
    "power lost": ("pwrite", "write"),
    "disk full": ("pwrite", "write", "allocate"),
    "quota": ("pwrite", "allocate"),
    "output is read-only": ("pwrite", "replace"),
    "read error": _READS,
    "interrupted": (*_WRITES, *_READS),
    "terminated": (*_WRITES, *_READS),
    "out of memory": ("preadv",),
    "a worker dies": ("pwrite",),
    "source vanishes": ("preadv",),
    "short writes": ("pwrite",),
    OTHERWISE: (),
}
_ERRNO = {
    "disk full": errno.ENOSPC,
    "quota": errno.EDQUOT,
    "output is read-only": errno.EROFS,
    "read error": errno.EIO,
    "source vanishes": errno.ENOENT,
}
_PAGE = 4096
_TRACEBACK = 71
_CODES = {
    KILL: -signal.SIGKILL,
    TORN: -signal.SIGKILL,
    "power lost": -signal.SIGKILL,
    "interrupted": 130,
    "terminated": 130,
    "a worker dies": _TRACEBACK,
}


@dataclass(frozen=True)
class Kind:
    """A conversion: names of its outputs, options."""

    outputs: tuple[str, ...]
    options: tuple[str, ...] = ()


KINDS = {
    "Q8_0": Kind(("a-Q8_0.gguf",)),
    "Q4_K_M in parts": Kind(("a-Q4_K_M.gguf",), ("--split", "1M")),
    "BF16 and Q6_K": Kind(("a-BF16.gguf", "a-Q6_K.gguf")),
    "bf16": Kind(("a-bf16",), ("--split", "1M")),
    "int8": Kind(("a-int8-g32",)),
    "int4": Kind(("a-int4-g32", "a-Q5_0.gguf")),
    "GPTQ": Kind(("a-int8-g32-gptq",)),
    "GPTQ, asymmetric": Kind(("a-int4-g32-asym-gptq_v2",), ("--split", "300K")),
    "AWQ": Kind(("a-int4-g32-awq",)),
    "weightcast": Kind(("a-int4-g64-weightcast",)),
    "MXFP4": Kind(("a-mxfp4",)),
    "NVFP4": Kind(("a-nvfp4",)),
    "FP8": Kind(("a-fp8", "a-fp8-block")),
    "everything": Kind(("a-Q8_0.gguf", "a-IQ4_NL.gguf", "a-bf16", "a-int4-g32", "a-int8-g32-gptq")),
    "with a bundle": Kind(("a-Q4_0.gguf",), ("--bundle",)),
    "with a report": Kind(("a-Q4_0.gguf", "a-int4-g32"), ("--report", "report.json")),
}


@dataclass
class Fault:
    """Call number `at` of those that `what` can strike; 0 only counts them."""

    what: str
    at: int
    source: Path
    calls: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def install(self) -> None:
        for name in FAULTS[self.what]:
            place = output_files if name in _OWN else os
            setattr(place, name, self._counting(getattr(place, name)))

    def _counting(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            if real.__name__ == "write" and arguments[0] < 3:  # what is said, or counted
                return real(*arguments, **named)
            with self.lock:
                self.calls += 1
                calls = self.calls
            if self.what == "short writes":
                fd, data, *offset = arguments
                return real(fd, data[: max(1, len(data) // 3)], *offset)
            if self.at and calls >= self.at:
                self._strike(real, arguments, is_first=calls == self.at)
            return real(*arguments, **named)

        return call

    def _strike(
        self, real: Callable[..., Any], arguments: Sequence[Any], *, is_first: bool
    ) -> None:
        if self.what == TORN:
            fd, data, *offset = arguments
            real(fd, data[: len(data) // 2], *offset)
        if self.what in (KILL, TORN, "power lost"):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.what == "source vanishes":
            self.source.rename(gone(self.source)) if self.source.exists() else None
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        if self.what in _ERRNO:
            raise OSError(_ERRNO[self.what], os.strerror(_ERRNO[self.what]))
        if not is_first:
            return
        if self.what == "interrupted":
            os.kill(os.getpid(), signal.SIGINT)
        elif self.what == "terminated":
            os.kill(os.getpid(), signal.SIGTERM)
        elif self.what == "out of memory":
            raise MemoryError
        elif self.what == "a worker dies":
            raise SystemError("a worker died")


def gone(path: Path) -> Path:
    return path.with_name(path.name + ".gone")


@dataclass(frozen=True)
class Ways:
    """What must not change a byte: the size of slabs, and whether the page cache is passed by."""

    slab: int = 1 << 20
    past_cache: bool = False


def run(
    arguments: Sequence[str], log: Path, fault: Fault | None = None, ways: Ways | None = None
) -> int:
    """Run the command line in a fork: its exit code, or minus the signal that ended it."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        code = 70
        try:
            code = _in_child(arguments, log, fault, ways or Ways())
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def _in_child(arguments: Sequence[str], log: Path, fault: Fault | None, ways: Ways) -> int:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background
    said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    memory.SLAB_BYTES = ways.slab  # type: ignore[misc]
    memory.TASK_BYTES = ways.slab // 4  # type: ignore[misc]
    page_cache.outgrows = lambda nbytes: ways.past_cache
    sys.argv = ["weightcast", *arguments]
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    if fault is not None:
        fault.install()
    code = 0
    try:
        cli.main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException as error:
        print(f"Traceback: {error!r}", file=sys.stderr)
        code = _TRACEBACK
    sys.stderr.flush()
    if fault is not None and fault.at == 0:
        log.write_text(str(fault.calls))
    return code


def digests(folder: Path, *, growing: bool = False) -> dict[str, str]:
    """SHA-256 of all files in a folder, without those that are `growing`, or with them."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and (growing or not name.startswith(".")):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


@dataclass
class Trial:
    """One conversion in a folder, disturbed by random faults."""

    kind: Kind
    source: Path
    folder: Path
    wanted: dict[str, str]
    random: random.Random
    # Of an undisturbed run, by fault and ways.
    calls: dict[tuple[str, Ways], int] = field(default_factory=dict)
    struck: Counter[str] = field(default_factory=Counter)

    def arguments(self) -> list[str]:
        outputs = [str(self.folder / name) for name in self.kind.outputs]
        options = list(self.kind.options)
        if "--report" in options:
            options[-1] = str(self.folder / options[-1])
        jobs = str(self.random.choice((1, 2, 5)))
        return ["convert", "--no-tokenizer", "--jobs", jobs, *options, str(self.source), *outputs]

    def strike(self, what: str) -> None:
        """Run it with a fault at a random place, and check what it leaves."""
        if what == OTHERWISE:
            self._run_otherwise()
            return
        log = self.folder.with_suffix(".log")
        victim = self.random.choice(sorted((self.source / "ckpt-0").iterdir()))
        ways = Ways(self.random.choice((1 << 18, 1 << 20)), self.random.random() < 0.5)
        before = digests(self.folder)
        if (what, ways) not in self.calls:
            self.calls[what, ways] = self._calls(what, ways)
        at = 1 + int(self.random.random() ** 1.5 * self.calls[what, ways])
        code = run(self.arguments(), log, Fault(what, at, victim), ways)
        said = log.read_text()
        if gone(victim).exists():
            gone(victim).rename(victim)
        if what == "power lost":
            self._lose_pages()
        self.struck[f"{what}: {'ended' if code == 0 else 'stopped'}"] += 1
        # Only a mistake in weightcast itself, which a worker that dies is, may show a traceback.
        assert code in (0, _CODES.get(what, 1)), (what, at, code, said)
        assert ("Traceback" in said) == (code == _TRACEBACK), (what, at, said)
        if code == 1:
            (error,) = [line for line in said.splitlines() if "error: " in line]
            assert what not in _ERRNO or str(self.folder.parent) in error, said
        for name, digest in digests(self.folder).items():
            assert digest in (before.get(name), self.wanted[name]), (what, at, name)
        self._check_rest(is_done=code == 0)

    def _run_otherwise(self) -> None:
        """Run it with one more option: refused if there is work to go on with, else made so."""
        if "--split" in self.kind.options:
            return  # other sizes have other names
        log, before = self.folder.with_suffix(".log"), digests(self.folder, growing=True)
        code = run([*self.arguments(), "--tensor-type", "attn_v=F16"], log)
        said = log.read_text()
        self.struck[f"{OTHERWISE}: {'ended' if code == 0 else 'stopped'}"] += 1
        if code != 0:
            assert (code, "--no-resume starts over" in said) == (1, True), said
            assert digests(self.folder, growing=True) == before
        self._check_rest(is_done=code == 0)

    def finish(self) -> None:
        """Run it undisturbed."""
        log = self.folder.with_suffix(".log")
        assert run(self.arguments(), log) == 0, log.read_text()
        assert digests(self.folder) == self.wanted
        self._check_rest(is_done=True)

    def _calls(self, what: str, ways: Ways) -> int:
        """How many calls an undisturbed run makes that the fault can strike."""
        with tempfile.TemporaryDirectory() as folder:
            trial = Trial(self.kind, self.source, Path(folder), {}, self.random)
            log = Path(folder) / ".log"
            assert run(trial.arguments(), log, Fault(what, 0, self.source), ways) == 0
            return int(log.read_text())

    def _check_rest(self, *, is_done: bool) -> None:
        growing = {f".{name}{what}" for name in self._names() for what in (".partial", ".journal")}
        rest = {path.name for path in self.folder.iterdir()} - self._names()
        assert rest <= (set() if is_done else growing), rest

    def _names(self) -> set[str]:
        return {Path(name).parts[0] for name in self.wanted} | set(self.kind.outputs)

    def _lose_pages(self) -> None:
        """Forget pages that had not reached the disk, and the end of a journal."""
        for path in self.folder.rglob("*"):
            grows = any(part.startswith(".") for part in path.relative_to(self.folder).parts)
            if not path.is_file() or not grows:
                continue
            size = path.stat().st_size
            with path.open("r+b") as file:
                if path.name.endswith(".journal"):
                    file.truncate(self.random.randrange(size + 1))
                    continue
                for _ in range(self.random.randrange(4)):
                    start = self.random.randrange(size) // _PAGE * _PAGE
                    file.seek(start)
                    file.write(bytes(min(_PAGE, size - start)))


def reference(kind: Kind, source: Path, folder: Path) -> dict[str, str]:
    """What an undisturbed run of a kind makes, as digests."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    trial = Trial(kind, source, folder, {}, random.Random(0))
    log = folder.with_suffix(".log")
    assert run(trial.arguments(), log) == 0, log.read_text()
    return digests(folder)


@click.command()
@click.option("--runs", default=200, show_default=True, help="Faults in all.")
@click.option("--seed", default=0, show_default=True)
@click.option("--kind", "kinds", multiple=True, type=click.Choice(list(KINDS)))
@click.option("--fault", "faults", multiple=True, type=click.Choice(list(FAULTS)))
def main(runs: int, seed: int, kinds: tuple[str, ...], faults: tuple[str, ...]) -> None:
    """Disturb conversions at random; print how often each fault struck."""
    chance = random.Random(seed)
    struck: Counter[str] = Counter()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_checkpoint(folder / "source", tiny_spec(), seed=3)
        wanted = {
            name: reference(KINDS[name], folder / "source", folder / "out")
            for name in kinds or KINDS
        }
        calls: dict[str, dict[tuple[str, Ways], int]] = {name: {} for name in wanted}
        while sum(struck.values()) < runs:
            name = chance.choice(sorted(wanted))
            shutil.rmtree(folder / "out")
            (folder / "out").mkdir()
            named = KINDS[name], folder / "source", folder / "out", wanted[name]
            trial = Trial(*named, chance, calls[name])
            if chance.random() < 0.3:
                trial.finish()  # now there is an earlier output
            for _ in range(chance.randrange(1, 4)):
                trial.strike(chance.choice(faults or sorted(FAULTS)))
            trial.finish()
            struck += trial.struck
            click.echo(f"{sum(struck.values())}: {name}: {dict(trial.struck)}")
    for what, count in sorted(struck.items()):
        click.echo(f"{what}: {count}")
    click.echo(f"{sum(struck.values())} faults in {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
