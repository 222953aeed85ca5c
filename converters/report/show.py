"""Write error reports: as JSON, and for people as a page or as a summary in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from weightcast.converters.files import write_small
from weightcast.converters.report.html import page
from weightcast.converters.report.markdown import summary
from weightcast.converters.report.pages import check_packages
from weightcast.converters.report.schema import Report, json_text, read_report
from weightcast.errors import RequestError
from weightcast.text import count, size_text

_FORMS: Final[dict[str, Callable[[Sequence[Report]], str]]] = {
    ".html": page,
    ".htm": page,
    ".md": summary,
}
_JSON: Final = ".json"


def check_writable(path: Path) -> None:
    """Refuse the name of a report that `write_report` would refuse, before there is a report.

    Raises RequestError for other endings than .json, .html and .md, CheckpointError if the packages
    that make pages are missing.
    """
    ending = path.suffix.lower()
    if ending not in (_JSON, *_FORMS):
        raise RequestError(
            f"{path}: the ending says the form of a report; name it FILE.json for other tools, "
            "FILE.html for a page or FILE.md for a summary"
        )
    if _FORMS.get(ending) is page:
        check_packages()


def _encoded(content: str) -> bytes:
    """Encode a report; of names that are not UTF-8, escapes stand for the bytes that are none."""
    return content.encode(errors="backslashreplace")


def write_report(path: Path, report: Report) -> None:
    """Write a report in the form that the ending says: JSON, a page or a summary in Markdown.

    Raises what `check_writable` does, and OutputError; an earlier file stays then.
    """
    check_writable(path)
    form = _FORMS.get(path.suffix.lower())
    content = json_text(report) if form is None else form([report])
    write_small(path, _encoded(content))


def show_reports(paths: Sequence[Path], out: Path) -> Iterator[str]:
    """Write a page (OUT.html) or a summary (OUT.md) of reports; give the lines to print.

    For "-" these are the summary itself. Raises RequestError for any other OUT, FormatError for
    files that are no reports, OutputError if OUT cannot be written; an earlier OUT stays then.
    """
    if str(out) == "-":
        yield from summary([read_report(path) for path in paths]).splitlines()
        return
    form = _FORMS.get(out.suffix.lower())
    if form is None:
        raise RequestError(
            f"{out}: the ending says the form; name it OUT.html for a page or OUT.md for a "
            "summary, or give - to print that"
        )
    for path in paths:
        if path.suffix.lower() in _FORMS:
            raise RequestError(f"{path}: shows reports; give the .json files that it was made of")
        if out.exists() and path.exists() and out.samefile(path):
            raise RequestError(f"{out}: is one of the reports; name another file")
    reports = [read_report(path) for path in paths]
    content = _encoded(form(reports))
    write_small(out, content)
    outputs = sum(len(report.outputs) for report in reports)
    yield f"wrote {out} ({size_text(len(content))}, {count(outputs, 'output')})"
