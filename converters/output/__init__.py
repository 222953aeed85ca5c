"""Outputs while they grow: their files, the journal that makes them resumable, what they replace.

`files` writes rows at their places and names the files in the end, `journal` notes what is on the
disk, `resume` tells what is left of a plan, `overwrite` and `disk_space` refuse before the first
byte is written, `states` are what a run over a text keeps, `leftovers` removes what interrupted
runs left.
"""

from weightcast.converters.output.disk_space import check_free_space
from weightcast.converters.output.files import OutputFiles, grown_path
from weightcast.converters.output.journal import FinishedRows, MatrixRecord, Write
from weightcast.converters.output.leftovers import Leftover, clean
from weightcast.converters.output.overwrite import check_report_path
from weightcast.converters.output.resume import how_to_go_on, kept_work, remainder, rows_of
from weightcast.converters.output.states import finished_layers

__all__ = [
    "FinishedRows",
    "Leftover",
    "MatrixRecord",
    "OutputFiles",
    "Write",
    "check_free_space",
    "check_report_path",
    "clean",
    "finished_layers",
    "grown_path",
    "how_to_go_on",
    "kept_work",
    "remainder",
    "rows_of",
]
