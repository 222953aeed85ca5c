"""Write evaluations: as JSON, and for people as a page or as a summary in Markdown."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from weightcast.converters.files import write_small
from weightcast.converters.report.pages import check_packages
from weightcast.errors import RequestError
from weightcast.evaluation.evaluate import Evaluation
from weightcast.evaluation.report.html import page
from weightcast.evaluation.report.markdown import summary
from weightcast.evaluation.report.schema import EvaluationReport, Pieces, json_text, report_of

_FORMS: Final[dict[str, Callable[[EvaluationReport], str]]] = {
    ".json": json_text,
    ".html": page,
    ".htm": page,
    ".md": summary,
}


def check_writable(path: Path) -> None:
    """Refuse the name of a file that `write_evaluation` would refuse, before anything is run.

    Raises RequestError for other endings than .json, .html and .md, CheckpointError if the packages
    that make pages are missing.
    """
    form = _FORMS.get(path.suffix.lower())
    if form is None:
        raise RequestError(
            f"{path}: the ending says the form of an evaluation; name it FILE.json for other "
            "tools, FILE.html for a page or FILE.md for a summary"
        )
    if form is page:
        check_packages()


def write_evaluation(
    path: Path, evaluation: Evaluation | EvaluationReport, pieces: Pieces | None = None
) -> None:
    """Write an evaluation in the form that the ending says: JSON, a page or a summary in Markdown.

    `pieces` gives the text of a token's id. Raises what `check_writable` does, and OutputError; an
    earlier file stays then.
    """
    check_writable(path)
    report = report_of(evaluation, pieces) if isinstance(evaluation, Evaluation) else evaluation
    content = _FORMS[path.suffix.lower()](report)
    # Names may be no UTF-8: escapes stand for the bytes that are none.
    write_small(path, content.encode(errors="backslashreplace"))
