"""The Thinker at work: prefill a batch of prompts, then one cached step a token until every row has ended its turn.

B prompts  T positions  V vocabulary"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from omni.audio import SILENCE
from omni.chat import Rendered
from omni.inference.sampling import Sampling, sample
from omni.omni_model import OmniModel
from omni.tokenizer import SPECIAL_TOKENS, BPETokenizer

Stopped = Literal["end", "stop", "limit"]  # the model ended its turn, said a stop text, or ran out of tokens or context


@dataclass(frozen=True)
class Prompt:
    """A rendered conversation that ends where the assistant begins, with its pictures (3,H,W) and log-mels (T,mels) in the order of
    `rendered.media`."""

    rendered: Rendered
    pixels: list[Tensor] = field(default_factory=list)
    mels: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class Generation:
    """A reply: its text, up to a stop text if it met one, and its ids without the end of turn."""

    text: str
    ids: list[int]
    stopped: Stopped


@dataclass(frozen=True)
class TextEvent:
    """What a stream adds to the reply: whole characters only. `stopped` is set in the last event, whose text may be empty."""

    text: str
    stopped: Stopped | None


class _Row:
    """One reply on its way."""

    def __init__(self, limit: int, sampling: Sampling, tokenizer: BPETokenizer) -> None:
        self.limit, self.sampling, self.tokenizer = limit, sampling, tokenizer
        self.generator = torch.Generator().manual_seed(sampling.seed)
        self.ids: list[int] = []
        self.text = ""
        self.stopped: Stopped | None = None

    def choose(self, logits: Tensor) -> None:
        """Take the next token from logits (V,)."""
        token = sample(logits, self.sampling, self.ids, self.generator)
        if token == self.tokenizer.end_id:
            self.stopped = "end"
            return
        self.ids.append(token)
        self.text = self.tokenizer.decode(self.ids)
        found = [at for at in map(self.text.find, self.sampling.stop) if at >= 0]
        if found:
            self.text = self.text[: min(found)]
            self.stopped = "stop"
        elif len(self.ids) == self.limit:
            self.stopped = "limit"

    def certain(self) -> str:
        """The part of the text that no later token can change: without half a character, or what may become a stop text."""
        if self.stopped is not None:
            return self.text
        text = self.text.rstrip("\N{REPLACEMENT CHARACTER}")
        starts = [len(text) - n for stop in self.sampling.stop for n in range(1, len(stop)) if text.endswith(stop[:n])]
        return text[: min(starts, default=len(text))]

    def generation(self) -> Generation:
        """The reply, once it has stopped."""
        assert self.stopped is not None
        return Generation(self.text, self.ids, self.stopped)


class Engine:
    """Greedy or sampled decoding over one model. Every prompt has its own random generator: neighbours in a batch change nothing."""

    def __init__(self, model: OmniModel, tokenizer: BPETokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer
        ids = torch.arange(model.config.thinker.vocab_size)
        # no marker but the end of turn is ever said, nor an id that the tokenizer has no text for
        self._unsayable = (((ids < len(SPECIAL_TOKENS)) & (ids != tokenizer.end_id)) | (ids >= tokenizer.vocab_size)).to(self.device)

    @property
    def device(self) -> torch.device:
        """Where the Thinker is."""
        return self.model.thinker.tok_emb.weight.device

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Generation]:
        """A reply to every prompt, decoded together."""
        if not prompts:
            return []
        rows = [self._row(prompt, sampling) for prompt in prompts]
        for _ in self._decode(prompts, rows):
            pass
        return [row.generation() for row in rows]

    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[TextEvent]:
        """The reply in pieces as they are decoded; joined, it is what `generate` gives. Closing the iterator cancels the reply."""
        row = self._row(prompt, sampling)
        said = 0
        for _ in self._decode([prompt], [row]):
            text = row.certain()
            if len(text) > said or row.stopped is not None:
                yield TextEvent(text[said:], row.stopped)
                said = len(text)

    def _row(self, prompt: Prompt, sampling: Sampling) -> _Row:
        room = self.model.config.thinker.context_length - len(prompt.rendered.input_ids)
        assert room > 0, "render() reserves room for the reply"
        return _Row(min(sampling.max_new_tokens, room), sampling, self.tokenizer)

    @torch.inference_mode()
    def _decode(self, prompts: Sequence[Prompt], rows: Sequence[_Row]) -> Iterator[None]:
        """Give every row its tokens, one at each step, until all have stopped. A row that has stopped leaves the batch."""
        thinker = self.model.thinker
        lengths = [len(p.rendered.input_ids) for p in prompts]
        cache = thinker.make_cache(len(prompts), max(n + row.limit for n, row in zip(lengths, rows, strict=True)))
        states = thinker.hidden_states(embeddings=self._embed(prompts), lengths=lengths, cache=cache)
        last = states[torch.arange(len(prompts)), torch.tensor(lengths) - 1]  # (B, d)
        while True:
            logits = thinker.lm_head(last).masked_fill(self._unsayable, -torch.inf)
            for row, choices in zip(rows, logits, strict=True):
                row.choose(choices)
            yield
            going = [i for i, row in enumerate(rows) if row.stopped is None]
            if not going:
                return
            if len(going) < len(rows):
                rows = [rows[i] for i in going]
                cache.select(going)
            last = thinker.hidden_states(torch.tensor([[row.ids[-1]] for row in rows], device=self.device), cache=cache)[:, 0]

    def _embed(self, prompts: Sequence[Prompt]) -> Tensor:
        """Embeddings (B,T,d), right-padded, with all media in place."""
        width = max(len(p.rendered.input_ids) for p in prompts)
        pad = self.tokenizer.pad_id
        input_ids = torch.tensor([p.rendered.input_ids + [pad] * (width - len(p.rendered.input_ids)) for p in prompts], device=self.device)
        pixels = [x for p in prompts for x in p.pixels]
        mels = [m for p in prompts for m in p.mels]
        image_slots = [(row, s.start) for row, p in enumerate(prompts) for s in p.rendered.media if s.kind == "image"]
        audio_slots = [(row, s.start, s.length) for row, p in enumerate(prompts) for s in p.rendered.media if s.kind == "audio"]
        padded = torch.nn.utils.rnn.pad_sequence(mels, batch_first=True, padding_value=SILENCE) if mels else None
        return self.model.embed(
            input_ids,
            pixels=torch.stack(pixels).to(self.device) if pixels else None,
            image_slots=torch.tensor(image_slots, device=self.device).view(-1, 2),
            mel=padded.to(self.device) if padded is not None else None,
            mel_lengths=torch.tensor([len(m) for m in mels], device=self.device),
            audio_slots=torch.tensor(audio_slots, device=self.device).view(-1, 3),
        )
