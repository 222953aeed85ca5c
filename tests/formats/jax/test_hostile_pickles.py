"""Nothing that a pickle names is imported or called, and no file, however damaged, does harm.

Attacks are written as opcodes. Those called "armed" are first shown to work: CPython's own pickle
runs them and the marker file appears. Damage is done to real files: cut, extended, bits flipped,
lengths changed. The only outcomes are an array whose bytes lie inside the file and a
CheckpointError that names the file, within a bounded amount of memory.
Opcodes: Lib/pickletools.py in CPython.
"""

from __future__ import annotations

import pickle
import pickletools
import shlex
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.formats.jax.pickle_opcodes import (
    BUILD,
    DTYPE_STATE,
    EMPTY_ARRAY,
    EMPTY_ARRAY_ARGS,
    EMPTY_DICT,
    EMPTY_TUPLE,
    FALSE,
    FROM_BUFFER,
    JAX_ARRAY,
    MARK,
    NDARRAY,
    NEWOBJ,
    NONE,
    PROTO,
    QUANTIZED,
    RECONSTRUCT,
    REDUCE,
    SETITEM,
    STOP,
    TRUE,
    TUPLE,
    TUPLE1,
    TUPLE2,
    array,
    array_state,
    by_line,
    by_stack,
    dtype,
    many,
    number,
    pickled,
    short_bytes,
    text,
)
from weightcast.errors import CheckpointError, FormatError, UnsafePickleError
from weightcast.formats.array import StoredArray
from weightcast.formats.jax.arrays import QuantizedArray, read_pickle

PICKLES = Path(__file__).parents[2] / "data" / "pickles"
VALID = {
    name: (PICKLES / f"{name}.pkl").read_bytes()
    for name in (
        "np1-p2-quant",
        "np1-p4-f32-c",
        "np1-p4-quant",
        "np2-p5-f32-empty2d",
        "np1-p5-f32-t201",
        "jax04-p2-f32",
        "jax010-p4-f32",
    )
}
Writer = Callable[..., Path]
Bytes = Callable[..., bytes]


