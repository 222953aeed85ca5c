"""Compare headers, metadata and small files with those that a conversion of the same source would
write.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from weightcast.converters.families import of_architecture
from weightcast.converters.families.hyperparameters import read_config
from weightcast.converters.graph import Family, TensorGraph
from weightcast.converters.targets.gguf_metadata import FILE_TYPE_KEY
from weightcast.converters.targets.target import Output
from weightcast.converters.verify.expected import ExpectedLayout, metadata_of
from weightcast.converters.verify.result import Problem, refusal
from weightcast.converters.verify.structure import FETCH, Structure
from weightcast.errors import CheckpointError
from weightcast.formats.gguf import layout as gguf_layout
from weightcast.formats.gguf import read as gguf
from weightcast.formats.gguf.header import Metadata, encoded
from weightcast.quant.types import STORED_TYPES
from weightcast.text import shown

# What differs in so few bits, or bytes of a longer run, was the same once; other texts differ in
# more, or in length.
_FEW_BITS: Final = 8
_FEW_BYTES: Final = 16
_LONG_BYTES: Final = 64 * _FEW_BYTES
_NOT_OURS: Final = ("quantize.imatrix.",)
_TOKENIZER: Final = "tokenizer."
_OWN_KEYS: Final = (FILE_TYPE_KEY,)


@dataclass
class LayoutCheck:
    """The findings around the tensors: problems, what is as it ought to be, what is not."""

    problems: list[Problem]
    checked: list[str]
    unchecked: list[str]


def check_layout(structure: Structure, layout: ExpectedLayout, graph: TensorGraph) -> LayoutCheck:
    """Compare headers, metadata and small files with those of the conversion."""
    check = LayoutCheck([], [], [])
    if layout.output is None:
        check.unchecked.append(f"headers and small files ({layout.refusal})")
        return check
    if not structure.target.is_directory:
        _check_metadata(structure, layout.output, check, of_architecture(graph.family.architecture))
        return check
    _check_headers(structure, layout.output, check)
    if structure.path.is_dir():
        _check_companions(structure, layout.output, check, graph)
    return check


def _is_damaged(there: bytes, wanted: bytes) -> bool:
    """Tell whether two runs of bytes are nearly the same."""
    if len(there) != len(wanted):
        return False
    unlike = np.frombuffer(there, np.uint8) ^ np.frombuffer(wanted, np.uint8)
    if int(np.unpackbits(unlike).sum()) <= _FEW_BITS:
        return True
    return len(wanted) >= _LONG_BYTES and int(np.count_nonzero(unlike)) <= _FEW_BYTES


def _judge_header(path: Path, there: bytes, wanted: bytes, check: LayoutCheck) -> bool:
    """Compare a header with weightcast's own; one that is nearly the same is damaged, a problem."""
    if there == wanted:
        return True
    if not _is_damaged(there, wanted):
        return False
    place = f"{path} at byte {_first_difference(there, wanted)}"
    what = "the header is damaged or edited: some bytes are not what weightcast writes"
    check.problems.append(Problem(place, what, remedy=FETCH, mistake="header"))
    return True


def _first_difference(there: bytes, wanted: bytes) -> int:
    pairs = zip(there, wanted, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(there), len(wanted)))


def _check_headers(structure: Structure, output: Output, check: LayoutCheck) -> None:
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
        if not _judge_header(file, there, header, check):
            unlike.append(file.name)
    if unlike:
        check.unchecked.append(
            f"headers that weightcast writes otherwise ({', '.join(unlike[:3])})"
        )
    else:
        check.checked.append("headers: every byte is what weightcast writes")


def _check_companions(
    structure: Structure, output: Output, check: LayoutCheck, graph: TensorGraph
) -> None:
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
            what = "is damaged or edited: some bytes are not what weightcast writes"
            check.problems.append(Problem(place, what, remedy=FETCH, mistake="file"))
        elif name == "tokenizer.model":
            what = "another tokenizer than the source's"
            check.problems.append(Problem(str(path), what, remedy="copy the source's"))
        else:
            other.append(name)
    if same:
        check.checked.append(f"small files: every byte of {', '.join(same)}")
    if other:
        check.unchecked.append(f"small files that weightcast writes otherwise: {', '.join(other)}")
    config = structure.path / "config.json"
    if graph.family.has_table and config.is_file():
        check.problems += _config_problems(config, graph)


def _config_problems(config: Path, graph: TensorGraph) -> Iterator[Problem]:
    """Hyperparameters of config.json that are not the source's."""
    try:
        given = read_config(graph.family, config)
    except CheckpointError as problem:
        yield refusal(problem, FETCH)
        return
    wanted = graph.spec.describe()
    for name, value in given.items():
        if name in wanted and not np.isclose(float(value), float(wanted[name]), rtol=1e-6, atol=0):
            what = f"{name} is {value}, in the source {wanted[name]}"
            yield Problem(str(config), what, remedy="convert again", mistake="hyperparameter")


# GGUF metadata


