"""What was said and when: words and segments with their times, from the likeliest path of the audio encoder's CTC head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from omni.characters import BLANK_ID, FIRST_ID, decode_characters

PAUSE_S = 0.8  # between two words: another segment begins
LONGEST_SEGMENT_S = 8.0


@dataclass(frozen=True)
class Span:
    """A word or a segment, and where in the recording it is."""

    text: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Transcript:
    """`path` (S,): the likeliest character of every slot of `slot_s` seconds, blanks and repetitions among them (Graves et al. 2006, §3.1).
    `complete` is false while only the beginning of the recording has been heard."""

    path: Sequence[int]
    slot_s: float
    complete: bool = True

    @cached_property
    def text(self) -> str:
        """What was said."""
        return decode_characters(i for i, before in zip(self.path, (BLANK_ID, *self.path), strict=False) if i != before)

    @cached_property
    def words(self) -> list[Span]:
        """Joined by spaces they are `text` with single spaces."""
        words: list[Span] = []
        spelled, start_s, end_s = "", 0.0, 0.0
        before = BLANK_ID
        for slot, character in enumerate([*self.path, BLANK_ID]):
            at_s = slot * self.slot_s
            if character != before and character >= FIRST_ID:
                letter = decode_characters([character])
                if letter == " " and spelled:
                    words.append(Span(spelled, start_s, end_s))
                    spelled = ""
                elif letter != " ":
                    start_s = at_s if not spelled else start_s
                    spelled += letter
            if character >= FIRST_ID and decode_characters([character]) != " ":
                end_s = at_s + self.slot_s
            before = character
        return words + ([Span(spelled, start_s, end_s)] if spelled else [])

    @cached_property
    def segments(self) -> list[Span]:
        """Runs of words without a long pause, none much longer than 8 seconds."""
        runs: list[list[Span]] = []
        for word in self.words:
            if runs and word.start_s - runs[-1][-1].end_s < PAUSE_S and word.end_s - runs[-1][0].start_s <= LONGEST_SEGMENT_S:
                runs[-1].append(word)
            else:
                runs.append([word])
        return [Span(" ".join(word.text for word in run), run[0].start_s, run[-1].end_s) for run in runs]