def refused(path: Path, error: type[CheckpointError] = FormatError) -> str:
    """Read a file that must be refused; the message is one line and names the file."""
    with pytest.raises(error) as caught:
        read_pickle(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def refused_in_little_memory(path: Path, error: type[CheckpointError] = FormatError) -> str:
    tracemalloc.start()
    try:
        message = refused(path, error)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20
    return message


def inside_file_or_refused(path: Path, stored_bytes: Bytes) -> None:
    """Whatever a damaged file says, its arrays lie in it; or it is refused."""
    try:
        value = read_pickle(path)
    except CheckpointError:
        return
    arrays = [value.weight, value.scales] if isinstance(value, QuantizedArray) else [value]
    for stored in arrays:
        assert 0 <= stored.offset <= path.stat().st_size
        assert len(stored_bytes(stored)) == stored.nbytes


def test_the_builder_makes_a_valid_pickle(write: Writer, row_major_bytes: Bytes) -> None:
    """So that each refusal below is due to the one thing that is changed."""
    value = read_pickle(write(pickled(array([2, 1], b"12345678"))))
    assert isinstance(value, StoredArray)
    assert (value.dtype, value.shape) == ("F32", (2, 1))
    assert row_major_bytes(value) == b"12345678"


# Attacks that CPython's pickle runs: each makes the file whose shell command is its argument.

SYSTEM = by_line("os", "system")
CALL = TUPLE1 + REDUCE
# builtins.map is a class whose objects call a function when builtins.list walks over them.
MAP, LIST = by_line("builtins", "map"), b"q\x00" + by_line("builtins", "list") + b"h\x00" + CALL
IMPORT_OS = by_line("importlib", "import_module") + text("os") + CALL
NAMES_FROM_MEMO = text("system") + b"q\x07" + text("os") + b"q\x09h\x09h\x07\x93"

ARMED: dict[str, Callable[[bytes], bytes]] = {
    "GLOBAL": lambda x: SYSTEM + x + CALL,
    "STACK_GLOBAL": lambda x: by_stack("os", "system") + x + CALL,
    "STACK_GLOBAL, names from the memo": lambda x: NAMES_FROM_MEMO + x + CALL,
    "INST": lambda x: MARK + x + b"ios\nsystem\n",
    "OBJ": lambda x: MARK + SYSTEM + x + b"o",
    "NEWOBJ": lambda x: MAP + SYSTEM + MARK + x + b"l" + TUPLE2 + NEWOBJ + LIST,
    "NEWOBJ_EX": lambda x: MAP + SYSTEM + MARK + x + b"l" + TUPLE2 + EMPTY_DICT + b"\x92" + LIST,
    "BUILD, then __setstate__": lambda x: (
        by_line("types", "SimpleNamespace")
        + (EMPTY_TUPLE + REDUCE + EMPTY_DICT + text("__setstate__") + SYSTEM + SETITEM + BUILD)
        + (x + BUILD)
    ),
    "posix.system": lambda x: by_line("posix", "system") + x + CALL,
    "subprocess.getoutput": lambda x: by_line("subprocess", "getoutput") + x + CALL,
    "pydoc.pipepager": lambda x: by_line("pydoc", "pipepager") + text("") + x + TUPLE2 + REDUCE,
    "functools.partial": lambda x: (
        by_line("functools", "partial") + SYSTEM + x + TUPLE2 + REDUCE + EMPTY_TUPLE + REDUCE
    ),
    "operator.methodcaller": lambda x: (
        by_line("operator", "methodcaller")
        + (text("system") + x + TUPLE2 + REDUCE + IMPORT_OS + CALL)
    ),
    "operator.attrgetter": lambda x: (
        by_line("operator", "attrgetter") + text("system") + CALL + IMPORT_OS + CALL + x + CALL
    ),
    "called, popped, then a valid array": lambda x: SYSTEM + x + CALL + b"0" + array([1], b"1234"),
    "as an array's data": lambda x: (
        EMPTY_ARRAY
        + many(number(1), number(1) + TUPLE1, dtype(), FALSE, SYSTEM + x + CALL)
        + BUILD
    ),
    "as scales": lambda x: (
        EMPTY_DICT + text("weight") + array([1], b"1234") + SETITEM
        + (text("scales") + SYSTEM + x + CALL + SETITEM)
    ),
}  # fmt: skip


@pytest.mark.parametrize("attack", ARMED)
def test_armed_pickle_is_refused_and_not_run(attack: str, tmp_path: Path, write: Writer) -> None:
    marker = tmp_path / "marker"
    raw = pickled(ARMED[attack](text(f"touch {shlex.quote(str(marker))}")))
    with suppress(Exception):
        pickle.loads(raw)
    assert marker.exists(), "the attack does not work, so refusing it would prove nothing"
    marker.unlink()
    message = refused(write(raw), UnsafePickleError)
    assert "nothing was run" in message or "makes objects" in message
    assert not marker.exists()


@pytest.mark.parametrize("function", ["eval", "exec"])
def test_python_source_is_not_run(function: str, tmp_path: Path, write: Writer) -> None:
    marker = tmp_path / "marker"
    source = f"open({str(marker)!r}, 'w').close()"
    raw = pickled(by_line("builtins", function) + text(source) + CALL)
    with suppress(Exception):
        pickle.loads(raw)
    assert marker.exists()
    marker.unlink()
    assert f"builtins.{function}" in refused(write(raw), UnsafePickleError)
    assert not marker.exists()


def test_second_pickle_in_the_file_is_refused(write: Writer) -> None:
    """Loaders that call pickle.load until the file ends would run it."""
    path = write(pickled(array([1], b"1234")) + pickled(SYSTEM + text("true") + CALL))
    assert "bytes follow the end" in refused(path)


@pytest.mark.parametrize("protocol", [0, 1])
def test_protocols_without_header_are_refused(protocol: int, write: Writer) -> None:
    refused(write(b"cos\nsystem\n(S'true'\ntR."))
    raw = pickled(SYSTEM + text("true") + CALL)
    assert f"protocol {protocol}" in refused(write(b"\x80" + bytes([protocol]) + raw[2:]))


# Globals, whether or not they exist. Scanners with a list of bad names are known to miss many.

GLOBALS = [
    ("os", "system"),
    ("posix", "system"),
    ("nt", "system"),
    ("subprocess", "Popen"),
    ("builtins", "eval"),
    ("builtins", "getattr"),
    ("__builtin__", "eval"),
    ("__builtin__", "bytearray"),
    ("_io", "open"),
    ("io", "FileIO"),
    ("pickle", "loads"),
    ("_pickle", "loads"),
    ("marshal", "loads"),
    ("numpy", "load"),
    ("numpy", "fromfile"),
    ("numpy", "memmap"),
    ("numpy", "core"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy.core.multiarray", "fromfile"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy.testing._private.utils", "runstring"),
    ("numpy.f2py.crackfortran", "getlincoef"),
    ("numpy.distutils.exec_command", "exec_command"),
    ("torch.serialization", "load"),
    ("torch", "load"),
    ("torch.hub", "load"),
    ("torch.utils.bottleneck.__main__", "run_cprofile"),
    ("jax._src.array", "ArrayImpl"),
    ("jax.experimental.serialize_executable", "deserialize_and_load"),
    ("ml_dtypes", "os"),
    ("ml_dtypes", "np"),
    ("ml_dtypes", "int4"),
    ("__main__", "QuantizedWeight"),
    ("__main__", "os"),
    ("model", "os"),
    ("_codecs", "lookup"),
    ("codecs", "encode"),
    ("copyreg", "_reconstructor"),
    ("copyreg", "add_extension"),
    ("functools", "partial"),
    ("functools", "reduce"),
    ("operator", "attrgetter"),
    ("operator", "methodcaller"),
    ("pydoc", "locate"),
    ("pydoc", "pipepager"),
    ("timeit", "timeit"),
    ("timeit", "main"),
    ("cProfile", "run"),
    ("profile", "runctx"),
    ("pdb", "run"),
    ("bdb", "Bdb.run"),
    ("doctest", "debug_script"),
    ("code", "InteractiveInterpreter.runcode"),
    ("ctypes", "CDLL"),
    ("idlelib.pyshell", "ModifiedInterpreter.runcommand"),
    ("idlelib.autocomplete", "AutoComplete.get_entity"),
    ("idlelib.run", "Executive.runcode"),
    ("lib2to3.pgen2.grammar", "Grammar.loads"),
    ("ensurepip", "_run_pip"),
    ("pip", "main"),
    ("asyncio.unix_events", "_UnixSubprocessTransport._start"),
    ("distutils.file_util", "write_file"),
    ("logging.config", "_resolve"),
    ("runpy", "_run_code"),
    ("site", "execsitecustomize"),
    ("shutil", "rmtree"),
    ("socket", "create_connection"),
    ("urllib.request", "urlopen"),
    ("ssl", "get_server_certificate"),
    ("venv", "create"),
    ("webbrowser", "open"),
    ("antigravity", "geohash"),
    ("this", "s"),
]


@pytest.mark.parametrize("form", [by_line, by_stack])
@pytest.mark.parametrize(("module", "name"), GLOBALS)
def test_global_is_refused_and_not_imported(
    module: str, name: str, form: Callable[[str, str], bytes], write: Writer
) -> None:
    path = write(pickled(form(module, name)))
    imported = set(sys.modules)
    assert f"{module}.{name}" in refused(path, UnsafePickleError)
    assert set(sys.modules) == imported


def test_control_for_imports(write: Writer) -> None:
    """The modules above would have been imported: CPython's pickle imports `this`."""
    raw = pickled(by_line("this", "s"))
    assert "this" not in sys.modules
    refused(write(raw), UnsafePickleError)
    assert "this" not in sys.modules
    pickle.loads(raw)
    assert sys.modules.pop("this")


NEAR_MISSES = [
    ("numpy", "ndarray.__class__"),
    ("numpy", "ndarray.tofile"),
    ("numpy", "dtype.__reduce__"),
    ("numpy", "Ndarray"),
    ("numpy", "ndarray "),
    ("numpy ", "ndarray"),
    ("numpy\0", "ndarray"),
    ("numpy\r", "ndarray"),
    ("numpy", ""),
    ("", "ndarray"),
    ("", ""),
    ("numpy.ndarray", ""),
    ("", "numpy.ndarray"),
    ("Numpy", "ndarray"),
    ("\uff4eumpy", "ndarray"),
    ("numpy.core", "multiarray._reconstruct"),
    ("numpy.core.multiarray", "_reconstruct.__globals__"),
    ("numpy.core.multiarray._reconstruct", ""),
    ("numpy.core.numeric", "_reconstruct"),
    ("numpy.core.multiarray", "_frombuffer"),
    ("_codecs", "encode.__self__"),
    ("__main__", "QuantizedWeight8bit.__init__"),
    ("__main__", "QuantizedWeight8bit.__init__.__globals__"),
    ("jax._src.array", "_reconstruct_array.__globals__"),
    ("builtins", "bytes.fromhex"),
]


@pytest.mark.parametrize("form", [by_line, by_stack])
@pytest.mark.parametrize(("module", "name"), NEAR_MISSES)
def test_almost_an_allowed_global(
    module: str, name: str, form: Callable[[str, str], bytes], write: Writer
) -> None:
    refused(write(pickled(form(module, name))), UnsafePickleError)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("numpy.core.multiarray\n_reconstruct", ""),
        ("numpy.core.multiarray", "_reconstruct\n"),
        ("numpy\nndarray", "\n"),
    ],
)
def test_names_with_line_ends(module: str, name: str, write: Writer) -> None:
    """With STACK_GLOBAL a name may hold a line end; it must not split the message either."""
    refused(write(pickled(by_stack(module, name))), UnsafePickleError)


