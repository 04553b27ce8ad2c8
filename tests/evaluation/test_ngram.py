"""The n-gram baseline: a probability distribution in every context, and the written-out formula."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest

from omni.errors import DataError
from omni.evaluation.ngram import Ngram

BOS, V = 1, 12


def documents(n: int, seed: int = 0) -> list[list[int]]:
    """Token sequences with structure: each id is likely to be followed by its successor. Id 11 never occurs."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(n):
        ids = [BOS]
        for _ in range(rng.integers(1, 12)):
            ids.append(2 + (ids[-1] - 1) % 9 if rng.random() < 0.7 else int(rng.integers(2, 11)))
        out.append(ids)
    return out


def packed(docs: list[list[int]]) -> np.ndarray:
    return np.array([i for doc in docs for i in doc], dtype=np.uint16)


@pytest.fixture(scope="module")
def model() -> Ngram:
    return Ngram(packed(documents(60)), V, BOS, order=4)


@pytest.mark.parametrize("context", [[], [2], [2, 3], [2, 3, 4], [5, 5, 5], [11], [3, 11, 4], [2, 3, 4, 5, 6, 7]])
def test_probabilities_sum_to_one_over_the_vocabulary(model: Ngram, context: list[int]) -> None:
    words = [w for w in range(V) if w != BOS]
    p = [np.exp(model.log_probabilities(np.array([BOS, *context, w]))[-1]) for w in words]
    # <bos> is never predicted: it keeps what the last back-off gives it, the same as an id that never occurred
    assert min(p) > 0
    assert sum(p) + p[words.index(11)] == pytest.approx(1.0, abs=1e-12)


def test_it_is_the_written_out_formula(model: Ngram) -> None:
    docs = documents(60)
    counts: list[dict[tuple[int, ...], int]] = [defaultdict(int) for _ in range(5)]  # by length
    for doc in docs:
        for n in range(1, 5):
            for end in range(max(n, 2), len(doc) + 1):
                counts[n][tuple(doc[end - n : end])] += 1
    adjusted: list[dict[tuple[int, ...], int]] = [{} for _ in range(5)]
    for n in range(1, 5):
        for gram, count in counts[n].items():
            before = {longer[0] for longer in counts[n + 1] if longer[1:] == gram} if n < 4 else set()
            adjusted[n][gram] = count if n == 4 or gram[0] == BOS else len(before)
    discounts = []
    for table in adjusted:
        t = [sum(c == k for c in table.values()) for k in range(5)]
        y = t[1] / (t[1] + 2 * t[2]) if t[1] else 0
        enough = all(t[1:])
        discounts.append([0.0, *(max(0.0, min(k, k - (k + 1) * y * t[k + 1] / t[k])) if enough else k / 2 for k in (1, 2, 3))])

    def p(word: int, context: tuple[int, ...]) -> float:
        n = len(context) + 1
        lower = p(word, context[1:]) if context else 1 / V
        children = {gram[-1]: c for gram, c in adjusted[n].items() if gram[:-1] == context}
        total = sum(children.values())
        if not total:
            return lower
        freed = sum(discounts[n][min(c, 3)] for c in children.values())
        own = children.get(word, 0)
        return (own - discounts[n][min(own, 3)] + freed * lower) / total

    unseen = documents(8, seed=1)
    expected = [0.0 if i == 0 else np.log(p(doc[i], tuple(doc[max(0, i - 3) : i]))) for doc in unseen for i in range(len(doc))]
    np.testing.assert_allclose(model.log_probabilities(packed(unseen)), expected, atol=1e-12)


def test_documents_beside_each_other_change_nothing(model: Ngram) -> None:
    docs = documents(10, seed=2)
    alone = np.concatenate([model.log_probabilities(np.array(doc)) for doc in docs])
    np.testing.assert_array_equal(model.log_probabilities(packed(docs)), alone)
    again = Ngram(packed(documents(60)[::-1]), V, BOS, order=4)
    np.testing.assert_allclose(again.log_probabilities(packed(docs)), alone, atol=1e-12)


def test_a_longer_context_tells_more_of_text_that_it_was_fitted_to() -> None:
    text = packed(documents(200))
    nats = [-Ngram(text, V, BOS, order=n).log_probabilities(text).mean() for n in (2, 3, 4)]
    assert nats[0] > nats[1] > nats[2]


def test_a_large_vocabulary_does_not_overflow() -> None:
    model = Ngram(np.array([BOS, 99_999, 99_998, 99_999, 99_998]), 100_000, BOS)
    assert np.exp(model.log_probabilities(np.array([BOS, 99_999, 99_998]))[-1]) > 0.1


@pytest.mark.parametrize("tokens", [[], [5, 6], [BOS], [BOS, V]])
def test_what_is_no_text_is_refused(tokens: list[int]) -> None:
    with pytest.raises(DataError):
        Ngram(np.array(tokens, dtype=np.int64), V, BOS)
