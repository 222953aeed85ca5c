"""Compilation of units of kernels and the cache on disk, with small units of the tests' own."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest

from weightcast.errors import DeviceError
from weightcast.quant.cuda import cache as cuda_cache
from weightcast.quant.cuda import compile as cuda_compile
from weightcast.quant.cuda.compile import Compiled, Target, image_of

UNIT = "quantize_Q4_K_from_F32"
SOURCE = """
#include "simd/arithmetic.h"
#if defined(WC_WEIGHED)
extern "C" __global__ void weighed(float* x) { x[0] = x[1] * x[2]; }
#elif defined(WC_QUANTIZE)
extern "C" __global__ void quantize(float* x) { x[0] = combine(x[1], x[2]); }
#elif defined(WC_DEQUANTIZE)
extern "C" __global__ void dequantize(float* x) { x[0] = x[1] / x[2]; }
#elif WC_CHECKS == 1
extern "C" __global__ void check(float* x) { x[0] = 1.0f; }
#endif
"""
HEADER = "inline float combine(float a, float b) { return a * a + b; }\n"


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A unit and its header, with a cache folder of their own."""
    monkeypatch.setenv("WEIGHTCAST_CACHE", str(tmp_path / "cache"))
    return write_sources(tmp_path / "sources")


def write_sources(folder: Path) -> Path:
    """Write a source in a folder of its own, below its headers."""
    source = folder / "device" / "device.cu"
    source.parent.mkdir(parents=True)
    source.write_text(SOURCE)
    header_of(source).parent.mkdir()
    header_of(source).write_text(HEADER)
    return source


def header_of(source: Path) -> Path:
    return cuda_compile.include_root(source) / "simd" / "arithmetic.h"


def forget() -> None:
    """Make the next call start as a new process does."""
    cuda_compile._image_once.cache_clear()
    cuda_compile._sources.cache_clear()


@contextmanager
def counted() -> Iterator[list[str]]:
    """Collect the names of the units compiled meanwhile, as in a new process."""
    names: list[str] = []

    def compile_unit(source: Path, name: str, architecture: str) -> Compiled:
        names.append(name)
        return original(source, name, architecture)

    original = cuda_compile.compile_unit
    forget()
    with mock.patch.object(cuda_compile, "compile_unit", compile_unit):
        yield names


def entries() -> list[Path]:
    return [path for path in (cuda_cache.folder() / "entries").rglob("*") if path.is_file()]


def test_every_unit_gets_its_own_kernels(source: Path) -> None:
    kernels = {"checks": b"check", UNIT: b"quantize", "dequantize_F16": b"dequantize"}
    for name, kernel in {**kernels, "quantize_weighed_Q4_K_from_F32": b"weighed"}.items():
        image = image_of(source, name, "sm_90")
        assert image.startswith(b"\x7fELF")
        assert b".text." + kernel + b"\0" in image


def test_a_second_process_compiles_nothing(source: Path) -> None:
    with counted() as names:
        first = image_of(source, UNIT, "sm_90")
        assert image_of(source, UNIT, "sm_90") is first
    assert names == [UNIT]
    with counted() as names:
        assert image_of(source, UNIT, "sm_90") == first
    assert names == []


def test_key_depends_on_every_ingredient(source: Path, tmp_path: Path) -> None:
    def key(name: str = UNIT, target: Target = Target("sm_90", True)) -> str:  # noqa: B008
        forget()
        return cuda_compile.cache_key(source, name, target)

    first = key()
    keys = [
        first,
        key(name="quantize_Q5_K_from_F32"),
        key(name="dequantize_Q4_K"),
        key("quantize_weighed_Q4_K_from_F32"),
        key(name="checks"),
    ]
    keys += [key(target=Target("sm_80", True)), key(target=Target("sm_90", False))]
    with mock.patch.object(cuda_compile, "nvrtc_build", return_value=("13.6", "1", "2")):
        keys.append(key())
    options = cuda_compile._options(UNIT, "sm_90")
    options.max_register_count = 64
    with mock.patch.object(cuda_compile, "_options", return_value=options):
        keys.append(key())
    header = header_of(source)
    header.write_text(HEADER + "\n")
    keys.append(key())
    header.write_text(HEADER)
    for place in (header.with_name("renamed.h"), source.with_name(header.name)):
        header.rename(place)
        keys.append(key())
        place.rename(header)
    source.write_text(SOURCE + "\n")
    keys.append(key())
    source.write_text(SOURCE)
    (source.parent / "nvrtc").mkdir()
    (source.parent / "nvrtc" / "cstdint").write_text("using uint8_t = unsigned char;")
    keys.append(key())
    (source.parent / "nvrtc" / "cstdint").unlink()
    other = source.with_name("other.cu")
    other.write_text(SOURCE)
    keys.append(key())
    keys.append(cuda_compile.cache_key(other, UNIT, Target("sm_90", True)))
    other.unlink()
    assert len(set(keys)) == len(keys)
    assert key() == first
    (source.parent / "host.cpp").write_text("int main() {}")
    assert key() == first
    forget()
    moved = write_sources(tmp_path / "elsewhere")
    assert cuda_compile.cache_key(moved, UNIT, Target("sm_90", True)) == first


