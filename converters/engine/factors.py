"""Factors of second moments, shared by the workers: made once for the tasks of a matrix."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Final

from weightcast.errors import LayoutError
from weightcast.formats.hessians import StoredMoments
from weightcast.quant.backend import Backend
from weightcast.quant.cpu.feedback import Factor
from weightcast.quant.feedback import FeedbackBackend, factor

# Two slabs are in work, and each may end one matrix and begin another.
KEPT_FACTORS: Final = 3


class FactorCache:
    """Keep the factors that were used last. Safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: OrderedDict[StoredMoments, _Entry] = OrderedDict()

    def backend(self, backend: Backend, moments: StoredMoments | None) -> Backend:
        """Add error feedback to a backend, if there are moments. Raises as `of` does."""
        return backend if moments is None else FeedbackBackend(backend, self.of(moments))

    def of(self, moments: StoredMoments) -> Factor:
        """Give the factor of second moments, made by one thread while others wait for it.

        Raises CheckpointError that names the entry if they are not such.
        """
        with self._lock:
            entry = self._entries.setdefault(moments, _Entry())
            self._entries.move_to_end(moments)
            while len(self._entries) > KEPT_FACTORS:
                self._entries.popitem(last=False)
        with entry.lock:
            if entry.factor is None:
                entry.factor = _factored(moments)
            return entry.factor


class _Entry:
    """A factor, once it is made."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.factor: Factor | None = None


def _factored(moments: StoredMoments) -> Factor:
    try:
        return factor(moments.open())
    except LayoutError as problem:
        raise moments.refused(str(problem)) from None
