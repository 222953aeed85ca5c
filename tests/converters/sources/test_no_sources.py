"""Sources that are none: the exact line for each, through the command line and in Python.

`no_sources.py` makes them, `no_sources.txt` is the transcript that is checked.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import weightcast
from tests import imatrices
from tests.commands.command_line import Done
from tests.commands.conftest import run
from tests.converters.sources import no_sources
from tests.support import GOLDEN
from weightcast.converters.families.grok1.synthetic import RELEASE, write_checkpoint
from weightcast.errors import CheckpointError, MissingTensorError
from weightcast.formats.foreign.files import look_at
from weightcast.formats.foreign.tables import DIRECTORIES, FORMATS, WANTED, Marker
from weightcast.formats.gguf import foreign_types
from weightcast.formats.gguf.imatrix import read_imatrix

__all__ = ["run"]

Run = Callable[..., Done]
TRANSCRIPT = Path(__file__).with_suffix(".txt").with_name("no_sources.txt").read_text()
# (arguments, the line that answers)
SAID = [
    (tuple(shlex.split(command.removeprefix("$ weightcast "))), line)
    for command, line in (entry.strip().split("\n") for entry in TRANSCRIPT.split("\n\n"))
]
INSPECTED = [(arguments[1], line) for arguments, line in SAID if arguments[0] == "inspect"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of all that is no source; do not change it."""
    folder = tmp_path_factory.mktemp("no-sources")
    before = Path.cwd()
    os.chdir(folder)
    try:
        no_sources.make_all()
    finally:
        os.chdir(before)
    return folder


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty working directory, and no home."""
    folder = tmp_path_factory.mktemp("empty")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HOME", "/nowhere")
        yield folder


@pytest.fixture
def there(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)
    monkeypatch.setenv("HOME", "/home/me")
    return made


@pytest.mark.parametrize(("arguments", "line"), SAID, ids=[" ".join(said[0]) for said in SAID])
def test_a_command_says_it_in_one_line(
    arguments: tuple[str, ...], line: str, run: Run, there: Path
) -> None:
    before = sorted(os.listdir())
    done = run(*arguments)
    assert (done.code, done.out, done.err) == (1, "", f"{line}\n")
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize(("path", "line"), INSPECTED)
def test_every_other_command_says_the_same(path: str, line: str, run: Run, there: Path) -> None:
    for arguments in (
        ("convert", path, "out-Q8_0.gguf", "--no-tokenizer"),
        ("compare", path, "g/ok.gguf"),
        ("compare", "g/ok.gguf", path),
        ("verify", "g/ok.gguf", "--source", path),
    ):
        done = run(*arguments)
        assert (done.code, done.out, done.err) == (1, "", f"{line}\n")


@pytest.mark.parametrize(("path", "line"), INSPECTED)
def test_verify_says_what_it_is_and_the_remedy(path: str, line: str, run: Run, there: Path) -> None:
    """Of what could be an artifact it lists the problems, of all else it is the same line."""
    done = run("verify", path)
    if done.err:
        assert (done.code, done.err) == (1, f"{line}\n")
        return
    problems = [said for said in done.out.splitlines() if said.startswith("problem: ")]
    assert all("; " in problem for problem in problems)
    is_whole = path in ("g/imatrix.gguf", "g/vocab.gguf", "g/nothing.gguf")
    assert (done.code == 0, not problems) == (is_whole, is_whole)


@pytest.mark.parametrize(("path", "line"), INSPECTED)
def test_python_says_the_same_of_arguments(path: str, line: str, there: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        weightcast.open(path)
    said = str(caught.value)
    for option in ("tokenizer", "imatrix", "spec", "recipe", "lora", "base"):
        line = line.replace(f"as --{option}", f"as {option}")
    assert f"error: {said}" == line
    assert "--imatrix" not in said


def test_every_source_of_the_folder_is_in_the_transcript(there: Path) -> None:
    """What is made and not checked would be forgotten."""
    told = " ".join(" ".join(arguments) for arguments, _ in SAID)
    helpers = {"g/ok.gguf", "f/right.gguf", "f/plain.safetensors", "d/whole.gguf.aria2", "ck/whole"}
    for folder in ("f", "d", "t", "j", "g", "hf", "dir", "ck"):
        for name in os.listdir(folder):
            path = f"{folder}/{name}"
            assert path in helpers or path in told, path


def test_a_zero_byte_in_a_path() -> None:
    with pytest.raises(CheckpointError, match="a name with a zero byte, which no file can have"):
        weightcast.open("a\0b")


def test_a_file_called_as_standard_input_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    no_sources.gguf("-")
    assert len(weightcast.open("-")) == 1


def test_standard_input_that_is_a_file(tmp_path: Path) -> None:
    """Shells open it: weightcast inspect /dev/stdin < m.gguf."""
    no_sources.gguf(str(tmp_path / "m.gguf"))
    with open(tmp_path / "m.gguf", "rb") as file:
        assert len(weightcast.open(f"/dev/fd/{file.fileno()}")) == 1


@pytest.fixture
def another_user() -> Iterator[Path]:
    """A folder that others can reach, as somebody who is not root."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        was_root = os.geteuid() == 0
        if was_root:
            os.chown(folder, 65534, 65534)
            os.seteuid(65534)
        try:
            yield Path(folder)
        finally:
            if was_root:
                os.seteuid(0)


