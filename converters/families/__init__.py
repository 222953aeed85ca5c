"""Families of models: each a folder that describes one as data, and a word in FAMILIES.

The room knows tensors, their names and hyperparameters, not how they are written or read. Only
this page names a concrete family.
"""

from __future__ import annotations

from typing import Final

from weightcast.converters.families.generic import any_gguf
from weightcast.converters.families.grok1.family import GROK_1
from weightcast.converters.graph import Family

FAMILIES: Final[dict[str, Family]] = {family.name: family for family in (GROK_1,)}

__all__ = ["FAMILIES", "any_gguf", "of_architecture"]


def of_architecture(architecture: object) -> Family | None:
    """Find the family that GGUF files call `architecture`; None if there is no table of it.

    Damaged files can have any value there, an array too.
    """
    if not isinstance(architecture, str):
        return None
    return next((f for f in FAMILIES.values() if f.architecture == architecture), None)
