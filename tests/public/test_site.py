"""The site's hooks turn links between files of the repository into links between its pages."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from docs.tools import site

FILES: Any = SimpleNamespace(
    src_uris={
        "gguf.md": ...,
        "security.md": ...,
        "contributing/index.md": ...,
        "contributing/add-a-family.md": ...,
        "examples/ci_gate.sh.md": ...,
        "benchmarks/results/peers.md": ...,
    }
)


def rewritten(uri: str, markdown: str) -> str:
    page: Any = SimpleNamespace(file=SimpleNamespace(src_uri=uri))
    config: Any = None
    return site.on_page_markdown(markdown, page, config, FILES)


def test_links_within_docs_stay() -> None:
    text = "[a](gguf.md), [b](#c), [d](gguf.md#e)"
    assert rewritten("recipes.md", text) == text


def test_links_that_leave_docs_lead_to_pages_of_the_site() -> None:
    text = "[a](../SECURITY.md#tests) and [b](../examples/ci_gate.sh)"
    assert rewritten("gguf.md", text) == "[a](security.md#tests) and [b](examples/ci_gate.sh.md)"
    text = "[c](../../CONTRIBUTING.md), [d](../gguf.md)"
    assert rewritten("contributing/add-a-family.md", text) == "[c](index.md), [d](../gguf.md)"


def test_links_of_pages_from_elsewhere_are_read_from_their_place() -> None:
    text = "[a](docs/gguf.md), [b](docs/contributing/add-a-family.md)"
    assert rewritten("contributing/index.md", text) == "[a](../gguf.md), [b](add-a-family.md)"
    assert rewritten("security.md", "[a](docs/gguf.md#b)") == "[a](gguf.md#b)"


def test_other_links_are_left_to_mkdocs() -> None:
    text = "[a](https://b.c), [d](no-such-page.md)\n```\n[e](../SECURITY.md)\n```"
    assert rewritten("gguf.md", text) == text
