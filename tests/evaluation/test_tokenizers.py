"""Tokens of a text, one by one those of llama.cpp itself."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor

import weightcast
from tests.evaluation.vocabularies import (
    BYTE,
    CONTROL,
    NORMAL,
    TEXTS,
    TRAINING,
    USER_DEFINED,
    pieces,
    trained_bpe,
    write_vocabulary,
)
from weightcast.commands.llama_cpp import loaded
from weightcast.errors import (
    CheckpointError,
    FormatError,
    LayoutError,
    MissingPackageError,
    MissingTensorError,
)
from weightcast.evaluation.tokenizers import Tokenizer, open_tokenizer
from weightcast.evaluation.tokenizers.bpe import WORDS

Tokenize = Callable[[str], list[int]]
Pair = tuple[Tokenizer, Tokenize]
# Characters that vocabularies split at, merge or have no token for, and whole tokens.
ALPHABET = [*"abcrsTW  \n\t'.,<>|/0123\u2581\xe9\u65e5\u0301\xa0\r_-", "the ", "<s>", "<|a|>", "  "]
texts = st.one_of(st.lists(st.sampled_from(ALPHABET), max_size=60).map("".join), st.text())


def both(path: Path) -> Iterator[Pair]:
    """Our tokenizer of a file, and llama.cpp's."""
    with loaded(path) as model:
        yield open_tokenizer(path), lambda text: model.tokenize(text, special=True)


def spm_file(path: Path, model: Path, **more: object) -> Path:
    """A file of SentencePiece pieces, two of which are whole tokens, and one looks like control."""
    tokens, scores, types = pieces(model)
    for text in ("<|a|>", "<|b|>", "<|a|>x", "<end_of_turn>", "  "):
        tokens.append(text)
        scores.append(0.0)
        types.append(USER_DEFINED)
    return write_vocabulary(path, "llama", tokens, types, scores=scores, **more)  # type: ignore


@pytest.fixture(scope="module", params=[{}, {"add_bos_token": False, "add_space_prefix": False}])
def spm(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tokenizer_model: Path
) -> Iterator[Pair]:
    path = tmp_path_factory.mktemp("spm") / "m.gguf"
    yield from both(spm_file(path, tokenizer_model, flags=request.param))


