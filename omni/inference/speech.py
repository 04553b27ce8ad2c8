"""The Talker at work: text to codes to sound, many texts at once, one cached step a frame.

B texts  F frames of 80 ms  K codebooks"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from omni.chat import Reply, render_reply
from omni.errors import ConfigError, DataError
from omni.inference.sampling import Sampling, sample
from omni.omni_model import OmniModel
from omni.talker import FRAMES_PER_CHARACTER
from omni.tokenizer import BPETokenizer

BATCH = 32  # texts that are decoded together
SLOWEST = 2.5  # a text may take this many times the average speaking time …
GRACE_FRAMES = 12  # … and about a second more; then it is taken for a runaway and stopped
LOOP_FRAMES, LONGEST_PERIOD = 36, 12  # so many frames that only repeat at most so many are a loop, and are stopped too
SHORTEST_CLAUSE, LONGEST_CLAUSE = 20, 160  # characters
CLAUSE_ENDS = ".!?;:,…。！？；：，、"
LOUDEST = 10.0  # scaled log-mel far above full scale: a codec gone wild must not overflow into a waveform of NaN
CLOSING = "\"')]}”’»"

Frame = list[int]


@dataclass(frozen=True)
class Speech:
    """waveform (n,) float32 in [-1, 1]; codes (F,K). `stopped` is "limit" when a guard against loops and endless speech stopped it."""

    waveform: np.ndarray
    sample_rate_hz: int
    codes: Tensor
    stopped: Literal["end", "limit"]

    @property
    def ended(self) -> bool:
        """Whether the Talker came to an end by itself."""
        return self.stopped == "end"

    @property
    def duration_s(self) -> float:
        """Seconds of sound."""
        return len(self.waveform) / self.sample_rate_hz


def join(parts: Sequence[Speech]) -> Speech:
    """One after the other; all of one sample rate."""
    waveform, codes = np.concatenate([p.waveform for p in parts]), torch.cat([p.codes for p in parts])
    return Speech(waveform, parts[0].sample_rate_hz, codes, "end" if all(p.ended for p in parts) else "limit")


def clauses(text: str, longest: int = LONGEST_CLAUSE) -> list[str]:
    """`text` cut behind punctuation into pieces of 20 to `longest` characters (the last may be shorter if it cannot join the one before).
    Joined by spaces they are the text with single spaces, unless a word of more than `longest` characters had to be cut."""
    words = [word[i : i + longest] for word in text.split() for i in range(0, len(word), longest)]
    out: list[str] = []
    current = ""
    for word in words:
        if current and len(current) + 1 + len(word) > longest:
            out.append(current)
            current = ""
        current = f"{current} {word}" if current else word
        if len(current) >= SHORTEST_CLAUSE and word.rstrip(CLOSING).endswith(tuple(CLAUSE_ENDS)):
            out.append(current)
            current = ""
    if current and out and len(current) < SHORTEST_CLAUSE and len(out[-1]) + 1 + len(current) <= longest:
        out[-1] += f" {current}"
    elif current:
        out.append(current)
    return out


def loop_start(frames: Sequence[Frame]) -> int | None:
    """If the last `LOOP_FRAMES` frames only repeat a few, the frame where the repetition begins; else None."""
    tail = frames[-LOOP_FRAMES:]
    if len(tail) == LOOP_FRAMES:
        for period in range(1, LONGEST_PERIOD + 1):
            if tail[period:] == tail[:-period]:
                return len(frames) - LOOP_FRAMES + period
    return None


class Speaker:
    """Says texts with one model."""

    def __init__(self, model: OmniModel, tokenizer: BPETokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer
        # what the Talker's context has room for at the average speed, with the grace
        fits = int((model.config.talker.context_length - 1 - GRACE_FRAMES) / (1 + FRAMES_PER_CHARACTER))
        self.longest_clause = max(1, min(LONGEST_CLAUSE, fits))

    def voice_id(self, name: str | None) -> int:
        """The number of a voice; without a name the first. Raises ConfigError with the known names."""
        voices = self.model.config.talker.voices
        if name is None:
            return 0
        if name not in voices:
            raise ConfigError(f"no voice {name!r}; this model has: {', '.join(voices)}")
        return voices.index(name)

    def clauses(self, text: str) -> list[str]:
        """The pieces in which `text` is said. Raises DataError when there is nothing to say."""
        if not text.strip():
            raise DataError("there is nothing to say: the text is empty")
        return clauses(text, self.longest_clause)

    def stream(self, text: str, voice: str | None, sampling: Sampling) -> Iterator[Speech]:
        """Clause by clause, so that sound begins before the text is done. Raises before the first sound if text or voice is no use."""
        self.voice_id(voice)
        parts = self.clauses(text)
        return (self.say([part], voice, sampling)[0] for part in parts)

    @torch.inference_mode()
    def say(self, texts: Sequence[str], voice: str | Sequence[str | None] | None, sampling: Sampling) -> list[Speech]:
        """Every text as speech, each in one piece, decoded together; `voice` for all or one for each. Raises DataError for a text that is
        empty or longer than the Talker's context."""
        voices = [voice] * len(texts) if voice is None or isinstance(voice, str) else voice
        jobs = [(render_reply(t, self.tokenizer), self.voice_id(v)) for t, v in zip(texts, voices, strict=True)]
        limits = [self._limit(reply) for reply, _ in jobs]
        out = []
        for start in range(0, len(jobs), BATCH):
            rows = slice(start, start + BATCH)
            out += [
                self._sound(*row) for row in self._codes([r for r, _ in jobs[rows]], [v for _, v in jobs[rows]], sampling, limits[rows])
            ]
        return out

    def _limit(self, reply: Reply) -> int:
        """Frames after which a reply is stopped."""
        n_characters = len(reply.char_ids)
        if not n_characters:
            raise DataError("there is nothing to say: the text has no letter, digit or sign")
        room = self.model.config.talker.context_length - n_characters - 1
        if room < GRACE_FRAMES + FRAMES_PER_CHARACTER * n_characters:
            raise DataError(f"a text of {n_characters} characters is too long to say in one piece; say it clause by clause")
        return min(math.ceil(SLOWEST * FRAMES_PER_CHARACTER * n_characters) + GRACE_FRAMES, room)

    def _codes(self, replies: list[Reply], voices: list[int], sampling: Sampling, limits: list[int]) -> list[tuple[Tensor, bool]]:
        """The codes (F,K) of every reply, and whether it ended by itself."""
        model, device = self.model, self.model.talker.begin.device

        def padded(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
            return pad_sequence([torch.tensor(r) for r in rows], batch_first=True).to(device), torch.tensor(
                [len(r) for r in rows], device=device
            )

        ids, lengths = padded([r.input_ids for r in replies])
        chars, char_lengths = padded([r.char_ids for r in replies])
        tokens, _ = padded([r.char_tokens for r in replies])
        cache = model.talker.make_cache(len(replies), chars.shape[1] + 1 + max(limits))
        state = model.talker.start(model.condition(ids, lengths, chars, tokens, char_lengths, torch.tensor(voices, device=device)), cache)
        frames: list[list[Frame]] = [[] for _ in replies]
        ended = [False] * len(replies)
        generators = [torch.Generator().manual_seed(sampling.seed) for _ in replies]
        rows = list(range(len(replies)))
        for step in range(max(limits)):
            going = []
            for i, frame in enumerate(self._frame(state, step, sampling, [generators[row] for row in rows])):
                row = rows[i]
                if frame is None:
                    ended[row] = True
                    continue
                frames[row].append(frame)
                repeats = loop_start(frames[row])
                if repeats is not None:
                    del frames[row][repeats:]
                elif len(frames[row]) < limits[row]:
                    going.append(i)
            if not going:
                break
            if len(going) < len(rows):
                rows = [rows[i] for i in going]
                cache.select(going)
            state = model.talker.step(torch.tensor([frames[row][-1] for row in rows], device=device), step, cache)
        return [(torch.tensor(f, dtype=torch.long), e) for f, e in zip(frames, ended, strict=True)]

    def _frame(self, state: Tensor, step: int, sampling: Sampling, generators: list[torch.Generator]) -> list[Frame | None]:
        """The K codes of one frame for every state (B,d), or None where speech ends; the first frame always sounds."""
        talker = self.model.talker
        first = talker.first_logits(state)
        if step == 0:
            first[:, talker.end_id] = -torch.inf
        chosen = [[sample(row, sampling, (), generator)] for row, generator in zip(first, generators, strict=True)]
        done = [codes[0] == talker.end_id for codes in chosen]
        for _ in range(1, self.model.config.codec.n_codebooks):
            earlier = torch.tensor(chosen, device=state.device).clamp(max=talker.end_id - 1)
            logits = talker.rest_logits(state, earlier)
            for codes, row, generator in zip(chosen, logits, generators, strict=True):
                codes.append(sample(row, sampling, (), generator))
        return [None if end else codes for codes, end in zip(chosen, done, strict=True)]

    def _sound(self, codes: Tensor, ended: bool) -> Speech:
        """F frames give exactly F / 12.5 seconds."""
        mel = self.model.codec.decode(codes[None].to(self.model.talker.begin.device)).clamp(max=LOUDEST)
        waveform = self.model.vocoder(mel)[0].float().cpu().numpy()
        return Speech(waveform, self.model.config.audio.sample_rate_hz, codes, "end" if ended else "limit")
