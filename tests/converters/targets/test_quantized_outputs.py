"""Conversions by recipe: bytes of llama-quantize, importance per expert, metadata, refusals."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

import weightcast
from tests import gguf_files, imatrices
from tests.support import DATA, GOLDEN, NAMES
from weightcast.converters.convert import Summary, prepare, run
from weightcast.converters.families.grok1.synthetic import tiny_spec, write_checkpoint
from weightcast.converters.recipes.recipe import RECIPES
from weightcast.converters.sources import open_graph
from weightcast.converters.sources.options import ConvertOptions
from weightcast.converters.targets.types import shapes_of
from weightcast.errors import CheckpointError, LayoutError, RequestError
from weightcast.quant import backend
from weightcast.quant.cpu.library import BlockCounts, Matrix
from weightcast.quant.search import GGML, Search
from weightcast.quant.types import QuantType

DIGESTS = json.loads((DATA / "llama_quantize" / "digests.json").read_text())
CASES = [(name, run) for name, runs in DIGESTS.items() for run in runs]
WIDE = GOLDEN / "wide"


def convert(source: Path, *outputs: Path, **options: Any) -> Summary:
    return weightcast.convert(source, *outputs, no_tokenizer=True, **options)


def shapes(source: Path) -> dict[str, tuple[int, ...]]:
    graph = open_graph(source)
    names = shapes_of(graph)
    return dict(names)


def types(path: Path) -> dict[str, str]:
    return {t.name: t.tensor_type.name for t in gguf.GGUFReader(path).tensors}


def digests(path: Path) -> dict[str, str]:
    """The digests of make_digests.py."""
    return {
        tensor.name: f"{tensor.tensor_type.name} "
        + hashlib.sha256(tensor.data.tobytes()).hexdigest()[:16]
        for tensor in gguf.GGUFReader(path).tensors
        if tensor.tensor_type.name != "F32"
    }


@pytest.fixture(scope="module")
def wide_imatrix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One entry is missing, an expert of each layer has no data."""
    folder = tmp_path_factory.mktemp("imatrix")
    return imatrices.write_gguf(folder / "wide.gguf", imatrices.model_entries(shapes(WIDE)))


@pytest.fixture(scope="module")
def float_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The golden models as F32 files, which is what llama-quantize was given."""
    folder = tmp_path_factory.mktemp("floats")
    for name in NAMES:
        convert(GOLDEN / name, folder / f"{name}-F32.gguf")
    return {name: folder / f"{name}-F32.gguf" for name in NAMES}


@pytest.mark.parametrize(
    ("name", "run"),
    CASES,
    ids=[f"{n}-{r['recipe']}{'-imatrix' if r['imatrix'] else ''}" for n, r in CASES],
)
def test_bytes_of_llama_quantize(
    name: str, run: dict[str, Any], tmp_path: Path, float_files: dict[str, Path]
) -> None:
    """The same types and bytes for every tensor, or a refusal where llama-quantize refuses."""
    source, target = float_files[name], tmp_path / "m.gguf"
    options: dict[str, Any] = {"types": run["recipe"]}
    if run["imatrix"]:
        entries = imatrices.model_entries(shapes(source))
        options["imatrix"] = imatrices.write_gguf(tmp_path / "i.gguf", entries)
    if run.get("refused"):
        with pytest.raises(LayoutError, match="needs an importance matrix"):
            convert(source, target, **options)
        assert not target.exists()
        return
    convert(source, target, **options)
    assert digests(target) == run["tensors"]


@pytest.mark.parametrize("imatrix", [False, True])
def test_bytes_from_int8(tmp_path: Path, wide_imatrix: Path, imatrix: bool) -> None:
    """int8 codes give the same bytes as their floats; Q8_0 blocks are the codes themselves."""
    (run,) = [r for r in DIGESTS["wide"] if (r["recipe"], r["imatrix"]) == ("Q4_K_M", imatrix)]
    target = tmp_path / "m-Q4_K_M.gguf"
    convert(WIDE, target, imatrix=wide_imatrix if imatrix else None)
    found = digests(target)
    q8_0 = {name for name, digest in found.items() if digest.startswith("Q8_0")}
    assert q8_0 == {f"blk.{layer}.attn_{kind}.weight" for layer in range(2) for kind in "kv"}
    for name in found.keys() - q8_0:
        assert found[name] == run["tensors"][name], name


class Spy:
    """Stands in for the kernels and remembers the importance that comes with every matrix."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[tuple[QuantType, int, NDArray[np.float32] | None]] = []
        monkeypatch.setattr(backend, "quantize_matrix", self)

    def __call__(
        self,
        matrix: Matrix,
        quant_type: QuantType,
        dst: NDArray[np.uint8],
        importance: NDArray[np.float32] | None = None,
        search: Search = GGML,
    ) -> BlockCounts:
        assert search == GGML
        self.seen.append((quant_type, matrix.n_in, importance))
        dst[:] = 0
        return BlockCounts()


