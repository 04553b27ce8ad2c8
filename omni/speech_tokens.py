"""The ids that text and sound share in the speech LM, and the order in which they may come. Integers only.

    0 … T-1            text, as its tokenizer numbers it
    T … T+K·N-1        codebook 0, codebook 1 …: code c of codebook k is T + k·N + c
    then               the two markers of a clip, the markers of the sequence, the voices

A tokenizer of sound knows nothing of text: its own ids begin at 0 with codebook 0. Shared ids are those plus T.

Codebooks of several rates (SNAC, Siuzdak et al. 2024) are told frame by frame, a frame being the time of one code of the slowest, and in it by
the time at which a code begins, coarse before fine. A *grammar* says which ids may come next; training sequences follow the same grammar, and
what they train is the ids where it leaves a choice.

T text ids  K codebooks  N codes in each"""

from __future__ import annotations

from collections.abc import Generator, Sequence, Sized
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from omni.errors import DataError

if TYPE_CHECKING:
    import numpy as np

Codes = list[list[int]]  # of every codebook its codes in order
Frame = Sequence[int]  # ids of one frame


class TextTokenizer(Protocol):
    """What the speech LM needs of a tokenizer of text; Hugging Face's have it, too."""

    @property
    def vocab_size(self) -> int: ...

    def encode(self, text: str, /) -> list[int]: ...

    def decode(self, ids: Any, /) -> str: ...


def vocabulary_size(tokenizer: TextTokenizer) -> int:
    """Of a tokenizer, with tokens that were added to it."""
    return max(tokenizer.vocab_size, len(tokenizer) if isinstance(tokenizer, Sized) else 0)


class AudioTokenizer(Protocol):
    """Sound ↔ ids (omni.audio_tokenizers). `samples_per_frame` at `sample_rate_hz` is what the codes of one frame stand for."""

    @property
    def layout(self) -> ScaleLayout: ...

    @property
    def sample_rate_hz(self) -> int: ...

    @property
    def samples_per_frame(self) -> int: ...

    def encode_audio(self, audio: Any, /) -> list[int]: ...

    def decode_audio(self, tokens: Any, /) -> np.ndarray: ...


@dataclass(frozen=True)
class ScaleLayout:
    """How K codebooks of `codebook_size` codes become one row of ids: `rates[k]` codes of codebook k in a frame. The ids of a clip begin with
    `start_id` and end with `end_id`."""

    codebook_size: int
    rates: tuple[int, ...]

    def __post_init__(self) -> None:
        assert min(self.rates) == 1, "a frame is one code of the slowest codebook"

    @property
    def n_codebooks(self) -> int:
        """K."""
        return len(self.rates)

    @property
    def tokens_per_frame(self) -> int:
        """Ids of one frame."""
        return sum(self.rates)

    @property
    def start_id(self) -> int:
        """Begins a clip."""
        return self.n_codebooks * self.codebook_size

    @property
    def end_id(self) -> int:
        """Ends a clip."""
        return self.start_id + 1

    @property
    def n_ids(self) -> int:
        """Codes and the two markers."""
        return self.start_id + 2

    @cached_property
    def slots(self) -> tuple[int, ...]:
        """The codebook of every id of a frame, in order: by the time at which its code begins, then coarse before fine."""
        begins = sorted((step / rate, k) for k, rate in enumerate(self.rates) for step in range(rate))
        return tuple(k for _, k in begins)

    def codebook(self, k: int) -> range:
        """The ids of codebook k."""
        return range(k * self.codebook_size, (k + 1) * self.codebook_size)

    def frames(self, codes: Sequence[Sequence[int]]) -> list[list[int]]:
        """The ids of every frame. Raises DataError for codes that fill no whole number of frames, or are none."""
        if len(codes) != self.n_codebooks:
            raise DataError(f"codes of {len(codes)} codebooks, and the layout has {self.n_codebooks}")
        n_frames = len(codes[0]) // self.rates[0]
        for k, (row, rate) in enumerate(zip(codes, self.rates, strict=True)):
            if len(row) != n_frames * rate:
                raise DataError(f"codebook {k} has {len(row)} codes, and {n_frames} frames take {n_frames * rate}")
            if row and not 0 <= min(row) <= max(row) < self.codebook_size:
                raise DataError(f"codebook {k} has code {min(row) if min(row) < 0 else max(row)}, outside 0 to {self.codebook_size - 1}")
        rows = [iter(row) for row in codes]
        return [[k * self.codebook_size + next(rows[k]) for k in self.slots] for _ in range(n_frames)]

    def to_ids(self, codes: Sequence[Sequence[int]]) -> list[int]:
        """A clip: its frames between the two markers."""
        return [self.start_id, *(i for frame in self.frames(codes) for i in frame), self.end_id]

    def read_frames(self, ids: Sequence[int]) -> tuple[list[list[int]], int]:
        """The whole frames among `ids`, and how many ids were of no use. The rule: ids are read from left to right up to `end_id`, markers
        before it are passed over. An id whose turn it is not breaks off its frame, which is dropped, and may begin the next one; so a frame
        that is not finished at the end is dropped, too."""
        found: list[list[int]] = []
        frame: list[int] = []
        lost = 0
        for i in ids:
            if i == self.end_id:
                break
            if i == self.start_id:
                continue
            if i not in self.codebook(self.slots[len(frame)]):
                lost += len(frame)
                frame = []
                if i not in self.codebook(self.slots[0]):
                    lost += 1
                    continue
            frame.append(i)
            if len(frame) == len(self.slots):
                found.append(frame)
                frame = []
        return found, lost + len(frame)

    def to_codes(self, ids: Sequence[int]) -> Codes:
        """The codes of the whole frames among `ids`; the inverse of `to_ids`."""
        codes: Codes = [[] for _ in self.rates]
        for frame in self.read_frames(ids)[0]:
            for k, i in zip(self.slots, frame, strict=True):
                codes[k].append(i - k * self.codebook_size)
        return codes


