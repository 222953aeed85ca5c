"""Make digests.json: the bytes that llama-quantize makes of the golden models, as digests.

    PYTHONPATH=. python tests/data/llama_quantize/make_digests.py /path/to/llama-quantize \\
        > tests/data/llama_quantize/digests.json
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import gguf

import weightcast
from tests import imatrices
from tests.support import GOLDEN, NAMES
from weightcast.converters.recipes.recipe import RECIPES

# The rows of "deep" are too short for blocks of 256; with these recipes every fallback occurs.
FALLBACK_RECIPES = ("Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K", "IQ3_S", "IQ4_XS", "TQ2_0")
# The gguf package does not read Q2_0.
WHOLE_RECIPES = [
    name
    for name, recipe in RECIPES.items()
    if not recipe.pure and name not in ("F32", "F16", "BF16", "Q2_0")
]


def digests(path: Path) -> dict[str, str]:
    """SHA-256 of every tensor that is not F32, shortened, by name, after its type."""
    return {
        tensor.name: f"{tensor.tensor_type.name} "
        + hashlib.sha256(tensor.data.tobytes()).hexdigest()[:16]
        for tensor in gguf.GGUFReader(path).tensors
        if tensor.tensor_type.name != "F32"
    }


def runs(program: str, name: str, folder: Path) -> list[dict[str, Any]]:
    source, target = folder / f"{name}-F32.gguf", folder / "out.gguf"
    weightcast.convert(GOLDEN / name, source, no_tokenizer=True)
    shapes = {t.name: tuple(reversed(t.shape.tolist())) for t in gguf.GGUFReader(source).tensors}
    entries = imatrices.model_entries(shapes)
    imatrix = imatrices.write_gguf(folder / "imatrix.gguf", entries)
    found = []
    recipes = FALLBACK_RECIPES if name == "deep" else WHOLE_RECIPES
    for recipe in recipes:
        for options in ([], ["--imatrix", str(imatrix)]):
            command = [program, *options, str(source), str(target), recipe, "1"]
            run = subprocess.run(command, capture_output=True, text=True, check=False)
            if run.returncode == 0:
                entry = {"recipe": recipe, "imatrix": bool(options), "tensors": digests(target)}
            else:
                problem = run.stdout + run.stderr
                assert "importance matrix" in problem or "imatrix" in problem, problem
                entry = {"recipe": recipe, "imatrix": bool(options), "refused": True}
            found.append(entry)
    return found


def main(program: str) -> None:
    blocks = []
    for name in NAMES:
        with tempfile.TemporaryDirectory() as folder:
            lines = ",\n ".join(json.dumps(run) for run in runs(program, name, Path(folder)))
            blocks.append(f"{json.dumps(name)}: [\n {lines}]")
    print("{\n" + ",\n".join(blocks) + "\n}")


if __name__ == "__main__":
    main(sys.argv[1])
