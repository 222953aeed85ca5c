"""The caller's floating-point modes and other threads change no byte, and come back unchanged."""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest

from tests.quant import compilers, instruction_sets
from tests.quant.families import FAMILIES, random_finite
from tests.quant.kernel_types import least_importance
from tests.quant.sources import place, quantized
from weightcast.quant.arrays import dequantize
from weightcast.quant.cpu import library
from weightcast.quant.search import EFFORTS, GGML, Search
from weightcast.quant.types import Q8_0, TYPES

# Bits of MXCSR, the control register of SSE and AVX.
DEFAULT = 0x1F80  # every exception masked, to nearest
RAISED = 0x003F
DENORMALS_ARE_ZERO, FLUSH_TO_ZERO = 0x0040, 0x8000
DOWN, UP, TOWARDS_ZERO = 0x2000, 0x4000, 0x6000
MODES = {
    "default": DEFAULT,
    "flags_raised": DEFAULT | RAISED,
    "flush_to_zero": DEFAULT | FLUSH_TO_ZERO,
    "denormals_are_zero": DEFAULT | DENORMALS_ARE_ZERO,
    "down": DEFAULT | DOWN,
    "up": DEFAULT | UP,
    "towards_zero": DEFAULT | TOWARDS_ZERO,
    "all": DEFAULT | RAISED | FLUSH_TO_ZERO | DENORMALS_ARE_ZERO | TOWARDS_ZERO,
    "trapping": 0,  # an exception would kill the process
}
on_x86 = pytest.mark.skipif(not instruction_sets.is_x86(), reason="MXCSR is a register of x86")


@pytest.fixture(scope="module")
def helper(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """environment.c, compiled."""
    path = tmp_path_factory.mktemp("environment") / "environment.so"
    source = compilers.SOURCES / "environment.c"
    compilers.run("gcc", "-O1", "-shared", "-fPIC", *compilers.STRICT, source, "-o", path)
    return ctypes.CDLL(str(path))


@pytest.fixture
def under(helper, isa):
    """Return a function that has the library called under a value of MXCSR until the test ends."""
    loaded = library.load()
    # The stand-in below has no self-test; `loaded` passed it when it was made.
    with mock.patch.object(library, "check_build"), mock.patch.object(library, "load") as load:

        def start(wanted: int) -> ctypes.c_uint32:
            after = ctypes.c_uint32()

            def caller(wrapper, function):
                wrapper.argtypes = [
                    ctypes.c_uint32,
                    ctypes.c_void_p,
                    ctypes.c_void_p,
                    *function.argtypes,
                ]
                address = ctypes.cast(function, ctypes.c_void_p)
                return lambda *args: wrapper(wanted, ctypes.byref(after), address, *args)

            load.return_value = SimpleNamespace(
                weightcast_quantize=caller(helper.quantize_under, loaded.weightcast_quantize),
                weightcast_quantize_least_error=caller(
                    helper.least_error_under, loaded.weightcast_quantize_least_error
                ),
                weightcast_dequantize=caller(helper.dequantize_under, loaded.weightcast_dequantize),
            )
            return after

        yield start


def delicate_values() -> np.ndarray:
    """float32 [n_out, 256]: ties, subnormals, scales that are subnormal in float32 or float16."""
    families = ("subnormals", "inverse_overflows", "d_underflows_float16", "ties", "gaussian")
    rng = np.random.default_rng(10)
    x = np.concatenate([FAMILIES[name](rng, (7, 256)) for name in families])
    return np.clip(x, -6e4, 6e4)


def delicate_codes() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(11)
    codes = rng.integers(-128, 128, (35, 256)).astype(np.int8)
    scales = 10 ** rng.uniform(-45, 1, (2, 35))
    scales[:, ::3] = 2.0**-24  # subnormal in float16, and exact
    return codes, scales.astype(np.float32)


def delicate_importance() -> np.ndarray:
    return (10 ** np.random.default_rng(12).uniform(-30, 3, 256)).astype(np.float32)


@on_x86
@pytest.mark.parametrize("search", [GGML, *map(Search, EFFORTS)], ids=str)
@pytest.mark.parametrize("target", TYPES)
def test_quantize(target, search, under):
    x = delicate_values()
    codes, scales = delicate_codes()
    quant_type = TYPES[target]
    sources = [
        (x, None, least_importance(quant_type, 256)),
        (place(x, "in_out"), None, delicate_importance()),
        (x.astype(np.float16), None, delicate_importance()),
        (place(codes, "in_out"), scales, delicate_importance()),
    ]
    for source, source_scales, importance in sources:
        under(DEFAULT)
        expected = quantized(source, quant_type, source_scales, importance, search)
        for mode in MODES.values():
            after = under(mode)
            rows, counts = quantized(source, quant_type, source_scales, importance, search)
            assert np.array_equal(rows, expected[0])
            assert counts == expected[1]
            assert after.value == mode


@on_x86
@pytest.mark.parametrize("target", TYPES)
def test_dequantize(target, under):
    under(DEFAULT)
    quant_type = TYPES[target]
    importance = least_importance(quant_type, 256)
    rows, _ = quantized(delicate_values(), quant_type, None, importance)
    expected = dequantize(rows, target)
    for mode in MODES.values():
        after = under(mode)
        assert np.array_equal(dequantize(rows, target).view(np.uint32), expected.view(np.uint32))
        assert after.value == mode


@on_x86
def test_a_refusal_restores_too(under):
    after = under(MODES["all"])
    with pytest.raises(library.SourceValueError):
        quantized(np.full((1, 32), np.nan, np.float32), Q8_0)
    assert after.value == MODES["all"]


def test_threads_do_not_disturb_each_other(isa):
    def make(seed: int) -> tuple[bytes, ...]:
        rng = np.random.default_rng(seed)
        x = place(np.clip(random_finite(rng, (40, 256)), -6e4, 6e4), "in_out")
        codes = place(rng.integers(-128, 128, (150, 256)).astype(np.int8), "in_out")
        scales = (10 ** rng.uniform(-9, -1, (2, 150))).astype(np.float32)
        importance = rng.random(256, np.float32)
        made = [
            quantized(x, t, None, importance, search)[0]
            for t in TYPES.values()
            for search in (GGML, Search(1))
        ]
        made.append(quantized(codes, Q8_0, scales)[0])
        return (*(rows.tobytes() for rows in made), dequantize(made[-1], "Q8_0").tobytes())

    seeds = range(8)
    alone = [make(seed) for seed in seeds]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(2):
            assert list(pool.map(make, seeds)) == alone
