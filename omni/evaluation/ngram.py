"""The classical baseline of a language model: an n-gram with interpolated modified Kneser-Ney smoothing (Chen & Goodman 1999, §3).

With c(h·w) the count of token w behind context h, and h' the context without its oldest token,

    p(w|h) = (c(h·w) − D(c(h·w))) / c(h) + γ(h) · p(w|h')

where D is one of three discounts (for counts of 1, 2, and more) and γ(h) what they free, so that Σ p(w|h) = 1. Below the highest order a
count is the number of different tokens before the n-gram, except where it begins a document and has none. The shortest context backs off
to 1/V: every id has a probability.

A document begins with <bos>, which no context reaches beyond and which is itself never predicted. Every n-gram seen is a node in the table
of its order; its key is (node of its first n-1 tokens)·V + its last token, so that looking up a whole text is a binary search an order.

N tokens  V vocabulary"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from omni.errors import DataError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

NONE = -1  # no such node
SMALLEST_DISCOUNT = 0.05  # the estimate can be 0 on a small text, and would leave nothing for what was not seen


@dataclass(frozen=True)
class _Order:
    """The n-grams of one length: sorted keys and the probability of each; and of each context, one token shorter, γ."""

    keys: Ints
    probability: Floats
    backoff: Floats

    def find(self, keys: Ints) -> Ints:
        """The node of every key, or NONE."""
        if not len(self.keys):
            return np.full(len(keys), NONE)
        at = np.searchsorted(self.keys, keys).clip(max=len(self.keys) - 1)
        return np.where(self.keys[at] == keys, at, NONE)


class Ngram:
    """Fitted to `tokens` (N,): packed documents, each beginning with `bos_id`. Time and memory grow with `order`·N (6 million tokens and
    order 5: about a minute, 2 GB). Raises DataError when there are none or they do not begin with a document."""

    def __init__(self, tokens: NDArray[np.integer], vocab_size: int, bos_id: int, order: int = 5) -> None:
        assert order >= 2
        self.vocab_size, self.bos_id = vocab_size, bos_id
        ids = tokens.astype(np.int64)
        depth = self._depth(ids)
        if not depth.any():
            raise DataError("an n-gram needs a text of one token or more to be fitted to")
        levels = _tables(ids, depth, vocab_size, order)
        # the number of different tokens before each n-gram: of its longer versions, those that it is the end of
        counts = [level.counts for level in levels]
        for level, longer, n in zip(levels, levels[1:], range(order), strict=False):
            different = np.bincount(longer.suffix, minlength=len(level.keys))
            counts[n] = np.where(level.begins, level.counts, different)
        counts[0] = np.where(np.arange(vocab_size) == bos_id, 0, counts[0])  # it begins documents and follows nothing
        self._orders: list[_Order] = []
        lower = np.full(vocab_size, 1 / vocab_size)  # p of every n-gram's last token, given one context token less
        for level, count in zip(levels, counts, strict=True):
            n_contexts = len(self._orders[-1].keys) if self._orders else 1
            context = level.keys // vocab_size
            if self._orders:
                lower = self._orders[-1].probability[level.suffix]
            discount = _discounts(count)[np.minimum(count, 3)]
            total = np.bincount(context, count, n_contexts)
            freed = np.bincount(context, discount, n_contexts)
            backoff = np.divide(freed, total, out=np.ones(n_contexts), where=total > 0)
            kept = np.divide(count - discount, total[context], out=np.zeros(len(count)), where=total[context] > 0)
            self._orders.append(_Order(level.keys, kept + backoff[context] * lower, backoff))

    @property
    def order(self) -> int:
        """n: one more than the context tokens that count."""
        return len(self._orders)

    def log_probabilities(self, tokens: NDArray[np.integer]) -> Floats:
        """Natural logarithms (N,) of each token's probability behind those before it in its document; 0 for every <bos>."""
        ids = tokens.astype(np.int64)
        depth = self._depth(ids)
        node, p = ids, self._orders[0].probability[ids]
        for n, table in enumerate(self._orders[1:], start=1):  # n context tokens
            context = np.concatenate(([NONE], node[:-1]))
            context[depth < n] = NONE
            node = np.where(context == NONE, NONE, table.find(context * self.vocab_size + ids))
            backed_off = np.where(context == NONE, 1.0, table.backoff[context]) * p
            p = np.where(node == NONE, backed_off, table.probability[node] if len(table.keys) else 0.0)
        return np.where(depth == 0, 0.0, np.log(p))

    def _depth(self, ids: Ints) -> Ints:
        """How many tokens of its document stand before each token."""
        if not len(ids) or ids[0] != self.bos_id:
            raise DataError("packed documents begin with <bos>")
        if ids.min() < 0 or ids.max() >= self.vocab_size:
            raise DataError(f"a token id is outside the vocabulary of {self.vocab_size}")
        at = np.arange(len(ids))
        return at - np.maximum.accumulate(np.where(ids == self.bos_id, at, 0))


@dataclass(frozen=True)
class _Level:
    """All n-grams of one length in a text: sorted keys, occurrences, the node of each without its first token, and whether it begins a
    document."""

    keys: Ints
    counts: Ints
    suffix: Ints
    begins: NDArray[np.bool_]


def _tables(ids: Ints, depth: Ints, vocab_size: int, order: int) -> list[_Level]:
    every = np.arange(vocab_size)
    levels = [_Level(every, np.bincount(ids, minlength=vocab_size), every, every < 0)]  # at length 1 a node is an id
    node = ids  # at every position, the node of the n-gram that ends there
    for n in range(1, order):
        ends = np.flatnonzero(depth >= n)
        keys, first, inverse, counts = np.unique(
            node[ends - 1] * vocab_size + ids[ends], return_index=True, return_inverse=True, return_counts=True
        )
        levels.append(_Level(keys, counts, node[ends[first]], depth[ends[first]] == n))
        node = np.full(len(ids), NONE)
        node[ends] = inverse
    return levels


def _discounts(counts: Ints) -> Floats:
    """D for counts of 0, 1, 2 and more (Chen & Goodman 1999, eq. 26), from how many n-grams have counts of 1 to 4; a text too small for that
    gets 1/2, 1 and 3/2."""
    t = np.bincount(np.minimum(counts, 5), minlength=6)[:5].astype(float)
    if not t[1:].all():
        return np.array([0.0, 0.5, 1.0, 1.5])
    y = t[1] / (t[1] + 2 * t[2])
    return np.array([0.0, *(np.clip(k - (k + 1) * y * t[k + 1] / t[k], SMALLEST_DISCOUNT, k) for k in (1, 2, 3))])
