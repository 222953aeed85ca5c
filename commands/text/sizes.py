"""Put sizes into few characters, for lines and tables."""

from __future__ import annotations


def short_size(nbytes: float) -> str:
    """Write bytes in a decimal unit with three digits or so: 640 B, 12.3 GB, 512 MB."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= size:
            number = nbytes / size
            return f"{number:.0f} {unit}" if number >= 100 else f"{number:.1f} {unit}"
    return f"{nbytes:.0f} B"
