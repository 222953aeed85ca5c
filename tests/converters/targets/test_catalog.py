"""The catalog of types, beside what conversions of them come to."""

from __future__ import annotations

from pathlib import Path

import pytest

import weightcast
from tests.support import Golden
from weightcast.converters.convert import prepare
from weightcast.converters.sources import ConvertOptions
from weightcast.converters.targets import catalog
from weightcast.quant.types import F32

WIDE = Golden("wide")
TYPES = {found.name: found for found in weightcast.types()}


def test_every_name_is_that_of_an_output() -> None:
    for found in TYPES.values():
        ending = ".gguf" if found.target == "gguf" else ""
        path = f"m-{found.name}{ending}"
        assert weightcast.converters.targets.parse_output(path, None).path == Path(path)
        assert found.bits <= found.model_bits * 1.1


@pytest.mark.parametrize("name", catalog._ADVICE)
def test_advice_is_about_types(name: str) -> None:
    assert TYPES[name].advice


@pytest.mark.parametrize("name", ["Q8_0", "Q4_K_M", "int4-g32-asym-awq", "int8-g32", "nvfp4"])
def test_bits_are_those_of_outputs(name: str, tmp_path: Path) -> None:
    found = TYPES[name]
    path = tmp_path / (f"m-{name}.gguf" if found.target == "gguf" else f"m-{name}")
    options = ConvertOptions(no_tokenizer=True, pure=found.target == "gguf" or None)
    (output,) = prepare(WIDE.path, [path], options).outputs
    packed = [t for t in output.tensors if "exp" in t.tensor.name and t.type != F32]
    weights = sum(t.tensor.size for t in packed)
    bits = 8 * sum(t.nbytes for t in packed) / weights
    assert bits == pytest.approx(found.bits, rel=0.05)


def test_importance() -> None:
    importance = {name: found.importance for name, found in TYPES.items()}
    assert importance["IQ1_S"] == importance["Q2_K_S"] == "required"
    assert importance["Q4_K_M"] == importance["int4-g128"] == "optional"
    assert importance["Q8_0"] == importance["bf16"] == importance["fp8"] == "ignored"


def test_runtimes() -> None:
    assert TYPES["Q4_K_M"].runtimes == ("llama.cpp",)
    assert TYPES["int4-g128"].runtimes == ("vLLM", "SGLang", "transformers")
    assert "vLLM" not in TYPES["int8-g128"].runtimes
    assert TYPES["int4-g128-weightcast"].runtimes == ()
