#!/usr/bin/env -S .venv/bin/python
"""Train the Grok-1 of `make demo`: six million parameters, eight experts, in Jane Austen's words.

    apt-get download r-cran-janeaustenr          # Debian 12, version 1.0.0-1
    dpkg-deb --extract r-cran-janeaustenr_*.deb austen
    examples/train_tiny_grok.py austen/usr/lib/R/site-library/janeaustenr/data/Rdata.rdb \\
        examples/tiny-grok

The package holds Austen's six novels, printed from 1811 to 1818; README.md in examples/tiny-grok
tells its licence. The last chapter of Persuasion is held out, to measure perplexity on.

Written are what xAI released of Grok-1: shards of a JAX checkpoint (pickles with int8 codes and
bfloat16 scales, a float32 embedding) and a SentencePiece tokenizer, with the hyperparameters in
spec.json. Seeds are fixed: the tokenizer is the same everywhere, the weights are on one machine.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
import struct
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import sentencepiece
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, gelu, softmax

from weightcast.converters.families.grok1.synthetic import shard_layouts, tiny_spec

SEED = 1811
NOVELS = 6
TEXT_SHA256 = "8fb5198960d0da724b1562f96e4221e5c1b41ff455000280b02c55980c3d8f21"
HELD_OUT = (3, "Chapter 24")  # Persuasion; novels are in alphabetical order
EDITORS_NOTE = "A NOTE ON THE TEXT"  # not Austen's: the last page of Northanger Abbey
PIECES = 2048
# Widths in multiples of 256, the super-block of Q4_K and Q2_K; otherwise as the release.
SPEC = tiny_spec(
    vocab_size=PIECES, context_length=512, key_size=32, num_q_heads=8, num_kv_heads=4,
    num_layers=3, widening_factor=1.5, attn_output_multiplier=32**-0.5, rms_norm_eps=1e-5,
    rope_base=10000.0, attn_logit_cap=30.0,
)  # fmt: skip
BATCH, WINDOW = 8, 256
PEAK_RATE, WARM_UP, FALL, WEIGHT_DECAY = 3e-3, 100, 0.3, 0.1
BALANCE = 0.01  # weight of the loss that keeps all experts in use


# --- text ---------------------------------------------------------------------------------------


def read_novels(path: Path) -> list[list[str]]:
    """Read the six character vectors of janeaustenr's database, and exit for another file."""
    raw = path.read_bytes()
    try:
        novels = list(character_vectors(raw))
    except (ValueError, struct.error, zlib.error) as problem:
        sys.exit(f"error: {path}: not a database of R ({problem}); take Rdata.rdb of janeaustenr")
    if len(novels) != NOVELS:
        sys.exit(
            f"error: {path}: holds {len(novels)} of the {NOVELS} novels; take Rdata.rdb of "
            "janeaustenr 1.0.0"
        )
    if hashlib.sha256(raw).hexdigest() != TEXT_SHA256:
        print(f"note: {path}: not the text that tiny-grok was trained on", file=sys.stderr)
    return novels


def character_vectors(raw: bytes) -> Iterator[list[str]]:
    """Take apart an R database: zlib streams behind four bytes each."""
    while raw:
        stream = zlib.decompressobj()
        data, raw = stream.decompress(raw[4:]), stream.unused_data
        at = data.index(b"\0\0\0\x10") + 4  # STRSXP, then how many strings
        (count,) = struct.unpack_from(">i", data, at)
        at, lines = at + 4, []
        for _ in range(count):
            _, length = struct.unpack_from(">ii", data, at)
            lines.append(data[at + 8 : at + 8 + length].decode())
            at += 8 + length
        yield lines


def chapters(lines: list[str]) -> Iterator[tuple[str, str]]:
    """Split a novel into (heading, text), a paragraph a line; what precedes chapter 1 is left."""
    text = "\n".join(lines).partition(EDITORS_NOTE)[0].replace("_", "")
    parts = re.split(r"(?im)^(chapter [ivxlc\d]+)\.?$", text)
    for heading, body in zip(parts[1::2], parts[2::2], strict=True):
        paragraphs = (" ".join(p.split()) for p in re.split(r"\n\s*\n", body))
        yield heading, "".join(p + "\n" for p in paragraphs if not is_title(p))


def is_title(paragraph: str) -> bool:
    return not paragraph or bool(re.fullmatch(r"(?i)volume [iv]+|finis|the end", paragraph))


# --- tokenizer ----------------------------------------------------------------------------------


