"""`demo`: it runs, agrees, and can keep its files."""

from __future__ import annotations

from pathlib import Path

from tests.commands.command_line import names


def test_the_demo_runs_and_agrees(run) -> None:
    done = run("demo")
    assert done.code == 0
    assert "96 of 96 agree" in done.out
    assert "tiny-F32.gguf    llama.cpp" in done.out


def test_the_demo_can_keep_its_files(run, tmp_path: Path) -> None:
    assert run("demo", "--keep", tmp_path / "kept").code == 0
    assert "tiny-Q8_0.gguf" in names(tmp_path / "kept")
