"""Rules for single tensors of directories: files, options, what comes out, what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader

import weightcast
from tests import imatrices
from tests.directories import matrices, read_directory, unpacked, wanted
from tests.support import Golden
from weightcast.converters.families.grok1.synthetic import tiny_spec, write_checkpoint
from weightcast.converters.recipes.weight_types import directory_type, known_in_rules, rule_type
from weightcast.converters.sources import open_graph
from weightcast.converters.targets.types import shapes_of
from weightcast.quant.types import BF16, F16, MXFP4, NVFP4, Fp8Type, GroupType

WIDE = Golden("wide")
INT4, INT8 = GroupType(4, 32), GroupType(8, 32)
ASYMMETRIC, FP8, SQUARE = GroupType(4, 64, symmetric=False), Fp8Type(), Fp8Type(128, 128)


def convert(*outputs: Path, rules: tuple[str, ...] = (), **options: Any) -> weightcast.Summary:
    source = options.pop("source", WIDE.path)
    return weightcast.convert(
        source, *outputs, no_tokenizer=True, tensor_types=rules, jobs=2, **options
    )


# Rules, the types of the matrices by (pattern in their directory name, type), first match.
MIXES = {
    "int4-g32": {
        "attn_=int8-g32": ("self_attn", INT8),
        r"experts\.3\.w1=f16": (r"experts\.3\.w1", F16),
        r"blk\.1\.ffn_down=int4-g64-asym": (r"layers\.1\..*w2", ASYMMETRIC),
        r"^model\.layers\.0\..*w3=fp8": (r"layers\.0\..*w3", FP8),
        "ffn_up=mxfp4": ("w3", MXFP4),
    },
    "bf16": {
        r"attn_output=int8-g32": ("o_proj", INT8),
        r"experts\.[0-5]\.w2=int4-g32": (r"experts\.[0-5]\.w2", INT4),
        "attn_q=nvfp4": ("q_proj", NVFP4),
        "ffn_gate=fp8-block": ("w1", SQUARE),
        "ffn_up=fp8": ("w3", FP8),
    },
    "fp8": {"attn_=bf16": ("self_attn", BF16), "ffn_down=int8-g32": ("w2", INT8)},
    "int4-g32-gptq": {
        r"attn_[qkv]=int8-g32": (r"[qkv]_proj", INT8),
        r"blk\.1\..*exps=int4-channel": (r"layers\.1\..*experts", GroupType(4, 0)),
        "o_proj=f16": ("o_proj", F16),
    },
    "int8-g32-gptq_v2": {
        "exps=int4-g64-asym": ("experts", ASYMMETRIC),
        "attn_q=bf16": ("q_p", BF16),
    },
    "int4-g32-awq": {r"experts\.7=bf16": (r"experts\.7", BF16), "attn_=int4-g32": ("attn", INT4)},
    "int4-g32-weightcast": {"attn_=int8-g32": ("attn", INT8), r"\.w2=bf16": ("w2", BF16)},
}


@pytest.mark.parametrize("name", MIXES)
def test_every_matrix_has_its_type(name: str, tmp_path: Path) -> None:
    """What readers of the layout get: released int8 codes exactly, the rest as if of one type."""
    path = tmp_path / f"m-{name}"
    convert(path, rules=tuple(MIXES[name]))
    kind = directory_type(name)
    assert kind is not None
    layout = kind.layout if kind.is_packed else "compressed-tensors"
    tensors, expected = read_directory(path), {}
    for module, (_, _, values) in matrices(WIDE).items():
        types = (
            weight_type
            for pattern, weight_type in MIXES[name].values()
            if re.search(pattern, module)
        )
        weight_type = next(types, kind.experts)
        made = unpacked(tensors, module, layout, weight_type, values.shape)
        is_exact = weight_type == INT8
        expected[module] = values if is_exact else wanted(values, weight_type)
        np.testing.assert_array_equal(made, expected[module], err_msg=f"{module} {weight_type}")
    left = {n: t.dtype for n, t in tensors.items() if "norm" in n or n.endswith(".gate.weight")}
    assert len(left) == 11
    assert set(left.values()) == {np.dtype(np.float32)}
    # The directory is a source: every tensor comes back with these values.
    convert(tmp_path / "back-f32", source=path)
    back = read_directory(tmp_path / "back-f32")
    for module, values in expected.items():
        np.testing.assert_array_equal(back[f"{module}.weight"], values, err_msg=module)


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("int4-g32-gptq", "attn_=int8-g32"),
        ("int8-g32-gptq_v2", "exps=int4-g32-asym"),
        ("int4-g32-asym-gptq_v2", "attn_=int8-g32"),
    ],
)
def test_int8_goes_through_a_mixed_directory_to_q8_0(name: str, rule: str, tmp_path: Path) -> None:
    path = tmp_path / f"m-{name}"
    convert(path, rules=(rule,))
    convert(tmp_path / "a-Q8_0.gguf")
    summary = convert(tmp_path / "b-Q8_0.gguf", source=path)
    first, second = (
        {t.name: t for t in GGUFReader(tmp_path / f"{name}-Q8_0.gguf").tensors} for name in "ab"
    )
    for name in (name for name in first if re.search(r"attn_(q|k|v|output)\.", name)):
        np.testing.assert_array_equal(first[name].data, second[name].data)
    assert len(summary.describe()["outputs"][0]["q8_0"]["lossless"]) == 8


def test_squares_of_fp8_in_narrow_matrices(tmp_path: Path) -> None:
    """Rows of 128 values have one scale in a square, as they have where each row has its own."""
    spec = tiny_spec(emb_size=128, num_layers=1, num_experts=2)
    source = write_checkpoint(tmp_path / "source", spec)
    convert(tmp_path / "m-fp8-block", tmp_path / "m-f32", source=source, rules=("attn_=f32",))
    convert(tmp_path / "back-f32", source=tmp_path / "m-fp8-block")
    made, exact = read_directory(tmp_path / "back-f32"), read_directory(tmp_path / "m-f32")
    narrow = [name for name in exact if name.endswith("w1.weight")]
    assert len(narrow) == 2
    for name in narrow:
        assert exact[name].shape[0] > 128
        np.testing.assert_array_equal(made[name], wanted(exact[name], SQUARE), err_msg=name)


def test_rows_that_do_not_fill_a_rule_s_groups(tmp_path: Path) -> None:
    problem = r"attn=int4-g256: model\.layers\.0\.self_attn\.k_proj\.weight: rows of 128 values are"
    with pytest.raises(weightcast.LayoutError, match=problem):
        convert(tmp_path / "m-int4-g32", source=Golden("deep").path, rules=("attn=int4-g256",))


RECIPE = """
base = "{}"
[[rule]]
pattern = "attn_v"
type = "bf16"
[[rule]]
pattern = "attn_"
type = "{}"
"""


def recipe(folder: Path, base: str, asked: str = "int8-g32") -> Path:
    path = folder / "mine.toml"
    path.write_text(RECIPE.format(base, asked))
    return path


def test_a_recipe_file(tmp_path: Path) -> None:
    """The name need not say the base; options come before the file, the first match counts."""
    file = recipe(tmp_path, "INT4-G32")
    outputs = tmp_path / "mixed", tmp_path / "m-int4-g32"
    summary = convert(*outputs, recipe=file, rules=("attn_k=f16",))
    first, second = ({f.name: f.read_bytes() for f in path.iterdir()} for path in outputs)
    assert first == second
    described = summary.describe()["outputs"][0]
    assert described["types"] == {"BF16": 4, "F16": 2, "F32": 11, "INT4-G32": 48, "INT8-G32": 4}
    said = [note for note in described["notes"] if note.startswith("stored as")]
    at = "model.layers.0.self_attn"
    assert said == [
        f"stored as F16, as rule attn_k=f16 asks: 2 tensors, for example {at}.k_proj.weight",
        f"stored as INT8-G32, as {file}: rule 2: 'attn_' asks: 4 tensors, for example "
        f"{at}.o_proj.weight",
        f"stored as BF16, as {file}: rule 1: 'attn_v' asks: 2 tensors, for example "
        f"{at}.v_proj.weight",
    ]


def test_one_file_for_both_kinds_of_output(tmp_path: Path) -> None:
    """bf16 and mxfp4 are bases of GGUF files and of directories; patterns mean the same in both."""
    file = recipe(tmp_path, "bf16", "f16")
    summary = convert(tmp_path / "m.gguf", tmp_path / "mixed", recipe=file)
    gguf, directory = (output["types"] for output in summary.describe()["outputs"])
    assert gguf == {"BF16": 9, "F16": 6, "F32": 11}
    assert directory == {"BF16": 52, "F16": 6, "F32": 11}
    assert "quantization_config" not in json.loads((tmp_path / "mixed/config.json").read_text())


@pytest.mark.parametrize("base", ["int4", "Int4-g128"])
def test_a_base_by_another_name(base: str, tmp_path: Path) -> None:
    """`int4` is int4-g128."""
    summary = convert(tmp_path / "m-int4", recipe=recipe(tmp_path, base))
    assert summary.describe()["outputs"][0]["types"]["INT4-G128"] == 48


def test_norms_routers_and_embeddings(tmp_path: Path) -> None:
    """Norms and routers by their whole name, in GGUF or in the directory; floats alone."""
    rules = (
        r"blk\.0\.ffn_norm\.weight=bf16",
        r"model\.layers\.1\.block_sparse_moe\.gate\.weight=f16",
    )
    convert(tmp_path / "m-int4-g32", rules=(*rules, "embed_tokens=f32", "norm|gate=f16"))
    tensors = read_directory(tmp_path / "m-int4-g32")
    changed = {
        n: t.dtype.name for n, t in tensors.items() if n.endswith(".weight") and t.dtype != "f4"
    }
    gates = [name for name in changed if "experts" in name]
    assert len(gates) == 16  # "gate" is ffn_gate_exps in GGUF
    assert {n: t for n, t in changed.items() if n not in gates} == {
        "model.layers.0.pre_moe_norm.weight": "bfloat16",
        "model.layers.1.block_sparse_moe.gate.weight": "float16",
    }
    np.testing.assert_array_equal(tensors["lm_head.weight"], tensors["model.embed_tokens.weight"])


def test_importance_weighs_integers_beside_floats(tmp_path: Path) -> None:
    shapes = dict(shapes_of(open_graph(WIDE.path)))
    file = imatrices.write_gguf(tmp_path / "i.gguf", imatrices.model_entries(shapes))
    rule = ("ffn_down=int4-g32",)
    summary = convert(tmp_path / "m-bf16", rules=rule, imatrix=file)
    assert summary.plan.outputs[0].importance.rows.keys() == {
        "blk.0.ffn_down_exps.weight",
        "blk.1.ffn_down_exps.weight",
    }


@pytest.mark.parametrize(
    ("name", "rule", "problem"),
    [
        (
            "m-int4-g32",
            "attn_=int8",
            "'int8' does not say its groups; write it like int8-g128",
        ),
        ("m-int4-g32", "attn_=int4-asym", "groups; write it like int4-g128-asym"),
        ("m-int4-g32", "attn_=int8-g32-gptq", "names a layout, which is the whole output's"),
        ("m-int4-g32", "attn_=int5-g32", "unknown type 'int5-g32'; did you mean int8-g128?"),
        ("m-int4-g32", "attn_=Q6_K", f"asks for Q6_K, but a directory holds {known_in_rules()}"),
        ("m-bf16", "attn_=Q6_K", "m-bf16: rule attn_=Q6_K asks for Q6_K, but a directory"),
        ("m-int4-g32-awq", "attn_=int8-g32", "awq holds one packed type, here INT4-G32, and bf16"),
        ("m-int4-g32-awq", "attn_=int4-g64", "awq holds one packed type, here INT4-G32, and bf16"),
        ("m-int4-g32-gptq", "attn_=fp8", "asks for FP8, but gptq holds int4 and int8 in groups"),
        ("m-int4-g32-weightcast", "attn_=mxfp4", "asks for MXFP4, but weightcast holds int4 and"),
        ("m-int4-g32-gptq", "attn_=int4-g32-asym", "gptq has no zero point 0"),
        ("m-F16.gguf", "attn_=int8-g32", "asks for INT8-G32, but a GGUF file holds BF16, F16"),
        ("m-int4-g32", ".*norm.*=int8-g32", "norms and routers (model.layers.0.pre_attn_norm"),
        (
            "m-int4-g32",
            ".*gate_inp.weight=fp8",
            "norms and routers (model.layers.0.block_sparse_",
        ),
        (
            "m-int4-g32",
            "token=int8-g32",
            "embedding (model.embed_tokens.weight) and lm_head can",
        ),
        ("m-int4-g32", "lm_head=int4-g32", "only be bf16, f16 or f32 in a directory"),
        ("m-int4-g32", "attn_q=int4-g48", "unknown type 'int4-g48'"),
        (
            "m-int4-g32",
            "w2=int8-channel",
            "w2.weight: its scales cover 64 values each, which are",
        ),
    ],
)
def test_rules_that_cannot_be(tmp_path: Path, name: str, rule: str, problem: str) -> None:
    with pytest.raises(weightcast.CheckpointError, match=re.escape(problem)) as caught:
        convert(tmp_path / name, rules=(rule,))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_all_outputs_must_hold_the_types(tmp_path: Path) -> None:
    with pytest.raises(weightcast.RequestError, match=r"m-Q8_0\.gguf: rule a=int8-g32 asks"):
        convert(tmp_path / "m-int4-g32", tmp_path / "m-Q8_0.gguf", rules=("a=int8-g32",))


@pytest.mark.parametrize(
    ("base", "name", "problem"),
    [
        ("int4-g32", "m-int4-g64", r"asks for int4-g64, but the base in \S+ is int4-g32; rename"),
        ("int4-g32", "m-int4-g32-gptq", "asks for int4-g32-gptq, but the base"),
        ("int4-g32", "m-bf16", "asks for bf16, but the base"),
        ("int4-g32", "m-Q4_K_M.gguf", "asks for Q4_K_M, but the base"),
        (
            "int4-g32",
            "m.gguf",
            "is a GGUF file, but the base .* is int4-g32, a type of di",
        ),
        (
            "Q4_K_M",
            "m-int4-g32",
            "is a directory, but the base .* is Q4_K_M, a recipe of GG",
        ),
        ("Q4_K_M", "mixed", "is a directory, but the base .* is Q4_K_M, a recipe of GG"),
        ("Q4_K_M", "m-int9", "m-int9: int9 is not a type of a safetensors directory"),
    ],
)
def test_outputs_that_are_not_the_base(tmp_path: Path, base: str, name: str, problem: str) -> None:
    with pytest.raises(weightcast.RequestError, match=problem):
        convert(tmp_path / name, recipe=recipe(tmp_path, base))


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("INT8-Channel-ASYM", GroupType(8, 0, symmetric=False)),
        ("int4-g256", GroupType(4, 256)),
        ("bf16", BF16),
        ("FP8-block", SQUARE),
        ("nvfp4", NVFP4),
    ],
)
def test_types_of_rules(name: str, found: Any) -> None:
    assert rule_type(name) == found
