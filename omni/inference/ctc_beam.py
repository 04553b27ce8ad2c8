"""CTC prefix beam search, with the Thinker as language model.

A prefix's probability is the sum over all alignments that spell it, kept in two parts, by whether the last slot was a blank (Graves 2012,
§7.5.3; Hannun et al. 2014, algorithm 1). When a prefix completes a word, the Thinker reads it (shallow fusion):

    score = log p(CTC) + alpha · log p(Thinker) + beta · words

S slots  C characters"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import nlargest
from typing import Any, Protocol

import torch
from torch import Tensor

from omni.characters import BLANK_ID, FIRST_ID, PRINTABLE, decode_characters
from omni.thinker import ThinkerLM
from omni.tokenizer import BPETokenizer

ALPHA, BETA = 0.2, 2.0  # weights of the Thinker and of the number of words; omni.evaluation.asr.tune finds them
WIDTH = 16  # prefixes that are kept after every slot
LEAST_PROBABILITY = 1e-3  # of a character in a slot, for it to be tried there
MARGIN = 10.0  # nats behind the best prefix at which one is given up
SPACE_ID = FIRST_ID + PRINTABLE.index(" ")


@dataclass(frozen=True, eq=False)
class History:
    """Words that a language model has read: how many, their log-probability in nats, and what it continues from."""

    words: int = 0
    log_probability: float = 0.0
    memory: Any = None


Known = dict[tuple[History, str], History]


class LanguageModel(Protocol):
    """Reads words, one after the other."""

    def start(self) -> History:
        """Before the first word."""

    def read(self, words: Sequence[tuple[History, str]]) -> list[History]:
        """Each history with one more word, never an empty one."""


@dataclass(frozen=True)
class Hypothesis:
    """What may have been said; log-probabilities in nats under the CTC head and under the language model."""

    text: str
    ctc: float
    language: float
    words: int
    score: float


@dataclass(eq=False, slots=True)
class _Prefix:
    """Characters (as chr(id)); the words among them that have been read, and behind those the open rest; probabilities of the alignments
    that end in a blank and of the others."""

    spelled: str
    history: History
    rest: str = ""
    blank: float = 0.0
    other: float = 0.0
    score: float = -math.inf


class BeamSearch:
    """Without a language model, `alpha` and `beta` count for nothing."""

    def __init__(
        self,
        language_model: LanguageModel | None = None,
        *,
        alpha: float = ALPHA,
        beta: float = BETA,
        width: int = WIDTH,
        least_probability: float = LEAST_PROBABILITY,
        margin: float = MARGIN,
    ) -> None:
        assert width >= 1
        self.language_model = language_model
        self.alpha, self.beta = (alpha, beta) if language_model is not None else (0.0, 0.0)
        self.width, self.least_probability, self.margin = width, least_probability, margin

    def __call__(self, log_probabilities: Tensor) -> list[Hypothesis]:
        """One clip's (S,C) → up to `width` hypotheses, the best first."""
        slots = log_probabilities.double().exp().cpu()
        tried: list[list[int]] = [[] for _ in slots]
        for slot, c in (slots >= self.least_probability).nonzero().tolist():
            if c != BLANK_ID:
                tried[slot].append(c)
        known: Known = {}
        beam = [_Prefix("", History() if self.language_model is None else self.language_model.start(), blank=1.0)]
        log_scale = 0.0  # of what the beam's probabilities have been divided by, so that they stay in range
        for probabilities, characters in zip(slots.tolist(), tried, strict=True):
            beam = nlargest(self.width, self._extend(beam, probabilities, characters), key=lambda p: p.score)
            beam = [p for p in beam if p.score >= beam[0].score - self.margin]
            largest = max(p.blank + p.other for p in beam)
            log_scale += math.log(largest)
            for p in beam:
                p.blank, p.other = p.blank / largest, p.other / largest
            self._read([p for p in beam if p.rest.endswith(chr(SPACE_ID))], known)
        self._read(beam, known)
        found = []
        for p in beam:
            ctc = math.log(p.blank + p.other) + log_scale
            found.append(Hypothesis(_text(p.spelled), ctc, p.history.log_probability, p.history.words, ctc + self._bonus(p.history)))
        return sorted(found, key=lambda h: h.score, reverse=True)

    def _extend(self, beam: list[_Prefix], probabilities: list[float], characters: list[int]) -> Iterator[_Prefix]:
        """The prefixes one slot later. One that is reached in several ways appears once, with the sum."""
        after = {p.spelled: _Prefix(p.spelled, p.history, p.rest) for p in beam}
        for p in beam:
            either = p.blank + p.other
            last = ord(p.spelled[-1]) if p.spelled else BLANK_ID
            same = after[p.spelled]
            same.blank += either * probabilities[BLANK_ID]
            same.other += p.other * probabilities[last]
            for c in characters:
                spelled = p.spelled + chr(c)
                longer = after.get(spelled)
                if longer is None:
                    longer = after[spelled] = _Prefix(spelled, p.history, p.rest + chr(c))
                longer.other += (p.blank if c == last else either) * probabilities[c]  # equal neighbours need a blank between them
        for p in after.values():
            if p.blank + p.other > 0:
                p.score = math.log(p.blank + p.other) + self._bonus(p.history)
                yield p

    def _read(self, beam: list[_Prefix], known: Known) -> None:
        """Have the language model read the open rest of every prefix, one word or nothing. What it has read before is in `known`."""
        if self.language_model is None:
            return
        words = [(p.history, _text(p.rest).strip()) for p in beam]
        new = list(dict.fromkeys(w for w in words if w[1] and w not in known))
        if new:
            known.update(zip(new, self.language_model.read(new), strict=True))
        for p, (history, word) in zip(beam, words, strict=True):
            p.rest = ""
            p.history = known[history, word] if word else history

    def _bonus(self, history: History) -> float:
        return self.alpha * history.log_probability + self.beta * history.words


