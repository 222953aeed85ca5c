"""A source is verified: mistakes of downloads are named, and whole checkpoints are good."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weightcast
from tests.support import Golden
from weightcast.converters.families.grok1.synthetic import tiny_spec, write_checkpoint
from weightcast.converters.verify.result import Verification
from weightcast.errors import FormatError, RequestError
from weightcast.formats.jax.arrays import QuantizedArray, read_pickle
from weightcast.formats.torrent import read_torrent

Change = Callable[[Path], None]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three layers of random weights; do not change it."""
    spec = tiny_spec(emb_size=512, widening_factor=3, num_layers=3)
    return write_checkpoint(tmp_path_factory.mktemp("source"), spec, seed=2)


@pytest.fixture
def source(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made.parent, tmp_path / "m")
    return tmp_path / "m" / "ckpt-0"


def problems(found: Verification) -> list[str]:
    return [problem.line for problem in found.problems]


@pytest.mark.parametrize("name", ["wide", "deep"])
def test_golden_checkpoints_are_good(name: str) -> None:
    found = weightcast.verify(Golden(name).path)
    assert problems(found) == []
    assert len(found.checked) == 3
    assert found.unchecked == ("checksums: there is no SHA256SUMS of these files",)


def write(path: Path, at: int, raw: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(raw)


def shard(number: int) -> str:
    return f"tensor{number:05}_000"


def punch(path: Path) -> None:
    """A file of full size of which some of the middle was not downloaded."""
    raw = path.read_bytes()
    start, end = 1 << 18, 3 << 18
    path.unlink()
    with path.open("wb") as file:
        file.write(raw[:start])
        file.seek(end)
        file.write(raw[end:])


def scales_at(path: Path) -> int:
    array = read_pickle(path)
    assert isinstance(array, QuantizedArray)
    return array.scales.offset


def silence_an_expert(directory: Path) -> None:
    """All scales of the first expert of a tensor are zero."""
    path = directory / shard(2)
    array = read_pickle(path)
    assert isinstance(array, QuantizedArray)
    write(path, array.scales.offset, bytes(array.scales.nbytes // array.scales.shape[0]))


MISTAKES: dict[str, tuple[Change, str]] = {
    "an expert's scales": (silence_an_expert, "scales are zero in 12.5%, in most layers in 0.0%"),
    "zeros": (lambda d: write(d / shard(2), 1 << 20, bytes(1 << 17)), "zeros from byte"),
    "hole": (lambda d: punch(d / shard(2)), "was never written as a whole: "),
    "repeated": (
        lambda d: shutil.copy(d / shard(2), d / shard(4)),
        f"{shard(2)}: is the same as {shard(4)}: one shard was put",
    ),
    "NaN": (
        lambda d: write(d / shard(3), scales_at(d / shard(3)), b"\xc0\x7f"),
        "scales have 1 value that are NaN or infinite",
    ),
    "scale": (
        lambda d: write(d / shard(3), scales_at(d / shard(3)), b"\x80\x47"),
        "scales are of",
    ),
    "missing": (
        lambda d: (d / shard(3)).unlink(),
        f"missing {shard(3)}: cannot be used; download it again",
    ),
    "cut": (
        lambda d: os.truncate(d / shard(3), 100_000),
        "it is truncated or damaged; download it",
    ),
    "unfinished": (lambda d: (d / f"{shard(3)}.part").touch(), "a download is still in progress"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_of_downloads(name: str, source: Path) -> None:
    change, words = MISTAKES[name]
    change(source)
    (problem,) = problems(weightcast.verify(source.parent))
    assert words in problem


def test_pointers_of_git_lfs_are_one_problem(source: Path) -> None:
    for path in source.iterdir():
        sha = hashlib.sha256(path.read_bytes()).hexdigest()
        size = path.stat().st_size
        path.write_text(
            f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha}\nsize {size}\n"
        )
    (problem,) = problems(weightcast.verify(source))
    assert f"{shard(0)}, {shard(1)}, {shard(2)}, {shard(3)} and 34 more: a pointer of" in problem


@pytest.mark.parametrize("beside", [False, True])
def test_checksums(beside: bool, source: Path) -> None:
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {'ckpt-0/' * beside}{path.name}\n"
        for path in sorted(source.iterdir())
    ]
    sums = (source.parent if beside else source) / "SHA256SUMS"
    sums.write_text("".join(lines))
    found = weightcast.verify(source)
    assert problems(found) == []
    assert "checksums: 38 files as in SHA256SUMS" in found.checked
    write(source / shard(5), 2000, b"\1")
    (problem,) = problems(weightcast.verify(source))
    assert f"{shard(5)}: its SHA-256 is another than SHA256SUMS says" in problem
    sums.write_text("".join(lines[:5]))
    found = weightcast.verify(source)
    assert problems(found) == []
    unchecked = f"{shard(5)}, {shard(6)}, {shard(7)}, {shard(8)} and 29 more"
    assert found.unchecked == (f"checksums of {unchecked}, which SHA256SUMS does not name",)


def bencoded(value: Any) -> bytes:
    if isinstance(value, int):
        return b"i%de" % value
    if isinstance(value, bytes | str):
        raw = value.encode() if isinstance(value, str) else value
        return b"%d:%s" % (len(raw), raw)
    if isinstance(value, list):
        return b"l" + b"".join(map(bencoded, value)) + b"e"
    return b"d" + b"".join(bencoded(k) + bencoded(value[k]) for k in sorted(value)) + b"e"


def torrent(folder: Path, names: list[list[str]], piece: int, name: str) -> bytes:
    raw = b"".join(folder.joinpath(*parts).read_bytes() for parts in names)
    files = [{"path": parts, "length": folder.joinpath(*parts).stat().st_size} for parts in names]
    pieces = [hashlib.sha1(raw[n : n + piece]).digest() for n in range(0, len(raw), piece)]
    info = {"name": name, "piece length": piece, "pieces": b"".join(pieces), "files": files}
    return bencoded({"announce": "udp://x", "info": info})


@pytest.mark.parametrize("folder", ["", "ckpt-0"])
def test_torrents(folder: str, source: Path) -> None:
    """Pieces that lie across files; the torrent in the directory, or beside it with its name."""
    base = source.parent if folder else source
    names = [[*([folder] if folder else []), path.name] for path in sorted(source.iterdir())]
    if folder:
        (base / "README.md").write_text("mine")
        names.append(["README.md"])
    (base / "grok.torrent").write_bytes(torrent(base, names, 1 << 16, base.name))
    found = weightcast.verify(source, jobs=3)
    assert problems(found) == []
    assert f"pieces: {len(names)} files as in grok.torrent" in found.checked
    size = (source / shard(4)).stat().st_size
    write(source / shard(4), size // 2, b"\0\1\2")
    (problem,) = problems(weightcast.verify(source))
    assert f"{shard(4)}: 1 piece unlike those of grok.torrent; let the torrent client" in problem
    (source / shard(4)).unlink()
    missing, *more = problems(weightcast.verify(source))
    assert f"missing {shard(4)}" in missing
    assert more == []


def test_a_torrent_whose_padding_is_wrong(source: Path) -> None:
    first = source / shard(0)
    size, digest = first.stat().st_size, hashlib.sha1(first.read_bytes()).digest()
    files = [{"path": [first.name], "length": size}, {"path": ["pad"], "length": size, "attr": "p"}]
    info = {"name": "x", "piece length": size, "pieces": digest + bytes(20), "files": files}
    (source / "a.torrent").write_bytes(bencoded({"info": info}))
    (problem,) = problems(weightcast.verify(source))
    assert "a.torrent: 1 piece unlike those of a.torrent" in problem


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw.replace(
            b"l15:tensor00000_000", b"l" + b"99:" * 0 + (b"200:" + b"t" * 200) * 9
        ),
        lambda raw: raw[:-1],
        lambda raw: raw + b"x",
        lambda raw: raw.replace(b"6:pieces", b"6:piecez"),
        lambda raw: raw.replace(b"12:piece lengthi", b"12:piece lengthi-"),
        lambda raw: raw.replace(b"15:tensor00000_000", b"15:../../etc/passw"),
        lambda raw: raw.replace(b"15:tensor00000_000", b"2:.."),
        lambda raw: raw.replace(b"15:tensor00000_000", b"300:" + b"t" * 300),
        lambda raw: raw.replace(b"4:name1:x", b"4:name2:.."),
        lambda raw: raw.replace(b"4:name1:x", b"4:name3:a/b"),
        lambda raw: b"d4:info" + b"l" * 100_000,
        lambda raw: b"l" + b"le" * 300_000 + b"e",
    ],
)
def test_files_that_are_no_torrents(change: Callable[[bytes], bytes], source: Path) -> None:
    raw = torrent(source, [[path.name] for path in sorted(source.iterdir())], 1 << 16, "x")
    (source / "a.torrent").write_bytes(change(raw))
    assert change(raw) != raw
    with pytest.raises(FormatError, match=r"a\.torrent: not a torrent with a SHA-1 of each piece"):
        read_torrent(source / "a.torrent")


@pytest.mark.parametrize("path", [".", "../ckpt-0", "../../m"])
def test_relative_paths(path: str, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files beside the directory are found, and each once."""
    names = sorted(file.name for file in source.iterdir())
    lines = [f"{hashlib.sha256((source / n).read_bytes()).hexdigest()}  ckpt-0/{n}" for n in names]
    (source.parent / "SHA256SUMS").write_text("\n".join(lines))
    parts = [["ckpt-0", name] for name in names]
    raw = torrent(source.parent, parts, 1 << 16, "m")
    (source.parent / "m.torrent").write_bytes(raw)
    monkeypatch.chdir(source)
    found = weightcast.verify(path)
    assert problems(found) == []
    assert "checksums: 38 files as in SHA256SUMS" in found.checked
    assert found.checked.count("pieces: 38 files as in m.torrent") == 1
    assert found.unchecked == ()


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("", "{}"),
        ("", "./{}"),
        ("", "*{}"),
        ("", " *{}"),
        ("", "ckpt-0/{}"),
        ("", "ckpt-0\\{}"),
        ("", "/data/grok-1/ckpt-0/{}"),
        ("..", "{}"),
        ("..", "ckpt-0/{}"),
        ("..", "checkpoints/ckpt-0/{}"),
    ],
)
def test_sums_from_elsewhere(place: str, name: str, source: Path) -> None:
    """Made in another folder, on Windows, or with a byte order mark."""
    names = sorted(path.name for path in source.iterdir())
    digests = {n: hashlib.sha256((source / n).read_bytes()).hexdigest() for n in names}
    lines = [
        f"{digest} {'' if '*' in name else ' '}{name.format(n)}\n" for n, digest in digests.items()
    ]
    sums = source / place / "SHA256SUMS"
    sums.write_text("\ufeff" + "".join(lines), encoding="utf-8")
    found = weightcast.verify(source)
    assert problems(found) == []
    assert "checksums: 38 files as in SHA256SUMS" in found.checked
    sums.write_text("".join(lines).replace("  ckpt-0", "  ckpt-1"))
    write(source / shard(5), 2000, b"\1")
    assert bool(problems(weightcast.verify(source))) == ("  ckpt-0" not in "".join(lines))


def test_sums_of_several_directories(source: Path) -> None:
    """Every checkpoint is in a folder of the same name."""
    names = sorted(path.name for path in source.iterdir())
    own = [f"{hashlib.sha256((source / n).read_bytes()).hexdigest()}  {n}\n" for n in names]
    foreign = "".join(f"{64 * 'a'}  old/ckpt-0/{n}\n" for n in names)
    (source / "SHA256SUMS").write_text("".join(own))
    (source.parent / "SHA256SUMS").write_text(foreign)
    assert problems(weightcast.verify(source)) == []
    (source / "SHA256SUMS").unlink()
    both = foreign + "".join(own).replace("  ", "  ckpt-0/")
    (source.parent / "SHA256SUMS").write_text(both)
    found = weightcast.verify(source)
    assert problems(found) == []
    assert "checksums: 38 files as in SHA256SUMS" in found.checked
    (source / "b.sha256").write_text(f"{64 * 'a'}  {shard(3)}\n")
    assert any(
        "is another than in the sums" in each for each in problems(weightcast.verify(source))
    )


def test_sums_of_other_files_too(source: Path) -> None:
    """Of themselves, of a file that is no shard, and names that no file can have."""
    (source / "spec.json").write_bytes((source.parent / "spec.json").read_bytes())
    lines = [f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.name}\n" for p in source.iterdir()]
    lines.append(f"{64 * 'a'}  SHA256SUMS\n")
    (source / "SHA256SUMS").write_text("".join(lines))
    long = ("y" * 300, f"ckpt-0/{'y' * 300}", f"other/ckpt-0/{'y' * 300}", "z/" * 5000, "\0")
    (source.parent / "SHA256SUMS").write_text("".join(f"{64 * 'a'}  {name}\n" for name in long))
    found = weightcast.verify(source)
    (problem,) = problems(found)
    assert f"ckpt-0/{'y' * 300}: missing, but SHA256SUMS" in problem
    (source.parent / "SHA256SUMS").unlink()
    assert problems(weightcast.verify(source)) == []
    (source / "spec.json").write_text("{}")
    assert any("spec.json: its SHA-256" in each for each in problems(weightcast.verify(source)))


def test_sums_that_are_of_no_use(source: Path) -> None:
    sums = source / "SHA256SUMS"
    sums.write_text(f"{64 * 'a'}  ckpt-7/{shard(1)}\n")
    found = weightcast.verify(source)
    assert problems(found) == []
    assert f"checksums: {sums} names none of these files" in found.unchecked
    sums.write_text("".join(f"SHA256 ({path.name}) = {64 * 'a'}\n" for path in source.iterdir()))
    (problem,) = problems(weightcast.verify(source))
    assert "lines 1, 2, 3, 4 and 35 more: are no lines of sha256sum; write 64" in problem
    sums.write_text("".join(f"{64 * 'a'}  {shard(n)}\n" for n in range(38)))
    (problem,) = problems(weightcast.verify(source))
    assert "34 more: their SHA-256 are others than SHA256SUMS says" in problem


def test_torrents_of_some_shards_or_large_pieces(source: Path) -> None:
    names = sorted(path.name for path in source.iterdir())
    (source / "a.torrent").write_bytes(torrent(source, [[n] for n in names[:5]], 1 << 28, "m"))
    found = weightcast.verify(source)
    assert problems(found) == []
    assert "pieces: 5 files as in a.torrent" in found.checked
    unnamed = f"pieces of {shard(5)}, {shard(6)}, {shard(7)}, {shard(8)} and 29 more"
    assert f"{unnamed}, which a.torrent does not name" in found.unchecked
    write(source / shard(3), 2000, b"\0\1\2")
    (problem,) = problems(weightcast.verify(source))
    others = f"{shard(1)}, {shard(2)}, {shard(3)}, {shard(4)}"
    assert f"{shard(0)}: or {others}: 1 piece unlike those of a.torrent" in problem


def test_what_lies_beside_may_be_of_anything(source: Path) -> None:
    """Sums and torrents of others are no problems; torrents that cannot be read are named."""
    (source.parent / "SHA256SUMS").write_text(f"no sum\n{64 * 'a'}  other.iso\n")
    (source.parent / "v2.torrent").write_bytes(
        bencoded({"info": {"meta version": 2, "name": bytes(99)}})
    )
    other = source.parent.parent / "other"
    other.mkdir()
    (other / "x").write_bytes(bytes(100))
    (other.parent / "other.torrent").write_bytes(torrent(other, [["x"]], 64, "other"))
    found = weightcast.verify(source)
    assert problems(found) == []
    pieces, sums = found.unchecked
    assert "v2.torrent: not a torrent with a SHA-1 of each piece" in pieces
    assert sums == "checksums: there is no SHA256SUMS of these files"


def test_without_a_model_repeated_shards_are_not_looked_for(source: Path) -> None:
    (source / shard(3)).write_bytes(b"")
    found = weightcast.verify(source)
    assert len(problems(found)) == 1
    assert found.checked == ("content: no holes, no long runs of zeros",)


def test_a_source_is_not_held_against_another(source: Path, made: Path) -> None:
    with pytest.raises(RequestError, match="verify it alone, or compare the two"):
        weightcast.verify(source, made)


def test_norms_that_are_all_one_are_not_repeated_shards(tmp_path: Path) -> None:
    """As before training."""
    source = write_checkpoint(tmp_path, tiny_spec(num_layers=2))
    for path in source.iterdir():
        array = read_pickle(path)
        if not isinstance(array, QuantizedArray) and len(array.shape) == 1:
            write(path, array.offset, np.ones(array.shape, np.float32).tobytes())
    assert problems(weightcast.verify(source)) == []
