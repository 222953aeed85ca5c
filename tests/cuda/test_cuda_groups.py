"""Groups made on a device are the CPU's, byte by byte, and refused for the same places."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import pytest

from tests.cuda.comparison import assert_nothing_is_left
from tests.cuda.stand_in import StandIn
from tests.quant.codes import SCALES, random_codes
from tests.quant.families import FAMILIES, gaussian, grok_like
from tests.quant.sources import DTYPES, LAYOUTS, matrix, place, source_of
from weightcast.errors import DeviceError, LayoutError
from weightcast.quant.cpu.groups import EFFORTS
from weightcast.quant.cpu.library import (
    Blocks,
    Matrix,
    RangeError,
    SourceValueError,
    quantize_matrix,
)
from weightcast.quant.cuda import kernels as cuda_kernels
from weightcast.quant.cuda.backend import CudaBackend
from weightcast.quant.cuda.device import open_gpu
from weightcast.quant.cuda.launch import group_launch
from weightcast.quant.groups import SCALE_DTYPES, Groups, quantize_groups
from weightcast.quant.types import Q4_K, GroupType

pytestmark = pytest.mark.usefixtures("kernels")
SIZES = (32, 128, 256, 0)
TYPES = [
    GroupType(bits, size, symmetric, scale_dtype)
    for bits, symmetric, scale_dtype, size in itertools.product(
        (4, 8), (True, False), SCALE_DTYPES, SIZES
    )
]
TYPE_IDS = [f"int{t.bits}-{t.group_size}-{t.symmetric}-{t.scale_dtype}" for t in TYPES]
SOME_TYPES = [GroupType(4, 128), GroupType(8, 32, False, "F32"), GroupType(4, 0, False)]


@pytest.fixture
def backend(kernels: StandIn | None) -> Iterator[CudaBackend]:
    made = CudaBackend(0, 0, 0)
    yield made
    made.close()


def outcome(quantize: Any, *arguments: Any, **options: Any) -> Groups | LayoutError:
    try:
        made: Groups = quantize(*arguments, **options)
    except LayoutError as error:
        return error
    return made


def parts(groups: Groups) -> dict[str, Any]:
    found = {"codes": groups.codes, "scales": groups.scales, "zero points": groups.zero_points}
    return {name: part for name, part in found.items() if part is not None}


def assert_same(
    backend: CudaBackend, source: Matrix, group_type: GroupType, *args: Any, **opts: Any
) -> bool:
    """Compare groups or errors with the CPU's; true for groups.

    Of several places a device names the first row's: only their kind is compared here.
    """
    wanted = outcome(quantize_groups, source, group_type, *args, **opts)
    made = outcome(backend.quantize_groups, source, group_type, *args, **opts)
    assert type(made) is type(wanted), (made, wanted)
    if isinstance(made, LayoutError) or isinstance(wanted, LayoutError):
        return False
    assert parts(made).keys() == parts(wanted).keys()
    for name, part in parts(made).items():
        expected = parts(wanted)[name]
        assert (part.shape, part.dtype) == (expected.shape, expected.dtype)
        same = np.frombuffer(part.tobytes(), np.uint8) == np.frombuffer(
            expected.tobytes(), np.uint8
        )
        assert same.all(), (name, np.flatnonzero(~same)[:9])
    return True


def importance_of(n_in: int) -> np.ndarray:
    """Draw factors over five orders of magnitude; a quarter are zero."""
    rng = np.random.default_rng(5)
    factors = (10 ** rng.uniform(-3, 2, n_in)).astype(np.float32)
    return np.where(rng.random(n_in) < 0.25, np.float32(0), factors)


# Values and sources


@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize("group_type", TYPES, ids=TYPE_IDS)
def test_sources(backend, group_type, weighed):
    rng = np.random.default_rng(80)
    n_out, n_in = 37, 768
    importance = importance_of(n_in) if weighed else None
    layouts = itertools.cycle(LAYOUTS)
    for dtype in DTYPES:
        x = place(source_of(grok_like(rng, (n_out, n_in)), dtype), next(layouts))
        assert assert_same(backend, matrix(x), group_type, importance)
    # Scales that change between groups, within groups and within chunks of 32.
    for scale_groups in (1, 6, 16):
        codes = place(random_codes(rng, (n_out, n_in)), next(layouts))
        scales = SCALES["mixed"](rng, (scale_groups, n_out + 2))[:, 1:-1]
        assert_same(backend, matrix(codes, scales), group_type, importance)
        scales = SCALES["grok"](rng, (scale_groups, n_out))
        assert assert_same(backend, matrix(codes, scales), group_type, importance)


@pytest.mark.parametrize("effort", EFFORTS)
@pytest.mark.parametrize("scale_dtype", SCALE_DTYPES)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_families(backend, bits, symmetric, scale_dtype, effort):
    rng = np.random.default_rng(81)
    group_type = GroupType(bits, 64, symmetric, scale_dtype)
    made = []
    for family in FAMILIES.values():
        x = place(family(rng, (5, 384)), LAYOUTS[len(made) % 2])
        for importance in (None, importance_of(384)):
            made.append(assert_same(backend, matrix(x), group_type, importance, effort=effort))
    assert sum(made) >= len(made) - 8  # the others overflow


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("n_out", [1, 31, 33, 70, 257])
def test_shapes(backend, n_out, layout):
    """Fewer and more groups than threads of a block, of any number of chunks."""
    for size, n_groups in ((32, 5), (96, 3), (160, 1), (512, 2)):
        x = place(gaussian(np.random.default_rng(size), (n_out, size * n_groups)), layout)
        assert assert_same(backend, matrix(x), GroupType(4, size, symmetric=n_out % 2 == 0))


@pytest.mark.parametrize("group_type", [GroupType(4, 0), GroupType(8, 0, symmetric=False)])
@pytest.mark.parametrize("weighed", [False, True])
def test_long_rows(backend, weighed, group_type):
    rng = np.random.default_rng(82)
    codes, scales = random_codes(rng, (3, 32768)), SCALES["grok"](rng, (8, 3))
    importance = importance_of(32768) if weighed else None
    source = matrix(place(codes, "in_out"), scales)
    assert assert_same(backend, source, group_type, importance)


@pytest.mark.parametrize("group_type", SOME_TYPES)
def test_blocks(backend, group_type):
    x = gaussian(np.random.default_rng(83), (9, 512))
    rows = np.empty((9, Q4_K.row_bytes(512)), np.uint8)
    quantize_matrix(matrix(x), Q4_K, rows)
    source = Blocks(np.concatenate([rows.reshape(-1), np.full(7, 255, np.uint8)]), Q4_K, 9, 512)
    wanted = quantize_groups(source.dequantized(), group_type)
    made = backend.quantize_groups(source, group_type)
    assert [p.tobytes() for p in parts(made).values()] == [
        p.tobytes() for p in parts(wanted).values()
    ]


@pytest.mark.parametrize("shape", [(0, 64), (3, 0), (0, 0)])
def test_empty(backend, shape):
    for group_type in (GroupType(4, 32), GroupType(8, 0, symmetric=False)):
        assert assert_same(backend, matrix(np.zeros(shape, np.float32)), group_type)


def test_one_backend_makes_one_after_the_other(backend):
    """Rooms that are larger than needed, groups after blocks and blocks after groups."""
    rng = np.random.default_rng(84)
    for n_out, n_in in ((40, 1024), (3, 256), (70, 512)):
        x = gaussian(rng, (n_out, n_in))
        for group_type in SOME_TYPES:
            assert assert_same(backend, matrix(x), group_type)
            rows, wanted = np.ones((2, n_out, Q4_K.row_bytes(n_in)), np.uint8)
            backend.quantize(matrix(x), Q4_K, rows)
            quantize_matrix(matrix(x), Q4_K, wanted)
            assert (rows == wanted).all()


def test_memory_is_given_back(only_stand_in, kernels):
    x = gaussian(np.random.default_rng(85), (5, 256))

    def work() -> None:
        made = CudaBackend(0, 0, 0)
        made.quantize_groups(matrix(x), GroupType(4, 32), np.ones(256, np.float32))
        made.close()

    assert_nothing_is_left(only_stand_in, work)


# Refusals


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [64, 512])
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_not_finite(backend, bad, size, layout):
    for dtype in DTYPES:
        for out, in_ in ((67, 901), (0, 0), (69, 1023), (31, 512)):
            x = gaussian(np.random.default_rng(86), (70, 1024)).astype(DTYPES[dtype])
            x[out, in_] = bad
            for quantize in (quantize_groups, backend.quantize_groups):
                error = outcome(quantize, matrix(place(x, layout)), GroupType(4, size))
                assert type(error) is SourceValueError
                assert (error.out, error.in_) == (out, in_)
                assert error.problem == "NaN or infinity"


def test_scales_of_the_source(backend):
    codes = np.ones((4, 64), np.int8)
    for bad in (np.nan, np.inf, 2.0**121):
        scales = np.ones((2, 4), np.float32)
        scales[1, 2] = bad
        errors = [
            outcome(quantize, matrix(codes, scales), GroupType(8, 32))
            for quantize in (quantize_groups, backend.quantize_groups)
        ]
        assert str(errors[0]) == str(errors[1])
        assert isinstance(errors[1], SourceValueError)
        assert (errors[1].out, errors[1].in_) == (2, 32)


@pytest.mark.parametrize("symmetric", [True, False])
def test_scale_beyond_float16(backend, symmetric):
    x = gaussian(np.random.default_rng(87), (4, 96))
    x[2, 70] = 1e9
    for quantize in (quantize_groups, backend.quantize_groups):
        error = outcome(quantize, matrix(x), GroupType(4, 32, symmetric, "F16"))
        assert isinstance(error, RangeError)
        assert str(error) == "values too large for a scale of F16 at [2, 64] (out, in)"


def test_of_several_the_first_row_is_named(backend):
    x = gaussian(np.random.default_rng(88), (70, 256))
    for out, in_ in ((65, 3), (5, 250), (5, 131), (40, 0)):
        x[out, in_] = 1e9
    error = outcome(backend.quantize_groups, matrix(x), GroupType(4, 32, scale_dtype="F16"))
    assert isinstance(error, RangeError)
    assert (error.out, error.in_) == (5, 128)
    x[69, 1], x[60, 200], x[60, 77] = np.nan, np.inf, np.nan  # which comes first
    error = outcome(backend.quantize_groups, matrix(x), GroupType(4, 32, scale_dtype="F16"))
    assert type(error) is SourceValueError
    assert (error.out, error.in_) == (60, 77)


def test_other_refusals(backend):
    x = matrix(gaussian(np.random.default_rng(89), (2, 96)))
    uneven = matrix(np.ones((2, 96), np.int8), np.ones((5, 2), np.float32))
    bad = [np.ones(96, np.float32) for _ in range(3)]
    bad[0][17], bad[1][17], bad[2][17] = -1, np.nan, np.inf
    cases: list[tuple[Any, ...]] = [
        (x, GroupType(4, 64)),
        (x, GroupType(4, 32), np.ones(95, np.float32)),
        (uneven, GroupType(8, 32)),
        *((x, GroupType(4, 32), importance) for importance in bad),
    ]
    for case in cases:
        errors = [outcome(make, *case) for make in (quantize_groups, backend.quantize_groups)]
        assert isinstance(errors[1], LayoutError)
        assert str(errors[0]) == str(errors[1])
        assert "17" in str(errors[1]) or len(case) == 2 or "95" in str(errors[1])


# Kernels


@pytest.fixture
def fresh() -> Iterator[None]:
    """Kernels as at the start of a process, before and after."""
    cuda_kernels._group_quantizer.cache_clear()
    yield
    cuda_kernels._group_quantizer.cache_clear()


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("part", ["codes", "scales", "zero points"])
@pytest.mark.parametrize("weighed", [False, True])
def test_kernels_that_make_other_bytes_are_not_used(backend, weighed, part, monkeypatch):
    def spoiled(*args: Any) -> Groups:
        groups = quantize_groups(*args)
        if part in parts(groups):
            parts(groups)[part].reshape(-1).view(np.uint8)[-1] ^= 1
        return groups

    monkeypatch.setattr(cuda_kernels, "quantize_groups", spoiled)
    name = f"weightcast_make_{'weighed_' if weighed else ''}groups_from_F32"
    importance = np.ones(32, np.float32) if weighed else None
    for _ in range(2):
        with pytest.raises(DeviceError, match=f"{name} makes other bytes than the CPU"):
            backend.quantize_groups(
                matrix(np.ones((1, 32), np.float32)), GroupType(4, 32), importance
            )


@pytest.mark.usefixtures("fresh")
def test_kernels_are_proven_once():
    proven = mock.patch.object(cuda_kernels, "_prove_groups", wraps=cuda_kernels._prove_groups)
    with proven as prove:
        kernels = {id(cuda_kernels.group_quantizer(open_gpu(0), False, "F32")) for _ in range(3)}
    assert len(kernels) == 1
    kinds = [call.args[1] for call in prove.call_args_list]
    assert len(set(kinds)) == len(kinds) == 12


def test_launches():
    assert [group_launch(n).thread_blocks for n in (1, 128, 129)] == [1, 1, 2]
    with pytest.raises(LayoutError, match="thread blocks"):
        group_launch(2**31 * 128 + 1)