def test_long_names(write: Writer) -> None:
    long = "a" * 100_000
    refused_in_little_memory(write(pickled(by_line(long, long))))
    refused_in_little_memory(write(pickled(by_stack(long, long))))
    assert len(refused(write(pickled(by_stack("a" * 256, "b"))), UnsafePickleError)) < 1000


@pytest.mark.parametrize("names", [NONE + NONE, number(1) + text("x"), NDARRAY + text("x")])
def test_stack_global_of_something_else_than_names(names: bytes, write: Writer) -> None:
    refused(write(pickled(names + b"\x93")))


@pytest.mark.parametrize(
    "opcodes",
    [
        pytest.param(MARK + b"inumpy\nndarray\n", id="INST"),
        pytest.param(MARK + NDARRAY + b"o", id="OBJ"),
        pytest.param(NDARRAY + EMPTY_TUPLE + EMPTY_DICT + b"\x92", id="NEWOBJ_EX"),
        pytest.param(b"\x82\x01", id="EXT1"),
        pytest.param(b"\x83\x01\x00", id="EXT2"),
        pytest.param(b"\x84\x01\x00\x00\x00", id="EXT4"),
        pytest.param(b"Pname\n", id="PERSID"),
        pytest.param(text("name") + b"Q", id="BINPERSID"),
    ],
)
def test_opcodes_that_make_objects(opcodes: bytes, write: Writer) -> None:
    """Refused even for globals that are allowed."""
    if b"\x92" in opcodes:
        refused(write(pickled(opcodes)))
    else:
        refused(write(pickled(opcodes)), UnsafePickleError)


