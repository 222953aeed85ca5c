"""Error reports: the model that their JSON, its schema, the limits and the pages follow from.

`docs/report.schema.json` is generated from these records (`json_schema`). Reports come from
strangers' machines as often as not, so everything in a file is checked before it is used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

from weightcast.converters.report.collector import BASELINES
from weightcast.converters.report.records import (
    About,
    Bounds,
    Length,
    OneOf,
    Unfit,
    codec_of,
    fields_of,
    values_of,
)
from weightcast.converters.sources import CONTAINERS
from weightcast.errors import FormatError
from weightcast.formats.foreign import refuse_foreign
from weightcast.formats.reading import parse_json, read_small
from weightcast.quant.metrics import ERROR_BINS
from weightcast.text import shown

# Five outputs of a model with 58 layers of 256 experts take 200 MB.
MAX_REPORT_BYTES: Final = 1 << 28
_MAX_VALUES: Final = 1 << 25
FORMAT: Final = "weightcast-report"
VERSION: Final = 1
Count = Annotated[int, Bounds(0)]
Share = Annotated[float, Bounds(0, 1)]
Finite = Annotated[float | None, About("null: not a finite number")]
Bytes = Annotated[int, Bounds(0), About(label="size", unit="bytes")]
Bits = Annotated[float, Bounds(0), About(label="bits per weight", unit="bits", better="less")]
Role = Annotated[
    str,
    About(
        "the tensor's role in its layer, by its GGUF name: attn_q, ffn_down_exps, token_embd",
        key="kind",
        label="kind",
    ),
]
ErrorSquares = Annotated[Finite, About("sum of (y - x)^2")]
SourceSquares = Annotated[Finite, About("sum of x^2")]
RelativeRms = Annotated[
    Finite,
    Bounds(0),
    About(
        "square root of error_squares / source_squares; 0 if there is no error",
        label="relative RMS",
        unit="share",
        better="less",
    ),
]
Sqnr = Annotated[
    Finite,
    About(
        "-20 log10(relative_rms); null if there is no error, or it is not finite",
        label="SQNR",
        unit="decibels",
        better="more",
    ),
]


@dataclass(frozen=True, slots=True)
class Weighted:
    """Errors with squares weighted by the importance matrix.

    Of several tensors together these are plain sums over the tensors, though the importance of each
    has a scale of its own: a tensor with large inputs counts for more than its share of weights.
    """

    error_squares: ErrorSquares
    source_squares: SourceSquares
    relative_rms: RelativeRms
    sqnr_db: Sqnr


@dataclass(frozen=True, slots=True)
class SearchGain:
    """Errors of the blocks that ggml's rule makes of the same weights, and what the search gains.

    A search that is weighted by importance gains by that measure, and may lose by plain squares.
    """

    ggml_error_squares: Annotated[Finite, About("sum of (y - x)^2 by ggml's rule")]
    gained_db: Annotated[
        Finite,
        About(
            "10 log10(ggml_error_squares / error_squares); null if either is 0 or not finite",
            label="gain of the search",
            unit="decibels",
        ),
    ]
    ggml_weighted_error_squares: Annotated[
        Finite, About("the same weighted by importance; null without, too")
    ]
    weighted_gained_db: Annotated[Finite, About("the gain by these")]


@dataclass(frozen=True, slots=True)
class Metrics:
    """Errors of some weights. Numbers that are not finite are null, None in Python.

    `error_squares` and `source_squares` are sums of (y - x)^2 and x^2; `relative_rms` is the root
    of their ratio and `sqnr_db` the same in decibels. `cosine` is the similarity of x and y,
    `mean_error` the mean of y - x, `largest_error` the largest |y - x|, first found at
    `largest_at`. `share_exact` of the `weights` did not change; `share_zeroed` and `share_clipped`
    of runs of 32 became all zeros, or lost over 1/8 of their largest magnitude. `weighted` are
    errors by importance, and `histogram` counts runs by their own ratio. `search` compares what a
    search for the least error made with what ggml's rule makes.
    """

    weights: Count
    error_squares: ErrorSquares
    source_squares: SourceSquares
    relative_rms: RelativeRms
    sqnr_db: Sqnr
    cosine: Annotated[
        Finite,
        Bounds(-1, 1),
        About("cosine similarity of x and y", label="cosine", unit="cosine", better="more"),
    ]
    mean_error: Annotated[
        Finite,
        About("mean of y - x: the bias", label="mean error", unit="number", better="less"),
    ]
    largest_error: Annotated[
        Finite,
        Bounds(0),
        About("largest |y - x|", label="largest error", unit="number", better="less"),
    ]
    largest_at: Annotated[
        tuple[Count, ...] | None,
        About(
            "where it is first: [out, in], or [expert, out, in]; null if there is no error, and "
            "of several tensors together"
        ),
    ]
    share_exact: Annotated[
        Share,
        About("share of weights with y == x", label="exact", unit="share", better="more"),
    ]
    share_zeroed: Annotated[
        Share,
        About(
            "share of runs of 32 weights that became all zeros, and were not",
            label="zeroed runs",
            unit="share",
            better="less",
        ),
    ]
    share_clipped: Annotated[
        Share,
        About(
            "share of runs of 32 weights whose largest magnitude fell below 7/8 of what it was",
            label="clipped runs",
            unit="share",
            better="less",
        ),
    ]
    weighted: Annotated[Weighted | None, About("null without an importance matrix")]
    histogram: Annotated[
        tuple[Count, ...],
        Length(ERROR_BINS),
        About(
            "runs of 32 weights along `in` by their own ratio r of squares, error over source: "
            "[0] r >= 1 (SQNR of 0 dB and below), [k] 2^-k <= r < 2^(1-k), which is 3.01 (k - 1) "
            "to 3.01 k dB, [30] all that is smaller, [31] no error at all"
        ),
    ]
    search: Annotated[
        SearchGain | None,
        About("of what the least-error search made; absent for all else", optional=True),
    ] = None


@dataclass(frozen=True, slots=True)
class Row:
    """An output row and its relative error."""

    expert: Count | None
    row: Count
    relative_rms: Annotated[Finite, Bounds(0)]


@dataclass(frozen=True, slots=True)
class TensorErrors:
    """Errors of one tensor of an output.

    `name`, `type`, `shape`, `bytes` and `bits_per_weight` are those in the output; `role` says what
    it does in the model and `layer` where. `metrics` are its errors, `experts` those of each expert
    if it has several, and `worst_rows` the rows with the largest relative errors.
    """

    name: Annotated[str, About("in the output", label="tensor")]
    role: Role
    layer: Annotated[Count | None, About(label="layer", unit="layer")]
    type: Annotated[str, About("Q4_K, BF16, INT4-G128, ...", label="type")]
    shape: Annotated[
        tuple[Annotated[int, Bounds(1)], ...],
        About("[..., out, in]", label="shape", unit="shape"),
    ]
    bytes: Bytes
    bits_per_weight: Bits
    metrics: Metrics
    experts: Annotated[
        tuple[Metrics, ...],
        About("of each expert of a tensor that has several, in order; else empty"),
    ]
    worst_rows: Annotated[
        tuple[Row, ...],
        About(
            "the output rows with the largest relative errors, worst first; only rows with an error"
        ),
    ]


def _limitable(record: type, prefix: str = "") -> list[str]:
    return [f"{prefix}{name}" for name, field in fields_of(record).items() if field.about.better]


WEIGHTED: Final = "weighted."
LIMITABLE: Final = (
    *_limitable(Metrics),
    *_limitable(TensorErrors),
    *_limitable(Weighted, WEIGHTED),
)


@dataclass(frozen=True, slots=True)
class Limit:
    """A limit for a metric of every tensor, of tensors of one role, or of an output in total."""

    metric: Annotated[str, OneOf(LIMITABLE)]
    limit: Annotated[float, About("the least or the largest value, by what is better")]
    role: Annotated[
        str | None,
        About("of tensors of this kind; total: of an output; null: of all", key="kind"),
    ] = None

    @property
    def is_weighted(self) -> bool:
        return self.metric.startswith(WEIGHTED)

    @property
    def name(self) -> str:
        return self.metric if self.role is None else f"{self.role}:{self.metric}"


@dataclass(frozen=True, slots=True)
class RoleErrors:
    """Errors of all tensors of one role together."""

    role: Role
    bytes: Bytes
    bits_per_weight: Bits
    metrics: Metrics


@dataclass(frozen=True, slots=True)
class AppliedRule:
    """A rule of a recipe: tensors in whose name the pattern is found get the type."""

    pattern: str
    type: str
    origin: Annotated[str, About("where it was asked for")]


@dataclass(frozen=True, slots=True)
class AppliedRecipe:
    """The recipe that an output was made by."""

    base: str
    pure: bool = False
    rules: tuple[AppliedRule, ...] = ()


@dataclass(frozen=True, slots=True)
class OutputErrors:
    """Errors of one output, or of whatever else was measured: a file or a directory.

    `path`, `container` and `type` say what was measured, `recipe`, `imatrix` and `hessian` how it
    was made. `bytes` are those of all its files, `tensor_bytes` and `bits_per_weight` of the
    tensors alone. `total` has the errors of all tensors together, `roles` those of each kind of
    tensor, and `tensors` those of each.
    """

    path: str
    container: Annotated[str, OneOf(tuple(sorted(CONTAINERS))), About(key="kind")]
    type: Annotated[str, About("Q4_K_M, BF16, int4-g128, ...")]
    recipe: AppliedRecipe
    imatrix: Annotated[str | None, About("the importance matrix, if there is one")]
    bytes: Annotated[int, Bounds(0), About("on disk, all files")]
    tensor_bytes: Bytes
    bits_per_weight: Bits
    total: Annotated[Metrics, About("of all tensors together")]
    roles: Annotated[
        tuple[RoleErrors, ...],
        About("of all tensors of a role together, in the order of their first tensor", key="kinds"),
    ]
    tensors: tuple[TensorErrors, ...]
    hessian: Annotated[
        str | None,
        About("the second moments for error feedback; absent without", optional=True),
    ] = None


@dataclass(frozen=True, slots=True)
class ReportSource:
    """The checkpoint that outputs are measured against."""

    path: str
    family: str
    parameters: Count
    hyperparameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Errors of outputs against their source, tensor by tensor.

    A conversion, a comparison or a verification measured them. An error is y - x, of a value y of
    an output and the value x of the baseline. All numbers but sizes are the same on every machine
    and for every number of workers.
    """

    format: Annotated[str, OneOf((FORMAT,))] = FORMAT
    version: Annotated[int, OneOf((VERSION,))] = VERSION
    generator: Annotated[str, About("weightcast and its version")]
    source: ReportSource
    baseline: Annotated[
        str,
        OneOf(tuple(BASELINES)),
        About(
            "x: the stored values exactly (int8 x scale), or these rounded to bfloat16, which the "
            "reference multiplies with; norms and routers always as they are stored"
        ),
    ]
    limits: Annotated[
        tuple[Limit, ...],
        About("the limits that were asked for; absent without", optional=True),
    ] = ()
    outputs: tuple[OutputErrors, ...]

    def __repr__(self) -> str:
        listed = ", ".join(output.path for output in self.outputs)
        return f"<Report on {listed}, against {self.source.path}>"


