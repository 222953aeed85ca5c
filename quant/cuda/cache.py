"""Compiled kernels on disk: private to the user, checked when read, never in the way.

Images are code that the device will run, so nothing is read from a folder that anybody else could
have written to. Whatever is wrong with the folder or with a file in it costs a compilation, not
the conversion.
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cuda.core.utils import FileStreamProgramCache


# Beyond this the images that were not used for the longest time go. All kernels for one
# architecture are a small part of it.
LIMIT_BYTES = 512 << 20
DIGEST_BYTES = hashlib.sha256().digest_size
OTHERS = stat.S_IRWXG | stat.S_IRWXO


def folder() -> Path:
    """Name the folder of the images: `kernels` in $WEIGHTCAST_CACHE or in the user's cache.

    Raises RuntimeError where the user has no home folder.
    """
    if chosen := os.environ.get("WEIGHTCAST_CACHE"):
        return Path(chosen).absolute() / "kernels"
    # The XDG base directory specification has relative paths ignored.
    caches = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not caches.is_absolute():
        caches = Path.home() / ".cache"
    return caches / "weightcast" / "kernels"


def read(key: str) -> bytes | None:
    """Read the image stored under a key; None if there is none or if it is damaged."""
    try:
        entry: bytes = _open()[key]
    except (KeyError, OSError, RuntimeError):
        return None
    digest, image = entry[:DIGEST_BYTES], entry[DIGEST_BYTES:]
    return image if digest == _digest(key, image) else None


def write(key: str, image: bytes) -> bool:
    """Store an image under a key in one step; say whether that was possible."""
    try:
        _open()[key] = _digest(key, image) + image
    except (OSError, RuntimeError):
        return False
    return True


def _digest(key: str, image: bytes) -> bytes:
    # With the key in it, a file that got another one's name is noticed too.
    return hashlib.sha256(key.encode() + b"\0" + image).digest()


def _open() -> FileStreamProgramCache:
    """Open the folder, made if need be. Raises OSError if it cannot be used safely."""
    # Writes whole files under temporary names and renames them, so that threads and processes
    # can share it.
    from cuda.core.utils import FileStreamProgramCache

    root = folder()
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = root.stat()
    if status.st_uid != os.geteuid() or status.st_mode & OTHERS:
        raise PermissionError(f"{root} is open to other users")
    return FileStreamProgramCache(root, max_size_bytes=LIMIT_BYTES)