def test_every_other_opcode_is_refused(write: Writer) -> None:
    """The opcodes of real files are enough; the rest of pickle's language is not spoken."""
    used = {op.code for raw in VALID.values() for op, _, _ in pickletools.genops(raw)}
    spoken = set()
    for op in pickletools.opcodes:
        path = write(PROTO + NONE * 4 + op.code.encode("latin-1") + bytes(32))
        if "does not occur" not in (message := refused(path)) and "makes objects" not in message:
            spoken.add(op.code)
    assert spoken - used <= {*"JBrj\x8d\x8e\x96\x97\x98"}


# Allowed globals in unexpected places. Every entry is complete but for one thing.

# Problems that are found only after the last opcode.
AT_THE_END = ("neither an array nor", "without its data", "left on the stack")

QUANTIZED_STATE = (
    EMPTY_DICT + text("weight") + array([1], b"1234") + SETITEM
    + (text("scales") + array([1], b"1234") + SETITEM)
)  # fmt: skip
BAD_STATES = {
    "an extra attribute": QUANTIZED_STATE + text("__setstate__") + NDARRAY + SETITEM,
    "a changed class": QUANTIZED_STATE + text("__class__") + NDARRAY + SETITEM,
    "slots": NONE + QUANTIZED_STATE + TUPLE2,
    "weight alone": EMPTY_DICT + text("weight") + array([1], b"1234") + SETITEM,
    "nothing": EMPTY_DICT,
    "None": NONE,
    "payloads that are no arrays": (
        EMPTY_DICT + text("weight") + short_bytes(b"1") + SETITEM
        + (text("scales") + short_bytes(b"1") + SETITEM)
    ),
    "numbers as keys": EMPTY_DICT + number(1) + array([1], b"1234") + SETITEM,
    "an item after the end": QUANTIZED_STATE + BUILD + EMPTY_DICT,
    "two states": QUANTIZED_STATE + BUILD + QUANTIZED_STATE,
    "a repeated key": QUANTIZED_STATE + text("weight") + array([1], b"1234") + SETITEM,
}  # fmt: skip


@pytest.mark.parametrize("problem", BAD_STATES)
def test_state_of_a_quantized_array(problem: str, write: Writer) -> None:
    path = write(pickled(QUANTIZED, QUANTIZED_STATE, BUILD))
    assert isinstance(read_pickle(path), QuantizedArray)
    refused(write(pickled(QUANTIZED, BAD_STATES[problem], BUILD)))


