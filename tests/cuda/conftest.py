"""Fixtures of the CUDA tests: a driver, the stand-in where there is no device; compiled kernels."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from tests import builds
from tests.cuda import stand_in
from weightcast.quant.cpu.library import installed
from weightcast.quant.cuda import compile as cuda_compile
from weightcast.quant.cuda.compile import Compiled


@cache
def has_real_device() -> bool:
    return stand_in.has_real_device()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what runs on a device as `gpu`; skip what needs one where there is none.

    With a device nearly all tests here run on it: `pytest -m gpu` selects them.
    """
    ours = [item for item in items if Path(__file__).parent in item.path.parents]
    if not ours:
        return
    for item in ours:
        if has_real_device() and "loaded_driver" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.gpu)
        elif not has_real_device() and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device and its driver"))


@pytest.fixture(scope="session")
def loaded_driver() -> stand_in.StandIn | None:
    """Build and load the stand-in, for the rest of the process; None where there is a device."""
    if has_real_device():
        return None
    return stand_in.StandIn(stand_in.build())


@pytest.fixture
def driver(loaded_driver: stand_in.StandIn | None) -> Iterator[stand_in.StandIn | None]:
    """A CUDA driver: the stand-in, which counts from 0 and has seen no overruns, or a real one."""
    if loaded_driver is None:
        yield None
        return
    loaded_driver.reset()
    yield loaded_driver
    overruns = loaded_driver.counter("overruns")
    loaded_driver.reset()
    assert overruns == 0, "device memory was written outside of its allocations"


@pytest.fixture
def only_stand_in(driver: stand_in.StandIn | None) -> stand_in.StandIn:
    """The stand-in, for tests of failures and of what it alone can tell."""
    if driver is None:
        pytest.skip("needs the stand-in for a driver: run with CUDA_VISIBLE_DEVICES=")
    return driver


@pytest.fixture(scope="session")
def toys(loaded_driver: stand_in.StandIn | None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the stand-in the host forms of toys.cu, the source that this returns."""
    if loaded_driver is not None:
        library = tmp_path_factory.mktemp("toys") / "toys.so"
        loaded_driver.use_kernels(stand_in.build_kernels(stand_in.HERE / "toys.cpp", library))
    return stand_in.HERE / "toys.cu"


@pytest.fixture(scope="session", autouse=True)
def kernel_cache() -> Iterator[Path]:
    """Keep images away from the user's folder: shared by all tests, also those of later runs."""
    folder = builds.FOLDER / "cuda_images"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WEIGHTCAST_CACHE", str(folder))
        patch.setattr(cuda_compile, "compile_unit", compiled_once)
        yield folder


def compiled_once(source: Path, name: str, architecture: str) -> Compiled:
    """Compile as `compile_unit` does; units of the package once for all tests and later runs."""
    if source != installed(cuda_compile.SOURCE):
        return cuda_compile_unit(source, name, architecture)
    target = cuda_compile.Target(architecture, exact=True)
    compiler = Path(cuda_compile.__file__)
    key = builds.digest((compiler,), cuda_compile.cache_key(source, name, target))

    def build(folder: Path) -> Path:
        made = folder / "compiled"
        made.write_bytes(pickle.dumps(cuda_compile_unit(source, name, architecture)))
        return made

    path = builds.built_once(f"cuda_units/{name}-{architecture}", key, build, keep=1)
    unit: Compiled = pickle.loads(path.read_bytes())
    return unit


cuda_compile_unit = cuda_compile.compile_unit


@pytest.fixture(scope="session")
def compiled(kernel_cache: Path) -> Callable[[str, str], Compiled]:
    """Compile a unit of the package for an architecture."""
    return lambda unit, architecture: compiled_once(
        installed(cuda_compile.SOURCE), unit, architecture
    )


@pytest.fixture(scope="session")
def host_kernels() -> Path:
    """Build the host form of the device kernels: a shared library, made once from its sources."""
    return stand_in.build_host_kernels()


@pytest.fixture
def kernels(driver: stand_in.StandIn | None, host_kernels: Path) -> stand_in.StandIn | None:
    """A driver on which the kernels of the package run."""
    if driver is not None:
        driver.use_kernels(host_kernels)
    return driver
