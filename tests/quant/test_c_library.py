"""The C library as a program meets it: statuses, names, NULL, small stacks, finding and linking."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tests.quant import compilers, instruction_sets
from weightcast.quant import config
from weightcast.quant.cpu import feedback, library
from weightcast.quant.cpu import groups as group_library
from weightcast.quant.search import EFFORTS
from weightcast.quant.types import SOURCE_TYPES, TYPES

ROOT = Path(__file__).parents[2]
STATUSES = range(library.NOT_DEFINITE + 1)
STRICT_C = ("cc", "-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", *config.cflags())
PROGRAM = """
#include <stdio.h>
#include <weightcast.h>
int main(void) {
  const char* name = weightcast_type_name(weightcast_type_from_name("q4_k"));
  printf("%d %s\\n", (int)weightcast_abi_version(), name);
  return weightcast_self_test(WEIGHTCAST_Q4_K);
}
"""
SAID = f"{library.ABI_VERSION} Q4_K\n"


def ci_script(name: str) -> ModuleType:
    """Import a script of .ci, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / ".ci" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def loaded() -> ctypes.CDLL:
    """The library without the argument types that the binding gives its functions."""
    found = ctypes.CDLL(library.load()._name)
    assert found is not library.load()
    for name in ("weightcast_strerror", "weightcast_type_name"):
        getattr(found, name).restype = ctypes.c_char_p
    return found


ASK_ISA = """
import ctypes, sys
library = ctypes.CDLL(sys.argv[1])
library.weightcast_isa.restype = ctypes.c_char_p
print(library.weightcast_isa().decode())
"""


@pytest.mark.parametrize(
    "wanted", ["", "bogus", "AVX2", "neon" if instruction_sets.is_x86() else "avx2"]
)
def test_the_library_ignores_an_instruction_set_that_it_does_not_have(wanted):
    """Python refuses a name of none; a C program goes on with the best that there is."""
    env = {**os.environ, "WEIGHTCAST_ISA": wanted}
    path = library.installed(library.LIBRARY_NAME)
    said = compilers.run(sys.executable, "-c", ASK_ISA, path, env=env)
    assert said.strip() == instruction_sets.available()[0]


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "program.c"
    path.write_text(PROGRAM)
    return path


def test_every_status_has_words(loaded):
    said = [loaded.weightcast_strerror(status) for status in STATUSES]
    assert len(set(said)) == len(said)
    assert said[library.OK] == b"done"
    assert b"unknown status" not in said
    for status in (-1, STATUSES.stop, 2**31 - 1, -(2**31)):
        assert loaded.weightcast_strerror(status) == b"unknown status"


def test_a_size_of_items_that_is_none_is_said(loaded):
    arguments = [as_argument(value) for value in CALLS["transpose"]]
    for item_bytes in (-1, 0, 3, 8):
        arguments[4] = ctypes.c_int64(item_bytes)
        status = loaded.weightcast_transpose(*arguments)
        assert status == library.BAD_TYPE
        assert b"type or the size of items" in loaded.weightcast_strerror(status)


def test_types_are_found_by_their_names(loaded):
    for known in {**TYPES, **SOURCE_TYPES}.values():
        assert loaded.weightcast_type_name(known.ggml_id).decode() == known.name
        for name in (known.name, known.name.lower(), known.name.capitalize()):
            assert loaded.weightcast_type_from_name(name.encode()) == known.ggml_id
    for name in (b"", b"Q4", b"Q4_K_M", b"Q4_K ", b" Q4_K", b"q9_9"):
        assert loaded.weightcast_type_from_name(name) == -1
    assert loaded.weightcast_type_from_name(None) == -1


