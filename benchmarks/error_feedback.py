#!/usr/bin/env python3
"""Measure what error feedback gains on trained models: the divergence of their predictions.

Linear layers of a model are quantized by the Python API in three ways: plainly, with the diagonal
of the inputs' second moments as importance, and with all of them (`hessian`). The second moments
are those of one text; what is compared are the predictions on another one, with those of the model
as it is: the mean Kullback-Leibler divergence of next tokens, or for encoders the squared distance
of token states over their squares. Gains are over importance alone, with standard errors of the
paired differences of windows of text.

MODEL is a directory of transformers, or a GGUF file that transformers reads. Embeddings, heads and
what a type's groups do not fill stay as they are.

    .venv/bin/python -m benchmarks.error_feedback MODEL --calibration TEXT --test TEXT -t Q4_K
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

import weightcast
from examples.collect_hessians import recorded

F32 = NDArray[np.float32]
# The same bytes by three ways of asking.
WAYS: dict[str, Callable[[F32, str, F32], Any]] = {
    "plain": lambda x, name, h: weightcast.quantize(x, name),
    "importance": lambda x, name, h: weightcast.quantize(x, name, np.diagonal(h).copy()),
    "feedback": lambda x, name, h: weightcast.quantize(x, name, hessian=h),
}


@dataclass(frozen=True)
class Model:
    """A model, its linear layers but for the head, and windows of token ids of two texts."""

    network: nn.Module
    layers: dict[str, nn.Linear]
    calibration: Tensor
    test: Tensor
    is_encoder: bool

    @torch.no_grad()
    def outputs(self, windows: Tensor) -> Iterator[Tensor]:
        """Give log probabilities, or an encoder's states, [positions, ...] for each window."""
        for window in windows:
            made = self.network(window[None])
            yield made.last_hidden_state[0] if self.is_encoder else made.logits[0].log_softmax(-1)


def load(path: Path, calibration: Path, test: Path, window: int, windows: int) -> Model:
    """Load a model and cut texts into windows."""
    folder, file = (path, {}) if path.is_dir() else (path.parent, {"gguf_file": path.name})
    given = {"trust_remote_code": True, **file}
    tokenizer = AutoTokenizer.from_pretrained(folder, **given)
    classes = AutoConfig.from_pretrained(folder, **given).architectures or ()
    is_encoder = not file and not any(name.endswith("ForCausalLM") for name in classes)
    loader = AutoModel if is_encoder else AutoModelForCausalLM
    network = loader.from_pretrained(folder, dtype=torch.float32, **given)

    def cut(text: Path) -> Tensor:
        ids = torch.tensor(tokenizer(text.read_text()).input_ids)
        return ids[: len(ids) // window * window].reshape(-1, window)[:windows]

    layers = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and not name.endswith(("lm_head", "pooler.dense"))
    }
    return Model(network.eval(), layers, cut(calibration), cut(test), is_encoder)


def second_moments(model: Model) -> dict[str, F32]:
    """Add up the second moments of each layer's inputs over the calibration text."""
    with recorded(model.network) as sums:
        for _ in model.outputs(model.calibration):
            pass
    return {name: sums[name].float().numpy() for name in model.layers}


def distance(model: Model, true: Tensor, made: Tensor) -> float:
    """The mean divergence of a window's predictions, or the relative squared distance of states."""
    if model.is_encoder:
        return float((made - true).square().sum() / true.square().sum())
    return float((true.exp() * (true - made)).sum(-1).mean())


def distances(model: Model, references: list[Tensor]) -> NDArray[np.float64]:
    """Measure how far the predictions of each test window are from what they were."""
    pairs = zip(references, model.outputs(model.test), strict=True)
    return np.array([distance(model, true, made) for true, made in pairs])


def quantized(weight: F32, type_name: str, way: str, moments: F32) -> F32 | None:
    """What a reader gets of a weight; None if it does not fill blocks or groups."""
    try:
        made = WAYS[way](weight, type_name, moments)
    except weightcast.LayoutError as problem:
        if "fill" in str(problem):
            return None
        raise
    return np.asarray(weightcast.dequantize(made, type_name))


def measure(model: Model, type_name: str, references: list[Tensor], h: dict[str, F32]) -> None:
    """Print a row of the table for each way."""
    originals = {name: layer.weight.detach().numpy().copy() for name, layer in model.layers.items()}
    base: NDArray[np.float64] | None = None
    for way in WAYS:
        n, seconds = 0, 0.0
        for name, layer in model.layers.items():
            start = time.perf_counter()
            values = quantized(originals[name], type_name, way, h[name])
            seconds += time.perf_counter() - start
            if values is not None:
                n += values.size
                layer.weight.data = torch.from_numpy(values)
        found = distances(model, references)
        gain = ""
        if base is not None and way == "feedback":
            change = found - base
            error = change.std(ddof=1) / np.sqrt(len(change)) / base.mean()
            gain = f"{100 * change.mean() / base.mean():+.1f} % ± {100 * error:.1f}"
        base = found if way == "importance" else base
        share = n / sum(x.size for x in originals.values())
        print(
            f"| {type_name} | {100 * share:.0f} % | {way} | {found.mean():.5f} | {gain} | "
            f"{n / seconds / 1e6:.1f} |",
            flush=True,
        )
    for name, layer in model.layers.items():
        layer.weight.data = torch.from_numpy(originals[name])


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.argument("path", type=click.Path(path_type=Path, exists=True), metavar="MODEL")
@click.option("--calibration", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--test", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("-t", "--type", "types", multiple=True, default=("Q4_K", "int4-g128"))
@click.option("--window", default=256, show_default=True, help="Tokens that see each other.")
@click.option("--windows", default=64, show_default=True, help="The most of either text.")
def main(
    path: Path, calibration: Path, test: Path, types: tuple[str, ...], window: int, windows: int
) -> None:
    model = load(path, calibration, test, window, windows)
    moments = second_moments(model)
    references = list(model.outputs(model.test))
    n = sum(layer.weight.numel() for layer in model.layers.values())
    print(
        f"{path.name}: {len(model.layers)} layers, {n / 1e6:.1f} million weights; "
        f"{model.calibration.numel():,} tokens seen, {model.test.numel():,} tested\n"
    )
    print("| type | weights | way | distance | feedback over importance | Mweights/s |")
    print("| --- | ---: | --- | ---: | ---: | ---: |")
    for type_name in types:
        measure(model, type_name, references, moments)


if __name__ == "__main__":
    main()