def test_what_this_user_may_not_read(another_user: Path) -> None:
    closed, file = another_user / "closed", another_user / "m.gguf"
    closed.mkdir()
    no_sources.gguf(str(file))
    file.chmod(0)
    closed.chmod(0)
    try:
        for path, opened in {closed: closed, closed / "m.gguf": closed, file: file}.items():
            for command in (weightcast.open, weightcast.verify):
                with pytest.raises(CheckpointError) as caught:
                    command(path)
                said = f"permission denied; let its owner open it (chmod a+rX {opened})"
                assert str(caught.value) == f"{path}: cannot be read: {said}"
    finally:
        closed.chmod(0o755)


def test_an_unfinished_file_of_an_index(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "m-bf16"
    weightcast.convert(tiny, path, no_tokenizer=True, split="1M")
    last = sorted(path.glob("*.safetensors"))[-1]
    last.rename(f"{last}.incomplete")
    words = rf"{last}: missing \(unfinished: {last.name}\.incomplete\), but .* names it; download"
    with pytest.raises(MissingTensorError, match=words):
        weightcast.open(path)


def test_a_pipe_among_the_files_of_a_model(tiny: Path, tmp_path: Path) -> None:
    """Opening one would wait for ever."""
    path = tmp_path / "m-bf16"
    weightcast.convert(tiny, path, no_tokenizer=True)
    (path / "model.safetensors").unlink()
    for name in ("model.safetensors", "pytorch_model.bin"):
        os.mkfifo(path / name)
        with pytest.raises(CheckpointError, match=f"{name}: a pipe, not a regular file; name a"):
            weightcast.open(path)
        (path / name).unlink()
    no_sources.part(str(tmp_path / "m-00001-of-00002.gguf"), 0, 2)
    os.mkfifo(tmp_path / "m-00002-of-00002.gguf")
    with pytest.raises(MissingTensorError, match=r"1 part of 2 is missing; download m-00002-of"):
        weightcast.open(tmp_path / "m-00001-of-00002.gguf")


def test_where_the_tokenizer_of_the_release_comes_from(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "grok 1", RELEASE, sparse=True)
    with pytest.raises(CheckpointError) as caught:
        weightcast.convert(source, tmp_path / "g-Q8_0.gguf")
    command = f"curl -L -O --output-dir '{source}' https://github.com/xai-org/grok-1/raw/main/toke"
    assert f"llama.cpp needs one; download it ({command}" in str(caught.value)


@pytest.mark.parametrize("name", ["m.tmp", "m.temp", "m.parts", "m.001", "sha256-1f2e", "m.GGUF"])
def test_a_gguf_file_under_any_name_is_read(name: str, tmp_path: Path) -> None:
    no_sources.gguf(str(tmp_path / name))
    assert len(weightcast.open(tmp_path / name)) == 1


def test_what_cannot_be_parsed_is_said_as_such(tiny: Path, tmp_path: Path) -> None:
    """Keys tell of other files only, not of one that somebody has edited."""
    weightcast.convert(tiny, tmp_path / "m-bf16", no_tokenizer=True)
    config = tmp_path / "m-bf16" / "config.json"
    config.write_text(config.read_text().replace("{", "{,", 1))
    with pytest.raises(CheckpointError, match=r"config\.json: not valid JSON"):
        weightcast.open(config.parent)
    spec = tmp_path / "spec.json"
    spec.write_text('{"emb_size": 8, "widening_factor": 8')
    with pytest.raises(CheckpointError, match=r"spec\.json: not valid JSON"):
        weightcast.open(tiny, spec=spec)
    raw = (1).to_bytes(4, "little") + imatrices.old_entry(b"blk.0.a", 1, -np.ones(9, np.float32))
    (tmp_path / "i.dat").write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"value 0 is -1\.0; none can be below 0"):
        read_imatrix(tmp_path / "i.dat")


def test_a_config_of_ours_that_lacks_something(tmp_path: Path) -> None:
    no_sources.weights(str(tmp_path / "model.safetensors"))
    said = {"model_type": "grok-1", "architectures": ["Grok1ModelForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(said))
    with pytest.raises(CheckpointError, match=r"Grok-1 \(no embedding_multiplier_scale\)"):
        weightcast.open(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["OPTForCausalLM"]}))
    with pytest.raises(CheckpointError, match="a model of type OPTForCausalLM, not Grok-1; make"):
        weightcast.open(tmp_path)


def test_an_older_imatrix_under_any_name_is_read(tmp_path: Path) -> None:
    """Names tell only what bytes do not."""
    import numpy as np

    from tests import imatrices
    from weightcast.formats.gguf.imatrix import read_imatrix

    raw = (1).to_bytes(4, "little") + imatrices.old_entry(b"a", 1, np.ones(4, np.float32))
    for name in ("i.txt", "i.tmp", "i.part", "Modelfile"):
        (tmp_path / name).write_bytes(raw)
        assert list(read_imatrix(tmp_path / name).entries) == ["a"]