@pytest.mark.parametrize(
    "target",
    [
        pytest.param(NDARRAY, id="a global"),
        pytest.param(EMPTY_TUPLE, id="a tuple"),
        pytest.param(EMPTY_DICT, id="a dictionary"),
        pytest.param(short_bytes(b"x"), id="bytes"),
        pytest.param(MARK, id="a mark"),
        pytest.param(b"", id="nothing"),
        pytest.param(EMPTY_ARRAY, id="an array"),
        pytest.param(dtype()[: -len(DTYPE_STATE + BUILD)], id="a dtype"),
    ],
)
@pytest.mark.parametrize("state", [QUANTIZED_STATE, NONE, NONE + QUANTIZED_STATE + TUPLE2])
def test_states_set_on_other_things(target: bytes, state: bytes, write: Writer) -> None:
    message = refused(write(pickled(target, state, BUILD)))
    assert not any(late in message for late in AT_THE_END)


ENCODE, EMPTY_BYTES = by_line("_codecs", "encode"), by_line("builtins", "bytes")
DTYPE = by_line("numpy", "dtype")
DATA, ONE, STATE = short_bytes(b"1234"), number(1) + TUPLE1, array_state([1], b"1234")
BF16 = by_line("ml_dtypes", "bfloat16")
BAD_CALLS = {
    "another codec": ENCODE + text("x") + text("rot13") + TUPLE2,
    "no codec": ENCODE + text("x") + TUPLE1,
    "bytes encoded": ENCODE + short_bytes(b"x") + text("latin1") + TUPLE2,
    "bytes of a size": EMPTY_BYTES + number(1 << 40) + TUPLE1,
    "a new ndarray": NDARRAY + number(1 << 40) + TUPLE1,
    "ml_dtypes called": BF16 + text("1.0") + TUPLE1,
    "a dtype of strings": DTYPE + many(text("U1"), FALSE, TRUE),
    "a dtype by expression": DTYPE + many(text("f4,f4"), FALSE, TRUE),
    "an aligned dtype": DTYPE + many(text("f4"), TRUE, TRUE),
    "a dtype of a dictionary": DTYPE + many(EMPTY_DICT, FALSE, TRUE),
    "another class": RECONSTRUCT + many(BF16, number(0) + TUPLE1, short_bytes(b"b")),
    "a large empty array": RECONSTRUCT + many(NDARRAY, number(1 << 40) + TUPLE1, short_bytes(b"b")),
    "not a tuple": RECONSTRUCT + EMPTY_DICT,
    "called with nothing": RECONSTRUCT + EMPTY_TUPLE,
    "a quantized array with arguments": QUANTIZED[:-2] + NONE + TUPLE1,
    "a quantized array called": QUANTIZED + EMPTY_TUPLE,
    "an array called": EMPTY_ARRAY + EMPTY_TUPLE,
    "a buffer without order": FROM_BUFFER + many(DATA, dtype(), ONE),
    "a buffer in any order": FROM_BUFFER + many(DATA, dtype(), ONE, text("A")),
    "a buffer that is a string": FROM_BUFFER + many(text("1234"), dtype(), ONE, text("C")),
    "a buffer of an incomplete dtype": FROM_BUFFER
    + many(DATA, dtype()[: -len(DTYPE_STATE + BUILD)], ONE, text("C")),
    "a repeated axis": FROM_BUFFER
    + many(DATA, dtype(), many(number(1), number(1)), text("K"), many(number(0), number(0))),
    "an axis that is not there": FROM_BUFFER + many(DATA, dtype(), ONE, text("K"), ONE),
    "a negative axis": FROM_BUFFER + many(DATA, dtype(), ONE, text("K"), number(-1) + TUPLE1),
    "axes that are no numbers": FROM_BUFFER + many(DATA, dtype(), ONE, text("K"), NONE + TUPLE1),
    "a jax.Array of nothing": JAX_ARRAY + EMPTY_TUPLE,
    "a jax.Array of a dictionary": JAX_ARRAY
    + many(EMPTY_DICT, EMPTY_ARRAY_ARGS, STATE, EMPTY_DICT),
    "a jax.Array of an array": JAX_ARRAY + many(EMPTY_ARRAY, EMPTY_ARRAY_ARGS, STATE, EMPTY_DICT),
    "a jax.Array with attributes": JAX_ARRAY + many(RECONSTRUCT, EMPTY_ARRAY_ARGS, STATE)[:-1]
    + EMPTY_DICT + text("__class__") + NONE + SETITEM + TUPLE,
}  # fmt: skip


