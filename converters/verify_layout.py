"""What lies around the tensors: headers, metadata, small files, beside those that a conversion of
the same source would write.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from weightcast.converters import grok1_hf
from weightcast.converters.gguf_outputs import FILE_TYPE_KEY
from weightcast.converters.grok1_spec import Grok1Spec
from weightcast.converters.outputs import Output
from weightcast.converters.verify_plan import Layout
from weightcast.converters.verify_problems import Problem
from weightcast.converters.verify_structure import FETCH, Structure
from weightcast.formats import gguf
from weightcast.formats.gguf_header import Metadata
from weightcast.quant.errors import CheckpointError
from weightcast.quant.types import STORED_TYPES

# What differs in so few bits was the same once; texts of people and tools differ in more.
_FEW_BITS: Final = 8
_NOT_OURS: Final = ("quantize.imatrix.",)
_TOKENIZER: Final = "tokenizer."


@dataclass
class Around:
    """What was compared around the tensors: problems, what is as it ought to be, what is not."""

    problems: list[Problem]
    checked: list[str]
    unchecked: list[str]


def check_layout(structure: Structure, layout: Layout, spec: object) -> Around:
    """Compare headers, metadata and small files with those of the conversion."""
    around = Around([], [], [])
    if layout.output is None:
        around.unchecked.append(f"headers and small files ({layout.refusal})")
        return around
    if structure.kind == "gguf":
        _check_metadata(structure, layout.output, around)
        return around
    _check_headers(structure, layout.output, around)
    if structure.path.is_dir():
        _check_companions(structure, layout.output, around, spec)
    return around


def _bits(a: bytes, b: bytes) -> int:
    """Bits in which two runs of bytes of one length differ."""
    x = np.frombuffer(a, np.uint8) ^ np.frombuffer(b, np.uint8)
    return int(np.unpackbits(x).sum())


def _is_damaged(there: bytes, wanted: bytes) -> bool:
    return len(there) == len(wanted) and _bits(there, wanted) <= _FEW_BITS


def _first_difference(there: bytes, wanted: bytes) -> int:
    pairs = zip(there, wanted, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(there), len(wanted)))


def _check_headers(structure: Structure, output: Output, around: Around) -> None:
    """Compare headers of safetensors files byte by byte."""
    wanted = {file.path.name: file.header for file in output.files}
    unlike = []
    for file in structure.files:
        header = wanted.get(file.name)
        if header is None:
            unlike.append(file.name)
            continue
        with file.open("rb") as opened:
            there = opened.read(len(header))
        if there == header:
            continue
        if _is_damaged(there, header):
            place = f"{file} at byte {_first_difference(there, header)}"
            what = "the header is damaged: other bits than weightcast writes"
            around.problems.append(Problem(place, what, remedy=FETCH, mistake="header"))
        else:
            unlike.append(file.name)
    if unlike:
        around.unchecked.append(
            f"headers that weightcast writes otherwise ({', '.join(unlike[:3])})"
        )
    else:
        around.checked.append("headers: every byte is what weightcast writes")


def _check_companions(structure: Structure, output: Output, around: Around, spec: object) -> None:
    """Compare the small files of a directory."""
    same, other = [], []
    for name, wanted in output.companions.items():
        path = structure.path / name
        if not path.is_file():
            other.append(f"{name} (missing)")
            continue
        there = path.read_bytes()
        if there == wanted:
            same.append(name)
        elif _is_damaged(there, wanted):
            place = f"{path} at byte {_first_difference(there, wanted)}"
            what = "is damaged: other bits than weightcast writes"
            around.problems.append(Problem(place, what, remedy=FETCH, mistake="file"))
        elif name == "tokenizer.model":
            what = "another tokenizer than the source's"
            around.problems.append(Problem(str(path), what, remedy="copy the source's"))
        else:
            other.append(name)
    if same:
        around.checked.append(f"small files: every byte of {', '.join(same)}")
    if other:
        around.unchecked.append(f"small files that weightcast writes otherwise: {', '.join(other)}")
    config = structure.path / "config.json"
    if isinstance(spec, Grok1Spec) and config.is_file():
        around.problems += _config_problems(config, spec)


def _config_problems(config: Path, spec: Grok1Spec) -> Iterator[Problem]:
    """Hyperparameters of config.json that are not the source's."""
    try:
        given = grok1_hf.read_hyperparameters(config)
    except CheckpointError as problem:
        yield Problem(str(problem), "cannot be used", remedy=FETCH)
        return
    wanted = spec.describe()
    for name, value in given.items():
        if name in wanted and not np.isclose(float(value), float(wanted[name]), rtol=1e-6, atol=0):
            what = f"{name} is {value}, in the source {wanted[name]}"
            yield Problem(str(config), what, remedy="convert again", mistake="hyperparameter")


