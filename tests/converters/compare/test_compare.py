"""Errors of one checkpoint against another, beside float64 numpy on values that others read."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from click.testing import CliRunner
from gguf import GGMLQuantizationType, quants
from numpy.typing import NDArray

import weightcast
from tests import gguf_files, imatrices
from tests.directories import Tensors, read_directory, unpacked
from tests.gguf_files import Part, floats, string, write
from tests.grok1 import places
from tests.support import GOLDEN, Golden
from weightcast.cli import commands
from weightcast.commands.text.compare import comparison_lines
from weightcast.converters.compare import compare, measure
from weightcast.converters.compare import rows as paired_rows
from weightcast.converters.compare.comparison import Comparison, open_both
from weightcast.converters.compare.measure import measure_pairs, rows_float32
from weightcast.converters.compare.pair import open_pair, pair_tensors
from weightcast.converters.families.grok1.synthetic import tiny_spec, write_checkpoint
from weightcast.converters.graph import matrices
from weightcast.converters.graph.read import load_float32
from weightcast.converters.output.overwrite import check_report_path
from weightcast.converters.plan import budget as memory
from weightcast.converters.recipes.weight_types import directory_type
from weightcast.converters.report import read_report, write_report
from weightcast.converters.sources import open_graph
from weightcast.converters.targets.types import shapes_of
from weightcast.errors import CheckpointError, FormatError, LayoutError, OutputError, RequestError
from weightcast.quant.metrics import Baseline

SCHEMA = json.loads((Path(__file__).parents[3] / "docs/report.schema.json").read_text())
CLOSE = 1e-9
WIDE = Golden("wide")
GGUF = ("Q8_0", "Q4_K_M", "BF16", "F32")
DIRECTORIES = ("bf16", "int8-g32", "int4-g32", "int4-g32-asym-gptq_v2", "mxfp4", "fp8", "fp8-block")
ALL = (*(f"a-{name}.gguf" for name in GGUF), *(f"a-{name}" for name in DIRECTORIES))
Values = dict[str, NDArray[np.float32]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A golden checkpoint in many forms."""
    folder = tmp_path_factory.mktemp("made")
    weightcast.convert(WIDE.path, *(folder / name for name in ALL), no_tokenizer=True)
    (folder / "split").mkdir()
    weightcast.convert(
        WIDE.path, folder / "split/a-Q8_0.gguf", folder / "split/a-bf16",
        no_tokenizer=True, split="1M",
    )  # fmt: skip
    assert len(list((folder / "split").glob("*.gguf"))) > 2
    return folder


def path_of(made: Path, name: str) -> Path:
    if name == "shards":
        return WIDE.path
    if name == "split/a-Q8_0.gguf":
        return sorted((made / "split").glob("*.gguf"))[0]
    return made / name


@cache  # of module fixtures' files, which nobody changes
def values_of(path: Path) -> Values:
    """All tensors as float32 [..., out, in] by their GGUF names, without this package's readers."""
    where = places(open_graph(WIDE.path).spec.num_layers)
    if path == WIDE.path:
        exact = WIDE.exact()
        stays = ("embeddings", "scale")
        return {
            p.gguf: exact[p.name] if p.name.endswith(stays) else np.swapaxes(exact[p.name], -1, -2)
            for p in where
        }
    if path.suffix == ".gguf":
        files = sorted(path.parent.glob("*.gguf")) if "-of-" in path.name else [path]
        parts = {k: v for file in files for k, v in gguf_files.read(file).tensors.items()}
        return {name: of_part(part) for name, part in parts.items()}
    tensors, kind = read_directory(path), directory_type(path.name.removeprefix("a-"))
    return {p.gguf: of_directory(tensors, kind, p) for p in where}


def of_part(part: Part) -> NDArray[np.float32]:
    raw = np.frombuffer(part.data, np.uint8).reshape(*part.shape[:-1], -1)
    return quants.dequantize(raw, GGMLQuantizationType(part.kind)).reshape(part.shape)


