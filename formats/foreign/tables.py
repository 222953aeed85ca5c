"""What files begin with, hold, or are called, and what to do about each: the facts, as tables.

Remedies are templates: {path} is the path, {stem} its last part without the ending, {folder} the
directory that it is or lies in, and {joined} a file called like that, all quoted for a shell;
{tokenizer}, {imatrix} and so on are options. They are for a model to be read;
where something else is wanted, that says what to give. Sources: the formats' own specifications;
ggml's magic numbers are in llama.h of llama.cpp (until 2023) and in whisper.cpp.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

# Kinds of files that a reader of another kind may be given.
Kind = Literal[
    "gguf",
    "safetensors",
    "zip",
    "torrent",
    "sentencepiece",
    "report",
    "evaluation",
    "spec",
    "imatrix",
    "other",
]


@dataclass(frozen=True, slots=True)
class Entry:
    """A kind of file: what it is, and what to do with it where a model is wanted."""

    what: str
    remedy: str = ""
    kind: Kind = "other"


@dataclass(frozen=True, slots=True)
class Mark:
    """Bytes at an offset that tell what a file is."""

    pattern: bytes
    entry: Entry
    offset: int = 0


def _archive(pattern: bytes, what: str, command: str, offset: int = 0) -> Mark:
    kind: Kind = "zip" if pattern.startswith(b"PK") else "other"
    return Mark(pattern, Entry(what, f"unpack it first ({command})", kind), offset)


ARCHIVES: Final = (
    _archive(b"PK\x03\x04", "a zip archive", "unzip {path}"),
    _archive(b"\x1f\x8b", "compressed with gzip", "gunzip -k {path}"),
    _archive(b"\x28\xb5\x2f\xfd", "compressed with zstd", "zstd -d {path}"),
    _archive(b"\xfd7zXZ\0", "compressed with xz", "xz -dk {path}"),
    _archive(b"BZh", "compressed with bzip2", "bunzip2 -k {path}"),
    _archive(b"\x04\x22\x4d\x18", "compressed with lz4", "lz4 -d {path}"),
    _archive(b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "7z x {path}"),
    _archive(b"Rar!\x1a\x07", "a RAR archive", "unrar x {path}"),
    _archive(b"ustar", "a tar archive", "tar -xf {path}", offset=257),
    _archive(b"MZqFpD", "a llamafile", "unzip {path} '*.gguf'"),
    _archive(b"# v2 git bundle", "a bundle of git", "git clone {path}"),
)
# Compressed archives, by name: one command takes all of them apart.
TARRED: Final = re.compile(r".*\.(tar\.\w{1,4}|tgz|tzst|txz|tbz2?)", re.IGNORECASE)
TAR: Final = Entry("a compressed tar archive", "unpack it first (tar -xf {path})")

_ORIGINAL: Final = "make a GGUF file from the original weights with llama.cpp"
_SAVE: Final = "save its tensors as safetensors first"
_OTHERS: Final = "take the model's safetensors or GGUF files"
_NO_MODEL: Final = "name the model's file or directory"
_SD_CPP: Final = "stable-diffusion.cpp makes GGUF files of such"
TORCH: Final = Entry("a checkpoint of PyTorch", "rename it to {stem}.bin")

# Models of other programs, told by a file, by names in a directory, or by both.
ADAPTER: Final = Entry(
    "an adapter (LoRA), not a model",
    "merge it into its base model first (merge_and_unload of peft), and use what that saves",
)
DIFFUSION: Final = Entry("weights of a diffusion model, not of a language model", _SD_CPP)
DIFFUSERS: Final = Entry("a pipeline of diffusers, not a language model", _SD_CPP)
ORBAX: Final = Entry(
    "a checkpoint of Orbax (JAX), which is not read yet",
    "save its arrays as safetensors, or take the model's GGUF files",
)
T5X: Final = Entry("a checkpoint of T5X (JAX)", _OTHERS)
FLAX: Final = Entry("weights of Flax (msgpack), which are not read yet", _OTHERS)
DISTCP: Final = Entry(
    "a distributed checkpoint of PyTorch",
    "join it first (python -m torch.distributed.checkpoint.format_utils dcp_to_torch {folder} "
    "{joined}.bin)",
)
DEEPSPEED: Final = Entry("a checkpoint of DeepSpeed", "join it first (python {file} {path} OUT)")
MEGATRON: Final = Entry(
    "a checkpoint of Megatron", "convert it to a Hugging Face directory with Megatron's tools"
)
CONSOLIDATED: Final = Entry(
    "weights in the layout of Meta and Mistral", "take the model's Hugging Face directory"
)
SAVED_MODEL: Final = Entry("a SavedModel of TensorFlow", _OTHERS)
TENSORFLOW: Final = Entry("a checkpoint of TensorFlow", _OTHERS)
KERAS: Final = Entry("weights of Keras or TensorFlow", _OTHERS)
ONNX: Final = Entry("an ONNX model", _OTHERS)
OPENVINO: Final = Entry("an OpenVINO model", _OTHERS)
TENSORRT: Final = Entry("an engine of TensorRT", _OTHERS)
CTRANSLATE2: Final = Entry("a CTranslate2 model", _OTHERS)
PADDLE: Final = Entry("weights of PaddlePaddle", _OTHERS)
OLLAMA: Final = Entry(
    "ollama's store of models",
    "name a model's file in {path}/blobs (`ollama show --modelfile MODEL` says which)",
)

FORMATS: Final = (
    Mark(b"GGUF", Entry("a GGUF file", "rename it to {stem}.gguf", "gguf")),
    Mark(
        b"lmgg",
        Entry(
            "a ggml file from before GGUF, such as whisper.cpp's",
            f"whisper.cpp quantizes its own; otherwise {_ORIGINAL}",
        ),
    ),
    Mark(b"fmgg", Entry("a ggml file from before GGUF (ggmf)", _ORIGINAL)),
    Mark(
        b"tjgg",
        Entry(
            "a ggml file from before GGUF (ggjt)",
            f"{_ORIGINAL}, or of this one with its convert_llama_ggml_to_gguf.py",
        ),
    ),
    Mark(b"ccgg", Entry("a ggml file from before GGUF, of Falcon (ggcc)", _ORIGINAL)),
    Mark(b"algg", Entry("a LoRA adapter from before GGUF (ggla)", _ORIGINAL)),
    Mark(b"nsgg", Entry("a saved session of llama.cpp", _NO_MODEL)),
    Mark(b"qsgg", Entry("a saved state of llama.cpp", _NO_MODEL)),
    Mark(
        b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19",
        Entry(
            "a checkpoint as PyTorch wrote it before 1.6",
            "save it again with PyTorch: torch.save(torch.load(OLD, weights_only=True), NEW)",
        ),
    ),
    Mark(b"\x93NUMPY", Entry("an array of NumPy", _SAVE)),
    Mark(b"\x89HDF\r\n\x1a\n", Entry("an HDF5 file, as of Keras and TensorFlow", _OTHERS)),
    Mark(b"TFL3", Entry("a TensorFlow Lite model", _OTHERS), offset=4),
    Mark(b"PAR1", Entry("a Parquet file", _NO_MODEL)),
    Mark(b"ARROW1", Entry("an Arrow file", _NO_MODEL)),
    Mark(b"SQLite format 3\0", Entry("an SQLite database", _NO_MODEL)),
    Mark(b"%PDF-", Entry("a PDF document", _NO_MODEL)),
    Mark(b"\x89PNG\r\n", Entry("a picture", _NO_MODEL)),
    Mark(b"\xff\xd8\xff", Entry("a picture", _NO_MODEL)),
    Mark(b"\x7fELF", Entry("a program or library", _NO_MODEL)),
    Mark(b"MZ", Entry("a program or library", _NO_MODEL)),
)
SAFETENSORS: Final = Entry(
    "a safetensors file",
    "rename it to {stem}.safetensors, beside the model's config.json",
    "safetensors",
)
TORRENT: Final = Entry(
    "a torrent, not what it downloads",
    "download that (aria2c --seed-time=0 {path}), and give the directory",
    "torrent",
)
SENTENCEPIECE: Final = Entry(
    "a SentencePiece tokenizer",
    "give the model, and this file as {tokenizer}",
    "sentencepiece",
)
OLD_IMATRIX: Final = Entry(
    "an importance matrix of llama.cpp", "give the model, and this file as {imatrix}", "imatrix"
)
TORCHSCRIPT: Final = Entry("a TorchScript archive", _SAVE)
PICKLE: Final = Entry("a Python pickle", _SAVE)

# What a zip archive is, by the name of a file in it, mostly the first.
ZIPPED: Final = (
    (re.compile(rb"[^/]+/(constants\.pkl|code/.*)"), TORCHSCRIPT),
    (re.compile(rb"[^/]+/(data\.pkl|byteorder|\.format_version)"), TORCH),
    (re.compile(rb".*\.npy"), Entry("arrays of NumPy (.npz)", _SAVE)),
    (re.compile(rb"(metadata\.json|model\.weights\.h5)"), KERAS),
)

# What files are by their names, where bytes tell nothing.
NAMES: Final = tuple(
    (re.compile(pattern, re.IGNORECASE), entry)
    for pattern, entry in (
        (r".*\.onnx(_data)?", ONNX),
        (r".*\.pb", Entry("a TensorFlow graph", _OTHERS)),
        (r".*\.data-\d{5}-of-\d{5}|.*\.ckpt\.(index|meta)", TENSORFLOW),
        (r".*\.msgpack", FLAX),
        (r".*\.(engine|plan)", TENSORRT),
        (r".*\.mlmodel", Entry("a Core ML model", _OTHERS)),
        (r".*\.pte", Entry("an ExecuTorch program", _OTHERS)),
        (r".*\.pdparams", PADDLE),
        (r".*\.distcp", Entry(f"a part of {DISTCP.what}", DISTCP.remedy)),
        (r"Modelfile.*", Entry("a Modelfile of ollama", "give the file that its FROM names")),
        (
            r".*\.toml",
            Entry("a recipe or another text", "give the model, and a recipe as {recipe}"),
        ),
        (r".*\.(md|txt|rst|log|py|sh|ya?ml|ipynb|sha\d{3})|SHA256SUMS", Entry("a text", _NO_MODEL)),
    )
)


@dataclass(frozen=True, slots=True)
class Marker:
    """Names that tell a kind of directory, all of which are there; {file} is the first of them."""

    names: tuple[re.Pattern[str], ...]
    entry: Entry


# What directories are, by names in them, one pattern a word: the first of which all are there.
DIRECTORIES: Final = tuple(
    Marker(tuple(map(re.compile, names.split())), entry)
    for names, entry in (
        (r"model_index\.json", DIFFUSERS),
        (r"_CHECKPOINT_METADATA|_METADATA|manifest\.ocdbt|orbax\.checkpoint", ORBAX),
        (r"checkpoint target\..*", T5X),
        (r".*\.distcp", DISTCP),
        (r"zero_to_fp32\.py", DEEPSPEED),
        (r"latest_checkpointed_iteration\.txt|iter_\d{7}|mp_rank_\d.*", MEGATRON),
        (r"consolidated.*\.(pth|safetensors) params\.json", CONSOLIDATED),
        (r"saved_model\.pb", SAVED_MODEL),
        (r"checkpoint|.*\.data-\d{5}-of-\d{5} .*\.index", TENSORFLOW),
        (r".*\.(h5|keras)", KERAS),
        (r".*\.msgpack", FLAX),
        (r".*\.onnx|onnx", ONNX),
        (r"openvino_model\.xml", OPENVINO),
        (r"rank\d+\.engine", TENSORRT),
        (r"(shared_)?vocabulary\.(json|txt) model\.bin", CTRANSLATE2),
        (r".*\.pdparams", PADDLE),
        (r"manifests blobs", OLLAMA),
    )
)

# What tensors belong to, by the beginning of a name.
TENSORS: Final = (
    (re.compile(r"model\.diffusion_model\.|first_stage_model\.|double_blocks\."), DIFFUSION),
    (re.compile(r"(.*\.)?lora_([AB]|up|down|unet|te\d?)(\.|_)"), ADAPTER),
)

_ITS_DIRECTORY: Final = "give the directory that it lies in"
_HF_TOKENIZER: Final = Entry("a tokenizer of Hugging Face", _NO_MODEL)
# What a JSON object is, by keys among its first bytes: the first of which all are there.
JSON_KEYS: Final = (
    (
        {"format=weightcast-report"},
        Entry(
            "an error report of weightcast",
            "name the model, or show the report (weightcast report {path} {stem}.html)",
            "report",
        ),
    ),
    (
        {"format=weightcast.evaluation"},
        Entry("an evaluation of weightcast", "name the model that it is of", "evaluation"),
    ),
    ({"predicateType"}, Entry("a statement of provenance", _NO_MODEL)),
    ({"weight_map"}, Entry("an index of weights", _ITS_DIRECTORY)),
    ({"schemaVersion", "layers"}, Entry("a manifest of ollama", _NO_MODEL)),
    ({"peft_type"}, Entry("the configuration of an adapter", _ITS_DIRECTORY)),
    ({"_diffusers_version"}, Entry("the configuration of a diffusion model", _ITS_DIRECTORY)),
    ({"added_tokens", "truncation"}, _HF_TOKENIZER),
    ({"added_tokens", "normalizer"}, _HF_TOKENIZER),
    ({"regular_tokens"}, Entry("a tokenizer of tiktoken, as Grok-2's", _NO_MODEL)),
    ({"tokenizer_class"}, Entry("the configuration of a tokenizer", _NO_MODEL)),
    ({"model_type"}, Entry("the config.json of a model", _ITS_DIRECTORY)),
    ({"architectures"}, Entry("the config.json of a model", _ITS_DIRECTORY)),
    (
        {"emb_size", "widening_factor"},
        Entry(
            "a specification", "give the directory of the shards, and this file as {spec}", "spec"
        ),
    ),
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a reader reads: in words, what to give, and which kinds of files it judges by itself.

    `usual` is what such a file is called in a directory. Where `is_any_json`, the reader reads all
    kinds of JSON, and what cannot be parsed is told by no key in it.
    """

    what: str
    remedy: str
    kinds: frozenset[Kind] = frozenset()
    is_model: bool = False
    usual: str = ""
    is_any_json: bool = False


