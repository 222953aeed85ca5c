"""The generator writes what the release is: sizes, bytes, realistic weights; sparse ones too."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import weightcast
from tests.support import DATA, GOLDEN, Golden
from weightcast.converters.convert import prepare
from weightcast.converters.families.grok1.forward import run
from weightcast.converters.families.grok1.spec import RELEASE
from weightcast.converters.families.grok1.synthetic import (
    sample_tokens,
    shard_layouts,
    tiny_spec,
    total_bytes,
    write_checkpoint,
)
from weightcast.converters.graph.read import load_float32
from weightcast.converters.sources import open_graph
from weightcast.converters.sources.options import ConvertOptions
from weightcast.formats.jax.writer import Payload, parts_bytes

# File sizes of the release and how many files have them.
RELEASE_SIZES = {
    3_221_225_637: 1,
    24_727: 257,
    196_770: 64,
    1_611_137_347: 128,
    1_611_399_491: 64,
    37_761_334: 64,
    37_847_359: 64,
    6_293_814: 128,
}
RELEASE_BYTES = 318_239_886_140


def test_file_sizes_of_the_release() -> None:
    assert Counter(parts_bytes(parts) for _, parts in shard_layouts(RELEASE)) == RELEASE_SIZES
    assert total_bytes(RELEASE) == RELEASE_BYTES


def test_pickle_bytes_are_those_of_numpy_1(golden: Golden) -> None:
    """The golden shards were written by numpy 1.26 and ml_dtypes."""
    spec = {**RELEASE, **json.loads((golden.path / "spec.json").read_text())}
    shards = sorted((golden.path / "ckpt-0").iterdir())
    layouts = list(shard_layouts(spec))
    assert len(layouts) == len(shards)
    for shard, (_, parts) in zip(shards, layouts, strict=True):
        raw = shard.read_bytes()
        position = 0
        for part in parts:
            if isinstance(part, Payload):
                position += part.nbytes
            else:
                assert raw[position : position + len(part)] == part, shard
                position += len(part)
        assert position == len(raw)


def test_a_seed_gives_the_same_files(tmp_path: Path) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        write_checkpoint(tmp_path / name, tiny_spec(), seed)
    for file in sorted((tmp_path / "a" / "ckpt-0").iterdir()):
        one = file.read_bytes()
        assert one == (tmp_path / "b" / "ckpt-0" / file.name).read_bytes()
        assert one != (tmp_path / "c" / "ckpt-0" / file.name).read_bytes()


def test_weights_have_the_spread_of_the_golden_ones(tmp_path: Path) -> None:
    spec = json.loads((GOLDEN / "wide" / "spec.json").read_text())
    write_checkpoint(tmp_path, {**RELEASE, **spec})
    ours, golden = open_graph(tmp_path), open_graph(GOLDEN / "wide")
    assert list(ours) == list(golden)
    for name in golden:
        found, expected = load_float32(ours[name]), load_float32(golden[name])
        assert found.std() == pytest.approx(expected.std(), rel=0.25), name


def test_a_tiny_model_makes_varied_predictions(tiny: Path) -> None:
    graph = open_graph(tiny)
    tokens = sample_tokens(np.random.default_rng(0), graph.spec.describe(), 4, 16)
    logits = run(graph, tokens).logits
    assert np.isfinite(logits).all()
    assert len(set(logits.argmax(axis=-1).ravel().tolist())) > 16
    assert logits.std() > 0.1


# (ru_maxrss would start from the peak of this process, which the child shares until exec.)
CHILD = """
import re, sys
from pathlib import Path
from click.testing import CliRunner
from weightcast.cli import commands
result = CliRunner().invoke(commands, sys.argv[1:], catch_exceptions=False)
print(result.output)
peak = re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())
print("exit", result.exit_code, "peak_kb", peak[1])
"""


def run_child(*arguments: str) -> tuple[str, int]:
    """Run a command in a process of its own; return its output and peak memory in MB."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *arguments], capture_output=True, text=True, check=True
    )
    *lines, last = done.stdout.strip().splitlines()
    _, code, _, peak = last.split()
    assert code == "0", done.stdout
    return "\n".join(lines), int(peak) // 1024


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The release in full size, with holes for weights."""
    folder = tmp_path_factory.mktemp("release")
    return write_checkpoint(folder, RELEASE, sparse=True)


def test_the_sparse_release_takes_a_few_megabytes(release: Path) -> None:
    files = list(release.iterdir())
    assert len(files) == 770
    assert sum(file.stat().st_size for file in files) == RELEASE_BYTES
    assert sum(file.stat().st_blocks for file in files) * 512 < 20e6


def test_inspecting_the_sparse_release_is_light(release: Path) -> None:
    output, peak_mb = run_child("inspect", str(release))
    assert "315,684,820,992 parameters" in output
    assert "770 tensors in 770 files" in output
    # The embedding table, and eight tensors a layer.
    assert "513 shards with parts that were never written, such as " in output
    assert peak_mb < 300


def test_dry_run_gives_exact_sizes_of_the_release(release: Path, tmp_path: Path) -> None:
    outputs = [str(tmp_path / n) for n in ("g-Q8_0.gguf", "g-BF16.gguf", "g-bf16")]
    output, peak_mb = run_child("convert", "--dry-run", "--no-tokenizer", str(release), *outputs)
    # llama.cpp's own figures for these types.
    assert "319,890.02 MiB" in output
    assert "602,130.02 MiB" in output
    assert "315,684,820,992 parameters" in output
    assert peak_mb < 300
    assert list(tmp_path.iterdir()) == []


def test_dry_run_of_a_split_release(release: Path, tmp_path: Path) -> None:
    plan = prepare(
        release, [tmp_path / "g-Q8_0.gguf"], ConvertOptions(no_tokenizer=True, split="48G")
    )
    (output,) = plan.outputs
    assert len(output.files) == 8
    assert f"{output.data_bytes / 2**20:.2f}" == "319890.02"
    by_file = Counter({n: 0 for n in range(8)})
    for tensor in output.tensors:
        by_file[tensor.file] += tensor.nbytes
    assert max(by_file.values()) <= 48_000_000_000


def test_planned_sizes_are_the_sizes_on_disk(tiny: Path, tmp_path: Path) -> None:
    outputs = [tmp_path / n for n in ("a-Q8_0.gguf", "a-F32.gguf", "a-bf16")]
    plan = prepare(tiny, outputs, ConvertOptions(no_tokenizer=True))
    weightcast.convert(tiny, *outputs, no_tokenizer=True)
    for path, output in zip(outputs, plan.outputs, strict=True):
        files = list(path.iterdir()) if path.is_dir() else [path]
        assert sum(file.stat().st_size for file in files) == output.size


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """1.2 GB of shards, whose largest matrix has 67 MB, in less than a quarter of that."""
    spec = tiny_spec(emb_size=2048, key_size=128, num_q_heads=16, widening_factor=24, num_layers=1)
    source = write_checkpoint(tmp_path, spec, sparse=True)
    assert sum(file.stat().st_size for file in source.iterdir()) > 1.2e9
    target = str(tmp_path / "m-Q8_0.gguf")
    _, peak_mb = run_child(
        "convert", "--no-tokenizer", "--allow-holes", "--jobs", "2", str(source), target
    )
    assert peak_mb < 300


def test_dry_run_prints_llama_quantize_sizes(release: Path, tmp_path: Path) -> None:
    """MiB and bits per weight of every recipe that the table lists, of the release in full size."""
    table = json.loads((DATA / "llama_quantize" / "grok1.json").read_text())
    outputs = [str(tmp_path / f"g-{name}.gguf") for name in table]
    printed, _ = run_child("convert", "--dry-run", "--no-tokenizer", str(release), *outputs)
    lines = printed.splitlines()
    for name, output in zip(table, outputs, strict=True):
        (number,) = [n for n, line in enumerate(lines) if line.startswith(f"{output}: ")]
        mib, bits = table[name]["_size"]
        assert f" = {float(mib):,} MiB, {bits} bits per weight; " in lines[number + 1], name
    assert "182,904.02 MiB, 4.86 bits per weight" in printed
    assert "needs an importance matrix; give one with --imatrix FILE: without, " in printed
