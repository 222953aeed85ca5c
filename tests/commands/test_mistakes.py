"""Mistakes of newcomers, each with the lines that it gets and the exit code, in mistakes.txt.

The file is a transcript: a command after "$", what it prints, and in brackets its exit code where
that is not 0. `python -m tests.commands.test_mistakes` writes it anew, to be read before it is
committed.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import pytest

from tests import gguf_files, sensitivities
from tests.adapters import write_adapter, write_peft
from tests.support import GOLDEN

_TERMINAL: Final = {"COLUMNS": "100", "NO_COLOR": "1", "HOME": "/home/me"}
TRANSCRIPT: Final = Path(__file__).with_name("mistakes.txt")


def write_files(folder: Path) -> None:
    """Write what a newcomer may have at hand: a checkpoint, a model, and files that are neither."""
    shutil.copytree(GOLDEN / "wide", folder / "grok-1", ignore=lambda *_: ["logits_fp32.npz"])
    x = np.linspace(-1, 1, 2048, dtype=np.float32).reshape(8, 256)
    metadata = {"general.architecture": gguf_files.string("my-arch")}
    tensors = {"blk.0.attn_v.weight": gguf_files.floats(x)}
    model = gguf_files.write(folder / "model-BF16.gguf", metadata, tensors)
    weightcast("convert", model, folder / "model-Q8_0.gguf", "--quiet")
    blocks = gguf_files.Part(40, (8, 64), bytes(8 * 36))
    factor = gguf_files.floats(np.array([np.nan], np.float32))
    nvfp4 = {"blk.0.attn_q.weight": blocks, "blk.0.attn_q.scale": factor}
    (folder / "scaled").mkdir()
    gguf_files.write(folder / "scaled" / "m-NVFP4.gguf", metadata, nvfp4)
    write_peft(folder / "lora", {"model.layers.0.self_attn.v_proj": (8, 256)})
    factors = {"lora_a": x[:2], "lora_b": x[:, :2].copy()}
    for name, stem in (("ours", "blk.0.attn_v"), ("theirs", "blk.7.attn_v")):
        tensors = {f"{stem}.weight.{end}": array for end, array in factors.items()}
        write_adapter(folder / f"{name}.gguf", tensors, architecture="my-arch")
    shapes = {"blk.0.attn_q.weight": (8, 256)}
    sensitivities.write(folder / "costs.json", shapes, sensitivities.costs_of(shapes))
    (folder / "cut.gguf").write_bytes(model.read_bytes()[:-100])
    (folder / "nothing.gguf").touch()
    (folder / "notes.txt").write_text("to do: convert Grok\n")
    (folder / "page.gguf").write_text("<!DOCTYPE html><html><title>Sign in</title></html>\n")
    (folder / "pointer.gguf").write_text(
        "version https://git-lfs.github.com/spec/v1\n"
        f"oid sha256:{'0123456789abcdef' * 4}\nsize 4983451648\n"
    )
    (folder / "model.zip").write_bytes(b"PK\3\4" + bytes(60))
    (folder / "llama").mkdir()
    (folder / "llama" / "config.json").write_text(
        '{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}\n'
    )
    (folder / "llama" / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    (folder / "empty").mkdir()
    (folder / "download").mkdir()
    (folder / "download" / "tensor00000_000.part").write_bytes(bytes(100))
    os.mkfifo(folder / "pipe")


def weightcast(*arguments: object, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does, in a folder."""
    script = "import sys; sys.argv[0] = 'weightcast'; from weightcast.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, **_TERMINAL},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )


def transcript(text: str) -> Iterator[tuple[str, str]]:
    """Split a transcript into commands and what each of them leaves."""
    for piece in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, printed = piece.partition("\n")
        yield command, printed.rstrip("\n")


def outcome(printed: str, code: int) -> str:
    """Write what a command printed and its exit code as the transcript has it."""
    return "\n".join(filter(None, (printed.rstrip("\n"), f"[{code}]" if code else "")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("mistakes")
    write_files(made)
    return made


MISTAKES: Final = list(transcript(TRANSCRIPT.read_text()))


@pytest.mark.parametrize(("command", "printed"), MISTAKES, ids=[c for c, _ in MISTAKES])
def test_mistake(
    command: str, printed: str, folder: Path, run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    for name, value in _TERMINAL.items():
        monkeypatch.setenv(name, value)
    before = sorted(folder.rglob("*"))
    done = run(*shlex.split(command)[1:])
    assert outcome(done.out + done.err, done.code) == printed
    assert sorted(folder.rglob("*")) == before


def test_there_are_sixty() -> None:
    assert len(MISTAKES) >= 60
    assert all(re.search(r"\[[123]\]$", printed) for _, printed in MISTAKES)


def _write_anew() -> None:
    with tempfile.TemporaryDirectory() as name:
        write_files(Path(name))
        pieces = []
        for command, _ in MISTAKES:
            done = weightcast(*shlex.split(command)[1:], folder=Path(name))
            pieces.append(f"$ {command}\n{outcome(done.stdout, done.returncode)}\n")
    TRANSCRIPT.write_text("\n".join(pieces))


if __name__ == "__main__":
    _write_anew()
