"""Under the address and undefined-behaviour sanitizers nothing reads or writes out of bounds.

Also, the header is plain C99, and the ctypes binding has the layout that a C compiler gives it.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests import builds
from tests.quant import compilers, instruction_sets
from tests.quant.kernel_types import BLOCK_TYPES
from weightcast.quant.cpu import groups as group_library
from weightcast.quant.cpu import library
from weightcast.quant.metrics import MOMENTS
from weightcast.quant.types import SOURCE_TYPES, TYPES

SANITIZE = (
    "-std=c++17",
    "-Og",  # -O1 compiles for twice as long
    "-g",
    # These two take g++ six times as long for the large functions of the kernels.
    "-fno-sanitize-address-use-after-scope",
    "-fno-var-tracking",
    "-ffp-contract=off",
    "-fno-omit-frame-pointer",
    "-fsanitize=address,undefined,float-cast-overflow",
    "-fno-sanitize-recover=all",
    *compilers.STRICT,
)
# As CMakeLists.txt compiles them.
FLAGS = {
    "scalar": [],
    "sse2": ["-DWC_VECTORS_128"],
    "avx2": ["-mavx2"],
    "avx512": [
        "-mavx512f",
        "-mavx512bw",
        "-mavx512vl",
        "-mavx512dq",
        "-mprefer-vector-width=512",
        "-Wno-uninitialized",
        "-Wno-maybe-uninitialized",
    ],
}


STATUSES = (
    "OK",
    "BAD_TYPE",
    "BAD_SHAPE",
    "NOT_FINITE",
    "OVERFLOW",
    "NEEDS_IMPORTANCE",
    "BAD_IMPORTANCE",
    "MISCOMPILED",
    "INEXACT_SCALE",
    "NOT_CARRIED",
    "NULL_ARGUMENT",
    "NO_MEMORY",
    "BAD_ARGUMENT",
    "NOT_DEFINITE",
)


def build(folder: Path, isas: Sequence[str]) -> Path:
    """Compile the driver and the kernels of instruction sets from the checkout."""
    gxx = ("g++", *SANITIZE, "-c")
    define = ["-DWEIGHTCAST_X86=1"] if instruction_sets.is_x86() else []
    objects: dict[str, tuple[object, ...]] = {
        f"{isa}-{name}": (*FLAGS[isa], f"-DWC_ISA={isa}", compilers.ABI / f"{name}.cpp")
        for isa in isas
        for name in compilers.ISA_SOURCES
    }
    for isa in FLAGS.keys() - isas if define else ():  # dispatch.cpp names them all
        objects[isa] = (*define, f"-DMISSING=kernels_{isa}", compilers.SOURCES / "missing.cpp")
    objects["driver"] = (compilers.SOURCES / "sanitize.cpp",)
    for name in compilers.COMMON_SOURCES:
        objects[name] = (*define, compilers.ABI / f"{name}.cpp")
    compilers.run_all([(*gxx, *flags, "-o", folder / name) for name, flags in objects.items()])
    program = folder / "program"
    compilers.run("g++", *SANITIZE, *(folder / name for name in objects), "-o", program)
    return program


# The best instruction set has the widest loads and stores, the scalar one none: in these two every
# bound is that of a vector, or of an element. Each takes a quarter of a minute to compile.
@pytest.mark.parametrize(
    "isas",
    [
        pytest.param(dict.fromkeys((instruction_sets.available()[0], "scalar")), id="two"),
        pytest.param(
            dict.fromkeys(instruction_sets.available()), id="all", marks=pytest.mark.exhaustive
        ),
    ],
)
def test_every_instruction_set_is_clean_and_gives_the_same_bytes(isas):
    sources = (*compilers.KERNELS.rglob("*.*"), *compilers.SOURCES.glob("*.cpp"), Path(__file__))
    name = builds.digest(sorted(sources), *isas)
    program = builds.built_once("sanitizers", name, lambda folder: build(folder, list(isas)))
    environments = [{**os.environ, "WEIGHTCAST_ISA": isa} for isa in isas]
    with ThreadPoolExecutor(2) as pool:
        said = list(
            pool.map(lambda env: compilers.run(program, env=env).splitlines(), environments)
        )
    assert [lines[0] for lines in said] == list(isas)
    parts = [line.split(":")[0] for line in said[0][1:]]
    by_number = sorted(BLOCK_TYPES.values(), key=lambda t: t.ggml_id)
    assert parts == [
        "shapes",
        *(t.name for t in by_number),
        "dequantize",
        "groups",
        "carried groups",
        "measure",
        "feedback",
    ]
    for lines in said:
        assert lines[1:] == said[0][1:]


def test_header_is_plain_c_and_agrees_with_the_binding(tmp_path):
    c99 = ("gcc", "-std=c99", "-pedantic", *compilers.STRICT)
    compilers.run(*c99, compilers.SOURCES / "header.c", "-o", tmp_path / "header")
    said = compilers.run(tmp_path / "header").splitlines()
    expected = []
    structures = {
        "weightcast_source": library._Source,
        "weightcast_result": library._Result,
        "weightcast_group_type": group_library._GroupType,
        "weightcast_groups": group_library._Groups,
    }
    for c_name, structure in structures.items():
        for name, _ in structure._fields_:
            field = getattr(structure, name)
            expected.append(f"{c_name} {name} {field.offset} {field.size}")
    for name, (dtype, offset) in (MOMENTS.fields or {}).items():
        expected.append(f"weightcast_moments {name} {offset} {dtype.itemsize}")
    for c_name, structure in structures.items():
        expected.append(f"{c_name} size 0 {ctypes.sizeof(structure)}")
    expected.append(f"weightcast_moments size 0 {MOMENTS.itemsize}")
    types = sorted({**SOURCE_TYPES, **TYPES}.values(), key=lambda t: t.ggml_id)
    expected += [f"type {t.name} {t.ggml_id}" for t in types]
    expected += [f"status {name} {getattr(library, name)}" for name in STATUSES]
    expected.append(f"abi {library.ABI_VERSION}")
    assert said == expected


@pytest.mark.parametrize("standard", ["c++11", "c++17", "c++20"])
def test_header_is_cplusplus(standard, tmp_path):
    source = tmp_path / "uses.cpp"
    source.write_text('#include "weightcast.h"\nint main() { return WEIGHTCAST_OK; }\n')
    compilers.run(
        "g++",
        f"-std={standard}",
        "-pedantic",
        *compilers.STRICT,
        "-c",
        source,
        "-o",
        tmp_path / "uses.o",
    )
