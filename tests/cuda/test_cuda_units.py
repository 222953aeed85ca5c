"""Kernels of a device: loaded once, and refused if they do not make the CPU's bytes."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from tests.cuda import stand_in
from tests.cuda.comparison import assert_same_of
from tests.cuda.stand_in import StandIn
from tests.quant.families import gaussian
from tests.quant.sources import matrix
from weightcast.errors import DeviceError
from weightcast.quant.cuda import compile as cuda_compile
from weightcast.quant.cuda import kernels as cuda_kernels
from weightcast.quant.cuda.backend import CudaBackend
from weightcast.quant.cuda.device import open_gpu
from weightcast.quant.cuda.jobs import DeviceMatrix, Job, enqueue
from weightcast.quant.types import IQ3_S, Q4_0, Q8_0, SOURCE_TYPES, TYPES


def forget() -> None:
    """Make the next use of a kernel the first one."""
    cuda_kernels._quantizer.cache_clear()
    cuda_kernels._dequantizer.cache_clear()
    cuda_kernels._tables.cache_clear()
    cuda_kernels._module.cache_clear()


@pytest.fixture
def fresh(kernels: StandIn | None) -> Iterator[None]:
    """Nothing is loaded yet, and nothing of this test is used later."""
    forget()
    yield
    forget()


@pytest.fixture
def wrong(
    only_stand_in: StandIn, fresh: None, host_kernels: Path, tmp_path: Path
) -> Iterator[None]:
    """A device whose Q4_0 is wrong in one bit of many."""
    library = stand_in.build_kernels(
        stand_in.HERE / "wrong_kernels.cpp",
        tmp_path / "wrong.so",
        f'-DRIGHT_KERNELS="{host_kernels}"',
        f"-I{stand_in.KERNELS}",
        *("-Wno-unknown-pragmas", "-Wno-unused-function"),
    )
    only_stand_in.use_kernels(library)
    yield
    only_stand_in.use_kernels(host_kernels)


@pytest.mark.usefixtures("wrong")
def test_a_kernel_that_makes_other_bytes_is_refused():
    rows = np.full((3, 18), 7, np.uint8)
    source = matrix(gaussian(np.random.default_rng(70), (3, 32)))
    problem = (
        r"cuda:0 \(Stand-in 0\): weightcast_{} makes other bytes than the CPU; use "
        "device='cpu' and report this with the versions of driver and nvidia-cuda-nvrtc"
    )
    for _ in range(2):  # nor is it used the second time
        with closing(CudaBackend(0, 0, 0)) as backend, pytest.raises(DeviceError) as caught:
            backend.quantize(source, Q4_0, rows)
        assert caught.match(f"^{problem.format('quantize_Q4_0_from_F32')}$")
        assert (rows == 7).all()
    with pytest.raises(DeviceError, match=f"^{problem.format('dequantize_Q4_0')}$"):
        cuda_kernels.dequantizer(open_gpu(0), Q4_0)
    # Other types are not to blame.
    assert_same_of(gaussian(np.random.default_rng(71), (3, 32)), Q8_0)


@pytest.mark.usefixtures("fresh")
def test_a_device_that_the_compiler_does_not_know(monkeypatch):
    gpu = open_gpu(0)
    monkeypatch.setattr(gpu, "architecture", "sm_35")
    for make in (
        lambda: cuda_kernels.quantizer(gpu, Q4_0, False, "F32"),
        lambda: cuda_kernels.dequantizer(gpu, Q4_0),
        lambda: CudaBackend(0, 0, 0).quantize(
            matrix(np.ones((1, 32), np.float32)), Q4_0, np.empty(18, np.uint8)
        ),
    ):
        with pytest.raises(DeviceError, match=r"^NVRTC .* makes no code for sm_35 devices: "):
            make()


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("quant_type", [IQ3_S, Q8_0], ids=lambda t: t.name)
def test_of_threads_that_are_the_first_one_loads(quant_type):
    gpu = open_gpu(0)
    proven = []
    prove = cuda_kernels._prove

    def slow(*args: Any, **options: Any) -> None:
        proven.append(args[1])
        time.sleep(0.05)  # so that the others come meanwhile
        prove(*args, **options)

    with mock.patch.object(cuda_kernels, "_prove", slow), ThreadPoolExecutor(6) as pool:
        wanted = (gpu, quant_type, False, "F32")
        made = list(pool.map(lambda _: cuda_kernels.quantizer(*wanted), range(6)))
        unpacked = list(pool.map(lambda _: cuda_kernels.dequantizer(gpu, quant_type), range(6)))
    assert proven == [quant_type]
    assert len({id(kernels) for kernels in made}) == 1
    assert len({id(kernel) for kernel in unpacked}) == 1
    del made
    gc.collect()
    assert_same_of(gaussian(np.random.default_rng(72), (9, 512)), quant_type)


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("dtype", SOURCE_TYPES)
def test_each_type_of_source_has_its_kernels(dtype):
    """Kernels are compiled for one type, and take no other's matrix."""
    gpu = open_gpu(0)
    kernels = {source: cuda_kernels.quantizer(gpu, Q4_0, False, source) for source in SOURCE_TYPES}
    assert kernels[dtype].quantize.name == f"weightcast_quantize_Q4_0_from_{dtype}"
    address = gpu.allocate(32 * 32 * 4).address
    source = DeviceMatrix(address, dtype, 32, 32, 32, 1, scales=address)
    for other in set(SOURCE_TYPES) - {dtype}:
        with pytest.raises(AssertionError):
            enqueue(gpu.stream(), kernels[other], Job(source, Q4_0, address, 18, address))


@pytest.mark.usefixtures("fresh")
def test_tables_belong_to_their_type():
    """Each type with a grid searches its own, whichever was loaded last."""
    x = gaussian(np.random.default_rng(73), (5, 256))
    names = ("IQ3_S", "IQ3_XXS", "IQ2_S", "IQ1_M")
    for name in (*names, *names):
        assert_same_of(x, TYPES[name])
        assert_same_of(x, TYPES[name], None, np.ones(256, np.float32))


@pytest.mark.usefixtures("fresh")
def test_kernels_are_made_and_proven_once():
    x = gaussian(np.random.default_rng(74), (5, 256))
    with (
        mock.patch.object(cuda_compile, "image", wraps=cuda_compile.image) as image,
        mock.patch.object(cuda_kernels, "_prove", wraps=cuda_kernels._prove) as prove,
    ):
        for _ in range(3):
            assert_same_of(x, Q8_0)
    assert [call.args[0] for call in image.call_args_list] == ["quantize_Q8_0_from_F32", "checks"]
    assert prove.call_count == 1
