"""Uses of every public name, as a user's code has them; pyright checks this file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import weightcast


def test_every_public_name_is_there() -> None:
    assert sorted(weightcast.__all__) == weightcast.__all__
    for name in weightcast.__all__:
        assert getattr(weightcast, name).__module__.startswith("weightcast.")
    assert set(weightcast.__all__) <= set(dir(weightcast))
    assert weightcast.__version__.count(".") == 2
    with pytest.raises(AttributeError, match="'weightcast' has no attribute 'nothing'"):
        _ = weightcast.nothing  # pyright: ignore[reportAttributeAccessIssue]


def test_a_graph_has_names_and_hyperparameters(tiny: Path) -> None:
    graph = weightcast.open(tiny)
    assert graph.family.name == "grok-1"
    assert graph.spec.num_layers == 2
    tensor = graph["blk.0.attn_q.weight"]
    assert tensor is graph["transformer/decoder_layer_0/multi_head_attention/query/w"]
    assert tensor.name == "blk.0.attn_q.weight"
    assert tensor.shape == (256, 256)
    assert sum(each.size for each in graph.values()) == graph.parameters
    with pytest.raises(KeyError):
        _ = graph["blk.2.attn_q.weight"]


def test_every_source_has_the_same_names(tiny: Path, tmp_path: Path) -> None:
    outputs = tmp_path / "a-Q8_0.gguf", tmp_path / "a-bf16"
    weightcast.convert(tiny, *outputs, no_tokenizer=True)
    names = list(weightcast.open(tiny))
    for output in outputs:
        assert list(weightcast.open(output)) == names


def test_convert_report_verify_and_compare(tiny: Path, tmp_path: Path) -> None:
    output = tmp_path / "a-Q4_K_M.gguf"
    told: list[weightcast.Progress] = []
    summary = weightcast.convert(
        tiny, output, no_tokenizer=True, baseline="stored", jobs=1, on_progress=told.append
    )
    assert summary.seconds > 0
    converted = [each for each in told if each.phase == "convert"]
    assert converted[-1].done_bytes == summary.plan.read_bytes
    assert summary.report is not None
    errors = summary.report["outputs"][0]["total"]
    verified = weightcast.verify(output, tiny)
    assert verified.is_good
    compared = weightcast.compare(tiny, output)
    assert compared.problem is None
    assert compared.report["outputs"][0]["total"] == errors


def test_arrays_are_quantized_and_measured() -> None:
    rng = np.random.default_rng(5)
    weights = rng.standard_normal((4, 256), np.float32)
    blocks = weightcast.quantize(weights, "Q4_K", np.ones(256, np.float32))
    assert blocks.shape == (4, 144)
    values = weightcast.dequantize(blocks, "Q4_K")
    errors: weightcast.Errors = weightcast.measure(weights, blocks, "Q4_K").total()
    wanted = np.linalg.norm(values.astype(float) - weights) / np.linalg.norm(weights.astype(float))
    np.testing.assert_allclose(errors.relative_rms, wanted, rtol=1e-9)


@pytest.mark.parametrize(
    "error",
    [
        weightcast.DeviceError,
        weightcast.FormatError,
        weightcast.LayoutError,
        weightcast.MissingTensorError,
        weightcast.OutputError,
        weightcast.RequestError,
        weightcast.UnsafePickleError,
    ],
)
def test_every_error_is_a_checkpoint_error(error: type[Exception]) -> None:
    assert issubclass(error, weightcast.CheckpointError)
