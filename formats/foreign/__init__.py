"""Recognize what is read by no reader, and say what to do instead.

A reader asks when bytes are not what they should be: what it knows better itself, it says itself.
Nothing here runs for a file that is read.
"""

from weightcast.formats.foreign.addresses import MAKE_GGUF, Known, address, hub_name, spelled
from weightcast.formats.foreign.downloads import arriving, is_unfinished, unfinished
from weightcast.formats.foreign.files import (
    cut_piece,
    json_entry,
    look_at,
    refuse_answer,
    refuse_foreign,
    require_file,
)
from weightcast.formats.foreign.finding import Finding
from weightcast.formats.foreign.missing import missing, neighbour

__all__ = [
    "MAKE_GGUF",
    "Finding",
    "Known",
    "address",
    "arriving",
    "cut_piece",
    "hub_name",
    "is_unfinished",
    "json_entry",
    "look_at",
    "missing",
    "neighbour",
    "refuse_answer",
    "refuse_foreign",
    "require_file",
    "spelled",
    "unfinished",
]
