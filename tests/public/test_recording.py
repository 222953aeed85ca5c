"""The recorder of the README's terminal session: real output, frames that share their lines."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from docs.tools.recording import MAX_BYTES, ROOT, Film, record, svg

SVG = "{http://www.w3.org/2000/svg}"


def test_a_command_is_typed_and_run_in_a_terminal(tmp_path: Path) -> None:
    (tmp_path / "here").touch()
    film = Film()
    record(film, r"ls; printf '\033[31mred\033[0m <tag>\n'; test -t 1 && echo terminal", tmp_path)
    root = ElementTree.fromstring(svg(film))
    texts = ["".join(text.itertext()) for text in root.iter(f"{SVG}text")]
    assert {"here", "red", " <tag>", "terminal"} <= set(texts)
    (red,) = (text for text in root.iter(f"{SVG}text") if text.text == "red")
    assert red.get("fill") != film_colour(root, "terminal")


def test_frames_share_their_lines(tmp_path: Path) -> None:
    film = Film()
    for number in range(3):
        record(film, f"true # a comment that takes time to type, number {number}", tmp_path)
    root = ElementTree.fromstring(svg(film))
    drawn, defined = len(list(root.iter(f"{SVG}use"))), len(list(root.iter(f"{SVG}text")))
    assert drawn > defined


def film_colour(root: ElementTree.Element, text: str) -> str | None:
    return next(found.get("fill") for found in root.iter(f"{SVG}text") if found.text == text)


def test_a_command_that_fails_ends_the_recording(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="exit code 3"):
        record(Film(), "exit 3", tmp_path)


def test_a_screen_that_stays_is_one_frame() -> None:
    film = Film()
    film.write("a")
    film.hold(1)
    film.hold(2)
    film.write("b")
    film.hold(1)
    assert [seconds for _, seconds in film.frames] == [3, 1]


def test_the_recording_of_the_readme_is_small_and_whole() -> None:
    text = (ROOT / "docs" / "recording.svg").read_text()
    assert len(text) <= MAX_BYTES
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    said = "\n".join(e.text or "" for e in ElementTree.fromstring(text).iter(f"{SVG}text"))
    for words in ("weightcast inspect", "weightcast convert", "weightcast verify", "llama.cpp"):
        assert words in said
