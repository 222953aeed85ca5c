"""Make models.json: what `llama-quantize --dry-run` decides for models of many kinds.

    python make_tables.py /path/to/llama-quantize > models.json

The models are files of the right size full of holes: a dry run reads headers alone.
"""

from __future__ import annotations

import itertools
import json
import re
import struct
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from weightcast.converters.recipes.recipe import RECIPES
from weightcast.formats.gguf.header import raw_float, raw_string, raw_uint
from weightcast.formats.gguf.layout import Entry, lay_out
from weightcast.quant.types import F32

Shape = tuple[int, ...]
Roles = dict[str, Shape]

NAMES = [*(name for name, recipe in RECIPES.items() if not recipe.pure), "Q3_K", "Q4_K", "Q5_K"]
# More arguments, for one model; llama-quantize turns patterns into lower case.
OVERRIDES = [
    ["--pure"],
    ["--tensor-type", "attn_v=q8_0"],
    ["--tensor-type", "blk.[0-3].attn_v=f16", "--tensor-type", "attn_(v|q)=q4_0"],
    ["--tensor-type", "token_embd=q4_k", "--tensor-type", "ffn_down=iq4_xs", "--pure"],
    ["--tensor-type", "attn=bf16"],
    ["--tensor-type", "blk.1.ffn_down=q3_k"],
]
OVERRIDDEN = "llama-5-tied"
_LINE = re.compile(r"\[ *\d+/ *\d+\] +(\S+) +- \[.*?\], type = +(\w+), size = .*?(?:\((\w+)\))?$")


def dense(emb: int, ffn: int, heads: int, kv_heads: int) -> Roles:
    """Matrices and norms of a layer of Llama."""
    kv = emb // heads * kv_heads
    return {
        "attn_norm": (emb,),
        "attn_q": (emb, emb),
        "attn_k": (kv, emb),
        "attn_v": (kv, emb),
        "attn_output": (emb, emb),
        "ffn_norm": (emb,),
        "ffn_gate": (ffn, emb),
        "ffn_up": (ffn, emb),
        "ffn_down": (emb, ffn),
    }


def mixture(emb: int, ffn: int, heads: int, kv_heads: int, experts: int) -> Roles:
    """The same with experts."""
    roles = dense(emb, ffn, heads, kv_heads)
    for name in ("ffn_gate", "ffn_up", "ffn_down"):
        roles[f"{name}_exps"] = (experts, *roles.pop(name))
    return {**roles, "ffn_gate_inp": (experts, emb)}


def latent(emb: int, ffn: int, experts: int) -> Roles:
    """A mixture with shared experts and matrices of attention stacked by heads."""
    roles = mixture(emb, ffn, 8, 8, experts)
    for name in ("attn_k", "attn_v"):
        roles[f"{name}_b"] = (8, *roles.pop(name))
    shared = {"ffn_gate_shexp": (ffn, emb), "ffn_up_shexp": (ffn, emb)}
    return {**roles, **shared, "attn_kv_b": (emb, emb), "ffn_down_shexp": (emb, ffn)}


def fused(emb: int, ffn: int) -> Roles:
    """A layer of Falcon."""
    return {
        "attn_norm": (emb,),
        "attn_norm.bias": (emb,),
        "attn_qkv": (3 * emb, emb),
        "attn_output": (emb, emb),
        "ffn_up": (ffn, emb),
        "ffn_down": (emb, ffn),
    }


def model(
    architecture: str,
    n_layer: int,
    roles: Roles,
    heads: int = 8,
    kv_heads: int = 8,
    *,
    tied: bool = False,
    experts: int = 0,
) -> dict[str, Any]:
    emb = roles["attn_norm"][0]
    outside = {"token_embd": (512, emb), "output_norm": (emb,)}
    if not tied:
        outside["output"] = (512, emb)
    metadata = {
        "block_count": n_layer,
        "context_length": 256,
        "embedding_length": emb,
        "feed_forward_length": 512,
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "expert_count": experts,
        "expert_used_count": min(experts, 2),
        "vocab_size": 512,
    }
    return {
        "architecture": architecture,
        "metadata": metadata,
        "outside": outside,
        "layer": roles,
    }


MODELS = {
    "llama-32": model("llama", 32, dense(256, 512, 8, 2), 8, 2),
    "llama-64": model("llama", 64, dense(256, 512, 8, 8), 8, 8),
    "llama-64-tied": model("llama", 64, dense(256, 512, 8, 2), 8, 2, tied=True),
    "llama-5-tied": model("llama", 5, dense(256, 512, 8, 8), 8, 8, tied=True),
    "llama-70b": model("llama", 80, dense(512, 768, 16, 2), 16, 2),
    "llama-70b-2-groups": model("llama", 80, dense(512, 768, 16, 8), 16, 8),
    "llama-rows-of-32": model("llama", 8, dense(320, 480, 10, 10), 10, 10),
    "llama-odd-rows": model("llama", 8, dense(256, 100, 8, 8), 8, 8),
    "llama-odd-embedding": model("llama", 8, dense(72, 256, 8, 8), 8, 8, tied=True),
    "mixtral-32": model("llama", 32, mixture(256, 512, 8, 2, 8), 8, 2, experts=8),
    "mixture-of-4": model("llama", 24, mixture(256, 512, 8, 4, 4), 8, 4, experts=4),
    "latent-16": model("llama", 16, latent(256, 512, 16), 8, 8, experts=16),
    "falcon-32": model("falcon", 32, fused(256, 512), 8, 1),
    "grok-5": model("grok", 5, mixture(256, 512, 8, 2, 8), 8, 2, tied=True, experts=8),
    "grok-32": model("grok", 32, mixture(256, 512, 6, 1, 8), 6, 1, tied=True, experts=8),
}


