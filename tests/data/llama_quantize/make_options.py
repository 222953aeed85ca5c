"""Make options.json: what `llama-quantize --dry-run` decides with options of many kinds.

    python make_options.py /path/to/llama-quantize > options.json

Combinations are drawn from a fixed seed; what the program cannot take at all is left out.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from pathlib import Path

from make_tables import dense, dry_run, latent, mixture, model, write_model

from weightcast.quant.types import TYPES

_LOOPS = model("nanbeige", 12, dense(256, 512, 8, 2), 8, 2)
_LOOPS["metadata"] |= {"num_loops": 3, "nextn_predict_layers": 1}
MODELS = {
    "llama-16": model("llama", 16, dense(256, 512, 8, 2), 8, 2),
    "llama-9-tied": model("llama", 9, dense(256, 512, 8, 2), 8, 2, tied=True),
    "llama-rows-of-288": model("llama", 8, dense(288, 640, 9, 3), 9, 3),
    "llama-rows-of-100": model("llama", 4, dense(100, 160, 5, 5), 5, 5, tied=True),
    "llama-embed-70b": model("llama-embed", 80, dense(256, 256, 8, 2), 8, 2),
    "qwen2-80-and-1": model("qwen2", 81, dense(256, 256, 8, 8), 8, 8),
    "nanbeige-12-times-3": _LOOPS,
    "mixtral-10": model("llama", 10, mixture(256, 512, 8, 2, 8), 8, 2, experts=8),
    "latent-6": model("llama", 6, latent(256, 512, 4), 8, 8, experts=4),
}
MODELS["qwen2-80-and-1"]["metadata"]["nextn_predict_layers"] = 1
MODELS["llama-9-tied"]["outside"]["per_layer_token_embd"] = (512, 256)

_TYPES = ("q8_0", "q6_K", "q5_K", "q4_K", "q3_K", "q2_K", "iq4_nl", "iq4_xs", "q4_0", "q5_1")
_FLOATS = ("f16", "bf16", "f32")
_RECIPES = ("Q4_K_M", "Q5_K_M", "Q3_K_L", "Q2_K", "IQ4_XS", "IQ3_M", "Q8_0", "MXFP4_MOE", "F16")
_PATTERNS = ("attn_v", "ATTN_Q", r"blk\.[02]\.", "ffn_.*exps", "token_embd", "output", "absent")
_COUNT = 28


def arguments(chance: random.Random, architecture: str, n_layer: int, n_in: int) -> list[str]:
    """Draw some options; a type of an end must fit its rows, or the program would be aborted."""
    found = []
    kinds = (*_TYPES, *_FLOATS)
    fitting = [kind for kind in kinds if TYPES[kind.upper()].fits(n_in)]
    if chance.random() < 0.25:
        found += ["--pure"]
    if chance.random() < 0.4:
        found += ["--output-tensor-type", chance.choice(fitting)]
    elif chance.random() < 0.3:
        found += ["--leave-output-tensor"]
    if chance.random() < 0.4:
        found += ["--token-embedding-type", chance.choice(fitting)]
    for _ in range(chance.choice((0, 0, 1, 2))):
        found += ["--tensor-type", f"{chance.choice(_PATTERNS)}={chance.choice(kinds)}"]
    if chance.random() < 0.3:
        value = chance.choice(("int:2", "float:2"))
        found += ["--override-kv", f"{architecture}.attention.head_count_kv={value}"]
    if chance.random() < 0.35:
        layers = chance.sample(range(n_layer), chance.choice((1, 2)))
        found += ["--prune-layers", ",".join(map(str, layers))]
    return found


def main(program: str) -> None:
    blocks = []
    for name, described in MODELS.items():
        chance, lines = random.Random(name), []
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.gguf"
            write_model(path, described)
            for _ in range(_COUNT):
                kind = chance.choice(_RECIPES)
                metadata = described["metadata"]
                n_layer, n_in = metadata["block_count"], metadata["embedding_length"]
                given = arguments(chance, described["architecture"], n_layer, n_in)
                # Rules do nothing to plain floats there, and here they do.
                if kind == "F16" and "--tensor-type" in given:
                    continue
                try:
                    run = dry_run(program, path, kind, given)
                except ValueError:  # it was aborted
                    continue
                if "_refused" not in run:
                    lines.append(json.dumps({"type": kind, "arguments": given, **run}))
        listed = ",\n  ".join(lines)
        blocks.append(
            f'{json.dumps(name)}: {{\n "model": {json.dumps(described)},\n "runs": [\n  {listed}]}}'
        )
    print("{\n" + ",\n".join(blocks) + "\n}")


if __name__ == "__main__":
    main(sys.argv[1])
