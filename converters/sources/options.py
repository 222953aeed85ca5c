"""Options of a conversion: one row each, from which everything else about them is derived.

The command line declares its options from these rows. The fingerprint that a resumed run must
match, the parameters of a provenance statement and the command on a model card are made from them
too. A new option is a row of `ConvertOptions` and a keyword of `weightcast.convert`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from operator import itemgetter
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from weightcast.errors import RequestError

# Values as the command line reads them; an "input" is a file that the conversion reads.
Kind = Literal["flag", "text", "texts", "input", "report", "workers", "baseline"]

# Options that follow each other on the command line's help page.
Group = Literal["result", "machine", "errors", "resume"]

# Outputs that an option can make a difference to.
Form = Literal["gguf", "packed", "plain"]

_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(I?)B?", re.IGNORECASE)
_Options = TypeVar("_Options", bound="ConvertOptions")


def parse_size(text: str) -> int:
    """Read a size such as 48G, 500M or 4GiB, in bytes. Raises RequestError."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise RequestError(f"{text[:50]!r} is not a size; write it like 48G, 500M or 4GiB")
    base = 1024 if match[3] else 1000
    power = " KMGT".index(match[2].upper() or " ")
    size = float(match[1]) * base**power
    if not 1 <= size < 2**60:
        raise RequestError(f"{text[:50]!r} is not a sensible size for a file")
    return int(size)


def _size_bytes(size: str | int | None) -> int:
    return 0 if size is None else parse_size(str(size))


def _itself(value: Any) -> Any:
    return value


@dataclass(frozen=True, slots=True)
class Option:
    """Describe an option: its spelling and help, and the records that it counts for.

    `fingerprint`, `provenance` and `card` are its positions in these records, None if it changes
    nothing that they describe; published records keep their order. There it is called
    `record_name` (by default as in Python), and counts as `recorded` of its value. It is of use
    for outputs of certain `forms` only, or for all of them if there are none.
    """

    flag: str
    help: str
    kind: Kind = "text"
    group: Group = "result"
    metavar: str | None = None
    shows_default: bool = False
    forms: tuple[Form, ...] = ()
    record_name: str | None = None
    recorded: Callable[[Any], Any] = _itself
    fingerprint: int | None = None
    provenance: int | None = None
    card: int | None = None

    @property
    def metadata(self) -> dict[str, Option]:
        """Describe a field of `ConvertOptions`."""
        return {"option": self}

    def is_for(self, form: Form) -> bool:
        """Tell whether the option can make a difference to outputs of a form."""
        return not self.forms or form in self.forms


