"""The Talker at work: text to codes to sound, many texts at once, one cached step a frame.

A text is said clause by clause, each with the one before it as context: its text is read along, and its frames are in the cache. So sound
begins before the text is done, or even known, and a stream says the same as the whole.

B texts  C characters  F frames of 80 ms  K codebooks"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from omni.alignment import SLOTS
from omni.chat import Reply, render_reply
from omni.errors import ConfigError, DataError
from omni.inference.sampling import Sampling, sample
from omni.nn.kv_cache import KVCache
from omni.omni_model import OmniModel
from omni.spoken import ABBREVIATIONS, spoken_form
from omni.tokenizer import BPETokenizer
from omni.vocoder import NeuralVocoder, VocoderStream

BATCH = 32  # texts that are decoded together
SHORTEST_CLAUSE, LONGEST_CLAUSE = 20, 160  # characters
CLAUSE_ENDS = ".!?;:,…。！？；：，、"
CLOSING = "\"')]}”’»"
CHUNKS = (2, 2, 4)  # frames of the first pieces of a stream: one would not get past the vocoder's delay
LAST_CHUNK = 8  # and of all later ones


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
        if len(current) >= SHORTEST_CLAUSE and word.rstrip(CLOSING).endswith(tuple(CLAUSE_ENDS)) and word not in ABBREVIATIONS:
            out.append(current)
            current = ""
    if current and out and len(current) < SHORTEST_CLAUSE and len(out[-1]) + 1 + len(current) <= longest:
        out[-1] += f" {current}"
    elif current:
        out.append(current)
    return out


class Line:
    """A text on its way to sound. It may come in pieces (`add`) until it is `complete`; what is said is the same as of the whole text."""

    def __init__(self, speaker: Speaker, voice: str | None, sampling: Sampling) -> None:
        self.speaker, self.sampling = speaker, sampling
        self.voice = speaker.voice_id(voice)
        self.generator = torch.Generator().manual_seed(sampling.seed)
        self.text, self.complete = "", False
        self.n_begun = 0  # parts
        # of the clause before and of the one being said: its text, codes (F,K) and conditions (F,d)
        self.said = ""
        self.codes: list[list[int]] = []
        self.conditions: Tensor | None = None
        self.all_codes: list[list[int]] = []
        vocoder = speaker.model.vocoder
        self._vocoder = vocoder.stream() if isinstance(vocoder, NeuralVocoder) else None
        self._n_sounded = 0  # frames whose sound `news` has given
        self._chunks = list(CHUNKS)
        self._parts: list[str] = []  # what is known of the clauses, of which some may be too long for the Thinker to read at once
        self._n_known = 0  # clauses

    def add(self, text: str, *, last: bool = False) -> None:
        """More of the text. Raises DataError if it is complete and has nothing to say."""
        self.text += text
        self.complete = last
        known = clauses(self.text if last else self.text.rpartition(" ")[0])  # an unfinished text may end in half a word
        # what comes may join its last clause, and one that no words follow is the last to be said
        while not last and known and not spoken_form(known.pop()):
            pass
        for clause in known[self._n_known :]:
            for said in clauses(spoken_form(clause)):
                self._parts += self.speaker.fitting(said)
        self._n_known = len(known)
        if last and not self._parts:
            raise DataError("there is nothing to say: the text has no words")

    @property
    def next_clause(self) -> str | None:
        """What is to be said next, if it is known."""
        return self._parts[self.n_begun] if self.n_begun < len(self._parts) else None

    @property
    def ends_with_next(self) -> bool:
        """Whether the next clause is the last."""
        return self.complete and self.n_begun == len(self._parts) - 1

    @property
    def in_clause(self) -> bool:
        """Whether a clause is being said."""
        return self.conditions is not None and len(self.codes) < len(self.conditions)

    @property
    def done(self) -> bool:
        """Whether all of it has been said."""
        return self.complete and self.next_clause is None and not self.in_clause

    @torch.inference_mode()
    def news(self) -> Speech | None:
        """The sound that is new, as soon as it makes up a piece: two frames, then more. Pieces hold the codes whose sound they are, as far as the
        vocoder's delay lets them: the last one makes up for it. Griffin-Lim needs the whole text and gives one piece."""
        if self.done:
            if self._n_sounded == len(self.all_codes):
                return None
            if self._vocoder is None:
                self._n_sounded = len(self.all_codes)
                return self.whole()
            return self._piece(self._vocoder, len(self.all_codes))
        end = len(self.all_codes) - self.speaker.model.config.codec.look_ahead
        if self._vocoder is None or end - self._n_sounded < self._chunks[0]:
            return None
        self._chunks = self._chunks[1:] or [LAST_CHUNK]
        return self._piece(self._vocoder, end)

    @torch.inference_mode()
    def whole(self) -> Speech:
        """All that has been said, at once."""
        model = self.speaker.model
        codes = torch.tensor(self.all_codes, device=model.talker.begin.device)
        return self._speech(model.vocoder(model.codec.decode(codes[None])), codes)

    def _piece(self, vocoder: VocoderStream, end: int) -> Speech:
        codec = self.speaker.model.codec
        codes = torch.tensor(self.all_codes, device=self.speaker.model.talker.begin.device)
        sound = vocoder.push(codec.decode_span(codes[None], self._n_sounded, end))
        if self.done:
            sound = torch.cat((sound, vocoder.finish()), dim=-1)
        start, self._n_sounded = self._n_sounded, end
        return self._speech(sound, codes[start:end])

    def _speech(self, waveform: Tensor, codes: Tensor) -> Speech:
        """waveform (1,n), codes (F,K)."""
        return Speech(waveform[0].float().cpu().numpy(), self.speaker.model.config.audio.sample_rate_hz, codes.cpu())


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

    def line(self, voice: str | None, sampling: Sampling, text: str | None = None) -> Line:
        """A text to say; without `text` it is still to come. Raises ConfigError for an unknown voice, DataError if there is nothing to say."""
        line = Line(self, voice, sampling)
        if text is not None:
            line.add(text, last=True)
        return line

    def batch(self) -> SpeechBatch:
        """An empty one."""
        return SpeechBatch(self)

    def say(self, texts: Sequence[str], voice: str | Sequence[str | None] | None, sampling: Sampling) -> list[Speech]:
        """Every text as speech, decoded together; `voice` for all or one for each. Raises DataError for a text with nothing to say, ConfigError
        for an unknown voice."""
        voices = [voice] * len(texts) if voice is None or isinstance(voice, str) else voice
        lines = [self.line(name, sampling, text) for text, name in zip(texts, voices, strict=True)]
        for start in range(0, len(lines), BATCH):
            batch = self.batch()
            for line in lines[start : start + BATCH]:
                batch.join(line)
            while batch.lines:
                batch.step()
        return [line.whole() for line in lines]

    def stream(self, text: str, voice: str | None, sampling: Sampling) -> Iterator[Speech]:
        """The same as `say` in pieces, each as soon as it is known. Raises before the first sound if text or voice is no use."""
        return self._stream(self.line(voice, sampling, text))

    def _stream(self, line: Line) -> Iterator[Speech]:
        batch = self.batch()
        batch.join(line)
        while batch.lines:
            batch.step()
            if (piece := line.news()) is not None:
                yield piece

    def fitting(self, clause: str) -> list[str]:
        """A clause in as many parts as the Thinker needs to read it. Raises DataError if there is nothing in it to say."""
        longest = LONGEST_CLAUSE
        parts = [clause]
        while not all(self.fits(render_reply(part, self.tokenizer)) for part in parts):
            longest //= 2  # a sign may take several tokens
            parts = clauses(clause, longest)
        return parts

    def fits(self, reply: Reply) -> bool:
        """Whether the Thinker can read it."""
        return len(reply.input_ids) <= self.model.config.thinker.context_length


