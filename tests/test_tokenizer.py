"""Any text round-trips; no text becomes a special token; training is bounded, repeatable and copes with any corpus."""

from __future__ import annotations

import logging
import random
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omni.errors import CheckpointError, ConfigError, DataError
from omni.tokenizer import MIN_VOCABULARY, SPECIAL_TOKENS, BPETokenizer, train_tokenizer

AWKWARD = [
    "",
    " ",
    "  two  spaces  ",
    "\n\r\n\ttabs\u2028and lines\n",
    "naïve café 東京 한국어 🙂👩‍👩‍👧",
    "\x00\x01\x7f\ufeff\u200b",
    "▁ ▁▁ \u2585 <0x41> <s></s> ⁇ ",
    *SPECIAL_TOKENS,
    "".join(SPECIAL_TOKENS),
]


def corpus(n: int, seed: int = 0) -> Iterator[str]:
    """`n` lines over 500 words."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(1, 8))) for _ in range(500)]
    return (" ".join(rng.choices(words, k=8)) + "." for _ in range(n))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> BPETokenizer:
    return train_tokenizer(corpus(500), 500, tmp_path_factory.mktemp("tokenizer") / "tokenizer.model")


@pytest.mark.parametrize("text", AWKWARD)
def test_awkward_text_round_trips_without_special_ids(tokenizer: BPETokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(i >= len(SPECIAL_TOKENS) for i in ids)


@settings(max_examples=300, deadline=None)
@given(st.text() | st.lists(st.sampled_from([*AWKWARD, "tea ", " ", "\n"])).map("".join))
def test_every_text_round_trips(tokenizer: BPETokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text == "".join(tokenizer.pieces(ids))
    assert all(len(SPECIAL_TOKENS) <= i < tokenizer.vocab_size for i in ids)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_pieces_of_any_ids_join_to_their_decoding(tokenizer: BPETokenizer, data: st.DataObject) -> None:
    """Also for broken UTF-8, which only a model writes, and with special tokens among them."""
    of_bytes = st.integers(len(SPECIAL_TOKENS), len(SPECIAL_TOKENS) + 255)
    ids = data.draw(st.lists(of_bytes | st.integers(0, tokenizer.vocab_size - 1), max_size=12))
    pieces = tokenizer.pieces(ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == tokenizer.decode(ids)


def test_a_character_of_several_bytes_belongs_to_the_piece_that_completes_it(tokenizer: BPETokenizer) -> None:
    ids = tokenizer.encode("é🙂")
    assert len(ids) == 6
    assert tokenizer.pieces(ids) == ["", "é", "", "", "", "🙂"]


def test_special_tokens_have_their_ids_by_name(tokenizer: BPETokenizer) -> None:
    assert [tokenizer.token_id(name) for name in SPECIAL_TOKENS] == list(range(len(SPECIAL_TOKENS)))
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id) == (0, 1, 2, 3)
    assert tokenizer.end_id == tokenizer.token_id("<|end|>")
    assert tokenizer.media_id == tokenizer.token_id("<|media|>")
    assert tokenizer.decode(range(len(SPECIAL_TOKENS))) == ""


def test_common_words_are_single_pieces(tokenizer: BPETokenizer) -> None:
    text = next(corpus(1))
    assert len(tokenizer.encode(text)) < len(text) / 1.5


def test_a_lone_surrogate_is_refused_with_its_place(tokenizer: BPETokenizer) -> None:
    with pytest.raises(DataError, match="position 2: a lone surrogate"):
        tokenizer.encode("ab\ud800")


def test_the_saved_file_is_the_same_tokenizer(tokenizer: BPETokenizer, tmp_path: Path) -> None:
    path = tmp_path / "copy.model"
    path.write_bytes(tokenizer.serialized)
    assert BPETokenizer(path).encode("the tea") == tokenizer.encode("the tea")


def test_training_is_repeatable_and_follows_its_seed(tmp_path: Path) -> None:
    def trained(seed: int) -> bytes:
        return train_tokenizer(corpus(400), 400, tmp_path / "t.model", max_sentences=40, seed=seed).serialized

    assert trained(0) == trained(0) != trained(1)
    assert [file.name for file in tmp_path.iterdir()] == ["t.model"]


def test_a_small_corpus_gives_a_smaller_vocabulary_and_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "omni.tokenizer"):
        tokenizer = train_tokenizer(["abab"], 5000, tmp_path / "t.model")
    assert tokenizer.vocab_size < 300
    assert f"fills a vocabulary of {tokenizer.vocab_size} pieces, not 5000" in caplog.text
    assert tokenizer.decode(tokenizer.encode("a  b ")) == "a  b "  # though the corpus has no space


@pytest.mark.parametrize(
    "texts",
    [
        ["".join(map(chr, range(0x4E00, 0x4E00 + 3000)))],  # more characters than the vocabulary has room for
        ["x" * 50_000],
        ["bad \ud800 half", "nul \0 here"],
        ["\u2585\u2585 blocks \u2581"],
    ],
)
@pytest.mark.parametrize("vocab_size", [MIN_VOCABULARY, 400])
def test_any_corpus_trains_and_round_trips(tmp_path: Path, texts: list[str], vocab_size: int) -> None:
    tokenizer = train_tokenizer(texts, vocab_size, tmp_path / "t.model")
    assert tokenizer.vocab_size <= vocab_size
    for text in AWKWARD:
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("texts", [[], [""], [" \n\t"], ["\u2585"]])
def test_an_empty_corpus_is_an_error(tmp_path: Path, texts: list[str]) -> None:
    with pytest.raises(DataError, match="is empty"):
        train_tokenizer(texts, 400, tmp_path / "t.model")


def test_too_small_a_vocabulary_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"the smallest is {MIN_VOCABULARY}"):
        train_tokenizer(["a"], MIN_VOCABULARY - 1, tmp_path / "t.model")


def test_what_is_no_tokenizer_is_named(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    with pytest.raises(CheckpointError, match="no such tokenizer"):
        BPETokenizer(path)
    for garbage in (b"", b"not a model"):
        path.write_bytes(garbage)
        with pytest.raises(CheckpointError, match=r"tokenizer\.model: not a SentencePiece model"):
            BPETokenizer(path)


def test_training_memory_does_not_grow_with_the_stream(tmp_path: Path) -> None:
    def peak_bytes(n: int) -> int:
        tracemalloc.start()
        train_tokenizer(corpus(n), 400, tmp_path / "t.model", max_sentences=200)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    assert peak_bytes(20_000) < 1.2 * peak_bytes(2_000)
