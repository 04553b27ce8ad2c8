"""The measures. Each is a sum over items divided once at the end, so that batches do not change it."""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import jiwer
import numpy as np
import torch
from torch import Tensor

from omni.characters import BLANK_ID, decode_characters
from omni.spoken import words_of

T = TypeVar("T")


def spread(items: Sequence[T], limit: int | None) -> list[T]:
    """At most `limit` of them, evenly spread."""
    n = len(items) if limit is None else min(limit, len(items))
    return [items[i * len(items) // n] for i in range(n)]


def _spelled(number: re.Match[str]) -> str:
    return words_of(str(int(number.group()))).replace("-", " ")


def normalise(text: str) -> str:
    """What error rates are computed on, of every recognizer alike: lower case, letters, digits and apostrophes, numbers below 100 spelled out,
    in "15th" too. Larger numbers and abbreviations stay as they are written. It is the rule of the reference script that the project's speech
    is judged by from outside, to the letter, so that figures compare."""
    spelled = re.sub(r"(?<!\d)\d{1,2}(?!\d)", _spelled, text.lower().replace("’", "'"))
    return " ".join(re.sub(r"[^a-z0-9' ]+", " ", spelled).split())


@dataclass
class ErrorRate:
    """Word and character errors summed over a set, over the length of what was said."""

    word_errors: int = 0
    words: int = 0
    character_errors: int = 0
    characters: int = 0
    items: int = 0

    def add(self, said: str, heard: str) -> None:
        """Count one item; both are normalised first. An empty reference counts its insertions and no length."""
        said, heard = normalise(said), normalise(heard)
        self.items += 1
        if not said:
            self.word_errors, self.character_errors = self.word_errors + len(heard.split()), self.character_errors + len(heard)
            return
        words, characters = jiwer.process_words(said, heard), jiwer.process_characters(said, heard)
        self.word_errors += words.substitutions + words.deletions + words.insertions
        self.words += len(said.split())
        self.character_errors += characters.substitutions + characters.deletions + characters.insertions
        self.characters += len(said)

    @property
    def wer(self) -> float:
        """Word errors over reference words."""
        return self.word_errors / max(self.words, 1)

    @property
    def cer(self) -> float:
        """Character errors over reference characters."""
        return self.character_errors / max(self.characters, 1)


def greedy_ctc(logits: Tensor, lengths: Tensor | Sequence[int]) -> list[str]:
    """logits (B,S,characters), lengths (B,) in slots → the likeliest path of each row, repeats merged and blanks dropped."""
    out = []
    for row, length in zip(logits.argmax(-1), lengths, strict=True):
        merged = torch.unique_consecutive(row[: int(length)])
        out.append(decode_characters(merged[merged != BLANK_ID].tolist()))
    return out


def hits_at(similarity: Tensor, labels: Sequence[str], k: int) -> list[bool]:
    """Whether among the best `k` columns of each row of the square `similarity` is one with the row's own label: identical captions are no
    error."""
    number = {label: i for i, label in enumerate(dict.fromkeys(labels))}
    ids = torch.tensor([number[label] for label in labels], device=similarity.device)
    best = ids[similarity.topk(min(k, len(labels)), dim=1).indices]  # (N, k)
    return (best == ids[:, None]).any(1).tolist()


def recall_at(similarity: Tensor, labels: Sequence[str], k: int) -> float:
    """R@k: the share of rows with a hit among the best `k` columns."""
    return sum(hits_at(similarity, labels, k)) / max(len(labels), 1)


def chance_at(labels: Sequence[str], k: int) -> float:
    """R@k of columns in random order."""
    n, counts = len(labels), Counter(labels)
    return sum(1 - math.comb(n - counts[label], k) / math.comb(n, k) for label in labels) / max(n, 1) if k < n else 1.0


def collisions(labels: Sequence[str], batch_size: int) -> float:
    """The share of the rows of random batches whose label another row of their batch has too."""
    n, counts = len(labels), Counter(labels)
    found = sum(count * (1 - (1 - (count - 1) / max(n - 1, 1)) ** (min(batch_size, n) - 1)) for count in counts.values())
    return found / max(n, 1)


def bootstrap_interval(values: Sequence[float], *, rounds: int = 1000, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the mean over items (Efron & Tibshirani 1993, §13)."""
    generator = random.Random(seed)
    means = sorted(sum(generator.choices(values, k=len(values))) / len(values) for _ in range(rounds))
    return means[int(0.025 * rounds)], means[int(0.975 * rounds) - 1]


def share_interval(right: int, of: int) -> tuple[float, float]:
    """95 % interval of a share of items that count alike, also of none and of all (Wilson 1927)."""
    share, z = right / of, 1.96
    middle = share + z * z / (2 * of)
    half = z * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    return max(0.0, (middle - half) / (1 + z * z / of)), min(1.0, (middle + half) / (1 + z * z / of))


def ratio_interval(
    parts: Sequence[float], wholes: Sequence[float], groups: Sequence[Hashable], *, rounds: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of Σ parts / Σ wholes over items, drawn by whole groups: items of one group (takes of one sentence) are
    not independent."""
    order = {group: row for row, group in enumerate(dict.fromkeys(groups))}
    sums = np.zeros((len(order), 2))
    np.add.at(sums, [order[group] for group in groups], np.column_stack((parts, wholes)))
    generator = np.random.default_rng(seed)
    drawn = np.array([sums[generator.integers(0, len(sums), len(sums))].sum(0) for _ in range(rounds)])
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1].clip(min=1), (0.025, 0.975))
    return float(low), float(high)


@dataclass(frozen=True)
class Rates:
    """Error rates with 95 % bootstrap intervals over sentences."""

    wer: float
    wer_95: tuple[float, float]
    cer: float
    cer_95: tuple[float, float]


def error_rates(said: Sequence[str], heard: Sequence[str], sentences: Sequence[Hashable]) -> Rates:
    """Of all items together; takes of one sentence share what `sentences` calls it."""
    each = []
    for text, found in zip(said, heard, strict=True):
        each.append(ErrorRate())
        each[-1].add(text, found)
    wer, wer_95 = rounded_ratio([e.word_errors for e in each], [e.words for e in each], sentences)
    cer, cer_95 = rounded_ratio([e.character_errors for e in each], [e.characters for e in each], sentences)
    return Rates(wer, wer_95, cer, cer_95)


def points_over(
    said: Sequence[str], heard: Sequence[str], others: Sequence[str], sentences: Sequence[Hashable]
) -> tuple[float, tuple[float, float]]:
    """By how many points WER of `heard` is higher than of what was heard of other sounds that say the same, item by item, with its interval."""
    counts = []
    for text, *found in zip(said, heard, others, strict=True):
        pair = ErrorRate(), ErrorRate()
        for rate, words in zip(pair, found, strict=True):
            rate.add(text, words)
        counts.append(pair)
    return rounded_ratio([100 * (a.word_errors - b.word_errors) for a, b in counts], [a.words for a, _ in counts], sentences)


def rounded_ratio(parts: Sequence[float], wholes: Sequence[float], groups: Sequence[Hashable]) -> tuple[float, tuple[float, float]]:
    """Σ parts / Σ wholes with its `ratio_interval`, to four digits."""
    low, high = ratio_interval(parts, wholes, groups)
    return round(sum(parts) / max(sum(wholes), 1), 4), (round(low, 4), round(high, 4))


def words_heard(said: str, heard: str) -> list[tuple[str, bool]]:
    """Every normalised word of `said`, and whether it is among what was `heard`, by the alignment with the fewest errors."""
    words = normalise(said).split()
    found = [False] * len(words)
    if words:
        (chunks,) = jiwer.process_words(" ".join(words), normalise(heard)).alignments
        for chunk in chunks:
            if chunk.type == "equal":
                found[chunk.ref_start_idx : chunk.ref_end_idx] = [True] * (chunk.ref_end_idx - chunk.ref_start_idx)
    return list(zip(words, found, strict=True))
