"""The 98 symbols."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omni.characters import BLANK_ID, N_CHARACTERS, PAD_ID, PRINTABLE, UNKNOWN_ID, decode_characters, encode_characters


def test_there_are_98_symbols_and_printable_text_is_spelled_by_the_last_95():
    ids = encode_characters(PRINTABLE)
    assert N_CHARACTERS == 98 and len({BLANK_ID, PAD_ID, UNKNOWN_ID}) == 3
    assert ids == list(range(3, 98))


@given(st.text(alphabet=PRINTABLE))
def test_printable_text_round_trips(text):
    assert decode_characters(encode_characters(text)) == text


@given(st.text())
def test_any_text_gives_ids_of_symbols_and_never_blank_or_padding(text):
    assert all(UNKNOWN_ID <= i < N_CHARACTERS for i in encode_characters(text))


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("café", "cafe"),
        ("“it’s”", '"it\'s"'),
        ("a–b—c", "a-b-c"),
        ("wait…", "wait..."),
        ("a\u00a0b\nc\td", "a b c d"),
        ("ﬁne", "fine"),
        ("e\u0301", "e"),
    ],
)
def test_what_has_an_ascii_form_takes_it(text, plain):
    assert encode_characters(text) == encode_characters(plain)


def test_what_has_none_is_unknown_and_is_skipped_when_read_back():
    assert encode_characters("a猫b") == [*encode_characters("a"), UNKNOWN_ID, *encode_characters("b")]
    assert decode_characters([BLANK_ID, PAD_ID, UNKNOWN_ID, *encode_characters("ok")]) == "ok"