@pytest.mark.parametrize("problem", BAD_CALLS)
def test_unexpected_arguments(problem: str, write: Writer) -> None:
    """Refused at the call: no argument is accepted only because the result is no array."""
    message = refused(write(pickled(BAD_CALLS[problem], REDUCE)))
    assert not any(late in message for late in AT_THE_END)


@pytest.mark.parametrize(
    "state",
    [
        many(number(4), text("<"), NONE, NONE, NONE, number(-1), number(-1), number(0)),
        many(number(3), text(">"), NONE, NONE, NONE, number(-1), number(-1), number(0)),
        many(number(3), text("!"), NONE, NONE, NONE, number(-1), number(-1), number(0)),
        many(number(3), NONE, NONE, NONE, NONE, number(-1), number(-1), number(0)),
        many(number(3), text("<"), EMPTY_TUPLE, NONE, NONE, number(-1), number(-1), number(0)),
        many(number(3), text("<"), NONE, EMPTY_TUPLE, NONE, number(-1), number(-1), number(0)),
        many(number(3), text("<"), NONE, NONE, EMPTY_DICT, number(-1), number(-1), number(0)),
        EMPTY_TUPLE,
        NONE,
    ],
)
def test_state_of_a_dtype(state: bytes, write: Writer) -> None:
    raw = pickled(EMPTY_ARRAY, array_state([1], b"1234", dtype(state=state)), BUILD)
    refused(write(raw))


@pytest.mark.parametrize(
    "state",
    [
        many(number(2), number(1) + TUPLE1, dtype(), FALSE, short_bytes(b"1234")),
        many(number(1) + TUPLE1, dtype(), FALSE, short_bytes(b"1234")),
        many(number(1), number(1), dtype(), FALSE, short_bytes(b"1234")),
        many(number(1), TRUE + TUPLE1, dtype(), FALSE, short_bytes(b"1234")),
        many(number(1), number(1) + TUPLE1, dtype(), number(0), short_bytes(b"1234")),
        many(number(1), number(1) + TUPLE1, text("f4"), FALSE, short_bytes(b"1234")),
        many(number(1), number(1) + TUPLE1, dtype(), FALSE, text("1234")),
        many(number(1), number(1) + TUPLE1, dtype(), FALSE, NONE),
        array_state([1], b"1234") + BUILD + array_state([1], b"1234"),
    ],
)
def test_state_of_an_array(state: bytes, write: Writer) -> None:
    refused(write(pickled(EMPTY_ARRAY, state, BUILD)))


def test_array_without_its_data(write: Writer) -> None:
    assert "without its data" in refused(write(pickled(EMPTY_ARRAY)))


@pytest.mark.parametrize(
    ("sizes", "data"),
    [
        ([2], b"1234567"),
        ([2], b"123456789"),
        ([2], b""),
        ([], b""),
        ([0], b"1"),
        ([-1], b""),
        ([-1, -1], b"1234"),
        ([1 << 63], b""),
        ([(1 << 64) - 1], b""),
        ([1 << 32, 1 << 32], b""),
        ([1 << 62, 1 << 62, 4], b""),
        ([1 << 64], b"1234"),
        ([1] * 65, b"1234"),
        ([1 << 70] * 60, b"1234"),
    ],
)
def test_shape_that_does_not_fit_the_data(sizes: list[int], data: bytes, write: Writer) -> None:
    refused(write(pickled(array(sizes, data))))


# Size: what a small file can ask for.

BOMB = EMPTY_TUPLE + b"".join(b"q\x00h\x00\x86" for _ in range(64))
MANY = 100_000


@pytest.mark.parametrize(
    "opcodes",
    [
        pytest.param(MARK * MANY, id="marks"),
        pytest.param(EMPTY_TUPLE + TUPLE1 * MANY, id="tuples in tuples"),
        pytest.param(EMPTY_TUPLE + TUPLE1 * 9000, id="fewer tuples in tuples"),
        pytest.param((EMPTY_DICT + text("a")) * MANY, id="dictionaries in dictionaries"),
        pytest.param(NONE * MANY, id="values"),
        pytest.param(NONE + b"\x94" * MANY, id="memo entries by MEMOIZE"),
        pytest.param(
            NONE + b"".join(b"r" + struct.pack("<I", n) for n in range(MANY)),
            id="memo entries by LONG_BINPUT",
        ),
        pytest.param(NONE + b"q\x00" * 1_000_000, id="opcodes"),
        pytest.param(NONE + (MARK + TUPLE + TUPLE2) * 1_000_000, id="nested opcodes"),
        pytest.param(b"h\x00", id="a memo entry never set"),
        pytest.param(b"q\x00", id="nothing to memoize"),
        pytest.param(MARK + b"q\x00", id="a mark in the memo"),
    ],
)
def test_too_much(opcodes: bytes, write: Writer) -> None:
    refused_in_little_memory(write(pickled(opcodes)))