def read_report(path: Path) -> Report:
    """Read an error report. Raises FormatError if it is none, or of a newer version."""
    raw = read_small(path, MAX_REPORT_BYTES, "report")
    try:
        value = parse_json(path, raw, limit=_MAX_VALUES, parse_constant=_no_constant)
    except FormatError:
        refuse_foreign(path, "report")
        raise
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        refuse_foreign(path, "report")
        problem = 'not an error report (no "format": "weightcast-report"); convert makes them'
        raise FormatError(path, None, problem)
    version = value.get("version")
    if type(version) is int and version > VERSION:
        problem = f"a report of version {version}; this weightcast reads {VERSION}: upgrade it"
        raise FormatError(path, None, problem)
    if type(version) is not int or version != VERSION:
        raise FormatError(path, None, f"version {shown(version)} of reports does not exist")
    try:
        report: Report = codec_of(Report).read(value)
    except Unfit as problem:
        raise FormatError(path, None, f"{problem.path or 'report'}{problem}") from None
    return report


def _no_constant(name: str) -> None:
    raise ValueError(name)  # NaN and infinities are no JSON


def json_values(report: Report) -> dict[str, Any]:
    """Turn a report into JSON values."""
    return values_of(report)


def json_text(report: Report) -> str:
    """Write a report as the text of a JSON file."""
    return json.dumps(json_values(report), indent=1, allow_nan=False) + "\n"
