"""Texts of the pocket world."""

import re
from random import Random

from omni.data.split import held_out
from omni.data.worlds import text


def test_texts_are_varied_but_their_words_are_few() -> None:
    lines = [text.plain(Random(i)) for i in range(2000)] + [text.spoken_sentence(Random(i)) for i in range(2000)]
    words = {word for line in lines for word in re.findall(r"\w+", line.lower())}
    assert len(set(lines)) > 2000 and 100 < len(words) < 400


def test_articles_and_capitals_are_right_and_every_slot_is_filled() -> None:
    for i in range(1500):
        lines = [text.plain(Random(i)), text.spoken_sentence(Random(i)), *text.small_talk(Random(i)), *text.story(Random(i))]
        for line in lines:
            assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", line), line
            assert line[0].isupper() and line[-1] in ".?!" and "{" not in line and "  " not in line, line
            assert not re.search(r"[.?!] [a-z]", line), line


def test_spoken_sentences_are_short() -> None:
    lengths = [len(text.spoken_sentence(Random(i)).split()) for i in range(1000)]
    assert sum(lengths) / len(lengths) < 8 and max(lengths) <= 13


def test_a_dialogue_alternates_and_every_question_fits() -> None:
    def fits(words: str) -> bool:
        return held_out(words, 0.3)

    for i in range(60):
        messages = text.dialogue(Random(i), fits)
        assert [m["role"] for m in messages] == ["user", "assistant"] * (len(messages) // 2)
        assert all(fits(m["content"]) for m in messages[::2])


def test_arithmetic_is_right() -> None:
    numbers = text.NUMBERS
    for i in range(500):
        question, answer = text.small_talk(Random(i))
        if match := re.fullmatch(r"What is (\w+) (plus|minus) (\w+)\?", question):
            m, n = numbers.index(match[1]), numbers.index(match[3])
            assert answer.endswith(f"is {numbers[m + n if match[2] == 'plus' else m - n]}.")
