"""Every documented command runs, from the text of the pages, on small files of the same names.

A page's blocks run in its own folder with what a newcomer has: `grok-1`, `tokenizer.model` in it,
`model-BF16.gguf` (and in three parts), `imatrix.gguf`, `hessians.safetensors`, `costs.json`, error
reports, `examples`. First those for a shell, in order, then all of Python as one program. Blocks
that cannot run here say why in a comment; the reasons are listed below.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml

import weightcast
from docs.tools.links import blanked
from tests import hessians, sensitivities
from tests.adapters import write_peft
from tests.imatrices import sample, write_gguf
from tests.public.fences import Fence, commands, fences, is_output
from weightcast.converters.families.grok1.synthetic import tiny_spec, write_checkpoint
from weightcast.converters.recipes.file import read_recipe_file
from weightcast.quant import config

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")])
SHELL, DATA = ("sh", "bash", "console"), ("toml", "json", "yaml")
UNCHECKED = ("text", "hex", "go", "rust", "cmake")  # what pages show; what is built elsewhere

# A Grok-1 whose rows hold the groups of the release: every scale of `w2` covers 256 values.
SPEC = tiny_spec(widening_factor=12, num_experts=2, vocab_size=512)

# Why a block is not run, and how often. A new reason is a decision, not a way out.
NOT_RUN = {
    "a line of a file": 1,
    "builds from the sources": 1,
    "checks a release": 1,
    "downloads the release, 318 GB": 2,
    "installs software": 3,
    "makes a release": 2,
    "needs Rust or Go": 2,
    "needs a GPU": 3,
    "needs llama.cpp's source": 1,
    "needs llama.cpp's programs": 2,
    "needs pkg-config": 1,
    "needs torch, transformers and accelerate": 1,
    "part of a function": 1,
    "runs for minutes": 1,
    "runs the whole test suite": 1,
    "signs with keys of your own": 3,
    "works on the repository itself": 3,
}


def test_every_fence_says_its_language() -> None:
    unknown = [
        f"{page.relative_to(ROOT)}:{fence.line}: {fence.language!r}"
        for page in PAGES
        for fence in fences(page.read_text())
        if fence.language not in (*SHELL, *DATA, *UNCHECKED, "python", "c")
    ]
    assert not unknown


def test_nothing_is_left_out_but_for_a_listed_reason() -> None:
    found = Counter(
        fence.not_run for page in PAGES for fence in fences(page.read_text()) if fence.not_run
    )
    assert found == NOT_RUN


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory, tokenizer_model: Path) -> Path:
    """What pages take for granted: models, an importance matrix, examples, what was made before."""
    folder = tmp_path_factory.mktemp("shelf")
    write_checkpoint(folder / "grok-1", SPEC, seed=5)
    shutil.copy(tokenizer_model, folder / "grok-1" / "tokenizer.model")
    weightcast.convert(folder / "grok-1", folder / "model-BF16.gguf")
    for seed, name in enumerate(("calibration.txt", "test.txt")):
        words = np.random.default_rng(seed).choice(["bale", "dones", "fimur", "kat"], 500)
        (folder / name).write_text(" ".join(words))
    weightcast.split(folder / "model-BF16.gguf", folder / "model-BF16.gguf", max_tensors=10)
    write_gguf(folder / "imatrix.gguf", _importance(folder / "model-BF16.gguf"))
    shapes = {t.name: t.shape for t in weightcast.open(folder / "model-BF16.gguf").values()}
    costs = sensitivities.costs_of(shapes, probes=True)
    sensitivities.write(folder / "costs.json", shapes, costs)
    hessians.write(folder / "hessians.safetensors", {"blk.0.attn_q.weight": hessians.drawn(256)})
    weightcast.convert(
        folder / "grok-1", folder / "grok-1-Q4_K_M.gguf", folder / "grok-1-int4-g128"
    )
    for name, report in (("Q4_K_M", "q4.json"), ("Q6_K", "q6.json")):
        output = folder / f"model-{name}.gguf"
        weightcast.convert(folder / "model-BF16.gguf", output, report=folder / report)
    (folder / "model-Q6_K.gguf").unlink()
    write_peft(folder / "lora", {f"model.layers.0.self_attn.{n}_proj": (256, 256) for n in "qo"})
    weightcast.convert(folder / "lora", folder / "other-F16.gguf", base=folder / "model-BF16.gguf")
    (folder / "other-F16.gguf").rename(folder / "other.gguf")
    shutil.copy(folder / "q4.json", folder / "errors.json")
    (folder / "examples").symlink_to(ROOT / "examples")
    (folder / "out").mkdir()
    return folder


def _importance(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    from gguf import GGUFReader

    matrices = {t.name: t.shape.tolist() for t in GGUFReader(path).tensors if len(t.shape) > 1}
    return {
        name: sample(shape[2] if len(shape) > 2 else 1, shape[0], seed)
        for seed, (name, shape) in enumerate(matrices.items())
    }


@pytest.fixture
def folder(shelf: Path, tmp_path: Path) -> Path:
    """A folder of one's own with links to what is on the shelf; files are replaced, not changed."""
    shutil.copytree(shelf, tmp_path, copy_function=os.link, symlinks=True, dirs_exist_ok=True)
    return tmp_path


