"""The JSON Schema of evaluations: `python -m weightcast.evaluation.report.json_schema`.

`docs/evaluation.schema.json` holds what this prints; run it after a change of `schema`.
"""

from __future__ import annotations

import sys

from weightcast.converters.report import json_schema
from weightcast.evaluation.report.schema import VERSION, EvaluationReport


def schema_text() -> str:
    """Describe evaluations in JSON Schema, as text."""
    return json_schema.schema_text(EvaluationReport, f"weightcast evaluation, version {VERSION}")


if __name__ == "__main__":
    sys.stdout.write(schema_text())