class SpeechBatch:
    """Texts that are said together: at every step each that has something to say gets one frame. New ones may join between two steps; one that
    is done has left. A text whose next clause is not known yet waits."""

    def __init__(self, speaker: Speaker) -> None:
        self.speaker, self.model, self.tokenizer = speaker, speaker.model, speaker.tokenizer
        self.lines: list[Line] = []
        self._speaking: list[Line] = []  # those within a clause
        self._cache = self.model.talker.make_cache(0)  # its rows are those of `_speaking`

    @property
    def can_step(self) -> bool:
        """Whether any text has something to say."""
        return any(line.in_clause or line.next_clause is not None for line in self.lines)

    def join(self, line: Line) -> None:
        """One more text."""
        self.lines.append(line)

    @torch.inference_mode()
    def leave(self, line: Line) -> None:
        """Take a text out, wherever it is."""
        self.lines.remove(line)
        if line in self._speaking:
            self._end_clause(line)

    @torch.inference_mode()
    def step(self) -> None:
        """One more frame for every text that has something to say."""
        assert self.can_step
        if begin := [line for line in self.lines if not line.in_clause and line.next_clause is not None]:
            self._begin(begin)
        talker = self.model.talker
        told = [line.all_codes[-1:] for line in self._speaking]
        history = torch.stack([talker.embed_codes(torch.tensor(c[0], device=talker.begin.device)) if c else talker.begin for c in told])
        conditions = torch.stack([line.conditions[len(line.codes)] for line in self._speaking if line.conditions is not None])
        state = talker.step(history, conditions, self._cache)

        def picked(logits: Tensor) -> Tensor:
            rows = zip(logits, self._speaking, strict=True)
            return torch.tensor([sample(row, line.sampling, (), line.generator) for row, line in rows], device=logits.device)

        for line, codes in zip(self._speaking, talker.choose(state, picked).tolist(), strict=True):
            line.codes.append(codes)
            line.all_codes.append(codes)
        for line in [line for line in self._speaking if not line.in_clause]:
            self._end_clause(line)
        self.lines = [line for line in self.lines if not line.done]

    def _end_clause(self, line: Line) -> None:
        row = self._speaking.index(line)
        self._cache.leave(row)
        self._speaking[row] = self._speaking[-1]
        self._speaking.pop()

    def _begin(self, lines: list[Line]) -> None:
        """Start the next clause of each."""
        conditions = self._conditions(lines)
        cache = self._context(lines, max(map(len, conditions)))
        for line, to_say in zip(lines, conditions, strict=True):
            line.said, line.codes, line.conditions = line.next_clause or "", [], to_say
            line.n_begun += 1
        self._cache.join(cache)
        self._speaking += lines

    def _conditions(self, lines: list[Line]) -> list[Tensor]:
        """What the frames of every line's next clause are to say, (F,d). The clause before is read along where it fits, and is left as it is."""
        model, device = self.model, self.model.talker.begin.device
        replies, n_before = [], []
        for line in lines:
            before = render_reply(line.said, self.tokenizer) if line.said else None
            reply = render_reply(f"{line.said} {line.next_clause}", self.tokenizer) if line.said else None
            if before is None or reply is None or not self.speaker.fits(reply):
                line.said, line.codes, line.conditions = "", [], None
                replies.append(render_reply(line.next_clause or "", self.tokenizer))
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
            end = len(lasts) if line.ends_with_next else len(lasts) - 1  # what parts two clauses is the first character of the second
            slots = lasts[n:end]
            n_frames = max(1, min(-(-int(slots.sum()) // SLOTS), model.config.talker.context_length // 2))
            found.append(model.talker.frame_conditioning(characters[n:end], slots, n_frames))
        return found

    def _context(self, lines: list[Line], n_frames: int) -> KVCache:
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