def tensors(described: Mapping[str, Any]) -> Iterator[tuple[str, Shape]]:
    """Names and shapes of a model's tensors."""

    def full(name: str) -> str:
        return name if name.endswith(".bias") else f"{name}.weight"

    for name, shape in described["outside"].items():
        yield full(name), tuple(shape)
    for layer in range(described["metadata"]["block_count"]):
        for name, shape in described["layer"].items():
            yield full(f"blk.{layer}.{name}"), tuple(shape)


def write_model(path: Path, described: Mapping[str, Any]) -> None:
    architecture = described["architecture"]
    metadata = {"general.architecture": raw_string(architecture)}
    for key, value in described["metadata"].items():
        metadata[f"{architecture}.{key}"] = raw_uint(value)
    for kind in ("layer_norm_rms_epsilon", "layer_norm_epsilon"):
        metadata[f"{architecture}.attention.{kind}"] = raw_float(1e-5)
    entries = [Entry(name, F32, shape) for name, shape in tensors(described)]
    (layout,) = lay_out(metadata, [entries])
    with path.open("wb") as file:
        file.write(layout.header)
        file.truncate(layout.size)


def write_importance(path: Path) -> None:
    """A legacy importance matrix of one entry: that there is one is all that counts here."""
    name = b"blk.0.attn_v.weight"
    path.write_bytes(struct.pack(f"<ii{len(name)}siif", 1, len(name), name, 1, 1, 1.0))


def ranges(numbers: Iterable[int]) -> str:
    """Write numbers as 0-3,5."""
    text = []
    for _, group in itertools.groupby(enumerate(sorted(numbers)), lambda pair: pair[1] - pair[0]):
        run = [number for _, number in group]
        text.append(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}")
    return ",".join(text)


def dry_run(program: str, path: Path, name: str, arguments: list[str]) -> dict[str, Any]:
    """Types by role and layers, and the size; or the reason of a refusal.

    Roles that stay F32 are left out.
    """
    command = [program, "--dry-run", *arguments, str(path), name, "1"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = (run.stdout + run.stderr).splitlines()
    failed = [line for line in lines if "failed to quantize:" in line]
    if failed:
        return {"_refused": failed[0].split("failed to quantize: ")[1]}
    table: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        match = _LINE.search(line)
        if match:
            layer = re.match(r"blk\.(\d+)\.(.*)", match[1])
            role, number = (layer[2], int(layer[1])) if layer else (match[1], -1)
            table[role][match[3] or match[2]].append(number)
    result: dict[str, Any] = {
        role: {kind: "-" if -1 in found else ranges(found) for kind, found in types.items()}
        for role, types in table.items()
        if set(types) != {"f32"}
    }
    (size,) = [line for line in lines if "quant size" in line]
    result["_size"] = re.findall(r"[\d.]+", size.split("=")[1])
    result["_requires_importance"] = any("will require an imatrix" in line for line in lines)
    return result


def runs(program: str, name: str, described: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """All dry runs of one model; those with an importance matrix where it makes a difference."""
    with tempfile.TemporaryDirectory() as folder:
        path, imatrix = Path(folder) / "model.gguf", Path(folder) / "imatrix.dat"
        write_model(path, described)
        write_importance(imatrix)
        for kind in NAMES:
            plain = dry_run(program, path, kind, [])
            yield {"type": kind, "arguments": [], **plain}
            informed = dry_run(program, path, kind, ["--imatrix", str(imatrix)])
            if informed != {**plain, "_requires_importance": False}:
                yield {"type": kind, "arguments": ["--imatrix"], **informed}
        if name == OVERRIDDEN:
            for arguments, kind in itertools.product(OVERRIDES, ("Q4_K_M", "Q5_K_M", "IQ3_XS")):
                found = dry_run(program, path, kind, arguments)
                yield {"type": kind, "arguments": arguments, **found}


def main(program: str) -> None:
    blocks = []
    for name, described in MODELS.items():
        lines = ",\n  ".join(json.dumps(run) for run in runs(program, name, described))
        blocks.append(
            f'{json.dumps(name)}: {{\n "model": {json.dumps(described)},\n "runs": [\n  {lines}]}}'
        )
    print("{\n" + ",\n".join(blocks) + "\n}")


if __name__ == "__main__":
    main(sys.argv[1])
