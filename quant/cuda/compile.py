"""Compilation of the kernels for a device's architecture, kept in memory and on disk.

One unit is kernels/device/device.cu compiled with some macros set: what quantizes to one type or
makes groups, with or without an importance, searches for the least error or measures a type's
errors, each from one type of source; what dequantizes a type; or what checks the input of all.
NVRTC makes the device's own code (cubin), so neither a CUDA toolkit nor a host compiler is needed;
without a driver it works too.
"""

from __future__ import annotations

import hashlib
import io
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from weightcast.errors import DeviceError
from weightcast.quant.cpu.library import installed
from weightcast.quant.cuda import cache as cuda_cache
from weightcast.quant.types import SOURCE_TYPES, TYPES

if TYPE_CHECKING:
    from cuda.core import ProgramOptions

SOURCE: Final = "kernels/device/device.cu"
STANDARD_HEADERS: Final = "nvrtc"  # beside the source, for a compiler that has none
HOST_SUFFIX: Final = ".cpp"


def _list_units() -> Iterator[tuple[str, tuple[tuple[str, str], ...]]]:
    """Yield name and macros of every unit."""
    yield "checks", (("WC_CHECKS", "1"),)
    for name in TYPES:
        yield f"dequantize_{name}", (("WC_DEQUANTIZE", name),)
    weighed = ("WC_WEIGHED", "1")
    for source in SOURCE_TYPES:
        read = ("WC_SOURCE", source)
        for t in TYPES.values():
            quantize = ("WC_QUANTIZE", t.name)
            if t.importance != "required":
                yield f"quantize_{t.name}_from_{source}", (quantize, read)
            if t.importance != "ignored":
                yield f"quantize_weighed_{t.name}_from_{source}", (quantize, weighed, read)
            if not t.is_plain:
                yield f"search_{t.name}_from_{source}", (quantize, ("WC_SEARCH", "1"), read)
            yield f"measure_{t.name}_from_{source}", (("WC_MEASURE", t.name), read)
        groups = ("WC_GROUPS", "1")
        yield f"make_groups_from_{source}", (groups, read)
        yield f"make_weighed_groups_from_{source}", (groups, weighed, read)


UNITS: Final = dict(_list_units())
REMEDY: Final = "pip install 'weightcast[cuda]'"


@dataclass(frozen=True, slots=True)
class Target:
    """The architecture to compile for: `exact` if the compiler knows it, else an older one."""

    architecture: str
    exact: bool


@dataclass(frozen=True, slots=True)
class Compiled:
    """One unit: code for the architecture alone, for it and later ones, the assembler's log."""

    cubin: bytes
    ptx: bytes
    log: str


def image(name: str, architecture: str) -> bytes:
    """Give the code of a unit (a name in UNITS) for a device of an architecture ("sm_90").

    Compiled once in a process and, if the cache folder can be used, once on a machine. A device
    newer than the compiler gets PTX, which the driver finishes. Raises DeviceError if the compiler
    is not installed, does not know the architecture any more or refuses the source.
    """
    return image_of(installed(SOURCE), name, architecture)


def image_of(source: Path, name: str, architecture: str) -> bytes:
    """Do as `image` does, from another source file, whose headers start at `include_root`."""
    # dict.setdefault is atomic: one lock for each image, whoever comes first.
    request = (source, name, architecture)
    with _locks.setdefault(request, threading.Lock()):
        return _image_once(*request)


_locks: dict[tuple[Path, str, str], threading.Lock] = {}


@cache
def _image_once(source: Path, name: str, architecture: str) -> bytes:
    target = target_for(architecture)
    key = cache_key(source, name, target)
    stored = cuda_cache.read(key)
    if stored is not None:
        return stored
    compiled = compile_unit(source, name, target.architecture)
    made = compiled.cubin if target.exact else compiled.ptx
    cuda_cache.write(key, made)
    return made


def target_for(architecture: str) -> Target:
    """Find what to compile for, so that a device of an architecture ("sm_90") can run it.

    Raises DeviceError if the compiler is missing or too new for the device.
    """
    known = supported_architectures()
    match = re.fullmatch(r"sm_(\d+)", architecture)
    older = [number for number in known if match and number <= int(match[1])]
    if not older:
        raise DeviceError(
            f"NVRTC {nvrtc_version()} makes no code for {architecture} devices: it starts with "
            f"sm_{known[0]}; use the CPU"
        )
    nearest = f"sm_{older[-1]}"
    return Target(nearest, nearest == architecture)


def cache_key(source: Path, name: str, target: Target) -> str:
    """Name a unit's image by everything that it depends on."""
    # Not the folder: the same sources give the same code wherever they lie.
    options = [option.decode() for option in _options(name, target.architecture).as_bytes("nvrtc")]
    ingredients = [
        *(part for file in _sources(include_root(source)) for part in file),
        str(source.relative_to(include_root(source))),
        name,
        *options,
        "cubin" if target.exact else "ptx",
        *nvrtc_build(),
    ]
    key = hashlib.sha256()
    for ingredient in ingredients:
        # Lengths keep neighbours apart.
        key.update(f"{len(ingredient)}:{ingredient}".encode())
    return key.hexdigest()


