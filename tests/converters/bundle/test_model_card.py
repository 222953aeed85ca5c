"""Model cards: front matter that YAML reads, true sizes, and runtimes that take such an output."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from tests import imatrices, llama_models
from weightcast.cli import commands
from weightcast.converters import convert
from weightcast.converters.bundle import model_card
from weightcast.converters.bundle.runtimes import vllm_refusal
from weightcast.converters.families import FAMILIES
from weightcast.converters.families.grok1.family import GROK_1
from weightcast.converters.plan.plan import Plan
from weightcast.converters.sources.options import ConvertOptions


def plan(source: Path, output: Path, **options: Any) -> Plan:
    options.setdefault("no_tokenizer", "tokenizer" not in options)
    return convert.prepare(source, [output], ConvertOptions(bundle=True, **options))


def card(source: Path, output: Path, errors: tuple[str, ...] = (), **options: Any) -> str:
    found = model_card.CardErrors(errors) if errors else None
    return model_card.model_card(plan(source, output, **options), 0, found)


def front_matter(text: str) -> dict[str, Any]:
    start, values, _ = text.split("---\n", 2)
    assert start == ""
    found = yaml.safe_load(values)
    assert isinstance(found, dict)
    return found


def section(text: str, title: str) -> str:
    return text.split(f"\n## {title}\n\n")[1].split("\n## ")[0]


def test_front_matter(tiny: Path, tmp_path: Path) -> None:
    assert front_matter(card(tiny, tmp_path / "m-Q4_K_M.gguf")) == {
        "license": "apache-2.0",
        "library_name": "gguf",
        "pipeline_tag": "text-generation",
        "tags": ["grok-1", "weightcast", "gguf", "q4_k_m"],
    }
    found = front_matter(card(tiny, tmp_path / "m-int4-g32-awq"))
    assert found["library_name"] == "transformers"
    assert found["tags"] == ["grok-1", "weightcast", "safetensors", "int4-g32-awq", "awq"]


def test_only_the_release_has_a_base_model(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert.convert(tiny, tmp_path / "m-F16.gguf", no_tokenizer=True)
    options = ConvertOptions(no_tokenizer=True)
    sizes = convert.prepare(tiny, [tmp_path / "m-bf16"], options).graph.spec.describe()
    rows = (replace(r, released=sizes.get(r.name, r.released)) for r in GROK_1.hyperparameters)
    monkeypatch.setitem(FAMILIES, "grok-1", replace(GROK_1, hyperparameters=tuple(rows)))
    for source in (tiny, tmp_path / "m-F16.gguf"):
        text = model_card.model_card(
            convert.prepare(
                source, [tmp_path / "n-Q8_0.gguf"], ConvertOptions(no_tokenizer=source is tiny)
            ),
            0,
        )
        found = front_matter(text)
        assert found["base_model"] == "xai-org/grok-1"
        assert found["base_model_relation"] == "quantized"
        assert "Apache License 2.0" in section(text, "License")


@pytest.mark.parametrize("name", ["m-Q4_K_M.gguf", "m-int4-g32-gptq", "m-bf16"])
def test_sizes_add_up(tiny: Path, tmp_path: Path, name: str) -> None:
    made = plan(tiny, tmp_path / name, split="3M")
    text = model_card.model_card(made, 0)
    (output,) = made.outputs
    rows = re.findall(r"\| `([^`]+)` \| (\S+) \| ([\d,]+) \| ([\d,]+) \| ([\d.]+) \|", text)
    numbers = [(int(n.replace(",", "")), int(b.replace(",", ""))) for _, _, n, b, _ in rows]
    assert sum(n for n, _ in numbers) == len(output.tensors)
    assert sum(nbytes for _, nbytes in numbers) == output.data_bytes
    assert len({(kind, type_name) for kind, type_name, *_ in rows}) == len(rows) < 20
    files = re.findall(r"(?m)^\| `([^`]+)` \| ([\d,]+) \|$", section(text, "Files"))
    assert sum(int(nbytes.replace(",", "")) for _, nbytes in files) == output.size
    assert f"{output.bits_per_weight:.2f} bits per weight" in text


def test_the_command_can_be_given_again(
    tiny: Path, tmp_path: Path, tokenizer_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run what the card says, where the files lie side by side: it gives the same card."""
    recipe = tmp_path / "it's mine.toml"
    recipe.write_text('base = "Q4_K_M"\n[[rule]]\npattern = "attn_k"\ntype = "Q6_K"\n')
    (tmp_path / tiny.name).symlink_to(tiny)
    (tmp_path / tokenizer_model.name).symlink_to(tokenizer_model)
    (tmp_path / "spec.json").symlink_to(tiny / "spec.json")
    options = {
        "types": ["Q4_K_M"],
        "tensor_types": [r"blk\.0\.attn_[qv]=bf16", "ffn_up=Q5_K"],
        "recipe": recipe,
        "tokenizer": tokenizer_model,
        "split": "3M",
        "pure": True,
        "allow_requantize": True,
    }
    text = card(tiny, tmp_path / "m.gguf", **options)
    (command,) = re.findall(r"(?m)^    (weightcast .+)$", text)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(commands, shlex.split(command)[1:], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "m.README.md").read_text() == text


