"""Transcripts: the path's words are its text, and they are where they were said."""

from hypothesis import given
from hypothesis import strategies as st

from omni.characters import BLANK_ID, N_CHARACTERS, encode_characters
from omni.inference.transcript import LONGEST_SEGMENT_S, Transcript


def path(text: str) -> list[int]:
    """A slot for each character and a blank behind it; _ is another blank."""
    return [slot for c in text for slot in ([BLANK_ID] if c == "_" else [*encode_characters(c), BLANK_ID])]


def test_words_are_where_they_were_said():
    heard = Transcript(path("ab_____ cd"), 0.1)
    assert heard.text == "ab cd"
    assert [(w.text, round(w.start_s, 3), round(w.end_s, 3)) for w in heard.words] == [("ab", 0.0, 0.3), ("cd", 1.1, 1.4)]


def test_a_character_that_lasts_is_one_and_a_blank_parts_two():
    a = encode_characters("a")[0]
    assert Transcript([a, a, a, BLANK_ID, a], 0.1).text == "aa"
    assert Transcript([a, a, a], 0.1).words[0].end_s == 0.1 * 3


def test_a_long_pause_parts_segments():
    heard = Transcript(path("one two" + "_" * 12 + " three"), 0.1)
    assert [s.text for s in heard.segments] == ["one two", "three"]


@given(st.lists(st.integers(0, N_CHARACTERS - 1), max_size=200))
def test_words_and_segments_are_the_text(slots):
    heard = Transcript(slots, 0.08)
    assert [w.text for w in heard.words] == [word for word in heard.text.split(" ") if word]
    assert " ".join(s.text for s in heard.segments) == " ".join(w.text for w in heard.words)
    times = [t for w in heard.words for t in (w.start_s, w.end_s)]
    assert times == sorted(times)
    assert all(s.end_s - s.start_s <= LONGEST_SEGMENT_S or " " not in s.text for s in heard.segments)
