"""Error reports: build them from measured errors, write and read them, limit them, show them.

`schema` is the model: the JSON of a report, `docs/report.schema.json`, the metrics that can be
limited and the columns of the page follow from it. A conversion, a comparison or a verification
collects the errors of matrices (`collector`) and builds a `Report` of them (`build`, `of_plan`).
`verdict` sums an output up in sentences, and `upgrades` proposes better types for its tensors.
"""

from weightcast.converters.report.build import (
    MeasuredOutput,
    MeasuredTensor,
    build_report,
    tensor_role,
)
from weightcast.converters.report.collector import (
    BASELINES,
    Collector,
    MatrixErrors,
    Measuring,
    matrix_errors,
    parse_baseline,
)
from weightcast.converters.report.html import page
from weightcast.converters.report.limits import (
    METRICS,
    Violation,
    check_applicable,
    check_limits,
    parse_limit,
)
from weightcast.converters.report.markdown import card_lines, summary
from weightcast.converters.report.of_plan import conversion_report
from weightcast.converters.report.schema import (
    AppliedRecipe,
    AppliedRule,
    Limit,
    Metrics,
    OutputErrors,
    Report,
    ReportSource,
    RoleErrors,
    Row,
    TensorErrors,
    Weighted,
    json_values,
    read_report,
)
from weightcast.converters.report.show import check_writable, show_reports, write_report
from weightcast.converters.report.text import search_text

__all__ = [
    "BASELINES",
    "METRICS",
    "AppliedRecipe",
    "AppliedRule",
    "Collector",
    "Limit",
    "MatrixErrors",
    "MeasuredOutput",
    "MeasuredTensor",
    "Measuring",
    "Metrics",
    "OutputErrors",
    "Report",
    "ReportSource",
    "RoleErrors",
    "Row",
    "TensorErrors",
    "Violation",
    "Weighted",
    "build_report",
    "card_lines",
    "check_applicable",
    "check_limits",
    "check_writable",
    "conversion_report",
    "json_values",
    "matrix_errors",
    "page",
    "parse_baseline",
    "parse_limit",
    "read_report",
    "search_text",
    "show_reports",
    "summary",
    "tensor_role",
    "write_report",
]
