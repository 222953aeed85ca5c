"""The exceptions of weightcast, one family.

Every message is one line that names the file, the place and, where there is one, the remedy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

# Names in files have any length; what there is to say fits easily.
_MAX_MESSAGE: Final = 4000


def visible(text: str) -> str:
    """Escape what would end a line or control a terminal: names in files can hold anything."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class CheckpointError(Exception):
    """Root of all errors about input or output that weightcast raises on purpose."""

    def __init__(self, message: object = "") -> None:
        text = visible(str(message))
        super().__init__(text if len(text) <= _MAX_MESSAGE else f"{text[:_MAX_MESSAGE]}...")


class RequestError(CheckpointError):
    """The request itself makes no sense: an unknown type, a size that is none."""


class FormatError(CheckpointError):
    """Bytes that are not what their format says; carries the file and the offset in it."""

    def __init__(self, path: object, offset: int | None, problem: str) -> None:
        place = "" if offset is None else f" at byte {offset}"
        super().__init__(f"{path}{place}: {problem}")


class UnsafePickleError(FormatError):
    """A pickle names a global outside the closed list; it was neither imported nor called."""


class LayoutError(CheckpointError):
    """A shape, dtype or value does not fit the model, the type or another tensor."""


class MissingTensorError(CheckpointError):
    """A tensor or file that the model needs is not there."""


class MissingPackageError(CheckpointError, ModuleNotFoundError):
    """A Python package that is asked for is not installed; a ModuleNotFoundError too."""


class UnknownTensorError(CheckpointError, KeyError):
    """A checkpoint has no tensor of this name; a KeyError too."""

    __str__ = Exception.__str__  # that of KeyError quotes the message


class ChangedError(CheckpointError):
    """A file is not what it was when the work began."""


class OutputError(CheckpointError):
    """The output cannot be written: no space, no permission, in use."""


class TakenError(OutputError):
    """Another run has the output, or left it unfinished and was to make something else."""


class LimitError(CheckpointError):
    """Errors of outputs are beyond limits, which `violations` describe; the outputs are unnamed."""

    def __init__(self, message: object, violations: Sequence[Mapping[str, object]] = ()) -> None:
        super().__init__(message)
        self.violations = tuple(violations)


class DeviceError(CheckpointError):
    """A CUDA device cannot do the work: no package, driver, device, memory; a failed launch."""
