"""Adapters as peft saves them: adapter_config.json, and factors of matrices in safetensors or .bin.

A linear layer W [out, in] becomes W + multiplier * B @ A, A [rank, in] and B [out, rank]; an
embedding [rows, out] gets multiplier * (B @ A)^T, A [rank, rows] and B [out, rank].
Source: LoraConfig and get_peft_model_state_dict in src/peft of huggingface/peft 0.18; the
multipliers are those of LoraLayer.update_layer in src/peft/tuners/lora/layer.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import isfinite, sqrt
from pathlib import Path
from typing import Any, Final

from weightcast.errors import FormatError, LayoutError, MissingTensorError
from weightcast.formats import safetensors, torch_zip
from weightcast.formats.array import StoredArray
from weightcast.formats.reading import read_json_object
from weightcast.text import shown, some

CONFIG_NAME: Final = "adapter_config.json"
_WEIGHTS: Final = ("adapter_model.safetensors", "adapter_model.bin")
NAMES: Final = (CONFIG_NAME, *_WEIGHTS)
_MERGE: Final = "merge it into its base model with peft (merge_and_unload), and convert that"
# Ways to begin that leave the model as it is; of others (PiSSA, OLoRA, CorDA, LoftQ) the adapter is
# what the model's own weights were made less by.
_HARMLESS_STARTS: Final = ("default", "eva", "gaussian", "orthogonal", "true")
_PREFIX: Final = "base_model.model."
_FACTOR: Final = re.compile(
    r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<factor>[AB])"
    r"(?:\.(?P<adapter>[^.]+))??(?P<weight>\.weight)?"
)
_MAX_PATTERNS: Final = 1_000
_MAX_PATTERN: Final = 200
_MAX_NAME: Final = 512
_REPEATED: Final = re.compile(r".?[*+{]")
_MAX_TOKENS: Final = 1 << 16
# Settings that change what is computed, and what they mean; those that are not set change nothing.
_UNSUPPORTED: Final = {
    "use_dora": "a DoRA, which scales columns by their magnitudes too",
    "use_qalora": "a QALoRA, which pools what goes in",
    "lora_bias": "an adapter with biases of its own",
    "fan_in_fan_out": "an adapter of transposed layers (fan_in_fan_out)",
    "modules_to_save": "an adapter with whole modules beside it (modules_to_save)",
    "layer_replication": "an adapter of a model with repeated layers (layer_replication)",
    "target_parameters": "an adapter of parameters that are no layers (target_parameters)",
    "trainable_token_indices": "an adapter with rows of the embedding (trainable_token_indices)",
    "megatron_config": "an adapter of Megatron's layers",
}


@dataclass(frozen=True, slots=True)
class LoraModule:
    """The factors of one module: A and B as they are stored, and what their product counts."""

    name: str
    a: StoredArray
    b: StoredArray
    multiplier: float
    is_embedding: bool = False

    @property
    def rank(self) -> int:
        """Give the number of rows of A."""
        return self.a.shape[0]


@dataclass(frozen=True)
class PeftAdapter:
    """An adapter: its modules by name, without the prefix of peft.

    `base_model` is what it was trained on, as its configuration names that. Tokens of
    `invocation` start an activated adapter, which does nothing before them.
    """

    path: Path
    files: tuple[Path, ...]
    modules: Mapping[str, LoraModule]
    base_model: str | None
    invocation: tuple[int, ...] = ()


def is_adapter(path: Path) -> bool:
    """Tell whether a path is a directory with the configuration of an adapter."""
    return path.is_dir() and (path / CONFIG_NAME).is_file()


def read_adapter(path: Path) -> PeftAdapter:
    """Index an adapter's directory. Raises CheckpointError for what is no LoRA of plain layers."""
    file = path / CONFIG_NAME
    config = read_json_object(file)
    _check_kind(file, config)
    weights = next((path / name for name in _WEIGHTS if (path / name).is_file()), None)
    if weights is None:
        raise MissingTensorError(
            f"{path}: {_WEIGHTS[0]} is missing beside {CONFIG_NAME}; finish the download"
        )
    reads = safetensors.read_index if weights.suffix == ".safetensors" else torch_zip.read_torch
    factors = _factors(weights, reads(weights))
    if not factors:
        raise MissingTensorError(f"{weights}: no tensors of an adapter (lora_A, lora_B)")
    scaling = _Scaling.of(file, config)
    modules = {
        name: LoraModule(name, a, b, scaling.multiplier(name, a.shape[0]), is_embedding)
        for name, (a, b, is_embedding) in factors.items()
    }
    base = config.get("base_model_name_or_path")
    return PeftAdapter(
        path,
        (weights, file),
        modules,
        base if isinstance(base, str) and base else None,
        _invocation(file, config),
    )


def _check_kind(file: Path, config: Mapping[str, Any]) -> None:
    """Raise LayoutError for adapters that are more than products, or something else."""
    kind = config.get("peft_type")
    if kind != "LORA":
        raise LayoutError(f"{file}: an adapter of type {shown(kind)}, not LORA; {_MERGE}")
    bias = config.get("bias", "none")
    if bias not in (None, "none"):
        raise LayoutError(f"{file}: an adapter with trained biases (bias {shown(bias)}); {_MERGE}")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start not in _HARMLESS_STARTS:
        raise LayoutError(
            f"{file}: an adapter whose start was taken from the model's weights (init_lora_weights "
            f"{shown(start)}): save it with path_initial_model_for_weight_conversion"
        )
    for key, what in _UNSUPPORTED.items():
        if config.get(key):
            raise LayoutError(f"{file}: {what}; {_MERGE}")