def train_tokenizer(text: str) -> bytes:
    """Train a SentencePiece model with the settings of the release, bar the number of pieces."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text.splitlines()), model_writer=model, model_type="bpe",
        vocab_size=PIECES, byte_fallback=True, split_digits=True, num_threads=1,
        max_sentence_length=1 << 16, max_sentencepiece_length=16, character_coverage=0.9995,
        normalization_rule_name="identity", remove_extra_whitespaces=False,
        user_defined_symbols=["\n"], pad_id=0, bos_id=1, eos_id=2, unk_id=3,
        pad_piece="[PAD]", bos_piece="[BOS]", eos_piece="[EOS]", unk_piece="[UNK]",
        minloglevel=2,
    )  # fmt: skip
    return model.getvalue()


# --- model: weightcast.converters.families.grok1.forward in torch --------------------------------


def initial_weights() -> dict[str, Tensor]:
    """Draw all tensors by their GGUF names, [out, in]: normal, each output of unit variance."""
    generator = torch.Generator().manual_seed(SEED)
    emb, experts, layers = (int(SPEC[n]) for n in ("emb_size", "num_experts", "num_layers"))
    q, kv = (int(SPEC[n] * SPEC["key_size"]) for n in ("num_q_heads", "num_kv_heads"))
    ffn = int(SPEC["widening_factor"] * emb) * 2 // 3
    shapes: dict[str, tuple[int, ...]] = {
        "attn_q": (q, emb), "attn_k": (kv, emb), "attn_v": (kv, emb), "attn_output": (emb, q),
        "ffn_gate_inp": (experts, emb), "ffn_gate_exps": (experts, ffn, emb),
        "ffn_up_exps": (experts, ffn, emb), "ffn_down_exps": (experts, emb, ffn),
        "attn_norm": (emb,), "attn_output_norm": (emb,),
        "ffn_norm": (emb,), "post_ffw_norm": (emb,),
    }  # fmt: skip
    names = {f"blk.{n}.{name}.weight": s for n in range(layers) for name, s in shapes.items()}
    names |= {"token_embd.weight": (PIECES, emb), "output_norm.weight": (emb,)}
    return {
        name: (torch.ones(shape) if len(shape) == 1
               else torch.randn(shape, generator=generator) * shape[-1] ** -0.5).requires_grad_()
        for name, shape in names.items()
    }  # fmt: skip


def norm(x: Tensor, scale: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + SPEC["rms_norm_eps"]) * scale


def rotate(x: Tensor) -> Tensor:
    """Rotary positions on [batch, heads, positions, key]: component i turns with i + key / 2."""
    half = x.shape[-1] // 2
    frequency = SPEC["rope_base"] ** (-torch.arange(half, dtype=torch.float64) / half)
    angle = (torch.arange(x.shape[-2])[:, None] * frequency).float()
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)


def attention(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    def heads(projection: str) -> Tensor:
        values = x @ w[f"{name}.{projection}.weight"].T
        return values.unflatten(-1, (-1, int(SPEC["key_size"]))).transpose(1, 2)

    q, k, v = rotate(heads("attn_q")), rotate(heads("attn_k")), heads("attn_v")
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    cap = SPEC["attn_logit_cap"]
    scores = cap * torch.tanh(q @ k.transpose(-1, -2) * (SPEC["attn_output_multiplier"] / cap))
    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    mixed = softmax(scores.masked_fill(future, -1e30), -1) @ v
    return mixed.transpose(1, 2).flatten(2) @ w[f"{name}.attn_output.weight"].T


def experts(w: dict[str, Tensor], name: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """Run the two likeliest experts of each row; return the loss of uneven use beside."""
    p = softmax(x @ w[f"{name}.ffn_gate_inp.weight"].T, -1)
    chosen = p.topk(int(SPEC["num_selected_experts"]), -1).indices
    gate, up, down = (w[f"{name}.ffn_{part}_exps.weight"] for part in ("gate", "up", "down"))
    y, used = torch.zeros_like(x), []
    for expert in range(p.shape[-1]):
        rows = (chosen == expert).any(-1).nonzero().squeeze(-1)
        used.append(len(rows) / len(x))
        part = x[rows]
        part = gelu(part @ gate[expert].T, approximate="tanh") * (part @ up[expert].T)
        # Probabilities are those over all experts, not renormalized over the chosen ones.
        y.index_add_(0, rows, ((part @ down[expert].T) * p[rows, expert, None]).float())
    return y, p.shape[-1] * (torch.tensor(used) * p.mean(0)).sum()


def forward(w: dict[str, Tensor], tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Compute logits [batch, positions, vocab] and the balance loss."""
    h = w["token_embd.weight"][tokens] * SPEC["embedding_multiplier_scale"]
    uneven = torch.zeros(())
    for layer in range(int(SPEC["num_layers"])):
        name = f"blk.{layer}"
        a = attention(w, name, norm(h, w[f"{name}.attn_norm.weight"]))
        h = h + norm(a, w[f"{name}.attn_output_norm.weight"])
        y, loss = experts(w, name, norm(h, w[f"{name}.ffn_norm.weight"]).flatten(0, 1))
        h = h + norm(y.view_as(h), w[f"{name}.post_ffw_norm.weight"])
        uneven = uneven + loss
    h = norm(h, w["output_norm.weight"])
    return h @ w["token_embd.weight"].T * SPEC["output_multiplier_scale"], uneven


