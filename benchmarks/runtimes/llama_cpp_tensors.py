#!/usr/bin/env python3
"""Compare the tensors that llama.cpp's converter made of a directory with those of the directory.

The directory's weights are read as weightcast's own layouts read them, (code - zero point) * scale
in float32; the converter's (`convert_hf_to_gguf.py DIRECTORY --outtype f32`) should be equal bit
for bit. It says nothing when it drops experts, so every tensor is looked for.

    python benchmarks/runtimes/llama_cpp_tensors.py DIRECTORY CONVERTED.gguf
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

import weightcast
from weightcast.converters.families import FAMILIES
from weightcast.converters.recipes.weight_types import DirectoryType, directory_type, name_in
from weightcast.formats.packed import LAYOUTS
from weightcast.formats.packed.layout import MatrixShape
from weightcast.quant.groups import dequantize_groups
from weightcast.quant.types import GroupType

Read = Callable[[str], NDArray[np.float32]]


def read_parts(directory: Path) -> dict[str, dict[str, NDArray[Any]]]:
    """Read every tensor: module name, then the suffix."""
    modules: dict[str, dict[str, NDArray[Any]]] = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118
                module, _, part = name.rpartition(".")
                modules.setdefault(module, {})[f".{part}"] = file.get_tensor(name)
    return modules


def reader(directory: Path, kind: DirectoryType) -> Read:
    """Give a function from a tensor's name to its float32 values."""
    modules = read_parts(directory)

    def read(name: str) -> NDArray[np.float32]:
        module = name.removesuffix(".weight")
        parts = modules[module]
        if ".weight" in parts:
            return parts[".weight"].astype(np.float32)
        group_type = kind.experts if ".experts." in name else kind.attention
        assert isinstance(group_type, GroupType)
        packed = next(p for suffix, p in parts.items() if suffix in (".weight_packed", ".qweight"))
        per_word = 32 // group_type.bits
        rows, columns = packed.shape
        shape = (rows, columns * per_word)
        if ".qweight" in parts:
            shape = (columns, rows * per_word)
        layout = LAYOUTS[kind.layout].matrix_layout(group_type)
        groups = layout.unpack(parts, MatrixShape(group_type, *shape))
        return dequantize_groups(groups, group_type)

    return read


def main() -> None:
    """Print what is equal, different and missing as JSON; fail unless all is equal."""
    if len(sys.argv) != 3:
        sys.exit("usage: llama_cpp_tensors.py DIRECTORY CONVERTED.gguf")
    directory = Path(sys.argv[1])
    kind = directory_type(name_in(directory.name) or "")
    assert kind is not None
    config = json.loads((directory / "config.json").read_bytes())
    read = reader(directory, kind)
    converted = {tensor.name: tensor for tensor in gguf.GGUFReader(sys.argv[2]).tensors}
    result: dict[str, list[str]] = {"equal": [], "different": [], "missing": []}
    family, names = FAMILIES["grok-1"], "hugging_face"
    for place in family.places(config["num_hidden_layers"]):
        if place.name not in converted:
            result["missing"].append(place.name)
            continue
        if place.role.is_experts:
            experts = range(config["num_local_experts"])
            wanted = np.stack([read(family.name_in(place, names, n)) for n in experts])
        else:
            wanted = read(family.name_in(place, names))
        tensor = converted[place.name]
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        is_equal = np.array_equal(values.reshape(wanted.shape), wanted)
        result["equal" if is_equal else "different"].append(place.name)
    about = {"directory": directory.name, "weightcast": weightcast.__version__}
    print(json.dumps({**about, **result, "equal": len(result["equal"])}, indent=2))
    sys.exit(bool(result["different"] or result["missing"]))


if __name__ == "__main__":
    main()
