"""Reports of conversions against plain float64 numpy, whoever does the work."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from numpy.typing import NDArray

import weightcast
from tests import directories, imatrices
from tests.converters.report import error_reports
from tests.grok1 import places
from tests.quant.test_error import compared
from tests.support import DATA, GOLDEN, Golden
from weightcast.converters.graph.read import load_float32
from weightcast.converters.graph.stored import stored_bytes
from weightcast.converters.plan import budget as memory
from weightcast.converters.recipes.weight_types import directory_type
from weightcast.converters.report import (
    METRICS,
    Limit,
    check_limits,
    parse_limit,
    read_report,
    tensor_role,
)
from weightcast.converters.report.limits import is_kept
from weightcast.converters.sources import open_graph
from weightcast.converters.sources.open import open_as_it_is
from weightcast.converters.targets.types import shapes_of
from weightcast.errors import CheckpointError, RequestError
from weightcast.quant.types import TYPES

WIDE = GOLDEN / "wide"
SCHEMA = json.loads((DATA.parents[1] / "docs" / "report.schema.json").read_text())
CLOSE = 1e-9
MAIN = [sys.executable, "-c", "from weightcast.cli import main; main()"]
WEIGHTS = r"blk.*(attn_[qkv]|attn_output|_exps)\.weight|token_embd"


def convert(source: Path, *outputs: Path, **options: Any) -> dict[str, Any]:
    """Convert and give the report, which follows the schema."""
    report = outputs[0].parent / "report.json"
    weightcast.convert(source, *outputs, no_tokenizer=True, report=report, **options)
    values = json.loads(report.read_text())
    jsonschema.validate(values, SCHEMA)
    return values


@pytest.fixture(scope="module")
def exact() -> dict[str, NDArray[np.float32]]:
    """Every tensor as [..., out, in], by its GGUF name."""
    stored = Golden("wide").exact()
    found = {}
    for place in places(2):
        value = stored[place.name]
        is_table = place.name.endswith("embeddings") or value.ndim == 1
        found[place.gguf] = value if is_table else np.swapaxes(value, -1, -2)
    return found


@pytest.fixture(scope="module")
def imatrix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shapes = dict(shapes_of(open_graph(WIDE)))
    entries = imatrices.model_entries(shapes)
    entries["blk.1.attn_output.weight"] = imatrices.sample(1, 256, 99)
    return imatrices.write_gguf(tmp_path_factory.mktemp("imatrix") / "wide.gguf", entries)


def check_metrics(
    found: dict[str, Any],
    x: NDArray[np.float32],
    y: NDArray[np.float32],
    importance: NDArray[np.float32] | None = None,
) -> None:
    """Hold metrics of [matrices, out, in] to those that numpy computes of all values at once."""
    rows = (math.prod(x.shape[:-1]), x.shape[-1])
    factors = None
    if importance is not None:
        factors = np.broadcast_to(importance[:, None, :], x.shape).reshape(rows).astype(np.float64)
    wanted = compared(x.reshape(rows), y.reshape(rows))
    x64, error = x.astype(np.float64).reshape(rows), (y.astype(np.float64) - x).reshape(rows)
    squares, signal = (error**2).sum(), (x64**2).sum()
    relative = math.sqrt(squares / signal)
    cosine = (x64 * y.reshape(rows)).sum() / math.sqrt(signal * wanted["output_squares"].sum())
    numbers = {
        "weights": x.size,
        "error_squares": squares,
        "source_squares": signal,
        "relative_rms": relative,
        "sqnr_db": -20 * math.log10(relative) if relative else None,
        "cosine": cosine,
        "largest_error": np.abs(error).max(),
        "share_exact": (error == 0).mean(),
        "share_zeroed": wanted["zeroed_runs"].sum() / (rows[0] * -(-rows[1] // 32)),
        "share_clipped": wanted["clipped_runs"].sum() / (rows[0] * -(-rows[1] // 32)),
    }
    for name, value in numbers.items():
        close = value if value is None else pytest.approx(value, rel=CLOSE, abs=0)
        assert found[name] == close, name
    # Errors of both signs cancel in the mean.
    limit = CLOSE * np.abs(error).mean()
    assert found["mean_error"] == pytest.approx(error.mean(), rel=CLOSE, abs=limit)
    assert found["histogram"] == wanted["histogram"].sum(axis=0).tolist()
    if found["largest_at"] is None:
        assert not squares
    else:
        place = np.unravel_index(np.abs(error).argmax(), x.shape)
        assert found["largest_at"] == [int(n) for n in place]
    if factors is not None:
        weighed = (factors * error**2).sum(), (factors * x64**2).sum()
        assert found["weighted"]["error_squares"] == pytest.approx(weighed[0], rel=CLOSE)
        assert found["weighted"]["source_squares"] == pytest.approx(weighed[1], rel=CLOSE)
        size = math.sqrt(weighed[0] / weighed[1])
        assert found["weighted"]["relative_rms"] == pytest.approx(size, rel=CLOSE)


def importance_of(imatrix: Path, name: str, planes: int) -> NDArray[np.float32] | None:
    from weightcast.formats.gguf.imatrix import read_imatrix

    entry = read_imatrix(imatrix).entries.get(name)
    return None if entry is None else entry.reshape(planes, -1)


@pytest.mark.parametrize("type_name", TYPES)
def test_every_type(type_name: str, tmp_path: Path, exact: Any, imatrix: Path) -> None:
    path = tmp_path / "m-F32.gguf"
    values = convert(WIDE, path, tensor_types=[f"{WEIGHTS}={type_name}"], imatrix=imatrix, jobs=2)
    stored = open_as_it_is(path)
    assert stored is not None
    (output,) = values["outputs"]
    assert [tensor["name"] for tensor in output["tensors"]] == list(stored)
    ignored = TYPES[type_name].importance == "ignored" or TYPES[type_name].block_elements == 1
    for found in output["tensors"]:
        x, tensor = exact[found["name"]], stored[found["name"]]
        assert found["type"] == tensor.dtype
        y = load_float32(tensor)
        importance = None
        if found["type"] == type_name and not ignored:
            importance = importance_of(imatrix, found["name"], len(x) if x.ndim == 3 else 1)
        check_matrices(found["metrics"], x, y, importance)
        for n, expert in enumerate(found["experts"]):
            factors = None if importance is None else importance[n : n + 1]
            check_matrices(expert, x[n], y[n], factors)
        check_worst(found, x, y)
    check_total(output, exact, stored)


def check_matrices(found: dict[str, Any], x: Any, y: Any, importance: Any = None) -> None:
    """Check metrics of one matrix or several, with a row of importance for each."""
    if x.ndim < 3:
        place = found["largest_at"]
        found = {**found, "largest_at": None if place is None else [0, *place]}
        x, y = np.atleast_2d(x)[None], np.atleast_2d(y)[None]
    check_metrics(found, x, y, importance)


def check_worst(found: dict[str, Any], x: Any, y: Any) -> None:
    planes = (x, y) if x.ndim == 3 else (np.atleast_2d(x)[None], np.atleast_2d(y)[None])
    error = planes[1].astype(np.float64) - planes[0]
    signal = (planes[0].astype(np.float64) ** 2).sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        sizes = np.nan_to_num(np.sqrt((error**2).sum(-1) / signal))
    worst = np.sort(sizes.reshape(-1))[::-1][:8]
    rows = found["worst_rows"]
    np.testing.assert_allclose([row["relative_rms"] for row in rows], worst[worst > 0], rtol=CLOSE)
    for row in rows:
        assert sizes[row["expert"] or 0, row["row"]] == pytest.approx(
            row["relative_rms"], rel=CLOSE
        )


def check_total(output: dict[str, Any], exact: Any, stored: Any) -> None:
    squares = signal = 0.0
    for found in output["tensors"]:
        squares += found["metrics"]["error_squares"]
        signal += found["metrics"]["source_squares"]
    assert output["total"]["error_squares"] == pytest.approx(squares, rel=CLOSE)
    assert output["total"]["source_squares"] == pytest.approx(signal, rel=CLOSE)
    assert output["total"]["weights"] == sum(x.size for x in exact.values())
    assert output["tensor_bytes"] == sum(map(stored_bytes, stored.values()))
    kinds = {kind["kind"]: kind for kind in output["kinds"]}
    of_kind = [t for t in output["tensors"] if t["kind"] == "attn_q"]
    assert [t["layer"] for t in of_kind] == [0, 1]
    assert kinds["attn_q"]["bytes"] == sum(t["bytes"] for t in of_kind)
    both = sum(t["metrics"]["error_squares"] for t in of_kind)
    assert kinds["attn_q"]["metrics"]["error_squares"] == pytest.approx(both, rel=CLOSE)


@pytest.mark.parametrize(
    "name", ["int8-g32", "int4-g32-asym-awq", "int4-g64-gptq", "mxfp4", "nvfp4", "fp8", "fp8-block"]
)
def test_directories(name: str, tmp_path: Path, exact: Any) -> None:
    path, kind = tmp_path / f"m-{name}", directory_type(name)
    assert kind is not None
    (output,) = convert(WIDE, path)["outputs"]
    tensors = directories.read_directory(path)
    found = {tensor["name"]: tensor for tensor in output["tensors"]}
    for module, (place, expert, values) in directories.matrices(Golden("wide")).items():
        weight_type = kind.experts if place.role.is_experts else kind.attention
        y = directories.unpacked(tensors, module, kind.layout, weight_type, values.shape)
        if expert is None:
            metrics = found[f"{module}.weight"]["metrics"]
        else:
            tensor = found[f"{place.hugging_face('*')}"]
            assert tensor["shape"] == [8, *values.shape]
            assert tensor["kind"] == place.role.name
            metrics = tensor["experts"][expert]
        check_matrices(metrics, values, y)
    embedding = exact["token_embd.weight"]
    stored = tensors["model.embed_tokens.weight"].astype(np.float32)
    check_matrices(found["model.embed_tokens.weight"]["metrics"], embedding, stored)
    assert found["lm_head.weight"]["kind"] == "output"
    parts = (tensor.nbytes for tensor in tensors.values())
    assert output["tensor_bytes"] == sum(parts)


def test_baseline_of_the_reference(tmp_path: Path) -> None:
    outputs = [tmp_path / "m-bf16", tmp_path / "m-BF16.gguf", tmp_path / "m-F32.gguf"]
    values = convert(WIDE, *outputs, baseline="bf16")
    assert values["baseline"] == "bf16"
    for output in values["outputs"][:2]:
        matrices = [t for t in output["tensors"] if len(t["shape"]) > 1 and t["type"] == "BF16"]
        assert len(matrices) > 10
        assert output["total"]["share_exact"] == 1  # norms and router are float32 in both
    assert values["outputs"][2]["total"]["error_squares"] > 0


def test_numbers_do_not_depend_on_who_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, imatrix: Path
) -> None:
    names = ["m-Q4_K_M.gguf", "m-int4-g32", "m-mxfp4", "m-fp8"]

    def made(folder: str, **options: Any) -> str:
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        weightcast.convert(
            WIDE, *names, no_tokenizer=True, imatrix=imatrix, report="report.json", **options
        )
        return Path("report.json").read_text()

    whole = made("whole", jobs=1)
    monkeypatch.setattr(memory, "SLAB_BYTES", 50_000)
    monkeypatch.setattr(memory, "TASK_BYTES", 5_000)
    assert made("cut", jobs=3) == whole


def test_reports_of_every_instruction_set_are_equal(tmp_path: Path) -> None:
    reports = {}
    for isa in ("scalar", "sse2", "avx2", ""):
        folder = tmp_path / (isa or "best")
        folder.mkdir()
        command = [*MAIN, "convert", str(WIDE), "m-Q4_K_M.gguf", "m-int4-g32", "--no-tokenizer"]
        command += ["--quiet", "--report", "report.json"]
        environment = {**os.environ, "WEIGHTCAST_ISA": isa}
        subprocess.run(command, check=True, cwd=folder, env=environment)
        reports[isa] = (folder / "report.json").read_text()
    assert len(set(reports.values())) == 1


def test_gguf_of_another_type_and_copied_tensors(tmp_path: Path) -> None:
    weightcast.convert(WIDE, tmp_path / "m-Q8_0.gguf", no_tokenizer=True)
    report = tmp_path / "report.json"
    outputs = [tmp_path / "n-Q8_0.gguf", tmp_path / "n-Q4_0.gguf"]
    weightcast.convert(tmp_path / "m-Q8_0.gguf", *outputs, allow_requantize=True, report=report)
    values = json.loads(report.read_text())
    jsonschema.validate(values, SCHEMA)
    assert values["outputs"][0]["total"]["share_exact"] == 1
    assert values["outputs"][0]["total"]["weights"] == values["outputs"][1]["total"]["weights"]
    assert values["outputs"][1]["total"]["relative_rms"] > 0.05


def test_copied_tensors_are_weighed_too(tmp_path: Path, imatrix: Path) -> None:
    """Else the signal of an output in total lacks them, and its errors seem larger."""
    first = convert(WIDE, tmp_path / "m-Q4_K_M.gguf", imatrix=imatrix)
    again = convert(tmp_path / "m-Q4_K_M.gguf", tmp_path / "n-Q4_K_M.gguf", imatrix=imatrix)
    for (output,) in (first["outputs"], again["outputs"]):
        weighed = [t for t in output["tensors"] if t["metrics"]["weighted"] is not None]
        assert weighed
        assert all(t["metrics"]["weighted"]["source_squares"] > 0 for t in weighed)
    before, after = (values["outputs"][0]["total"]["weighted"] for values in (first, again))
    assert after["error_squares"] == 0
    assert after["source_squares"] == pytest.approx(before["source_squares"], rel=0.02)


def test_report_and_outputs_keep_out_of_each_others_way(tmp_path: Path) -> None:
    output = tmp_path / "m-int4-g32"
    output.mkdir()
    for report in (output, output / "report.json", WIDE / "ckpt-0" / "tensor00000_000"):
        with pytest.raises(CheckpointError, match=r"is or lies in|is a directory"):
            weightcast.convert(WIDE, output, no_tokenizer=True, report=report)
    with pytest.raises(CheckpointError, match="no such directory"):
        weightcast.convert(WIDE, output, no_tokenizer=True, report=tmp_path / "no" / "report.json")
    with pytest.raises(RequestError, match="use stored or bf16"):
        weightcast.convert(WIDE, output, no_tokenizer=True, baseline="f32")
    assert not list(output.iterdir())


def test_limits() -> None:
    assert parse_limit("attn_q:SQNR_DB=30") == Limit("sqnr_db", 30.0, "attn_q")
    assert parse_limit(" weighted.relative_rms=1e-3 ").limit == 1e-3
    for text in ("", "relative_rms", "relative_rms=", "relative_rms=x", "=1", "sqnr_db=1.2.3"):
        with pytest.raises(RequestError, match=r"write it as \[KIND:\]METRIC=LIMIT"):
            parse_limit(text)
    with pytest.raises(RequestError, match="unknown metric; known: relative_rms, sqnr_db"):
        parse_limit("rms=0.1")
    for text, problem in (
        ("relative_rms=-1", "relative_rms is at least 0; no other limit"),
        ("attn_q:mean_error=-0.1", "mean_error is at least 0;"),
        ("total:weighted.relative_rms=-1e-9", r"weighted\.relative_rms is at least 0;"),
        ("share_exact=1.5", "share_exact is at least 0 and at most 1;"),
        ("cosine=-2", "cosine is at least -1 and at most 1;"),
        ("relative_rms=nan", "write it as"),
    ):
        with pytest.raises(RequestError, match=problem):
            parse_limit(text)
    assert parse_limit("sqnr_db=-3").limit == -3
    assert parse_limit("relative_rms=0").limit == 0


def test_limits_of_a_report(tmp_path: Path) -> None:
    outputs = [tmp_path / "m-Q8_0.gguf", tmp_path / "m-Q4_0.gguf"]
    convert(WIDE, *outputs)
    report = read_report(tmp_path / "report.json")

    def beyond(text: str) -> set[tuple[str, str]]:
        found = check_limits(report, [parse_limit(text)])
        return {(Path(violation.output).name, violation.name) for violation in found}

    assert not beyond("relative_rms=0.2")
    assert ("m-Q4_0.gguf", "blk.0.attn_q.weight") in beyond("relative_rms=0.05")
    assert {path for path, _ in beyond("relative_rms=0.05")} == {"m-Q4_0.gguf"}
    layers = {f"blk.{n}.attn_q.weight" for n in range(2)}
    assert beyond("attn_q:sqnr_db=30") == {("m-Q4_0.gguf", name) for name in layers}
    assert beyond("total:cosine=0.999") == {("m-Q4_0.gguf", "total")}
    assert beyond("total:bits_per_weight=8") == {("m-Q8_0.gguf", "total")}
    assert not beyond("mean_error=1e-3")
    assert beyond("attn_q:mean_error=1e-12")  # either sign
    with pytest.raises(RequestError, match=r"weighted\.sqnr_db: without an importance matrix"):
        beyond("weighted.sqnr_db=100")
    with pytest.raises(RequestError, match="there are token_embd, ffn_gate_exps"):
        beyond("attn:sqnr_db=30")
    for metric, known in METRICS.items():
        edge = -math.inf if known.more_is_better else math.inf
        assert is_kept(Limit(metric, edge), 0.5)


def test_errors_that_are_not_finite_keep_no_limit(tmp_path: Path) -> None:
    tensor = error_reports.tensor("a", "a", None, "Q4_K", (1, 256))
    output = error_reports.output("p", "Q4_K", [tensor])
    names = ("relative_rms", "sqnr_db", "error_squares", "cosine")
    tensor["metrics"].update(dict.fromkeys(names))
    path = tmp_path / "report.json"
    path.write_text(json.dumps(error_reports.report([output])))
    for text in ("relative_rms=1e30", "sqnr_db=-1e30", "cosine=-1"):
        assert len(check_limits(read_report(path), [parse_limit(text)])) == 1
    tensor["metrics"].update(error_squares=0.0, relative_rms=0.0)
    path.write_text(json.dumps(error_reports.report([output])))
    assert not check_limits(read_report(path), [parse_limit("sqnr_db=200")])


def test_limits_about_nothing_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    for limit, problem in (
        ("attn_w:sqnr_db=30", "no tensor is of this kind; there are token_embd, "),
        ("total:weighted.sqnr_db=30", "without an importance matrix nothing is weighed"),
    ):
        command = [*MAIN, "convert", str(WIDE), "m-Q4_0.gguf", "--no-tokenizer"]
        for options in ([], ["--dry-run"]):
            done = subprocess.run(
                [*command, *options, "--fail-over", limit],
                capture_output=True,
                text=True,
                cwd=tmp_path,
                check=False,
            )
            assert done.returncode == 2
            assert done.stderr.startswith(f"usage error: --fail-over {limit[:-3]}: {problem}")
            assert not list(tmp_path.iterdir())


def test_roles_of_tensors() -> None:
    assert tensor_role("blk.12.attn_q.weight") == "attn_q"
    assert tensor_role("blk.0.attn_q.bias") == "attn_q.bias"
    assert tensor_role("v.blk.3.attn_q.weight") == "v.attn_q"  # of a vision projector
    assert tensor_role("dec.blk.3.cross_attn_q.weight") == "dec.cross_attn_q"
    assert tensor_role("token_embd.weight") == "token_embd"


def test_limits_on_the_command_line(tmp_path: Path) -> None:
    command = [*MAIN, "convert", str(WIDE), "m-Q4_0.gguf", "--no-tokenizer"]

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *options], capture_output=True, text=True, cwd=tmp_path, check=False
        )

    gate = ["--fail-over", "attn_q:sqnr_db=30", "--fail-over", "relative_rms=0.5"]
    for options in ([], ["--gate", "after"]):
        done = run(*gate, *options)
        assert done.returncode == 3
        lines = done.stderr.splitlines()
        assert len([line for line in lines if line.startswith("beyond a limit: ")]) == 2
        assert "blk.0.attn_q.weight: sqnr_db is 20." in done.stderr
        assert (tmp_path / "m-Q4_0.gguf").exists() == bool(options)
    done = run("--fail-over", "relative_rms=0.5", "--report", "r.json")
    assert done.returncode == 0
    assert "errors against the stored values: relative RMS 0.0" in done.stdout
    jsonschema.validate(json.loads((tmp_path / "r.json").read_text()), SCHEMA)
    done = run("--fail-over", "rms=0.5")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage error: --fail-over rms=0.5: unknown metric")
