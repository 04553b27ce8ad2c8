"""The Thinker at work: prefill a batch of prompts, then one cached step a token until every row has ended its turn.

B prompts  T positions  V vocabulary"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from omni.audio import SILENCE
from omni.chat import Rendered
from omni.inference.sampling import Sampling, sample
from omni.omni_model import OmniModel
from omni.tokenizer import BPETokenizer


@dataclass(frozen=True)
class Prompt:
    """A rendered conversation that ends where the assistant begins, with its pictures (3,H,W) and log-mels (T,mels) in the order of
    `rendered.media`."""

    rendered: Rendered
    pixels: list[Tensor] = field(default_factory=list)
    mels: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class Generation:
    """The ids of a reply without its end of turn; `ended` is false when it ran into the limit."""

    ids: list[int]
    ended: bool


class Engine:
    """Greedy or sampled decoding over one model. Every prompt has its own random generator: neighbours in a batch change nothing."""

    def __init__(self, model: OmniModel, tokenizer: BPETokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer

    @property
    def device(self) -> torch.device:
        """Where the Thinker is."""
        return self.model.thinker.tok_emb.weight.device

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Generation]:
        """A reply to every prompt, decoded together."""
        ids: list[list[int]] = [[] for _ in prompts]
        ended = [False] * len(prompts)
        for row, token in self._tokens(prompts, sampling):
            if token is None:
                ended[row] = True
            else:
                ids[row].append(token)
        return [Generation(i, e) for i, e in zip(ids, ended, strict=True)]

    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[str]:
        """The reply in pieces as they are decoded, never half a character; joined, it is what `generate` gives."""
        ids: list[int] = []
        said = ""
        for _, token in self._tokens([prompt], sampling):
            if token is not None:
                ids.append(token)
                text = self.tokenizer.decode(ids)
                if not text.endswith("\N{REPLACEMENT CHARACTER}") and len(text) > len(said):
                    yield text[len(said) :]
                    said = text
        rest = self.tokenizer.decode(ids)[len(said) :]
        if rest:
            yield rest

    @torch.inference_mode()
    def _tokens(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[tuple[int, int | None]]:
        """(row, token) as they come; (row, None) when a row ends its turn. A finished row leaves the batch."""
        lengths = [len(p.rendered.input_ids) for p in prompts]
        room = self.model.config.thinker.context_length - max(lengths)
        steps = min(sampling.max_new_tokens, room)
        assert steps > 0, "render() reserves room for the reply"
        thinker = self.model.thinker
        cache = thinker.make_cache(len(prompts), max(lengths) + steps)
        states = thinker.hidden_states(embeddings=self._embed(prompts), lengths=lengths, cache=cache)
        last = states[torch.arange(len(prompts)), torch.tensor(lengths) - 1]  # (B, d)
        rows = list(range(len(prompts)))
        seen: list[list[int]] = [[] for _ in prompts]
        generators = [torch.Generator().manual_seed(sampling.seed) for _ in prompts]
        for step in range(steps):
            logits = thinker.lm_head(last)
            tokens = [sample(logits[i], sampling, seen[row], generators[row]) for i, row in enumerate(rows)]
            going = [i for i, token in enumerate(tokens) if token != self.tokenizer.end_id]
            for i, token in enumerate(tokens):
                yield rows[i], token if i in going else None
                seen[rows[i]].append(token)
            if not going or step == steps - 1:
                return
            if len(going) < len(rows):
                rows = [rows[i] for i in going]
                tokens = [tokens[i] for i in going]
                cache.select(going)
            last = thinker.hidden_states(torch.tensor(tokens, device=self.device)[:, None], cache=cache)[:, 0]

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
