"""Calls to the system that writing outputs needs: locked files, whole writes, and what failed."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import resource
from pathlib import Path

from weightcast.errors import OutputError, TakenError
from weightcast.text import option

# Beside the outputs: what up to 512 threads hash, the source, journals, libraries, a terminal.
_OTHER_FILES = 640
# TMPFS_MAGIC of linux/magic.h.
_TMPFS_MAGIC = 0x01021994


def allow_open_files(count: int) -> None:
    """Raise the soft limit of open files if so many outputs need more than it allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))


def open_locked(path: Path, flags: int, output: Path | None = None) -> int:
    """Open and lock what an output grows in.

    Raises TakenError, which names the output, or else the path, if another conversion has it.
    """
    while True:
        fd = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Between opening and locking, another conversion may have renamed it to its final name.
            if path.exists() and os.path.samestat(os.fstat(fd), path.stat()):
                return fd
        except BlockingIOError:
            os.close(fd)
            raise TakenError(
                f"{output or path}: another conversion is writing this output"
            ) from None
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def allocate(fd: int, size: int) -> None:
    """Give a file its size and its blocks on the disk. Raises OSError if the disk is too full.

    File systems that cannot reserve blocks give it a size alone, and so do those in memory, where
    each page would be filled with zeros before it is written.
    """
    os.ftruncate(fd, size)
    libc = ctypes.CDLL(None, use_errno=True)
    if _is_in_memory(libc, fd):
        return
    # glibc's posix_fallocate, which is Python's, would write zeros there, for hours.
    # musl has one name alone, whose numbers have 64 bits everywhere.
    reserve = getattr(libc, "fallocate64", None) or getattr(libc, "fallocate", None)
    if reserve is None or size == 0:
        return
    start, length = ctypes.c_int64(0), ctypes.c_int64(size)
    while reserve(fd, 0, start, length) != 0:
        code = ctypes.get_errno()
        if code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
            raise OSError(code, os.strerror(code))
        if code != errno.EINTR:
            return


def _is_in_memory(libc: ctypes.CDLL, fd: int) -> bool:
    """Tell whether a file lies on a tmpfs; statfs begins with the kind, a word of 64 bits."""
    kind = (ctypes.c_int64 * 32)()
    return libc.fstatfs(fd, kind) == 0 and kind[0] == _TMPFS_MAGIC


def write_all(fd: int, data: memoryview, offset: int) -> None:
    """Write all bytes at an offset."""
    done = 0
    while done < len(data):
        done += os.pwrite(fd, data[done:], offset + done)


def sync_directory(path: Path) -> None:
    """Flush the names in a directory to the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def exchange(a: Path, b: Path) -> bool:
    """Let two paths change places at once; False where the system cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    at_working_directory, exchange = -100, 2
    status = libc.renameat2(
        at_working_directory, os.fsencode(a), at_working_directory, os.fsencode(b), exchange
    )
    if status == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL):
        return False
    raise OSError(code, os.strerror(code), str(b))


def explained(problem: OSError, path: object) -> OutputError:
    """Say what went wrong while a file was written, and the remedy."""
    if problem.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(f"{path}: the disk is full; free some space and try again")
    if problem.errno == errno.EFBIG:
        return OutputError(
            f"{path}: the file system, or ulimit -f, does not allow files this large; use "
            f"{option('split')}"
        )
    if problem.errno == errno.EMFILE:
        return OutputError(
            f"{path}: too many open files; use a larger {option('split')} or ulimit -n"
        )
    if problem.errno in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
        return OutputError(f"{path}: the file system cannot lock files; write to another one")
    if problem.errno == errno.ELOOP:
        return OutputError(f"{path}: is a link; remove it")
    if problem.errno == errno.EROFS:
        return OutputError(f"{path}: the file system is read-only; write to another one")
    return OutputError(f"{path}: cannot be written: {problem.strerror or problem}")
