"""Real pickles of numpy 1.26, numpy 2.4, jax 0.4.25 and jax 0.10 are described as what they hold.

tests/data/pickles/index.json says for each file what the library that wrote it reads back: dtype,
shape and the SHA-256 of the elements in row-major order; or which files are refused, and why.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weightcast import errors
from weightcast.formats.array import StoredArray
from weightcast.formats.jax.arrays import QuantizedArray, read_pickle

PICKLES = Path(__file__).parents[2] / "data" / "pickles"
INDEX: dict[str, dict[str, Any]] = json.loads((PICKLES / "index.json").read_text())
PROTOCOLS = (2, 3, 4, 5)

Reader = Callable[[StoredArray], bytes]


def named(kind: str) -> list[str]:
    return [name for name, entry in INDEX.items() if entry["kind"] == kind]


def check(array: StoredArray, expected: dict[str, Any], row_major_bytes: Reader) -> None:
    assert array.dtype == expected["dtype"]
    assert list(array.shape) == expected["shape"]
    assert hashlib.sha256(row_major_bytes(array)).hexdigest() == expected["sha256"]


def test_index_names_every_pickle() -> None:
    assert {path.stem for path in PICKLES.glob("*.pkl")} == set(INDEX)


@pytest.mark.parametrize("name", named("array"))
def test_array(name: str, row_major_bytes: Reader) -> None:
    array = read_pickle(PICKLES / f"{name}.pkl")
    assert isinstance(array, StoredArray)
    check(array, INDEX[name], row_major_bytes)


@pytest.mark.parametrize("name", named("quantized"))
def test_quantized_array(name: str, row_major_bytes: Reader) -> None:
    array = read_pickle(PICKLES / f"{name}.pkl")
    assert isinstance(array, QuantizedArray)
    check(array.weight, INDEX[name]["weight"], row_major_bytes)
    check(array.scales, INDEX[name]["scales"], row_major_bytes)


@pytest.mark.parametrize("name", named("refused"))
def test_refused(name: str) -> None:
    path = PICKLES / f"{name}.pkl"
    with pytest.raises(errors.FormatError) as caught:
        read_pickle(path)
    assert type(caught.value).__name__ == INDEX[name]["error"]
    assert str(path) in str(caught.value)
    assert INDEX[name]["says"] in str(caught.value)


def test_payload_is_not_copied_out_of_order() -> None:
    """A column-major array stays where it is and gets strides instead."""
    array = read_pickle(PICKLES / "np1-p4-f32-f3d.pkl")
    assert isinstance(array, StoredArray)
    assert array.shape == (2, 3, 5)
    assert array.strides == (1, 2, 6)


class QuantizedWeight8bit:
    """As the release pickles it: the state is the instance's dictionary."""

    def __init__(self, weight: Any, scales: Any) -> None:
        self.weight = weight
        self.scales = scales


@pytest.fixture(params=["__main__", "model"])
def quantized_class(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> type[QuantizedWeight8bit]:
    """The class under a name that pickles of the release, or of code around it, use for it."""
    module = ModuleType(request.param)
    cls = type("QuantizedWeight8bit", (QuantizedWeight8bit,), {"__module__": request.param})
    module.QuantizedWeight8bit = cls
    monkeypatch.setitem(sys.modules, request.param, module)
    return cls


# Payloads of 64 KiB and more lie between frames, smaller ones inside.
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("columns", [100, 65535, 65536, 70000])
def test_payloads_in_and_between_frames(
    quantized_class: type[QuantizedWeight8bit],
    protocol: int,
    columns: int,
    write: Callable[..., Path],
    row_major_bytes: Reader,
) -> None:
    weight = np.arange(columns * 2).astype(np.int8).reshape(2, columns)
    scales = np.arange(columns).astype(ml_dtypes.bfloat16).reshape(1, columns)
    path = write(pickle.dumps(quantized_class(weight, scales), protocol))
    array = read_pickle(path)
    assert isinstance(array, QuantizedArray)
    assert (array.weight.dtype, array.weight.shape) == ("I8", (2, columns))
    assert (array.scales.dtype, array.scales.shape) == ("BF16", (1, columns))
    assert row_major_bytes(array.weight) == weight.tobytes()
    assert row_major_bytes(array.scales) == scales.tobytes()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_pure_python_pickler_writes_the_same_structure(
    protocol: int, write: Callable[..., Path], row_major_bytes: Reader
) -> None:
    values = np.arange(30000, dtype=np.float32)
    file = io.BytesIO()
    pickle._Pickler(file, protocol).dump(values)
    array = read_pickle(write(file.getvalue()))
    assert isinstance(array, StoredArray)
    assert row_major_bytes(array) == values.tobytes()


DTYPES = {
    "BOOL": np.bool_,
    "I8": np.int8,
    "U8": np.uint8,
    "I16": np.int16,
    "U16": np.uint16,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I32": np.int32,
    "U32": np.uint32,
    "F32": np.float32,
    "I64": np.int64,
    "U64": np.uint64,
    "F64": np.float64,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
}


@settings(max_examples=200)
@given(st.data())
def test_any_array_reads_back(
    write: Callable[..., Path], row_major_bytes: Reader, data: st.DataObject
) -> None:
    """Any dtype, shape, axis order and protocol: reading gives the elements that were pickled."""
    dtype = data.draw(st.sampled_from(sorted(DTYPES)))
    shape = tuple(data.draw(st.lists(st.integers(0, 6), max_size=4)))
    axes = data.draw(st.permutations(range(len(shape))))
    item = np.dtype(DTYPES[dtype])
    size = item.itemsize * int(np.prod(shape))
    raw = data.draw(st.binary(min_size=size, max_size=size))
    values = np.frombuffer(raw, item).reshape(shape).transpose(axes)
    path = write(pickle.dumps(values, data.draw(st.sampled_from(PROTOCOLS))))
    array = read_pickle(path)
    assert isinstance(array, StoredArray)
    assert (array.dtype, array.shape) == (dtype, values.shape)
    assert row_major_bytes(array) == values.tobytes()