HEADS = [mark.pattern for mark in FORMATS] + [*no_sources.STAND_INS.values(), b"{", b"\n\x0e\n\5"]


@given(
    head=st.sampled_from(HEADS) | st.binary(max_size=80),
    rest=st.binary(max_size=300),
    name=st.sampled_from(["m", "m.gguf", "m.gguf.part", "config.json", "m.zip", "m.tar.gz", "x y"]),
    wanted=st.sampled_from(sorted(WANTED)),
)
def test_any_bytes_end_in_one_line(
    head: bytes, rest: bytes, name: str, wanted: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    path.mkdir(exist_ok=True)
    path /= name
    path.write_bytes(head + rest)
    found = look_at(path, wanted)
    if found is not None:
        assert found.what
        assert "{" not in found.remedy
        assert len(str(CheckpointError(f"{path}: {found}")).splitlines()) == 1


@given(
    values=st.dictionaries(
        st.sampled_from(
            ["model_type", "architectures", "quantization_config", "quantization", "residual_moe"]
        ),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=9),
            lambda inner: (
                st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=2)
            ),
            max_leaves=4,
        ),
    )
)
def test_any_config_ends_in_one_line(
    values: dict, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "config"
    path.mkdir(exist_ok=True)
    no_sources.weights(str(path / "model.safetensors"))
    (path / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError) as caught:
        weightcast.open(path)
    assert len(str(caught.value).splitlines()) == 1


@given(
    text=st.text(max_size=30)
    | st.lists(
        st.sampled_from(
            ["~", "$HOME", "*", "[", "/", "//", "..", "a", "b.gguf", ":", "\\", "\udcff"]
        ),
        max_size=6,
    ).map("".join)
    | st.sampled_from(["https:", "hf:", "s3://", "magnet:"]).map(lambda s: f"{s}//%zz//x?y#z")
)
def test_any_text_as_a_path_ends_in_one_line(text: str, empty: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        weightcast.open(text)
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value).isprintable()


def test_what_is_read_needs_no_tables_of_what_is_not(tiny: Path) -> None:
    """They take a while to import."""
    code = (
        f"import sys, weightcast; weightcast.open({str(tiny)!r});"
        "print(*(n for n in sys.modules if 'foreign' in n))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [
        "weightcast.formats.foreign.finding",
        "weightcast.formats.foreign",
        "weightcast.formats.foreign.downloads",
        "weightcast.converters.sources.foreign_models",
    ]


@pytest.mark.parametrize("path", [".", "__0_0.distcp"])
def test_a_joined_checkpoint_has_a_name(
    path: str, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the path does not say what the directory is called."""
    monkeypatch.chdir(made / "f/sharded")
    with pytest.raises(CheckpointError, match=r"dcp_to_torch \. sharded\.bin\)$"):
        weightcast.open(path)


@pytest.mark.parametrize("marker", DIRECTORIES, ids=lambda marker: marker.entry.what)
def test_every_foreign_directory_is_told_with_its_remedy(marker: Marker, tmp_path: Path) -> None:
    names = [_a_name(pattern) for pattern in marker.names]
    for name in names:
        (tmp_path / name).mkdir() if "." not in name else (tmp_path / name).write_bytes(b"")
    with pytest.raises(CheckpointError) as caught:
        weightcast.open(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}: {marker.entry.what}; ")
    assert "{" not in str(caught.value)


def _a_name(pattern: re.Pattern[str]) -> str:
    """Give a short name that a marker's pattern takes."""
    examples = [
        text
        for files in no_sources.DIRECTORIES.values()
        for file in files
        for text in Path(file).parts
    ]
    examples += ["rank0.engine", "model.pdparams"]
    return next(name for name in examples if pattern.fullmatch(name))


def test_foreign_types_are_none_of_ggml() -> None:
    from gguf import GGMLQuantizationType

    names = {own.value: own.name for own in GGMLQuantizationType}
    for architecture in (None, "llama", "bitnet-b1.58", "gptoss"):
        for number, found in foreign_types.foreign_types(architecture).items():
            in_memory = found.origin.startswith("which ggml has in memory")
            assert number not in names or in_memory or architecture == "bitnet-b1.58"
            assert not in_memory or found.name == names[number]


@pytest.mark.parametrize(("first", "second"), [(3, 4), (3, 13), (0, 1)])
def test_shards_under_each_others_names(first: int, second: int, tmp_path: Path) -> None:
    source = shutil.copytree(GOLDEN / "wide", tmp_path / "m")
    one, other = (source / "ckpt-0" / f"tensor{number:05}_000" for number in (first, second))
    one.rename(tmp_path / "aside")
    other.rename(one)
    (tmp_path / "aside").rename(other)
    with pytest.raises(CheckpointError) as caught:
        weightcast.open(source)
    assert str(caught.value).startswith(f"{source / 'ckpt-0'}")
    assert str(caught.value).endswith("if shards were renamed, download them again")
