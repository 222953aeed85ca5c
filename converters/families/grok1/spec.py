"""Grok-1's hyperparameters: what shapes tell, what must be told, and where the two disagree.

Source: the published configuration in run.py of xai-org/grok-1.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from weightcast.errors import FormatError, LayoutError
from weightcast.formats.reading import read_json_object
from weightcast.text import shown

Number = int | float
# The release. Keys as in the reference's TransformerConfig and LanguageModelConfig.
GROK_1: Final[dict[str, Number]] = {
    "vocab_size": 131072,
    "context_length": 8192,
    "emb_size": 6144,
    "key_size": 128,
    "num_q_heads": 48,
    "num_kv_heads": 8,
    "num_layers": 64,
    "widening_factor": 8,
    "num_experts": 8,
    "num_selected_experts": 2,
    "embedding_multiplier_scale": 78.38367176906169,
    "output_multiplier_scale": 0.5773502691896257,
    "attn_output_multiplier": 0.08838834764831845,
}
# Fixed in the reference code; a specification may still name them.
_DEFAULTS: Final[dict[str, Number]] = {
    "num_selected_experts": 2,
    "rms_norm_eps": 1e-5,
    "rope_base": 10000.0,
    "attn_logit_cap": 30.0,
}
# What no shape tells.
_REQUIRED: Final = (
    "context_length",
    "key_size",
    "embedding_multiplier_scale",
    "output_multiplier_scale",
    "attn_output_multiplier",
)
_FLOATS: Final = {
    "widening_factor",
    "embedding_multiplier_scale",
    "output_multiplier_scale",
    "attn_output_multiplier",
    "rms_norm_eps",
    "rope_base",
    "attn_logit_cap",
}
_KEYS: Final = {*GROK_1, *_DEFAULTS, "ffn_size"}
_MAX_KEYS: Final = 1000


@dataclass(frozen=True, slots=True)
class Grok1Spec:
    """All that the forward pass needs to know beside the weights."""

    vocab_size: int
    context_length: int
    emb_size: int
    key_size: int
    num_q_heads: int
    num_kv_heads: int
    num_layers: int
    ffn_size: int
    num_experts: int
    num_selected_experts: int
    embedding_multiplier_scale: float
    output_multiplier_scale: float
    attn_output_multiplier: float
    rms_norm_eps: float
    rope_base: float
    attn_logit_cap: float

    def describe(self) -> dict[str, Number]:
        return dataclasses.asdict(self)


def read_spec(path: Path) -> dict[str, Number]:
    """Read a specification file (JSON, keys as in GROK_1). Raises FormatError.

    Keys that are not hyperparameters are ignored, unless they look like a misspelt one.
    """
    raw = read_json_object(path)
    if len(raw) > _MAX_KEYS:  # each unknown one is compared with all that there are
        raise FormatError(path, None, f"{len(raw):,} keys; a specification has some {len(_KEYS)}")
    unused = _KEYS - raw.keys()
    given: dict[str, Number] = {}
    for key, value in raw.items():
        if key in _KEYS:
            given[key] = checked(path, key, key, value)
            continue
        close = difflib.get_close_matches(key[:64], unused, 1, cutoff=0.85)
        if close:
            raise FormatError(path, None, f"unknown key {shown(key)}; did you mean {close[0]!r}?")
    missing = [key for key in _REQUIRED if key not in given]
    if missing:
        raise FormatError(path, None, f"missing keys: {', '.join(missing)}")
    return given


def checked(path: Path, name: str, key: str, value: object) -> Number:
    """Return hyperparameter `name`, which a file gives under `key`. Raises FormatError.

    Sizes are whole numbers that fit 31 bits, as runtimes keep them; the others fit float32.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise FormatError(path, None, f"{key} is missing or not a number: {shown(value)}")
    if name in _FLOATS:
        if not 1e-30 < value < 1e30:
            raise FormatError(path, None, f"{key} must be a positive number, not {shown(value)}")
    elif isinstance(value, float) or not 0 < value < 2**31:
        raise FormatError(path, None, f"{key} must be a positive whole number, not {shown(value)}")
    return value


