"""The table of types agrees with gguf-py, with ggml and with the C ABI's."""

from __future__ import annotations

import ctypes

import gguf
import pytest

from tests.quant import oracle
from weightcast.quant.cpu.library import BAD_SHAPE, load
from weightcast.quant.types import SOURCE_TYPES, TYPES

NEWER_THAN_GGUF = {"Q2_0"}  # the pinned gguf-py does not know it, the oracle does


@pytest.fixture
def library() -> ctypes.CDLL:
    """The library with the functions of its table declared."""
    loaded = load()
    loaded.weightcast_type_name.restype = ctypes.c_char_p
    for function in (
        loaded.weightcast_block_elements,
        loaded.weightcast_block_bytes,
        loaded.weightcast_row_bytes,
    ):
        function.restype = ctypes.c_int64
    loaded.weightcast_row_bytes.argtypes = [ctypes.c_int32, ctypes.c_int64]
    return loaded


@pytest.mark.parametrize("name", [n for n in TYPES if n not in NEWER_THAN_GGUF])
def test_as_gguf_has_them(name):
    quant_type, gguf_type = TYPES[name], gguf.GGMLQuantizationType[name]
    assert quant_type.ggml_id == gguf_type
    assert gguf.GGML_QUANT_SIZES[gguf_type] == (quant_type.block_elements, quant_type.block_bytes)


@pytest.mark.parametrize("name", TYPES)
def test_rows_as_ggml_sizes_them(name):
    quant_type = TYPES[name]
    for n_blocks in (1, 3, 1024):
        n_in = n_blocks * quant_type.block_elements
        assert quant_type.row_bytes(n_in) == oracle.row_bytes(quant_type.ggml_id, n_in)


@pytest.mark.parametrize("name", {**TYPES, **SOURCE_TYPES})
def test_as_the_library_has_them(name, library):
    quant_type = {**TYPES, **SOURCE_TYPES}[name]
    number = quant_type.ggml_id
    assert library.weightcast_type_name(number) == name.encode()
    assert library.weightcast_block_elements(number) == quant_type.block_elements
    assert library.weightcast_block_bytes(number) == quant_type.block_bytes
    for n_blocks in (0, 1, 5, 1 << 36):
        n_in = n_blocks * quant_type.block_elements
        assert library.weightcast_row_bytes(number, n_in) == quant_type.row_bytes(n_in)
    assert library.weightcast_row_bytes(number, -quant_type.block_elements) == 0
    if quant_type.block_elements > 1:
        assert library.weightcast_row_bytes(number, quant_type.block_elements + 1) == 0


@pytest.mark.parametrize("name", {**TYPES, **SOURCE_TYPES})
def test_a_row_whose_bytes_cannot_be_counted_has_none(name, library):
    """2**63 bytes and more: 0, as the header says, and no call takes such a row."""
    quant_type = {**TYPES, **SOURCE_TYPES}[name]
    most = (2**63 - 1) // quant_type.block_elements  # blocks that n_in can count
    most = min(most, (2**63 - 1) // quant_type.block_bytes)
    n_in = most * quant_type.block_elements
    assert library.weightcast_row_bytes(quant_type.ggml_id, n_in) == quant_type.row_bytes(n_in)
    beyond = (2**63 - 1) // quant_type.block_elements * quant_type.block_elements
    counted = quant_type.row_bytes(beyond)
    said = library.weightcast_row_bytes(quant_type.ggml_id, beyond)
    assert said == (counted if counted < 2**63 else 0)
    if counted >= 2**63 and name in TYPES:
        status = library.weightcast_dequantize(quant_type.ggml_id, None, beyond, None)
        assert status == BAD_SHAPE


def test_numbers_that_the_library_does_not_know(library):
    known = {t.ggml_id for t in (*TYPES.values(), *SOURCE_TYPES.values())}
    for number in set(range(-2, 100)) - known:
        assert library.weightcast_type_name(number) is None
        assert library.weightcast_block_elements(number) == 0
        assert library.weightcast_block_bytes(number) == 0
        assert library.weightcast_row_bytes(number, 256) == 0
