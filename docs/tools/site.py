"""Hooks of the site: pages of the repository that lie outside docs/, and the links to them.

A link means the same on GitHub and here: it is a path in the repository. What lies outside docs/
and is linked becomes a page (Markdown, and source text in a code block) or a file of the site.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

sys.path.insert(0, str(Path(__file__).parent))

from links import ROOT, links

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

# What has a place in the navigation; README's is the site itself.
_MOVED: Final = {
    "README.md": "index.md",
    "SECURITY.md": "security.md",
    "CONTRIBUTING.md": "contributing/index.md",
    "CHANGELOG.md": "changelog.md",
}
_SHOWN: Final = {".c": "c", ".go": "go", ".h": "c", ".py": "python", ".rs": "rust", ".sh": "bash"}
_SHOWN |= {".toml": "toml", ".yml": "yaml"}
_FOREIGN: Final = re.compile(
    r"""<(?:script|link|img|iframe)\b[^>]*(?:src|href)=["']?https?:[^>]*>"""
)


def uri_of(path: str) -> str:
    """Give the place in the site of a file of the repository."""
    if path in _MOVED:
        return _MOVED[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"{path}.md" if Path(path).suffix in _SHOWN else path


def path_of(uri: str) -> str:
    """Give the file of the repository that a page of the site is made of."""
    for path, moved in _MOVED.items():
        if moved == uri and uri != "index.md":
            return path
    return f"docs/{uri}" if (ROOT / "docs" / uri).is_file() else uri


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and files outside docs/ that other pages link to."""
    for path, uri in _MOVED.items():
        if uri != "index.md":
            _add(files, config, path)
    todo = list(files.documentation_pages())
    while todo:
        page = todo.pop()
        for link in links(path_of(page.src_uri), page.content_string):
            outside = not link.is_external and not link.path.startswith("docs/")
            if outside and (ROOT / link.path).is_file() and uri_of(link.path) not in files.src_uris:
                _add(files, config, link.path)
                if link.path.endswith(".md"):
                    todo.append(files.src_uris[uri_of(link.path)])
    return files


def _add(files: Files, config: MkDocsConfig, path: str) -> None:
    from mkdocs.structure.files import File

    language = _SHOWN.get(Path(path).suffix)
    if language is None:
        file = File.generated(config, uri_of(path), abs_src_path=str(ROOT / path))
    else:
        text = (ROOT / path).read_text()
        page = f"# {path}\n\n````{language}\n{text}````\n"
        file = File.generated(config, uri_of(path), content=page)
    files.append(file)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links to files of the repository into links within the site."""
    uri = page.file.src_uri
    source = path_of(uri)
    if Path(source).suffix in _SHOWN:
        return markdown
    for link in reversed(list(links(source, markdown))):
        target = uri_of(link.path)
        if link.is_external or target not in files.src_uris:
            continue  # mkdocs says that there is no such page
        anchor = f"#{link.anchor}" if link.anchor else ""
        place = os.path.relpath(target, os.path.dirname(uri) or ".") if link.text[0] != "#" else ""
        end = link.start + len(link.text)
        markdown = f"{markdown[: link.start]}{place}{anchor}{markdown[end:]}"
    return markdown


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Refuse a page that would load something from elsewhere."""
    from mkdocs.exceptions import PluginError

    foreign = _FOREIGN.search(output)
    if foreign is not None:
        raise PluginError(f"{page.file.src_uri} loads from elsewhere: {foreign[0]}")
    return output
