"""The fuzzer's corpus, read again by every target: seeds, and inputs that once were findings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuzz.inputs import join_files, safetensors_file, safetensors_input, split_files
from tests.fuzz.mutate import mutate_json
from tests.fuzz.oracle import FindingError, check, check_with_memory, folder
from tests.fuzz.targets import TARGETS, Target
from weightcast.errors import CheckpointError

DATA = Path(__file__).parent / "data"
CORPUS = sorted((DATA / "fuzz").glob("*/*"))
PICKLES = sorted((DATA / "pickles").glob("*.pkl"))


@pytest.fixture(scope="module")
def where() -> Iterator[Path]:
    """An empty folder, in memory where that is possible."""
    with folder() as path:
        yield path


@pytest.mark.parametrize("target", TARGETS)
def test_corpus(target: str, where: Path) -> None:
    """Each input twice: what is imported or remembered at first is not the input's memory."""
    inputs = [path for path in CORPUS if path.parent.name == target]
    inputs += PICKLES if target == "pickle" else []
    assert inputs
    for path in inputs:
        raw = path.read_bytes()
        message = check(TARGETS[target], where, raw)
        again = check_with_memory(TARGETS[target], where, raw)
        assert again == message, path


# Of shards only names are read: theirs are empty files.
@pytest.mark.parametrize("target", [t for t in TARGETS if t != "shards"])
def test_every_target_has_an_input_that_is_accepted(target: str, where: Path) -> None:
    """So that what lies behind the first checks is reached."""
    inputs = [path for path in CORPUS if path.parent.name == target]
    inputs += PICKLES if target == "pickle" else []
    assert any(check(TARGETS[target], where, path.read_bytes()) is None for path in inputs)


def test_corpus_is_small() -> None:
    assert sum(path.stat().st_size for path in CORPUS) < 300_000
    assert {path.parent.name for path in CORPUS} <= TARGETS.keys()


class _OwnError(CheckpointError):
    """One that says what it likes."""

    def __str__(self) -> str:
        return str(self.args[0])


def test_the_oracle_finds_what_is_promised_not_to_happen(where: Path) -> None:
    def escapes(path: Path, raw: bytes) -> None:
        raise OSError("not a CheckpointError")

    def speaks_lines(path: Path, raw: bytes) -> None:
        problem = _OwnError("")
        problem.args = ("two\nlines",)
        raise problem

    def takes_memory(path: Path, raw: bytes) -> None:
        bytearray(64 << 20)

    with pytest.raises(OSError, match="not a"):
        check(Target(escapes), where, b"")
    with pytest.raises(FindingError, match="printable"):
        check(Target(speaks_lines), where, b"")
    with pytest.raises(FindingError, match="bytes of memory"):
        check_with_memory(Target(takes_memory), where, b"")


def test_inputs_of_several_files() -> None:
    files = {"config.json": b"{}\n", "model.safetensors": b"{}\0", "a.gguf": b"GGUF\n=== x"}
    assert split_files(join_files(files)) == files
    assert split_files(b"=== ../x ===\n1\n=== .y ===\n2") == {}
    header = b'{"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}'
    raw = safetensors_file(header + b"\0ab")
    assert raw == len(header).to_bytes(8, "little") + header + b"ab\0"
    assert safetensors_input(raw) == header + b"\0ab"


def test_edits_of_json_leave_it_json() -> None:
    files = {"config.json": b'{"a":[1,{"b":null}],"c":{"d":"e"}}', "x.gguf": b"GGUF\xff"}
    raw = join_files(files)
    seen = set()
    for seed in range(300):
        changed = mutate_json(raw, seed)
        assert changed is not None
        found = split_files(changed)
        assert found["x.gguf"] == files["x.gguf"]
        assert isinstance(json.loads(found["config.json"]), dict)
        seen.add(changed)
    assert len(seen) > 200
    assert mutate_json(raw, 1) == mutate_json(raw, 1)
    assert mutate_json(b"GGUF", 1) is None
    assert mutate_json(b"{", 1) is None
