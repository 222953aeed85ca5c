"""Parse what targets have in common: paths, and names that contradict a recipe file."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, TypeVar

from weightcast.converters.recipes import Override, RecipeFile, spelling
from weightcast.converters.targets.target import Request
from weightcast.errors import OutputError, RequestError
from weightcast.quant.names import explain, hint
from weightcast.text import closest, option, shown, spoken

# What may be meant for a type, though none is called so.
_LOOKS_LIKE_A_TYPE: Final = re.compile(r"(I?Q|TQ|MXFP|NVFP|BF|FP?|INT)\d\w*", re.IGNORECASE)

Meant = TypeVar("Meant")


@dataclass(frozen=True, slots=True)
class TypeNames(Generic[Meant]):
    """The types that a kind of outputs can have: how to look one up, and what they are called.

    `form` names such an output in messages, `example` is the name of one; `elsewhere` says of a
    type that only other outputs can have what to do.
    """

    form: str
    example: str
    lookup: Callable[[str], Meant | None]
    is_same: Callable[[Meant, Meant], bool]
    known: Callable[[], Iterable[str]]
    elsewhere: Callable[[str, str], str | None]

    def read(self, text: str, stem: str, type_name: str | None) -> tuple[Meant | None, bool]:
        """Tell an output's type by its name `stem`, or by a type that is given beside it.

        The flag says that the name tells of an importance matrix. The type is None if neither says
        one. Raises RequestError if they disagree, or if one says what is no type of such an output.
        """
        shorter, has_imatrix = spelling.without_imatrix(stem)
        ending = spelling.find_ending(shorter, self.lookup)
        if ending is not None:
            has_imatrix |= spelling.says_imatrix(shorter.removesuffix(ending[0]))
        if type_name is None:
            if ending is None:
                self._check_not_meant(text, shorter)
            return (None if ending is None else ending[1]), has_imatrix
        asked = self.lookup(type_name)
        if asked is None:
            raise self._unknown(text, type_name)
        if ending is not None and not self.is_same(ending[1], asked):
            raise RequestError(
                f"{text}: the name says {ending[0]}, but {option('types', type_name)} is given; "
                "rename the output or leave the type out"
            )
        return asked, has_imatrix

    def none_found(self, text: str, stem: str) -> RequestError:
        """Make the error for a name that does not say what the output is to be."""
        inside = spelling.find_inside(stem, self.lookup)
        if inside is not None:
            remedy = f"put it there, as in {self.example}, or pass {option('types', inside)}"
            return RequestError(f"{text}: {inside} is not at the end of the name; {remedy}")
        last = list(spelling.endings(stem))[-1]
        meant = closest(last, self.known(), alike=0.8)
        guess = f"did you mean {meant}?" if meant else None
        listed = spoken("weightcast types lists them", "weightcast.types() lists them")
        remedy = guess or f"rename it or pass {option('types')} ({listed})"
        example = self.example
        if Path(text).is_dir() and not (Path(text) / "ckpt-0").exists():
            example = os.path.join(text, example)
        problem = f"the name does not end in a type, as in {example}"
        return RequestError(f"{text}: {problem}; {remedy}")

    def _check_not_meant(self, text: str, stem: str) -> None:
        """Refuse a name that ends in what is meant for a type but is none. Raises RequestError."""
        for written in spelling.endings(stem):
            if (
                self.elsewhere(text, written) is not None
                or explain(written) is not None
                or _LOOKS_LIKE_A_TYPE.fullmatch(written)
            ):
                raise self._unknown(text, written)

    def _unknown(self, text: str, name: str) -> RequestError:
        remedy = self.elsewhere(text, name)
        if remedy is not None:
            return RequestError(f"{text}: {remedy}")
        problem = f"{shown(name)[1:-1]} is not a type of {self.form}"
        return RequestError(f"{text}: {problem}{hint(name, self.known())}")


def disagreement(text: str, said: str, recipe_file: RecipeFile, kind: str = "") -> RequestError:
    """Make the error for a name that says something else than a recipe file."""
    remedy = "convert it by a command of its own" if kind else "rename the output or convert twice"
    base = f"the base in {recipe_file.path} is {recipe_file.base_name}{kind}"
    return RequestError(f"{text}: {said}, but {base}; {remedy}")


def impossible(request: Request, override: Override, problem: str) -> RequestError:
    """Make the error for a rule that asks for a type which an output cannot hold."""
    asked = override.type.label
    return RequestError(f"{request.path}: {override.origin} asks for {asked}, but {problem}")


def plain_path(text: str) -> Path:
    """A path with a name of its own: what a link leads to, the directory that "." is."""
    path = Path(text)
    try:
        if path.is_symlink():
            return Path(os.path.realpath(path))
        return path if path.name not in ("", "..") else Path(os.path.abspath(path))
    except (OSError, ValueError) as problem:  # names that are too long, or with a NUL in them
        reason = problem.strerror if isinstance(problem, OSError) else problem
        raise OutputError(f"{shown(text)}: cannot be written: {reason}") from None