@pytest.fixture(scope="module", params=["gpt-2", "smollm", "llama-bpe", "dbrx", "glm4", "qwen2"])
def bpe(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    tokens, merges = trained_bpe()
    # A whole word that no merges make, special tokens and what looks like one.
    added = {"\u0120seventeen": NORMAL, "<s>": CONTROL, "<|a|>": USER_DEFINED, "  ": USER_DEFINED}
    added |= {"<|im_end|>": USER_DEFINED, "<|channel|>": CONTROL}
    types = [NORMAL] * len(tokens) + list(added.values())
    path = write_vocabulary(
        tmp_path_factory.mktemp("bpe") / "m.gguf",
        "gpt2",
        [*tokens, *added],
        types,
        merges=merges,
        pre=request.param,
        ids={"bos_token_id": len(tokens) + 1, "eos_token_id": len(tokens) + 1},
    )
    yield from both(path)


@pytest.mark.parametrize("text", TEXTS)
def test_spm_texts(spm: Pair, text: str) -> None:
    assert spm[0].encode(text).tolist() == spm[1](text)


@given(text=texts)
def test_spm_any_text(spm: Pair, text: str) -> None:
    assert spm[0].encode(text).tolist() == spm[1](text)


@pytest.mark.parametrize("text", [*TEXTS, " seventeen seventeen\n", "<|channel|>x"])
def test_bpe_texts(bpe: Pair, text: str) -> None:
    assert bpe[0].encode(text).tolist() == bpe[1](text)


@given(text=texts)
def test_bpe_any_text(bpe: Pair, text: str) -> None:
    assert bpe[0].encode(text).tolist() == bpe[1](text)


def test_ends_that_are_added(tmp_path: Path, tokenizer_model: Path) -> None:
    """BOS is 1 and EOS 2 where the metadata of a SentencePiece vocabulary name none."""
    path = spm_file(tmp_path / "m.gguf", tokenizer_model, flags={"add_eos_token": True})
    tokenizer = open_tokenizer(path)
    with loaded(path) as model:
        expected = model.tokenize("a b", special=True)
    assert tokenizer.encode("a b").tolist() == expected
    assert (tokenizer.bos, expected[0], expected[-1]) == (1, 1, 2)
    assert tokenizer.encode("").tolist() == [1, 2]


def test_a_checkpoint_and_what_is_made_of_it_have_the_same_tokens(
    tiny: Path, tokenizer_model: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(tiny, source)
    shutil.copy(tokenizer_model, source / "tokenizer.model")
    weightcast.convert(source, [tmp_path / "m-Q8_0.gguf", tmp_path / "m-bf16"])
    found = [
        open_tokenizer(source),
        open_tokenizer(tmp_path / "m-Q8_0.gguf"),
        open_tokenizer(tmp_path / "m-bf16"),
        open_tokenizer(tiny, tokenizer_model),
        open_tokenizer(source, tmp_path / "m-Q8_0.gguf"),
        open_tokenizer(source, tmp_path / "m-bf16" / "tokenizer.json"),
    ]
    processor = SentencePieceProcessor(model_file=str(tokenizer_model))
    for text in ("bal bat  dem\n", "\xe9 x", TRAINING):
        expected = processor.EncodeAsIds(text)
        for tokenizer in found:
            assert tokenizer.bos is None
            assert tokenizer.encode(text).tolist() == expected


def test_ids_are_int32(tiny: Path, tokenizer_model: Path) -> None:
    assert open_tokenizer(tiny, tokenizer_model).encode("bal").dtype == np.int32


def test_a_configuration_asks_for_bos(tokenizer_model: Path, tmp_path: Path) -> None:
    shutil.copy(tokenizer_model, tmp_path / "tokenizer.model")
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": true}')
    tokenizer = open_tokenizer(tmp_path, tmp_path / "tokenizer.model")
    bos = SentencePieceProcessor(model_file=str(tokenizer_model)).bos_id()
    assert (tokenizer.bos, tokenizer.encode("bal")[0]) == (bos, bos)


def test_a_json_that_adds_bos_and_cuts(tmp_path: Path) -> None:
    """Special tokens in a text are plain, and nothing is cut or padded."""
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.processors import TemplateProcessing

    tokens, merges = trained_bpe()
    pairs = [tuple(merge.split(" ")) for merge in merges]
    made = Tokenizer(BPE({token: n for n, token in enumerate(tokens)}, pairs))
    made.pre_tokenizer = ByteLevel(add_prefix_space=False)
    made.add_special_tokens(["<s>"])
    bos = made.token_to_id("<s>")
    made.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    made.enable_truncation(4)
    made.enable_padding(length=9)
    made.save(str(tmp_path / "tokenizer.json"))
    tokenizer = open_tokenizer(tmp_path, tmp_path / "tokenizer.json")
    found = tokenizer.encode("<s> the seventeen").tolist()
    assert (tokenizer.bos, found[0], found.count(bos)) == (bos, bos, 1)
    assert len(found) > 9


def test_bytes_without_a_piece(tmp_path: Path) -> None:
    tokens = ["<unk>", "<s>", "</s>", "\u2581", "a", "<0x62>"]
    types = [2, 3, 3, NORMAL, NORMAL, BYTE]
    path = write_vocabulary(tmp_path / "m.gguf", "llama", tokens, types, scores=[0.0] * 6)
    tokenizer = open_tokenizer(path)
    assert tokenizer.encode("ab").tolist() == [1, 3, 4, 5]
    with pytest.raises(LayoutError, match="no piece for the byte <0x63> of the text"):
        tokenizer.encode("abc")


def test_empty_pieces_are_named_as_in_llama_cpp(tmp_path: Path) -> None:
    tokens = ["<unk>", "<s>", "</s>", "", "a", "\u2581", *(f"<0x{n:02X}>" for n in range(256))]
    types = [2, 3, 3, NORMAL, NORMAL, NORMAL, *[BYTE] * 256]
    path = write_vocabulary(tmp_path / "m.gguf", "llama", tokens, types, scores=[0.0] * len(types))
    with loaded(path) as model:
        expected = model.tokenize("a [EMPTY_3]", special=True)
    assert open_tokenizer(path).encode("a [EMPTY_3]").tolist() == expected


def test_pieces_that_make_no_tokenizer(tmp_path: Path) -> None:
    path = write_vocabulary(tmp_path / "m.gguf", "llama", ["a", "a"], [1, 1], scores=[0.0, 0.0])
    with pytest.raises(FormatError, match=r"m\.gguf: its pieces make no tokenizer: .*a.*defined"):
        open_tokenizer(path)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"pre": "gemma4"},
            "words cut as in 'gemma4', which is not known; give llama.cpp's token ids",
        ),
        ({"model": "t5"}, "tokenizer 't5' that weightcast could use; give llama.cpp's token ids"),
        (
            {"model": "no_vocab"},
            "no tokenizer that weightcast could use; give llama.cpp's token ids",
        ),
        ({"flags": {"add_bos_token": True}}, "BOS is added to a text, but bos_token_id is None"),
        (
            {"flags": {"add_eos_token": True}, "ids": {"eos_token_id": 10**6}},
            "EOS is added to a text, but eos_token_id is 1000000",
        ),
        ({"merges": None}, "tokenizer.ggml.merges is not a list of texts"),
        ({"types": [1]}, "tokenizer.ggml.token_type is not a number for each token"),
    ],
)
def test_vocabularies_that_cannot_be_used(
    tmp_path: Path, changes: dict[str, object], problem: str
) -> None:
    tokens, merges = trained_bpe(270)
    given = {
        "model": "gpt2",
        "tokens": tokens,
        "types": [NORMAL] * len(tokens),
        "merges": merges,
        "pre": "gpt-2",
        **changes,
    }
    path = write_vocabulary(tmp_path / "m.gguf", **given)  # type: ignore
    with pytest.raises(FormatError) as caught:
        open_tokenizer(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert problem in str(caught.value)


def test_merges_of_unknown_tokens_are_passed_over(tmp_path: Path) -> None:
    """llama.cpp does not look whether the vocabulary has what merges make."""
    tokens, merges = trained_bpe(300)
    merges[3:3] = ["zz qq", "no", "a\u0100 b", "Q Q"]
    path = write_vocabulary(
        tmp_path / "m.gguf", "gpt2", tokens, [1] * len(tokens), merges=merges, pre="qwen2"
    )
    found = open_tokenizer(path)
    with loaded(path) as model:
        for text in TEXTS:
            assert found.encode(text).tolist() == model.tokenize(text, special=True)


def test_every_way_to_cut_words_is_known_to_llama_cpp(tmp_path: Path) -> None:
    tokens, merges = trained_bpe(300)
    text = "don't x1234 I'LL\n\n  y"
    for name in WORDS:
        path = write_vocabulary(
            tmp_path / "m.gguf",
            "gpt2",
            tokens,
            [1] * len(tokens),
            merges=merges,
            pre=name,
            ids={"bos_token_id": 0, "eos_token_id": 0},
        )
        with loaded(path) as model:
            assert open_tokenizer(path).encode(text).tolist() == model.tokenize(text, special=True)


def test_no_tokenizer_to_be_found(tmp_path: Path, tiny: Path) -> None:
    folder = tmp_path / "alone"
    shutil.copytree(tiny, folder)
    with pytest.raises(MissingTensorError, match=r"no tokenizer\.model or tokenizer\.json in or"):
        open_tokenizer(folder)
    with pytest.raises(CheckpointError, match=r"absent\.model"):
        open_tokenizer(folder, tmp_path / "absent.model")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(FormatError, match="not a tokenizer of Hugging Face"):
        open_tokenizer(folder, tmp_path / "tokenizer.json")


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, merges = trained_bpe(270)
    path = write_vocabulary(
        tmp_path / "m.gguf", "gpt2", tokens, [1] * len(tokens), merges=merges, pre="gpt-2"
    )
    (tmp_path / "tokenizer.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    for file in (path, tmp_path / "tokenizer.json"):
        with pytest.raises(MissingPackageError, match=f"{file}: .*: pip install tokenizers"):
            open_tokenizer(path, file)