# --- training -----------------------------------------------------------------------------------


def train(tokens: list[int], steps: int) -> dict[str, Tensor]:
    """Train on random windows, with no [BOS] as the release; AdamW, the rate falls at the end."""
    data, w = torch.tensor(tokens), initial_weights()
    generator = torch.Generator().manual_seed(SEED)
    matrices = [t for t in w.values() if t.dim() > 1]
    groups = [
        {"params": matrices, "weight_decay": WEIGHT_DECAY},
        {"params": [t for t in w.values() if t.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)
    start = time.monotonic()
    for step in range(steps):
        rate = PEAK_RATE * min(1, (step + 1) / WARM_UP, (steps - step) / (FALL * steps))
        for group in optimizer.param_groups:
            group["lr"] = rate
        at = torch.randint(len(data) - WINDOW, (BATCH, 1), generator=generator)
        window = data[at + torch.arange(WINDOW + 1)]
        with torch.autocast("cpu", torch.bfloat16):  # the weights stay float32
            logits, uneven = forward(w, window[:, :-1])
        loss = cross_entropy(logits.float().flatten(0, 1), window[:, 1:].flatten())
        optimizer.zero_grad()
        (loss + BALANCE * uneven).backward()
        torch.nn.utils.clip_grad_norm_(w.values(), 1.0)
        optimizer.step()
        if step % 20 == 19 or step == steps - 1:
            seconds = time.monotonic() - start
            print(f"step {step + 1} of {steps}: loss {loss:.3f}, {seconds:.0f} s", flush=True)
    return w


# --- the format of the release ------------------------------------------------------------------


def write_shards(folder: Path, w: dict[str, Tensor]) -> None:
    """Write ckpt-0 and spec.json: matrices transposed to [in, out], int8 but for the router's."""
    (folder / "ckpt-0").mkdir(parents=True, exist_ok=True)
    (folder / "spec.json").write_text(json.dumps(SPEC, indent=1) + "\n")
    for number, (place, parts) in enumerate(shard_layouts(SPEC)):
        weight = w[place.name].detach().numpy()
        if weight.ndim > 1 and place.role.name != "token_embd":
            weight = weight.swapaxes(-1, -2)
        payloads = {"array": weight.astype(np.float32)}
        sizes = {part.array: part.nbytes for part in parts if not isinstance(part, bytes)}
        if "scales" in sizes:
            payloads = quantize(weight, sizes["scales"] // 2)
        content = b"".join(
            part if isinstance(part, bytes) else payloads[part.array].tobytes() for part in parts
        )
        (folder / "ckpt-0" / f"tensor{number:05}_000").write_bytes(content)


def quantize(weight: np.ndarray, n_scales: int) -> dict[str, np.ndarray]:
    """Round [..., in, out] to int8 with one scale a group of inputs and output, as the release."""
    *stack, n_in, n_out = weight.shape
    groups = n_scales // (n_out * int(np.prod(stack)))
    blocks = weight.reshape(*stack, groups, n_in // groups, n_out)
    scales = (np.abs(blocks).max(-2) / 127).astype(ml_dtypes.bfloat16)
    codes = np.rint(blocks / scales.astype(np.float32)[..., None, :]).clip(-127, 127)
    return {"weight": codes.astype(np.int8), "scales": scales}


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the Grok-1 of `make demo`.")
    parser.add_argument("text", type=Path, help="Rdata.rdb of Debian's r-cran-janeaustenr")
    parser.add_argument("folder", type=Path, help="where ckpt-0, tokenizer.model and the rest go")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    parts = [
        ((number, heading) == HELD_OUT, text)
        for number, lines in enumerate(read_novels(options.text))
        for heading, text in chapters(lines)
    ]
    text, held_out = (
        "".join(part for held, part in parts if held is is_held) for is_held in (False, True)
    )
    options.folder.mkdir(parents=True, exist_ok=True)
    (options.folder / "held-out.txt").write_text(held_out)
    (options.folder / "tokenizer.model").write_bytes(model := train_tokenizer(text))
    tokens = sentencepiece.SentencePieceProcessor(model_proto=model).encode(text)
    print(f"{len(text):,} characters in {len(tokens):,} tokens, {len(held_out):,} held out")
    write_shards(options.folder, train(tokens, options.steps))


if __name__ == "__main__":
    main()
