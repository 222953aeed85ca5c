"""What the operating system does with files: atomic writes, locks, flushes, the page cache.

A file gets its name when it is complete (`atomic`, `names`), a signal releases what was leased
(`interrupts`), and errors of the system say what to do (`posix`). No model is known here.
"""

from weightcast.converters.files.atomic import write_flushed, write_small
from weightcast.converters.files.blanks import Blank, ZeroRuns, find_blanks, find_holes, join_blanks
from weightcast.converters.files.bundle_names import (
    BUILD_TYPE,
    CARD,
    NAMES,
    STATEMENT,
    SUMS,
    TENSORS,
    bundle_paths,
    foreign_files,
    sha256,
    written_before,
)
from weightcast.converters.files.interrupts import ReleaseStack, defer_signals, ignore_signals
from weightcast.converters.files.names import (
    journal_path,
    partial_path,
    replaced_path,
    states_path,
)
from weightcast.converters.files.page_cache import forget_read
from weightcast.converters.files.paths import as_optional_path, as_path
from weightcast.converters.files.posix import (
    allocate,
    allow_open_files,
    exchange,
    explained,
    open_locked,
    sync_directory,
    write_all,
)
from weightcast.converters.files.state import FileState, FileStates
from weightcast.converters.files.version import weightcast_version

__all__ = [
    "BUILD_TYPE",
    "CARD",
    "NAMES",
    "STATEMENT",
    "SUMS",
    "TENSORS",
    "Blank",
    "FileState",
    "FileStates",
    "ReleaseStack",
    "ZeroRuns",
    "allocate",
    "allow_open_files",
    "as_optional_path",
    "as_path",
    "bundle_paths",
    "defer_signals",
    "exchange",
    "explained",
    "find_blanks",
    "find_holes",
    "foreign_files",
    "forget_read",
    "ignore_signals",
    "join_blanks",
    "journal_path",
    "open_locked",
    "partial_path",
    "replaced_path",
    "sha256",
    "states_path",
    "sync_directory",
    "weightcast_version",
    "write_all",
    "write_flushed",
    "write_small",
    "written_before",
]
