"""The readers that are fuzzed: each takes a folder and the bytes of an input.

A target reads what it wrote into the folder, and goes on with what was read as far as commands do
without weights. It may raise CheckpointError; all else that escapes is a finding.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np

import weightcast
from tests.fuzz import pickle_oracle
from tests.fuzz.inputs import write_files
from tests.grok1 import read_spec
from weightcast.commands.text.graph import graph_lines, graph_values
from weightcast.commands.text.verify import verification_lines
from weightcast.converters.engine.hashing import FileToHash
from weightcast.converters.families.grok1.spec import RELEASE, solve, told_sizes
from weightcast.converters.graph.dimensions import Dimensions
from weightcast.converters.output import journal
from weightcast.converters.output.fingerprint import changes
from weightcast.converters.recipes.file import read_recipe_file
from weightcast.converters.report import (
    json_values,
    matrix_errors,
    read_report,
    summary,
    tensor_role,
)
from weightcast.converters.sources.open import open_as_it_is, open_to_inspect
from weightcast.converters.sources.packed import join_packed
from weightcast.converters.verify import checksums
from weightcast.formats import safetensors, torch_zip
from weightcast.formats.array import StoredArray
from weightcast.formats.gguf import read as gguf
from weightcast.formats.gguf.imatrix import read_imatrix, read_sums
from weightcast.formats.gguf.imatrix_write import encode_dat, encode_gguf
from weightcast.formats.jax.arrays import read_pickle
from weightcast.formats.jax.shards import read_shards
from weightcast.formats.kl_base import read_kl_base
from weightcast.formats.tokenizer.hugging_face import tokenizer_json
from weightcast.formats.tokenizer.sentencepiece import from_gguf, read_sentencepiece
from weightcast.formats.torrent import read_torrent


@dataclass(frozen=True)
class Target:
    """A reader, the longest input worth trying, words of its inputs, whether these hold JSON."""

    read: Callable[[Path, bytes], None]
    max_bytes: int = 4096
    words: tuple[bytes, ...] = ()
    memory_bytes: int = 4 << 20
    has_json: bool = False


def _journal(folder: Path, raw: bytes) -> None:
    """Lines that are whole, and say anything; what they say of a file is looked for."""
    texts = [raw, *raw.split(b"\n")]
    lines = (b"%s %s\n" % (journal.checksum(text), text) for text in texts)
    path = _write(folder, ".x.journal", b"".join(lines))
    found = journal.read_journal(path)
    with path.open("rb") as file:
        for done in found.finished.values():
            for write in done.writes:
                write.is_in(file.fileno())
    for values in found.errors.values():
        matrix_errors(values)
    if found.fingerprint is not None:
        changes(found.fingerprint, _FINGERPRINT)


def _write(folder: Path, name: str, raw: bytes) -> Path:
    path = folder / name
    path.write_bytes(raw)
    return path


def _pickle(folder: Path, raw: bytes) -> None:
    path = _write(folder, "tensor00000_000", raw)
    pickle_oracle.compare(path, read_pickle(path))


def _shards(folder: Path, raw: bytes) -> None:
    """A name a line; the first empty files may be shards."""
    for name in raw.split(b"\n")[:16]:
        if name.strip(b".") and b"/" not in name and b"\0" not in name and len(name) < 256:
            (folder / name.decode(errors="surrogateescape")).write_bytes(b"")
    read_shards(folder)


def _gguf(folder: Path, raw: bytes) -> None:
    path = _write(folder, "model.gguf", raw)
    _look_at_gguf(path)


def _gguf_split(folder: Path, raw: bytes) -> None:
    """The files NAME-00001-of-0000N.gguf of an input, opened by the first of them."""
    write_files(folder, raw)
    for path in sorted(folder.glob("*.gguf"))[:1]:
        _look_at_gguf(path)


def _look_at_gguf(path: Path) -> None:
    carried = open_as_it_is(path)
    assert carried is not None
    json.dumps(graph_values(carried, ()))
    list(graph_lines(carried, (), all_tensors=True))
    index = gguf.read_split(path)
    for array in index.tensors.values():
        assert array.offset + array.nbytes <= array.path.stat().st_size
    if carried.family.architecture != "grok":
        for tensor in weightcast.open(path).values():
            assert tensor.numpy().shape == tensor.shape
    try:
        vocabulary = from_gguf(path, index.metadata)
        if vocabulary is not None:
            tokenizer_json(vocabulary)
    finally:
        if carried.family.architecture == "grok":
            graph, notes = open_to_inspect(path, None)
            list(graph_lines(graph, notes, all_tensors=True))


def _convert(folder: Path, raw: bytes) -> None:
    """A GGUF file of whatever model, quantized again: rules, kernels, a model card."""
    path = _write(folder, "model.gguf", raw)
    out = folder / "out-Q4_K_M.gguf"
    weightcast.convert(path, out, allow_requantize=True, bundle=True, jobs=1)
    assert weightcast.compare(path, out, jobs=1).problem is None
    assert weightcast.verify(out, path, jobs=1).is_good


def _safetensors(folder: Path, raw: bytes) -> None:
    path = _write(folder, "model.safetensors", raw)
    _read_packed(join_packed(path, folder / "config.json", safetensors.read_directory(path)))


def _directory(folder: Path, raw: bytes) -> None:
    """A directory of any tensors: index, files, config.json; rows of packed ones are read."""
    write_files(folder, raw)
    _read_packed(join_packed(folder, folder / "config.json", safetensors.read_directory(folder)))


def _read_packed(arrays: dict[str, StoredArray]) -> None:
    for array in arrays.values():
        assert array.packed is not None or array.offset + array.nbytes <= array.path.stat().st_size
        packed = array.packed
        if packed is None or packed.row_bytes > 1 << 20:
            continue
        rows = min(array.shape[0], packed.row_multiple)
        held = packed.read(0, rows, memoryview(bytearray(rows * packed.row_bytes)))
        if held.decode is not None:
            held.decode(0, rows)


def _grok1_directory(folder: Path, raw: bytes) -> None:
    """A directory of a Grok-1 for transformers, as a source."""
    write_files(folder, raw)
    graph, notes = open_to_inspect(folder, None)
    json.dumps(graph_values(graph, notes))
    list(graph_lines(graph, notes, all_tensors=True))


def _verify(folder: Path, raw: bytes) -> None:
    """Any artifact with its checksums: the first GGUF file, or else the directory."""
    write_files(folder, raw)
    path = next(iter(sorted(folder.glob("*.gguf"))), folder)
    # Threads for some bytes take most of the time, and are not what is looked at.
    with patch.object(checksums, "hash_files", _hash_at_once):
        found = weightcast.verify(path, jobs=1)
    json.dumps(found.describe())
    for line in verification_lines(found):
        assert len(line) < 100_000


def _hash_at_once(
    files: Sequence[FileToHash], jobs: int, on_progress: Callable[[int], None]
) -> list[SimpleNamespace]:
    digests = [hashlib.sha256(file.path.read_bytes()).hexdigest() for file in files]
    return [SimpleNamespace(sha256=digest) for digest in digests]


def _imatrix(folder: Path, raw: bytes) -> None:
    """Also as sums, which are written again and read as they were."""
    path = _write(folder, "imatrix", raw)
    read_imatrix(path)
    sums = read_sums(path)
    path.write_bytes(b"".join(encode_gguf(sums, plain=True)))
    again = read_sums(path)
    assert again.entries.keys() == sums.entries.keys()
    b"".join(encode_dat(sums))


def _kl_base(folder: Path, raw: bytes) -> None:
    base = read_kl_base(_write(folder, "kl_base", raw))
    for chunk in range(base.n_chunks):
        assert not np.isnan(base.log_probs(chunk)).any()
        base.targets(chunk)


def _recipe(folder: Path, raw: bytes) -> None:
    read_recipe_file(_write(folder, "recipe.toml", raw))


def _spec(folder: Path, raw: bytes) -> None:
    path = _write(folder, "spec.json", raw)
    given = read_spec(path)
    sizes = {"emb_size": 6144, "vocab_size": 131072, "num_layers": 64, "num_experts": 8}
    dimensions = Dimensions(told_sizes(given), str(path))
    for name, size in {**sizes, "q_size": 6144, "kv_size": 1024, "ffn_size": 32768}.items():
        dimensions.check(name, size, "a shard")
    solve(dimensions, given).describe()


def _report(folder: Path, raw: bytes) -> None:
    report = read_report(_write(folder, "report.json", raw))
    summary([report])
    json_values(report)
    for output in report.outputs:
        for tensor in output.tensors:
            tensor_role(tensor.name)


def _torch(folder: Path, raw: bytes) -> None:
    path = _write(folder, "pytorch_model.bin", raw)
    for array in torch_zip.read_torch(path).values():
        assert array.offset + array.nbytes <= len(raw)


def _torrent(folder: Path, raw: bytes) -> None:
    torrent = read_torrent(_write(folder, "a.torrent", raw))
    assert -(-torrent.total_bytes // torrent.piece_bytes) == len(torrent.digests)


def _tokenizer(folder: Path, raw: bytes) -> None:
    vocabulary = read_sentencepiece(_write(folder, "tokenizer.model", raw))
    json.loads(tokenizer_json(vocabulary))


_GGUF_WORDS = (
    b"GGUF", b"general.alignment", b"general.architecture", b"split.no", b"split.count",
    b"split.tensors.count", b"tokenizer.ggml.model", b"tokenizer.ggml.tokens", b"llama", b"grok",
    b"tokenizer.ggml.scores", b"tokenizer.ggml.token_type", b"grok.block_count",
    b"\x09\0\0\0\x08\0\0\0", b"\xff\xff\xff\xff\xff\xff\xff\x7f", b"\0\0\0\0\0\0\0\x80",
)  # fmt: skip
_SAFETENSORS_WORDS = (
    b'"dtype"', b'"shape"', b'"data_offsets"', b'"__metadata__"', b'"weightcast"', b'"F32"',
    b'"I32"', b'"U8"', b'"I64"', b'"BF16"', b'"F8_E4M3"', b'"F16"', b".weight_packed",
    b".weight_scale", b".weight_shape", b".weight_zero_point", b".weight_global_scale", b".qweight",
    b".qzeros", b".scales", b".g_idx", b".codes", b".zero_points", b".weight",
)  # fmt: skip
_DIRECTORY_WORDS = (
    *_SAFETENSORS_WORDS, b"\n=== config.json ===\n", b"\n=== model.safetensors ===\n",
    b"\n=== model.safetensors.index.json ===\n", b'"weight_map"', b'"quantization_config"',
    b'"quant_method"', b'"compressed-tensors"', b'"gptq"', b'"gptq_v2"', b'"awq"',
    b'"config_groups"', b'"block_structure"', b'"checkpoint_format"', b'"dynamic"', b'"sym"',
    b'"bits"', b'"group_size"', b"../", b"/etc/passwd",
)  # fmt: skip
_PICKLE_WORDS = (
    b"cnumpy\nndarray\n", b"cnumpy\ndtype\n", b"cnumpy._core.multiarray\n_reconstruct\n",
    b"cnumpy._core.numeric\n_frombuffer\n", b"c__main__\nQuantizedWeight8bit\n",
    b"c_codecs\nencode\n",
    b"cjax._src.array\n_reconstruct_array\n", b"cml_dtypes\nbfloat16\n", b"cbuiltins\nbytes\n",
    b"X\x06\0\0\0latin1", b"X\x02\0\0\0f4", b"\x8c\x06weight", b"\x8c\x06scales",
)  # fmt: skip
_TORCH_WORDS = (
    b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07", b"archive/data.pkl",
    b"archive/data/0", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n",
    b"ctorch\nBFloat16Storage\n", b"ccollections\nOrderedDict\n", b"Q", b"tR",
    b"X\x07\0\0\0storage",
)  # fmt: skip
_TORRENT_WORDS = (
    b"4:info", b"6:pieces", b"12:piece length", b"5:files", b"6:length", b"4:path", b"4:name",
    b"4:attr", b"1:p", b"i0e", b"i-1e", b"le", b"de", b"2:..",
)  # fmt: skip
_REPORT_WORDS = (
    b'"format"', b'"weightcast-report"', b'"outputs"', b'"tensors"', b'"metrics"', b'"experts"',
    b'"histogram"', b'"weighted"', b'"largest_at"', b"null", b"1e999", b"-1", b'"\\ud800"',
)  # fmt: skip

_JOURNAL_WORDS = tuple(
    f'"{word}"'.encode()
    for word in ("journal", "settings", "rows", "counts", "writes", "errors", "baseline", "values")
)
_FINGERPRINT = {
    "version": "1",
    "type": "Q8_0",
    "options": {},
    "extras": {},
    "source": {},
    "files": [],
}
TARGETS = {
    "pickle": Target(_pickle, 2048, _PICKLE_WORDS),
    "shards": Target(_shards, 512, (b"tensor00000_000", b".incomplete", b"_001")),
    "gguf": Target(_gguf, 4096, _GGUF_WORDS),
    "gguf_split": Target(_gguf_split, 4096, (*_GGUF_WORDS, b"\n=== m-00002-of-00002.gguf ===\n")),
    "convert": Target(_convert, 4096, _GGUF_WORDS),
    "safetensors": Target(_safetensors, 4096, _SAFETENSORS_WORDS),
    "directory": Target(_directory, 8192, _DIRECTORY_WORDS, has_json=True),
    "grok1_directory": Target(_grok1_directory, 16384, _DIRECTORY_WORDS, has_json=True),
    "verify": Target(
        _verify,
        16384,
        (*_DIRECTORY_WORDS, *_GGUF_WORDS, b"\n=== SHA256SUMS ===\n", b"tensors.json"),
        has_json=True,
    ),
    "imatrix": Target(_imatrix, 4096, (*_GGUF_WORDS, b".in_sum2", b".counts", b"imatrix.datasets")),
    "kl_base": Target(_kl_base, 1024, (b"_logits_",)),
    "recipe": Target(_recipe, 2048, (b"base", b"[[rule]]", b"pattern", b"type", b'"""', b"Q4_K_M")),
    "spec": Target(_spec, 2048, tuple(f'"{key}"'.encode() for key in RELEASE), has_json=True),
    "report": Target(_report, 16384, _REPORT_WORDS, has_json=True),
    "journal": Target(_journal, 4096, _JOURNAL_WORDS, has_json=True),
    "torch": Target(_torch, 4096, _TORCH_WORDS),
    "torrent": Target(_torrent, 2048, _TORRENT_WORDS),
    "tokenizer": Target(_tokenizer, 4096, (b"\x0a", b"\x12", b"\x1a", b"<unk>")),
}
