"""Error reports as a conversion writes them, with errors as in Grok-1-like weights."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

Json = dict[str, Any]

# bits per weight, SQNR in dB or None if nothing is lost
TYPES: dict[str, tuple[float, float | None]] = {
    "F32": (32.0, None),
    "BF16": (16.0, None),
    "Q8_0": (8.5, None),
    "Q6_K": (6.5625, 37.8),
    "Q5_K": (5.5, 28.6),
    "Q4_K": (4.5, 22.4),
    "Q3_K": (3.4375, 16.3),
    "Q2_K": (2.625, 10.9),
}
# base type, type of half of the layers' ffn_down and attn_v, type of the embedding
RECIPES: dict[str, tuple[str, str, str]] = {
    "Q8_0": ("Q8_0", "Q8_0", "Q8_0"),
    "Q6_K": ("Q6_K", "Q6_K", "Q6_K"),
    "Q5_K_M": ("Q5_K", "Q6_K", "Q6_K"),
    "Q4_K_M": ("Q4_K", "Q6_K", "Q6_K"),
    "Q3_K_M": ("Q3_K", "Q5_K", "Q6_K"),
    "Q2_K": ("Q2_K", "Q3_K", "Q6_K"),
}
# per layer: kind, [out, in] of Grok-1 and whether there is one for each expert
KINDS: tuple[tuple[str, tuple[int, ...], bool], ...] = (
    ("attn_norm", (6144,), False),
    ("attn_q", (6144, 6144), False),
    ("attn_k", (1024, 6144), False),
    ("attn_v", (1024, 6144), False),
    ("attn_output", (6144, 6144), False),
    ("attn_output_norm", (6144,), False),
    ("ffn_gate_inp", (8, 6144), False),
    ("ffn_gate_exps", (32768, 6144), True),
    ("ffn_up_exps", (32768, 6144), True),
    ("ffn_down_exps", (6144, 32768), True),
)


def metrics(
    weights: int, sqnr_db: float | None, power: float = 1e-4, *, weighed: bool = False
) -> Json:
    """Errors of weights with a mean square of `power`; None: nothing is lost."""
    source = weights * power
    if sqnr_db is None:
        error, relative, largest = 0.0, 0.0, 0.0
    else:
        relative = 10 ** (-sqnr_db / 20)
        error, largest = source * relative**2, math.sqrt(power) * relative * 5.5
    return {
        "weights": weights,
        "error_squares": error,
        "source_squares": source,
        "relative_rms": relative,
        "sqnr_db": sqnr_db,
        "cosine": 1 / math.sqrt(1 + relative**2),
        "mean_error": 0.0 if sqnr_db is None else largest / 4000,
        "largest_error": largest,
        "largest_at": None if sqnr_db is None else [17, 4],
        "share_exact": 1.0 if sqnr_db is None else 0.01,
        "share_zeroed": 0.0,
        "share_clipped": 0.0 if sqnr_db is None else 0.002,
        "weighted": None if not weighed else _weighted(source, relative * 0.83),
        "histogram": _histogram(-(-weights // 32), sqnr_db),
    }


def _weighted(source: float, relative: float) -> Json:
    return {
        "error_squares": source * relative**2,
        "source_squares": source,
        "relative_rms": relative,
        "sqnr_db": None if relative == 0 else -20 * math.log10(relative),
    }


def search_gain(gained_db: float, weighted_gained_db: float | None) -> Json:
    """A search that gains so much, by plain squares and by importance."""
    return {
        "ggml_error_squares": 1.0,
        "gained_db": gained_db,
        "ggml_weighted_error_squares": None if weighted_gained_db is None else 2.0,
        "weighted_gained_db": weighted_gained_db,
    }


def _histogram(runs: int, sqnr_db: float | None) -> list[int]:
    bins = [0] * 32
    if sqnr_db is None:
        bins[31] = runs
        return bins
    place = sqnr_db / 3.0103 + 1
    shares = [math.exp(-(((k + 0.5 - place) / 0.9) ** 2)) for k in range(31)]
    for k, share in enumerate(shares):
        bins[k] = int(runs * share / sum(shares))
    bins[round(place) % 31] += runs - sum(bins)
    return bins


def merged(parts: Sequence[Json]) -> Json:
    """Errors of several tensors together."""
    weights = sum(part["weights"] for part in parts)
    source = sum(part["source_squares"] for part in parts)
    error = sum(part["error_squares"] for part in parts)
    sqnr = None if error == 0 else -10 * math.log10(error / source)
    whole = metrics(weights, sqnr, source / weights, weighed=parts[0]["weighted"] is not None)
    whole["histogram"] = [sum(part["histogram"][k] for part in parts) for k in range(32)]
    whole["largest_error"] = max(part["largest_error"] for part in parts)
    whole["largest_at"] = None
    return whole


def tensor(
    name: str, kind: str, layer: int | None, type_name: str, shape: Sequence[int], *,
    weighed: bool = False,
) -> Json:  # fmt: skip
    """One tensor; of three dimensions, the first is that of the experts, which differ a little."""
    chance = random.Random(f"0 {name} {type_name}")
    bits, sqnr = TYPES[type_name]
    weights = math.prod(shape)
    if sqnr is not None:
        depth = (
            0 if layer is None else 1.4 * math.exp(-layer / 5) - 0.5 * math.exp((layer - 63) / 4)
        )
        sqnr += chance.gauss(0, 0.12) - depth - (0.8 if kind == "attn_k" else 0)
    experts: list[Json] = []
    if len(shape) == 3:
        for _ in range(shape[0]):
            own = None if sqnr is None else sqnr + chance.gauss(0, 0.35)
            experts.append(metrics(weights // shape[0], own, weighed=weighed))
    whole = merged(experts) if experts else metrics(weights, sqnr, weighed=weighed)
    whole["largest_at"] = None if sqnr is None else [0] * len(shape)
    rows = [
        {
            "expert": 3 if experts else None,
            "row": chance.randrange(shape[-2] if len(shape) > 1 else 1),
            "relative_rms": whole["relative_rms"] * (2.4 - k / 2),
        }
        for k in range(3)
    ]
    return {
        "name": name,
        "kind": kind,
        "layer": layer,
        "type": type_name,
        "shape": list(shape),
        "bytes": round(weights * bits / 8),
        "bits_per_weight": bits,
        "metrics": whole,
        "experts": experts,
        "worst_rows": [] if sqnr is None else rows,
    }


def output(path: str, type_name: str, tensors: list[Json], imatrix: str | None = None) -> Json:
    """An output of these tensors, summed up."""
    kinds: dict[str, list[Json]] = {}
    for each in tensors:
        kinds.setdefault(each["kind"], []).append(each)
    return {
        "path": path,
        "kind": "gguf",
        "type": type_name,
        "recipe": {"base": type_name, "pure": False, "rules": []},
        "imatrix": imatrix,
        "bytes": sum(each["bytes"] for each in tensors) + 32768,
        "tensor_bytes": sum(each["bytes"] for each in tensors),
        "bits_per_weight": _bits(tensors),
        "total": merged([each["metrics"] for each in tensors]),
        "kinds": [
            {
                "kind": kind,
                "bytes": sum(each["bytes"] for each in group),
                "bits_per_weight": _bits(group),
                "metrics": merged([each["metrics"] for each in group]),
            }
            for kind, group in kinds.items()
        ],
        "tensors": tensors,
    }


def _bits(tensors: Sequence[Json]) -> float:
    weights = sum(each["metrics"]["weights"] for each in tensors)
    return 8 * sum(each["bytes"] for each in tensors) / weights


def grok1_output(
    recipe: str, layers: int = 64, experts: int = 8, imatrix: str | None = None
) -> Json:
    """What a recipe of llama-quantize makes of Grok-1, or of one with fewer layers and experts."""
    base, more, embedding = RECIPES[recipe]
    weighed = imatrix is not None
    tensors = [tensor("token_embd.weight", "token_embd", None, embedding, (131072, 6144))]
    for layer in range(layers):
        for kind, shape, each_expert in KINDS:
            better = kind in ("ffn_down_exps", "attn_v") and (layer < layers // 8 or layer % 3 == 2)
            name = "F32" if kind.endswith(("norm", "_inp")) else more if better else base
            full = (experts, *shape) if each_expert else shape
            tensors.append(tensor(f"blk.{layer}.{kind}.weight", kind, layer, name, full))
    tensors.append(tensor("output_norm.weight", "output_norm", None, "F32", (6144,)))
    if weighed:
        for each in tensors:
            for part in (each["metrics"], *each["experts"]):
                part["weighted"] = _weighted(part["source_squares"], part["relative_rms"] * 0.83)
    return output(f"out/grok-1-{recipe}.gguf", recipe, tensors, imatrix)


def report(outputs: list[Json], baseline: str = "stored", source: str = "grok-1/ckpt-0") -> Json:
    """A whole report."""
    return {
        "format": "weightcast-report",
        "version": 1,
        "generator": "weightcast 0.1.0",
        "source": {
            "path": source,
            "family": "grok-1",
            "parameters": sum(each["metrics"]["weights"] for each in outputs[0]["tensors"])
            if outputs
            else 0,
            "hyperparameters": {"num_layers": 64, "num_experts": 8},
        },
        "baseline": baseline,
        "outputs": outputs,
    }


def rule(pattern: str, type_name: str, origin: str) -> Json:
    """A rule of a recipe."""
    return {"pattern": pattern, "type": type_name, "origin": origin}
