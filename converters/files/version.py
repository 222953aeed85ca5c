"""Report the version of this package."""

from __future__ import annotations


def weightcast_version() -> str:
    from importlib.metadata import version  # takes a moment, which few commands need

    return version("weightcast")
