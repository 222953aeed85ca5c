"""`convert`: results, dry runs, options and wrong usage."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

import weightcast
from tests.commands.command_line import names
from tests.gguf_files import floats, string, write
from weightcast.converters import convert as conversion
from weightcast.converters.families.grok1.synthetic import tiny_spec, write_checkpoint
from weightcast.converters.output.disk_space import DiskSpace, disk_space
from weightcast.converters.sources import open_graph
from weightcast.converters.sources.options import ConvertOptions


def test_several_outputs_of_one_read(run, tiny: Path, tmp_path: Path) -> None:
    done = run("convert", tiny, tmp_path / "a-Q8_0.gguf", tmp_path / "a-bf16", "--no-tokenizer")
    assert (done.code, done.err) == (0, "")
    assert names(tmp_path) == ["a-Q8_0.gguf", "a-bf16"]
    assert "14 tensors carry the source's int8 codes and scales unchanged: lossless" in done.out
    assert "quantized: token_embd.weight" in done.out


def test_all_that_is_quantized_is_not_listed(run, tmp_path: Path) -> None:
    """Only beside int8 codes that were carried over."""
    weights = floats(np.ones((4, 64), np.float32))
    source = write(
        tmp_path / "m.gguf", {"general.architecture": string("x")}, {"a.weight": weights}
    )
    assert "quantized:" not in run("convert", source, tmp_path / "m-Q8_0.gguf").out


def test_layers_are_listed_any_number_of_times(run, tmp_path: Path) -> None:
    part = floats(np.ones((4, 64), np.float32))
    layers = {f"blk.{n}.a.weight": part for n in range(6)}
    source = write(tmp_path / "m.gguf", {"general.architecture": string("x")}, layers)
    made, asked = tmp_path / "m-F16.gguf", ("--prune-layers", "4", "--prune-layers", "0, 1")
    assert "3 layers left out: 0, 1, 4" in run("convert", source, made, *asked).out
    assert run("verify", made, "--source", source, *asked).code == 0
    assert run("compare", source, made, *asked).code == 0
    assert run("convert", source, made, "--prune-layers", "").code == 2


def test_json_result(run, tiny: Path, tmp_path: Path) -> None:
    done = run("convert", "--json", "--no-tokenizer", tiny, tmp_path / "a-Q8_0.gguf")
    result = json.loads(done.out)
    (output,) = result["outputs"]
    assert output["bytes"] == (tmp_path / "a-Q8_0.gguf").stat().st_size
    assert output["types"] == {"F32": 11, "Q8_0": 15}
    assert output["q8_0"]["quantized"] == ["token_embd.weight"]


def test_quiet_prints_nothing(run, tiny: Path, tmp_path: Path) -> None:
    done = run("convert", "--quiet", "--no-tokenizer", tiny, tmp_path / "a-F16.gguf")
    assert (done.code, done.out, done.err) == (0, "", "")


def test_dry_run_writes_nothing(run, tiny: Path, tmp_path: Path) -> None:
    done = run("convert", "--dry-run", "--no-tokenizer", tiny, tmp_path / "a-F16.gguf")
    assert done.code == 0
    assert names(tmp_path) == []
    done_json = run(
        "convert", "--dry-run", "--json", "--no-tokenizer", tiny, tmp_path / "a-F16.gguf"
    )
    size = json.loads(done_json.out)["outputs"][0]["bytes"]
    assert f"{size:,} bytes" in done.out
    run("convert", "--quiet", "--no-tokenizer", tiny, tmp_path / "a-F16.gguf")
    assert (tmp_path / "a-F16.gguf").stat().st_size == size


def test_a_search_is_planned_and_told(run, tiny: Path, tmp_path: Path) -> None:
    asked = ("convert", tiny, tmp_path / "a-Q4_K.gguf", "--no-tokenizer")
    searched = (*asked, "--search", "least-error")
    assert "  search: least-error, effort 2\n" in run(*searched, "-n").out
    assert "  search: least-error, effort 3\n" in run(*searched, "--effort", "3").out
    assert "search:" not in run(*asked, "-n").out
    for options, said in (
        (searched, {"name": "least-error", "effort": 2}),
        (asked, {"name": "ggml", "effort": None}),
    ):
        (output,) = json.loads(run(*options, "-n", "--json").out)["outputs"]
        assert output["search"] == said


def test_types_by_option(run, tiny: Path, tmp_path: Path) -> None:
    arguments = ["--type", "q8_0", "--type", "BF16", tiny, tmp_path / "a.gguf", tmp_path / "b"]
    assert run("convert", "--no-tokenizer", *arguments).code == 0
    assert names(tmp_path) == ["a.gguf", "b"]
    assert (tmp_path / "b" / "config.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["model.gguf"], "does not end in a type, as in grok-1-Q4_K_M.gguf; rename it or pass --t"),
        (["model-Q9_9.gguf"], "Q9_9 is not a type of a GGUF file; weightcast types lists them"),
        (["model-q8.0k.gguf"], "the name does not end in a type"),
        (["model-int7"], "int7 is not a type of a safetensors directory; did you mean int8?"),
        (["model"], "the name does not end in a type, as in grok-1-bf16/; rename it or pass"),
        (["model-F16.gguf/"], "leave the slash out"),
        (["--split", "9" * 400 + "G", "a-F16.gguf"], "is not a sensible size"),
        (
            ["--split", "48", "a-F16.gguf"],
            "'48' has no unit; write 48G for GB, 48M for MB, or 48B",
        ),
        (["--jobs", "100000", "a-F16.gguf"], "invalid value for '-j' / '--jobs'"),
        (["a-bf16", "a-bf16/b-F16.gguf"], "another output lies in it"),
        (["model-Q8_0"], "Q8_0 is a type of GGUF files; name the output model-Q8_0.gguf"),
        (["m-F16.safetensors"], "safetensors are written as a directory"),
        (["--type", "Q9", "m.gguf"], "Q9 is not a type of a GGUF file"),
        (["--type", "F16", "a.gguf", "b.gguf"], "1 type for 2 outputs"),
        (["a-F16.gguf", "./a-F16.gguf"], "two outputs have the same name"),
        (["--tensor-type", "attn_v", "a-F16.gguf"], "attn_v: write it as REGEX=TYPE"),
        (
            ["--tensor-type", "attn_v=Q9", "a-F16.gguf"],
            "attn_v=Q9: unknown type 'Q9'; weightcast types lists",
        ),
        (["Q4_K_M"], "Q4_K_M is a type, not an output; write NAME-Q4_K_M.gguf"),
        (["--split", "many", "a-F16.gguf"], "'many' is not a size"),
        (["--split", "0G", "a-F16.gguf"], "'0G' is not a sensible size"),
        (["--jobs", "0", "a-F16.gguf"], "invalid value for '-j' / '--jobs'"),
        (["--tokenizer", "t.model", "a-F16.gguf"], "a tokenizer and no tokenizer"),
        (["--tpye", "F16", "a.gguf"], "no such option '--tpye'"),
        ([], "name an output after "),
    ],
)
def test_wrong_usage_is_exit_2(
    run,
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run("convert", "--no-tokenizer", tiny, *arguments)
    assert done.code == 2
    assert said in done.err
    assert names(tmp_path) == []


def test_an_output_is_replaced_whole(run, tiny: Path, tmp_path: Path) -> None:
    for name in ("a-f16", "a-F16.gguf"):
        assert run("convert", "--no-tokenizer", tiny, tmp_path / name, "--split", "3M").code == 0
        assert run("convert", "--no-tokenizer", tiny, tmp_path / name).code == 0
    assert names(tmp_path / "a-f16") == [
        "config.json",
        "configuration_grok1.py",
        "generation_config.json",
        "model.safetensors",
        "modeling_grok1.py",
    ]


def test_recipes_and_overrides(run, tiny: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text("base = 'Q8_0'\n[[rule]]\npattern = 'attn_'\ntype = 'F16'\n")
    options = ("--recipe", recipe, "--tensor-type", "attn_v=BF16")
    out = tmp_path / "tiny-mine.gguf"
    done = run("convert", "--no-tokenizer", *options, tiny, out)
    assert done.code == 0
    assert "(BF16 2, F16 6, F32 11, Q8_0 7)" in done.out
    assert f"stored as F16, as {recipe}: rule 1: 'attn_' asks: 6 tensors" in done.out
    assert "stored as BF16, as rule attn_v=BF16 asks: 2 tensors" in done.out


def test_pure(run, tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "tiny-Q4_K_M.gguf"
    done = run("convert", "--dry-run", "--no-tokenizer", "--pure", tiny, out)
    assert "(F32 11, Q4_K 15)" in done.out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--recipe", "absent.toml"], "absent.toml: no such file"),
        (["--imatrix", "absent.dat"], "absent.dat: no such file"),
    ],
)
def test_recipe_options_that_are_wrong_are_one_line(
    run, tiny: Path, tmp_path: Path, options: list[str], said: str
) -> None:
    done = run("convert", "--no-tokenizer", *options, tiny, tmp_path / "m-Q4_K_M.gguf")
    assert done.code == 1
    assert said in done.err
    assert done.err.count("\n") == 1
    assert names(tmp_path) == []


def test_a_recipe_that_needs_importance_is_refused(run, tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "m-IQ2_XS.gguf"
    done = run("convert", "--no-tokenizer", tiny, out)
    assert done.code == 1
    assert done.err.startswith(f"error: {out}: needs an importance matrix; give one with --imatrix")
    assert names(tmp_path) == []
    done = run("convert", "--dry-run", "--no-tokenizer", tiny, out)
    assert done.code == 0
    assert "note: needs an importance matrix; give one with --imatrix FILE" in done.out


@pytest.mark.parametrize("option", ["--spec", "--tokenizer", "--recipe", "--imatrix"])
def test_files_that_must_not_be_read_are_bad_input(
    run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    """Not wrong usage, which a check of click's would make of them."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"")
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != secret)
    done = run("convert", option, secret, tiny, tmp_path / "a-Q8_0.gguf")
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert str(secret) in done.err


