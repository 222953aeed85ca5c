"""Uses of every public name, as a user's code has them; pyright checks this file."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import weightcast
from weightcast.converters.sources import ConvertOptions


def test_every_public_name_is_there() -> None:
    assert sorted(weightcast.__all__) == weightcast.__all__
    for name in weightcast.__all__:
        assert getattr(weightcast, name).__module__.startswith("weightcast.")
    assert set(weightcast.__all__) <= set(dir(weightcast))
    assert weightcast.__version__.count(".") == 2
    with pytest.raises(AttributeError, match="'weightcast' has no attribute 'nothing'"):
        _ = weightcast.nothing  # pyright: ignore[reportAttributeAccessIssue]


def test_a_checkpoint_has_names_and_hyperparameters(tiny: Path) -> None:
    checkpoint: weightcast.Checkpoint = weightcast.open(tiny)
    assert checkpoint.family == "grok-1"
    assert checkpoint.spec.num_layers == 2
    tensor: weightcast.Tensor = checkpoint["blk.0.attn_q.weight"]
    assert tensor.name == "blk.0.attn_q.weight"
    assert tensor.shape == (256, 256)
    assert sum(each.size for each in checkpoint.values()) == checkpoint.parameters
    rows: np.ndarray = tensor[10:20]
    assert rows.shape == (10, 256)
    with pytest.raises(KeyError):
        _ = checkpoint["blk.2.attn_q.weight"]


def test_every_source_has_the_same_names(tiny: Path, tmp_path: Path) -> None:
    outputs = tmp_path / "a-Q8_0.gguf", tmp_path / "a-bf16"
    weightcast.convert(tiny, *outputs, no_tokenizer=True)
    names = list(weightcast.open(tiny))
    for output in outputs:
        assert list(weightcast.open(output)) == names


def test_convert_report_verify_and_compare(tiny: Path, tmp_path: Path) -> None:
    output = tmp_path / "a-Q4_K_M.gguf"
    told: list[weightcast.Progress] = []
    summary: weightcast.Summary = weightcast.convert(
        tiny, output, no_tokenizer=True, baseline="stored", jobs=1, on_progress=told.append
    )
    assert summary.seconds > 0
    converted = [each for each in told if each.phase == "convert"]
    assert converted[-1].done_bytes == summary.plan.read_bytes
    assert summary.report is not None
    errors = summary.report["outputs"][0]["total"]
    verified: weightcast.Verification = weightcast.verify(output, tiny)
    assert verified.is_good
    assert repr(verified) == f"<Verification of {output}, against {tiny}: good>"
    compared: weightcast.Comparison = weightcast.compare(tiny, output)
    assert compared.problem is None
    assert compared.report["outputs"][0]["total"] == errors
    assert repr(compared).startswith(f"<Comparison of {output} with {tiny}")
    assert len(repr(compared)) < 250 + len(str(output))


def test_a_summary_tells_of_its_outputs(tiny: Path, tmp_path: Path) -> None:
    paths = [tmp_path / "a-Q4_K_M.gguf", tmp_path / "a-bf16"]
    conversion: weightcast.Conversion = weightcast.plan(tiny, paths, no_tokenizer=True, bundle=True)
    assert not any(path.exists() for path in paths)
    summary = weightcast.convert(tiny, paths, no_tokenizer=True, bundle=True, baseline="stored")
    each = zip(paths, conversion.outputs, summary.outputs, summary.plan.outputs, strict=True)
    for path, planned, output, laid_out in each:
        written: weightcast.OutputSummary = output
        assert written.path == path
        assert written.size == sum(file.stat().st_size for file in written.files)
        assert (planned.size, planned.files) == (written.size, written.files)
        assert written.errors is not None
        assert planned.errors is None
        assert written.bundle
        assert all(file.exists() for file in written.bundle)
        assert sum(written.types.values()) == len(laid_out.tensors)
        weights = sum(tensor.tensor.size for tensor in laid_out.tensors)
        assert written.bits_per_weight == 8 * written.tensor_bytes / weights
        assert str(written).startswith(f"{path}: {written.type}, ")
    assert summary.outputs[0].target == "gguf"
    assert summary.outputs[1].type == "BF16"
    assert summary.errors is not None
    assert summary.outputs[0].errors == summary.errors.outputs[0]
    assert "\n" not in repr(summary) + repr(conversion) + repr(summary.errors)
    assert len(repr(summary)) < 150
    folder = {file for file in paths[1].iterdir() if file not in summary.outputs[1].bundle}
    assert set(summary.outputs[1].files) == folder


class Where(os.PathLike[str]):
    """A path of another library."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __fspath__(self) -> str:
        return str(self._path)


