"""The Talker at work: text to codes to sound, many texts at once, one cached step a frame.

A text is said clause by clause, each with the one before it as context: its text is read along, and its frames are in the cache. So sound
begins before the text is done, and a stream says the same as the whole.

B texts  C characters  F frames of 80 ms  K codebooks"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from omni.chat import Reply, render_reply
from omni.errors import ConfigError, DataError
from omni.inference.sampling import Sampling, sample
from omni.nn.kv_cache import KVCache
from omni.omni_model import OmniModel
from omni.talker import SLOTS
from omni.tokenizer import BPETokenizer
from omni.vocoder import NeuralVocoder, VocoderStream

BATCH = 32  # texts that are decoded together
SHORTEST_CLAUSE, LONGEST_CLAUSE = 20, 160  # characters
CLAUSE_ENDS = ".!?;:,…。！？；：，、"
LOUDEST = 10.0  # scaled log-mel far above full scale: a codec gone wild must not overflow into a waveform of NaN
CLOSING = "\"')]}”’»"
CHUNKS, LAST_CHUNK = (
    (2, 2, 4),
    8,
)  # frames of the first pieces of a stream (one would not get past the vocoder's delay), and of all later ones


@dataclass(frozen=True)
class Speech:
    """waveform (n,) float32 in [-1, 1], n = F · samples a frame; codes (F,K)."""

    waveform: np.ndarray
    sample_rate_hz: int
    codes: Tensor

    @property
    def duration_s(self) -> float:
        """Seconds of sound."""
        return len(self.waveform) / self.sample_rate_hz


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


@dataclass
class _Line:
    """A text on its way: the clauses still to say, and of the last one said its text, codes (F,K) and conditions (F,d); all codes so far."""

    clauses: list[str]
    voice: int
    generator: torch.Generator
    said: str = ""
    codes: list[list[int]] = field(default_factory=list)
    conditions: Tensor | None = None
    all_codes: list[list[int]] = field(default_factory=list)


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

    @torch.inference_mode()
    def say(self, texts: Sequence[str], voice: str | Sequence[str | None] | None, sampling: Sampling) -> list[Speech]:
        """Every text as speech, decoded together; `voice` for all or one for each. Raises DataError for a text with nothing to say, ConfigError
        for an unknown voice."""
        voices = [voice] * len(texts) if voice is None or isinstance(voice, str) else voice
        lines = [self._line(text, name, sampling) for text, name in zip(texts, voices, strict=True)]
        for start in range(0, len(lines), BATCH):
            for _ in self._decode(lines[start : start + BATCH], sampling):
                pass
        return [self._whole(line) for line in lines]

    def stream(self, text: str, voice: str | None, sampling: Sampling) -> Iterator[Speech]:
        """The same as `say` in pieces, each as soon as it is known: two frames, then more. Griffin-Lim needs the whole text and gives one piece.
        Raises before the first sound if text or voice is no use."""
        line = self._line(text, voice, sampling)
        vocoder = self.model.vocoder
        return self._stream(line, vocoder.stream(), sampling) if isinstance(vocoder, NeuralVocoder) else self._at_once(line, sampling)

    def _line(self, text: str, voice: str | None, sampling: Sampling) -> _Line:
        longest = LONGEST_CLAUSE
        parts = clauses(text, longest)
        while not all(self._fits(render_reply(part, self.tokenizer)) for part in parts):
            longest //= 2  # a sign may take several tokens
            parts = clauses(text, longest)
        if not parts:
            raise DataError("there is nothing to say: the text is empty")
        return _Line(parts, self.voice_id(voice), torch.Generator().manual_seed(sampling.seed))

    def _fits(self, reply: Reply) -> bool:
        return len(reply.input_ids) <= self.model.config.thinker.context_length

    # --- codes

    def _decode(self, lines: list[_Line], sampling: Sampling) -> Iterator[None]:
        """Say the clauses of every line, the first ones together, then the second ones …; stops after every frame."""
        while lines := [line for line in lines if line.clauses]:
            yield from self._decode_clauses(lines, sampling)

    def _decode_clauses(self, lines: list[_Line], sampling: Sampling) -> Iterator[None]:
        talker = self.model.talker
        conditions = self._conditions(lines)
        cache = self._context(lines, max(map(len, conditions)))
        for line, said in zip(lines, conditions, strict=True):
            line.said, line.codes, line.conditions = line.clauses.pop(0), [], said
        rows = list(range(len(lines)))
        for frame in range(max(map(len, conditions))):
            going = [i for i, row in enumerate(rows) if frame < len(conditions[row])]
            if len(going) < len(rows):
                rows = [rows[i] for i in going]
                cache.select(going)
            told = [lines[row].all_codes[-1:] for row in rows]
            history = torch.stack([talker.embed_codes(torch.tensor(c[0], device=talker.begin.device)) if c else talker.begin for c in told])
            state = talker.step(history, torch.stack([conditions[row][frame] for row in rows]), cache)
            for row, codes in zip(rows, self._choose(state, [lines[row].generator for row in rows], sampling), strict=True):
                lines[row].codes.append(codes)
                lines[row].all_codes.append(codes)
            yield

    def _conditions(self, lines: list[_Line]) -> list[Tensor]:
        """What the frames of every line's next clause are to say, (F,d). The clause before is read along where it fits, and is left as it is."""
        model, device = self.model, self.model.talker.begin.device
        replies, n_before = [], []
        for line in lines:
            before = render_reply(line.said, self.tokenizer) if line.said else None
            reply = render_reply(f"{line.said} {line.clauses[0]}", self.tokenizer) if line.said else None
            if before is None or reply is None or not self._fits(reply):
                line.said, line.codes, line.conditions = "", [], None
                replies.append(render_reply(line.clauses[0], self.tokenizer))
                n_before.append(0)
            else:
                replies.append(reply)
                n_before.append(len(before.char_ids) - 1)  # its last character is the silence behind it

        def padded(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
            return pad_sequence([torch.tensor(r) for r in rows], batch_first=True).to(device), torch.tensor(
                [len(r) for r in rows], device=device
            )

        ids, lengths = padded([r.input_ids for r in replies])
        chars, char_lengths = padded([r.char_ids for r in replies])
        tokens, _ = padded([r.char_tokens for r in replies])
        voices = torch.tensor([line.voice for line in lines], device=device)
        conditioning = model.condition(ids, lengths, chars, tokens, char_lengths, voices)
        found = []
        for line, characters, lasts, n in zip(lines, conditioning.embeddings, model.talker.durations(conditioning), n_before, strict=True):
            end = len(lasts) if len(line.clauses) == 1 else len(lasts) - 1  # what parts two clauses is the first character of the second
            slots = lasts[n:end]
            n_frames = max(1, min(-(-int(slots.sum()) // SLOTS), model.config.talker.context_length // 2))
            found.append(model.talker.frame_conditioning(characters[n:end], slots, n_frames))
        return found

    def _context(self, lines: list[_Line], n_frames: int) -> KVCache:
        """A cache with the frames of every line's last clause, and room for more."""
        talker = self.model.talker
        lengths = [len(line.codes) for line in lines]
        cache = talker.make_cache(len(lines), max(lengths) + n_frames)
        if max(lengths):
            device = talker.begin.device
            none = talker.begin.new_zeros(0, talker.config.d_model)
            codes = [torch.tensor(line.codes, device=device).view(-1, self.model.config.codec.n_codebooks) for line in lines]
            conditions = pad_sequence([none if line.conditions is None else line.conditions for line in lines], batch_first=True)
            talker.read(pad_sequence(codes, batch_first=True), conditions, cache, lengths)
        return cache

    def _choose(self, state: Tensor, generators: list[torch.Generator], sampling: Sampling) -> list[list[int]]:
        """The K codes of a frame for every state (B,d)."""
        talker = self.model.talker
        chosen: list[list[int]] = [[] for _ in generators]
        for k in range(self.model.config.codec.n_codebooks):
            logits = talker.rest_logits(state, torch.tensor(chosen, device=state.device)) if k else talker.first_logits(state)
            for codes, row, generator in zip(chosen, logits, generators, strict=True):
                codes.append(sample(row, sampling, (), generator))
        return chosen

    # --- sound

    def _whole(self, line: _Line) -> Speech:
        codes = torch.tensor(line.all_codes, device=self.model.talker.begin.device)
        return self._speech(self.model.vocoder(self.model.codec.decode(codes[None]).clamp(max=LOUDEST)), codes)

    def _speech(self, waveform: Tensor, codes: Tensor) -> Speech:
        """waveform (1,n), codes (F,K)."""
        return Speech(waveform[0].float().cpu().numpy(), self.model.config.audio.sample_rate_hz, codes.cpu())

    @torch.inference_mode()
    def _at_once(self, line: _Line, sampling: Sampling) -> Iterator[Speech]:
        for _ in self._decode([line], sampling):
            pass
        yield self._whole(line)

    @torch.inference_mode()
    def _stream(self, line: _Line, vocoder: VocoderStream, sampling: Sampling) -> Iterator[Speech]:
        """Pieces hold the codes whose sound they are, as far as the vocoder's delay lets them: the last one makes up for it."""
        device, ahead, done, chunks = self.model.talker.begin.device, self.model.config.codec.look_ahead, 0, list(CHUNKS)

        def piece(end: int) -> Tensor:
            return vocoder.push(self.model.codec.decode_span(codes[None], done, end).clamp(max=LOUDEST))

        for _ in self._decode([line], sampling):
            end = len(line.all_codes) - ahead
            if end - done >= chunks[0]:
                codes = torch.tensor(line.all_codes, device=device)
                yield self._speech(piece(end), codes[done:end])
                done, chunks = end, chunks[1:] or [LAST_CHUNK]
        codes = torch.tensor(line.all_codes, device=device)
        yield self._speech(torch.cat((piece(len(codes)), vocoder.finish()), dim=-1), codes[done:])
