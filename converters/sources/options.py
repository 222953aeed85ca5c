"""Options of a conversion: one row each, from which everything else about them is derived.

The command line declares its options from these rows. The fingerprint that a resumed run must
match, the parameters of a provenance statement and the command on a model card are made from them
too. A new option is a row of `ConvertOptions` and a keyword of `weightcast.convert`.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from fractions import Fraction
from numbers import Real
from operator import itemgetter
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from weightcast.converters.files import as_path
from weightcast.errors import RequestError
from weightcast.quant.search import Search, parse_search
from weightcast.text import option, shown

# Values as the command line reads them; an "input" is a file that the conversion reads,
# and a "model" is one of which the header is read.
Kind = Literal[
    "flag",
    "text",
    "texts",
    "size",
    "share",
    "number",
    "input",
    "model",
    "report",
    "workers",
    "baseline",
    "layers",
    "search",
    "effort",
]

# Sections of the command line's help page.
Group = Literal["output", "source", "precision", "running", "reporting"]

# Outputs that an option can make a difference to.
Form = Literal["gguf", "copy", "packed", "plain"]

# Adapters as Python's users give them: paths, "PATH=SCALE", or scales by path.
StrPath = str | os.PathLike[str]
Adapters = StrPath | Sequence[StrPath] | Mapping[StrPath, float] | None

# What a dict can say, too.
_RULES: Final = ("REGEX=TYPE", "PATH[=SCALE]")
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(I?)(B?)", re.IGNORECASE)
_Options = TypeVar("_Options", bound="ConvertOptions")


def parse_size(size: str | float, keyword: str | None = None) -> int:
    """Read a size such as 48G, 500M or 4GiB, in bytes; whole numbers are bytes.

    Raises RequestError, which names the option that `keyword` is.
    """
    named = "" if keyword is None else f"{option(keyword)}: "
    nbytes = _whole(size)
    text = size if nbytes is None else f"{nbytes}B"
    text = text.strip() if isinstance(text, str) else text
    match = _SIZE.fullmatch(text) if isinstance(text, str) else None
    if match is None or not isinstance(text, str):
        given = shown(size[:50] if isinstance(size, str) else size)
        raise RequestError(f"{named}{given} is not a size; write it like 48G, 500M or 4GiB")
    if not match[2] and not match[4]:
        raise RequestError(
            f"{named}{text[:50]!r} has no unit; write {text[:40]}G for GB, {text[:40]}M for MB, or "
            f"{text[:40]}B for bytes"
        )
    base = 1024 if match[3] else 1000
    power = " KMGT".index(match[2].upper() or " ")
    found = Fraction(match[1]) * base**power
    if not 1 <= found < 2**60:
        raise RequestError(f"{named}{text[:50]!r} is not a sensible size")
    return int(found)


def _whole(size: Any) -> int | None:
    """Give a number of bytes, such as 1e6; None for anything else, True among it."""
    is_number = isinstance(size, Real) and not isinstance(size, bool)
    return int(size) if is_number and size == size // 1 else None


def parse_share(share: str | float | None) -> float | None:
    """Read a share such as 1e-6: above 0, at most 1. Raises RequestError."""
    if share is None:
        return None
    try:
        found = math.nan if isinstance(share, bool) else float(share)
    except (TypeError, ValueError):
        found = math.nan
    if not 0 < found <= 1:
        given = shown(share[:50] if isinstance(share, str) else share)
        raise RequestError(f"{given} is not a share; give a number above 0 and at most 1")
    return found


def parse_positive(number: str | float | None, keyword: str | None = None) -> float | None:
    """Read a finite number above 0. Raises RequestError, which names the option `keyword`."""
    if number is None:
        return None
    try:
        found = math.nan if isinstance(number, bool) else float(number)
    except (TypeError, ValueError):
        found = math.nan
    if not 0 < found < math.inf:
        named = "" if keyword is None else f"{option(keyword)}: "
        given = shown(number[:50] if isinstance(number, str) else number)
        raise RequestError(f"{named}{given} is not a number above 0")
    return found


def written_size(nbytes: int) -> str:
    """Write a number of bytes as `parse_size` reads it: 48G, 4GiB, or 1234B."""
    units = [(1000**n, unit) for n, unit in ((4, "T"), (3, "G"), (2, "M"), (1, "K"))]
    units += [(1024**n, f"{unit}iB") for n, unit in ((4, "T"), (3, "G"), (2, "M"), (1, "K"))]
    fitting = ((nbytes // size, unit) for size, unit in units if nbytes % size == 0)
    number, unit = min(fitting, default=(nbytes, "B"))
    return f"{number}{unit}"


def parse_layers(given: str | Iterable[int] | int | None) -> tuple[int, ...]:
    """Read numbers of layers, a text such as 3,4,5 or a list; in order. Raises RequestError."""
    if given is None:
        return ()
    words = given.split(",") if isinstance(given, str) else given
    listed = list(words) if isinstance(words, Iterable) else [words]
    numbers = [_layer(word) for word in listed]
    if not numbers or None in numbers:
        written = option("prune_layers")
        raise RequestError(f"{written}: {shown(given)} is no list of layers; write it like 3,4,5")
    return tuple(sorted({number for number in numbers if number is not None}))


def _layer(word: object) -> int | None:
    text = word.strip() if isinstance(word, str) else str(word)
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else None


def _size_bytes(size: str | float | None) -> int:
    return 0 if size is None else parse_size(size)


def parse_lora(text: str) -> tuple[Path, float]:
    """Read PATH or PATH=SCALE. Raises RequestError for a scale that is no number."""
    path, equals, scale = text.rpartition("=")
    if not equals or os.path.lexists(text):
        return Path(text), 1.0
    try:
        value = float(scale)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or not path:
        raise RequestError(
            f"{option('lora')}: {shown(scale)} is not a scale; write PATH=SCALE, such as "
            "adapter.gguf=0.5"
        )
    return Path(path), value


def written_lora(texts: Sequence[str]) -> tuple[str, ...]:
    """Write adapters for records: their names and exact scales, without folders."""
    parsed = map(parse_lora, texts)
    return tuple(
        f"{path.name or path.resolve().name}={repr(scale).removesuffix('.0')}"
        for path, scale in parsed
    )


def _name_of(path: str | Path | None) -> str | None:
    return None if path is None else Path(path).name or Path(path).resolve().name


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
    group: Group = "output"
    short: str | None = None
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


def _checked(row: Row, given: Any) -> Any:
    """Read the value of a keyword as its option has it. Raises RequestError if it cannot."""
    kind, name = row.option.kind, option(row.name)
    if given is None:
        return row.default
    if kind == "texts":
        return _texts(name, given, is_rules=row.option.metavar in _RULES)
    if kind == "layers":
        return parse_layers(given)
    if kind in ("input", "model", "report"):
        return as_path(given, name)
    if kind in ("text", "baseline", "search") and not isinstance(given, str):
        raise RequestError(f"{name}: give a text, not {shown(given)}")
    return given


def _texts(name: str, given: Any, *, is_rules: bool) -> tuple[str, ...]:
    if isinstance(given, str | os.PathLike):
        given = [given]
    if is_rules and isinstance(given, Mapping):
        given = [f"{_text(key)}={value}" for key, value in given.items()]
    texts = tuple(map(_text, given)) if isinstance(given, Iterable) else ()
    wrong = next((each for each in texts if not isinstance(each, str)), None)
    if wrong is not None or not isinstance(given, Iterable):
        whole = " or a dict" if is_rules else ""
        raise RequestError(f"{name}: give a text, a list of texts{whole}, not {shown(given)}")
    return texts


def _text(given: Any) -> Any:
    """Give a path as text, and anything else as it is."""
    return os.fspath(given) if isinstance(given, os.PathLike) else given


def listed_texts(name: str, given: Any) -> tuple[str, ...]:
    """List the texts of a keyword, of which there may be one, some or none. Raises RequestError."""
    return () if given is None else _texts(option(name), given, is_rules=False)


def listed_lora(given: Adapters) -> tuple[str, ...]:
    """List adapters as texts, PATH or PATH=SCALE. Raises RequestError."""
    return () if given is None else _texts(option("lora"), given, is_rules=True)


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """The options that say how to read a source, beside where it lies.

    The first three are of Grok-1's. `lora` are adapters to merge, `base` is the model of a source
    that is an adapter itself.
    """

    spec: str | Path | None = None
    tokenizer: str | Path | None = None
    no_tokenizer: bool = False
    lora: tuple[str, ...] = ()
    base: str | Path | None = None

    @property
    def takes_any(self) -> bool:
        """Tell whether a GGUF file of any model can be read so, under its own names."""
        return self.spec is None and self.tokenizer is None and not self.no_tokenizer


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """The options of a conversion, as the caller gave them; the rows are in the order of help.

    `types` has one type for each output, or none.
    """

    types: tuple[str, ...] = field(
        default=(),
        metadata=Option(
            "--type",
            "Type of an output; once for each OUT.",
            "texts",
            short="-t",
            metavar="TYPE",
            card=1,
        ).metadata,
    )
    split: str | float | None = field(
        default=None,
        metadata=Option(
            "--split",
            "Most tensor data of one file, such as 48G or 4GiB.",
            "size",
            metavar="SIZE",
            record_name="split_bytes",
            recorded=_size_bytes,
            fingerprint=5,
            provenance=2,
            card=7,
        ).metadata,
    )
    keep_split: bool = field(
        default=False,
        metadata=Option(
            "--keep-split",
            "GGUF to GGUF: as many parts as SRC has, each with the same tensors.",
            "flag",
            forms=("gguf", "copy"),
            provenance=9,
            card=12,
        ).metadata,
    )
    keep_order: bool = field(
        default=False,
        metadata=Option(
            "--keep-order",
            "GGUF to GGUF: tensors and metadata in SRC's order, not llama-quantize's.",
            "flag",
            forms=("gguf", "copy"),
            provenance=10,
            card=13,
        ).metadata,
    )
    bundle: bool = field(
        default=False,
        metadata=Option(
            "--bundle", "Leave provenance, SHA256SUMS and a model card, too.", "flag", card=92
        ).metadata,
    )
    spec: str | Path | None = field(
        default=None,
        metadata=Option(
            "--spec",
            "JSON file of hyperparameters (keys as in spec.json).",
            "input",
            metavar="FILE",
            provenance=6,
            card=5,
            group="source",
        ).metadata,
    )
    tokenizer: str | Path | None = field(
        default=None,
        metadata=Option(
            "--tokenizer",
            "SentencePiece file (default: beside SRC).",
            "input",
            metavar="FILE",
            provenance=5,
            card=6,
            group="source",
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
            group="source",
        ).metadata,
    )
    allow_holes: bool = field(
        default=False,
        metadata=Option(
            "--allow-holes",
            "Convert shards that have parts which were never written.",
            "flag",
            card=11,
            group="source",
        ).metadata,
    )
    lora: tuple[str, ...] = field(
        default=(),
        metadata=Option(
            "--lora",
            "Merge an adapter: peft's directory, or its GGUF file; any number, each with a scale.",
            "texts",
            metavar="PATH[=SCALE]",
            recorded=written_lora,
            fingerprint=29,
            provenance=30,
            card=30,
            group="source",
        ).metadata,
    )
    base: str | Path | None = field(
        default=None,
        metadata=Option(
            "--base",
            "Model that an adapter as SRC belongs to: GGUF, directory, or config.json.",
            "model",
            metavar="MODEL",
            recorded=_name_of,
            fingerprint=30,
            provenance=31,
            card=31,
            forms=("gguf", "copy"),
            group="source",
        ).metadata,
    )
    recipe: str | Path | None = field(
        default=None,
        metadata=Option(
            "--recipe",
            "TOML file: base type, and rules for tensors.",
            "input",
            metavar="FILE",
            provenance=8,
            card=3,
            group="precision",
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
            group="precision",
        ).metadata,
    )
    tensor_type_file: str | Path | None = field(
        default=None,
        metadata=Option(
            "--tensor-type-file",
            "Rules as of --tensor-type, between spaces or lines; they come after those.",
            "input",
            metavar="FILE",
            provenance=20,
            card=20,
            group="precision",
        ).metadata,
    )
    output_tensor_type: str | None = field(
        default=None,
        metadata=Option(
            "--output-tensor-type",
            "GGUF: type of the output matrix, whatever rules say.",
            metavar="TYPE",
            forms=("gguf",),
            fingerprint=20,
            provenance=21,
            card=21,
            group="precision",
        ).metadata,
    )
    token_embedding_type: str | None = field(
        default=None,
        metadata=Option(
            "--token-embedding-type",
            "GGUF: type of the embedding table, whatever rules say.",
            metavar="TYPE",
            forms=("gguf",),
            fingerprint=21,
            provenance=22,
            card=22,
            group="precision",
        ).metadata,
    )
    leave_output_tensor: bool = field(
        default=False,
        metadata=Option(
            "--leave-output-tensor",
            "GGUF: the output matrix stays as it is stored.",
            "flag",
            forms=("gguf",),
            fingerprint=22,
            provenance=23,
            card=23,
            group="precision",
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
            group="precision",
        ).metadata,
    )
    target_size: str | float | None = field(
        default=None,
        metadata=Option(
            "--target-size",
            "GGUF: choose types so that the file is at most so large, such as 180G or 4GiB.",
            "size",
            metavar="SIZE",
            record_name="target_bytes",
            recorded=_size_bytes,
            forms=("gguf",),
            fingerprint=33,
            provenance=35,
            card=35,
            group="precision",
        ).metadata,
    )
    target_bpw: str | float | None = field(
        default=None,
        metadata=Option(
            "--target-bpw",
            "GGUF: choose types so that tensors take at most so many bits for each weight.",
            "number",
            metavar="BITS",
            recorded=parse_positive,
            forms=("gguf",),
            fingerprint=34,
            provenance=36,
            card=36,
            group="precision",
        ).metadata,
    )
    max_kl: str | float | None = field(
        default=None,
        metadata=Option(
            "--max-kl",
            "GGUF: choose the smallest types whose predicted divergence is at most this.",
            "number",
            metavar="KL",
            recorded=parse_positive,
            forms=("gguf",),
            fingerprint=35,
            provenance=37,
            card=37,
            group="precision",
        ).metadata,
    )
    sensitivity: str | Path | None = field(
        default=None,
        metadata=Option(
            "--sensitivity",
            "What each tensor costs in each type, as measured (JSON): chooses best for a size.",
            "input",
            metavar="FILE",
            forms=("gguf",),
            provenance=38,
            card=38,
            group="precision",
        ).metadata,
    )
    target_types: tuple[str, ...] = field(
        default=(),
        metadata=Option(
            "--target-type",
            "With a target: choose from these types alone; any number, or with commas.",
            "texts",
            metavar="TYPE,...",
            forms=("gguf",),
            fingerprint=36,
            provenance=39,
            card=39,
            group="precision",
        ).metadata,
    )
    target_together: tuple[str, ...] = field(
        default=(),
        metadata=Option(
            "--target-together",
            "With a target: one type for tensors of a layer whose names match; any number.",
            "texts",
            metavar="REGEX",
            forms=("gguf",),
            fingerprint=37,
            provenance=40,
            card=40,
            group="precision",
        ).metadata,
    )
    imatrix: str | Path | None = field(
        default=None,
        metadata=Option(
            "--imatrix",
            "llama.cpp's importance matrix (GGUF or .dat).",
            "input",
            metavar="FILE",
            forms=("gguf", "packed"),
            provenance=7,
            card=4,
            group="precision",
        ).metadata,
    )
    hessian: str | Path | None = field(
        default=None,
        metadata=Option(
            "--hessian",
            "Second moments of inputs (safetensors): choose codes with error feedback.",
            "input",
            metavar="FILE",
            forms=("gguf", "packed"),
            provenance=34,
            card=34,
            group="precision",
        ).metadata,
    )
    importance_floor: str | float | None = field(
        default=None,
        metadata=Option(
            "--importance-floor",
            "Rescale importance that is nearly nothing, and raise what is below this share.",
            "share",
            metavar="SHARE",
            recorded=parse_share,
            forms=("gguf", "packed"),
            fingerprint=27,
            provenance=28,
            card=28,
            group="precision",
        ).metadata,
    )
    include_weights: tuple[str, ...] = field(
        default=(),
        metadata=Option(
            "--include-weights",
            "Use only entries of the importance matrix with this in their name.",
            "texts",
            metavar="NAME",
            forms=("gguf", "packed"),
            fingerprint=23,
            provenance=24,
            card=24,
            group="precision",
        ).metadata,
    )
    exclude_weights: tuple[str, ...] = field(
        default=(),
        metadata=Option(
            "--exclude-weights",
            "Use no entries of the importance matrix with this in their name.",
            "texts",
            metavar="NAME",
            forms=("gguf", "packed"),
            fingerprint=24,
            provenance=25,
            card=25,
            group="precision",
        ).metadata,
    )
    override_kv: tuple[str, ...] = field(
        default=(),
        metadata=Option(
            "--override-kv",
            "GGUF: metadata in the place of the source's; types int, float, bool, str.",
            "texts",
            metavar="KEY=TYPE:VALUE",
            forms=("gguf", "copy"),
            fingerprint=25,
            provenance=26,
            card=26,
        ).metadata,
    )
    prune_layers: str | Sequence[int] | None = field(
        default=None,
        metadata=Option(
            "--prune-layers",
            "GGUF from GGUF: leave these layers out, such as 3,4,5.",
            "layers",
            metavar="N,...",
            forms=("gguf", "copy"),
            recorded=parse_layers,
            fingerprint=26,
            provenance=27,
            card=27,
        ).metadata,
    )
    search: str = field(
        default="ggml",
        metadata=Option(
            "--search",
            "What chooses scales and codes: ggml's rule, or a search for the least error.",
            "search",
            metavar="ggml|least-error",
            shows_default=True,
            forms=("gguf", "packed"),
            fingerprint=31,
            provenance=32,
            card=32,
            group="precision",
        ).metadata,
    )
    effort: int | None = field(
        default=None,
        metadata=Option(
            "--effort",
            "With --search least-error: more tries more and takes longer (default: 2).",
            "effort",
            metavar="1|2|3",
            forms=("gguf", "packed"),
            fingerprint=32,
            provenance=33,
            card=33,
            group="precision",
        ).metadata,
    )
    nvfp4_factors: bool = field(
        default=False,
        metadata=Option(
            "--nvfp4-factors",
            "GGUF: factors beside NVFP4, so that small weights keep precision. Reads them twice.",
            "flag",
            forms=("gguf",),
            fingerprint=28,
            provenance=29,
            card=29,
            group="precision",
        ).metadata,
    )
    allow_requantize: bool = field(
        default=False,
        metadata=Option(
            "--allow-requantize",
            "Quantize again what is quantized already and cannot be carried over: a loss.",
            "flag",
            fingerprint=4,
            provenance=3,
            card=10,
            group="precision",
        ).metadata,
    )
    jobs: int | None = field(
        default=None,
        metadata=Option(
            "--jobs",
            "Workers (default: cores + 1, or 4 for a GPU).",
            "workers",
            group="running",
            short="-j",
            metavar="N",
        ).metadata,
    )
    memory: str | float | None = field(
        default=None,
        metadata=Option(
            "--memory",
            "Most memory to take, such as 400M (default: 0.8G).",
            "size",
            metavar="SIZE",
            group="running",
        ).metadata,
    )
    device: str = field(
        default="cpu",
        metadata=Option(
            "--device",
            "What quantizes; cuda is all CUDA devices, auto the processor if there is none.",
            metavar="cpu|auto|cuda|cuda:N",
            shows_default=True,
            group="running",
        ).metadata,
    )
    resume: bool = field(
        default=True,
        metadata=Option(
            "--resume/--no-resume",
            "Go on with what an interrupted run had finished (default), or start over.",
            "flag",
            group="running",
        ).metadata,
    )
    report: str | Path | None = field(
        default=None,
        metadata=Option(
            "--report",
            "Write the errors made: FILE.json, .html (a page) or .md (a summary).",
            "report",
            metavar="FILE",
            group="reporting",
        ).metadata,
    )
    baseline: str | None = field(
        default=None,
        metadata=Option(
            "--baseline",
            "What errors are measured against: values as stored (default), or rounded to bf16.",
            "baseline",
            card=91,
            group="reporting",
        ).metadata,
    )

    @classmethod
    def rows(cls) -> tuple[Row, ...]:
        """List all options in the order of help."""
        return tuple(Row(f.name, f.default, f.metadata["option"]) for f in fields(cls))

    @classmethod
    def of(cls: type[_Options], keywords: Mapping[str, Any]) -> _Options:
        """Take the options from the keywords of a call. Raises RequestError for other kinds.

        None is the default of any; a text may stand for a tuple of one, a dict for rules.
        """
        return cls(**{row.name: _checked(row, keywords[row.name]) for row in cls.rows()})

    @classmethod
    def ordered(cls, position: Callable[[Option], int | None]) -> list[Row]:
        """List the options that have a position in a record, in its order."""
        placed = [(position(row.option), row) for row in cls.rows()]
        found = [(place, row) for place, row in placed if place is not None]
        return [row for _, row in sorted(found, key=itemgetter(0))]

    def recorded(self, row: Row) -> Any:
        """Give the value of an option as records have it. Raises RequestError."""
        if row.name == "effort":  # the usual one is recorded, too
            return self.rule.effort or None
        return row.option.recorded(getattr(self, row.name))

    def is_given(self, row: Row) -> bool:
        """Tell whether an option has a value of its own, or is on."""
        value = getattr(self, row.name)
        return bool(value) and value != row.default

    @property
    def rule(self) -> Search:
        """The rule by which scales and codes are chosen. Raises RequestError."""
        return parse_search(self.search, self.effort)

    @property
    def source(self) -> SourceOptions:
        """The options that say how to read the source."""
        return SourceOptions(self.spec, self.tokenizer, self.no_tokenizer, self.lora, self.base)

    @property
    def files(self) -> dict[str, str | Path | None]:
        """The files named beside the source, None where none is, by their role."""
        return {row.name: getattr(self, row.name) for row in self.rows() if row.is_input}