def test_sparse_memo_takes_no_room(write: Writer) -> None:
    """CPython's unpickler allocates the whole memo up to the largest key: 32 GiB for this file."""
    key = struct.pack("<I", (1 << 32) - 1)
    path = write(pickled(array([1], b"1234"), b"r" + key, TUPLE1, b"j" + key, TUPLE1))
    refused_in_little_memory(path)
    assert isinstance(read_pickle(write(pickled(array([1], b"1234"), b"r" + key))), StoredArray)


@pytest.mark.parametrize(
    "opcodes",
    [
        pytest.param(BOMB, id="as the result"),
        pytest.param(RECONSTRUCT + BOMB + REDUCE, id="as arguments"),
        pytest.param(DTYPE + many(BOMB, FALSE, TRUE) + REDUCE, id="as a dtype"),
        pytest.param(EMPTY_ARRAY + BOMB + BUILD, id="as a state"),
        pytest.param(EMPTY_DICT + BOMB + NONE + SETITEM, id="as a key"),
        pytest.param(
            EMPTY_ARRAY + many(number(1), BOMB, dtype(), FALSE, short_bytes(b"")) + BUILD,
            id="as a shape",
        ),
        pytest.param(JAX_ARRAY + many(BOMB, BOMB, BOMB, EMPTY_DICT) + REDUCE, id="as a function"),
    ],
)
def test_tuple_of_2_to_the_64_tuples(opcodes: bytes, write: Writer) -> None:
    """Comparing, hashing or printing it takes for ever; a process of its own can be stopped."""
    path = write(pickled(opcodes))
    code = "import sys, pathlib as p, weightcast as w, weightcast.formats.jax.arrays as j\n"
    code += "try: j.read_pickle(p.Path(sys.argv[1]))\n"
    code += "except w.FormatError: sys.exit(7)"
    child = subprocess.run([sys.executable, "-c", code, str(path)], timeout=20, check=False)
    assert child.returncode == 7


def test_large_payload_is_not_loaded(write: Writer) -> None:
    count = 1 << 26
    head = PROTO + EMPTY_ARRAY + MARK + number(1) + number(count) + TUPLE1 + dtype("i1") + FALSE
    head += b"B" + struct.pack("<I", count)
    path = write(head)
    with path.open("r+b") as file:
        file.truncate(len(head) + count)
        file.seek(0, 2)
        file.write(TUPLE + BUILD + STOP)
    tracemalloc.start()
    value = read_pickle(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    path.unlink()
    assert isinstance(value, StoredArray)
    assert (value.offset, value.nbytes) == (len(head), count)
    assert peak < 1 << 20


# Frames.


def test_frame_around_the_whole_pickle(write: Writer) -> None:
    body = array([1], b"1234") + STOP
    path = write(PROTO + b"\x95" + struct.pack("<Q", len(body)) + body)
    assert isinstance(read_pickle(path), StoredArray)


@pytest.mark.parametrize("length", [1, 1 << 20, 1 << 63, (1 << 64) - 1])
def test_frame_of_another_length(length: int, write: Writer) -> None:
    """One byte, and the first opcode crosses the end; else it ends behind the file."""
    path = write(PROTO + b"\x95" + struct.pack("<Q", length) + array([1], b"1234") + STOP)
    assert "frame" in (message := refused(path)) or "declared" in message


def test_frame_in_a_frame(write: Writer) -> None:
    body = b"\x95" + struct.pack("<Q", 1) + NONE + array([1], b"1234") + STOP
    path = write(PROTO + b"\x95" + struct.pack("<Q", len(body)) + body)
    assert "a frame inside a frame" in refused(path)


# Text and files that are none.


@pytest.mark.parametrize("raw", [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf5\x80"])
@pytest.mark.parametrize("form", ["string", "global"])
def test_invalid_utf_8(raw: bytes, form: str, write: Writer) -> None:
    opcodes = text(raw) if form == "string" else b"c" + raw + b"\nndarray\n"
    assert "UTF-8" in refused(write(pickled(opcodes)))


def test_empty_file(write: Writer) -> None:
    assert "download" in refused(write(b""))


@pytest.mark.parametrize("size", [1, 2, 100, 10_000])
def test_zero_filled_file(size: int, write: Writer) -> None:
    assert "download is not complete" in refused(write(bytes(size)))


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"\x93NUMPY", "an array of NumPy, not a shard; download the shard again"),
        (b"PK\x03\x04", "a zip archive; unpack it first"),
        (b"(lp0\ncos\nsystem\n.", "not a pickle"),
    ],
)
def test_file_that_is_no_pickle(raw: bytes, words: str, write: Writer) -> None:
    assert words in refused(write(raw))