@pytest.mark.parametrize("damage", ["empty", "digest", "half", "last byte", "flipped", "longer"])
def test_damaged_files_are_made_again(source: Path, damage: str) -> None:
    good = image_of(source, UNIT, "sm_90")
    (entry,) = entries()
    stored = entry.read_bytes()
    middle = len(stored) // 2
    entry.write_bytes(
        {
            "empty": b"",
            "digest": stored[: cuda_cache.DIGEST_BYTES],
            "half": stored[:middle],
            "last byte": stored[:-1],
            "flipped": stored[:middle] + bytes([stored[middle] ^ 1]) + stored[middle + 1 :],
            "longer": stored + b"\0",
        }[damage]
    )
    with counted() as names:
        assert image_of(source, UNIT, "sm_90") == good
    assert names == [UNIT]
    assert entry.read_bytes() == stored


def test_files_of_other_units_are_noticed(source: Path) -> None:
    image_of(source, UNIT, "sm_90")
    (entry,) = entries()
    stored = entry.read_bytes()
    other = image_of(source, "dequantize_Q4_K", "sm_90")
    (second,) = set(entries()) - {entry}
    second.write_bytes(stored)
    with counted() as names:
        assert image_of(source, "dequantize_Q4_K", "sm_90") == other
    assert names == ["dequantize_Q4_K"]


def test_only_the_user_can_reach_the_images(source: Path) -> None:
    with counted():
        image_of(source, UNIT, "sm_90")
    folder = cuda_cache.folder()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert [entry.stat().st_mode & 0o077 for entry in entries()] == [0]
    for mode in (0o720, 0o702, 0o777):
        folder.chmod(mode)
        with counted() as names:
            image_of(source, UNIT, "sm_90")
        assert names == [UNIT]
    folder.chmod(0o700)
    with counted() as names, mock.patch.object(os, "geteuid", return_value=os.geteuid() + 1):
        image_of(source, UNIT, "sm_90")
    assert names == [UNIT]
    with counted() as names:
        image_of(source, UNIT, "sm_90")
    assert names == []


def test_a_folder_that_cannot_be_written_is_still_read(source: Path) -> None:
    image_of(source, UNIT, "sm_90")
    folders = [cuda_cache.folder(), *(p for p in cuda_cache.folder().rglob("*") if p.is_dir())]
    for folder in folders:
        folder.chmod(0o500)
    try:
        with counted() as names:
            image_of(source, UNIT, "sm_90")
            assert image_of(source, "checks", "sm_90").startswith(b"\x7fELF")
        assert names == ["checks"]
    finally:
        for folder in folders:
            folder.chmod(0o700)


def test_without_a_folder_it_compiles(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("WEIGHTCAST_CACHE", str(tmp_path / "file" / "cache"))
    for _ in range(2):
        with counted() as names:
            image_of(source, UNIT, "sm_90")
        assert names == [UNIT]
    monkeypatch.delenv("WEIGHTCAST_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    homeless = mock.patch.object(Path, "home", side_effect=RuntimeError("no home directory"))
    with counted() as names, homeless:
        image_of(source, UNIT, "sm_90")
    assert names == [UNIT]


def test_a_full_disk_only_costs_time(source: Path) -> None:
    assert cuda_cache.write("small", b"image")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, limits[1]))
    try:
        assert not cuda_cache.write("large", b"image" * 1000)
        assert cuda_cache.read("small") == b"image"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert cuda_cache.read("large") is None
    assert len(entries()) == 1


