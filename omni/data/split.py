"""The one rule for what is held out: by normalised text, so that a sentence is in one split wherever it occurs."""

from __future__ import annotations

import hashlib
import re
import unicodedata


def normalised(text: str) -> str:
    """Lower case, letters and digits (of any script) and apostrophes only, single spaces."""
    plain = unicodedata.normalize("NFKC", text).lower().replace("’", "'")
    return " ".join(re.sub(r"[^\w' ]|_", " ", plain).split())


def held_out(text: str, fraction: float) -> bool:
    """Whether `text` belongs to the held-out `fraction`. What is held out at a fraction stays so at every larger one."""
    digest = hashlib.sha256(normalised(text).encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64