@pytest.mark.parametrize("protocol", [6, 127, 255])
def test_unknown_protocol(protocol: int, write: Writer) -> None:
    assert f"protocol {protocol}" in refused(write(b"\x80" + bytes([protocol]) + STOP))


# Damage to real files.


@pytest.mark.parametrize("name", VALID)
def test_every_truncation_is_refused(name: str, write: Writer) -> None:
    for end in range(len(VALID[name])):
        refused(write(VALID[name][:end]))


@pytest.mark.parametrize("name", VALID)
def test_every_trailing_byte_is_refused(name: str, write: Writer) -> None:
    for byte in range(256):
        assert "1 bytes follow" in refused(write(VALID[name] + bytes([byte])))


LENGTH_BYTES = {
    "SHORT_BINBYTES": 1,
    "BINBYTES": 4,
    "BINBYTES8": 8,
    "BYTEARRAY8": 8,
    "SHORT_BINUNICODE": 1,
    "BINUNICODE": 4,
    "BINUNICODE8": 8,
    "FRAME": 8,
}


def lies(raw: bytes) -> list[tuple[str, bytes]]:
    """Copies of a pickle, each with one length field changed, and the opcode of that field."""
    changed = []
    for op, _, position in pickletools.genops(raw):
        if width := LENGTH_BYTES.get(op.name):
            start, stop = position + 1, position + 1 + width
            length = int.from_bytes(raw[start:stop], "little")
            largest = (1 << 8 * width) - 1
            for lie in {length - 1, length + 1, 0, len(raw), 1 << 31, 1 << 63, largest}:
                if lie != length and 0 <= lie <= largest:
                    field = lie.to_bytes(width, "little")
                    name = "type code" if raw[start : stop + 1] == b"\x01b" else op.name
                    changed.append((name, raw[:start] + field + raw[stop:]))
    return changed


@pytest.mark.parametrize("name", VALID)
def test_every_length_field_lied_about(name: str, write: Writer, stored_bytes: Bytes) -> None:
    """No length can be wrong unnoticed but two that describe no data.

    A frame may end early, after a whole opcode, and the type code b"b" of an empty array may
    swallow the opcode after it.
    """
    changed = lies(VALID[name])
    assert len(changed) > 10
    for opcode, raw in changed:
        path = write(raw)
        if opcode in ("FRAME", "type code"):
            inside_file_or_refused(path, stored_bytes)
        else:
            refused_in_little_memory(path)


@pytest.mark.parametrize("name", ["np1-p4-f32-c", "jax04-p2-f32"])
def test_every_flipped_bit(name: str, write: Writer, stored_bytes: Bytes) -> None:
    raw = bytearray(VALID[name])
    for position in range(len(raw)):
        for bit in range(8):
            raw[position] ^= 1 << bit
            inside_file_or_refused(write(raw), stored_bytes)
            raw[position] ^= 1 << bit


@settings(max_examples=500)
@given(st.data())
def test_random_edits(write: Writer, stored_bytes: Bytes, data: st.DataObject) -> None:
    """Pieces of valid files, cut out, repeated and mixed."""
    raw = VALID[data.draw(st.sampled_from(sorted(VALID)))]
    for _ in range(data.draw(st.integers(1, 4))):
        other = VALID[data.draw(st.sampled_from(sorted(VALID)))]
        cut = st.integers(0, len(raw))
        start, stop = sorted((data.draw(cut), data.draw(cut)))
        taken = st.integers(0, len(other))
        first, last = sorted((data.draw(taken), data.draw(taken)))
        piece = data.draw(st.one_of(st.just(other[first:last]), st.binary(max_size=8)))
        raw = raw[:start] + piece + raw[stop:]
    inside_file_or_refused(write(raw), stored_bytes)