def test_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("WEIGHTCAST_CACHE", "")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cuda_cache.folder() == Path("/home/someone/.cache/weightcast/kernels")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cuda_cache.folder() == Path("/home/someone/.cache/weightcast/kernels")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert cuda_cache.folder() == Path("/caches/weightcast/kernels")
    monkeypatch.setenv("WEIGHTCAST_CACHE", "mine")
    monkeypatch.chdir(tmp_path)
    assert cuda_cache.folder() == tmp_path / "mine" / "kernels"


def test_threads_make_each_image_once_and_different_ones_at_the_same_time(source: Path) -> None:
    units = ("quantize_Q4_K_from_F32", "dequantize_Q4_K")
    both_inside = threading.Barrier(2, timeout=60)
    compile_unit = cuda_compile.compile_unit

    def wait_for_the_other(source: Path, name: str, architecture: str) -> Compiled:
        both_inside.wait()
        return compile_unit(source, name, architecture)

    with (
        mock.patch.object(cuda_compile, "compile_unit", wait_for_the_other),
        counted() as names,
        ThreadPoolExecutor(8) as pool,
    ):
        images = list(pool.map(lambda n: image_of(source, units[n % 2], "sm_90"), range(8)))
    assert sorted(names) == sorted(units)
    assert [id(image) for image in images] == [id(images[0]), id(images[1])] * 4


def test_nvrtc_compiles_the_same_in_parallel(source: Path) -> None:
    alone = cuda_compile.compile_unit(source, UNIT, "sm_90")
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: cuda_compile.compile_unit(source, UNIT, "sm_90"), range(8)))
    assert {compiled.cubin for compiled in made} == {alone.cubin}
    assert {compiled.ptx for compiled in made} == {alone.ptx}