# GGUF metadata


def _check_metadata(structure: Structure, output: Output, around: Around) -> None:
    """Compare metadata key by key, then whole headers with the metadata that there are."""
    there = structure.metadata
    if there is None:
        return
    wanted = metadata_of(output)
    path = structure.files[0]
    if "split.count" not in there and "split.count" in wanted:
        wanted = {key: raw for key, raw in wanted.items() if key not in gguf.SPLIT_KEYS}
    keeps_tokenizer = wanted.get("tokenizer.ggml.model") != there.raw.get("tokenizer.ggml.model")
    unlike, unknown = [], []
    for key, raw in there.raw.items():
        if key in wanted:
            if raw == wanted[key]:
                continue
            problem = _key_problem(path, key, raw, wanted[key])
            if problem is None or key.startswith(_NOT_OURS):
                unlike.append(key)
            else:
                around.problems.append(problem)
        elif not (keeps_tokenizer and key.startswith(_TOKENIZER)):
            unknown.append(key)
            near = next((k for k in wanted if k not in there and _is_near(k, key)), None)
            if near is not None:
                what = f"key {key!r} is {near!r}, damaged"
                around.problems.append(Problem(str(path), what, remedy=FETCH, mistake="header"))
    if keeps_tokenizer:
        around.unchecked.append("the tokenizer in the metadata: the source has none, or another")
    missing = [key for key in wanted if key not in there and key != "grok.vocab_size"]
    for what, keys in (
        ("metadata that weightcast writes otherwise", unlike),
        ("metadata that weightcast does not write", unknown),
        ("metadata that weightcast would write", missing),
    ):
        if keys:
            around.unchecked.append(f"{what}: {', '.join(keys[:8])}")
    if not (unlike or unknown or missing or keeps_tokenizer):
        around.checked.append("metadata: every value is what weightcast writes")
    _check_gguf_headers(structure, around)


def _is_near(a: str, b: str) -> bool:
    return _is_damaged(a.encode(), b.encode())


def metadata_of(output: Output) -> dict[str, bytes]:
    """The raw metadata of a laid out GGUF output."""
    return dict(gguf.header_of_bytes(output.files[0].header, output.files[0].path).metadata.raw)


def _key_problem(path: Path, key: str, there: bytes, wanted: bytes) -> Problem | None:
    """A problem if a value differs that must not, or was damaged; None for another text."""
    values = Metadata({"there": there, "wanted": wanted})
    found, right = values["there"], values["wanted"]
    is_number = isinstance(found, int | float) and isinstance(right, int | float)
    if is_number and float(found) == float(right):
        return None  # in another type
    if is_number and (key.startswith("grok.") or key in (FILE_TYPE_KEY, *gguf.SPLIT_KEYS)):
        what = f"{key} is {found}, where the source makes it {right}"
        return Problem(str(path), what, remedy="convert again", mistake="hyperparameter")
    if _is_damaged(there, wanted):
        place = _first_difference(there, wanted)
        what = f"the value of {key} is damaged at its byte {place}"
        return Problem(str(path), what, remedy=FETCH, mistake="header")
    if key in ("tokenizer.ggml.tokens", "tokenizer.ggml.merges"):
        what = f"{key}: another tokenizer than the source's"
        return Problem(str(path), what, remedy="convert again", mistake="tokenizer")
    return None


def _check_gguf_headers(structure: Structure, around: Around) -> None:
    """Lay headers out again from what they say: version, counts, offsets in order, padding."""
    unlike = []
    for path in structure.files:
        try:
            header = gguf.read_header(path)
            if sum(tensor.nbytes for tensor in header.tensors) > header.size:
                continue  # of which the structure tells
            entries = [gguf.Entry(t.name, STORED_TYPES[t.dtype], t.shape) for t in header.tensors]
            wanted = gguf.lay_out_file(header.metadata.raw, entries, header.alignment).header
        except (CheckpointError, KeyError):
            unlike.append(path.name)
            continue
        with path.open("rb") as file:
            there = file.read(len(wanted))
        if there == wanted:
            continue
        if _is_damaged(there, wanted):
            place = f"{path} at byte {_first_difference(there, wanted)}"
            what = "the header is damaged: other bits than weightcast writes"
            around.problems.append(Problem(place, what, remedy=FETCH, mistake="header"))
        else:
            unlike.append(path.name)
    if unlike:
        around.unchecked.append(f"headers laid out in another way ({', '.join(unlike[:3])})")
    else:
        around.checked.append("headers: laid out as weightcast does")