def test_importance_arrives_per_expert(
    tmp_path: Path, wide_imatrix: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spy = Spy(monkeypatch)
    convert(WIDE, tmp_path / "m-Q4_K_S.gguf", imatrix=wide_imatrix)
    sums, counts = imatrices.model_entries(shapes(WIDE))["blk.0.ffn_down_exps.weight"]
    seen = [importance for _, n_in, importance in spy.seen if n_in == sums.shape[1]]
    for expert, (row, count) in enumerate(zip(sums, counts, strict=True)):
        expected = row / count if count else np.ones_like(row)
        found = [row for row in seen if row is not None and np.array_equal(row, expected)]
        assert found, expert
    # Norms and the router have none, nor has the one that lacks an entry.
    assert all(importance is None for kind, _, importance in spy.seen if kind.name == "F32")
    assert any(importance is None for kind, _, importance in spy.seen if kind.name == "Q5_K")


def test_notes_and_metadata_of_importance(
    tmp_path: Path, wide_imatrix: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Spy(monkeypatch)
    path = tmp_path / "m-Q4_K_M.gguf"
    summary = convert(WIDE, path, tmp_path / "m-F16.gguf", imatrix=wide_imatrix)
    described = summary.describe()["outputs"]
    assert described[0]["importance"] == {
        "file": str(wide_imatrix),
        "entries": 14,
        "missing": ["blk.1.attn_output.weight"],
        "unused_experts": {
            f"blk.{layer}.ffn_{kind}_exps.weight": [3]
            for layer in range(2)
            for kind in ("gate", "down", "up")
        },
        "all_zeros": {},
    }
    notes = "\n".join(described[0]["notes"])
    assert "no entry for 1 quantized tensor, made without: blk.1.attn_output.weight" in notes
    assert "no data for 6 experts in 6 tensors" in notes
    values = {key: f.contents() for key, f in gguf.GGUFReader(path).fields.items()}
    assert values["general.file_type"] == gguf.LlamaFileType.MOSTLY_Q4_K_M
    assert values["general.quantization_version"] == 2
    assert values["quantize.imatrix.file"] == str(wide_imatrix)[:127]
    assert values["quantize.imatrix.dataset"] == "calibration.txt"
    assert values["quantize.imatrix.entries_count"] == 14
    assert values["quantize.imatrix.chunks_count"] == 12
    # Plain floats are not weighed, but llama-quantize says all the same what it was given.
    assert described[1]["importance"] is None
    floats = gguf.GGUFReader(tmp_path / "m-F16.gguf").fields
    assert floats["quantize.imatrix.file"].contents() == values["quantize.imatrix.file"]


def test_importance_that_is_all_zeros_is_told(tmp_path: Path) -> None:
    """It wipes what it weighs, as in ggml; what ignores it or is copied is not named."""
    entries = imatrices.model_entries(shapes(WIDE))
    entries["blk.0.attn_q.weight"][0][:] = 0
    entries["blk.1.ffn_up_exps.weight"][0][5] = 0
    imatrix = imatrices.write_gguf(tmp_path / "i.gguf", entries)
    outputs = [tmp_path / f"m-{name}" for name in ("Q4_K_S.gguf", "Q8_0.gguf", "int4-g32")]
    plan = prepare(WIDE, outputs, ConvertOptions(no_tokenizer=True, imatrix=imatrix))
    said = "0 in 2 tensors, whose weights are lost by that, as in llama-quantize; "
    (note,) = [note for note in plan.outputs[0].notes if said in note]
    assert note.endswith(": blk.0.attn_q.weight, blk.1.ffn_up_exps.weight [5]")
    assert plan.outputs[0].describe()["importance"]["all_zeros"] == {
        "blk.0.attn_q.weight": [0],
        "blk.1.ffn_up_exps.weight": [5],
    }
    for output in plan.outputs[1:]:  # the search of int4 does not mind
        assert not any("every column" in note for note in output.notes)
    run(plan)
    made = gguf.GGUFReader(outputs[0])
    (lost,) = [t for t in made.tensors if t.name == "blk.0.attn_q.weight"]
    assert not gguf.quants.dequantize(lost.data, lost.tensor_type).any()


def test_the_least_error_search_makes_up_for_importance_of_zeros(tmp_path: Path) -> None:
    """Columns that all count nothing count the same, about as without importance."""
    entries = imatrices.model_entries(shapes(WIDE))
    del entries["blk.0.attn_q.weight"]
    without = imatrices.write_gguf(tmp_path / "without.gguf", entries)
    entries["blk.0.attn_q.weight"] = imatrices.model_entries(shapes(WIDE))["blk.0.attn_q.weight"]
    entries["blk.0.attn_q.weight"][0][:] = 0
    zeros = imatrices.write_gguf(tmp_path / "zeros.gguf", entries)
    made = []
    for imatrix in (without, zeros):
        options = ConvertOptions(no_tokenizer=True, imatrix=imatrix, search="least-error")
        path = tmp_path / f"{imatrix.stem}-Q4_K_S.gguf"
        plan = prepare(WIDE, [path], options)
        assert not any("every column" in note for note in plan.outputs[0].notes)
        run(plan)
        reader = gguf.GGUFReader(path)
        (tensor,) = [t for t in reader.tensors if t.name == "blk.0.attn_q.weight"]
        made.append(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
    without_any, with_zeros = made
    assert np.abs(without_any).max() > 0
    assert np.abs(with_zeros - without_any).mean() < 0.1 * np.abs(without_any).mean()


def test_importance_out_of_range_is_told_and_brought_back(tmp_path: Path) -> None:
    """A floor gives what importance in range gives, to the byte, and is noted no more."""
    usual = imatrices.model_entries(shapes(WIDE))
    for sums, _ in usual.values():
        sums += 1  # no column is below the floor
    entries = {name: (sums.copy(), counts) for name, (sums, counts) in usual.items()}
    faint, huge, lost = (
        "blk.0.ffn_up_exps.weight",
        "blk.0.attn_output.weight",
        "blk.0.attn_q.weight",
    )
    entries[faint][0][5] *= np.float32(2.0**-83)  # 1e-25
    entries[huge][0][:] *= np.float32(2.0**83)
    entries[lost][0][:] = 0
    entries[faint][0][6, 1] = 1e-30  # one column, which is no matter
    imatrix = imatrices.write_gguf(tmp_path / "i.gguf", entries)
    given = {"no_tokenizer": True, "imatrix": imatrix}
    plan = prepare(WIDE, [tmp_path / "m-Q4_K_S.gguf"], ConvertOptions(**given))
    notes = "\n".join(plan.outputs[0].notes)
    assert re.search(
        rf"nearly nothing in 1 tensor, .*importance_floor=1e-06 .*: {faint} \[5\]", notes
    )
    assert re.search(rf"too large in 1 tensor .*: {huge}", notes)
    described = plan.outputs[0].describe()["importance"]
    assert (described["too_small"], described["too_large"]) == ({faint: [5]}, {huge: [0]})
    raised = convert(WIDE, tmp_path / "r-Q4_K_S.gguf", imatrix=imatrix, importance_floor=1e-6)
    assert not re.search(
        "nearly nothing|too large|every column", "\n".join(raised.outputs[0].notes)
    )
    usual[lost][0][:] = usual[lost][1][:, None]  # of zeros nothing is known
    right = imatrices.write_gguf(tmp_path / "right.gguf", usual)
    convert(WIDE, tmp_path / "u-Q4_K_S.gguf", imatrix=right)
    made, wanted = (digests(tmp_path / f"{name}-Q4_K_S.gguf") for name in "ru")
    assert made.keys() == wanted.keys()
    assert {name for name in made if made[name] != wanted[name]} <= {faint}  # 1e-30 was raised


@pytest.mark.parametrize("share", [0, -1, 1.5, float("nan"), "much", True, ()])
def test_a_floor_is_a_share(tmp_path: Path, share: object) -> None:
    with pytest.raises(RequestError, match="is not a share; give a number above 0 and at most 1"):
        convert(WIDE, tmp_path / "m-Q4_K_S.gguf", imatrix=tmp_path, importance_floor=share)


def test_a_floor_needs_importance(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="importance_floor: of use with imatrix=FILE only"):
        convert(WIDE, tmp_path / "m-Q4_K_S.gguf", importance_floor="1e-6")


@pytest.mark.parametrize("no_tokenizer", [False, True])
def test_copied_tensors_need_no_importance(tmp_path: Path, no_tokenizer: bool) -> None:
    """Carried over with all metadata, or with only the weights of a Grok-1."""
    source = tmp_path / "m-IQ2_XS.gguf"
    full = imatrices.model_entries(shapes(WIDE))
    full["blk.1.attn_output.weight"] = full["blk.0.attn_output.weight"]
    imatrix = imatrices.write_gguf(tmp_path / "i.gguf", full)
    convert(WIDE, source, imatrix=imatrix, tensor_types=["attn_output=IQ2_XS"])
    partly = {name: (sums * 0, counts) for name, (sums, counts) in full.items() if "_q." in name}
    zeros = imatrices.write_gguf(tmp_path / "z.gguf", partly)
    options = {"tensor_types": ["attn_output=IQ2_XS", "attn_v=Q5_K"], "allow_requantize": True}
    plan = prepare(
        source,
        [tmp_path / "n-IQ2_XS.gguf"],
        ConvertOptions(imatrix=zeros, no_tokenizer=no_tokenizer, **options),
    )
    missing = plan.outputs[0].importance.missing
    assert missing == ("blk.0.attn_v.weight", "blk.1.attn_v.weight")
    assert not plan.outputs[0].importance.zeros
    assert not plan.outputs[0].importance.refused


def test_the_old_format_weighs_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Spy(monkeypatch)
    values = np.arange(256, dtype=np.float32)
    imatrix = imatrices.write_old(tmp_path / "i.dat", {"blk.0.attn_q.weight": (4, values)})
    convert(WIDE, tmp_path / "m-Q4_K_S.gguf", imatrix=imatrix)
    given = [row for _, _, row in spy.seen if row is not None]
    assert given
    for row in given:  # one tensor, in as many pieces as there are workers
        np.testing.assert_array_equal(row, values / np.float32(4))


def test_importance_of_a_gguf_source(tmp_path: Path, wide_imatrix: Path) -> None:
    """From a float32 GGUF file the same as from the shards.

    But for Q8_0, which carries the shards' own codes.
    """
    convert(WIDE, tmp_path / "m-F32.gguf")
    convert(WIDE, tmp_path / "a-Q4_K_M.gguf", imatrix=wide_imatrix)
    weightcast.convert(tmp_path / "m-F32.gguf", tmp_path / "b-Q4_K_M.gguf", imatrix=wide_imatrix)
    weightcast.convert(tmp_path / "m-F32.gguf", tmp_path / "c-Q4_K_M.gguf")
    a, b, c = (gguf_files.read(tmp_path / f"{name}-Q4_K_M.gguf") for name in "abc")
    assert a.metadata == b.metadata
    weighed = [name for name, part in a.tensors.items() if part.kind in (12, 13, 14)]
    assert len(weighed) > 10
    for name in weighed:
        assert a.tensors[name] == b.tensors[name]
    assert any(c.tensors[name] != b.tensors[name] for name in weighed)


def test_importance_that_lacks_what_is_needed(tmp_path: Path, wide_imatrix: Path) -> None:
    path = tmp_path / "m-IQ2_XS.gguf"
    problem = f"{path}: needs an importance matrix with entries that {wide_imatrix} lacks: "
    with pytest.raises(LayoutError, match=re.escape(problem)) as refusal:
        convert(WIDE, path, imatrix=wide_imatrix, tensor_types=["attn_output=IQ2_XS"])
    assert str(refusal.value).endswith("garbage: blk.1.attn_output.weight as IQ2_XS")


@pytest.mark.parametrize("is_gguf", [False, True])
def test_rules_for_plain_floats_are_weighed(
    tmp_path: Path, float_files: dict[str, Path], wide_imatrix: Path, is_gguf: bool
) -> None:
    """A matrix weighs whatever is quantized, if only by a rule in an output of floats."""
    source = float_files["wide"] if is_gguf else WIDE
    options = {"imatrix": wide_imatrix, "tensor_types": ["attn_q=IQ2_XS"]}
    if not is_gguf:
        options["no_tokenizer"] = True
    summary = weightcast.convert(source, tmp_path / "m-BF16.gguf", **options)
    assert summary.describe()["outputs"][0]["importance"]["missing"] == []
    weightcast.convert(source, tmp_path / "m-Q4_K_M.gguf", **options)
    floats, blocks = (gguf_files.read(tmp_path / f"m-{name}.gguf") for name in ("BF16", "Q4_K_M"))
    assert floats.metadata["quantize.imatrix.file"] == blocks.metadata["quantize.imatrix.file"]
    for name in ("blk.0.attn_q.weight", "blk.1.attn_q.weight"):
        assert floats.tensors[name] == blocks.tensors[name]


def test_an_entry_of_another_size(tmp_path: Path) -> None:
    entries = {"blk.0.attn_q.weight": (1, np.ones(128, np.float32))}
    imatrix = imatrices.write_old(tmp_path / "i.dat", entries)
    problem = f"{imatrix}: blk.0.attn_q.weight: 128 values for 1 x 256 columns"
    with pytest.raises(LayoutError, match=re.escape(problem)):
        convert(WIDE, tmp_path / "m-Q4_K_S.gguf", imatrix=imatrix)


def test_the_embedding_table_may_have_another_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Spy(monkeypatch)
    entries = {"token_embd.weight": (1, np.ones(128, np.float32))}
    imatrix = imatrices.write_old(tmp_path / "i.dat", entries)
    summary = convert(WIDE, tmp_path / "m-Q4_K_S.gguf", imatrix=imatrix)
    assert "token_embd.weight" in summary.plan.outputs[0].importance.missing


def test_a_matrix_of_another_model(tmp_path: Path) -> None:
    imatrix = imatrices.write_old(tmp_path / "i.dat", {"x": (1, np.ones(256, np.float32))})
    with pytest.raises(LayoutError, match="belongs to another model: none of its 1 entries"):
        convert(WIDE, tmp_path / "m-Q4_K_S.gguf", imatrix=imatrix)


def test_without_importance_the_dry_run_says_what_is_needed(tmp_path: Path) -> None:
    path = tmp_path / "m-IQ2_XS.gguf"
    plan = prepare(WIDE, [path], ConvertOptions(no_tokenizer=True))
    (note,) = plan.outputs[0].notes
    assert note.startswith("needs an importance matrix; give one with imatrix=FILE: without, ")
    assert "blk.0.ffn_gate_exps.weight as IQ2_XS" in note
    with pytest.raises(LayoutError, match=re.escape(f"{path}: needs an importance matrix")):
        run(plan)


@pytest.mark.parametrize("recipe", sorted(set(RECIPES) - {"Q2_0"}))
def test_file_type_of_every_recipe(tmp_path: Path, recipe: str, wide_imatrix: Path) -> None:
    """Types in the header are those decided; the number is llama.cpp's."""
    plan = prepare(
        WIDE,
        [tmp_path / f"m-{recipe}.gguf"],
        ConvertOptions(no_tokenizer=True, imatrix=wide_imatrix),
    )
    header = tmp_path / "header.gguf"
    with header.open("wb") as file:
        file.write(plan.outputs[0].files[0].header)
        file.truncate(plan.outputs[0].files[0].size)
    reader = gguf.GGUFReader(header)
    assert reader.fields["general.file_type"].contents() == RECIPES[recipe].file_type
    planned = {t.tensor.name: t.type.name for t in plan.outputs[0].tensors}
    assert {t.name: t.tensor_type.name for t in reader.tensors} == planned


def test_overrides_and_pure(tmp_path: Path) -> None:
    path = tmp_path / "m-Q8_0.gguf"
    convert(WIDE, path, tensor_types=["ffn_.*_exps=F16", "exps=BF16", r"attn_[qk]\.=F16"])
    found = types(path)
    assert found["blk.0.ffn_up_exps.weight"] == found["blk.1.attn_k.weight"] == "F16"
    assert found["blk.1.attn_v.weight"] == "Q8_0"
    assert found["blk.0.ffn_gate_inp.weight"] == found["blk.0.attn_norm.weight"] == "F32"
    plan = prepare(WIDE, [tmp_path / "m-Q4_K_M.gguf"], ConvertOptions(no_tokenizer=True, pure=True))
    assert {t.type.name for t in plan.outputs[0].tensors} == {"F32", "Q4_K"}


def test_recipe_files(tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        'base = "Q8_0"\n'
        "[[rule]]\npattern = 'attn_'\ntype = 'F16'\n"
        "[[rule]]\npattern = 'attn_v'\ntype = 'BF16'\n"
    )
    path = tmp_path / "mine.gguf"
    summary = convert(WIDE, path, recipe=recipe, tensor_types="attn_k=Q8_0")
    found = types(path)
    assert found["blk.0.attn_v.weight"] == found["blk.0.attn_q.weight"] == "F16"
    assert found["blk.0.attn_k.weight"] == found["token_embd.weight"] == "Q8_0"
    notes = summary.plan.outputs[0].notes
    assert any(f"as {recipe}: rule 1: 'attn_' asks: 6 tensors" in note for note in notes), notes
    assert any("as rule attn_k=Q8_0 asks: 2 tensors" in note for note in notes), notes
    with pytest.raises(CheckpointError, match=r"is a directory, but the base in .* is Q8_0, a"):
        convert(WIDE, path, tmp_path / "m-bf16", recipe=recipe)
    with pytest.raises(CheckpointError, match=r"asks for F16, but the base in .* is Q8_0"):
        convert(WIDE, tmp_path / "m-F16.gguf", recipe=recipe)


def test_options_for_gguf_alone(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="pure: of use for GGUF outputs only"):
        convert(WIDE, tmp_path / "m-bf16", tensor_types="attn=F16", pure=True)


def test_int8_that_ends_inside_blocks(tmp_path: Path) -> None:
    """Exact F32 in a Q8_0 output; requantized where another recipe wants Q8_0."""
    spec = tiny_spec(emb_size=128, key_size=8, num_layers=1, widening_factor=0.75)
    source = write_checkpoint(tmp_path, spec)
    name = "blk.0.ffn_down_exps.weight"
    groups = open_graph(source)["transformer/decoder_layer_0/moe/linear_1/w"].shape[-1] // 8
    assert groups % 32
    for options, expected in (
        ({"types": "Q8_0"}, "F32"),
        ({"types": "Q8_0", "tensor_types": "ffn_down=Q8_0"}, "Q8_0"),
        ({"types": "MXFP4_MOE", "tensor_types": "exps=Q8_0"}, "Q8_0"),
    ):
        convert(source, tmp_path / "m.gguf", **options)
        assert types(tmp_path / "m.gguf")[name] == expected, options
