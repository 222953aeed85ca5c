"""verify: its lines, its JSON values, and its exit code."""

from __future__ import annotations

import json
from pathlib import Path

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
