#!/usr/bin/env python3
"""Make docs/report.png: the error page of a checkpoint in Q4_K_M, as Chromium shows it.

    .venv/bin/python -m benchmarks.report_picture CHECKPOINT

The checkpoint is best a trained one: random weights have the same error everywhere. Names on the
page are made up here, whatever the folder is called.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import click

import weightcast

OUTPUT = "grok-Q4_K_M.gguf"
# Charts are drawn after the page is loaded; virtual time takes next to none.
DRAWN_MS = 20_000
PICTURE = Path(__file__).parents[1] / "docs" / "report.png"


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path, exists=True))
@click.option("--output", type=click.Path(path_type=Path), default=PICTURE, show_default=True)
@click.option("--width", default=1280, show_default=True)
@click.option("--height", default=1425, show_default=True)
def main(checkpoint: Path, output: Path, width: int, height: int) -> None:
    """Convert CHECKPOINT with a report and take a picture of the page."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        raise click.ClickException("no chromium: apt-get install chromium")
    checkpoint, output = checkpoint.resolve(), output.resolve()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # pages show paths as they were given
        Path("grok").symlink_to(checkpoint)
        weightcast.convert("grok", OUTPUT, no_tokenizer=True, report="page.html")
        command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += [f"--user-data-dir={folder}/profile", f"--virtual-time-budget={DRAWN_MS}"]
        command += [f"--window-size={width},{height}", f"--screenshot={folder}/page.png"]
        page = Path("page.html").resolve().as_uri()
        subprocess.run([*command, page], check=True, capture_output=True)
        shutil.copyfile("page.png", output)
        os.chdir(output.parent)
    click.echo(f"wrote {output} ({output.stat().st_size:,} bytes)")


if __name__ == "__main__":
    main()
