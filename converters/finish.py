"""What is done when all files of a conversion are complete, before they get their names."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from weightcast.converters.bundle import Bundles
from weightcast.converters.conversion_report import conversion_report
from weightcast.converters.measured import Measuring
from weightcast.converters.model_card import CardErrors
from weightcast.converters.plan import Plan
from weightcast.converters.report_file import parse_report
from weightcast.converters.report_markdown import card_lines


class Finish:
    """Makes a report if there was measuring, and bundles if the plan has them."""

    def __init__(
        self,
        plan: Plan,
        jobs: int | None,
        on_progress: Callable[[int], None],
        measuring: Measuring | None,
    ) -> None:
        self._plan = plan
        self._jobs = jobs
        self._on_progress = on_progress
        self._measuring = measuring
        self.bundles = Bundles(plan)
        self.bundle_seconds = 0.0
        self.report: dict[str, Any] | None = None

    def __call__(self) -> None:
        errors: dict[int, CardErrors] = {}
        if self._measuring is not None:
            measuring = self._measuring
            self.report = conversion_report(self._plan, measuring.finished(), measuring.baseline)
            described = parse_report(self.report)
            errors = {
                n: CardErrors(card_lines(described, n), described.baseline)
                for n in range(len(self._plan.outputs))
            }
        if self._plan.has_bundles:
            start = time.monotonic()
            self.bundles.make(self._jobs, self._on_progress, errors)
            self.bundle_seconds = time.monotonic() - start