def include_root(source: Path) -> Path:
    """Name the folder that includes are relative to: the one above the source's own."""
    return source.parents[1]


@cache
def _sources(folder: Path) -> tuple[tuple[str, str], ...]:
    """List name and digest of every file that a unit may include, whatever its suffix."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix != HOST_SUFFIX)
    return tuple(
        (str(file.relative_to(folder)), hashlib.sha256(file.read_bytes()).hexdigest())
        for file in files
    )


def compile_unit(source: Path, name: str, architecture: str) -> Compiled:
    """Compile one unit for an architecture that NVRTC knows. Raises DeviceError with its words.

    The log is what the assembler says about each kernel: registers, stack, spills.
    """
    options = _options(name, architecture, source)
    from cuda.bindings import nvrtc
    from cuda.core import Program

    log = io.StringIO()
    try:
        program = Program(source.read_text("utf-8"), "c++", options)
        cubin = bytes(program.compile("cubin", logs=log).code)
    # The package does not export the exception that it raises for NVRTC's errors.
    except Exception as error:
        problem = _first_error(str(error))
        raise DeviceError(f"cannot compile {name} for {architecture}: {problem}") from error
    # The same compilation made both. Program.compile("ptx") would look for a driver.
    (size,) = _checked(*nvrtc.nvrtcGetPTXSize(program.handle))
    ptx = b"\0" * size
    _checked(*nvrtc.nvrtcGetPTX(program.handle, ptx))
    program.close()
    return Compiled(cubin, ptx, log.getvalue())


def _options(name: str, architecture: str, source: Path | None = None) -> ProgramOptions:
    """Choose NVRTC's options; without a source, those that the code depends on."""
    nvrtc_version()  # says in one line what is not installed
    from cuda.core import ProgramOptions

    folders = [include_root(source), source.parent / STANDARD_HEADERS] if source else []
    return ProgramOptions(
        # Named in full, with no folder of its own: NVRTC would look for headers in the current
        # folder first.
        name=str(source or SOURCE),
        no_source_include=True,
        include_path=[str(folder) for folder in folders] or None,
        arch=architecture,
        std="c++17",
        define_macro=list(UNITS[name]),
        device_as_default_execution_space=True,
        # Every operation rounds as IEEE 754 says, as on the CPU: anything else changes bytes.
        fma=False,
        ftz=False,
        prec_div=True,
        prec_sqrt=True,
        ptxas_options="-v",
    )


def _first_error(log: str) -> str:
    """Take file, line and problem of the first error from a compiler's log."""
    lines = [line.strip(" \0") for line in log.splitlines()]
    errors = [line for line in lines if re.search(r"\berror\b.*: ", line)]
    first = errors[0] if errors else " ".join(line for line in lines if line)
    return first if len(errors) < 2 else f"{first} (and {len(errors) - 1} more)"


@cache
def nvrtc_version() -> str:
    """Ask NVRTC for its version, "13.5". Raises DeviceError if something is not installed."""
    return ".".join(str(number) for number in _call("nvrtcVersion"))


@cache
def supported_architectures() -> tuple[int, ...]:
    """List the architectures that NVRTC makes code for, rising: 90 is "sm_90"."""
    (numbers,) = _call("nvrtcGetSupportedArchs")
    return tuple(sorted(numbers))


@cache
def nvrtc_build() -> tuple[str, ...]:
    """Tell NVRTC's builds apart, also those that call themselves the same version."""
    version = nvrtc_version()
    from cuda.pathfinder import load_nvidia_dynamic_lib

    path = load_nvidia_dynamic_lib("nvrtc").abs_path
    if path is None:
        return (version,)
    status = Path(path).stat()
    return version, str(status.st_size), str(status.st_mtime_ns)


# Threads that import cuda.core at the same time can see a part of it.
_importing = threading.Lock()


def _call(function: str) -> tuple[Any, ...]:
    """Call a function of NVRTC that needs no program. Raises DeviceError if it is not there."""
    try:
        with _importing:
            import cuda.core  # noqa: F401  (a missing one is to show here)
            from cuda.bindings import nvrtc
    except ImportError as error:
        raise DeviceError(f"cuda-core is not installed ({error}): {REMEDY}") from error
    try:
        answer = getattr(nvrtc, function)()
    # The library is looked for at the first call.
    except RuntimeError as error:
        raise DeviceError(f"NVRTC is not installed, the CUDA compiler: {REMEDY}") from error
    return _checked(*answer)


def _checked(status: Any, *values: Any) -> tuple[Any, ...]:
    """Give the values of NVRTC's answer. Raises DeviceError if it is a failure."""
    if status != 0:
        raise DeviceError(f"NVRTC does not work: it says {status.name}")
    return values
