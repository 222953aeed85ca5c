"""Show error reports to people: as a page, or as a summary in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from weightcast.converters.files import write_small
from weightcast.converters.report.html import page
from weightcast.converters.report.markdown import summary
from weightcast.converters.report.schema import Report, read_report
from weightcast.converters.report.text import size_text
from weightcast.errors import RequestError
from weightcast.text import count

_FORMS: Final[dict[str, Callable[[Sequence[Report]], str]]] = {
    ".html": page,
    ".htm": page,
    ".md": summary,
}


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
        raise RequestError(f"{out}: name what to write OUT.html or OUT.md, or - to print Markdown")
    for path in paths:
        if out.exists() and path.exists() and out.samefile(path):
            raise RequestError(f"{out}: is one of the reports; name another file")
    reports = [read_report(path) for path in paths]
    content = form(reports).encode()
    write_small(out, content)
    outputs = sum(len(report.outputs) for report in reports)
    yield f"wrote {out} ({size_text(len(content))}, {count(outputs, 'output')})"
