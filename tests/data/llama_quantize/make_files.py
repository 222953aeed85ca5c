"""Make files.json: whole files that llama-quantize and llama-gguf-split write, as digests.

    PYTHONPATH=. python tests/data/llama_quantize/make_files.py /path/to/the/programs \\
        > tests/data/llama_quantize/files.json
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests import imatrices, llama_models

RECIPES = (
    *("F16", "BF16", "Q8_0", "Q6_K", "Q4_K_M", "Q3_K_L", "Q2_K", "IQ4_XS", "Q4_0", "MXFP4_MOE"),
)
WEIGHED_RECIPES = (*RECIPES[:8], "IQ3_M", "IQ2_XXS")
# Limits of parts, of models with few tensors, many, and one larger than a part; all are merged.
SPLITS = (
    ("llama", ()),
    ("llama", ("--split-max-tensors", "40", "--no-tensor-first-split")),
    ("qwen3moe", ("--split-max-size", "1M")),
    ("mamba2", ("--split-max-size", "2M", "--no-tensor-first-split")),
    ("projector", ("--split-max-tensors", "7")),
    ("odd_rows", ("--split-max-size", "1G")),
)
# What changes metadata, and with it their order: recipe, and options.
CHANGES = tuple(
    (recipe, ("--prune-layers", "1,7", *imatrix, *overrides))
    for recipe, imatrix in (("COPY", ()), ("Q8_0", ()), ("Q4_K_M", ("--imatrix", "imatrix.gguf")))
    for overrides in ((), ("--override-kv", "general.name=str:x", "--override-kv", "mine=int:5"))
)
IMATRIX = "imatrix.gguf"


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def run(folder: Path, program: Path, *arguments: str) -> bool:
    """Run a program in a folder: what it writes says how files were named. False if it refuses."""
    command = [str(program), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode == 0


def quantized(programs: Path, folder: Path, name: str) -> Iterator[tuple[str, str | None]]:
    """Digests by recipe, with " imatrix" behind it if there is one; None of what is refused."""
    llama_models.write_model(folder / "model.gguf", name)
    imatrices.write_gguf(folder / IMATRIX, llama_models.importance(name))
    for recipes, options in ((RECIPES, ()), (WEIGHED_RECIPES, ("--imatrix", IMATRIX))):
        for recipe in recipes:
            arguments = ("--allow-requantize", *options, "model.gguf", "out.gguf", recipe, "1")
            done = run(folder, programs / "llama-quantize", *arguments)
            yield " ".join((recipe, *options[1:])), digest(folder / "out.gguf") if done else None


def split(
    programs: Path, folder: Path, name: str, options: tuple[str, ...]
) -> dict[str, list[str]]:
    """Digests of the parts of a model, of all of them merged, copied, and quantized in parts."""
    llama_models.write_model(folder / "model.gguf", name)
    tool, quantize = programs / "llama-gguf-split", programs / "llama-quantize"
    assert run(folder, tool, "--split", *options, "model.gguf", "part")
    parts = sorted(folder.glob("part-*.gguf"))
    assert run(folder, tool, "--merge", parts[0].name, "merged.gguf")
    assert run(folder, quantize, parts[0].name, "copy.gguf", "COPY", "1")
    assert run(folder, quantize, "--keep-split", parts[0].name, "kept", "Q4_K_M", "1")
    return {
        "parts": [digest(path) for path in parts],
        "merged": [digest(folder / "merged.gguf")],
        "COPY": [digest(folder / "copy.gguf")],
        "keep-split": [digest(path) for path in sorted(folder.glob("kept-*.gguf"))],
    }


def changed(programs: Path, folder: Path, recipe: str, options: tuple[str, ...]) -> str:
    """Digest of the Llama with other metadata, and without some layers."""
    llama_models.write_model(folder / "model.gguf", "llama")
    imatrices.write_gguf(folder / IMATRIX, llama_models.importance("llama"))
    arguments = (*options, "model.gguf", "out.gguf", recipe, "1")
    assert run(folder, programs / "llama-quantize", *arguments)
    return digest(folder / "out.gguf")


def main(programs: Path) -> None:
    lines = []
    for name in llama_models.MODELS:
        with tempfile.TemporaryDirectory() as folder:
            found = dict(quantized(programs, Path(folder), name))
        lines.append(f"{json.dumps(name)}: {json.dumps(found)}")
    splits = []
    for name, options in SPLITS:
        with tempfile.TemporaryDirectory() as folder:
            made = split(programs, Path(folder), name, options)
        splits.append(json.dumps({"model": name, "options": options, **made}))
    changes = []
    for recipe, options in CHANGES:
        with tempfile.TemporaryDirectory() as folder:
            made_of = changed(programs, Path(folder), recipe, options)
        changes.append(json.dumps({"recipe": recipe, "options": options, "file": made_of}))
    models, cut = ",\n".join(lines), ",\n".join(splits)
    print(f'{{"models": {{\n{models}}},\n"splits": [\n{cut}],')
    print('"changes": [\n' + ",\n".join(changes) + "]}")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
