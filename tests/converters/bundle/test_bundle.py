"""Release bundles: provenance, checksums and cards say what is on the disk, the same everywhere."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import threading
from itertools import product
from pathlib import Path
from typing import Any

import gguf
import pytest
from google.protobuf import json_format
from in_toto_attestation.predicates.provenance.v1.provenance_pb2 import Provenance
from in_toto_attestation.v1.statement import Statement
from in_toto_attestation.v1.statement_pb2 import Statement as StatementMessage

import weightcast
from tests.gguf_files import floats, string, u32, write
from tests.imatrices import model_entries, write_gguf
from tests.support import Golden, some
from weightcast.converters import convert
from weightcast.converters.bundle import provenance
from weightcast.converters.bundle import release as bundle
from weightcast.converters.bundle.model_card import CardErrors
from weightcast.converters.engine import executor, hashing, stream
from weightcast.converters.files.bundle_names import NAMES, BundlePaths, written_before
from weightcast.converters.files.names import partial_path
from weightcast.converters.output import files as output_files
from weightcast.converters.sources import open_graph
from weightcast.converters.sources.options import ConvertOptions
from weightcast.converters.targets.target import Request

RECIPE = """
base = "Q4_K_M"
[[rule]]
pattern = "attn_"
type = "Q6_K"
"""


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def make(source: Path, *outputs: Path, **options: Any) -> convert.Summary:
    options.setdefault("no_tokenizer", "tokenizer" not in options)
    return weightcast.convert(source, *outputs, bundle=True, **options)


def statement(path: Path) -> dict[str, Any]:
    """Read a statement, and hold it against the published definitions: no field may be unknown."""
    value = json.loads(path.read_text())
    parsed = json_format.ParseDict(value, StatementMessage())
    Statement.copy_from_pb(parsed).validate()
    found = json_format.ParseDict(value["predicate"], Provenance())
    assert value["predicateType"] == "https://slsa.dev/provenance/v1"
    assert found.build_definition.build_type == "urn:weightcast:convert:v1"
    assert found.run_details.builder.id
    return value


def digests(descriptors: list[dict[str, Any]]) -> dict[str, str]:
    found = {entry["name"]: entry["digest"]["sha256"] for entry in descriptors}
    assert len(found) == len(descriptors)
    return found


def checked_by_sha256sum(sums: Path) -> int:
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", "--quiet", sums.name], cwd=sums.parent, check=False
    )
    return done.returncode


@pytest.fixture
def inputs(tmp_path: Path, tiny: Path, tokenizer_model: Path) -> dict[str, Path]:
    """A recipe, an importance matrix and a tokenizer."""
    folder = tmp_path / "inputs"
    folder.mkdir()
    recipe = folder / "mine.toml"
    recipe.write_text(RECIPE)
    weightcast.convert(tiny, folder / "shapes-F32.gguf", no_tokenizer=True)
    tensors = gguf.GGUFReader(folder / "shapes-F32.gguf").tensors
    shapes = {t.name: tuple(reversed(t.shape.tolist())) for t in tensors}
    imatrix = write_gguf(folder / "imatrix.gguf", model_entries(shapes))
    return {"recipe": recipe, "imatrix": imatrix, "tokenizer": tokenizer_model}


def test_a_gguf_file_in_parts(tiny: Path, tmp_path: Path, inputs: dict[str, Path]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    make(tiny, out / "m-Q4_K_M.gguf", split="2M", **inputs)
    beside = [f"m-Q4_K_M.{name}" for name in NAMES]
    parts = [name for name in names(out) if name not in beside]
    assert len(parts) == 3
    assert names(out) == sorted([*beside, *parts])

    value = statement(out / "m-Q4_K_M.intoto.json")
    assert digests(value["subject"]) == {name: sha256(out / name) for name in parts}
    definition = value["predicate"]["buildDefinition"]
    read = {path.name: sha256(path) for path in (tiny / "ckpt-0").iterdir()}
    read["spec.json"] = sha256(tiny / "spec.json")
    read.update({path.name: sha256(path) for path in inputs.values()})
    assert digests(definition["resolvedDependencies"]) == read
    roles = {d["name"]: d["annotations"]["role"] for d in definition["resolvedDependencies"]}
    assert roles["mine.toml"] == "recipe"
    assert roles["imatrix.gguf"] == "imatrix"
    assert roles["tensor00000_000"] == "source"
    told = definition["externalParameters"]
    assert told["source"] == tiny.name
    assert told["output"] == {"name": "m-Q4_K_M.gguf", "kind": "gguf", "type": "Q4_K_M"}
    assert told["rules"] == [{"pattern": "attn_", "type": "Q6_K"}]
    assert told["splitBytes"] == 2_000_000
    for role, path in inputs.items():
        assert told[role] == {"name": path.name, "digest": {"sha256": sha256(path)}}
    details = value["predicate"]["runDetails"]
    made = [out / f"m-Q4_K_M.{name}" for name in ("tensors.json", "README.md")]
    assert digests(details["byproducts"]) == {path.name: sha256(path) for path in made}
    assert details["builder"]["version"] == {"weightcast": weightcast.__version__}
    assert "metadata" not in details
    for path in map(out.joinpath, beside):
        assert str(tmp_path) not in path.read_text()
        assert str(tiny.parent) not in path.read_text()


@pytest.mark.parametrize("name", ["m-int4-g32", "m-bf16"])
def test_a_directory(tiny: Path, tmp_path: Path, tokenizer_model: Path, name: str) -> None:
    out = tmp_path / name
    make(tiny, out, tokenizer=tokenizer_model, split="4M")
    own = {path.name for path in out.iterdir()} - set(NAMES)
    assert {"config.json", "tokenizer.json", "model.safetensors.index.json"} < own
    value = statement(out / "intoto.json")
    assert digests(value["subject"]) == {found: sha256(out / found) for found in own}
    listed = dict(line.split("  ")[::-1] for line in (out / "SHA256SUMS").read_text().splitlines())
    assert listed.keys() == own | {"intoto.json", "tensors.json"}
    # Others and we read it as before.
    assert len(open_graph(out)) == len(open_graph(tiny))
    make(out, tmp_path / "again-Q8_0.gguf", tokenizer=tokenizer_model)
    again = statement(tmp_path / "again-Q8_0.intoto.json")
    files = {found for found in own if found.endswith(".safetensors")}
    found = digests(again["predicate"]["buildDefinition"]["resolvedDependencies"])
    assert found.keys() == files | {
        "config.json",
        "model.safetensors.index.json",
        tokenizer_model.name,
    }


def test_transformers_loads_a_directory_with_a_bundle(tiny: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers needs Python 3.11")
    make(tiny, tmp_path / "m-bf16")
    model, found = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "m-bf16", trust_remote_code=True, output_loading_info=True
    )
    assert not any(found.values())
    assert sum(p.numel() for p in model.parameters()) == open_graph(tiny).parameters


@pytest.mark.parametrize("name", ["m-Q8_0.gguf", "m-int4-g32-gptq"])
def test_the_bytes_of_every_tensor(tiny: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / name
    make(tiny, out, split="3M")
    folder = out if out.is_dir() else tmp_path
    (listed,) = [p for p in folder.iterdir() if p.name.endswith("tensors.json")]
    value = json.loads(listed.read_text())
    assert value["schema"] == "urn:weightcast:tensors:v1"
    found = {}
    for tensor in value["tensors"]:
        raw = (folder / tensor["file"]).read_bytes()
        data = raw[tensor["offset"] : tensor["offset"] + tensor["nbytes"]]
        assert hashlib.sha256(data).hexdigest() == tensor["sha256"]
        found[tensor["name"]] = (tensor["dtype"], tensor["shape"], len(data))
    expected = {}
    if out.is_dir():
        for path in folder.glob("*.safetensors"):
            raw = path.read_bytes()
            header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
            header.pop("__metadata__")
            for key, entry in header.items():
                start, end = entry["data_offsets"]
                expected[key] = (entry["dtype"], entry["shape"], end - start)
    else:
        for path in folder.glob("*.gguf"):
            for t in gguf.GGUFReader(path).tensors:
                shape = list(reversed(t.shape.tolist()))
                expected[t.name] = (t.tensor_type.name, shape, t.n_bytes)
    assert found == expected


@pytest.mark.parametrize("name", ["m-F16.gguf", "m-int4-g32", "o dd\\näme\n-F16.gguf"])
def test_sha256sum_agrees(tiny: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / name
    make(tiny, out)
    (sums,) = [*tmp_path.glob("*.SHA256SUMS"), *tmp_path.glob("*/SHA256SUMS")]
    assert checked_by_sha256sum(sums) == 0
    file = next(out.glob("*.safetensors")) if out.is_dir() else out
    with file.open("r+b") as opened:
        opened.seek(-100, os.SEEK_END)
        opened.write(b"another")
    assert checked_by_sha256sum(sums) == 1


def test_the_same_bytes_anywhere(tiny: Path, tmp_path: Path, inputs: dict[str, Path]) -> None:
    """Other folders, numbers of workers and instruction sets; a date only where one is given."""
    found = []
    runs = [("1", None), ("5", "scalar"), ("2", "sse2" if platform.machine() == "x86_64" else None)]
    for number, (jobs, isa) in enumerate(runs):
        base = tmp_path / f"place {number}"
        (base / "out").mkdir(parents=True)
        shutil.copytree(tiny, base / "grok")
        given = {role: Path(shutil.copy(path, base)) for role, path in inputs.items()}
        environment = {**os.environ, **({"WEIGHTCAST_ISA": isa} if isa else {})}
        options = ["--jobs", jobs, "--imatrix", "imatrix.gguf", "--tensor-type", "attn_q=bf16"]
        options += ["--tokenizer", str(given["tokenizer"])]
        command = [sys.executable, "-c", "from weightcast.cli import main; main()", "convert"]
        outputs = ["out/m-Q4_K_M.gguf", "out/m-int4-g32"]
        subprocess.run(
            [*command, "grok", *outputs, "--bundle", "--quiet", *options],
            cwd=base,
            env=environment,
            check=True,
        )
        files = [path for path in (base / "out").rglob("*") if path.is_file()]
        found.append({str(path.relative_to(base)): sha256(path) for path in files})
    assert len(found[0]) == 1 + 4 + 4 + 8
    assert found[0] == found[1] == found[2]


def test_a_date_is_given_by_source_date_epoch(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1710684000")
    make(tiny, tmp_path / "m-F16.gguf")
    details = statement(tmp_path / "m-F16.intoto.json")["predicate"]["runDetails"]
    assert details["metadata"] == {"finishedOn": "2024-03-17T14:00:00Z"}


@pytest.mark.parametrize("text", ["soon", "-1", "1.5", "9" * 30, "\u0663"])
def test_dates_that_are_none(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", text)
    with pytest.raises(weightcast.RequestError, match=r"SOURCE_DATE_EPOCH is .* since 1970"):
        make(tiny, tmp_path / "m-F16.gguf")
    assert names(tmp_path) == []
    weightcast.convert(tiny, tmp_path / "m-F16.gguf", no_tokenizer=True)


@pytest.mark.parametrize("change", ["changed", "vanished", "cut"])
def test_a_source_that_changes_is_found(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    source = tmp_path / "source"
    shutil.copytree(tiny, source)
    shard = source / "ckpt-0" / "tensor00005_000"

    def spoil(*arguments: Any) -> Any:
        if change == "vanished":
            shard.unlink()
        elif change == "cut":
            shard.write_bytes(shard.read_bytes()[:-1])
        else:
            os.utime(shard, ns=(1, 1))
        return hashing.hash_files(*arguments)

    monkeypatch.setattr(bundle, "hash_files", spoil)
    said = "No such file" if change == "vanished" else "was changed while it was read"
    with pytest.raises(weightcast.CheckpointError, match=said) as caught:
        make(source, tmp_path / "m-F16.gguf", tmp_path / "m-f16")
    assert str(caught.value).startswith(f"{shard}: ")
    if change == "vanished":  # perhaps it comes back
        assert "is finished and kept" in str(caught.value)
        assert "m-F16.gguf" not in names(tmp_path)
        return
    assert "complete, but have no bundle" in str(caught.value)
    assert names(tmp_path) == ["m-F16.gguf", "m-f16", "source"]
    assert not set(NAMES) & set(names(tmp_path / "m-f16"))


def test_ctrl_c_while_files_are_hashed(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(stream.SimpleQueue):  # type: ignore[type-arg]
        def get(self, *arguments: Any) -> Any:
            if threading.current_thread() is threading.main_thread():
                raise KeyboardInterrupt
            return super().get(*arguments)

    def hash_files(*arguments: Any) -> Any:
        with monkeypatch.context() as patched:
            patched.setattr(stream, "SimpleQueue", Interrupted)
            return hashing.hash_files(*arguments)

    outputs = tmp_path / "m-F16.gguf", tmp_path / "m-bf16"
    with monkeypatch.context() as patched:
        patched.setattr(bundle, "hash_files", hash_files)
        with pytest.raises(KeyboardInterrupt):
            make(tiny, *outputs)
    grown = [".m-F16.gguf.journal", ".m-F16.gguf.partial", ".m-bf16.journal", ".m-bf16.partial"]
    assert names(tmp_path) == grown

    def read_slab(*arguments: Any) -> None:
        raise AssertionError("nothing is to be read again")

    monkeypatch.setattr(executor, "read_slab", read_slab)
    assert make(tiny, *outputs).bundles
    assert names(tmp_path) == sorted([*(f"m-F16.{n}" for n in ("gguf", *NAMES)), "m-bf16"])
    assert checked_by_sha256sum(tmp_path / "m-F16.SHA256SUMS") == 0
    assert checked_by_sha256sum(outputs[1] / "SHA256SUMS") == 0


def test_ctrl_c_between_two_bundles(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, written = bundle.write_flushed, []

    def write_flushed(path: Path, content: bytes) -> None:
        written.append(path)
        if len(written) == 6:
            raise KeyboardInterrupt
        real(path, content)

    outputs = "m-F16.gguf", "n-F16.gguf"
    with monkeypatch.context() as patched:
        patched.setattr(bundle, "write_flushed", write_flushed)
        with pytest.raises(KeyboardInterrupt):
            make(tiny, *(tmp_path / name for name in outputs))
    grown = [f".{name}.{what}" for name in outputs for what in ("journal", "partial")]
    assert names(tmp_path) == grown
    make(tiny, *(tmp_path / name for name in outputs))
    assert len(names(tmp_path)) == 10


def test_a_disk_that_is_full_when_the_bundle_is_written(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> None:
        path.write_bytes(content[:10])
        if "README" in path.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(bundle, "write_flushed", full)
    with pytest.raises(weightcast.CheckpointError, match=r"README\.md: the disk is full.* kept"):
        make(tiny, tmp_path / "m-F16.gguf")
    assert names(tmp_path) == [".m-F16.gguf.journal", ".m-F16.gguf.partial"]


def test_an_earlier_bundle_does_not_stay(tiny: Path, tmp_path: Path) -> None:
    outputs = tmp_path / "m-F16.gguf", tmp_path / "m-bf16"
    make(tiny, *outputs)
    plan = convert.prepare(tiny, outputs, ConvertOptions(no_tokenizer=True))
    for output in plan.outputs:
        assert any("release bundle of the earlier output goes" in n for n in output.notes)
    assert len(names(tmp_path)) == 6
    weightcast.convert(tiny, *outputs, no_tokenizer=True)
    assert names(tmp_path) == ["m-F16.gguf", "m-bf16"]
    assert not set(NAMES) & set(names(tmp_path / "m-bf16"))
    plan = convert.prepare(tiny, outputs, ConvertOptions(no_tokenizer=True))
    assert not any("bundle" in note for output in plan.outputs for note in output.notes)


def test_a_bundle_is_made_anew(tiny: Path, tmp_path: Path) -> None:
    outputs = tmp_path / "m.gguf", tmp_path / "m"
    make(tiny, *outputs, types=["F16", "bf16"])
    # As a kill in the middle of the writing leaves it.
    (tmp_path / "m" / ".README.md.partial").write_text("#")
    (tmp_path / ".m.README.md.partial").write_text("#")
    make(tiny, *outputs, types=["Q8_0", "int4-g32"])
    assert names(tmp_path) == sorted(["m", "m.gguf", *(f"m.{name}" for name in NAMES)])
    assert checked_by_sha256sum(tmp_path / "m.SHA256SUMS") == 0
    assert checked_by_sha256sum(tmp_path / "m" / "SHA256SUMS") == 0
    assert "--type Q8_0 " in (tmp_path / "m.README.md").read_text()


def test_a_failed_conversion_keeps_the_earlier_bundle(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tiny, tmp_path / "m-F16.gguf")
    before = {path: sha256(path) for path in tmp_path.iterdir()}
    read = executor.read_slab
    reads: list[Any] = []

    def failing(*arguments: Any) -> Any:
        reads.append(arguments)
        if len(reads) == 9:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(*arguments)

    monkeypatch.setattr(executor, "read_slab", failing)
    with pytest.raises(weightcast.CheckpointError, match="cannot be read"):
        make(tiny, tmp_path / "m-F16.gguf")
    after = {p: sha256(p) for p in tmp_path.iterdir() if not p.name.startswith(".")}
    assert after == before


def test_a_card_that_was_edited_is_kept(tiny: Path, tmp_path: Path) -> None:
    file, directory = tmp_path / "m-F16.gguf", tmp_path / "m-bf16"
    make(tiny, file, directory)
    for card in (tmp_path / "m-F16.README.md", directory / "README.md"):
        card.write_text(card.read_text() + "Thanks to all.\n")
    with pytest.raises(weightcast.OutputError, match=r"README\.md: .*edited since; rename or del"):
        make(tiny, file)
    with pytest.raises(weightcast.OutputError, match=r"holds README\.md, which .* edited since"):
        make(tiny, directory)
    summary = weightcast.convert(tiny, file, no_tokenizer=True)
    assert "m-F16.README.md was edited and stays" in str(summary.plan.outputs[0].notes)
    assert names(tmp_path) == ["m-F16.README.md", "m-F16.gguf", "m-bf16"]


def test_sums_that_were_added_to_are_kept(tiny: Path, tmp_path: Path) -> None:
    make(tiny, tmp_path / "m-F16.gguf")
    sums = tmp_path / "m-F16.SHA256SUMS"
    line = f"{sha256(tmp_path / 'm-F16.gguf')[::-1]}  notes.txt\n"
    sums.write_text(sums.read_text() + line)
    with pytest.raises(weightcast.OutputError, match="SHA256SUMS: no conversion wrote it"):
        make(tiny, tmp_path / "m-F16.gguf")


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"predicate": 3}', "[" * 99999, '{"subject": [1]}'],
)
def test_statements_of_others_say_nothing(tiny: Path, tmp_path: Path, text: str) -> None:
    make(tiny, tmp_path / "m-F16.gguf")
    (tmp_path / "m-F16.intoto.json").write_text(text)
    assert written_before(BundlePaths(tmp_path, "m-F16.")) == []


@pytest.mark.parametrize("name", NAMES)
def test_files_of_others_are_not_replaced(tiny: Path, tmp_path: Path, name: str) -> None:
    mine = tmp_path / f"m-F16.{name}"
    mine.write_text("{}")
    with pytest.raises(weightcast.OutputError, match="no conversion wrote it"):
        make(tiny, tmp_path / "m-F16.gguf")
    weightcast.convert(tiny, tmp_path / "m-F16.gguf", no_tokenizer=True)
    assert mine.read_text() == "{}"


def test_inputs_are_not_overwritten_by_a_bundle(tiny: Path, tmp_path: Path) -> None:
    spec = Path(shutil.copy(tiny / "spec.json", tmp_path / "m-F16.tensors.json"))
    with pytest.raises(weightcast.OutputError, match="is or holds the source"):
        make(tiny, tmp_path / "m-F16.gguf", spec=spec)
    with pytest.raises(weightcast.RequestError, match="two outputs have the same name"):
        make(tiny, tmp_path / "m.gguf", tmp_path / "m.README.md", types=["F16", "bf16"])


def test_a_gguf_source_of_any_model(tmp_path: Path) -> None:
    import numpy as np

    rows = np.linspace(-1, 1, 256 * 256, dtype=np.float32).reshape(256, 256)
    metadata = {
        "general.architecture": string("llama"),
        "general.license": string("MIT"),
        "llama.block_count": u32(1),
    }
    tensors = {"blk.0.attn_q.weight": floats(rows), "output_norm.weight": floats(rows[0])}
    write(tmp_path / "any.gguf", metadata, tensors)
    weightcast.convert(tmp_path / "any.gguf", tmp_path / "any-Q8_0.gguf", bundle=True)
    value = statement(tmp_path / "any-Q8_0.intoto.json")
    read = value["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert digests(read) == {"any.gguf": sha256(tmp_path / "any.gguf")}
    card = (tmp_path / "any-Q8_0.README.md").read_text()
    assert "license: mit\n" in card
    assert "Grok" not in card


def test_the_command_line(tiny: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from weightcast.cli import main; main()", "convert", "--json"]
    out = tmp_path / "m-F16.gguf"
    done = subprocess.run(
        [*command, "--bundle", "--no-tokenizer", tiny, out],
        check=True,
        capture_output=True,
        text=True,
    )
    result = json.loads(done.stdout)
    assert result["outputs"][0]["bundle"] == [f"m-F16.{name}" for name in NAMES]
    assert result["bundle_seconds"] >= 0


def test_what_was_measured_is_in_the_card(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_errors(plan: Any, workers: Any, on_progress: Any, errors: Any) -> Any:
        said = {1: CardErrors(["0.002 of the values"])}
        return bundle.make_bundles(plan, workers, on_progress, said)

    monkeypatch.setattr(convert, "make_bundles", with_errors)
    outputs = [tmp_path / "m-Q8_0.gguf", tmp_path / "m-bf16"]
    make(tiny, *outputs)
    assert "\n## Errors\n\n0.002 of the values\n" in (outputs[1] / "README.md").read_text()
    assert "## Errors" not in (tmp_path / "m-Q8_0.README.md").read_text()
    assert checked_by_sha256sum(outputs[1] / "SHA256SUMS") == 0
    byproducts = statement(outputs[1] / "intoto.json")["predicate"]["runDetails"]["byproducts"]
    assert digests(byproducts)["README.md"] == sha256(outputs[1] / "README.md")


def truncate(path: Path) -> None:
    os.truncate(path, 100)


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(bytes(4096))


# How a file was damaged shows in its status, its bytes or its absence, when in other code of ours:
# each damage meets both moments, and each file some damage.
@pytest.mark.parametrize(
    ("damage", "name", "moment"),
    some(
        product(
            (truncate, overwrite, Path.unlink),
            ("m-F16.gguf", "m-bf16/model.safetensors", "m-bf16/config.json"),
            ("flush", "hash_files"),
        ),
        lambda damage, name, moment: (
            (damage, name, moment)
            in (
                (truncate, "m-F16.gguf", "flush"),
                (truncate, "m-bf16/config.json", "hash_files"),
                (overwrite, "m-bf16/model.safetensors", "flush"),
                (overwrite, "m-F16.gguf", "hash_files"),
                (Path.unlink, "m-bf16/config.json", "flush"),
                (Path.unlink, "m-bf16/model.safetensors", "hash_files"),
            )
        ),
    ),
)
def test_an_output_that_is_damaged_gets_no_name(
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: Any,
    name: str,
    moment: str,
) -> None:
    """Before its files are hashed, or after they were: what was there before stays."""
    outputs = tmp_path / "m-F16.gguf", tmp_path / "m-bf16"
    make(tiny, *outputs)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    top, _, rest = name.partition("/")
    place = partial_path(tmp_path / top) / rest
    owner = executor.OutputFiles if moment == "flush" else bundle
    real = getattr(owner, moment)

    def damaging(*arguments: Any) -> Any:
        found = real(*arguments)
        damage(place)
        return found

    with monkeypatch.context() as patched:
        patched.setattr(owner, moment, damaging)
        with pytest.raises(weightcast.CheckpointError) as caught:
            make(tiny, *outputs)
    message = str(caught.value)
    assert message.startswith(f"{place}")
    assert "is finished and kept" in message
    assert {path: path.read_bytes() for path in before} == before
    make(tiny, *outputs)
    assert checked_by_sha256sum(tmp_path / "m-F16.SHA256SUMS") == 0
    assert checked_by_sha256sum(outputs[1] / "SHA256SUMS") == 0
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("has_bundle", [False, True])
def test_one_of_several_outputs_that_cannot_get_its_name(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_bundle: bool
) -> None:
    """The other goes with its bundle, or without the one of an earlier output."""
    outputs = tmp_path / "m-F16.gguf", tmp_path / "n-F16.gguf"
    make(tiny, outputs[0], tensor_types=["attn_v=F32"])
    real = output_files._replace

    def replace(partial: Path, request: Request, final: Path) -> Path | None:
        if final == outputs[1]:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(partial, request, final)

    monkeypatch.setattr(output_files, "_replace", replace)
    with pytest.raises(weightcast.CheckpointError, match=r"n-F16\.gguf: cannot be written"):
        weightcast.convert(tiny, *outputs, no_tokenizer=True, bundle=has_bundle)
    bundle_names = [f"m-F16.{name}" for name in NAMES] if has_bundle else []
    kept = [".n-F16.gguf.journal", ".n-F16.gguf.partial"]
    assert names(tmp_path) == sorted([*bundle_names, *kept, "m-F16.gguf"])
    if has_bundle:
        assert checked_by_sha256sum(tmp_path / "m-F16.SHA256SUMS") == 0


def test_progress_counts_every_byte(tiny: Path, tmp_path: Path) -> None:
    told: list[weightcast.Progress] = []
    outputs = [tmp_path / "m-Q8_0.gguf", tmp_path / "m-bf16"]
    plan = make(tiny, *outputs, on_progress=told.append).plan
    last = {each.phase: each for each in told}
    assert [*last] == ["plan", "convert", "flush", "hash"]
    assert all(each.done_bytes == each.total_bytes for each in last.values())
    assert last["convert"].total_bytes == plan.read_bytes
    assert last["hash"].total_bytes == plan.hash_bytes > plan.write_bytes


def test_regions_across_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing, "_CHUNK_BYTES", 64)
    contents = {n: bytes(range(256)) * n for n in (0, 1, 5)}
    regions = ((3, 60), (0, 3), (63, 0), (63, 1), (64, 128), (200, 56))
    files = []
    for n, content in contents.items():
        path = tmp_path / str(n)
        path.write_bytes(content)
        files.append(hashing.FileToHash(path, lambda status: None, regions if n else ()))
    found = hashing.hash_files(files, 2)
    for digest, (n, content) in zip(found, contents.items(), strict=True):
        assert digest.sha256 == hashlib.sha256(content).hexdigest()
        assert digest.size == len(content)
        parts = [content[start : start + length] for start, length in regions]
        expected = [hashlib.sha256(part).hexdigest() for part in parts]
        assert list(digest.regions) == (expected if n else [])


def test_the_first_file_that_fails_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    paths = [tmp_path / "a", tmp_path / "b", tmp_path / "c"]
    files = [hashing.FileToHash(path, lambda status: None) for path in paths]
    with pytest.raises(weightcast.CheckpointError, match=r"/b: cannot be read: No such file"):
        hashing.hash_files(files, 1)


def test_names_that_are_no_text() -> None:
    assert provenance.readable("a\udcff") == "a?"
    assert provenance.checksums({"a\udcff": "00"}) == b"00  a\xff\n"


def test_shards_have_the_digests_of_sha256sum(golden: Golden, tmp_path: Path) -> None:
    make(golden.path, tmp_path / "m-F16.gguf")
    value = statement(tmp_path / "m-F16.intoto.json")
    shards = sorted((golden.path / "ckpt-0").glob("tensor*"))
    done = subprocess.run(
        ["sha256sum", *shards], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    expected = {Path(line[66:]).name: line[:64] for line in done}
    read = value["predicate"]["buildDefinition"]["resolvedDependencies"]
    found = digests([entry for entry in read if entry["annotations"]["role"] == "source"])
    assert found == expected
