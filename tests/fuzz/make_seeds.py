"""Make the seeds of the corpus with our own writers: python -m tests.fuzz.make_seeds."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import weightcast
from tests.fuzz.inputs import join_files, safetensors_input
from weightcast.converters.families.grok1.spec import RELEASE
from weightcast.converters.families.grok1.synthetic import tiny_spec, write_checkpoint
from weightcast.formats.gguf.header import raw_number, raw_string
from weightcast.formats.gguf.layout import Entry, lay_out
from weightcast.quant.types import F32, Q4_0

_DATA = Path(__file__).parents[1] / "data" / "fuzz"
_EXAMPLES = Path(__file__).parents[2] / "examples"
_LAYOUTS = ("int4-g32-asym", "int4-g32-gptq", "int4-g32-awq", "int4-channel-weightcast")
_FLOATS = ("fp8", "fp8-block", "mxfp4")
# Of each directory so much is enough to know its layout.
_KEPT = ("experts.0.w1.", "gate.weight")


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seeds = _model_seeds(folder) | {
            "gguf": _gguf_seeds(folder),
            "convert": {"tokens": _gguf_files(0)[0], "odd": _odd_gguf()},
            "gguf_split": {"two-files": join_files(_split_gguf())},
            "recipe": {file.stem: file.read_bytes() for file in _EXAMPLES.glob("*.toml")},
            "shards": {
                "three": b"tensor00000_000\ntensor00001_000\ntensor00002_000\nREADME.md",
                "download": b"tensor00000_000\ntensor00001_000.incomplete\n.cache",
                "hosts": b"tensor00000_000\ntensor00000_001",
            },
            "imatrix": _imatrix_seeds(),
            "kl_base": {"two-chunks": _kl_base()},
            "torch": _torch_seeds(),
            "torrent": {"two-files": _torrent()},
            "tokenizer": {"tiny": _tokenizer()},
        }
    for target, inputs in seeds.items():
        (_DATA / target).mkdir(parents=True, exist_ok=True)
        for stem, raw in inputs.items():
            (_DATA / target / f"seed-{stem}").write_bytes(raw)


def _model_seeds(folder: Path) -> dict[str, dict[str, bytes]]:
    """A Grok-1 of a few thousand weights, and what is made of it."""
    spec = tiny_spec(
        vocab_size=32, emb_size=32, key_size=16, num_q_heads=2, num_kv_heads=1, num_layers=1,
        num_experts=1, num_selected_experts=1, widening_factor=1.5,
    )  # fmt: skip
    write_checkpoint(folder / "model", spec)
    told = {"tiny": (folder / "model/spec.json").read_bytes()}
    seeds = {"spec": told | {"release": json.dumps(RELEASE).encode()}}
    seeds |= {
        name: {} for name in ("directory", "grok1_directory", "safetensors", "verify", "report")
    }
    report = folder / "report.json"
    for kind in ("bf16", *_LAYOUTS, *_FLOATS):
        out = folder / f"out-{kind}"
        weightcast.convert(folder / "model", out, report=report, allow_requantize=True)
        files = {name: (out / name).read_bytes() for name in ("config.json", "model.safetensors")}
        short = _safetensors_of(files["model.safetensors"], _KEPT)
        small = _small(files, short)
        seeds["directory"][kind] = join_files(small)
        seeds["safetensors"][kind] = short
        if kind in ("bf16", "int4-g32-asym"):
            seeds["grok1_directory"][kind] = join_files(
                _small(files, files["model.safetensors"], 200)
            )
            sums = "".join(f"{hashlib.sha256(raw).hexdigest()}  {n}\n" for n, raw in small.items())
            seeds["verify"][kind] = join_files(small | {"SHA256SUMS": sums.encode()})
        seeds["report"][kind] = _short_report(json.loads(report.read_bytes()))
    seeds["directory"]["index"] = join_files(_indexed(short))
    seeds["verify"]["index"] = seeds["directory"]["index"]
    gguf = folder / "out-Q8_0.gguf"
    weightcast.convert(folder / "model", gguf, no_tokenizer=True)
    seeds["verify"]["gguf"] = join_files({"m.gguf": gguf.read_bytes()[:6000]})
    seeds["verify"]["gguf-split"] = join_files(_split_gguf())
    return seeds


def _small(files: Mapping[str, bytes], tensors: bytes, data_bytes: int = 2000) -> dict[str, bytes]:
    config = json.dumps(json.loads(files["config.json"]), separators=(",", ":")).encode()
    header, _, data = safetensors_input(tensors).partition(b"\0")
    return {"config.json": config, "model.safetensors": header + b"\0" + data[:data_bytes]}


def _safetensors_of(raw: bytes, kept: Iterable[str]) -> bytes:
    """Keep only some tensors of a file, with their data."""
    end = 8 + int.from_bytes(raw[:8], "little")
    header: dict[str, Any] = json.loads(raw[8:end])
    chosen = {n: v for n, v in header.items() if any(word in n for word in kept)}
    if "weightcast" in header.get("__metadata__", {}):
        said = json.loads(header["__metadata__"]["weightcast"])
        said["matrices"] = {n: v for n, v in said["matrices"].items() if f"{n}.codes" in chosen}
        chosen["__metadata__"] = {"weightcast": json.dumps(said)}
    data = b""
    for name, value in chosen.items():
        if name != "__metadata__":
            start, stop = value["data_offsets"]
            value["data_offsets"] = [len(data), len(data) + stop - start]
            data += raw[end + start : end + stop]
    text = json.dumps(chosen, separators=(",", ":")).encode()
    return struct.pack("<Q", len(text)) + text + data


def _indexed(tensors: bytes) -> dict[str, bytes]:
    header = json.loads(safetensors_input(tensors).partition(b"\0")[0])
    name = "model-00001-of-00001.safetensors"
    weight_map = {tensor: name for tensor in header if tensor != "__metadata__"}
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    return {
        "model.safetensors.index.json": json.dumps(index).encode(),
        name: safetensors_input(tensors),
        "config.json": b'{"quantization_config":null}',
    }


def _short_report(report: Any) -> bytes:
    for output in report["outputs"]:
        output["tensors"] = output["tensors"][:1]
        output["kinds"] = output["kinds"][:1]
    return json.dumps(report, separators=(",", ":")).encode()


def _strings(*values: bytes) -> bytes:
    head = struct.pack("<IIQ", 9, 8, len(values))
    return head + b"".join(struct.pack("<Q", len(value)) + value for value in values)


def _floats(*values: float) -> bytes:
    return struct.pack("<IIQ", 9, 6, len(values)) + struct.pack(f"<{len(values)}f", *values)


def _metadata() -> dict[str, bytes]:
    return {
        "general.architecture": raw_string("llama"),
        "general.alignment": raw_number("uint32", 32),
        "tokenizer.ggml.model": raw_string("llama"),
        "tokenizer.ggml.tokens": _strings(b"<unk>", b"a", b"b", b"ab"),
        "tokenizer.ggml.scores": _floats(0, -1, -2, -3),
        "tokenizer.ggml.unknown_token_id": raw_number("uint32", 0),
    }


def _gguf_files(split_bytes: int) -> list[bytes]:
    entries = [Entry("a.weight", F32, (2, 3)), Entry("b.weight", Q4_0, (1, 2, 32))]
    layouts = lay_out(_metadata(), entries, split_bytes)
    return [layout.header.ljust(layout.size, b"\1") for layout in layouts]


def _split_gguf() -> dict[str, bytes]:
    first, second = _gguf_files(16)
    return {"m-00001-of-00002.gguf": first, "m-00002-of-00002.gguf": second}


def _gguf_seeds(folder: Path) -> dict[str, bytes]:
    path = folder / "grok.gguf"
    weightcast.convert(folder / "model", path, types=("Q8_0",), no_tokenizer=True)
    return {
        "tokens": _gguf_files(0)[0],
        "odd": _odd_gguf(),
        "grok": path.read_bytes()[:4096],
    }


def _odd_gguf() -> bytes:
    """Shapes, names and metadata at the edges of what is read."""
    metadata = {
        "": raw_number("bool", 1),
        "k\udcff": raw_string("\udcff"),
        "general.alignment": raw_number("uint64", 16),
        "general.architecture": _floats(),
    }
    shapes = {"scale": (), "none": (0,), "\udcff.weight": (2, 0, 32), "c.weight": (1, 2, 1, 1, 32)}
    entries = [Entry(name, F32, shape) for name, shape in shapes.items()]
    (layout,) = lay_out(metadata, entries)
    return layout.header.ljust(layout.size, b"\1")


def _imatrix_seeds() -> dict[str, bytes]:
    metadata = {
        "imatrix.datasets": _strings(b"text"),
        "imatrix.chunk_count": raw_number("uint32", 2),
        "imatrix.chunk_size": raw_number("uint32", 512),
    }
    entries = [Entry("a.in_sum2", F32, (2, 4)), Entry("a.counts", F32, (2, 1))]
    (layout,) = lay_out(metadata, entries)
    gguf = layout.header + struct.pack("<8f", *range(8)) + struct.pack("<2f", 3, 0)
    old = struct.pack("<ii", 1, 8) + b"a.weight" + struct.pack("<ii2f", 2, 2, 1, 2)
    old += struct.pack("<ii", 3, 4) + b"text"
    return {"gguf": gguf.ljust(layout.size, b"\0"), "old": old}


def _kl_base() -> bytes:
    """Two chunks of 4 tokens, a vocabulary of 5."""
    records = b"".join(struct.pack("<ff6H", 1e-4, -2, n, 9999, 0, 1, 2, 0) for n in range(2))
    return b"_logits_" + struct.pack("<Iii8i", 4, 5, 2, *range(4), *range(4)) + records


def _torch_seeds() -> dict[str, bytes]:
    """Two tensors of a storage, and one of another dtype."""
    import torch

    seeds = {}
    table = torch.arange(6.0).reshape(2, 3)
    state = {"a": table, "b": table[1], "c.weight": torch.ones(4, dtype=torch.bfloat16)}
    for name, value in (("dictionary", state), ("module", torch.nn.Linear(2, 2).state_dict())):
        buffer = io.BytesIO()
        torch.save(value, buffer)
        seeds[name] = buffer.getvalue()
    return seeds


def _torrent() -> bytes:
    """Two files in three pieces."""
    files = b"ld6:lengthi20e4:pathl6:ckpt-015:tensor00000_000eed6:lengthi25e4:pathl1:beee"
    pieces = b"60:" + bytes(range(60))
    info = b"5:files%s4:name4:grok12:piece lengthi16e6:pieces%s" % (files, pieces)
    return b"d8:announce5:udp:/4:infod%see" % info


def _tokenizer() -> bytes:
    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    SentencePieceTrainer.Train(
        sentence_iterator=iter(["a b ab ba abba baab aabb bbaa"] * 4),
        model_writer=model, model_type="bpe", vocab_size=16, hard_vocab_limit=False,
        minloglevel=2, character_coverage=1.0, normalization_rule_name="identity",
    )  # fmt: skip
    return model.getvalue()


if __name__ == "__main__":
    main()
