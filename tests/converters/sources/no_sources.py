"""Files, directories and links that are no source, as people have them: one folder of them all."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import shutil
import socket
import struct
import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from tests import gguf_files
from tests.gguf_files import Part, string, strings, text, u16, u32
from tests.support import GOLDEN

POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4cac64ae1ac1a6f0e0d2ad0f5d7e3c5b4b1d4a3a0a0d4c9f9b8a7a6f5e4d3c2b\n"
    b"size 1610740034\n"
)
STAND_INS = {
    "lfs": POINTER,
    "windows": POINTER.replace(b"\n", b"\r\n"),
    "annex": b"/annex/objects/SHA256E-s31390--f50d7ac4c6b9031379986bc362fcefb65f1e52621c.gguf\n",
    "xet": b"# xet version 0\nfilesize = 4000000000\nhash = '6e8b'\n",
    "login": b"<!DOCTYPE html>\n<html><head><title>\nSign in &middot; Hub</title></head></html>",
    "bucket": b'<?xml version="1.0"?>\n<Error><Code>NoSuchKey</Code><Message>x</Message></Error>',
    "json": b'{"error":"Entry not found"}',
    "gated": b'{"message": "You must be authenticated", "error": "Access is restricted"}',
    "words": b"Invalid username or password.",
    "empty": b"",
    "zeros": bytes(5000),
}
ENDINGS = {"gguf": ".gguf", "safetensors": ".safetensors", "torch": ".bin", "nothing": ""}
LLAMA = {"general.architecture": string("llama"), "llama.block_count": u32(1)}
ROWS = {"blk.0.attn_q.weight": Part(gguf_files.F32, (2, 32), bytes(256))}
GGML_MAGICS = ("lmgg", "fmgg", "tjgg", "algg", "ccgg", "nsgg", "qsgg")
# Types that are not ggml's, with the architecture of the file.
TYPES = [(4, "gptoss"), (36, "bitnet-b1.58"), (39, "bitnet-b1.58")]
TYPES += [(n, "llama") for n in (4, 15, 31, 36, 45, 101, 133, 142, 144, 202, 352, 999)]


class _Block(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1


def put(path: str, raw: bytes | str = b"") -> Path:
    """Write a file, and the folders to it."""
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(raw.encode() if isinstance(raw, str) else raw)
    return file


def weights(path: str, *names: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    save_file({name: torch.zeros(2, 2) for name in names or ("model.norm.weight",)}, path)


def directory(folder: str, config: Mapping[str, Any], *names: str) -> None:
    weights(f"{folder}/model.safetensors", *names)
    put(f"{folder}/config.json", json.dumps(config))


def gguf(path: str, metadata: Mapping[str, bytes] = LLAMA, tensors: Any = ROWS) -> bytes:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    return gguf_files.write(Path(path), dict(metadata), dict(tensors)).read_bytes()


def part(path: str, number: int, count: int) -> None:
    own = {"split.no": u16(number), "split.count": u16(count)}
    gguf(path, {**LLAMA, **own}, {f"blk.{number}.x": Part(gguf_files.F32, (1, 32), bytes(128))})


def llama(**more: Any) -> dict[str, Any]:
    return {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **more}


def make_all() -> None:
    """Make all of them in the working directory."""
    for make in (make_paths, make_files, make_downloads, make_archives, make_torch, make_json):
        make()
    for make in (make_gguf, make_odd_gguf, make_split, make_models, make_directories, make_shards):
        make()


def make_paths() -> None:
    gguf("models/Qwen3-8B-Q8_0.gguf")
    put("models/notes.txt")
    gguf("a/only-Q8_0.gguf")
    for folder in ("nothing", "my-grok-1", "checkpoints/ckpt-0"):
        os.makedirs(folder)
    os.symlink("gone.gguf", "link.gguf")
    os.symlink("loop.gguf", "loop.gguf")
    os.symlink(".git/annex/objects/x/SHA256E-s12--f", "annex.gguf")
    held = Path("models--a--b/snapshots/c")
    held.mkdir(parents=True)
    os.symlink("../../blobs/d", held / "m.gguf")
    os.mkfifo("pipe.gguf")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket.gguf")


def make_files() -> None:
    for name, raw in STAND_INS.items():
        for ending in ENDINGS.values():
            put(f"{name}/m{ending}", raw)
    for magic in GGML_MAGICS:
        put(f"ggml/{magic}.bin", magic.encode() + bytes(60))
    put("f/a.h5", b"\x89HDF\r\n\x1a\n" + bytes(60))
    put("f/a.tflite", b"\x1c\0\0\0TFL3" + bytes(60))
    put("f/a.onnx", b"\x08\x07\x12\x07pytorch")
    put("f/flax_model.msgpack", b"\x81\xa5model")
    put("f/sharded/__0_0.distcp", b"\x08\x07\x12\x07pytorch")
    put("f/a.pdparams", b"\x08\x07\x12\x07pytorch")
    put("f/a.pdf", b"%PDF-1.7\n")
    put("f/README.md", "# A model\n\nIt is large.\n")
    put("f/Modelfile", "FROM ./m.gguf\nPARAMETER temperature 1\n")
    put(
        "f/grok-1.torrent",
        b"d8:announce35:https://academictorrents.com/announce4:infod6:lengthi1eee",
    )
    np.save("f/a.npy", np.zeros(3))
    np.savez("f/a.npz", a=np.zeros(3))
    put("f/a.pkl", pickle.dumps({"a": 1}))
    put("f/imatrix.dat", struct.pack("<ii", 1, 19) + b"blk.0.attn_q.weight" + bytes(40))
    weights("f/plain.safetensors")
    raw = Path("f/plain.safetensors").read_bytes()
    for name in ("blob", "wrong.gguf", "wrong.bin"):
        put(f"f/{name}", raw)
    put("f/wrong.safetensors", gguf("f/right.gguf"))
    put("f/cut.safetensors", raw[:-4])
    shutil.copytree("f", "f/folder", ignore=lambda folder, names: names)
    put("f/folder/tokenizer.model")
    put("f/rule.toml", 'base = "Q8_0"\n')


def make_downloads() -> None:
    for ending in ("part", "crdownload", "incomplete", "aria2", "download", "._____temp", "!qB"):
        put(f"d/m.gguf.{ending.removeprefix('.')}", b"GGUF")
    gguf("d/whole.gguf")
    put("d/whole.gguf.aria2")
    put("d/.m-Q8_0.gguf.partial", b"GGUF")
    put("d2/m.gguf.crdownload")
    for letter in "abc":
        put(f"cut/m.gguf-split-{letter}", b"GGUF\3\0\0\0" + bytes(60))


def make_archives() -> None:
    with zipfile.ZipFile("m.zip", "w") as archive:
        archive.writestr("ckpt-0/tensor00000_000", b"x")
    for name, mode in (("tars/ckpt.tar", "w"), ("m.tar.gz", "w:gz")):
        Path(name).parent.mkdir(exist_ok=True)
        with tarfile.open(name, mode) as tar:  # type: ignore[call-overload]
            tar.add("models/notes.txt")
    put("m.gguf.gz", gzip.compress(b"GGUF"))
    put("m.gguf.zst", b"\x28\xb5\x2f\xfd" + bytes(20))
    put("m.7z", b"7z\xbc\xaf\x27\x1c" + bytes(30))
    put("m y.rar", b"Rar!\x1a\x07\0" + bytes(20))


def make_torch() -> None:
    Path("t").mkdir()
    tensors = {"a": torch.zeros(300)}
    torch.save(tensors, "t/lightning.ckpt")
    torch.save(tensors, "t/old.bin", _use_new_zipfile_serialization=False)
    torch.jit.script(_Block()).save("t/script.pt")  # type: ignore[no-untyped-call]
    torch.save(_Block(), "t/module.bin")
    put("t/cut.bin", Path("t/lightning.ckpt").read_bytes()[:900])
    shutil.copy("f/a.npz", "t/arrays.bin")


def make_json() -> None:
    for name, value in {
        "config": llama(),
        "tokenizer": {"version": "1.0", "truncation": None, "added_tokens": []},
        "spec": {"vocab_size": 8, "emb_size": 8, "widening_factor": 8},
        "report": {"format": "weightcast-report", "version": 1},
        "index": {"metadata": {}, "weight_map": {"a": "m.safetensors"}},
        "other": {"a": 1},
    }.items():
        put(f"j/{name}.json", json.dumps(value))
    put("j/broken.json", '{"a":')


def make_gguf() -> None:
    for number, architecture in TYPES:
        tensors = {"blk.0.x": Part(number, (1, 256), bytes(2048))}
        metadata = {"general.architecture": string(architecture)}
        gguf(f"g/{architecture}-{number}.gguf", metadata, tensors)
    raw = gguf("g/ok.gguf")
    put("g/v1.gguf", raw[:4] + struct.pack("<I", 1) + raw[8:])
    put("g/v9.gguf", raw[:4] + struct.pack("<I", 9) + raw[8:])
    put("g/big.gguf", raw[:4] + struct.pack(">IQQ", 3, 1, 2) + raw[24:])
    put("g/cut.gguf", raw[:-100])
    put("g/head.gguf", raw[:60])
    gguf("g/vocab.gguf", {**LLAMA, "tokenizer.ggml.tokens": strings("a", "b")}, {})
    gguf("g/nothing.gguf", {}, {})
    imatrix = {"general.type": string("imatrix"), "imatrix.datasets": strings("x")}
    imatrix |= {"imatrix.chunk_count": u32(1), "imatrix.chunk_size": u32(512)}
    sums = {"blk.0.attn_q.weight.in_sum2": Part(gguf_files.F32, (1, 32), bytes(128))}
    sums["blk.0.attn_q.weight.counts"] = Part(gguf_files.F32, (1, 1), bytes(4))
    gguf("g/imatrix.gguf", imatrix, sums)


def make_odd_gguf() -> None:
    """Files that contradict themselves, or the format."""
    a, b = text("a"), text("b")
    kind = struct.pack("<I", gguf_files.F32)
    one_row = struct.pack("<IQ", 1, 32) + kind
    for name, value in {
        "48": u32(48),
        "0": u32(0),
        "below-0": struct.pack("<Iq", 11, -32),
        "huge": struct.pack("<IQ", 10, 1 << 62),
        "text": string("32"),
        "float": struct.pack("<If", 6, 32),
        "list": gguf_files.array(4, struct.pack("<2I", 32, 32)),
        "true": struct.pack("<I?", 7, True),
    }.items():
        gguf(f"g/alignment-{name}.gguf", {**LLAMA, "general.alignment": value})
    for name, values in {
        "twice": (a + u32(1), a + u32(1)),
        "of-arrays": (a + struct.pack("<IIQIQ", 9, 9, 1, 4, 0),),
        "unknown": (a + struct.pack("<II", 13, 1),),
        "array-unknown": (a + struct.pack("<IIQI", 9, 13, 1, 1),),
        "long": (text("k" * 65536) + u32(1),),
        "cut": (text("k") + struct.pack("<IQ", gguf_files.STRING, 1 << 40),),
    }.items():
        put(f"g/key-{name}.gguf", gguf_head(values, [a + one_row + bytes(8)]) + bytes(128))
    for name, infos in {
        "twice": [a + one_row + struct.pack("<Q", n) for n in (0, 128)],
        "overlap": [a + one_row + bytes(8), b + one_row + struct.pack("<Q", 96)],
        "nine-axes": [a + struct.pack("<I9Q", 9, *(1,) * 9) + kind + bytes(8)],
        "axis": [a + struct.pack("<IQ", 1, 1 << 62) + kind + bytes(8)],
        "product": [a + struct.pack("<I2Q", 2, 1 << 32, 1 << 32) + kind + bytes(8)],
        "blocks": [a + struct.pack("<IQI", 1, 33, gguf_files.Q8_0) + bytes(8)],
        "one-block": [a + struct.pack("<II", 0, gguf_files.Q8_0) + bytes(8)],
        "name": [text("n" * 65536) + one_row + bytes(8)],
        "far": [a + one_row + struct.pack("<Q", 1 << 60)],
    }.items():
        put(f"g/tensor-{name}.gguf", gguf_head((), infos) + bytes(256))
    put("g/tensors.gguf", gguf_head((), [a + one_row + bytes(8)], 1 << 60))


def gguf_head(values: Iterable[bytes], infos: Iterable[bytes], count: int | None = None) -> bytes:
    """Write a header that says anything; `count` is the number of tensors that it claims."""
    values, infos = [*values], [*infos]
    counts = len(infos) if count is None else count, len(values)
    head = b"GGUF" + struct.pack("<IQQ", 3, *counts) + b"".join((*values, *infos))
    return head + bytes(-len(head) % 32)


def make_split() -> None:
    for number in (0, 2):
        part(f"s/m-{number + 1:05}-of-00004.gguf", number, 4)
    put("s/m-00002-of-00004.gguf.part")
    part("s2/m-00002-of-00003.gguf", 1, 3)
    part("s3/renamed.gguf", 1, 3)
    part("s4/m-00001-of-00002.gguf", 0, 2)
    put("s4/m-00002-of-00002.gguf", POINTER)
    for name in ("model-00001", "model-00002", "other-00001"):
        weights(f"s5/{name}-of-00002.safetensors", "x")


def make_models() -> None:
    directory("hf/llama", llama(torch_dtype="bfloat16"))
    directory("hf/half", llama(torch_dtype="float16"))
    directory("hf/full", llama(dtype="float32"))
    directory("hf/gpt_oss", {"model_type": "gpt_oss", "architectures": ["GptOssForCausalLM"]})
    directory("hf/bnb", llama(quantization_config={"quant_method": "bitsandbytes"}))
    directory("hf/mlx", llama(quantization={"group_size": 64, "bits": 4}))
    directory("hf/grok-2", {"residual_moe": True, "embedding_multiplier_scale": 90.5})
    directory("hf/refused", {"error": "Repository not found"})
    directory("hf/other", {"a": 1})
    weights("hf/bare/model.safetensors")
    factors = ("base_model.model.x.lora_A.weight", "base_model.model.x.lora_B.weight")
    weights("hf/lora/adapter_model.safetensors", *factors)
    put("hf/lora/adapter_config.json", '{"peft_type": "LORA", "lora_alpha": 2}')
    weights("hf/kohya/my.safetensors", "lora_unet_x.lora_down.weight")
    weights("hf/flux/flux1-dev.safetensors", "double_blocks.0.x")
    directory("hf/piped", {})
    os.unlink("hf/piped/config.json")
    os.mkfifo("hf/piped/config.json")
    directory("hf/pointed", {})
    put("hf/pointed/config.json", POINTER)


# By directory: files in it, which are empty.
DIRECTORIES: Mapping[str, Iterable[str]] = {
    "diffusers": ("model_index.json", "unet/config.json"),
    "orbax": ("_CHECKPOINT_METADATA", "_METADATA", "manifest.ocdbt"),
    "orbax-steps": ("100/default/_METADATA", "200/_METADATA"),
    "t5x": ("checkpoint", "target.token_embedder.embedding/.zarray"),
    "fsdp": (".metadata", "__0_0.distcp"),
    "deepspeed": ("latest", "zero_to_fp32.py", "global_step1/x.pt"),
    "megatron": ("latest_checkpointed_iteration.txt", "iter_0000001/mp_rank_00/x.pt"),
    "meta": ("consolidated.00.pth", "params.json", "tokenizer.model"),
    "savedmodel": ("saved_model.pb", "variables/variables.index"),
    "tf1": ("checkpoint", "model.ckpt-1.index", "model.ckpt-1.data-00000-of-00001"),
    "keras": ("tf_model.h5", "config.json"),
    "flax": ("flax_model.msgpack", "config.json"),
    "onnx": ("onnx/model.onnx", "config.json"),
    "openvino": ("openvino_model.xml", "openvino_model.bin"),
    "ctranslate2": ("model.bin", "vocabulary.json"),
    "ollama": ("manifests/x", "blobs/y"),
    "clone": ("run.py", "model.py", "checkpoint.py", "tokenizer.model", "checkpoints/README.md"),
    "torrent": ("grok-1.torrent",),
    "torch-files": ("a.pt",),
    "tokenizer-only": ("tokenizer.json", "README.md"),
    "config-only": ("config.json", "tokenizer.json"),
    "first-lost": ("m-00002-of-00003.gguf", "m-00003-of-00003.gguf"),
    "split": ("m-00001-of-00002.gguf", "m-00002-of-00002.gguf"),
    "several": ("a.gguf", "b.gguf"),
    "holder": ("llama/model.safetensors", "README.md"),
    "holders": ("a/model.safetensors", "b/model.safetensors"),
    "hub": ("models--a--b/snapshots/c/x", "models--d--e/snapshots/f/x", "version.txt"),
    "unknown": ("a.xyz",),
}


def make_directories() -> None:
    for folder, files in DIRECTORIES.items():
        for file in files:
            put(f"dir/{folder}/{file}")


def make_shards() -> None:
    source = GOLDEN / "wide"
    shutil.copytree(source, "ck/early", ignore=lambda *_: ["ckpt-0", "logits_fp32.npz"])
    shutil.copytree(source / "ckpt-0", "ck/early/ckpt")
    for name in ("whole", "gap", "end", "cut", "lfs", "pipe", "part", "foreign"):
        shutil.copytree(source, f"ck/{name}", ignore=lambda *_: ["logits_fp32.npz"])
    third = "ckpt-0/tensor00003_000"
    os.unlink(f"ck/gap/{third}")
    for number in range(10, 26):
        os.unlink(f"ck/end/ckpt-0/tensor{number:05}_000")
    put(f"ck/cut/{third}", Path(f"ck/cut/{third}").read_bytes()[:-100])
    put(f"ck/lfs/{third}", POINTER)
    os.unlink(f"ck/pipe/{third}")
    os.mkfifo(f"ck/pipe/{third}")
    os.rename(f"ck/part/{third}", f"ck/part/{third}.part")
    put(f"ck/foreign/{third}", Path("f/plain.safetensors").read_bytes())