N = 64
VALUES = np.linspace(-1, 1, N * N, dtype=np.float32).reshape(N, N)
CODES, ZEROS = np.zeros((N, N), np.uint8), np.zeros((N, 2), np.uint8)
SCALES, ROWS = np.ones((N, 2), np.float32), np.zeros((N, 4 * N), np.uint8)
MOMENTS = np.zeros(N * 1024, np.uint8)
F32 = library._Source(VALUES.ctypes.data, 0, 0, N, N, N, 1)
I8 = library._Source(CODES.ctypes.data, 24, 0, N, N, N, 1, SCALES.ctypes.data, 1, N)
GROUP = group_library._GroupType(8, 1, 0, 0, 32)
GROUPS = group_library._Groups(
    CODES.ctypes.data, SCALES.ctypes.data, ZEROS.ctypes.data, ctypes.c_int64(2)
)
RESULT = library._Result()
HESSIAN, ORDER = np.eye(N), np.arange(N)
FACTOR = feedback._Factor(HESSIAN.ctypes.data, ORDER.ctypes.data, N)
GRID = feedback._Grid(SCALES.ctypes.data, None, None, N // 2, 16, 0)
# The arguments of each function; None stands for importance, which may be NULL.
CALLS: dict[str, tuple[object, ...]] = {
    "quantize": (F32, None, 8, ROWS, 34 * 2, RESULT),
    "quantize_least_error": (F32, None, 8, 2, ROWS, 34 * 2, RESULT),
    "dequantize": (8, ROWS, N, VALUES.copy()),
    "quantize_groups": (F32, None, GROUP, GROUPS, RESULT),
    "quantize_and_measure_groups": (F32, None, 0, GROUP, GROUPS, MOMENTS, RESULT),
    "carry_groups": (I8, GROUP, GROUPS, RESULT),
    "check_carried": (I8, GROUP, GROUPS, RESULT),
    "dequantize_groups": (GROUP, GROUPS, N, N, VALUES.copy()),
    "measure": (F32, None, 0, 8, ROWS, 34 * 2, MOMENTS),
    "measure_groups": (F32, None, 0, GROUP, GROUPS, MOMENTS),
    "transpose": (CODES, N, N, N, 1, ROWS, N),
    "factor_hessian": (HESSIAN, N),
    "round_with_feedback": (VALUES, N, FACTOR, GRID, 0, CODES, np.empty(N * N), np.empty(N)),
}
TAKES_SOURCE = [n for n, a in CALLS.items() if isinstance(a[0], library._Source)]


def as_argument(value: object) -> object:
    if isinstance(value, int):
        return ctypes.c_int64(value)
    if isinstance(value, np.ndarray):
        return ctypes.c_void_p(value.ctypes.data)
    return None if value is None else ctypes.byref(value)  # type: ignore[arg-type]


def statuses_with_null(call: Callable[..., int], arguments: tuple[object, ...]) -> dict[int, int]:
    """Call with each of the pointers NULL in turn: status by place."""
    found = {}
    for place, value in enumerate(arguments):
        if value is None or isinstance(value, int):
            continue
        given = [None if i == place else as_argument(v) for i, v in enumerate(arguments)]
        found[place] = call(*given)
    return found


@pytest.mark.parametrize("name", CALLS)
def test_a_null_argument_is_a_status(name, loaded):
    call = getattr(loaded, f"weightcast_{name}")
    arguments = CALLS[name]
    assert call(*map(as_argument, arguments)) in (library.OK, library.NOT_CARRIED)
    found = statuses_with_null(call, arguments)
    assert set(found.values()) == {library.NULL_ARGUMENT}


@pytest.mark.parametrize("name", TAKES_SOURCE)
def test_a_source_without_data_is_a_status(name, loaded):
    call = getattr(loaded, f"weightcast_{name}")
    source = CALLS[name][0]
    assert isinstance(source, library._Source)
    empty = library._Source.from_buffer_copy(source)
    empty.data = None
    assert call(ctypes.byref(empty), *map(as_argument, CALLS[name][1:])) == library.NULL_ARGUMENT


BASELINES = {"measure": 2, "measure_groups": 2, "quantize_and_measure_groups": 2}  # their places


@pytest.mark.parametrize("baseline", [-(2**31), -1, 2, 3, 7, 2**31 - 1])
@pytest.mark.parametrize("name", BASELINES)
def test_an_unknown_baseline_is_a_status(name, baseline, loaded):
    call = getattr(loaded, f"weightcast_{name}")
    arguments = [as_argument(value) for value in CALLS[name]]
    for known in (0, 1):
        arguments[BASELINES[name]] = ctypes.c_int64(known)
        assert call(*arguments) == library.OK
    before, codes = MOMENTS.copy(), CODES.copy()
    arguments[BASELINES[name]] = ctypes.c_int64(baseline)
    assert call(*arguments) == library.BAD_ARGUMENT
    np.testing.assert_array_equal(MOMENTS, before)
    np.testing.assert_array_equal(CODES, codes)


@pytest.mark.parametrize("effort", [-(2**31), -1, 0, 4, 2**31 - 1])
def test_an_effort_that_is_none_is_a_status(effort, loaded):
    arguments = [as_argument(value) for value in CALLS["quantize_least_error"]]
    for known in EFFORTS:
        arguments[3] = ctypes.c_int64(known)
        assert loaded.weightcast_quantize_least_error(*arguments) == library.OK
    before = ROWS.copy()
    arguments[3] = ctypes.c_int64(effort)
    assert loaded.weightcast_quantize_least_error(*arguments) == library.BAD_ARGUMENT
    np.testing.assert_array_equal(ROWS, before)


@pytest.mark.parametrize("reserved", [1, -1, 2**30])
@pytest.mark.parametrize("name", TAKES_SOURCE)
def test_a_reserved_field_that_is_not_zero_is_a_status(name, reserved, loaded):
    source = CALLS[name][0]
    assert isinstance(source, library._Source)
    newer = library._Source.from_buffer_copy(source)
    newer.reserved = reserved
    given = (ctypes.byref(newer), *map(as_argument, CALLS[name][1:]))
    assert getattr(loaded, f"weightcast_{name}")(*given) == library.BAD_ARGUMENT


STRIDES = {
    "quantize": 4,
    "quantize_least_error": 5,
    "measure": 5,
    "transpose": 6,
}  # their places, after those of the source
ROW = dict.fromkeys(STRIDES, 34 * 2) | {"transpose": N}


@pytest.mark.parametrize("name", STRIDES)
def test_rows_that_overlap_are_a_status(name, loaded):
    call = getattr(loaded, f"weightcast_{name}")
    arguments = [as_argument(value) for value in CALLS[name]]
    before = ROWS.copy(), MOMENTS.copy()
    for stride in (ROW[name] - 1, 1, 0, -1, -ROW[name], -10 * ROW[name], -(2**63)):
        arguments[STRIDES[name]] = ctypes.c_int64(stride)
        assert call(*arguments) == library.BAD_SHAPE, stride
        np.testing.assert_array_equal(ROWS, before[0])
        np.testing.assert_array_equal(MOMENTS, before[1])
    for stride in (ROW[name], ROW[name] + 3):
        arguments[STRIDES[name]] = ctypes.c_int64(stride)
        assert call(*arguments) == library.OK, stride


@pytest.mark.parametrize("stride", [0, 1, -1, 2**63 - 1])
def test_the_stride_of_a_single_row_does_not_matter(stride, loaded):
    row = library._Source.from_buffer_copy(F32)
    row.n_out = 1
    of_row = [ctypes.byref(row), *map(as_argument, CALLS["quantize"][1:])]
    of_row[STRIDES["quantize"]] = ctypes.c_int64(stride)
    assert loaded.weightcast_quantize(*of_row) == library.OK
    of_row = [ctypes.byref(row), *map(as_argument, CALLS["measure"][1:])]
    of_row[STRIDES["measure"]] = ctypes.c_int64(stride)
    assert loaded.weightcast_measure(*of_row) == library.OK
    of_column = [as_argument(value) for value in CALLS["transpose"]]
    of_column[3], of_column[6] = ctypes.c_int64(1), ctypes.c_int64(stride)
    assert loaded.weightcast_transpose(*of_column) == library.OK


@pytest.mark.parametrize("field", ["codes", "scales", "zero_points"])
def test_groups_without_an_array_are_a_status(field, loaded):
    lacking = group_library._Groups.from_buffer_copy(GROUPS)
    setattr(lacking, field, None)
    asymmetric = group_library._GroupType(8, 0, 0, 0, 32)
    for name, arguments in CALLS.items():
        takes_groups = any(value is GROUPS for value in arguments)
        if not takes_groups or name in ("carry_groups", "check_carried"):  # symmetric ones alone
            continue
        swap = {id(GROUPS): lacking, id(GROUP): asymmetric}
        given = [as_argument(swap.get(id(value), value)) for value in arguments]
        assert getattr(loaded, f"weightcast_{name}")(*given) == library.NULL_ARGUMENT, name


@pytest.mark.parametrize(
    ("of", "field", "value", "status"),
    [
        (FACTOR, "values", None, library.NULL_ARGUMENT),
        (FACTOR, "order", None, library.NULL_ARGUMENT),
        (FACTOR, "n", -1, library.BAD_SHAPE),
        (GRID, "steps", None, library.NULL_ARGUMENT),
        (GRID, "group_size", 0, library.BAD_SHAPE),
        (GRID, "group_size", 3, library.BAD_SHAPE),
        (GRID, "n_levels", 1, library.BAD_ARGUMENT),
        (GRID, "n_levels", 257, library.BAD_ARGUMENT),
        (GRID, "reserved", 1, library.BAD_ARGUMENT),
    ],
)
def test_feedback_that_makes_no_sense_is_a_status(of, field, value, status, loaded):
    other = type(of).from_buffer_copy(of)
    setattr(other, field, value)
    arguments = CALLS["round_with_feedback"]
    given = [as_argument(other if argument is of else argument) for argument in arguments]
    assert loaded.weightcast_round_with_feedback(*given) == status


def test_columns_that_are_none_are_a_status(loaded):
    for bad in (-1, N):
        order = ORDER.copy()
        order[5] = bad
        wrong = feedback._Factor(HESSIAN.ctypes.data, order.ctypes.data, N)
        arguments = CALLS["round_with_feedback"]
        given = [as_argument(wrong if argument is FACTOR else argument) for argument in arguments]
        assert loaded.weightcast_round_with_feedback(*given) == library.BAD_ARGUMENT


@pytest.mark.parametrize("pivot", [0.0, -1.0, np.nan, np.inf])
def test_a_pivot_that_is_not_positive_is_a_status(pivot, loaded):
    hessian = np.eye(100)
    hessian[70, 70] = pivot
    status = loaded.weightcast_factor_hessian(*map(as_argument, (hessian, 100)))
    assert status == library.NOT_DEFINITE


def test_grid_tables_need_no_size(loaded):
    loaded.weightcast_grid_tables.restype = ctypes.c_void_p
    size = ctypes.c_int64()
    grid = TYPES["IQ2_XS"].ggml_id
    assert loaded.weightcast_grid_tables(grid, ctypes.byref(size)) is not None
    assert loaded.weightcast_grid_tables(grid, None) is not None
    assert size.value > 2**18
    assert loaded.weightcast_grid_tables(0, None) is None


def test_a_call_without_memory_is_a_status(tmp_path):
    source, path = compilers.SOURCES / "no_memory.c", tmp_path / "no_memory"
    compilers.run(*STRICT_C, source, "-o", path, "-Wl,--wrap=malloc", *config.static())
    assert compilers.run(path) == "0 wrong\n"


def test_python_raises_memory_error():
    assert library._check_memory(library.OVERFLOW, None, None) == library.OVERFLOW
    with pytest.raises(MemoryError):
        library._check_memory(library.NO_MEMORY, None, None)
    assert library.load().weightcast_quantize.errcheck is library._check_memory


def test_stack_stays_within_what_the_header_states(tmp_path):
    path = tmp_path / "stack"
    compilers.run(
        *(STRICT_C[0], "-std=gnu99", "-O1", *STRICT_C[3:], compilers.SOURCES / "stack.c"),
        *("-o", path, *config.libs(), "-pthread"),
    )
    for isa in instruction_sets.available():
        said = compilers.run(path, env={**os.environ, "WEIGHTCAST_ISA": isa}).splitlines()
        assert said[0] == f"{isa} states 49152"
        used = {line.rpartition(" ")[0]: int(line.rpartition(" ")[2]) for line in said[1:]}
        assert used.keys() >= TYPES.keys()
        assert max(used.values()) < 49152 - 4096, max(used.items(), key=lambda item: item[1])
        assert min(used.values()) > 1000  # the paint was read


def test_the_library_needs_libc_alone():
    path = Path(library.load()._name)
    assert ci_script("check_library").problems(path) == []
    said = compilers.run("readelf", "-d", path)
    assert re.findall(r"SONAME.*\[(.+)\]", said) == [path.name]
    assert path.name == f"libweightcast.so.{library.ABI_VERSION}"


def test_the_page_names_this_library_and_the_options():
    page = (ROOT / "docs" / "c.md").read_text("utf-8")
    named = set(re.findall(r"libweightcast\.so\.\d+", page))
    assert named == {Path(library.LIBRARY_NAME).name}
    listed = re.findall(r"(?m)^\| `(--\w+)` \|", page)
    assert listed == [*config.OPTIONS, "--help"]
    ctypes.CDLL(str(library.installed(library.LIBRARY_NAME)))
    with pytest.raises(OSError, match=r"too short|invalid ELF|format"):
        ctypes.CDLL(str(library.installed("lib/libweightcast.so")))


def test_a_library_that_needs_more_is_noticed(tmp_path):
    source, built = tmp_path / "more.cpp", tmp_path / "more.so"
    source.write_text("#include <string>\nstd::string f() { return std::to_string(1.5f); }\n")
    compilers.run("g++", "-shared", "-fPIC", source, "-o", built)
    found = ci_script("check_library").problems(built)
    assert "it needs libstdc++.so.6" in found


def test_static_library_needs_no_other(program):
    path = program.with_suffix("")
    compilers.run(*STRICT_C, program, "-o", path, *config.static())
    assert compilers.run(path) == SAID
    assert "libweightcast" not in compilers.run("readelf", "-d", path)


def linked_by_pkg_config(program: Path, folder: Path) -> str:
    """Build with the flags of pkg-config, run, and return what the program said."""
    env = {**os.environ, "PKG_CONFIG_PATH": str(folder)}
    flags = compilers.run("pkg-config", "--cflags", "--libs", "weightcast", env=env).split()
    libdir = compilers.run("pkg-config", "--variable=libdir", "weightcast", env=env).strip()
    compilers.run("cc", program, "-o", program.with_suffix(""), *flags, f"-Wl,-rpath,{libdir}")
    return compilers.run(program.with_suffix(""))


def linked_by_cmake(program: Path, folder: Path) -> list[str]:
    """Build with both targets of the CMake package, run, and return what the programs said."""
    (program.parent / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.15)\n"
        "project(uses C)\n"
        "find_package(weightcast REQUIRED)\n"
        "foreach(kind weightcast weightcast_static)\n"
        "  add_executable(with_${kind} program.c)\n"
        "  target_link_libraries(with_${kind} weightcast::${kind})\n"
        "endforeach()\n"
    )
    build = program.parent / "build"
    compilers.run("cmake", "-S", program.parent, "-B", build, f"-Dweightcast_DIR={folder}")
    compilers.run("cmake", "--build", build)
    kinds = ("weightcast", "weightcast_static")
    return [compilers.run(build / f"with_{kind}") for kind in kinds]


