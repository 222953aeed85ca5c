"""The examples build and run against the installed package, and do what they say."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import yaml

import weightcast
from weightcast import cli
from weightcast.converters.families.grok1.forward import clear_tokens, logits
from weightcast.converters.families.grok1.synthetic import tiny_spec, write_checkpoint
from weightcast.converters.graph.read import load_float32
from weightcast.formats.hessians import read_hessians
from weightcast.quant import config
from weightcast.quant.types import TYPES

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(*command: object, status: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    assert done.returncode == status, (done.args, done.stdout, done.stderr)
    return done


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """examples/quantize.c, built with what `python -m weightcast.quant.config` prints."""
    path = tmp_path_factory.mktemp("examples") / "quantize"
    said = run(sys.executable, "-m", "weightcast.quant.config").stdout
    flags = shlex.split(said)
    assert flags == [*config.cflags(), *config.libs()]
    strict = ("-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror")
    run("cc", *strict, EXAMPLES / "quantize.c", "-o", path, *flags, "-lm")
    return path


@pytest.mark.parametrize("name", [name for name, t in TYPES.items() if t.block_elements > 1])
def test_c_program(name, program):
    done = run(program, name)
    n_bytes = 64 * TYPES[name].row_bytes(1024)
    found = re.fullmatch(
        rf"{name} on \w+: 65536 values in {n_bytes} bytes, rms error ([\d.]+)\n", done.stdout
    )
    assert found, done.stdout
    bits = 8 * TYPES[name].block_bytes / TYPES[name].block_elements
    assert 0 < float(found[1]) < 1.6 * 2**-bits  # of values from -1 to 1
    assert done.stderr == (
        "cannot quantize: a value is NaN or infinite, or a scale is too large (row 3, column 5)\n"
    )


def test_c_program_refuses_an_unknown_type(program):
    assert run(program, "Q9_9", status=1).stderr == "no type Q9_9 for rows of 1024 values\n"


SAID = "Q4_K: 65536 values in 36864 bytes, rms error 0.03130\n"


@pytest.mark.skipif(shutil.which("rustc") is None, reason="no rustc: apt-get install rustc")
def test_rust(tmp_path):
    path = tmp_path / "quantize"
    library = f"link-arg={config.static()[0]}"
    run("rustc", "--edition=2021", EXAMPLES / "quantize.rs", "-o", path, "-C", library)
    assert run(path).stdout == SAID


@pytest.mark.skipif(
    shutil.which("go") is None or shutil.which("pkg-config") is None,
    reason="no go or no pkg-config: apt-get install golang-go pkgconf",
)
def test_go(tmp_path, monkeypatch):
    monkeypatch.setenv("PKG_CONFIG_PATH", config.pkgconfigdir()[0])
    monkeypatch.setenv("CGO_LDFLAGS", config.libs()[1])
    path = tmp_path / "quantize"
    run("go", "build", "-o", path, EXAMPLES / "quantize.go")
    assert run(path).stdout == SAID


def test_arrays():
    said = run(sys.executable, EXAMPLES / "quantize_arrays.py").stdout
    assert "refused: NaN or infinity at [3, 5] (out, in)" in said
    errors = dict(re.findall(r"(?m)^(\w+) +[\d.]+ +([\d.]+)", said))
    assert float(errors["Q8_0"]) < float(errors["Q4_K"]) < float(errors["Q2_K"])
    # Importance lowers the error that it weighs.
    for name, plain, given in re.findall(r"(?m)^(\w+) +[\d.]+ +[\d.]+ +([\d.]+) +([\d.]+)", said):
        assert float(given) <= float(plain), name


def test_gpu():
    said = run(sys.executable, EXAMPLES / "quantize_on_gpu.py").stdout
    assert re.match(r"quantizing on .+\n\(4096, 6144\) torch.bfloat16 becomes \(4096, 3456\)", said)
    assert "refused: NaN or infinity at [3, 5] (out, in)" in said
    errors = dict(re.findall(r"(?m)^(\w+) +rms error ([\d.]+)", said))
    assert float(errors["Q8_0"]) < float(errors["Q6_K"]) < float(errors["Q4_K"])


def test_examples_can_be_run_as_they_are():
    for path in EXAMPLES.glob("*.py"):
        assert os.access(path, os.X_OK)


def test_second_moments_are_collected(tmp_path: Path) -> None:
    """Of the tiny Grok's inputs, by the names that a conversion looks for."""
    model, tokenizer = EXAMPLES / "tiny-grok", EXAMPLES / "tiny-grok" / "tokenizer.model"
    weightcast.convert(model, tmp_path / "m-f32", tokenizer=tokenizer)
    text, hessians = model / "held-out.txt", tmp_path / "h.safetensors"
    command = sys.executable, EXAMPLES / "collect_hessians.py", tmp_path / "m-f32", text, hessians
    run(*command, "--window", 64, "--windows", 4)
    found = read_hessians(hessians)
    assert found.tokens == 256
    quantized = {
        name: tensor.shape
        for name, tensor in weightcast.open(model).items()
        if len(tensor.shape) > 1 and "token_embd" not in name and "gate_inp" not in name
    }
    assert {name: array.shape[:-2] for name, array in found.entries.items()} == {
        name: shape[:-2] for name, shape in quantized.items()
    }
    output = tmp_path / "m-Q4_K_S.gguf"
    weightcast.convert(model, output, hessian=hessians, tokenizer=tokenizer)
    assert weightcast.verify(output, model, hessian=hessians).is_good