def default_key_size(given: Mapping[str, Number]) -> int:
    """What runtimes take for key_size if a file does not say: emb_size / num_q_heads."""
    return max(1, int(given["emb_size"]) // int(given["num_q_heads"]))


def ffn_size(emb_size: int, widening_factor: float) -> int:
    """Width of an expert: two thirds of the widened embedding, rounded up to 8."""
    size = int(widening_factor * emb_size) * 2 // 3
    return -(-size // 8) * 8


class Dimensions:
    """Sizes by name, each with the place it is known from; the first contradiction is refused."""

    def __init__(self, given: Mapping[str, Number], origin: str) -> None:
        self._sizes: dict[str, tuple[int, str]] = {}
        self._origin = origin
        sizes: dict[str, Number | None] = {
            "vocab_size": given.get("vocab_size"),
            "emb_size": given.get("emb_size"),
            "num_layers": given.get("num_layers"),
            "num_experts": given.get("num_experts"),
            "ffn_size": given.get("ffn_size"),
            "key_size": given.get("key_size"),
            "q_size": _product(given, "num_q_heads", "key_size"),
            "kv_size": _product(given, "num_kv_heads", "key_size"),
        }
        for name, size in sizes.items():
            if size is not None:
                self._sizes[name] = (int(size), origin)
        if "widening_factor" in given and "emb_size" in given:
            size = ffn_size(int(given["emb_size"]), float(given["widening_factor"]))
            self.check("ffn_size", size, origin)

    def check(self, name: str, size: int, where: str) -> None:
        """Take note of a size, or compare it. Raises LayoutError that names both places."""
        known = self._sizes.setdefault(name, (size, where))
        if known[0] != size:
            hint = ""
            if known[1] == self._origin:
                hint = "; if the model is another one, describe it with --spec FILE"
            raise LayoutError(f"{name} is {size} by {where}, but {known[0]} by {known[1]}{hint}")

    def __getitem__(self, name: str) -> int:
        return self._sizes[name][0]


def _product(given: Mapping[str, Number], a: str, b: str) -> Number | None:
    return given[a] * given[b] if a in given and b in given else None


def solve(dimensions: Dimensions, given: Mapping[str, Number]) -> Grok1Spec:
    """Put what was told and what shapes say together. Raises LayoutError if it makes no model."""
    key_size = int(given["key_size"])
    for name in ("q_size", "kv_size"):
        if dimensions[name] % key_size:
            raise LayoutError(f"{name} {dimensions[name]} is not a multiple of key_size {key_size}")
    heads, kv_heads = dimensions["q_size"] // key_size, dimensions["kv_size"] // key_size
    if heads % kv_heads:
        raise LayoutError(f"{heads} query heads cannot share {kv_heads} key/value heads evenly")
    if key_size % 2:
        raise LayoutError(f"key_size {key_size} is odd, but rotary positions need pairs")
    values = {**_DEFAULTS, **given}
    selected = int(values["num_selected_experts"])
    if selected > dimensions["num_experts"]:
        raise LayoutError(f"{selected} experts are selected of {dimensions['num_experts']}")
    return Grok1Spec(
        vocab_size=dimensions["vocab_size"],
        context_length=int(values["context_length"]),
        emb_size=dimensions["emb_size"],
        key_size=key_size,
        num_q_heads=heads,
        num_kv_heads=kv_heads,
        num_layers=dimensions["num_layers"],
        ffn_size=dimensions["ffn_size"],
        num_experts=dimensions["num_experts"],
        num_selected_experts=selected,
        embedding_multiplier_scale=float(values["embedding_multiplier_scale"]),
        output_multiplier_scale=float(values["output_multiplier_scale"]),
        attn_output_multiplier=float(values["attn_output_multiplier"]),
        rms_norm_eps=float(values["rms_norm_eps"]),
        rope_base=float(values["rope_base"]),
        attn_logit_cap=float(values["attn_logit_cap"]),
    )