needs_pkg_config = pytest.mark.skipif(
    shutil.which("pkg-config") is None, reason="no pkg-config: apt-get install pkgconf"
)
needs_cmake = pytest.mark.skipif(
    shutil.which("cmake") is None, reason="no CMake: pip install cmake"
)


@needs_pkg_config
def test_pkg_config_finds_the_installed_package(program):
    assert linked_by_pkg_config(program, Path(*config.pkgconfigdir())) == SAID


@needs_cmake
def test_cmake_finds_the_installed_package(program):
    assert linked_by_cmake(program, Path(*config.cmakedir())) == [SAID, SAID]


@needs_pkg_config
@needs_cmake
@pytest.mark.exhaustive  # compiles all kernels
def test_cmake_installs_to_a_prefix(program, tmp_path):
    build, prefix = tmp_path / "library", tmp_path / "prefix"
    compilers.run("cmake", "-S", ROOT, "-B", build, f"-DCMAKE_INSTALL_PREFIX={tmp_path / 'first'}")
    compilers.run("cmake", "--build", build, "--parallel", "2")
    compilers.run("cmake", "--install", build)
    (tmp_path / "first").rename(prefix)  # what is installed can be moved
    lib = next(prefix.glob("lib*"))
    assert (lib / "libweightcast.so").is_symlink()
    assert linked_by_pkg_config(program, lib / "pkgconfig") == SAID
    assert linked_by_cmake(program, lib / "cmake" / "weightcast") == [SAID, SAID]