def test_paths_come_one_by_one_in_lists_and_in_any_form(tiny: Path, tmp_path: Path) -> None:
    first, second, third = (tmp_path / f"{name}-Q8_0.gguf" for name in "abc")
    report = tmp_path / "r.json"
    summary = weightcast.convert(
        Where(tiny), str(first), [Where(second), third], no_tokenizer=True, report=Where(report)
    )
    assert [output.path for output in summary.outputs] == [first, second, third]
    assert report.exists()
    assert weightcast.verify(Where(second), Where(tiny)).is_good
    assert weightcast.compare(Where(tiny), Where(third)).problem is None
    assert len(weightcast.open(Where(third))) == len(weightcast.open(str(tiny)))
    generated = (path for path in [first])
    assert weightcast.plan(tiny, generated, no_tokenizer=True).outputs[0].path == first
    with pytest.raises(weightcast.RequestError, match="no output is named"):
        weightcast.convert(tiny, [])
    for wrong in (5, None, b"a-Q8_0.gguf"):
        with pytest.raises(weightcast.RequestError, match=r"^an output is a path, not "):
            weightcast.convert(tiny, wrong)  # pyright: ignore[reportArgumentType]


def test_plan_takes_what_convert_takes() -> None:
    convert, plan = inspect.signature(weightcast.convert), inspect.signature(weightcast.plan)
    of_run = {"on_progress"}
    expected = {n: p for n, p in convert.parameters.items() if n not in of_run}
    assert dict(plan.parameters) == expected
    options = {row.name: row.default for row in ConvertOptions.rows()}
    assert {n: p.default for n, p in expected.items() if n not in ("source", "outputs")} == options


def test_arrays_are_quantized_and_measured() -> None:
    rng = np.random.default_rng(5)
    weights = rng.standard_normal((4, 256), np.float32)
    blocks = weightcast.quantize(weights, "Q4_K", np.ones(256, np.float32))
    assert blocks.shape == (4, 144)
    values = weightcast.dequantize(blocks, "Q4_K")
    errors: weightcast.Errors = weightcast.measure(weights, blocks, "Q4_K").total()
    wanted = np.linalg.norm(values.astype(float) - weights) / np.linalg.norm(weights.astype(float))
    np.testing.assert_allclose(errors.relative_rms, wanted, rtol=1e-9)


def test_arrays_become_codes_with_scales_apart() -> None:
    weights = np.random.default_rng(5).standard_normal((4, 256), np.float32)
    groups: weightcast.Quantized = weightcast.quantize(weights, "int4-g128-asym")
    assert groups.codes.shape == (4, 256)
    assert groups.zero_points is not None
    assert weightcast.measure(weights, groups).total().relative_rms < 0.1


@pytest.mark.parametrize(
    "error",
    [
        weightcast.ChangedError,
        weightcast.DeviceError,
        weightcast.FormatError,
        weightcast.LayoutError,
        weightcast.MissingTensorError,
        weightcast.OutputError,
        weightcast.RequestError,
        weightcast.TakenError,
        weightcast.UnknownTensorError,
        weightcast.UnsafePickleError,
    ],
)
def test_every_error_is_a_checkpoint_error(error: type[Exception]) -> None:
    assert issubclass(error, weightcast.CheckpointError)


def test_the_example_shows_it_all() -> None:
    example = Path(__file__).parents[2] / "examples" / "convert_tiny.py"
    done = subprocess.run([sys.executable, example], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    said = done.stdout.splitlines()
    assert said[0] == "6,953,216 parameters, 2 layers"
    assert "ten rows: (10, 256), of dtype float32" in said
    sizes = [line for line in said if re.match(r"tiny-.*: [\d,]+ bytes, [\d.]+ bits, error", line)]
    assert len(sizes) == 3