def test_the_command_leaves_out_what_is_for_other_outputs(tmp_path: Path) -> None:
    source = llama_models.write_model(tmp_path / "m.gguf", "llama")
    imatrix = imatrices.write_gguf(tmp_path / "i.gguf", llama_models.importance("llama"))
    outputs = [tmp_path / "m-COPY.gguf", tmp_path / "m-IQ3_S.gguf"]
    options = ConvertOptions(bundle=True, imatrix=imatrix, prune_layers="1", keep_order=True)
    cards = [model_card.model_card(convert.prepare(source, outputs, options), n) for n in (0, 1)]
    commands = [re.findall(r"(?m)^    weightcast convert (.+)$", card) for card in cards]
    assert commands == [
        ["m.gguf m-COPY.gguf --keep-order --prune-layers 1 --bundle"],
        ["m.gguf m-IQ3_S.gguf --imatrix i.gguf --keep-order --prune-layers 1 --bundle"],
    ]


def test_the_command_makes_the_same_bundle_with_errors(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    (tmp_path / "two" / tiny.name).symlink_to(tiny)
    (tmp_path / "two" / "spec.json").symlink_to(tiny / "spec.json")
    made = tmp_path / "one" / "m-Q4_0.gguf"
    convert.convert(tiny, made, no_tokenizer=True, bundle=True, baseline="bf16")
    text = (tmp_path / "one" / "m-Q4_0.README.md").read_text()
    assert "\n## Errors\n\nMeasured against the stored values rounded to bfloat16" in text
    (command,) = re.findall(r"(?m)^    (weightcast .+)$", text)
    monkeypatch.chdir(tmp_path / "two")
    done = CliRunner().invoke(commands, shlex.split(command)[1:], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    for path in (tmp_path / "one").iterdir():
        assert (tmp_path / "two" / path.name).read_bytes() == path.read_bytes()


def test_notes_and_errors(tiny: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text('base = "int4-g32"\n[[rule]]\npattern = "attn_v"\ntype = "int8-g32"\n')
    errors = ("| type | error |", "| --- | --- |", "| INT4-G32 | 0.1 |")
    text = card(tiny, tmp_path / "m", errors, recipe=recipe)
    assert "\n## Errors\n\n" + "\n".join(errors) + "\n\n## License" in text
    assert "as r.toml: rule 1: 'attn_v' asks" in text
    assert str(tmp_path) not in text
    runs = section(text, "Running it")
    assert "**vLLM** does not run it: they need one type for q, k and v of a layer" in runs
    assert "**SGLang** does not run it: they need" in runs
    assert "\n## Errors" not in card(tiny, tmp_path / "m", recipe=recipe)


def test_gguf_runs_in_llama_cpp(tiny: Path, tmp_path: Path, tokenizer_model: Path) -> None:
    runs = section(card(tiny, tmp_path / "m-Q8_0.gguf", split="3M"), "Running it")
    assert "llama-cli -m m-Q8_0-00001-of-00003.gguf`; it finds the other files" in runs
    assert "no tokenizer" in runs
    whole = card(tiny, tmp_path / "m-Q8_0.gguf", tokenizer=tokenizer_model)
    assert "llama-cli -m m-Q8_0.gguf`.\n" in section(whole, "Running it")
    assert "no tokenizer" not in whole
    assert "vLLM" not in whole


# By benchmarks/runtimes/README.md; what is not in its tables is not said to load.
@pytest.mark.parametrize(
    ("type_name", "said"),
    [
        ("bf16", None),
        ("int8-channel", None),
        ("int8-g32-gptq", None),
        ("int8-g32", "groups of 256 or a scale a row, not groups of 32"),
        ("int8-g32-asym", "int8 experts have no zero points"),
        ("int4-g32", None),
        ("int4-g32-asym", None),
        ("int4-g32-gptq", None),
        ("int4-g32-asym-gptq_v2", "its GPTQ has no zero points"),
        ("int4-g32-awq", None),
        ("int4-g32-asym-awq", None),
        ("int4-channel-awq", "no scales for whole rows"),
        ("int4-g32-weightcast", "weightcast's own layout"),
    ],
)
def test_vllm(tiny: Path, tmp_path: Path, type_name: str, said: str | None) -> None:
    made = plan(tiny, tmp_path / f"m-{type_name}", allow_requantize=True)
    found = vllm_refusal(made.outputs[0])
    runs = section(model_card.model_card(made, 0), "Running it")
    if said is None:
        assert found is None
        assert f"`vllm serve m-{type_name}`" in runs
        assert "was tested with directories of this kind" in runs
    else:
        assert said in str(found)
        assert "vllm serve" not in runs


def test_types_that_vllm_was_not_tested_with(tiny: Path, tmp_path: Path) -> None:
    runs = section(card(tiny, tmp_path / "m-mxfp4"), "Running it")
    assert "was not tested with this directory's types" in runs


def test_names_cannot_break_the_page(tiny: Path, tmp_path: Path) -> None:
    text = card(tiny, tmp_path / "a|b`c\n---\nx-F16.gguf")
    assert "a\\|b'c\\n---\\nx-F16" in text
    assert len(re.findall(r"(?m)^---$", text)) == 2