class Option(NamedTuple):
    """One way to go on: with one of `ids`. It is as likely as all ids of `mass` together."""

    ids: range
    mass: tuple[range, ...]


Grammar = Generator[list[Option], int, None]  # yields the options, is sent the id that was taken, and ends with the sequence


def one(i: int) -> range:
    """The range of a single id."""
    return range(i, i + 1)


def only(ids: range) -> list[Option]:
    """No other way than one of `ids`."""
    return [Option(ids, (ids,))]


def is_forced(options: Sequence[Option]) -> bool:
    """Whether there is nothing to choose."""
    return len(options) == 1 and len(options[0].ids) == 1


@dataclass(frozen=True)
class SpeechVocabulary:
    """The shared ids, and the two kinds of sequences.

        speaking    [voice] <text> text </text> <audio> frame frame … </audio>
        hearing     <audio> frame frame … </audio> text </text>

    A frame is the marker `frame_id` and its codes, so that going on is a choice of its own. Text and sound may also be told side by side, as
    they pass (Défossez et al. 2024, Moshi, §3.4.4; Zeghidour et al. 2025): then, when the model speaks, a text id comes `lead` frames before its
    sound; when it hears, `lag` frames behind. What is said where need then not be learned. None: all of one before all of the other.
    """

    text_size: int
    layout: ScaleLayout
    n_voices: int = 0

    @property
    def text(self) -> range:
        """The ids of text."""
        return range(self.text_size)

    @property
    def audio(self) -> range:
        """The codes of all codebooks, without the markers."""
        return range(self.text_size, self.text_size + self.layout.start_id)

    def codebook(self, k: int) -> range:
        """The ids of codebook k."""
        own = self.layout.codebook(k)
        return range(self.text_size + own.start, self.text_size + own.stop)

    @property
    def audio_start(self) -> int:
        """<audio>."""
        return self.text_size + self.layout.start_id

    @property
    def audio_end(self) -> int:
        """</audio>."""
        return self.text_size + self.layout.end_id

    def _marker(self, n: int) -> int:
        return self.text_size + self.layout.n_ids + n

    @property
    def text_start(self) -> int:
        """<text>."""
        return self._marker(0)

    @property
    def text_end(self) -> int:
        """</text>."""
        return self._marker(1)

    @property
    def frame_id(self) -> int:
        """Announces a frame."""
        return self._marker(2)

    @property
    def pad(self) -> int:
        """Fills up a batch."""
        return self._marker(3)

    @property
    def hidden(self) -> int:
        """Stands for a code that the model is not told."""
        return self._marker(4)

    def voice(self, n: int) -> int:
        """Begins a sequence that is spoken by voice n."""
        assert 0 <= n < self.n_voices
        return self._marker(5 + n)

    @property
    def size(self) -> int:
        """Of the vocabulary."""
        return self._marker(5 + self.n_voices)

    # --- training sequences

    def speaking_ids(self, text: Sequence[int], frames: Sequence[Frame], due: Sequence[int] | None, voice: int | None = None) -> list[int]:
        """`frames` in shared ids; text id i comes before frame `due[i]` (rising), all before the first if None."""
        due = [0] * len(text) if due is None else due
        ids = [] if voice is None else [self.voice(voice)]
        ids.append(self.text_start)
        told = 0
        for n, frame in enumerate(frames):
            while told < len(text) and due[told] <= n:
                ids.append(text[told])
                told += 1
                if told == len(text):
                    ids.append(self.text_end)
            ids += [*([self.audio_start] if n == 0 else []), self.frame_id, *frame]
        assert told == len(text) and frames, "all text comes before the last frame"
        return [*ids, self.audio_end]

    def hearing_ids(self, text: Sequence[int], frames: Sequence[Frame], due: Sequence[int] | None) -> list[int]:
        """Text id i comes before frame `due[i]` (rising, from 1) or, where that is not there or `due` is None, behind the sound."""
        ids, told = [self.audio_start], 0
        for n, frame in enumerate(frames):
            while due is not None and told < len(text) and due[told] <= n:
                ids.append(text[told])
                told += 1
            ids += [self.frame_id, *frame]
        return [*ids, self.audio_end, *text[told:], self.text_end]

    # --- grammars

    def speaking(self, text: Sequence[int], *, side_by_side: bool, most_frames: int, voice: int | None = None) -> Grammar:
        """What may come when `text` is said in at most `most_frames` frames (one at least). The text that is left is known: when any text is
        due, its next id is. That it is over is known, too, and never asked: a model that cannot see the end ahead would be late to tell it."""
        if voice is not None:
            yield only(one(self.voice(voice)))
        yield only(one(self.text_start))
        left, n_frames = [*text][::-1], 0
        while True:
            options = [Option(one(left[-1]), (self.text,))] if left else []
            if side_by_side or not left:
                if n_frames < max(most_frames, 1):
                    options += only(one(self.frame_id if n_frames else self.audio_start))
                if n_frames and not left:
                    options += only(one(self.audio_end))
            taken = yield options
            if left and taken == left[-1]:
                left.pop()
                if not left:
                    yield only(one(self.text_end))
            elif taken == self.audio_end:
                return
            else:
                if taken == self.audio_start:
                    yield only(one(self.frame_id))
                for k in self.layout.slots:
                    yield only(self.codebook(k))
                n_frames += 1

    def hearing(self, frames: Sequence[Frame], *, side_by_side: bool, most_text: int) -> Grammar:
        """What may come when `frames` (in shared ids) are heard, and at most `most_text` ids of text written."""
        yield only(one(self.audio_start))
        left, text = most_text, Option(self.text, (self.text,))
        for n, frame in enumerate(frames):
            while (yield [*([text] if side_by_side and n and left else []), *only(one(self.frame_id))]) != self.frame_id:
                left -= 1
            for i in frame:
                yield only(one(i))
        yield only(one(self.audio_end))
        while (yield [*([text] if left else []), *only(one(self.text_end))]) != self.text_end:
            left -= 1


def choices(grammar: Grammar, ids: Sequence[int]) -> list[bool]:
    """Of every id of a whole sequence whether the grammar left a choice there. Asserts that it allows them all, and no end before or behind."""
    found = []
    options = next(grammar)
    for at, i in enumerate(ids):
        assert any(i in option.ids for option in options), f"id {i} at {at} is not among {options}"
        found.append(not is_forced(options))
        try:
            options = grammar.send(i)
        except StopIteration:
            assert at == len(ids) - 1, f"the grammar ended at {at} of {len(ids)}"
            return found
    raise AssertionError("the sequence is not complete")