_Found = tuple[StoredArray, StoredArray, bool]


def _factors(file: Path, arrays: Mapping[str, StoredArray]) -> dict[str, _Found]:
    """Pair the factors of each module. Raises CheckpointError for tensors that are none."""
    found: dict[str, dict[str, tuple[StoredArray, bool]]] = {}
    adapters = set()
    for name, array in arrays.items():
        match = _FACTOR.fullmatch(name.removeprefix(_PREFIX)) if len(name) <= _MAX_NAME else None
        if match is None:
            if name.endswith(".base_layer.weight"):
                continue  # the model's own, saved along
            raise LayoutError(f"{file}: {shown(name)} is no factor of a LoRA; {_MERGE}")
        adapters.add(match["adapter"])
        factors = found.setdefault(match["module"], {})
        if match["factor"] in factors:
            raise LayoutError(f"{file}: {shown(name)} is there twice, under other names")
        factors[match["factor"]] = array, match["embedding"] is not None
    if len(adapters) > 1:
        names = some(sorted(shown(name) for name in adapters))
        raise LayoutError(f"{file}: tensors of several adapters ({names}); save one of them")
    return {module: _pair(file, module, factors) for module, factors in found.items()}


def _pair(file: Path, module: str, factors: Mapping[str, tuple[StoredArray, bool]]) -> _Found:
    for factor in "AB":
        if factor not in factors:
            raise MissingTensorError(f"{file}: {shown(module)} has no lora_{factor}")
    (a, is_embedding), (b, is_other) = factors["A"], factors["B"]
    if is_embedding != is_other or len(a.shape) != 2 or len(b.shape) != 2:
        raise LayoutError(f"{file}: {shown(module)}: lora_A and lora_B are no pair of matrices")
    if a.shape[0] != b.shape[1] or not a.nbytes or not b.nbytes:
        raise LayoutError(
            f"{file}: {shown(module)}: lora_A is {list(a.shape)} and lora_B {list(b.shape)}: "
            "their ranks differ, or are 0"
        )
    return a, b, is_embedding


@dataclass(frozen=True)
class _Scaling:
    """What decides the multiplier of a module: alpha, by patterns too, and how rank divides it."""

    alpha: float
    patterns: Mapping[str, float]
    is_by_root: bool

    @classmethod
    def of(cls, file: Path, config: Mapping[str, Any]) -> _Scaling:
        """Read them from a configuration. Raises FormatError."""
        patterns = config.get("alpha_pattern") or {}
        if not isinstance(patterns, dict) or len(patterns) > _MAX_PATTERNS:
            raise FormatError(file, None, "alpha_pattern is no object of numbers")
        slow = next((key for key in patterns if _is_slow(key)), None)
        if slow is not None:
            raise FormatError(file, None, f"alpha_pattern: {shown(slow)} is too complex to match")
        return cls(
            _number(file, "lora_alpha", config.get("lora_alpha")),
            {key: _number(file, "alpha_pattern", value) for key, value in patterns.items()},
            config.get("use_rslora") is True,
        )

    def multiplier(self, module: str, rank: int) -> float:
        """Give alpha / rank, or alpha / sqrt(rank), of a module."""
        alpha = next((a for p, a in self.patterns.items() if _is_named(module, p)), self.alpha)
        return alpha / (sqrt(rank) if self.is_by_root else rank)


def _is_slow(pattern: str) -> bool:
    """Tell whether matching may take for ever, as of patterns made for that."""
    repeats = _REPEATED.findall(pattern)
    return len(pattern) > _MAX_PATTERN or len(repeats) > 2 or any(")" in each for each in repeats)


def _is_named(module: str, pattern: str) -> bool:
    """Tell whether a pattern means a module: all of its name, or its end from a dot on."""
    try:
        return re.match(rf"(.*\.)?({pattern})$", module) is not None
    except re.error:
        return module == pattern or module.endswith(f".{pattern}")


def _number(file: Path, key: str, value: Any) -> float:
    if not isinstance(value, bool) and isinstance(value, int | float):
        with suppress(OverflowError):  # whole numbers can be of any length
            if isfinite(number := float(value)):
                return number
    raise FormatError(file, None, f"{key} is {shown(value)}, not a number")


def _invocation(file: Path, config: Mapping[str, Any]) -> tuple[int, ...]:
    """Read the tokens that start an activated adapter. Raises FormatError."""
    tokens = config.get("alora_invocation_tokens") or []
    if not tokens and config.get("invocation_string"):
        raise FormatError(
            file, None, "an invocation_string without its tokens; add alora_invocation_tokens"
        )
    are_tokens = isinstance(tokens, list) and len(tokens) <= _MAX_TOKENS
    if not are_tokens or not all(type(t) is int and 0 <= t < 1 << 32 for t in tokens):
        raise FormatError(file, None, "alora_invocation_tokens is no list of tokens")
    return tuple(tokens)