def _check_metadata(
    structure: Structure, output: Output, check: LayoutCheck, family: Family | None
) -> None:
    """Compare metadata key by key, then whole headers with the metadata that there are."""
    there = structure.metadata
    if there is None:
        return
    # Into how many files it was cut is the structure's.
    found, wanted = (
        {key: raw for key, raw in values.items() if key not in gguf.SPLIT_KEYS}
        for values in (there.raw, metadata_of(output))
    )
    path = structure.files[0]
    keeps_tokenizer = _keeps_tokenizer(found, wanted)
    prefix = "" if family is None else f"{family.architecture}."
    unlike, unknown, suspects = [], [], []
    for key, raw in found.items():
        if key in wanted and raw != wanted[key]:
            problem = None
            if not key.startswith(_NOT_OURS):
                is_ours = bool(prefix and key.startswith(prefix)) or key in _OWN_KEYS
                problem = _key_problem(path, key, raw, wanted, is_ours=is_ours)
            if problem is not None:
                check.problems.append(problem)
                continue
            unlike.append(key)
            if not key.startswith(_NOT_OURS) and _is_near(raw, wanted[key]):
                suspects.append(key)
        elif key not in wanted and not (keeps_tokenizer and key.startswith(_TOKENIZER)):
            unknown.append(key)
            raws = {encoded(k): k for k in wanted if k not in there}
            near = next((k for raw, k in raws.items() if _is_damaged(encoded(key), raw)), None)
            if near is not None:
                what = f"key {shown(key)} is {shown(near)}, damaged"
                check.problems.append(Problem(str(path), what, remedy=FETCH, mistake="header"))
    missing = [key for key in wanted if key not in there and key != f"{prefix}vocab_size"]
    if unlike == suspects and not (unknown or missing or keeps_tokenizer or check.problems):
        # All else is ours: these were it too.
        check.problems += [_damaged_value(path, k, there.raw[k], wanted[k]) for k in suspects]
    if keeps_tokenizer:
        check.unchecked.append("the tokenizer in the metadata: the source has none, or another")
    for what, keys in (
        ("metadata that weightcast writes otherwise", unlike),
        ("metadata that weightcast does not write", unknown),
        ("metadata that weightcast would write", missing),
    ):
        if keys:
            check.unchecked.append(f"{what}: {', '.join(keys[:8])}")
    if not (unlike or unknown or missing or keeps_tokenizer or check.problems):
        check.checked.append("metadata: every value is what weightcast writes")
    _check_gguf_headers(structure, check)


def _keeps_tokenizer(there: Mapping[str, bytes], wanted: Mapping[str, bytes]) -> bool:
    """Tell whether an artifact has a tokenizer that the source does not have."""
    found, right = (raw.get("tokenizer.ggml.model", b"") for raw in (there, wanted))
    return found != right and not _is_damaged(found, right)


def _is_near(there: bytes, wanted: bytes) -> bool:
    """Tell whether a value may be a damaged one: nearly the same, or the same in another type."""
    return _is_damaged(there, wanted) or there[4:] == wanted[4:]


def _damaged_value(path: Path, key: str, there: bytes, wanted: bytes) -> Problem:
    place = _first_difference(there, wanted)
    what = f"the value of {key} is damaged or edited at its byte {place}"
    return Problem(str(path), what, remedy=FETCH, mistake="header")


def _key_problem(
    path: Path, key: str, there: bytes, all_wanted: Mapping[str, bytes], *, is_ours: bool
) -> Problem | None:
    """A problem if a value differs that must not, or was damaged; None for other texts."""
    wanted = all_wanted[key]
    values = Metadata({"there": there, "wanted": wanted})
    found, right = values["there"], values["wanted"]
    is_number = isinstance(found, int | float) and isinstance(right, int | float)
    if is_number and float(found) == float(right):
        return None  # in another type
    if is_number and is_ours:
        what = f"{key} is {found}, where the source makes it {right}"
        return Problem(str(path), what, remedy="convert again", mistake="hyperparameter")
    is_text = key.startswith("general.") and isinstance(found, str)
    if _is_damaged(there, wanted) and not is_text:
        return _damaged_value(path, key, there, wanted)
    if key in ("tokenizer.ggml.tokens", "tokenizer.ggml.merges"):
        what = f"{key}: another tokenizer than the source's"
        return Problem(str(path), what, remedy="convert again", mistake="tokenizer")
    return None


def _check_gguf_headers(structure: Structure, check: LayoutCheck) -> None:
    """Lay headers out again from what they say: version, counts, offsets in order, padding."""
    unlike = []
    for path in structure.files:
        try:
            header = gguf.read_header(path)
            if sum(tensor.nbytes for tensor in header.tensors) > header.size:
                continue  # of which the structure tells
            entries = [
                gguf_layout.Entry(t.name, STORED_TYPES[t.dtype], t.shape) for t in header.tensors
            ]
            wanted = gguf_layout.lay_out_file(header.metadata.raw, entries, header.alignment).header
        except (CheckpointError, KeyError):
            unlike.append(path.name)
            continue
        with path.open("rb") as file:
            there = file.read(len(wanted))
        if not _judge_header(path, there, wanted, check):
            unlike.append(path.name)
    if unlike:
        check.unchecked.append(f"headers laid out in another way ({', '.join(unlike[:3])})")
    else:
        check.checked.append("headers: laid out as weightcast does")
