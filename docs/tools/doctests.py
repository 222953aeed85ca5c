"""Show the examples of docstrings, lines after `>>>`, as code: an extension of griffe."""

from __future__ import annotations

import re
from typing import Any, Final

import griffe

# An example ends where a paragraph does.
_EXAMPLE: Final = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)


class Doctests(griffe.Extension):
    """Put fences around examples before docstrings are read as Markdown."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Change the docstring of a module, a class, a function or an attribute."""
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Leave out the docstring of the package, which the page says in other words."""
        pkg.docstring = None


def fenced(text: str) -> str:
    """Fence the examples in a docstring."""
    return _EXAMPLE.sub(lambda found: f"```pycon\n{found[0]}\n```", text)
