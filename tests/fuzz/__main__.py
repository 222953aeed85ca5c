"""Fuzz one reader: python -m tests.fuzz TARGET [--seconds N]; see docs/fuzzing.md."""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from typing import Any

_DATA = Path(__file__).parents[1] / "data"
# Address space that an input may take beside what the process has before the first one.
_MEMORY_BYTES = 1 << 30


class _PlainFiles(MetaPathFinder):
    """Finds an editable install by its files: Atheris only instruments loaders of plain files."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        for finder in sys.meta_path[2:]:
            spec = finder.find_spec(name, path, target)
            if spec is not None and name.partition(".")[0] == "weightcast":
                places = spec.submodule_search_locations
                return spec_from_file_location(name, spec.origin, submodule_search_locations=places)
        return None


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", help="a name in tests/fuzz/targets.py, or a file to replay")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--corpus", type=Path, default=Path("out/fuzz"), help="is kept and grows")
    parser.add_argument("--replay", type=Path, help="only read this input again")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside is not None:
        _fuzz(arguments)
        return
    # libFuzzer leaves by _exit: folders are removed by a process of their own.
    with tempfile.TemporaryDirectory(prefix="weightcast-fuzz-", dir=_fast_folder()) as inside:
        command = [sys.executable, "-m", "tests.fuzz", *sys.argv[1:], "--inside", inside]
        sys.exit(subprocess.run(command).returncode)


def _fast_folder() -> Path | None:
    memory = Path("/dev/shm")
    return memory if memory.is_dir() else None


def _fuzz(arguments: argparse.Namespace) -> None:
    import atheris

    with atheris.instrument_imports(include=["weightcast"]):
        sys.meta_path.insert(1, _PlainFiles())
        from tests.fuzz.mutate import mutate_json
        from tests.fuzz.oracle import check
        from tests.fuzz.targets import TARGETS
    target = TARGETS[arguments.target]
    where = arguments.inside / "input"
    where.mkdir()
    if arguments.replay is not None:
        print(check(target, where, arguments.replay.read_bytes()) or "accepted")
        return
    words = arguments.inside / "words"
    words.write_text("".join(f'"{_escaped(word)}"\n' for word in target.words))
    corpus = arguments.corpus / arguments.target
    corpus.mkdir(parents=True, exist_ok=True)
    seeds = [_DATA / "fuzz" / arguments.target]
    if arguments.target == "pickle":
        seeds.append(_DATA / "pickles")
    options = [
        f"-max_total_time={arguments.seconds}",
        f"-max_len={target.max_bytes}",
        *([f"-dict={words}"] if target.words else []),
        "-timeout=10",
        "-rss_limit_mb=4096",
        "-print_final_stats=1",
        f"-artifact_prefix={arguments.corpus}/finding-{arguments.target}-",
    ]
    folders = [str(folder) for folder in (corpus, *seeds) if folder.is_dir()]

    def mutate(raw: bytes, max_size: int, seed: int) -> bytes:
        changed = mutate_json(raw, seed) if seed % 2 else None
        return atheris.Mutate(raw, max_size) if changed is None else changed[:max_size]

    atheris.Setup(
        [sys.argv[0], *options, *folders],
        lambda raw: check(target, where, raw),
        custom_mutator=mutate if target.has_json else None,
    )
    _limit_memory()
    atheris.Fuzz()


def _escaped(word: bytes) -> str:
    """A word as libFuzzer's dictionaries have it."""
    plain = (chr(b) if 32 <= b < 127 and b not in b'"\\' else f"\\x{b:02x}" for b in word)
    return "".join(plain)


def _limit_memory() -> None:
    """Make an allocation from an unchecked length fail: MemoryError is a finding."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + _MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    main()
