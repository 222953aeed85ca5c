"""Report the version of this package."""

from __future__ import annotations

from importlib.metadata import version


def weightcast_version() -> str:
    return version("weightcast")