@dataclass(frozen=True, slots=True)
class Row:
    """An option with its name in Python and its default."""

    name: str
    default: Any
    option: Option

    @property
    def record_name(self) -> str:
        return self.option.record_name or self.name

    @property
    def is_input(self) -> bool:
        """Tell whether the option names a file that the conversion reads."""
        return self.option.kind == "input"


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """The options that say how to read a Grok-1, beside where it lies."""

    spec: str | Path | None = None
    tokenizer: str | Path | None = None
    no_tokenizer: bool = False


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """The options of a conversion, as the caller gave them; the rows are in the order of help.

    `types` has one type for each output, or none.
    """

    types: tuple[str, ...] = field(
        default=(),
        metadata=Option(
            "--type", "Type of an output; once for each OUT.", "texts", card=1
        ).metadata,
    )
    spec: str | Path | None = field(
        default=None,
        metadata=Option(
            "--spec",
            "JSON file of hyperparameters (keys as in spec.json).",
            "input",
            provenance=6,
            card=5,
        ).metadata,
    )
    tokenizer: str | Path | None = field(
        default=None,
        metadata=Option(
            "--tokenizer",
            "SentencePiece file (default: beside SRC).",
            "input",
            provenance=5,
            card=6,
        ).metadata,
    )
    no_tokenizer: bool = field(
        default=False,
        metadata=Option(
            "--no-tokenizer",
            "Write outputs without a tokenizer.",
            "flag",
            fingerprint=2,
            provenance=4,
            card=8,
        ).metadata,
    )
    recipe: str | Path | None = field(
        default=None,
        metadata=Option(
            "--recipe",
            "TOML file: base type, and rules for tensors.",
            "input",
            provenance=8,
            card=3,
        ).metadata,
    )
    tensor_types: tuple[str, ...] = field(
        default=(),
        metadata=Option(
            "--tensor-type",
            "Type of the tensors whose name matches, in GGUF or in a directory; the first counts.",
            "texts",
            metavar="REGEX=TYPE",
            fingerprint=1,
            card=2,
        ).metadata,
    )
    pure: bool = field(
        default=False,
        metadata=Option(
            "--pure",
            "GGUF: all quantized tensors in the recipe's base type.",
            "flag",
            forms=("gguf",),
            fingerprint=3,
            provenance=1,
            card=9,
        ).metadata,
    )
    imatrix: str | Path | None = field(
        default=None,
        metadata=Option(
            "--imatrix",
            "llama.cpp's importance matrix (GGUF or .dat).",
            "input",
            forms=("gguf", "packed"),
            provenance=7,
            card=4,
        ).metadata,
    )
    split: str | int | None = field(
        default=None,
        metadata=Option(
            "--split",
            "Most tensor data of one file, such as 48G or 4GiB.",
            metavar="SIZE",
            record_name="split_bytes",
            recorded=_size_bytes,
            fingerprint=5,
            provenance=2,
            card=7,
        ).metadata,
    )
    allow_requantize: bool = field(
        default=False,
        metadata=Option(
            "--allow-requantize",
            "Quantize again what is quantized already and cannot be carried over.",
            "flag",
            fingerprint=4,
            provenance=3,
            card=10,
        ).metadata,
    )
    allow_holes: bool = field(
        default=False,
        metadata=Option(
            "--allow-holes",
            "Convert shards that have parts which were never written.",
            "flag",
            card=11,
        ).metadata,
    )
    bundle: bool = field(
        default=False,
        metadata=Option(
            "--bundle", "Leave provenance, SHA256SUMS and a model card, too.", "flag", card=92
        ).metadata,
    )
    jobs: int | None = field(
        default=None,
        metadata=Option(
            "--jobs", "Workers (default: cores + 1, or 4 for a GPU).", "workers", group="machine"
        ).metadata,
    )
    memory: str | int | None = field(
        default=None,
        metadata=Option(
            "--memory",
            "Most memory to take, such as 400M (default: 0.8G).",
            group="machine",
            metavar="SIZE",
        ).metadata,
    )
    device: str = field(
        default="cpu",
        metadata=Option(
            "--device",
            "What quantizes; cuda is all CUDA devices, auto the processor if there is none.",
            group="machine",
            metavar="cpu|auto|cuda|cuda:N",
            shows_default=True,
        ).metadata,
    )
    report: str | Path | None = field(
        default=None,
        metadata=Option(
            "--report", "Write the errors made, as JSON.", "report", group="errors"
        ).metadata,
    )
    baseline: str | None = field(
        default=None,
        metadata=Option(
            "--baseline",
            "What errors are measured against: values as stored (default), or rounded to bf16.",
            "baseline",
            group="errors",
            card=91,
        ).metadata,
    )
    resume: bool = field(
        default=True,
        metadata=Option(
            "--resume/--no-resume",
            "Go on with what an interrupted run had finished (default), or start over.",
            "flag",
            group="resume",
        ).metadata,
    )

    @classmethod
    def rows(cls) -> tuple[Row, ...]:
        """List all options in the order of help."""
        return tuple(Row(f.name, f.default, f.metadata["option"]) for f in fields(cls))

    @classmethod
    def of(cls: type[_Options], keywords: Mapping[str, Any]) -> _Options:
        """Take the options from the keywords of a call; a text may stand for a tuple of one."""
        values = {row.name: keywords[row.name] for row in cls.rows()}
        for row in cls.rows():
            if row.option.kind == "texts":
                given = values[row.name]
                values[row.name] = (given,) if isinstance(given, str) else tuple(given)
        return cls(**values)

    @classmethod
    def ordered(cls, position: Callable[[Option], int | None]) -> list[Row]:
        """List the options that have a position in a record, in its order."""
        placed = [(position(row.option), row) for row in cls.rows()]
        found = [(place, row) for place, row in placed if place is not None]
        return [row for _, row in sorted(found, key=itemgetter(0))]

    def recorded(self, row: Row) -> Any:
        """Give the value of an option as records have it. Raises RequestError."""
        return row.option.recorded(getattr(self, row.name))

    def is_given(self, row: Row) -> bool:
        """Tell whether an option has a value at all, or is on."""
        return bool(getattr(self, row.name))

    @property
    def source(self) -> SourceOptions:
        """The options that say how to read the source."""
        return SourceOptions(self.spec, self.tokenizer, self.no_tokenizer)

    @property
    def files(self) -> dict[str, str | Path | None]:
        """The files named beside the source, None where none is, by their role."""
        return {row.name: getattr(self, row.name) for row in self.rows() if row.is_input}