def test_config_of_one_kind():
    module = ("-m", "weightcast.quant.config")
    assert shlex.split(run(sys.executable, *module, "--cflags").stdout) == config.cflags()
    assert shlex.split(run(sys.executable, *module, "--libs").stdout) == config.libs()
    both = shlex.split(run(sys.executable, *module, "--static", "--cflags").stdout)
    assert both == [*config.static(), *config.cflags()]


@pytest.mark.parametrize("asked", ["-h", "--help"])
def test_config_says_what_it_prints(asked):
    said = " ".join(run(sys.executable, "-m", "weightcast.quant.config", asked).stdout.split())
    assert said.startswith("usage: python -m weightcast.quant.config ")
    for option, (_, help_text) in config.OPTIONS.items():
        assert f"{option} {help_text}" in said
    assert said.endswith("Without options it prints --cflags and --libs.")


@pytest.mark.parametrize("wrong", ["--everything", "--cflag", "libs"])
def test_config_refuses_what_it_does_not_know(wrong):
    refused = run(sys.executable, "-m", "weightcast.quant.config", wrong, status=2)
    assert refused.stdout == ""
    assert refused.stderr == (
        f"error: unknown option {wrong}; use some of --cflags, --libs, --static, --pkgconfigdir, "
        "--cmakedir\n"
    )


def test_recipe_of_a_directory(tmp_path):
    """examples/attention_int8.toml, whose layers are those of the release."""
    spec = tiny_spec(num_layers=64, emb_size=128, num_experts=2, num_q_heads=16, key_size=64)
    source = write_checkpoint(tmp_path / "source", spec)
    out = tmp_path / "mixed"
    recipe = EXAMPLES / "attention_int8.toml"
    summary = weightcast.convert(source, out, recipe=recipe, no_tokenizer=True)
    types = summary.describe()["outputs"][0]["types"]
    packed = {"INT4-G128": 62 * 6, "INT4-G32": 2 * 6, "INT8-G128": 64 * 4}
    assert types == {"BF16": 2, "F32": 64 * 5 + 1, **packed}
    said = json.loads((out / "config.json").read_text())["quantization_config"]
    groups = said["config_groups"].values()
    assert [(group["targets"], group["weights"]["num_bits"]) for group in groups] == [
        ([r"re:.*layers\.(0|63)\..*experts.*"], 4),
        (["re:.*attn.*"], 8),
        (["Linear"], 4),
    ]


def weightcast_commands(script: str) -> list[list[str]]:
    """The words of every weightcast command in a shell script."""
    lines = script.replace("\\\n", " ").splitlines()
    return [words for words in map(shlex.split, lines) if words[:1] == ["weightcast"]]


def test_release_workflow():
    """examples/release.yml is a workflow, and asks weightcast for nothing that it does not have."""
    workflow = yaml.safe_load((EXAMPLES / "release.yml").read_text())
    assert set(workflow) == {"name", True, "permissions", "jobs"}  # YAML 1.1 reads "on" as true
    scripts = [step["run"] for step in workflow["jobs"]["release"]["steps"] if "run" in step]
    for script in scripts:
        run("bash", "-n", "-c", script)
    commands = [words for script in scripts for words in weightcast_commands(script)]
    used = {words[1] for words in commands}
    assert used == {"inspect", "convert", "verify"}
    missing = used - cli.commands.commands.keys()
    for _, name, *words in commands:
        options = {text for p in cli.load(name).params for text in p.opts}
        given = {word.partition("=")[0] for word in words if word.startswith("--")}
        missing |= given - options
    assert not missing
    assert any("--bundle" in words for words in commands)


