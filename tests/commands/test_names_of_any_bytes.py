"""Names of any bytes in GGUF files: written as the same bytes again, and printed safely."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weightcast
from tests import gguf_files
from tests.gguf_files import string, u32
from weightcast.converters.engine import executor
from weightcast.converters.output.journal import read_journal

NAMES = [
    b"n\xff.weight",
    b"n\xfe.weight",
    "\u202eabc.weight".encode(),
    b"a\nb\x1b[31m.weight",
    b"",
    b"x" * 200 + b".weight",
    "\u6a21\u578b.weight".encode(),
    b"<script>alert(1)</script>.weight",
    b"a|b`c.weight",
    b"blk.0.attn_q\xff.weight",
    b"\xed\xb2\x80.weight",  # a lone surrogate, as if it were UTF-8
]
DECODED = [name.decode(errors="surrogateescape") for name in NAMES]
KEYS = {
    b"k\xff\x1b[2J": string(b"\xff"),
    b"\xe2\x80\xae": u32(1),
    b"general.name": string(b"a\xff\nb"),
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    tensors: dict[Any, gguf_files.Part] = {
        name: gguf_files.floats(rng.standard_normal((8, 256), np.float32)) for name in NAMES
    }
    metadata: dict[Any, bytes] = {b"general.architecture": string(b"arch\xff\x1b"), **KEYS}
    return gguf_files.write(tmp_path / "m.gguf", metadata, tensors)


def is_printable(text: str) -> bool:
    return all(line.isprintable() for line in text.split("\n"))


def test_every_command_prints_and_keeps_them(run, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "m-Q8_0.gguf"
    rule = os.fsdecode(b"^n\xff[.]weight$=F16")
    for arguments in (
        ("inspect", source),
        ("inspect", "--all", source),
        ("inspect", "--json", source),
        (
            "convert",
            source,
            out,
            "--report",
            tmp_path / "r.json",
            "--bundle",
            "--tensor-type",
            rule,
        ),
        ("compare", source, out),
        ("compare", "--json", source, out),
        ("verify", out, "--source", source),
        ("report", tmp_path / "r.json", tmp_path / "r.html"),
        ("report", tmp_path / "r.json", tmp_path / "r.md"),
        ("report", tmp_path / "r.json", "-"),
        ("convert", source, out, "--report", tmp_path / "s.html", "--tensor-type", rule),
        ("convert", source, out, "--report", tmp_path / "s.md", "--tensor-type", rule),
    ):
        done = run(*arguments)
        assert done.code == 0, done.err
        assert is_printable(done.out)
        assert is_printable(done.err)
    made = gguf_files.read(out)
    assert sorted(made.tensors) == sorted(DECODED)
    assert {n for n, part in made.tensors.items() if part.kind == gguf_files.F16} == {DECODED[0]}
    for key, raw in KEYS.items():
        assert made.metadata[key.decode(errors="surrogateescape")] == raw
    report = json.loads((tmp_path / "r.json").read_text("ascii"))
    assert sorted(t["name"] for t in report["outputs"][0]["tensors"]) == sorted(DECODED)
    for path in tmp_path.glob("[rs].*"):
        written = path.read_text("utf-8")
        assert "\x1b" not in written
        assert "\u202e" not in written
        assert path.suffix != ".html" or "<script>alert" not in written
    weightcast.convert(source, tmp_path / "s-BF16.gguf", split="9K")
    with weightcast.open(tmp_path / "s-BF16-00001-of-00006.gguf") as checkpoint:
        assert sorted(checkpoint) == sorted(DECODED)
        assert is_printable(repr(checkpoint))
        for name in DECODED:
            wanted = weightcast.open(source)[name].numpy()
            np.testing.assert_allclose(checkpoint[name].numpy(), wanted, rtol=2**-8)
            assert is_printable(repr(checkpoint[name]))


def test_an_interrupted_run_goes_on(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, reads = executor.read_slab, []
    out = tmp_path / "m-Q8_0.gguf"

    def read_slab(*arguments: Any) -> Any:
        reads.append(arguments)
        if len(reads) == 8:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(executor, "read_slab", read_slab)
    with pytest.raises(KeyboardInterrupt):
        weightcast.convert(source, out, jobs=1)
    noted = {rows.tensor for rows in read_journal(tmp_path / f".{out.name}.journal").finished}
    assert len(noted) >= 5
    assert noted < {*DECODED}
    weightcast.convert(source, out)
    assert len(reads) == 8 + len(NAMES) - len(noted)
    assert weightcast.verify(out, source).is_good
