"""Addresses and names on hubs, given where a path is wanted: how to download what they name.

Sources: https://huggingface.co/docs/huggingface_hub/guides/cli for `hf download`, and the manuals
of the other tools.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from weightcast.formats.foreign.finding import MAKE_GGUF, Finding

# By repository, in small letters: how to download what is read of it.
Known = Mapping[str, str]

# Path makes one slash of two.
_ADDRESS: Final = re.compile(r"([a-z][a-z0-9+.-]{1,15}):/{1,3}([^/].*)", re.IGNORECASE)
_BARE: Final = re.compile(r"(www\.)?(huggingface\.co|hf\.co|github\.com|modelscope\.cn)/.+")
_HUB_HOSTS: Final = ("huggingface.co", "hf.co", "hf-mirror.com")
_NAME: Final = r"[A-Za-z0-9][\w.-]{0,95}"
_WEIGHTS: Final = r"\.(gguf|safetensors|bin)"
_REPOSITORY: Final = re.compile(rf"({_NAME}/{_NAME})(?::([\w.-]{{1,40}}))?")
_FILE: Final = re.compile(rf"({_NAME}/{_NAME})/(.+{_WEIGHTS})", re.IGNORECASE)
_NO_REPOSITORY: Final = re.compile(rf".*/(ckpt(-\d+)?|.*(\.(json|pt|pth|model|dat)|{_WEIGHTS}))")
_COPY: Final = {
    "s3": "aws s3 cp --recursive {} .",
    "gs": "gcloud storage cp --recursive {} .",
    "ssh": "scp -r {} .",
    "sftp": "scp -r {} .",
}
_NO_PATH: Final = "an address, not a path"
_IF_THERE: Final = "if it is a model on Hugging Face"


def address(text: str, known: Known) -> Finding | None:
    """Recognize an address, and say how to download what is there; None for anything else."""
    if text.startswith("magnet:"):
        how = "download what it names (aria2c --seed-time=0 'magnet:...'), and give the directory"
        return Finding("a magnet link, not a path", how)
    match = _ADDRESS.fullmatch(text)
    if match is None:
        bare = _BARE.fullmatch(text)
        return Finding(_NO_PATH, _on_the_web(text, known)) if bare else None
    scheme, rest = match[1].lower(), match[2]
    if scheme in ("http", "https"):
        return Finding(_NO_PATH, _on_the_web(rest, known))
    if scheme == "hf":
        return Finding(_NO_PATH, _on_the_hub(rest, known))
    if scheme == "file":
        return Finding(_NO_PATH, f"give the path alone: /{unquote(rest)}")
    copy = _COPY.get(scheme)
    return Finding(_NO_PATH, _first(copy.format(_quoted(scheme, rest))) if copy else _first())


def spelled(path: object) -> str:
    """Write a path as it was given: an address has two slashes again, which Path took one of."""
    match = _ADDRESS.fullmatch(str(path))
    return str(path) if match is None else f"{match[1]}://{match[2]}"


def hub_name(path: Path, known: Known) -> Finding | None:
    """Recognize what may be a name on Hugging Face, OWNER/NAME or a file there; None if not."""
    text = str(path)
    what = "no such file or directory"
    file = _FILE.fullmatch(text)
    if file is not None:
        return Finding(what, f"{_IF_THERE}, {_file(file[1], file[2])}")
    match = _REPOSITORY.fullmatch(text)
    if match is None or _NO_REPOSITORY.fullmatch(text):
        return None
    return Finding(what, f"{_IF_THERE}, {_repository(match[1], known, match[2])}")


def _first(command: str = "") -> str:
    return f"download it first ({command})" if command else "download it first"


def _quoted(scheme: str, rest: str) -> str:
    return shlex.quote(f"{scheme}://{rest}")


def _on_the_web(rest: str, known: Known) -> str:
    """Say how to download what lies on a web server, by which one it is."""
    host, _, path = rest.partition("/")
    host = host.lower().removeprefix("www.")
    path = path.partition("?")[0].partition("#")[0]
    if host in _HUB_HOSTS and path.strip("/"):
        return _on_the_hub(path, known)
    repository = "/".join(path.strip("/").removesuffix(".git").split("/")[:2])
    if host == "github.com" and repository.lower() in known:
        return known[repository.lower()]
    if host == "modelscope.cn" and path.startswith("models/"):
        name = "/".join(path.split("/")[1:3])
        folder = shlex.quote(name.rpartition("/")[2])
        return _first(f"modelscope download --model {shlex.quote(name)} --local_dir {folder}")
    return _first(f"curl -L -O {_quoted('https', rest)}")


def _on_the_hub(path: str, known: Known) -> str:
    """Say how to download what a path on Hugging Face names: a repository, a folder or file."""
    parts = [unquote(part) for part in path.split("/") if part]
    if parts[:1] == ["models"]:
        del parts[0]
    if parts[:1] in (["datasets"], ["spaces"]):
        return f"it is one of the {parts[0]}, not a model: name a model"
    repository, rest = "/".join(parts[:2]), parts[2:]
    revision = "main"
    if len(rest) > 1 and rest[0] in ("tree", "blob", "resolve", "raw"):
        revision, rest = rest[1], rest[2:]
    elif rest[:1] == ["tree"]:
        rest = []
    if repository.lower() in known or (not rest and revision == "main"):
        return _repository(repository, known)
    return _file(repository, "/".join(rest), revision)


def _file(repository: str, file: str, revision: str = "main") -> str:
    """Say how to download a file of a repository, a folder of it, or another revision."""
    what = ""
    if file:
        has_ending = "." in file.rpartition("/")[2]
        what = f" {shlex.quote(file)}" if has_ending else f" --include {shlex.quote(f'{file}/*')}"
    other = "" if revision == "main" else f" --revision {shlex.quote(revision)}"
    return _first(f"hf download {_named(repository)}{what}{other} {_into(repository)}")


def _repository(repository: str, known: Known, tag: str | None = None) -> str:
    """Say how to download a repository; of one of GGUF files, those of one type."""
    if repository.lower() in known:
        return known[repository.lower()]
    if tag is not None or "gguf" in repository.lower():
        pattern = shlex.quote(f"*{tag or 'Q8_0'}*.gguf")
        return _first(f"hf download {_named(repository)} --include {pattern} {_into(repository)}")
    return f"{_first(f'hf download {_named(repository)} {_into(repository)}')}, and {MAKE_GGUF}"


def _named(repository: str) -> str:
    return shlex.quote(repository)


def _into(repository: str) -> str:
    return f"--local-dir {shlex.quote(repository.rpartition('/')[2])}"
