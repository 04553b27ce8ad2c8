"""The Thinker at work: prompts join a batch, every step gives each of its rows a token, and a row that has ended its turn leaves.

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


class Draft:
    """A reply on its way."""

    def __init__(self, limit: int, sampling: Sampling, tokenizer: BPETokenizer) -> None:
        self.limit, self.sampling, self.tokenizer = limit, sampling, tokenizer
        self.generator = torch.Generator().manual_seed(sampling.seed)
        self.ids: list[int] = []
        self.text = ""
        self.stopped: Stopped | None = None
        self._told = 0  # characters that `news` has given

    def choose(self, logits: Tensor) -> None:
        """Take the next token from logits (V,)."""
        if len(self.ids) < self.sampling.min_new_tokens:
            logits = logits.index_fill(0, torch.tensor(self.tokenizer.end_id, device=logits.device), -torch.inf)
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

    def news(self) -> TextEvent | None:
        """What has become certain since this was last asked; None if nothing has."""
        text = self.certain()
        if len(text) == self._told and self.stopped is None:
            return None
        event = TextEvent(text[self._told :], self.stopped)
        self._told = len(text)
        return event

    def generation(self) -> Generation:
        """The reply, once it has stopped."""
        assert self.stopped is not None
        return Generation(self.text, self.ids, self.stopped)


class Engine:
    """Greedy or sampled decoding over one model. Every prompt has its own random generator: neighbours in a batch change nothing."""

    def __init__(self, model: OmniModel, tokenizer: BPETokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer

    def batch(self) -> Batch:
        """An empty one."""
        return Batch(self.model, self.tokenizer)

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Generation]:
        """A reply to every prompt, decoded together."""
        if not prompts:
            return []
        batch = self.batch()
        drafts = batch.join(prompts, [sampling] * len(prompts))
        while batch.drafts:
            batch.step()
        return [draft.generation() for draft in drafts]

    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[TextEvent]:
        """The reply in pieces as they are decoded; joined, it is what `generate` gives. Closing the iterator cancels the reply."""
        batch = self.batch()
        (draft,) = batch.join([prompt], [sampling])
        while True:
            if (event := draft.news()) is not None:
                yield event
            if draft.stopped is not None:
                return
            batch.step()


class Batch:
    """Replies that are decoded together, `drafts`. New ones may join between two steps; one that has stopped has left."""

    def __init__(self, model: OmniModel, tokenizer: BPETokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.drafts: list[Draft] = []
        self._cache = model.thinker.make_cache(0)  # its rows are those of the drafts
        ids = torch.arange(model.config.thinker.vocab_size)
        # no marker but the end of turn is ever said, nor an id that the tokenizer has no text for
        self._unsayable = (((ids < len(SPECIAL_TOKENS)) & (ids != tokenizer.end_id)) | (ids >= tokenizer.vocab_size)).to(
            model.thinker.tok_emb.weight.device
        )

    @torch.inference_mode()
    def join(self, prompts: Sequence[Prompt], samplings: Sequence[Sampling]) -> list[Draft]:
        """Read the prompts and give each reply its first token."""
        lengths = [len(prompt.rendered.input_ids) for prompt in prompts]
        context = self.model.config.thinker.context_length
        assert max(lengths) < context, "render() reserves room for the reply"
        drafts = [Draft(min(s.max_new_tokens, context - n), s, self.tokenizer) for n, s in zip(lengths, samplings, strict=True)]
        thinker = self.model.thinker
        cache = thinker.make_cache(len(prompts), max(n + draft.limit for n, draft in zip(lengths, drafts, strict=True)))
        states = thinker.hidden_states(embeddings=self._embed(prompts), lengths=lengths, cache=cache)
        self._cache.join(cache)
        self.drafts += drafts
        self._choose(drafts, states[torch.arange(len(prompts)), torch.tensor(lengths) - 1])
        return drafts

    @torch.inference_mode()
    def step(self) -> None:
        """Give every reply its next token."""
        last = torch.tensor([[draft.ids[-1]] for draft in self.drafts], device=self._unsayable.device)
        self._choose(list(self.drafts), self.model.thinker.hidden_states(last, cache=self._cache)[:, 0])

    @torch.inference_mode()
    def leave(self, draft: Draft) -> None:
        """Take a reply out, wherever it is; the last one takes its place."""
        row = self.drafts.index(draft)
        self._cache.leave(row)
        self.drafts[row] = self.drafts[-1]
        self.drafts.pop()

    def _choose(self, drafts: Sequence[Draft], states: Tensor) -> None:
        """The next token of each, given the states (B,d)."""
        logits = self.model.thinker.lm_head(states).masked_fill(self._unsayable, -torch.inf)
        for draft, choices in zip(drafts, logits, strict=True):
            draft.choose(choices)
        for draft in drafts:
            if draft.stopped is not None:
                self.leave(draft)

    def _embed(self, prompts: Sequence[Prompt]) -> Tensor:
        """Embeddings (B,T,d), right-padded, with all media in place."""
        device = self._unsayable.device
        width = max(len(p.rendered.input_ids) for p in prompts)
        pad = self.tokenizer.pad_id
        input_ids = torch.tensor([p.rendered.input_ids + [pad] * (width - len(p.rendered.input_ids)) for p in prompts], device=device)
        pixels = [x for p in prompts for x in p.pixels]
        mels = [m for p in prompts for m in p.mels]
        image_slots = [(row, s.start) for row, p in enumerate(prompts) for s in p.rendered.media if s.kind == "image"]
        audio_slots = [(row, s.start, s.length) for row, p in enumerate(prompts) for s in p.rendered.media if s.kind == "audio"]
        padded = torch.nn.utils.rnn.pad_sequence(mels, batch_first=True, padding_value=SILENCE) if mels else None
        return self.model.embed(
            input_ids,
            pixels=torch.stack(pixels).to(device) if pixels else None,
            image_slots=torch.tensor(image_slots, device=device).view(-1, 2),
            mel=padded.to(device) if padded is not None else None,
            mel_lengths=torch.tensor([len(m) for m in mels], device=device),
            audio_slots=torch.tensor(audio_slots, device=device).view(-1, 3),
        )
