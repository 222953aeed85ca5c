"""Evaluations as files, pages and summaries: `schema` is the model that all of it follows from."""

from weightcast.evaluation.report.html import page
from weightcast.evaluation.report.markdown import summary
from weightcast.evaluation.report.schema import (
    EvaluationReport,
    Pieces,
    json_text,
    json_values,
    read_evaluation,
    report_of,
)
from weightcast.evaluation.report.show import check_writable, write_evaluation

__all__ = [
    "EvaluationReport",
    "Pieces",
    "check_writable",
    "json_text",
    "json_values",
    "page",
    "read_evaluation",
    "report_of",
    "summary",
    "write_evaluation",
]
