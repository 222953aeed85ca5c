"""Fixtures of the CUDA tests: one cache folder, in which each unit is compiled once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.cuda_resources import compile_all
from weightcast.quant import cuda_cache, cuda_kernels
from weightcast.quant.cuda_kernels import Compiled
from weightcast.quant.library import installed


@pytest.fixture(scope="session", autouse=True)
def kernel_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep images away from the user's folder, shared by the tests of a session."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WEIGHTCAST_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def compiled(kernel_cache: Path) -> dict[tuple[str, str], Compiled]:
    """Compile every unit for every architecture, also for the tests that ask for images."""
    made = compile_all()
    for (unit, architecture), parts in made.items():
        target = cuda_kernels.target_for(architecture)
        key = cuda_kernels.cache_key(installed(cuda_kernels.SOURCE), unit, target)
        assert cuda_cache.write(key, parts.cubin)
    return made
