"""Pages that work offline: one HTML file with its charts, tables and data.

Charts are drawn by Vega-Lite, whose JavaScript comes with vl-convert-python and is put into the
page. What is shown reaches the page as JSON in which nothing can end a script, and is shown as
text; the content security policy lets only the page's own two scripts run and nothing be loaded.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from weightcast.errors import CheckpointError

# What all pages have in common; the extra `report`: modules and the packages that bring them.
_COMMON: Final = Path(__file__).with_name("template")
_PACKAGES: Final = {"jinja2": "jinja2", "vl_convert": "vl-convert-python"}
_DIGITS: Final = 6


@dataclass(frozen=True, slots=True)
class Template:
    """A page's own folder, the HTML in it, and the parts of its script, in order.

    What is not in the folder is looked for among what all pages have in common.
    """

    folder: Path
    name: str
    scripts: tuple[str, ...]

    def render(self, data: Any, **values: Any) -> str:
        """Make the page of `data`, JSON values for its script, and values for its HTML.

        Raises CheckpointError without the packages of the extra `report`.
        """
        check_packages()
        import jinja2
        from markupsafe import Markup

        scripts = [library(), "\n".join(self._part(name) for name in self.scripts)]
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader([self.folder, _COMMON]),
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=jinja2.StrictUndefined,
        )
        return environment.get_template(self.name).render(
            policy=_policy(scripts),
            style=Markup(self._part("page.css")),
            scripts=[Markup(script) for script in scripts],
            data=data,
            **values,
        )

    def _part(self, name: str) -> str:
        own = self.folder / name
        return (own if own.exists() else _COMMON / name).read_text()


def check_packages() -> None:
    """Import what makes pages. Raises CheckpointError without the extra `report`."""
    for module, package in _PACKAGES.items():
        try:
            importlib.import_module(module)
        except ImportError:
            raise CheckpointError(
                f"{package} is not installed: pip install 'weightcast[report]' for HTML pages "
                "(JSON and Markdown need nothing)"
            ) from None


@functools.cache
def library() -> str:
    """Bundle Vega, Vega-Lite and Vega-Embed; takes seconds."""
    import vl_convert

    # In JavaScript only strings and regular expressions can have this, and it means the same there.
    script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;").replace(
        "</script", r"<\/script"
    )
    return f"/*\n{(_COMMON / 'vega-licence.txt').read_text()}*/\n{script}"


def rounded(value: Any) -> Any:
    """Round the numbers in JSON values to what a page shows."""
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return value


def _policy(scripts: Sequence[str]) -> str:
    digests = (hashlib.sha256(script.encode()).digest() for script in scripts)
    hashes = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    # Vega's tooltip brings a style element of its own.
    return f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'"