def test_gate(tmp_path):
    """examples/ci_gate.sh ends as the gate says, with a summary in either case."""
    write_checkpoint(tmp_path / "tiny", tiny_spec(emb_size=256), seed=3)
    summary = tmp_path / "summary.md"
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "GITHUB_STEP_SUMMARY": str(summary)}
    environment["WEIGHTCAST_OPTIONS"] = "--no-tokenizer"

    def gate(*words: str) -> subprocess.CompletedProcess[str]:
        command = [
            EXAMPLES / "ci_gate.sh",
            tmp_path / "tiny",
            tmp_path / "tiny-Q4_K_M.gguf",
            *words,
        ]
        return subprocess.run(command, capture_output=True, text=True, env=environment)

    done = gate()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert "tiny-Q4_K_M.gguf" in summary.read_text()
    done = gate("attn_q:sqnr_db=60", "relative_rms=0.5")
    assert done.returncode == 3
    assert "blk.0.attn_q.weight: sqnr_db is 2" in done.stderr
    assert summary.read_text().count("## Quantization errors") == 2
    assert gate("rms=0.5").returncode == 2
    assert summary.read_text().count("## Quantization errors") == 2  # nothing was measured


@pytest.fixture(scope="module")
def training() -> ModuleType:
    """examples/train_tiny_grok.py."""
    pytest.importorskip("torch", reason="torch is not installed: pip install 'weightcast[torch]'")
    path = EXAMPLES / "train_tiny_grok.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_novels(path: Path, novels: list[list[str]]) -> None:
    """Write character vectors as an R package's database has them."""
    with path.open("wb") as file:
        for lines in novels:
            data = b"X\n\0\0\0\3" + bytes(17) + b"\0\0\0\x10" + struct.pack(">i", len(lines))
            for line in lines:
                raw = line.encode()
                data += struct.pack(">ii", 0x40009, len(raw)) + raw
            file.write(struct.pack(">i", len(data)) + zlib.compress(data))


def test_training(training: ModuleType, tmp_path: Path) -> None:
    """A few steps leave a checkpoint that converts with its tokenizer, which is always the same."""
    pages = sorted((EXAMPLES.parent / "docs").rglob("*.md"))
    lines = [line for page in pages for line in page.read_text().splitlines()]
    novels = [["A TITLE", "", "Chapter 1", "", *lines[n::6]] for n in range(6)]
    novels[3] += ["", "Chapter 24", "", "They _married_.", "Soon.", "", "Finis"]
    write_novels(tmp_path / "Rdata.rdb", novels)
    script, made = EXAMPLES / "train_tiny_grok.py", tmp_path / "made"
    run(sys.executable, script, tmp_path / "Rdata.rdb", made, "--steps", 2)
    read = training.read_novels(tmp_path / "Rdata.rdb")
    assert read == novels
    chapters = [part for novel in read for part in training.chapters(novel)]
    text = "".join(text for heading, text in chapters if heading != "Chapter 24")
    assert (made / "tokenizer.model").read_bytes() == training.train_tokenizer(text)
    assert (made / "held-out.txt").read_text() == "They married. Soon.\n"
    weightcast.convert(made / "ckpt-0", tmp_path / "tiny-Q4_K_M.gguf")
    assert weightcast.open(tmp_path / "tiny-Q4_K_M.gguf").spec.vocab_size == 2048


def test_training_refuses_other_texts(training: ModuleType, tmp_path: Path) -> None:
    script, text, made = EXAMPLES / "train_tiny_grok.py", tmp_path / "Rdata.rdb", tmp_path / "made"
    text.write_text("no database of R")
    said = run(sys.executable, script, text, made, status=1).stderr
    assert said.startswith(f"error: {text}: not a database of R (")
    write_novels(text, [["A TITLE", "Chapter 1", "One."]])
    said = run(sys.executable, script, text, made, status=1).stderr
    assert said.startswith(f"error: {text}: holds 1 of the 6 novels; ")
    assert not made.exists()


def test_training_computes_what_the_reference_does(training: ModuleType) -> None:
    import torch

    graph = weightcast.open(EXAMPLES / "tiny-grok" / "ckpt-0").graph
    tokens = clear_tokens(graph, 5)
    weights = {name: torch.from_numpy(load_float32(graph[name])) for name in graph}
    with torch.no_grad():
        found, _ = training.forward(weights, torch.from_numpy(tokens))
    np.testing.assert_allclose(found.numpy(), logits(graph, tokens), atol=1e-4)


def test_the_trained_model_is_small_and_of_the_script(training: ModuleType) -> None:
    folder = EXAMPLES / "tiny-grok"
    assert json.loads((folder / "spec.json").read_text()) == training.SPEC
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 8e6
    assert (folder / "held-out.txt").read_text().startswith("Who can be in doubt of what followed?")
