#!/usr/bin/env python3
"""Shards to Q8_0 with torch, as scripts for Grok-1 do it: a run of `benchmarks/peers.py`.

For each matrix: int8 x scale in float32, transposed, contiguous, quantized by gguf-py or by torch's
own operations. It is spared what costs scripts more: the pickles are not unpickled (weightcast's
index says where arrays lie, numpy reads them), experts are taken one at a time and not eight, and
the blocks go to a plain file without a header.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import gguf
import numpy as np
import torch
from numpy.typing import NDArray

from weightcast.converters.graph import View, matrices
from weightcast.converters.sources import open_graph

BLOCK = 32


def load(view: View) -> torch.Tensor:
    """Read a window on a dense array as it is stored: [in, out] of a matrix, whose scales have
    [groups, out]."""
    array = view.array
    dtype = {"I8": np.int8, "F32": np.float32, "BF16": np.uint16}[array.dtype]
    # Axes of one element come first: their strides say nothing.
    order = sorted((0, 1), key=lambda axis: (view.shape[axis] > 1, -view.strides[axis]))
    count = int(np.prod(view.shape))
    place = array.offset + view.start * np.dtype(dtype).itemsize
    values = np.fromfile(array.path, dtype, count, offset=place)
    found = torch.from_numpy(values.reshape([view.shape[axis] for axis in order]))
    return found.view(torch.bfloat16) if array.dtype == "BF16" else found


def dequantized(view: View) -> torch.Tensor:
    """Give a matrix as contiguous float32 [out, in]."""
    values = load(view).float()
    if view.scales is not None:
        scales = load(view.scales).float()
        groups = values.view(len(scales), -1, scales.shape[-1])
        values = (groups * scales[:, None]).view(values.shape)
    is_stored_in_out = len(view.shape) == 2 and view.strides[1] != 1
    return values.t().contiguous() if is_stored_in_out else values


def torch_q8_0(values: torch.Tensor) -> NDArray[np.uint8]:
    """Quantize with torch's operations: a float16 scale, then 32 codes."""
    blocks = values.view(-1, BLOCK)
    scale = blocks.abs().amax(1, keepdim=True) / 127
    inverse = torch.where(scale > 0, 1 / scale, 0)
    codes = torch.round(blocks * inverse).to(torch.int8)
    parts = (scale.half().view(torch.uint8), codes.view(torch.uint8))
    return torch.cat(parts, 1).numpy()


def gguf_q8_0(values: torch.Tensor) -> NDArray[np.uint8]:
    """Quantize with gguf-py."""
    return gguf.quants.quantize(values.numpy(), gguf.GGMLQuantizationType.Q8_0)


def converted(source: Path, quantize: str) -> Iterator[tuple[str, NDArray[np.generic]]]:
    """Give the name of every tensor and the values of its matrices, one after the other."""
    make = {"gguf": gguf_q8_0, "torch": torch_q8_0}[quantize]
    for name, tensor in open_graph(source).items():
        for view in matrices(tensor):
            values = dequantized(view)
            # Norms, and the router, stay float32 everywhere.
            keeps = len(tensor.shape) < 2 or "ffn_gate_inp" in name
            yield name, values.numpy() if keeps else make(values)


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--quantize", type=click.Choice(["gguf", "torch"]), required=True)
def main(source: Path, target: Path, quantize: str) -> None:
    """Write all tensors of a checkpoint, in Q8_0, to one file."""
    with target.open("wb") as file, torch.inference_mode():
        for _, values in converted(source, quantize):
            file.write(memoryview(values).cast("B"))


if __name__ == "__main__":
    main()