def test_processes_share_the_folder(source: Path) -> None:
    script = (
        "import hashlib, pathlib, sys; from weightcast.quant.cuda.compile import image_of\n"
        "for unit in ('quantize_Q4_K_from_F32', 'checks'):\n"
        "    image = image_of(pathlib.Path(sys.argv[1]), unit, 'sm_90')\n"
        "    print(hashlib.sha256(image).hexdigest())\n"
    )
    command = [sys.executable, "-c", script, str(source)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    outputs = {process.communicate(timeout=120)[0] for process in processes}
    assert [process.returncode for process in processes] == [0, 0, 0]
    (output,) = outputs
    assert len(set(output.split())) == 2
    assert len(entries()) == 2
    with counted() as names:
        image_of(source, UNIT, "sm_90")
    assert names == []


def test_threads_that_are_the_first_to_compile_import_the_packages(source: Path) -> None:
    script = (
        "import pathlib, sys; from concurrent.futures import ThreadPoolExecutor\n"
        "from weightcast.quant.cuda.compile import image_of\n"
        "units = ('quantize_Q4_K_from_F32', 'checks', 'dequantize_Q4_K', 'dequantize_F16')\n"
        "with ThreadPoolExecutor(4) as pool:\n"
        "    list(pool.map(lambda u: image_of(pathlib.Path(sys.argv[1]), u, 'sm_90'), units))\n"
    )
    command = [sys.executable, "-c", script, str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_compiler_errors_name_the_place_in_one_line(source: Path) -> None:
    header = header_of(source)
    header.write_text("\ninline float combine(float a, float b) { return a + c + d; }\n")
    with pytest.raises(DeviceError) as caught:
        image_of(source, UNIT, "sm_90")
    message = str(caught.value)
    assert message == (
        f'cannot compile {UNIT} for sm_90: {header}(2): error: identifier "c" is undefined '
        "(and 1 more)"
    )
    assert 'identifier "d" is undefined' in str(caught.value.__cause__)
    assert not entries()
    header.unlink()
    with pytest.raises(
        DeviceError, match=r'device\.cu\(2\): .*error: .* file "simd/arithmetic\.h"'
    ):
        cuda_compile.compile_unit(source, UNIT, "sm_90")
    header.write_text(HEADER)
    forget()
    assert image_of(source, UNIT, "sm_90")


def test_standard_headers_lie_beside_the_source(source: Path) -> None:
    source.write_text("#include <cstdint>\nuint8_t used;\n" + SOURCE)
    with pytest.raises(DeviceError, match='cannot open source file "cstdint"'):
        image_of(source, UNIT, "sm_90")
    (source.parent / "nvrtc").mkdir()
    (source.parent / "nvrtc" / "cstdint").write_text("using uint8_t = unsigned char;")
    assert image_of(source, UNIT, "sm_90")


def test_headers_of_the_current_folder_are_not_used(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = cuda_compile.compile_unit(source, UNIT, "sm_90").cubin
    for folder in (tmp_path, source.parent):
        (folder / "simd").mkdir()
        (folder / "simd" / "arithmetic.h").write_text("#error the wrong file\n")
    monkeypatch.chdir(tmp_path)
    assert cuda_compile.compile_unit(source, UNIT, "sm_90").cubin == expected


def test_arithmetic_is_not_contracted(source: Path) -> None:
    ptx = cuda_compile.compile_unit(source, UNIT, "sm_90").ptx.decode()
    assert re.search(r"mul\.rn\.f32", ptx)
    assert re.search(r"add\.rn\.f32", ptx)
    assert "fma" not in ptx
    ptx = cuda_compile.compile_unit(source, "dequantize_Q4_K", "sm_90").ptx.decode()
    assert re.search(r"div\.rn\.f32", ptx)


def test_devices_newer_than_the_compiler_get_ptx(source: Path) -> None:
    newest = cuda_compile.supported_architectures()[-1]
    image = image_of(source, UNIT, "sm_999")
    assert f".target sm_{newest}\n".encode() in image
    assert image.endswith(b"}\n\0") or image.endswith(b"}\n\n\0")
    assert image_of(source, UNIT, f"sm_{newest}").startswith(b"\x7fELF")
    known = mock.patch.object(cuda_compile, "supported_architectures", return_value=(80, 90, 100))
    with known:
        assert cuda_compile.target_for("sm_90") == Target("sm_90", True)
        assert cuda_compile.target_for("sm_89") == Target("sm_80", False)
        assert cuda_compile.target_for("sm_103") == Target("sm_100", False)


def test_devices_that_the_compiler_gave_up_are_refused(source: Path) -> None:
    oldest = cuda_compile.supported_architectures()[0]
    assert image_of(source, UNIT, f"sm_{oldest}").startswith(b"\x7fELF")
    for architecture in ("sm_35", "gfx90a"):
        with pytest.raises(
            DeviceError, match=f"{architecture} devices: it starts with sm_{oldest};"
        ):
            image_of(source, UNIT, architecture)


@pytest.fixture
def not_asked_yet() -> Iterator[None]:
    """NVRTC's version is asked anew, as in a new process, also after the test."""
    cuda_compile.nvrtc_version.cache_clear()
    cuda_compile.supported_architectures.cache_clear()
    forget()
    yield
    cuda_compile.nvrtc_version.cache_clear()
    cuda_compile.supported_architectures.cache_clear()


@pytest.mark.usefixtures("not_asked_yet")
@pytest.mark.parametrize("module", ["cuda.core", "cuda.bindings"])
def test_a_missing_package_says_what_to_install(source: Path, module: str) -> None:
    with (
        mock.patch.dict(sys.modules, {module: None}),
        pytest.raises(DeviceError, match=r"not installed .*pip install 'weightcast\[cuda\]'"),
    ):
        image_of(source, UNIT, "sm_90")


@pytest.mark.usefixtures("not_asked_yet")
def test_a_missing_compiler_says_what_to_install(source: Path) -> None:
    from cuda.bindings import nvrtc
    from cuda.pathfinder import DynamicLibNotFoundError

    missing = DynamicLibNotFoundError('Failure finding "libnvrtc.so.13"')
    with (
        mock.patch.object(nvrtc, "nvrtcGetSupportedArchs", side_effect=missing),
        pytest.raises(DeviceError, match=r"NVRTC is not installed.*pip install 'weightcast\[cuda"),
    ):
        image_of(source, UNIT, "sm_90")


@pytest.mark.usefixtures("not_asked_yet")
def test_a_failing_compiler_is_reported(source: Path) -> None:
    from cuda.bindings import nvrtc

    failure = (nvrtc.nvrtcResult.NVRTC_ERROR_INTERNAL_ERROR, 0)
    for function in ("nvrtcGetSupportedArchs", "nvrtcGetPTXSize"):
        with (
            mock.patch.object(nvrtc, function, return_value=failure),
            pytest.raises(DeviceError, match="does not work: it says NVRTC_ERROR_INTERNAL_ERROR"),
        ):
            image_of(source, UNIT, "sm_90")