def _text(spelled: str) -> str:
    return decode_characters(map(ord, spelled))


@dataclass(frozen=True, eq=False)
class _Memory:
    """Keys and values (layers,K,n,D) of all tokens but the last."""

    keys: Tensor
    values: Tensor
    last: int


class ThinkerWords:
    """The Thinker as a language model of plain text, word by word. A text longer than the Thinker's context is forgotten when that is full."""

    def __init__(self, thinker: ThinkerLM, tokenizer: BPETokenizer) -> None:
        self.thinker, self.tokenizer = thinker, tokenizer
        cache = thinker.make_cache(1, 1)
        self._empty = _Memory(cache.keys[:, 0, :, :0], cache.values[:, 0, :, :0], tokenizer.bos_id)

    def start(self) -> History:
        return History(memory=self._empty)

    @torch.inference_mode()
    def read(self, words: Sequence[tuple[History, str]]) -> list[History]:
        """In one batch; no token spans two words, so that a word's tokens are the same in any text."""
        tokens = [self.tokenizer.encode(f" {word}" if history.words else word) for history, word in words]
        memories: list[_Memory] = []
        for (history, _), ids in zip(words, tokens, strict=True):
            full = history.memory.keys.shape[2] + len(ids) > self.thinker.config.context_length
            memories.append(self._empty if full else history.memory)
        seen = [m.keys.shape[2] for m in memories]
        new = [len(ids) for ids in tokens]
        cache = self.thinker.make_cache(len(words), max(seen) + max(new))
        inputs = torch.full((len(words), max(new)), self.tokenizer.pad_id)
        for row, (m, ids) in enumerate(zip(memories, tokens, strict=True)):
            cache.keys[:, row, :, : seen[row]], cache.values[:, row, :, : seen[row]] = m.keys, m.values
            inputs[row, : len(ids)] = torch.tensor([m.last, *ids[:-1]])
        cache.lengths = list(seen)
        logits = self.thinker(inputs.to(cache.keys.device), lengths=new, cache=cache)  # (B,T,V)
        out = []
        for row, ((history, _), ids) in enumerate(zip(words, tokens, strict=True)):
            of_tokens = logits[row, : len(ids)].float().log_softmax(-1)[range(len(ids)), ids]
            end = cache.lengths[row]
            memory = _Memory(cache.keys[:, row, :, :end].clone(), cache.values[:, row, :, :end].clone(), ids[-1])
            out.append(History(history.words + 1, history.log_probability + float(of_tokens.sum()), memory))
        return out


def segments(log_probabilities: Tensor, most: int) -> Iterator[Tensor]:
    """(S,C) in pieces of at most `most` slots, cut behind the last space of the likeliest path."""
    while len(log_probabilities) > most:
        spaces = (log_probabilities[:most].argmax(-1) == SPACE_ID).nonzero()
        cut = int(spaces[-1]) + 1 if len(spaces) else most
        yield log_probabilities[:cut]
        log_probabilities = log_probabilities[cut:]
    yield log_probabilities