@pytest.mark.parametrize("option", ["--spec", "--tokenizer"])
@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null", "/nonexistent", "/"])
def test_options_that_are_no_files(run, tiny: Path, tmp_path: Path, option: str, path: str) -> None:
    done = run("convert", option, path, tiny, tmp_path / "a-F16.gguf")
    assert (done.code, len(done.err.splitlines())) == (1, 1)
    assert path in done.err


def test_a_tokenizer_with_fewer_pieces_is_pointed_out(
    run, tiny: Path, tokenizer_model: Path, tmp_path: Path
) -> None:
    done = run("convert", "--tokenizer", tokenizer_model, tiny, tmp_path / "a-F16.gguf")
    assert "the tokenizer has 400 pieces for a vocabulary of 1,024" in done.out


def test_shards_with_holes_are_refused_unless_that_is_allowed(run, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "m", tiny_spec(emb_size=1024, num_q_heads=64), sparse=True)
    command = ("convert", "--no-tokenizer", tmp_path / "m", tmp_path / "a-Q8_0.gguf")
    for option in ("--dry-run", "--allow-holes"):
        done = run(*command, option)
        assert done.code == 0
        assert "shards with parts that were never written, such as" in done.out
        assert "a hole from byte" in done.out
    (tmp_path / "a-Q8_0.gguf").unlink()
    done = run(*command)
    assert done.code == 1
    assert "--allow-holes converts it as it is" in done.err
    assert not (tmp_path / "a-Q8_0.gguf").exists()


