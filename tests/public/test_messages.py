"""Messages name arguments to callers in Python, and options to users of the command."""

from __future__ import annotations

import ast
import re
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weightcast
from tests import gguf_files
from weightcast import cli
from weightcast.converters.families.grok1.synthetic import tiny_spec, write_checkpoint
from weightcast.converters.sources.options import ConvertOptions
from weightcast.text import option, speaking_of_options, spoken

ROOT = Path(__file__).parents[2]
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")


@dataclass(frozen=True)
class Mistake:
    """A call that is refused, the same as a command, and what each says."""

    source: str
    output: str
    keywords: dict[str, Any]
    arguments: tuple[str, ...]
    in_python: str
    at_the_command_line: str


NO_TOKENIZER = {"no_tokenizer": True}, ("--no-tokenizer",)
MISTAKES = [
    Mistake("shards", "m.gguf", *NO_TOKENIZER, "rename it or pass types", "pass --type"),
    Mistake("shards", "m", *NO_TOKENIZER, "rename it or pass types", "pass --type"),
    Mistake(
        "shards",
        "m-Q8_0.gguf",
        {},
        (),
        "pass tokenizer=FILE, or no_tokenizer=True to do without",
        "pass --tokenizer FILE, or --no-tokenizer to do without",
    ),
    Mistake(
        "huge",
        "m-Q8_0.gguf",
        {"memory": "1M"},
        ("--memory", "1M"),
        "memory of 1,000,000 bytes (1.00 MB) is too little",
        "--memory of 1,000,000 bytes (1.00 MB) is too little",
    ),
    Mistake(
        "shards",
        "m-bf16",
        {"pure": True},
        ("--pure",),
        "pure: of use for GGUF outputs only",
        "--pure: of use for GGUF outputs only",
    ),
    Mistake(
        "shards",
        "m-IQ2_XXS.gguf",
        *NO_TOKENIZER,
        "give one with imatrix=FILE",
        "give one with --imatrix FILE",
    ),
    Mistake(
        "shards",
        "m-Q8_0.gguf",
        {"tensor_types": "attn_q"},
        ("--tensor-type", "attn_q"),
        "tensor_types attn_q: write it as",
        "--tensor-type attn_q: write it as",
    ),
    Mistake(
        "shards",
        "m-int8",
        *NO_TOKENIZER,
        "allow_requantize=True quantizes it anew, with a loss",
        "--allow-requantize quantizes it anew, with a loss",
    ),
    Mistake(
        "quantized",
        "m-Q4_0.gguf",
        {},
        (),
        "types='COPY' keeps all types as they are, as do weightcast.split and merge; allow",
        "--type COPY keeps all types as they are, as do weightcast split and merge; --allow",
    ),
    Mistake(
        "quantized",
        "m-bf16",
        {},
        (),
        "directories, spec, tokenizer and no_tokenizer are for",
        "directories, --spec, --tokenizer and --no-tokenizer are for",
    ),
    Mistake(
        "holes",
        "m-Q8_0.gguf",
        *NO_TOKENIZER,
        "allow_holes=True converts it as it is",
        "--allow-holes converts it as it is",
    ),
    Mistake("holes", "m-Q8_0.gguf", *NO_TOKENIZER, "(weightcast.verify(", "(weightcast verify "),
    Mistake(
        "huge",
        "m-Q8_0.gguf",
        {},
        (),
        "; tensor_types='a.weight=F32' keeps it as it is stored",
        "; --tensor-type a.weight=F32 keeps it as it is stored",
    ),
]


