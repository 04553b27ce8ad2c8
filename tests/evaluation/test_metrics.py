"""The rule that error rates are computed on, and intervals of ratios."""

import random

import pytest

from omni.evaluation.metrics import ErrorRate, collisions, normalise, ratio_interval


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The CAT’s hat, isn't it?", "the cat's hat isn't it"),
        ("'Twas the dogs' “day”—he said so.", "'twas the dogs' day he said so"),
        ("Déjà-vu", "d j vu"),
        ("42 and 7, 10:30, 90, the 15th", "forty two and seven ten thirty ninety the fifteenth"),
        ("In 1984 it cost 100", "in 1984 it cost 100"),
        (" ... ", ""),
    ],
)
def test_what_is_compared_are_words_as_they_sound(text, words):
    assert normalise(text) == words
    assert normalise(words) == words


def test_figures_and_words_are_the_same_number():
    errors = ErrorRate()
    errors.add("It took forty-two days.", "it took 42 days")
    assert (errors.wer, errors.cer, errors.words) == (0, 0, 5)


def test_takes_of_one_sentence_are_drawn_together():
    """Twice the same clips say no more than once."""
    errors, words = [0, 1, 3, 0, 2, 5], [5, 6, 7, 4, 8, 9]
    once = ratio_interval(errors, words, list("abcdef"))
    assert ratio_interval(errors * 2, words * 2, list("abcdef") * 2) == once
    low, high = ratio_interval(errors * 2, words * 2, range(12))
    assert once[0] < low < sum(errors) / sum(words) < high < once[1]


def test_one_sentence_has_no_width():
    assert ratio_interval([1, 2], [4, 4], ["a", "a"]) == (0.375, 0.375)


def test_collisions_are_those_of_random_batches():
    labels, rng, found = list("aaaabbcdefghij"), random.Random(0), 0
    for _ in range(3000):
        batch = rng.sample(labels, 4)
        found += sum(batch.count(label) > 1 for label in batch)
    assert collisions(labels, 4) == pytest.approx(found / (3000 * 4), abs=0.02)
    assert collisions(list("abc"), 2) == collisions([], 2) == collisions(["a"], 1) == 0
    assert collisions(["a", "a"], 99) == 1
