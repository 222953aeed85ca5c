"""The kernels' machine code, as NVRTC makes it: arithmetic in the PTX, resources in the log."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from unittest import mock

import pytest

from benchmarks.cuda_resources import ARCHITECTURES, Usage, usages
from tests.support import some
from weightcast.quant.cuda import compile as cuda_compile
from weightcast.quant.cuda.compile import UNITS, Compiled, compile_unit
from weightcast.quant.cuda.launch import (
    CHECK_THREADS,
    MAX_SHARED_BYTES,
    dequantize_launch,
    group_launch,
    quantize_launch,
)
from weightcast.quant.types import TYPES, QuantType

# Of the hardware, for all three architectures.
REGISTERS_PER_MULTIPROCESSOR = 65536
# Of ours, about a third above what the worst kernel takes: more means that something went wrong.
SPILL_STORE_LIMIT_BYTES = 330
SPILL_LOAD_LIMIT_BYTES = 430
STACK_LIMIT_BYTES = 1792
RESIDENT_THREADS = 256  # a multiprocessor, as far as registers go

# Searches for the least error hold candidates of all groups; compiling one takes seconds.
SEARCH_STACK_LIMIT_BYTES = 6144
SEARCH_SPILL_LIMIT_BYTES = 2048
SEARCHES = ("search_Q4_0_from_F32", "search_Q4_0_from_I8", "search_Q4_K_from_I8")


# Compiling takes a second for each. Of mistakes in the source or in the options one architecture
# tells as much as three; the others are compiled for how registers suffice, of rules and
# dequantizers, from the sources that releases have.
def _is_compiled(unit: str, architecture: str) -> bool:
    is_usual = not unit.endswith(("_from_F16", "_from_BF16"))
    is_rule = not unit.startswith(("measure_", "search_")) or unit in SEARCHES
    return architecture == "sm_90" or (is_usual and is_rule)


with_unit = pytest.mark.parametrize(
    ("unit", "architecture"),
    some(
        [each for each in product(UNITS, ARCHITECTURES) if _is_compiled(*each)],
        lambda unit, architecture: (
            architecture == "sm_90"
            and not unit.endswith(("_from_F16", "_from_BF16"))
            and (not unit.startswith("search_") or unit in SEARCHES)
        ),
    ),
)
Compile = Callable[[str, str], Compiled]

INSTRUCTION = re.compile(r"^\s*(?:@!?%p\d+\s+)?([a-z]\w*(?:\.[\w:]+)*)\s+[^;:]*;", re.MULTILINE)
FLOATS = {"f16", "f16x2", "bf16", "bf16x2", "f32", "f32x2", "f64"}
ROUNDED = {"add", "sub", "mul", "div", "sqrt", "rcp"}
FUSED = {"fma", "mad"}
INEXACT = {"ftz", "approx", "full", "rz", "rm", "rp"}


def wrong_arithmetic(ptx: str) -> Iterator[str]:
    """Find instructions on floats that could round otherwise than the CPU does."""
    for opcode in INSTRUCTION.findall(ptx):
        operation, *modifiers = opcode.split(".")
        if not FLOATS & set(modifiers):
            continue
        # Conversions to whole numbers state how they round.
        inexact = INEXACT - {"rz", "rm", "rp"} if operation == "cvt" else INEXACT
        # Without .rn the assembler may contract a product and a sum.
        loose = operation in ROUNDED and "rn" not in modifiers
        if operation in FUSED or loose or inexact & set(modifiers):
            yield opcode


def test_wrong_arithmetic_is_recognized(tmp_path: Path) -> None:
    contracted = """
        mul.f32 %f1, %f2, %f3;
    @%p1 fma.rn.f32 %f1, %f2, %f3, %f4;
        add.rn.ftz.f32 %f1, %f2, %f3;
        div.full.f32 %f1, %f2, %f3;
        rcp.approx.ftz.f32 %f1, %f2;
        rsqrt.approx.f32 %f1, %f2;
        setp.gt.ftz.f32 %p1, %f1, %f2;
        fma.rn.f64 %fd1, %fd2, %fd3, %fd4;
    @!%p2 add.rz.f32 %f1, %f2, %f3;
    """
    assert len(list(wrong_arithmetic(contracted))) == 9
    exact = """
        mul.rn.f32 %f1, %f2, %f3;
        mad.lo.s32 %r1, %r2, %r3, %r4;
        cvt.rzi.s32.f32 %r1, %f1;
        cvt.rz.f32.f64 %f1, %fd1;
        setp.gt.f32 %p1, %f1, %f2;
        mul.wide.s32 %rd1, %r1, 4;
    """
    assert not list(wrong_arithmetic(exact))
    source = tmp_path / "device.cu"
    source.write_text('extern "C" __global__ void f(float* x) { x[0] = __fdividef(x[1], x[2]); }')
    ptx = compile_unit(source, "checks", "sm_90").ptx.decode()
    assert [opcode.split(".")[:2] for opcode in wrong_arithmetic(ptx)] == [["div", "approx"]]


@with_unit
def test_arithmetic_rounds_as_the_cpu_does(compiled: Compile, unit: str, architecture: str) -> None:
    ptx = compiled(unit, architecture).ptx.decode()
    assert f".target {architecture}\n" in ptx
    assert list(wrong_arithmetic(ptx)) == []


def test_arithmetic_is_there_to_be_looked_at(
    compiled: Compile,
) -> None:
    opcodes = INSTRUCTION.findall(compiled("quantize_Q4_K_from_F32", "sm_90").ptx.decode())
    assert {"mul.rn.f32", "add.rn.f32", "div.rn.f32"} <= set(opcodes)


@with_unit
def test_kernels_fit_a_multiprocessor(compiled: Compile, unit: str, architecture: str) -> None:
    made = compiled(unit, architecture)
    assert made.cubin.startswith(b"\x7fELF")
    found = {usage.kernel: usage for usage in usages(made)}
    assert set(found) == set(re.findall(r"\.entry (\w+)\(", made.ptx.decode()))
    if unit != "checks":
        assert f"weightcast_{unit}" in found
    for kernel, usage in found.items():
        assert f".text.{kernel}\0".encode() in made.cubin
        assert resident_threads(usage) >= RESIDENT_THREADS, usage
        assert usage.shared_bytes <= MAX_SHARED_BYTES, usage
        searches = unit.startswith("search_")
        stack = SEARCH_STACK_LIMIT_BYTES if searches else STACK_LIMIT_BYTES
        stores = SEARCH_SPILL_LIMIT_BYTES if searches else SPILL_STORE_LIMIT_BYTES
        loads = SEARCH_SPILL_LIMIT_BYTES if searches else SPILL_LOAD_LIMIT_BYTES
        assert usage.stack_bytes <= stack, usage
        assert usage.spill_store_bytes <= stores, usage
        assert usage.spill_load_bytes <= loads, usage


def resident_threads(usage: Usage) -> int:
    """Count the threads that a multiprocessor has registers for, in whole blocks."""
    block = usage.threads or CHECK_THREADS
    allocated = -(-usage.registers // 8) * 8
    return REGISTERS_PER_MULTIPROCESSOR // (allocated * block) * block


def test_usage_is_read_from_the_log(tmp_path: Path) -> None:
    source = tmp_path / "device.cu"
    source.write_text(
        """
        extern "C" __global__ void __launch_bounds__(96) shares(float* x) {
          __shared__ float staged[32];
          staged[threadIdx.x] = x[threadIdx.x];
          __syncthreads();
          x[threadIdx.x] = staged[31 - threadIdx.x];
        }
        extern "C" __global__ void __launch_bounds__(1024) spills(const float* x, float* y) {
          float held[100] = {};
          for (int times = 0; times < 9; ++times) {
        #pragma unroll
            for (int n = 0; n < 100; ++n) held[n] = held[n] * x[times] + x[n];
          }
        #pragma unroll
          for (int n = 0; n < 100; ++n) y[n] = held[99 - n];
        }
        extern "C" __global__ void stacks(const int* x, float* y) {
          float held[50];
          for (int n = 0; n < 50; ++n) held[x[n]] = y[n];
          y[0] = held[x[51]];
        }
        """
    )
    found = {usage.kernel: usage for usage in usages(compile_unit(source, "checks", "sm_90"))}
    assert set(found) == {"shares", "spills", "stacks"}
    assert (found["shares"].threads, found["shares"].shared_bytes) == (96, 128)
    assert (found["spills"].threads, found["spills"].registers) == (1024, 64)
    assert found["spills"].spill_store_bytes > 0
    assert found["spills"].spill_load_bytes > 0
    assert found["stacks"].threads is None
    assert found["stacks"].stack_bytes >= 200
    assert found["shares"].stack_bytes == found["shares"].spill_store_bytes == 0
    # Each value is multiplied and added to, and stored in the end.
    assert found["spills"].instructions > 300 > found["shares"].instructions > 3


@pytest.mark.parametrize("quant_type", TYPES.values(), ids=TYPES)
def test_kernels_are_compiled_for_the_threads_they_are_launched_with(
    compiled: Compile, quant_type: QuantType
) -> None:
    name, length = quant_type.name, quant_type.block_elements
    for along_in in (False, True):
        launch = quantize_launch(quant_type, 64, length, along_in=along_in, dst=0, dst_stride=0)
        if quant_type.importance != "required":
            assert threads(compiled, f"quantize_{name}_from_F32") == launch.threads
        if quant_type.importance != "ignored":
            assert threads(compiled, f"quantize_weighed_{name}_from_F32") == launch.threads
    assert threads(compiled, f"dequantize_{name}") == dequantize_launch(quant_type, 1, 0).threads


def test_group_kernels_are_compiled_for_the_threads_they_are_launched_with(
    compiled: Compile,
) -> None:
    for unit in ("make_groups_from_F32", "make_weighed_groups_from_F32"):
        assert threads(compiled, unit) == group_launch(1).threads


def threads(compiled: Compile, unit: str) -> int | None:
    found = {usage.kernel: usage for usage in usages(compiled(unit, "sm_90"))}
    return found[f"weightcast_{unit}"].threads


def test_images_come_from_the_folder() -> None:
    made = cuda_compile.image("dequantize_Q8_0", "sm_90")
    cuda_compile._image_once.cache_clear()
    unused = mock.patch.object(cuda_compile, "compile_unit", side_effect=AssertionError)
    with unused:
        image = cuda_compile.image("dequantize_Q8_0", "sm_90")
    assert image == made
    assert b".text.weightcast_dequantize_Q8_0\0" in image
