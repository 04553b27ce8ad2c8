"""A text as it is read aloud: numbers, times, sums of money and abbreviations in words, and nothing that has no sound. The Talker learns from plain
sentences, so it knows how words sound, and no digit or sign."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import cache

ABBREVIATIONS = {
    **{"Mr.": "Mister", "Mrs.": "Missus", "Ms.": "Miss", "Dr.": "Doctor", "St.": "Saint", "Ave.": "Avenue", "Rd.": "Road"},
    **{"Blvd.": "Boulevard", "etc.": "et cetera", "vs.": "versus", "e.g.": "for example", "i.e.": "that is"},
}
CURRENCIES = {
    "$": ("dollar", "dollars", "cent", "cents"),
    "€": ("euro", "euros", "cent", "cents"),
    "£": ("pound", "pounds", "penny", "pence"),
}
SIGNS = {"&": "and", "%": "percent", "+": "plus", "=": "equals", "@": "at", "°": "degrees", "#": "number"}
HALVES = {"a": "ay em", "p": "pee em"}  # of the day
YEARS = range(1100, 2100)  # four digits that are more often a year than a number
MOST_DIGITS = 9  # longer numbers are read digit by digit, as are those that begin with 0, and telephone numbers


def spoken_form(text: str) -> str:
    """`text` in words, with single spaces; empty if there is nothing to say, or only letters that are not Latin ones. "It's $3.50 at 7:05 pm." →
    "It's three dollars and fifty cents at seven oh five pee em." """
    text = unicodedata.normalize("NFKC", text)
    for pattern, say in RULES:
        text = pattern.sub(say, text)
    text = re.sub(r"\s+([,;:.?!])", r"\1", " ".join(text.split()))
    return text if any(c.isascii() and c.isalnum() for c in unicodedata.normalize("NFKD", text)) else ""


@cache
def words_of(number: str, group: int = 0, ordinal: bool = False) -> str:
    """A number in words; with `group` digit by digit (1) or in pairs (2), as telephone numbers and years are read; or as an ordinal."""
    import inflect  # takes a tenth of a second

    engine = inflect.engine()
    found = engine.number_to_words(engine.ordinal(number) if ordinal else number, andword="", group=group, zero="oh" if group else "zero")
    assert isinstance(found, str)
    return " ".join(found.replace(",", "").split())


def _number(digits: str) -> str:
    """A number without sign, thousands parted by commas or not."""
    whole, point, part = digits.replace(",", "").partition(".")
    if len(whole) > MOST_DIGITS or (whole.startswith("0") and len(whole) > 1):
        words = words_of(whole, group=1)
    elif "," not in digits and not point and len(whole) == 4 and int(whole) in YEARS and int(whole) % 1000 > 9:
        words = words_of(whole, group=2) if whole[2:] != "00" else f"{words_of(whole[:2])} hundred"
    else:
        words = words_of(whole)
    return f"{words} point {words_of(part, group=1)}" if point else words


def _money(found: re.Match[str]) -> str:
    one, many, hundredth, hundredths = CURRENCIES[found["currency"]]
    if found["scale"]:
        return f"{_number(found['amount'])} {found['scale']} {many}"
    whole, _, part = found["amount"].partition(".")
    if len(part) != 2:
        return f"{_number(found['amount'])} {one if found['amount'] == '1' else many}"
    said = f"{_number(whole)} {one if whole == '1' else many}"
    return said if part == "00" else f"{said} and {words_of(part.lstrip('0'))} {hundredth if part == '01' else hundredths}"


def _plural(found: re.Match[str]) -> str:
    """ "1990s" → "nineteen nineties"."""
    words = _number(found[1])
    return f"{words[:-1]}ies" if words.endswith("y") else f"{words}s"


def _ordinal(found: re.Match[str]) -> str:
    digits = found[1].replace(",", "")
    return words_of(digits, ordinal=True) if len(digits) <= MOST_DIGITS else f"{words_of(digits, group=1)}th"


def _time(found: re.Match[str]) -> str:
    said, minute, half = words_of(found["hour"]), found["minute"].lstrip("0"), found["half"]
    if minute:
        said += f" {'oh ' if found['minute'][0] == '0' else ''}{words_of(minute)}"
    elif not half:
        said += " o'clock"
    return f"{said} {HALVES[half[0].lower()]}" if half else said


NUMBER = r"(?:\d{1,3}(?:,\d{3})+(?![\d,])|\d+)(?:\.\d+)?"
SCALE = r"(?:\s(?P<scale>hundred|thousand|million|billion|trillion)\b)?"
RULES: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], str]], ...] = (
    (re.compile(r"(?<![A-Za-z])St\.(?!\s?[A-Z])"), lambda m: "Street"),
    (re.compile(f"(?<![A-Za-z])(?:{'|'.join(map(re.escape, ABBREVIATIONS))})"), lambda m: f"{ABBREVIATIONS[m[0]]} "),
    (re.compile(r"[’‘]"), lambda m: "'"),
    (re.compile(rf"(?P<currency>[$€£])\s?(?P<amount>{NUMBER}){SCALE}"), _money),
    (re.compile(rf"(?P<amount>{NUMBER}){SCALE}\s?(?P<currency>[$€£])(?!\d)"), _money),
    (re.compile(r"\b(?P<hour>1?\d|2[0-3]):(?P<minute>[0-5]\d)(?:\s?(?P<half>[ap]\.?m\b\.?))?", re.IGNORECASE), _time),
    (re.compile(r"\b(?P<hour>1[0-2]|[1-9])(?P<minute>)\s?(?P<half>[ap]\.?m\b)", re.IGNORECASE), _time),
    (re.compile(r"\b(\d{3})[ -](\d{3})[ -](\d{4})\b"), lambda m: ", ".join(words_of(part, group=1) for part in m.groups())),
    (re.compile(r"\b(\d{1,3}(?:,\d{3})+|\d+)(?:st|nd|rd|th)\b"), _ordinal),
    (re.compile(r"\b(\d{2,4})'?s\b"), _plural),
    (re.compile(r"(?<![\w.])-(?=\d)"), lambda m: "minus "),
    (re.compile(NUMBER), lambda m: f" {_number(m[0])} "),
    (re.compile("[" + re.escape("".join(SIGNS)) + "]"), lambda m: f" {SIGNS[m[0]]} "),
    (re.compile(r"[“”\"()\[\]{}<>*_~^|\\`/$€£]"), lambda m: " "),
)
