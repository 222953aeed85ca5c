"""The golden bytes that the library checks itself with."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from types import SimpleNamespace

import pytest

from tests.quant import compilers, golden, instruction_sets
from weightcast.quant.cpu import library
from weightcast.quant.types import I8, TYPES

TABLE = compilers.ABI / "self_test_golden.inc"


def test_the_table_is_what_ggml_makes():
    assert TABLE.read_text() == golden.table()


@pytest.mark.parametrize("isa", instruction_sets.available())
def test_every_instruction_set_passes(isa, tmp_path):
    copy = instruction_sets.load_copy(isa, tmp_path / isa)
    for quant_type in TYPES.values():
        assert copy.weightcast_self_test(quant_type.ggml_id) == library.OK, quant_type.name
    assert copy.weightcast_self_test(I8.ggml_id) == library.BAD_TYPE
    assert copy.weightcast_self_test(99) == library.BAD_TYPE


def test_a_miscompiled_library_is_refused():
    def fails(type_id: int) -> int:
        return library.MISCOMPILED if type_id == TYPES["Q5_K"].ggml_id else library.OK

    broken = SimpleNamespace(
        _name="lib.so", weightcast_self_test=fails, weightcast_isa=lambda: b"x"
    )
    handle = ctypes.CDLL(None)
    for name, value in vars(broken).items():
        setattr(handle, name, value)
    library.check_build(handle, TYPES["Q4_K"])
    with pytest.raises(
        ImportError, match=r"wrong Q5_K blocks .instruction set x.: it was miscompi"
    ):
        library.check_build(handle, TYPES["Q5_K"])


def test_contraction_to_fma_is_noticed(tmp_path):
    """The likeliest mistake of a build: flags of one's own, with FMA and contraction."""
    built = tmp_path / "libfma.so"
    flags = ["-std=c++17", "-O2", "-mavx2", "-mfma", "-ffp-contract=fast", "-fPIC", "-shared"]
    flags += [f"-I{compilers.KERNELS}", "-DWC_ISA=scalar"]
    names = (*compilers.ISA_SOURCES, *compilers.COMMON_SOURCES)
    sources = [compilers.ABI / f"{name}.cpp" for name in names]
    command = ["g++", *flags, *sources, "-o", built]
    if not instruction_sets.is_x86() or "avx2" not in instruction_sets.available():
        pytest.skip("needs a processor with AVX2")
    subprocess.run(command, check=True)
    loaded = ctypes.CDLL(str(built))
    status = {t.name: loaded.weightcast_self_test(t.ggml_id) for t in TYPES.values()}
    assert library.MISCOMPILED in status.values()
    assert status["F32"] == status["BF16"] == library.OK


def test_import_runs_it():
    code = (
        "from weightcast.quant.cpu import library as l; l.load(); print(l.check_build.cache_info())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f"misses={sum(not t.has_grid for t in TYPES.values())}" in done.stdout
