"""What is done when all files of a conversion are complete, before they get their names."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightcast.converters.bundle import make_bundles
from weightcast.converters.conversion_report import conversion_report
from weightcast.converters.measured import Measuring
from weightcast.converters.model_card import CardErrors
from weightcast.converters.plan import Plan
from weightcast.converters.report_file import parse_report
from weightcast.converters.report_markdown import card_lines
from weightcast.quant.errors import ChangedError


@dataclass
class Finish:
    """Makes a report if there was measuring, and bundles if the plan has them.

    If the source changed after it was converted, which is the `problem` then, outputs are as good
    as any, but have no bundle.
    """

    plan: Plan
    jobs: int | None
    on_progress: Callable[[int], None]
    measuring: Measuring | None
    report: dict[str, Any] | None = None
    bundles: tuple[tuple[Path, ...], ...] = ()
    bundle_seconds: float = 0.0
    problem: ChangedError | None = None

    def __call__(self) -> Mapping[int, Mapping[Path, Path]]:
        """Give the files that wait for their names, beside outputs by number; see `commit`."""
        errors: dict[int, CardErrors] = {}
        if self.measuring is not None:
            found = self.measuring.finished()
            self.report = conversion_report(self.plan, found, self.measuring.baseline)
            described = parse_report(self.report)
            errors = {
                n: CardErrors(card_lines(described, n), described.baseline)
                for n in range(len(self.plan.outputs))
            }
        if not self.plan.has_bundles:
            return {}
        start = time.monotonic()
        try:
            waiting = make_bundles(self.plan, self.jobs, self.on_progress, errors)
        except ChangedError as problem:
            self.problem = problem
            return {}
        self.bundles = tuple(tuple(places) for places in waiting)
        self.bundle_seconds = time.monotonic() - start
        return dict(enumerate(waiting))
