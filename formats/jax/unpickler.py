"""A pickle reader that only describes: it imports nothing, calls nothing, loads no payload.

It runs the opcodes that pickled arrays use, in protocols 2 to 5, and no others. Strings and bytes
become their place in the file; globals become names, checked against a closed list as they are
read; REDUCE, NEWOBJ and BUILD go to two functions of the caller. Time and memory are bounded by
fixed limits, whatever the file declares.
Source of the opcodes: Lib/pickletools.py in CPython.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any, Final

from weightcast.errors import FormatError, UnsafePickleError
from weightcast.formats.foreign import refuse_foreign

# A checkpoint's pickle runs about 150 opcodes on a stack of about 20.
MAX_OPCODES = 10_000
MAX_STACK = 256
MAX_MEMO = 4096
MAX_SHORT_TEXT = 256
_WINDOW = 4096


@dataclass(frozen=True, slots=True, eq=False)
class Global:
    """A class or function that a pickle may name; there is one object for each."""

    module: str
    name: str


# Not frozen, as checkpoints have ten thousands of texts: frozen ones take three times as long.
@dataclass(slots=True, eq=False)
class Text:
    """A string: its UTF-8 bytes in the file, and its value if it is short."""

    offset: int
    nbytes: int
    value: str | None


@dataclass(slots=True, eq=False)
class Bytes:
    """A bytes or bytearray payload, left in the file; `is_latin1_text` for protocol 2."""

    offset: int
    nbytes: int
    is_latin1_text: bool = False


@dataclass(frozen=True, slots=True)
class Limits:
    """The most opcodes, values on the stack, and memo entries of one pickle."""

    opcodes: int = MAX_OPCODES
    stack: int = MAX_STACK
    memo: int = MAX_MEMO


def by_name(*listed: Global) -> dict[tuple[str, str], Global]:
    """Make a closed list of what a pickle may name."""
    return {(each.module, each.name): each for each in listed}


class _Mark:
    """The start of a tuple or of a run of dictionary items on the stack."""


_MARK = _Mark()


_USUAL: Final = Limits()


class Machine:
    """Runs one pickle file once; `run` returns what the pickle describes."""

    def __init__(
        self,
        fd: int,
        path: Path,
        allowed: Mapping[tuple[str, str], Global],
        construct: Callable[[Global, tuple[Any, ...]], Any],
        build: Callable[[Any, Any], None],
        *,
        region: tuple[int, int] | None = None,
        limits: Limits = _USUAL,
        persistent: Callable[[Any], Any] | None = None,
    ) -> None:
        """Take a file, or bytes [start, end) of it; `persistent` answers persistent ids."""
        self._fd = fd
        self._path = path
        self._position, self._size = region or (0, os.fstat(fd).st_size)
        self._what = "file" if region is None else "pickle"
        self._allowed = allowed
        self._construct = construct
        self._build = build
        self._limits = limits
        self._persistent = persistent
        self._opcode_at = self._position
        self._frame_end = inf  # of the frame that is open
        self._window = b""
        self._window_at = 0
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        """Run to STOP. Raises FormatError or UnsafePickleError."""
        if self._size == self._position:
            raise self._error(
                f"the {self._what} is empty: the download has not started or was lost"
            )
        if self._byte() != 0x80:
            if self._what == "file":
                refuse_foreign(self._path, "shard")
            if not self._window.strip(b"\0"):
                raise self._error("zeros instead of a pickle: the download is not complete")
            raise self._error("not a pickle of protocol 2 to 5")
        protocol = self._byte()
        if not 2 <= protocol <= 5:
            raise self._error(f"pickle protocol {protocol}; protocols 2 to 5 are read")
        stack, most = self._stack, self._limits.stack
        for _ in range(self._limits.opcodes):
            self._opcode_at = self._position
            opcode = self._byte()
            if opcode == _STOP:
                return self._stop()
            handler = _HANDLERS[opcode]
            if handler is None or (opcode == _PERSISTENT_ID and self._persistent is None):
                raise self._unknown(bytes((opcode,)))
            handler(self)
            if len(stack) > most:
                raise self._error(f"more than {most} values on the stack")
            if self._position >= self._frame_end:
                if self._position > self._frame_end:
                    raise self._error(f"an opcode crosses the end of its frame, {self._frame_end}")
                self._frame_end = inf
        raise self._error(f"more than {self._limits.opcodes} opcodes")

    def _stop(self) -> Any:
        if len(self._stack) != 1 or self._stack[0] is _MARK:
            raise self._error(f"{len(self._stack)} values left on the stack at the end")
        if self._position != self._size:
            extra = self._size - self._position
            self._opcode_at = self._position
            raise self._error(f"{extra} bytes follow the end of the pickle")
        return self._stack[0]

    # Reading.

    def _error(self, problem: str) -> FormatError:
        return FormatError(self._path, self._opcode_at, problem)

    def _unknown(self, opcode: bytes) -> FormatError:
        if opcode in b"io\x82\x83\x84PQ":
            return UnsafePickleError(
                self._path, self._opcode_at, f"opcode {opcode!r} makes objects that are not arrays"
            )
        if opcode in b"\x97\x98":
            return self._error("out-of-band buffers are not in the file, so they cannot be read")
        return self._error(f"opcode {opcode!r} does not occur in pickled arrays")

    def _require(self, count: int) -> None:
        if count > self._size - self._position:
            raise self._error(
                f"{count} bytes are declared at byte {self._position}, "
                f"but the {self._what} ends at {self._size}: "
                "it is truncated or damaged; download it again"
            )

    def _take(self, count: int) -> bytes:
        """Read a few bytes through a small window."""
        start = self._position - self._window_at
        if start < 0 or start + count > len(self._window):
            assert count <= _WINDOW
            self._require(count)
            # No further than the end, so that what lies in the window needs no other check.
            wanted = min(_WINDOW, self._size - self._position)
            self._window = os.pread(self._fd, wanted, self._position)
            self._window_at = self._position
            start = 0
            if len(self._window) < count:
                raise self._error("the file shrank while it was read")
        self._position += count
        return self._window[start : start + count]

    def _byte(self) -> int:
        """Read one byte; most of a pickle is single bytes."""
        try:
            byte = self._window[self._position - self._window_at]
        except IndexError:
            return self._take(1)[0]
        self._position += 1
        return byte

    def _skip(self, count: int) -> int:
        """Pass over a payload; return where it starts."""
        self._require(count)
        offset = self._position
        self._position += count
        return offset

    def _unsigned(self, count: int) -> int:
        if count == 1:
            return self._byte()
        return int.from_bytes(self._take(count), "little")

    def _line(self) -> str:
        raw = bytearray()
        while (byte := self._take(1)) != b"\n":
            raw += byte
            if len(raw) > MAX_SHORT_TEXT:
                raise self._error("a global's name is too long")
        return self._decode(bytes(raw))

    def _decode(self, raw: bytes) -> str:
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise self._error("a string is not valid UTF-8") from None

    # The stack.

    def _pop(self) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            raise self._error("an opcode needs a value that is not on the stack")
        return self._stack.pop()

    def _pop_to_mark(self) -> list[Any]:
        for index in range(len(self._stack) - 1, -1, -1):
            if self._stack[index] is _MARK:
                items = self._stack[index + 1 :]
                del self._stack[index:]
                return items
        raise self._error("an opcode needs a mark that is not on the stack")

    def _frame(self) -> None:
        length = self._unsigned(8)
        if self._frame_end != inf:
            raise self._error("a frame inside a frame")
        self._require(length)
        self._frame_end = self._position + length

    def _text(self, width: int) -> None:
        nbytes = self._unsigned(width)
        offset = self._position
        if nbytes <= MAX_SHORT_TEXT:
            self._stack.append(Text(offset, nbytes, self._decode(self._take(nbytes))))
        else:
            self._stack.append(Text(self._skip(nbytes), nbytes, None))

    def _bytes(self, width: int) -> None:
        nbytes = self._unsigned(width)
        self._stack.append(Bytes(self._skip(nbytes), nbytes))

    def _long(self) -> None:
        width = self._unsigned(1)
        if width > 9:
            raise self._error(f"an integer of {width} bytes")
        self._stack.append(int.from_bytes(self._take(width), "little", signed=True))

    def _global(self, module: str | None, name: str | None) -> None:
        if module is None or name is None:
            raise self._error("a global's name is not a short string")
        found = self._allowed.get((module, name))
        if found is None:
            only = "; save the weights alone: torch.save(model.state_dict(), NEW)"
            raise UnsafePickleError(
                self._path,
                self._opcode_at,
                f"the pickle names the global {f'{module}.{name}'[:200]!r}, which is not an array "
                "type of a checkpoint; it was not imported and nothing was run"
                f"{only if self._what == 'pickle' else ''}",
            )
        self._stack.append(found)

    def _stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        self._global(
            module.value if isinstance(module, Text) else None,
            name.value if isinstance(name, Text) else None,
        )

    def _tuple(self, count: int) -> None:
        items = [self._pop() for _ in range(count)]
        self._stack.append(tuple(reversed(items)))

    def _set_items(self, items: list[Any]) -> None:
        target = self._stack[-1] if self._stack else None
        if not isinstance(target, dict) or len(items) % 2:
            raise self._error("items are set on something that is not a dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, Text) or key.value is None or key.value in target:
                raise self._error("a dictionary key is repeated or not a short string")
            target[key.value] = value

    def _set_item(self) -> None:
        value, key = self._pop(), self._pop()
        self._set_items([key, value])

    def _call(self) -> None:
        args, function = self._pop(), self._pop()
        if not isinstance(function, Global) or not isinstance(args, tuple):
            raise self._error("a call of something that is not a named global")
        try:
            self._stack.append(self._construct(function, args))
        except ValueError as problem:
            raise self._error(str(problem)) from None

    def _persistent_id(self) -> None:
        assert self._persistent is not None
        try:
            self._stack.append(self._persistent(self._pop()))
        except ValueError as problem:
            raise self._error(str(problem)) from None

    def _apply_state(self) -> None:
        state = self._pop()
        if not self._stack:
            raise self._error("a state without an object")
        try:
            self._build(self._stack[-1], state)
        except ValueError as problem:
            raise self._error(str(problem)) from None

    def _remember(self, key: int | None = None) -> None:
        """Note the last value on the stack under a key, or under the next number."""
        stack, memo = self._stack, self._memo
        if not stack or stack[-1] is _MARK:
            raise self._error("nothing to remember on the stack")
        if key is None:
            key = len(memo)
        if len(memo) >= self._limits.memo and key not in memo:
            raise self._error(f"more than {self._limits.memo} memo entries")
        memo[key] = stack[-1]

    def _recall(self, key: int) -> None:
        if key not in self._memo:
            raise self._error(f"memo entry {key} was never set")
        self._stack.append(self._memo[key])


_STOP: Final = ord(".")
_PERSISTENT_ID: Final = ord("Q")
_NAMED: Final[dict[bytes, Callable[[Machine], None]]] = {
    b"\x95": Machine._frame,
    b"(": lambda m: m._stack.append(_MARK),
    b"N": lambda m: m._stack.append(None),
    b"\x88": lambda m: m._stack.append(True),
    b"\x89": lambda m: m._stack.append(False),
    b"K": lambda m: m._stack.append(m._unsigned(1)),
    b"M": lambda m: m._stack.append(m._unsigned(2)),
    b"J": lambda m: m._stack.append(struct.unpack("<i", m._take(4))[0]),
    b"\x8a": Machine._long,
    b"\x8c": lambda m: m._text(1),
    b"X": lambda m: m._text(4),
    b"\x8d": lambda m: m._text(8),
    b"C": lambda m: m._bytes(1),
    b"B": lambda m: m._bytes(4),
    b"\x8e": lambda m: m._bytes(8),
    b"\x96": lambda m: m._bytes(8),
    b")": lambda m: m._stack.append(()),
    b"\x85": lambda m: m._tuple(1),
    b"\x86": lambda m: m._tuple(2),
    b"\x87": lambda m: m._tuple(3),
    b"t": lambda m: m._stack.append(tuple(m._pop_to_mark())),
    b"}": lambda m: m._stack.append({}),
    b"s": Machine._set_item,
    b"u": lambda m: m._set_items(m._pop_to_mark()),
    b"c": lambda m: m._global(m._line(), m._line()),
    b"\x93": Machine._stack_global,
    b"R": Machine._call,
    b"\x81": Machine._call,
    b"b": Machine._apply_state,
    b"Q": Machine._persistent_id,
    b"q": lambda m: m._remember(m._unsigned(1)),
    b"r": lambda m: m._remember(m._unsigned(4)),
    b"\x94": Machine._remember,
    b"h": lambda m: m._recall(m._unsigned(1)),
    b"j": lambda m: m._recall(m._unsigned(4)),
}
# By opcode: every byte of a pickle is looked up.
_HANDLERS: Final = [_NAMED.get(bytes((opcode,))) for opcode in range(256)]
