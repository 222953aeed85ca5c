"""Carry a plan out: one reader, many workers, files written in order.

`executor` runs a plan, `stream` leases the buffers and hands slabs to workers as tasks, `rows`
makes the rows of a task for each destination, `panels` gathers words that lie across rows,
`factors` shares what error feedback goes by, `hashing` reads files for their checksums, `progress`
tells how far a run is. Names and types of tensors are the plan's.
"""

from weightcast.converters.engine.buffers import memory_estimate, slab_buffer
from weightcast.converters.engine.factors import FactorCache
from weightcast.converters.engine.hashing import Digests, FileToHash, hash_files
from weightcast.converters.engine.progress import (
    Meter,
    OnProgress,
    Progress,
    callback,
    cancellable,
    ignore_progress,
)
from weightcast.converters.engine.stream import Stream

__all__ = [
    "Digests",
    "FactorCache",
    "FileToHash",
    "Meter",
    "OnProgress",
    "Progress",
    "Stream",
    "callback",
    "cancellable",
    "hash_files",
    "ignore_progress",
    "memory_estimate",
    "slab_buffer",
]