_A_SOURCE: Final = "give a ckpt-0 directory, a .gguf, .safetensors or .bin file"
WANTED: Final = {
    "checkpoint": Wanted("a checkpoint", _A_SOURCE, is_model=True),
    "gguf": Wanted("a GGUF file", _A_SOURCE, frozenset({"gguf"}), is_model=True),
    "safetensors": Wanted(
        "a safetensors file", _A_SOURCE, frozenset({"safetensors"}), is_model=True
    ),
    "torch": Wanted("a file of PyTorch", _A_SOURCE, frozenset({"zip"}), is_model=True),
    "shard": Wanted("a shard", "download the shard again"),
    "tokenizer": Wanted(
        "a SentencePiece model",
        "give the release's tokenizer.model",
        frozenset({"sentencepiece"}),
        usual="tokenizer.model",
    ),
    "imatrix": Wanted(
        "an importance matrix",
        "make one (weightcast imatrix SRC TEXT -o FILE)",
        frozenset({"gguf", "imatrix"}),
    ),
    "recipe": Wanted("a recipe", "write one in TOML: base and [[rule]] tables"),
    "spec": Wanted(
        "a specification",
        "give JSON with the keys of spec.json",
        frozenset({"spec"}),
        usual="spec.json",
    ),
    "sensitivities": Wanted(
        "sensitivities", "give what each tensor of the model costs in each type, in JSON"
    ),
    "json": Wanted("JSON", "download the file again", is_any_json=True),
    "report": Wanted(
        "an error report", "give what a conversion wrote for {report}", frozenset({"report"})
    ),
    "evaluation": Wanted(
        "an evaluation", "give the .json file that evaluate wrote", frozenset({"evaluation"})
    ),
    "torrent": Wanted("a torrent", "download the torrent again", frozenset({"torrent"})),
}
# What models are mostly called.
SOURCE_NAMES: Final = re.compile(r".*\.(gguf|safetensors|bin)|ckpt(-\d+)?")