def of_directory(tensors: Tensors, kind: Any, place: Any) -> NDArray[np.float32]:
    def module(expert: int | None) -> NDArray[np.float32]:
        name = place.hugging_face(expert)
        if name in tensors and tensors[name].dtype.itemsize > 1:
            return tensors[name].astype(np.float32)
        weight_type = kind.experts if place.role.is_experts else kind.attention
        shape = matrices(open_graph(WIDE.path)[place.name])[0].shape
        return unpacked(tensors, name.removesuffix(".weight"), kind.layout, weight_type, shape)

    if not place.role.is_experts:
        return module(None)
    count = open_graph(WIDE.path)[place.name].shape[0]
    return np.stack([module(expert) for expert in range(count)])


def in_runs(values: NDArray[np.float64]) -> NDArray[np.float64]:
    rows = values.reshape(-1, values.shape[-1])
    return np.pad(rows, ((0, 0), (0, -rows.shape[1] % 32))).reshape(-1, 32)


def histogram(errors: NDArray[np.float64], weights: NDArray[np.float64]) -> list[int]:
    """Count runs by their ratio of squares, by the words of the schema."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = errors / weights
    bins = np.clip(1 - np.frexp(ratio)[1], 1, 30)
    bins = np.where(errors == 0, 31, np.where(errors >= weights, 0, bins))
    return np.bincount(bins, minlength=32).tolist()


def metrics_of(x: NDArray[np.float64], y: NDArray[np.float64]) -> dict[str, Any]:
    """All metrics of the schema, the slow way."""
    e = y - x
    squares, source = (e * e).sum(), (x * x).sum()
    runs, errors, outputs = (in_runs(v) for v in (x, e, y))
    largest_x, largest_y = abs(runs).max(-1), abs(outputs).max(-1)
    at = np.unravel_index(int(abs(e).argmax()), e.shape)
    return {
        "weights": x.size,
        "error_squares": squares,
        "source_squares": source,
        "relative_rms": math.sqrt(squares / source),
        "sqnr_db": -10 * math.log10(squares / source) if squares else None,
        "cosine": (x * y).sum() / math.sqrt(source * (y * y).sum()),
        "mean_error": e.mean(),
        "largest_error": abs(e).max(),
        "largest_at": [int(i) for i in ((0, *at) if e.ndim == 1 else at)] if squares else None,
        "share_exact": (e == 0).mean(),
        "share_zeroed": ((largest_y == 0) & (largest_x > 0)).mean(),
        "share_clipped": ((largest_y > 0) & (largest_y < 0.875 * largest_x)).mean(),
        "weighted": None,
        "histogram": histogram((errors**2).sum(-1), (runs**2).sum(-1)),
    }


def assert_close(found: dict[str, Any], expected: dict[str, Any], where: str) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, float):
            # Errors of both signs cancel in their mean.
            slack = CLOSE * expected["largest_error"] if name == "mean_error" else 0
            assert found[name] == pytest.approx(value, rel=CLOSE, abs=slack), (where, name)
        else:
            assert found[name] == value, (where, name)


def rounded(values: NDArray[np.float32]) -> NDArray[np.float32]:
    import ml_dtypes

    return values.astype(ml_dtypes.bfloat16).astype(np.float32)


def check(found: Comparison, a: Values, b: Values, baseline: str = "stored") -> None:
    jsonschema.Draft202012Validator(SCHEMA).validate(found.report)
    assert found.problem is None
    assert found.report["baseline"] == baseline
    output = found.report["outputs"][0]
    squares = weights = 0.0
    seen = set()
    for tensor, pair in zip(output["tensors"], found.pairing.pairs, strict=True):
        seen.add(pair.gguf)
        x, y = a[pair.gguf], b[pair.gguf]
        stays = "norm" in pair.gguf or "ffn_gate_inp" in pair.gguf  # nobody rounds these
        x = rounded(x) if baseline == "bf16" and not stays else x
        x, y = x.astype(np.float64), y.astype(np.float64)
        assert (tensor["name"], tensor["shape"]) == (pair.name, list(y.shape))
        assert_close(tensor["metrics"], metrics_of(x, y), pair.gguf)
        if x.ndim == 3:
            for expert, metrics in enumerate(tensor["experts"]):
                assert_close(metrics, metrics_of(x[expert], y[expert]), f"{pair.gguf} {expert}")
            assert len(tensor["experts"]) == len(x)
        else:
            assert tensor["experts"] == []
        check_rows(tensor["worst_rows"], x, y)
        squares, weights = squares + ((y - x) ** 2).sum(), weights + (x**2).sum()
    assert seen == a.keys()
    assert output["total"]["error_squares"] == pytest.approx(squares, rel=CLOSE)
    assert output["total"]["source_squares"] == pytest.approx(weights, rel=CLOSE)


def check_rows(rows: list[dict[str, Any]], x: NDArray[np.float64], y: NDArray[np.float64]) -> None:
    x, y = (v.reshape(-1, *v.shape[-2:]) if v.ndim > 1 else v.reshape(1, 1, -1) for v in (x, y))
    relative = np.sqrt(((y - x) ** 2).sum(-1) / (x**2).sum(-1))
    best = sorted(relative.ravel(), reverse=True)[:8]
    assert [row["relative_rms"] for row in rows] == pytest.approx([r for r in best if r], rel=CLOSE)
    for row in rows:
        place = (row["expert"] or 0, row["row"])
        assert relative[place] == pytest.approx(row["relative_rms"], rel=CLOSE)


@pytest.mark.parametrize("name", [*ALL, "split/a-Q8_0.gguf", "split/a-bf16"])
def test_metrics(name: str, made: Path) -> None:
    path = path_of(made, name)
    check(compare(WIDE.path, path, jobs=2), values_of(WIDE.path), values_of(path))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("a-Q4_K_M.gguf", "shards"),
        ("a-int4-g32", "shards"),
        ("a-int8-g32", "a-Q4_K_M.gguf"),
        ("a-Q4_K_M.gguf", "a-int8-g32"),
        ("a-mxfp4", "split/a-Q8_0.gguf"),
        ("a-BF16.gguf", "a-fp8-block"),
        ("a-fp8", "a-int4-g32-asym-gptq_v2"),
    ],
)
def test_both_orders(a: str, b: str, made: Path) -> None:
    first, second = path_of(made, a), path_of(made, b)
    check(compare(first, second, jobs=2), values_of(first), values_of(second))


@pytest.mark.parametrize("name", ["a-Q4_K_M.gguf", "a-bf16", "a-int4-g32"])
def test_baseline_bf16(name: str, made: Path) -> None:
    found = compare(WIDE.path, made / name, baseline="bf16", jobs=1)
    check(found, values_of(WIDE.path), values_of(made / name), "bf16")


@pytest.mark.parametrize("name", ["shards", *ALL])
def test_nothing_differs_from_itself(name: str, made: Path) -> None:
    found = compare(path_of(made, name), path_of(made, name))
    assert found.report["outputs"][0]["total"]["share_exact"] == 1
    lines = list(comparison_lines(found, all_tensors=False))
    count = len(found.pairing.pairs)
    assert lines[-1] == f"no error: every weight of {count} tensors is the same"


@pytest.mark.parametrize("name", ["a-Q4_K_M.gguf", "a-int4-g32", "a-fp8-block", "shards"])
def test_workers_and_slabs_change_no_bit(
    name: str, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def numbers(jobs: int) -> str:
        return json.dumps(compare(made / "a-int8-g32", path_of(made, name), jobs=jobs).describe())

    alone = numbers(1)
    assert numbers(3) == alone
    monkeypatch.setattr(paired_rows, "SLAB_BYTES", 40_000)
    monkeypatch.setattr(memory, "TASK_BYTES", 20_000)
    assert numbers(3) == alone


def test_in_python(made: Path) -> None:
    found = weightcast.compare(WIDE.path, made / "a-Q4_K_M.gguf", baseline="bf16", jobs=1)
    assert found.describe().items() >= found.report.items()
    assert found.report["baseline"] == "bf16"


def test_names_types_and_bytes(made: Path) -> None:
    found = compare(WIDE.path, made / "a-int4-g32", jobs=1).report["outputs"][0]
    by_name = {tensor["name"]: tensor for tensor in found["tensors"]}
    experts = by_name["model.layers.0.block_sparse_moe.experts.*.w1.weight"]
    assert (experts["kind"], experts["layer"], experts["type"]) == ("ffn_gate_exps", 0, "INT4-G32")
    tensors = read_directory(made / "a-int4-g32")
    parts = [t for n, t in tensors.items() if ".0.block_sparse_moe.experts" in n and ".w1." in n]
    assert experts["bytes"] == sum(part.nbytes for part in parts)
    assert (found["kind"], found["type"]) == ("safetensors", "int4-g32")
    weights = sum(f.stat().st_size for f in (made / "a-int4-g32").glob("*.safetensors"))
    assert found["bytes"] == weights
    backwards = compare(made / "a-int4-g32", WIDE.path, jobs=1).report["outputs"][0]
    assert backwards["kind"] == "shards"
    assert backwards["tensors"][1]["type"].startswith("I8 x BF16[")
    assert compare(WIDE.path, made / "a-Q4_K_M.gguf").report["outputs"][0]["type"] == "Q4_K_M"


def test_rows_as_float32(made: Path) -> None:
    values = values_of(WIDE.path)
    for name in ("shards", "a-F32.gguf"):
        graph = open_graph(path_of(made, name))
        for place in places(graph.spec.num_layers)[:14]:
            views = matrices(graph[place.name])
            expected = values[place.gguf].reshape(len(views), *views[0].shape)
            for view, matrix in zip(views, expected, strict=True):
                middle = view.shape[0] // 2
                np.testing.assert_array_equal(
                    rows_float32(view, 0, middle + 1), matrix[: middle + 1]
                )
                np.testing.assert_array_equal(
                    rows_float32(view, middle, view.shape[0]), matrix[middle:]
                )


# Samples.


@pytest.mark.parametrize("multiple", [1, 8, 128])
@pytest.mark.parametrize("sample", [1, 64, 65, 300, 10**9, 1e-9, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("n_out", [1, 63, 64, 1000, 32768])
def test_chosen_rows(n_out: int, sample: float, multiple: int) -> None:
    runs = paired_rows.chosen_rows(n_out, sample, multiple)
    rows = [row for run in runs for row in range(*run)]
    assert rows == sorted(set(rows))
    assert rows[0] >= 0
    assert rows[-1] < n_out
    wanted = min(n_out, sample if isinstance(sample, int) else math.ceil(sample * n_out))
    unit = max(64, multiple)
    # The last run is shorter than the others if it ends with the matrix.
    assert wanted - unit < len(rows) < wanted + 2 * unit
    assert all(row0 % multiple == 0 for row0, _ in runs)
    if len(runs) > 1:
        assert (rows[0], rows[-1]) == (0, n_out - 1)


@pytest.mark.parametrize("name", ["a-Q4_K_M.gguf", "a-int4-g32", "a-fp8-block"])
def test_sample(name: str, made: Path) -> None:
    """Sums are those of the chosen rows, places those in the matrix."""
    source, output = open_pair(WIDE.path, made / name)
    pairs = pair_tensors(source, output).pairs
    read: list[int] = []
    found = measure_pairs(pairs, Baseline.STORED, jobs=2, sample=70, on_progress=read.append)
    assert sum(read) == measure.bytes_to_read(pairs, 70) < measure.bytes_to_read(pairs)
    a, b = values_of(WIDE.path), values_of(made / name)
    cut = 0
    for pair, errors in found.items():
        views = list(zip(matrices(pair.source), matrices(pair.output), strict=True))
        x, y = (v[pair.gguf].reshape(len(views), *views[0][0].shape).astype(float) for v in (a, b))
        for (view, other), one, matrix, made_of in zip(views, errors, x, y, strict=True):
            runs = paired_rows.chosen_rows(view.shape[0], 70, paired_rows.row_multiple(view, other))
            rows = np.concatenate([np.arange(*run) for run in runs])
            cut += len(rows) < view.shape[0]
            error = made_of - matrix
            assert one.total.rows == len(rows)
            assert one.total.error_squares == pytest.approx((error[rows] ** 2).sum(), rel=CLOSE)
            place = (int(one.total.largest_row), int(one.total.largest_in))
            assert one.total.largest == pytest.approx(abs(error[rows]).max(), rel=CLOSE)
            assert abs(error[place]) == pytest.approx(one.total.largest, rel=CLOSE)
            for row, size in one.worst:
                assert row in rows
                relative = np.linalg.norm(error[row]) / np.linalg.norm(matrix[row])
                assert size == pytest.approx(relative, rel=CLOSE)
    assert cut


# Other models, and what does not fit together.


def normal(seed: int, *shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def llama() -> dict[str, Part]:
    return {
        "token_embd.weight": floats(normal(0, 96, 256)),
        "blk.0.attn_q.weight": floats(normal(1, 64, 256)),
        "blk.0.ffn_up_exps.weight": floats(normal(2, 3, 32, 256)),
        "blk.0.attn_norm.weight": floats(normal(3, 256)),
        "v.patch_embd.weight": floats(normal(4, 2, 3, 4, 32)),
        "ids.weight": Part(gguf_files.I32, (2, 32), bytes(range(256))),
        "double": Part(gguf_files.F64, (2, 16), normal(5, 2, 16).astype(np.float64).tobytes()),
    }


def model(path: Path, tensors: dict[str, Part], architecture: str = "llama") -> Path:
    return write(path, {"general.architecture": string(architecture)}, tensors)


def test_another_model(tmp_path: Path) -> None:
    a = model(tmp_path / "a.gguf", llama())
    weightcast.convert(a, tmp_path / "a-Q4_K_M.gguf", keep_order=True)
    found = compare(a, tmp_path / "a-Q4_K_M.gguf")
    jsonschema.Draft202012Validator(SCHEMA).validate(found.report)
    assert found.problem is None
    assert found.same == ("ids.weight", "double")
    made = gguf_files.read(tmp_path / "a-Q4_K_M.gguf").tensors
    output = found.report["outputs"][0]
    assert [tensor["name"] for tensor in output["tensors"]] == [n for n in llama()][:5]
    for tensor in output["tensors"]:
        x, y = (of_part(parts[tensor["name"]]).astype(float) for parts in (llama(), made))
        expected = metrics_of(x, y)
        assert_close(tensor["metrics"], expected, tensor["name"])
    assert any("no weights, the same bytes: ids.weight, double" in line for line in said(found))


def test_what_is_beyond_a_limit_is_named_beside_what_is_missing(tmp_path: Path) -> None:
    a, b = llama(), llama()
    del b["token_embd.weight"]
    paths = [str(model(tmp_path / "a.gguf", a)), str(model(tmp_path / "b.gguf", b))]
    command = ["compare", *paths, "--fail-over", "total:bits_per_weight=1"]
    done = CliRunner().invoke(commands, command)
    assert done.exit_code == 3
    assert "beyond a limit: " in done.output
    assert "problem: " in done.output


def said(found: Comparison, *, all_tensors: bool = False) -> list[str]:
    return list(comparison_lines(found, all_tensors=all_tensors))


def test_missing_extra_reshaped_and_unlike(tmp_path: Path) -> None:
    a, b = llama(), llama()
    del b["token_embd.weight"]
    b["blk.1.attn_q.weight"] = floats(normal(6, 4, 4))
    b["blk.0.attn_norm.weight"] = floats(normal(3, 128))
    b["ids.weight"] = Part(gguf_files.I32, (2, 32), bytes(256))
    b["double"] = floats(normal(5, 2, 16))
    found = compare(model(tmp_path / "a.gguf", a), model(tmp_path / "b.gguf", b))
    described = found.describe()
    assert described["only_in_a"] == ["token_embd.weight"]
    assert described["only_in_b"] == ["blk.1.attn_q.weight"]
    assert described["reshaped"] == [{"name": "blk.0.attn_norm.weight", "a": [256], "b": [128]}]
    assert described["not_compared"] == ["double"]
    assert described["different_bytes"] == ["ids.weight"]
    assert [t["name"] for t in described["outputs"][0]["tensors"]] == [
        "blk.0.attn_q.weight",
        "blk.0.ffn_up_exps.weight",
        "v.patch_embd.weight",
    ]
    assert found.problem == (
        f"{tmp_path}/b.gguf is not another form of {tmp_path}/a.gguf: 1 tensor only in "
        f"{tmp_path}/a.gguf, 1 tensor only in {tmp_path}/b.gguf, 1 tensor of another shape, 1 "
        "tensor in types that cannot be compared, 1 tensor of numbers that are no weights, with "
        "other bytes"
    )
    lines = said(found, all_tensors=True)
    assert f"ONLY IN {tmp_path}/a.gguf: token_embd.weight" in lines
    assert f"ONLY IN {tmp_path}/b.gguf: blk.1.attn_q.weight" in lines
    assert "OTHER SHAPES: blk.0.attn_norm.weight [256] became [128]" in lines
    assert "NOT COMPARED, stored in types that cannot be: double" in lines
    assert "no weights, OTHER BYTES: ids.weight" in lines


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    x = normal(0, 8, 64)
    y = x.copy()
    y[3, 5] = np.nan
    a = model(tmp_path / "a.gguf", {"w.weight": floats(x), "v.weight": floats(x)})
    b = model(tmp_path / "b.gguf", {"w.weight": floats(y), "v.weight": floats(x)})
    for first, second in ((a, b), (b, a)):
        found = compare(first, second)
        jsonschema.Draft202012Validator(SCHEMA).validate(found.report)
        bad, good = (tensor["metrics"] for tensor in found.report["outputs"][0]["tensors"])
        assert (bad["relative_rms"], bad["error_squares"]) == (None, None)
        assert (good["relative_rms"], good["share_exact"]) == (0, 1)
        assert any("not finite" in line for line in said(found))


def test_the_same_nan_is_no_error(tmp_path: Path) -> None:
    """Else a file with NaN would differ from itself; other values are measured as ever."""
    x = normal(0, 4, 64)
    x[1, 5], x[2, :3] = np.nan, np.inf
    a = model(tmp_path / "a.gguf", {"w.weight": floats(x)})
    found = compare(a, a, baseline="bf16").report["outputs"][0]["total"]
    stored = compare(a, a).report["outputs"][0]["total"]
    jsonschema.Draft202012Validator(SCHEMA).validate(compare(a, a).report)
    assert (stored["share_exact"], stored["error_squares"], stored["cosine"]) == (1, 0, 1)
    assert found["share_exact"] < 1
    assert found["relative_rms"] is not None
    y = x.copy()
    y[1, 6] += 1
    b = model(tmp_path / "b.gguf", {"w.weight": floats(y)})
    changed = compare(a, b).report["outputs"][0]["total"]
    assert changed["error_squares"] == pytest.approx((float(y[1, 6]) - float(x[1, 6])) ** 2)
    assert changed["largest_at"] is None  # of several tensors
    assert changed["share_exact"] == 1 - 1 / x.size
    y[2, 0] = -np.inf
    c = model(tmp_path / "c.gguf", {"w.weight": floats(y)})
    assert compare(a, c).report["outputs"][0]["total"]["relative_rms"] is None


def test_scales_that_are_not_finite(tmp_path: Path) -> None:
    """int8 codes with such scales go through numpy instead of the kernels."""
    source = tmp_path / "a-int8-g32"
    weightcast.convert(WIDE.path, source, no_tokenizer=True)
    file = next(source.glob("*.safetensors"))
    raw = bytearray(file.read_bytes())
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    start = 8 + int.from_bytes(raw[:8], "little")
    name = "model.layers.0.self_attn.q_proj.weight_scale"
    first = start + header[name]["data_offsets"][0]
    raw[first : first + 2] = b"\x80\x7f"  # infinity in bfloat16
    file.write_bytes(raw)
    tensors = compare(WIDE.path, source, jobs=1).report["outputs"][0]["tensors"]
    bad = [
        t["gguf"] if "gguf" in t else t["name"] for t in tensors if t["metrics"]["cosine"] is None
    ]
    assert bad == ["model.layers.0.self_attn.q_proj.weight"]


def without(path: Path, name: str, target: Path) -> Path:
    parts = gguf_files.read(path)
    return write(target, parts.metadata, {n: p for n, p in parts.tensors.items() if n != name})


def test_a_grok_that_lacks_a_tensor(made: Path, tmp_path: Path) -> None:
    """It is no Grok-1 any more, but the rest of it is compared all the same."""
    name = "blk.0.attn_q.weight"
    part = without(made / "a-Q8_0.gguf", name, tmp_path / "b.gguf")
    for path in (WIDE.path, made / "a-bf16", made / "a-Q8_0.gguf"):
        found = compare(path, part)
        assert [n.replace(".weight", "") for n in found.pairing.only_source] == [
            "model.layers.0.self_attn.q_proj" if path.name == "a-bf16" else "blk.0.attn_q"
        ]
        assert len(found.pairing.pairs) == len(gguf_files.read(part).tensors)
        assert found.pairing.only_output == ()
    assert compare(part, WIDE.path).pairing.only_output == (name,)


def test_old_names_of_grok(made: Path, tmp_path: Path) -> None:
    whole = gguf_files.read(made / "a-F32.gguf")
    renamed = {n.replace("post_ffw_norm", "layer_output_norm"): p for n, p in whole.tensors.items()}
    write(tmp_path / "old.gguf", whole.metadata, renamed)
    assert compare(WIDE.path, tmp_path / "old.gguf").problem is None
    del renamed["blk.0.attn_q.weight"]
    write(tmp_path / "part.gguf", whole.metadata, renamed)
    found = compare(tmp_path / "part.gguf", made / "a-F32.gguf")
    assert found.pairing.only_output == ("blk.0.attn_q.weight",)
    assert found.pairing.only_source == ()


def test_other_models_do_not_go_together(made: Path, tmp_path: Path) -> None:
    other = model(tmp_path / "a.gguf", llama())
    for pair in ((other, WIDE.path), (made / "a-bf16", other)):
        with pytest.raises(LayoutError, match=r"a\.gguf is a GGUF file of llama and .* a Grok-1"):
            compare(*pair)
    names = model(tmp_path / "b.gguf", {"x.weight": floats(normal(0, 2, 32))})
    with pytest.raises(LayoutError, match=r"b\.gguf has no tensor that could be compared"):
        compare(other, names)


def test_other_shapes_and_layers(tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match="has no tensor that could be compared"):
        compare(WIDE.path, GOLDEN / "deep", jobs=1)
    spec = tiny_spec()
    layers = int(spec["num_layers"])
    for name, count in (("a", layers), ("b", layers + 1)):
        write_checkpoint(tmp_path / name, {**spec, "num_layers": count}, seed=3)
    found = compare(tmp_path / "a", tmp_path / "b", jobs=1)
    assert found.problem is not None
    assert found.pairing.only_source == ()
    assert len(found.pairing.only_output) == 12
    assert all(name.startswith(f"blk.{layers}.") for name in found.pairing.only_output)


def test_bad_input(made: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nothing\.gguf: no such file or directory"):
        compare(made / "a-Q8_0.gguf", tmp_path / "nothing.gguf")
    with pytest.raises(CheckpointError, match="no such file or directory"):
        compare(tmp_path / "nothing", WIDE.path)
    short = tmp_path / "short.gguf"
    short.write_bytes((made / "a-Q8_0.gguf").read_bytes()[:-100])
    with pytest.raises(FormatError, match=r"short\.gguf"):
        compare(WIDE.path, short)
    with pytest.raises(RequestError, match="'fp16' is no baseline; use stored or bf16"):
        compare(WIDE.path, WIDE.path, baseline="fp16")
    with pytest.raises(RequestError, match="0 jobs; 1 to 512 are possible"):
        compare(WIDE.path, WIDE.path, jobs=0)


def test_a_file_that_shrinks(made: Path, tmp_path: Path) -> None:
    """What a worker or the reader runs into is told; nothing hangs."""
    path = tmp_path / "b.gguf"
    path.write_bytes((made / "a-Q8_0.gguf").read_bytes())
    source, output = open_pair(WIDE.path, path)
    pairs = pair_tensors(source, output).pairs
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(FormatError, match=r"b\.gguf at byte \d+: the file ends"):
        measure_pairs(pairs, Baseline.STORED, jobs=2)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"b\.gguf: cannot be read: No such file"):
        measure_pairs(pairs, Baseline.STORED, jobs=2)


# Reports.


def test_report(made: Path, tmp_path: Path) -> None:
    found = compare(WIDE.path, made / "a-Q4_K_M.gguf")
    write_report(tmp_path / "r.json", found.errors)
    jsonschema.Draft202012Validator(SCHEMA).validate(json.loads((tmp_path / "r.json").read_text()))
    report = read_report(tmp_path / "r.json")
    total = found.report["outputs"][0]["total"]
    assert report.outputs[0].total.sqnr_db == total["sqnr_db"]


def test_importance(made: Path, tmp_path: Path) -> None:
    """The numbers of `convert --report`, and those of plain numpy; what is not weighed is told."""
    entries = imatrices.model_entries(dict(shapes_of(open_graph(WIDE.path))))
    imatrix = imatrices.write_gguf(tmp_path / "i.gguf", entries)
    report = tmp_path / "r.json"
    weightcast.convert(
        WIDE.path, tmp_path / "b-Q4_K_M.gguf", no_tokenizer=True, imatrix=imatrix, report=report
    )
    found = compare(WIDE.path, tmp_path / "b-Q4_K_M.gguf", imatrix=imatrix, jobs=2)
    jsonschema.Draft202012Validator(SCHEMA).validate(found.report)
    (output,), (told,) = found.report["outputs"], json.loads(report.read_text())["outputs"]
    assert output["imatrix"] == str(imatrix)
    by_name = {t["name"]: t["metrics"]["weighted"] for t in told["tensors"]}
    weighed = {t["name"]: t["metrics"]["weighted"] for t in output["tensors"]}
    both = [name for name, values in by_name.items() if values is not None]
    assert len(both) >= 10
    assert {name: by_name[name] for name in both} == {name: weighed[name] for name in both}
    name = "blk.0.ffn_down_exps.weight"
    x, y = (values_of(p)[name] for p in (WIDE.path, tmp_path / "b-Q4_K_M.gguf"))
    sums, counts = entries[name]
    factors = np.where(counts[:, None] > 0, sums / np.maximum(counts[:, None], 1), 1)
    squares = (y.astype(np.float64) - x) ** 2 * factors[:, None, :].astype(np.float32)
    assert weighed[name]["error_squares"] == pytest.approx(squares.sum(), rel=CLOSE)
    assert found.describe()["not_weighed"] == ["blk.1.attn_output.weight"]
    lines = list(comparison_lines(found, all_tensors=True))
    assert any("weighed SQNR" in line for line in lines)
    assert any("no entry for 1 tensor, not weighed: blk.1.attn_output" in line for line in lines)
    row = next(line for line in lines if line.split()[:1] == [name])
    assert f"{weighed[name]['sqnr_db']:.2f} dB" in row
    wrong = imatrices.write_old(tmp_path / "x.dat", {"x": (1, np.ones(4, np.float32))})
    with pytest.raises(LayoutError, match="belongs to another model"):
        compare(WIDE.path, made / "a-bf16", imatrix=wrong)


@pytest.mark.parametrize(
    "name", ["a-Q8_0.gguf", "a-bf16/config.json", "a-bf16/r.json", "a-bf16", "none/r.json"]
)
def test_reports_go_over_nothing_that_is_read(name: str, made: Path) -> None:
    sides = open_both(made / "a-Q8_0.gguf", made / "a-bf16")
    with pytest.raises(OutputError):
        check_report_path(made / name, sides.places)
    check_report_path(made / "r.json", sides.places)


def test_a_link_to_what_is_read(made: Path, tmp_path: Path) -> None:
    (tmp_path / "r.json").hardlink_to(next((made / "a-bf16").glob("*.safetensors")))
    (tmp_path / "s.json").symlink_to(made / "a-Q8_0.gguf")
    sides = open_both(made / "a-Q8_0.gguf", made / "a-bf16")
    for name in ("r.json", "s.json"):
        with pytest.raises(OutputError, match="is or lies in what is read"):
            check_report_path(tmp_path / name, sides.places)


def test_loaded_values_are_those_of_other_packages(made: Path) -> None:
    graph, values = open_graph(made / "a-int8-g32"), values_of(made / "a-int8-g32")
    for place in places(graph.spec.num_layers):
        np.testing.assert_array_equal(load_float32(graph[place.name]), values[place.gguf])