@needs_cmake
def test_a_missing_compiler_is_said_with_what_to_install(tmp_path):
    """CMake, as pip runs it, where there is a program that builds but none that compiles."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("make", "ninja"):
        if found := shutil.which(name):
            (tools / name).symlink_to(found)
    cmake = shutil.which("cmake")
    assert cmake is not None
    env = {k: v for k, v in os.environ.items() if k not in ("CC", "CXX", "CMAKE_GENERATOR")}
    done = subprocess.run(
        [cmake, "-S", ROOT, "-B", tmp_path / "build"],
        capture_output=True,
        text=True,
        env={**env, "PATH": str(tools)},
    )
    assert done.returncode == 1
    said = " ".join(done.stderr.split())
    assert "no C++17 compiler was found, which weightcast is built with; install one (De" in said
    assert "apt-get install g++" in said


@pytest.mark.skipif(
    shutil.which("musl-gcc") is None, reason="no musl-gcc: apt-get install musl-tools"
)
def test_the_same_library_runs_on_musl(program):
    """Alpine's libc: linked with the shared library that glibc made, and with the static one."""
    path = program.with_suffix("")
    for libraries in (config.libs(), ["-static", *config.static()]):
        compilers.run("musl-gcc", program, *config.cflags(), "-o", path, *libraries)
        assert compilers.run(path) == SAID
