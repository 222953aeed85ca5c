"""Files of sensitivities for tests, written by hand: costs that bits let one expect, and noise."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from weightcast.quant.types import TYPES

MEASURED = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "IQ4_XS")
Shapes = Mapping[str, tuple[int, ...]]


def fingerprint(shapes: Shapes) -> str:
    lines = [
        f"{name} {'x'.join(map(str, shape))}\n"
        for name, shape in sorted(shapes.items())
        if len(shape) > 1
    ]
    return f"sha256:{hashlib.sha256(''.join(lines).encode()).hexdigest()}"


def costs_of(
    shapes: Shapes, types: Sequence[str] = MEASURED, *, seed: int = 1, probes: bool = False
) -> dict[str, dict[str, Any]]:
    """Make up what the matrices cost that are quantized."""
    noise = random.Random(seed)
    found: dict[str, dict[str, Any]] = {}
    for name, shape in shapes.items():
        if len(shape) < 2 or "norm" in name or "ffn_gate_inp" in name:
            continue
        scale = 10 ** noise.uniform(-1, 1)
        local = {}
        for kind in types:
            if TYPES[kind].fits(shape[-1]):
                bits = 8 * TYPES[kind].block_bytes / TYPES[kind].block_elements
                local[kind] = scale * 4**-bits * noise.uniform(0.8, 1.25)
        found[name] = {"shape": list(shape), "local": local}
        if probes:
            found[name]["probe"] = {types[0]: local[types[0]] / 10}
    return found


def write(path: Path, shapes: Shapes, tensors: Mapping[str, Any], **measured: Any) -> Path:
    """Write costs of a model's matrices, `shapes` by all names, as a file."""
    about = {"text": "text.txt", "tokens": 4096, "context": 512, "search": "ggml"}
    values = {
        "format": "weightcast.sensitivity",
        "version": 1,
        "source": {"name": "m", "parameters": 12345, "tensors": fingerprint(shapes)},
        "measured": {**about, "importance": False, **measured},
        "tensors": tensors,
    }
    path.write_text(json.dumps(values))
    return path
