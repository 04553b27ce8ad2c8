"""What is written is said in words."""

from __future__ import annotations

import pytest

from omni.spoken import spoken_form

SAID = {
    "It costs 25 dollars.": "It costs twenty-five dollars.",
    "It's $3.50, or $1.": "It's three dollars and fifty cents, or one dollar.",
    "£1.01 or £2.05 or €1.00": "one pound and one penny or two pounds and five pence or one euro",
    "About $1,200 for 2.5 kg": "About one thousand two hundred dollars for two point five kg",
    "At 7:05 pm, or 12:00?": "At seven oh five pee em, or twelve o'clock?",
    "At 9 am!": "At nine ay em!",
    "Call 415-555-0199.": "Call four one five, five five five, oh one nine nine.",
    "On March 3rd, 1999.": "On March third, nineteen ninety-nine.",
    "In 2009 and 1900, and 2024.": "In two thousand nine and nineteen hundred, and twenty twenty-four.",
    "It is -4 °.": "It is minus four degrees.",
    "Mr. and Mrs. Smith (5% of them) say “no”.": "Mister and Missus Smith five percent of them say no.",
    "Tom & Jerry": "Tom and Jerry",
    "room 007": "room oh oh seven",
    "The 1st of 21": "The first of twenty-one",
    "He’s here.": "He's here.",
    "1,2,3 and 12,345.67": "one, two, three and twelve thousand three hundred forty-five point six seven",
    "The 1,000th, in the 1990s": "The one thousandth, in the nineteen nineties",
    "$5 million, 100$ or 3€": "five million dollars, one hundred dollars or three euros",
    "Dr.Smith of Main St. and St. Ives": "Doctor Smith of Main Street and Saint Ives",
    "cats etc.": "cats et cetera",
    f"the {'1' * 40}th": f"the {' '.join(['one'] * 40)}th",
    "x²": "x two",
    "café": "café",
    "Привет, как дела?": "",
    "...": "",
    "“”": "",
}


@pytest.mark.parametrize("text", SAID)
def test_a_text_is_said_in_words(text: str) -> None:
    assert spoken_form(text) == SAID[text]


@pytest.mark.parametrize("text", ["A plain sentence, as it is; isn't it?", "The old house stood quietly - by the sea!"])
def test_what_is_words_already_stays(text: str) -> None:
    assert spoken_form(text) == text
    assert spoken_form(spoken_form(text)) == text


def test_nothing_that_the_talker_does_not_know_is_left() -> None:
    text = "".join(map(chr, range(32, 127))) + " 1 2.5 $7.20 10:30 55th 1,000,000 0.5% 12345678901"
    assert set(spoken_form(text)) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz ',;:.?!-")
