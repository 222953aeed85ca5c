"""verify: its lines, its JSON values, and its exit code."""

from __future__ import annotations

import json
from pathlib import Path

import weightcast
from weightcast.converters.families.grok1.synthetic import tiny_spec, write_checkpoint


def test_a_source(run, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "m", tiny_spec(emb_size=512, widening_factor=3))
    done = run("verify", source, "--json")
    assert done.code == 0
    assert json.loads(done.out)["good"]
    with (source / "tensor00002_000").open("r+b") as file:
        file.seek(1 << 20)
        file.write(bytes(1 << 17))
    done = run("verify", source, "--quiet")
    assert done.code == 3
    assert done.out.startswith("problem: ")
    assert "tensor00002_000: was never written as a whole: zeros from byte" in done.out


def test_problems_of_one_kind_are_a_few_lines(run, tiny: Path, tmp_path: Path) -> None:
    """The rest is a number, unless all are asked for; JSON has all."""
    folder = tmp_path / "a-bf16"
    weightcast.convert(tiny, folder, no_tokenizer=True, bundle=True)
    sums = folder / "SHA256SUMS"
    with sums.open("a") as file:
        file.writelines(f"{'0' * 64}  absent-{number}.bin\n" for number in range(40))
    for options in ([], ["--quiet"]):
        done = run("verify", folder, *options)
        problems = [line for line in done.out.splitlines() if line.startswith("problem: ")]
        assert (done.code, len(problems)) == (3, 11)
        assert problems[0] == (
            f"problem: {folder}/absent-0.bin: missing, but SHA256SUMS names it; "
            "copy the file again from where the checksums are from"
        )
        assert problems[10] == "problem: and 30 more of this kind; --all shows them"
        assert done.out.endswith("\n40 problems\n") != bool(options)
        done = run("verify", folder, *options, "--all")
        assert (done.code, done.out.count("\nproblem: ") + bool(options)) == (3, 40)
    assert len(json.loads(run("verify", folder, "--json").out)["problems"]) == 40


def test_a_problem_has_one_remedy(run, tiny: Path, tmp_path: Path) -> None:
    """A reader's message may have its own; where it has none there is that of the artifact."""
    folder = tmp_path / "a-bf16"
    weightcast.convert(tiny, folder, no_tokenizer=True)
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"num_experts": ', '"num_experts": 1'))
    (tmp_path / "b-Q8_0.gguf").write_bytes(b"no GGUF")
    for path in (folder, tmp_path / "b-Q8_0.gguf"):
        done = run("verify", path)
        assert done.code == 3
        lines = [line for line in done.out.splitlines() if line.startswith("problem: ")]
        assert lines
        assert all(line.count("; ") <= 1 and "cannot be used" not in line for line in lines)
