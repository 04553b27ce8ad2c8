"""The 98 symbols that the audio encoder spells with and the Talker reads: CTC blank, padding, unknown, and printable ASCII.

Text keeps case and punctuation. A character outside ASCII is taken apart (NFKD: é is e and an accent); what then is still outside is
the unknown symbol.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

BLANK_ID, PAD_ID, UNKNOWN_ID = 0, 1, 2
PRINTABLE = "".join(map(chr, range(32, 127)))
FIRST_ID = 3
N_CHARACTERS = FIRST_ID + len(PRINTABLE)
assert N_CHARACTERS == 98

_IDS = {character: FIRST_ID + index for index, character in enumerate(PRINTABLE)}
_TYPOGRAPHY = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "–": "-", "—": "-", "\n": " ", "\t": " "})


def encode_characters(text: str) -> list[int]:
    """Ids of `text`, one a character after decomposition; combining accents vanish."""
    plain = unicodedata.normalize("NFKD", text.translate(_TYPOGRAPHY))
    return [_IDS.get(character, UNKNOWN_ID) for character in plain if not unicodedata.combining(character)]


def decode_characters(ids: Iterable[int]) -> str:
    """The text that printable ids spell; the others are skipped."""
    return "".join(PRINTABLE[i - FIRST_ID] for i in ids if i >= FIRST_ID)