def has_checks(page: Path) -> bool:
    kinds = (*SHELL, *DATA, "python", "c")
    return any(f.language in kinds and f.not_run is None for f in fences(page.read_text()))


@pytest.mark.parametrize(
    "page", filter(has_checks, PAGES), ids=lambda page: str(page.relative_to(ROOT))
)
def test_a_page(page: Path, folder: Path) -> None:
    run = [fence for fence in fences(page.read_text()) if fence.not_run is None]
    for fence in run:
        check = _CHECKS.get(fence.language)
        if check is not None:
            check(fence, folder, f"{page.relative_to(ROOT)}:{fence.line}")
    python = [fence for fence in run if fence.language == "python"]
    if python:
        _run_python(python, folder, page)


def _environment() -> dict[str, str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    fixed = {"NO_COLOR": "1", "COLUMNS": "100", "GITHUB_STEP_SUMMARY": "summary.md"}
    return {**os.environ, **fixed, "PATH": path}


def _run(command: list[str], folder: Path, code: int, place: str) -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        env=_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    assert done.returncode == code, f"{place}\n{done.stdout}"
    return done.stdout


def _run_script(fence: Fence, folder: Path, place: str) -> None:
    _run(["bash", "-euo", "pipefail", "-c", fence.text], folder, fence.exit_code, place)


def _run_console(fence: Fence, folder: Path, place: str) -> None:
    asked = list(commands(fence.text))
    for number, command in enumerate(asked):
        code = fence.exit_code if number == len(asked) - 1 else 0
        said = _run(["bash", "-euo", "pipefail", "-c", command.text], folder, code, place)
        if command.output:
            assert is_output(command.output, said), f"{place}: {command.text}\n{said}"


def _run_python(blocks: list[Fence], folder: Path, page: Path) -> None:
    """Run all Python of a page as one program, whose lines have the numbers of the page's."""
    program = ""
    for fence in blocks:
        program += "\n" * (fence.line - program.count("\n")) + fence.text
    script = folder / f"{page.stem}.md.py"
    script.write_text(program)
    _run([sys.executable, "-W", "error", str(script)], folder, 0, str(page.relative_to(ROOT)))


def _compile(fence: Fence, folder: Path, place: str) -> None:
    source = folder / "block.c"
    source.write_text(fence.text)
    strict = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-Wno-unused", "-fsyntax-only")
    _run(["cc", *strict, *config.cflags(), str(source)], folder, 0, place)


def _read_toml(fence: Fence, folder: Path, place: str) -> None:
    values = tomllib.loads(fence.text)
    if "base" in values or "rule" in values:
        recipe = folder / "recipe.toml"
        recipe.write_text(fence.text)
        read_recipe_file(recipe)


def _run_steps(fence: Fence, folder: Path, place: str) -> None:
    """Run the steps of a job, without what they install."""
    for step in yaml.safe_load(fence.text):
        kept = [line for line in step["run"].splitlines() if not line.startswith("pip install")]
        _run(["bash", "-euo", "pipefail", "-c", "\n".join(kept)], folder, 0, place)


_CHECKS = {
    "sh": _run_script,
    "bash": _run_script,
    "console": _run_console,
    "c": _compile,
    "toml": _read_toml,
    "json": lambda fence, *_: json.loads(fence.text),
    "yaml": _run_steps,
}


PAGE = """
Text.

<!-- not run: needs a GPU -->
```sh
weightcast convert --device cuda
```

1. In a list:

   <!-- exits with 3 -->
   ```console
   $ false \\
     --twice
   error: 12 tensors ...
   $ true
   ```
"""


def test_fences_and_their_comments() -> None:
    first, second = fences(PAGE)
    assert (first.language, first.line, first.not_run) == ("sh", 5, "needs a GPU")
    assert (second.language, second.exit_code, second.not_run) == ("console", 3, None)
    asked = list(commands(second.text))
    assert [c.text for c in asked] == ["false \\\n  --twice", "true"]
    assert asked[0].output == ("error: 12 tensors ...",)


def test_output_with_gaps() -> None:
    assert is_output(("a", "..."), "a\nb\nc\n")
    assert is_output(("size 3... bytes", "end"), "size 3,500 bytes\nend")
    assert not is_output(("a", "c"), "a\nb\nc")
    assert not is_output(("a.b",), "axb")


_INDENTED = re.compile(r"(?m)^ {4,}(?:\$ )?(?:weightcast|python|pip|make|hf|cc|\.venv/)\b.*$")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_stand_in_fences(page: Path) -> None:
    assert _INDENTED.findall(blanked(page.read_text())) == []
