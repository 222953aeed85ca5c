#!/usr/bin/env python3
"""Compare recipes of one size by llama.cpp: of sensitivities, a plain rule, llama-quantize.

For each of llama-quantize's mixes the model is converted by the mix, by what `--target-size` of the
mix's own size chooses from measured sensitivities, and by its plain rule without these; all with
the same importance matrix, from a text that is not the one they are judged by. Mean KL divergence
from the F32 file, by llama.cpp's own logits, with paired differences.

    .venv/bin/python -m benchmarks.size_recipes --folder build/least-error --models grok,smollm2
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import click
import numpy as np

import weightcast
from benchmarks import least_error_models as models
from benchmarks.divergence import F64, mean_of
from benchmarks.kernels import machine
from benchmarks.least_error import subject
from benchmarks.least_error_models import LanguageModel

MIXES = ("IQ2_M", "Q2_K", "IQ3_S", "Q3_K_M", "IQ4_XS", "Q4_K_S", "Q4_K_M")
# Windows of the calibration text that sensitivities are measured over.
WINDOWS = 4


@dataclass(frozen=True, slots=True)
class Judged:
    """A file of a recipe: its size, and the divergence [tokens] of its predictions."""

    nbytes: int
    bits_per_weight: float
    divergence: F64


def prepare(model: LanguageModel) -> tuple[Path, Path]:
    """Make importance and sensitivities of a model, or find them in its folder."""
    imatrix, sensitivities = (model.folder / f"sizes.{end}" for end in ("gguf", "json"))
    tokens = model.folder / "calibration.npy"
    if not sensitivities.exists():
        np.save(tokens, model.calibration_tokens)
        context = model.tokens.shape[1]
        weightcast.imatrix(model.base, tokens, imatrix, context=context)
        weightcast.sensitivity(
            model.base, tokens, sensitivities, imatrix=imatrix, context=context, chunks=WINDOWS
        )
    return imatrix, sensitivities


def judge(model: LanguageModel, path: Path) -> Judged:
    """Let llama.cpp run a file. It is deleted."""
    checkpoint = weightcast.open(path)
    bits = 8 * checkpoint.nbytes / checkpoint.parameters
    found = Judged(path.stat().st_size, bits, model.measure_file(path)["divergence"])
    path.unlink()
    return found


def compare(model: LanguageModel, mix: str) -> dict[str, Judged]:
    """Make and judge three files of the size of a mix."""
    imatrix, sensitivities = prepare(model)
    path = model.folder / "sizes-candidate.gguf"
    weightcast.convert(model.base, path, types=mix, imatrix=imatrix)
    found = {"mix": judge(model, path)}
    size = f"{found['mix'].nbytes}B"
    ways: dict[str, dict[str, Any]] = {"chosen": {"sensitivity": sensitivities}, "plain": {}}
    for name, options in ways.items():
        weightcast.convert(model.base, path, target_size=size, imatrix=imatrix, **options)
        found[name] = judge(model, path)
    return found


def line(model: str, mix: str, found: dict[str, Judged]) -> dict[str, Any]:
    """Give a line of the results: means with errors, and differences to the mix."""
    base = found["mix"].divergence
    return {
        "model": model,
        "mix": mix,
        **{
            f"{name}_recipe": {
                "bytes": each.nbytes,
                "bits_per_weight": each.bits_per_weight,
                "kld": asdict(mean_of(each.divergence)),
                "ratio": float(each.divergence.mean() / base.mean()),
                "difference": asdict(mean_of(each.divergence - base)),
                "z": mean_of(each.divergence - base).z,
            }
            for name, each in found.items()
        },
    }


def markdown(report: dict[str, Any]) -> str:
    """Lay the results out as a table."""
    lines = [
        f"# Recipes of one size, {report['date']}",
        "",
        "Mean KL divergence from the F32 file by llama.cpp's own logits, of llama-quantize's mix,",
        "of types chosen by sensitivities for at most the size of its file, and of the plain rule;",
        "in brackets the ratio to the mix, and the mean paired difference in standard errors (z).",
        "All with one importance matrix from another text. Sensitivities: "
        f"{WINDOWS} windows of {models.WINDOW} tokens.",
        "",
        "| model | mix | bits per weight | mix | chosen | plain |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for each in report["lines"]:
        mix = each["mix_recipe"]
        cells = [
            f"{way['kld']['value']:.5f} ({way['ratio']:.2f}, z {way['z']:+.1f})"
            for way in (each["chosen_recipe"], each["plain_recipe"])
        ]
        lines.append(
            f"| {each['model']} | {each['mix']} | {mix['bits_per_weight']:.2f} | "
            f"{mix['kld']['value']:.5f} ± {mix['kld']['error']:.5f} | {' | '.join(cells)} |"
        )
    return "\n".join(lines) + "\n"


@click.command(help=__doc__)
@click.option("--folder", type=click.Path(path_type=Path), required=True, help="What is kept.")
@click.option("--models", "names", default="grok,smollm2,gemma", show_default=True)
@click.option("--mixes", default=",".join(MIXES), show_default=True)
@click.option("--grok", type=click.Path(path_type=Path), default=models.EXAMPLE, help="Shards.")
@click.option("--output", type=click.Path(path_type=Path), help="Write JSON, and a table beside.")
def main(folder: Path, names: str, mixes: str, grok: Path, output: Path | None) -> None:
    lines = []
    for name in names.split(","):
        model = subject(name, folder, grok)
        assert isinstance(model, LanguageModel)
        for mix in mixes.split(","):
            try:
                found = line(name, mix, compare(model, mix))
            except weightcast.CheckpointError as problem:
                click.echo(f"{name} {mix}: {problem}", err=True)
                continue
            lines.append(found)
            click.echo(json.dumps(found))
    if output:
        report = {"date": date.today().isoformat(), "machine": machine(), "lines": lines}
        output.write_text(json.dumps(report, indent=1) + "\n")
        output.with_suffix(".md").write_text(markdown(report))


if __name__ == "__main__":
    main()
