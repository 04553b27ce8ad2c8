"""Text ↔ ids: SentencePiece BPE (Sennrich et al. 2016; Kudo & Richardson 2018) with byte fallback, so that any text round-trips.

Special tokens are control symbols: they have ids and names, and no text that a user types ever becomes one.
"""

from __future__ import annotations

import codecs
import io
import itertools
import logging
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import sentencepiece

from omni.config import released
from omni.errors import CheckpointError, ConfigError, DataError

log = logging.getLogger(__name__)

PAD, BOS, EOS, UNK = "<pad>", "<bos>", "<eos>", "<unk>"  # ids 0, 1, 2, 3
SYSTEM, USER, ASSISTANT, END = "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"
IMAGE, IMAGE_END, AUDIO, AUDIO_END, MEDIA = "<|image|>", "<|/image|>", "<|audio|>", "<|/audio|>", "<|media|>"
MARKERS = (SYSTEM, USER, ASSISTANT, END, IMAGE, IMAGE_END, AUDIO, AUDIO_END, MEDIA)
SPECIAL_TOKENS = (PAD, BOS, EOS, UNK, *MARKERS)
MIN_VOCABULARY = len(SPECIAL_TOKENS) + 256 + 16  # specials, bytes, and a few characters

_SPACE = "\u2581"  # SentencePiece writes a space as this; where a text holds it (or NUL), that goes through bytes
_RESERVED = (_SPACE, "\u2585")  # SentencePiece drops training lines with the second, its sign for unknown characters, in silence
_COVERAGE = 0.9995  # share of the text's characters that have pieces; the rarest are spelled in bytes
_MAX_LINE_CHARACTERS = 1_000  # SentencePiece drops training lines of more than 4,192 bytes in silence


class BPETokenizer:
    """A trained tokenizer. Raises CheckpointError when the file is missing, no SentencePiece model, or made for other special tokens."""

    def __init__(self, path: str | Path) -> None:
        path = released(path)
        if not path.is_file():
            raise CheckpointError(f"{path}: no such tokenizer; a checkpoint holds one as tokenizer.model")
        self.serialized = path.read_bytes()
        self._model = sentencepiece.SentencePieceProcessor()
        try:
            self._model.LoadFromSerializedProto(self.serialized)
        except RuntimeError:
            raise CheckpointError(f"{path}: not a SentencePiece model") from None
        for index, name in enumerate(SPECIAL_TOKENS):
            if self._model.PieceToId(name) != index:
                raise CheckpointError(
                    f"{path}: special token {name} has id {self._model.PieceToId(name)}, expected {index}; train the tokenizer with muomni"
                )
        self._bytes = [self._piece_bytes(i) for i in range(self.vocab_size)]

    @property
    def vocab_size(self) -> int:
        """V."""
        return self._model.GetPieceSize()

    def token_id(self, name: str) -> int:
        """Id of a special token."""
        return SPECIAL_TOKENS.index(name)

    pad_id, bos_id, eos_id, unk_id = range(4)
    system_id, user_id, assistant_id, end_id, image_id, image_end_id, audio_id, audio_end_id, media_id = range(4, len(SPECIAL_TOKENS))

    def encode(self, text: str) -> list[int]:
        """Ids of `text` as plain characters, without begin-of-sequence. Raises DataError for a lone surrogate (not Unicode text)."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"text position {error.start}: a lone surrogate is not Unicode text; remove it") from None
        ids: list[int] = []
        for part in re.split(f"([{_SPACE}\0])", text):
            ids += [self._byte_id(byte) for byte in part.encode()] if part in (_SPACE, "\0") else self._model.EncodeAsIds(part)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; special tokens are skipped, broken UTF-8 becomes U+FFFD."""
        return b"".join(self._bytes[i] for i in ids).decode("utf-8", errors="replace")

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """What each id spells. A character of several byte pieces belongs to the piece that completes it; joined, this is `decode(ids)`."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        out = [decoder.decode(self._bytes[i]) for i in ids]
        if out:
            out[-1] += decoder.decode(b"", final=True)
        return out

    def _byte_id(self, byte: int) -> int:
        return self._model.PieceToId(f"<0x{byte:02X}>")

    def _piece_bytes(self, index: int) -> bytes:
        if index < len(SPECIAL_TOKENS):
            return b""
        piece = self._model.IdToPiece(index)
        if self._model.IsByte(index):
            return bytes([int(piece[3:-1], 16)])
        return piece.replace(_SPACE, " ").encode()


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, path: str | Path, *, max_sentences: int = 200_000, seed: int = 0
) -> BPETokenizer:
    """Train on a stream and write `path`. Memory is bounded: at most `max_sentences` lines, sampled from the whole stream, are held.

    A corpus too small to fill `vocab_size` gives a smaller vocabulary and a warning. Raises ConfigError below the minimum, DataError
    for an empty corpus.
    """
    if vocab_size < MIN_VOCABULARY:
        raise ConfigError(
            f"vocab_size {vocab_size}: the smallest is {MIN_VOCABULARY} ({len(SPECIAL_TOKENS)} special tokens, 256 bytes, 16 characters)"
        )
    lines = _in_alphabet(_sample(_training_lines(texts), max_sentences, seed), (vocab_size - len(SPECIAL_TOKENS) - 256) // 2)
    if not lines:
        raise DataError("the tokenizer's training text is empty; check the manifests of data.train")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        byte_fallback=True,
        character_coverage=1.0,
        required_chars=_SPACE,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        split_digits=True,
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        pad_piece=PAD,
        bos_piece=BOS,
        eos_piece=EOS,
        unk_piece=UNK,
        control_symbols=list(MARKERS),
        num_threads=1,
        minloglevel=2,
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_bytes(model.getvalue())
    part.replace(path)
    tokenizer = BPETokenizer(path)
    if tokenizer.vocab_size < vocab_size:
        log.warning(
            "the corpus fills a vocabulary of %d pieces, not %d; the model will have %d",
            tokenizer.vocab_size,
            vocab_size,
            tokenizer.vocab_size,
        )
    return tokenizer


def _training_lines(texts: Iterable[str]) -> Iterator[str]:
    """Lines that SentencePiece accepts: not blank, not too long, without NUL or lone surrogates."""
    for text in texts:
        for line in text.replace("\0", " ").encode(errors="ignore").decode().splitlines():
            for start in range(0, len(line), _MAX_LINE_CHARACTERS):
                part = line[start : start + _MAX_LINE_CHARACTERS]
                if not part.isspace():
                    yield part


def _sample(lines: Iterable[str], size: int, seed: int) -> list[str]:
    """`size` lines, each with equal chance, from a stream (reservoir sampling: Vitter 1985, algorithm R); all of a shorter one."""
    rng = random.Random(seed)
    kept: list[str] = []
    for count, line in enumerate(lines, start=1):
        if len(kept) < size:
            kept.append(line)
        elif (place := rng.randrange(count)) < size:
            kept[place] = line
    return kept


def _in_alphabet(lines: list[str], max_characters: int) -> list[str]:
    """`lines` with a space for every character that gets no piece: the rarest ones, and those beyond `max_characters` kinds."""
    counts = Counter(itertools.chain.from_iterable(lines))
    wanted = _COVERAGE * counts.total()
    kept: set[str] = set()
    covered = 0
    for character, count in counts.most_common():
        if covered < wanted and len(kept) < max_characters and character not in _RESERVED:
            kept.add(character)
        covered += count
    spaces = str.maketrans(dict.fromkeys(counts.keys() - kept, " "))
    return [line for line in (line.translate(spaces) for line in lines) if not line.isspace()]
