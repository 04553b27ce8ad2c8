"""The Talker at work: text to codes to sound, many texts at once, one cached step a frame.

B texts  F frames of 80 ms  K codebooks"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

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

SLOWEST = 2.5  # a reply may take this many times the average speaking time …
GRACE_FRAMES = 12  # … and about a second more; then it is taken for a loop and stopped
CLAUSE = re.compile(r".{20,}?[.!?;:,](?=\s)|.{120,}?(?=\s)|.+$", re.DOTALL)


@dataclass(frozen=True)
class Speech:
    """waveform (n,) float32 in [-1, 1]; codes (F,K). `ended` is false when the length guard stopped it."""

    waveform: np.ndarray
    sample_rate_hz: int
    codes: Tensor
    ended: bool

    @property
    def duration_s(self) -> float:
        """Seconds of sound."""
        return len(self.waveform) / self.sample_rate_hz


def clauses(text: str) -> list[str]:
    """`text` cut behind punctuation into pieces of at least 20 characters, none of them empty; joined by spaces they are the text."""
    return [part.strip() for part in CLAUSE.findall(text.strip()) if part.strip()]


class Speaker:
    """Says texts with one model."""

    def __init__(self, model: OmniModel, tokenizer: BPETokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer

    def voice_id(self, name: str | None) -> int:
        """The number of a voice; without a name the first. Raises ConfigError with the known names."""
        voices = self.model.config.talker.voices
        if name is None:
            return 0
        if name not in voices:
            raise ConfigError(f"no voice {name!r}; this model has: {', '.join(voices)}")
        return voices.index(name)

    def stream(self, text: str, voice: str | None, sampling: Sampling) -> Iterator[Speech]:
        """Clause by clause, so that sound begins before the text is done."""
        for clause in clauses(text):
            yield self.say([clause], voice, sampling)[0]

    @torch.inference_mode()
    def say(self, texts: Sequence[str], voice: str | None, sampling: Sampling) -> list[Speech]:
        """Every text as speech, decoded together. Raises DataError for a text that is empty or longer than the Talker's context."""
        replies = [render_reply(text, self.tokenizer) for text in texts]
        limits = [self._limit(reply) for reply in replies]
        codes, ended = self._codes(replies, self.voice_id(voice), sampling, limits)
        return [self._sound(c, e) for c, e in zip(codes, ended, strict=True)]

    def _limit(self, reply: Reply) -> int:
        """Frames after which a reply is stopped."""
        limit = math.ceil(SLOWEST * FRAMES_PER_CHARACTER * len(reply.char_ids)) + GRACE_FRAMES
        room = self.model.config.talker.context_length - len(reply.char_ids) - 1
        if room < GRACE_FRAMES + FRAMES_PER_CHARACTER * len(reply.char_ids):
            raise DataError(f"a text of {len(reply.char_ids)} characters is too long to say in one piece; say it clause by clause")
        return min(limit, room)

    def _codes(self, replies: list[Reply], voice: int, sampling: Sampling, limits: list[int]) -> tuple[list[Tensor], list[bool]]:
        model, device = self.model, self.model.talker.begin.device

        def padded(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
            return pad_sequence([torch.tensor(r) for r in rows], batch_first=True).to(device), torch.tensor([len(r) for r in rows], device=device)

        ids, lengths = padded([r.input_ids for r in replies])
        chars, char_lengths = padded([r.char_ids for r in replies])
        tokens, _ = padded([r.char_tokens for r in replies])
        voices = torch.full((len(replies),), voice, device=device)
        cache = model.talker.make_cache(len(replies), chars.shape[1] + 1 + max(limits))
        state = model.talker.start(model.condition(ids, lengths, chars, tokens, char_lengths, voices), cache)
        frames: list[list[list[int]]] = [[] for _ in replies]
        ended = [False] * len(replies)
        generators = [torch.Generator().manual_seed(sampling.seed) for _ in replies]
        rows = list(range(len(replies)))
        for frame in range(max(limits)):
            chosen = self._frame(state, rows, sampling, generators)
            going = []
            for i, row in enumerate(rows):
                if chosen[i] is None:
                    ended[row] = True
                else:
                    frames[row].append(chosen[i])  # type: ignore[arg-type]
                    if len(frames[row]) < limits[row]:
                        going.append(i)
            if not going:
                break
            if len(going) < len(rows):
                rows = [rows[i] for i in going]
                cache.select(going)
            state = model.talker.step(torch.tensor([frames[row][-1] for row in rows], device=device), frame, cache)
        n_codebooks = model.config.codec.n_codebooks
        return [torch.tensor(f, dtype=torch.long).view(-1, n_codebooks) for f in frames], ended

    def _frame(self, state: Tensor, rows: list[int], sampling: Sampling, generators: list[torch.Generator]) -> list[list[int] | None]:
        """The K codes of one frame for every row (B,d), or None where speech ends.."""
        talker = self.model.talker
        first = talker.first_logits(state)
        chosen = [[sample(first[i], sampling, (), generators[row])] for i, row in enumerate(rows)]
        done = [codes[0] == talker.end_id for codes in chosen]
        for _ in range(1, self.model.config.codec.n_codebooks):
            earlier = torch.tensor(chosen, device=state.device).clamp(max=talker.end_id - 1)
            logits = talker.rest_logits(state, earlier)
            chosen = [[*codes, sample(logits[i], sampling, (), generators[rows[i]])] for i, codes in enumerate(chosen)]
        return [None if end else codes for codes, end in zip(chosen, done, strict=True)]

    def _sound(self, codes: Tensor, ended: bool) -> Speech:
        rate = self.model.config.audio.sample_rate_hz
        if not len(codes):
            raise DataError("the Talker said nothing: it ended before the first frame; train it longer or choose another text")
        mel = self.model.codec.decode(codes[None].to(self.model.talker.begin.device))
        return Speech(self.model.vocoder(mel)[0].cpu().numpy(), rate, codes, ended)