Run = Callable[..., int]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Give a function that runs the command in this process, and gives its exit code."""

    def call(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["weightcast", *arguments])
        handlers = {number: signal.getsignal(number) for number in STOPPING}
        try:
            cli.main()
        except SystemExit as stop:
            return int(stop.code or 0)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        return 0

    return call


@pytest.fixture(scope="module")
def sources(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sources")
    metadata = {"general.architecture": gguf_files.string("llama")}
    values = np.linspace(-1, 1, 512, dtype=np.float32).reshape(2, 256)
    parts = {"a.weight": gguf_files.floats(values)}
    plain = gguf_files.write(folder / "plain.gguf", metadata, parts)
    weightcast.convert(plain, folder / "q-Q8_0.gguf")
    parts = {"a.weight": gguf_files.floats(values * np.float32(1e30))}
    huge = gguf_files.write(folder / "huge.gguf", metadata, parts)
    write_checkpoint(folder / "holes", tiny_spec(emb_size=1024, num_q_heads=64), sparse=True)
    quantized, holes = folder / "q-Q8_0.gguf", folder / "holes"
    return {"shards": tiny, "quantized": quantized, "holes": holes, "huge": huge}


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda m: f"{m.source}-{m.output}-{m.in_python}")
def test_a_mistake_is_told_in_the_words_of_who_made_it(
    mistake: Mistake,
    run: Run,
    sources: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, output = sources[mistake.source], tmp_path / mistake.output
    with pytest.raises(weightcast.CheckpointError) as caught:
        weightcast.convert(source, output, **mistake.keywords)
    said = str(caught.value)
    assert mistake.in_python in said
    assert not OPTION.search(said), said
    assert run("convert", *mistake.arguments, str(source), str(output)) > 0
    assert mistake.at_the_command_line in capsys.readouterr().err
    # A command in this process does not change what calls are told.
    with pytest.raises(weightcast.CheckpointError) as caught:
        weightcast.convert(source, output, **mistake.keywords)
    assert str(caught.value) == said


def test_files_do_not_depend_on_who_made_them(
    run: Run, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = tmp_path / "python", tmp_path / "command"
    outputs = ("m-Q4_K_M.gguf", "m-bf16")
    for folder in folders:
        folder.mkdir()
    weightcast.convert(
        tiny,
        [folders[0] / name for name in outputs],
        no_tokenizer=True,
        tensor_types="attn_v=F16",
        split="1M",
        bundle=True,
        report=folders[0] / "report.json",
    )
    arguments = ("--no-tokenizer", "--tensor-type", "attn_v=F16", "--split", "1M", "--bundle")
    paths = [str(folders[1] / name) for name in outputs]
    report = ("--report", str(folders[1] / "report.json"))
    assert run("convert", *arguments, *report, str(tiny), *paths) == 0
    assert "rule attn_v=F16" in capsys.readouterr().out
    made = [sorted(path for path in folder.rglob("*") if path.is_file()) for folder in folders]
    assert len(made[0]) == len(made[1]) > 20
    for by_call, by_command in zip(*made, strict=True):
        call = by_call.read_bytes().replace(bytes(folders[0]), b"")
        assert call == by_command.read_bytes().replace(bytes(folders[1]), b""), by_call.name


def texts(module: Path) -> Iterator[str]:
    """Give the texts of a module that are no docstrings."""
    tree = ast.parse(module.read_text())
    docs: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            first = node.body[0] if node.body else None
            docs |= {id(first.value)} if isinstance(first, ast.Expr) else set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield node.value


# The first declares options. Pages and schemas of reports name them, for whoever reads these, and
# so do commands of other programs.
OF_THE_COMMAND = (
    "converters/bundle/runtimes.py",
    "converters/sources/options.py",
    "converters/report/upgrades.py",
    "converters/report/verdict.py",
    "formats/gguf/foreign_types.py",
)
FLAGS = {row.option.flag.partition("/")[0] for row in ConvertOptions.rows()} | {
    "--source",
    "--sample",
    "--fail-over",
    "--gate",
    "--no-resume",
}


def test_no_text_of_the_library_has_an_option_in_it() -> None:
    modules = [
        path for room in ("converters", "formats", "quant") for path in ROOT.glob(f"{room}/**/*.py")
    ]
    assert len(modules) > 100
    found = {
        str(path.relative_to(ROOT)): text
        for path in modules
        for text in texts(path)
        if FLAGS.intersection(OPTION.findall(text))
    }
    assert set(found) == set(OF_THE_COMMAND)


def test_an_option_in_both_spellings() -> None:
    cases: list[tuple[tuple[Any, ...], str, str]] = [
        (("split",), "split", "--split"),
        (("split", "48G"), "split='48G'", "--split 48G"),
        (("spec", "FILE"), "spec=FILE", "--spec FILE"),
        (("resume", False), "resume=False", "--no-resume"),
        (("no_tokenizer", True), "no_tokenizer=True", "--no-tokenizer"),
        (("types",), "types", "--type"),
        (("tensor_types", "a b=F16"), "tensor_types='a b=F16'", "--tensor-type 'a b=F16'"),
    ]
    for arguments, in_python, at_the_command_line in cases:
        assert option(*arguments) == in_python
        with speaking_of_options():
            assert option(*arguments) == at_the_command_line
            assert spoken("command", "call") == "command"
        assert spoken("command", "call") == "call"