@pytest.mark.parametrize("at", [0.1, 0.5, 0.8])
def test_blocks_of_zeros_are_as_holes(run, at: float, tmp_path: Path) -> None:
    """A downloader that fills files with zeros first, on a file system without holes."""
    source = write_checkpoint(tmp_path / "m", tiny_spec(emb_size=512, widening_factor=3))
    shard = source / "tensor00002_000"
    assert shard.stat().st_size == pytest.approx(4 << 20, rel=0.01)
    with shard.open("r+b") as file:
        file.seek(int(at * shard.stat().st_size))
        file.write(bytes(1 << 18))
    done = run("convert", "--no-tokenizer", source, tmp_path / "a-Q8_0.gguf")
    assert done.code == 1
    assert "tensor00002_000: zeros from byte" in done.err
    assert run("inspect", source).out.count("never written") == 1


def test_disk_space_is_summed_per_file_system(tiny: Path, tmp_path: Path) -> None:
    plan = conversion.prepare(
        tiny, [tmp_path / "a-F16.gguf", tmp_path / "b-F16.gguf"], ConvertOptions(no_tokenizer=True)
    )
    (space,) = disk_space(plan.outputs)
    assert isinstance(space, DiskSpace)
    assert space.needed == plan.write_bytes


def test_what_an_interpreter_shows_is_short(any_gguf: Path) -> None:
    summary = weightcast.convert(any_gguf, any_gguf.parent / "a-Q8_0.gguf")
    for value in (open_graph(any_gguf), summary, summary.plan):
        assert "\n" not in repr(value)
        assert len(repr(value)) < 200 + len(str(any_gguf))


def test_quantizing_twice(run, any_gguf: Path) -> None:
    folder = any_gguf.parent
    assert run("convert", any_gguf, folder / "a-Q4_K.gguf", "--pure").code == 0
    done = run("convert", folder / "a-Q4_K.gguf", folder / "b-Q8_0.gguf")
    assert done.code == 1
    assert done.err.startswith(f"error: {folder / 'a-Q4_K.gguf'}: 'blk.0.a.weight' is Q4_K")
    assert "--allow-requantize" in done.err
    done = run("convert", "--allow-requantize", folder / "a-Q4_K.gguf", folder / "b-Q8_0.gguf")
    assert done.code == 0
    assert run("convert", folder / "a-Q4_K.gguf", folder / "b-F16.gguf").code == 0


def test_dry_run_tells_the_exact_size_of_any_gguf(run, any_gguf: Path) -> None:
    target = any_gguf.parent / "b-Q8_0.gguf"
    done = run("convert", "--dry-run", "--json", any_gguf, target)
    assert not target.exists()
    run("convert", any_gguf, target)
    assert json.loads(done.out)["outputs"][0]["bytes"] == target.stat().st_size


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a-bf16"], "architecture 'my-arch': directories, --spec, --tokenizer and"),
        (["a-F16.gguf", "--no-tokenizer"], "architecture 'my-arch': directories"),
        (["a-F16.gguf", "--imatrix", "any.gguf"], "my-arch, not an importance matrix"),
        (["any.gguf", "--type", "Q8_0"], "is or holds the source"),
    ],
)
def test_what_any_gguf_cannot_become(
    run, any_gguf: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(any_gguf.parent)
    done = run("convert", "any.gguf", *arguments)
    assert done.code == 1
    assert said in done.err
    assert done.err.count("\n") == 1
    assert names(any_gguf.parent) == ["any.gguf"]
