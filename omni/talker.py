"""The Talker: says a reply as codes of the codec, one frame of 80 ms at a time.

A transformer that sees both ways reads the spelling, every character with its token's Thinker state, and says how long each character lasts
(FastSpeech, Ren et al. 2019, §3.3). So each frame knows what is said in it: it has four slots of 20 ms, and in each slot sounds one character.
A causal transformer over the frames, told the codes so far, gives the codes of the next: the first from its state, code k > 0 from that state
and codes 0 … k-1 of the same frame. Speech ends with the time of the last character.

The durations to learn from are those of an aligner that learns along with it (omni.alignment). Where in the text it is need not be learned, so a
few hours of speech are enough, and nothing is skipped or said twice.

B batch  C characters  F frames  K codebooks  N codebook size  d model width  w code width"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omni.alignment import SLOTS, Aligner
from omni.characters import N_CHARACTERS
from omni.config import CodecConfig, TalkerConfig
from omni.nn.kv_cache import KVCache
from omni.nn.transformer import RMSNorm, Transformer, TransformerShape

LONGEST = 75  # slots that a character may last: a pause of 1.5 s
USUAL = 3.35  # English read aloud: about 15 characters a second


@dataclass(frozen=True)
class Conditioning:
    """What is to be said: the states `embeddings` (B,C,d) of its characters, right-padded, and `lengths` (B,)."""

    embeddings: Tensor
    lengths: Tensor


@dataclass(frozen=True)
class TalkerOutput:
    """Of teacher forcing: logits of the codes, `first` (B,F,N) and `rest` (B,F,K-1,N); `log_durations` (B,C), ln slots of every character."""

    first: Tensor
    rest: Tensor
    log_durations: Tensor


class TalkerConditioning(nn.Module):
    """Spelling, Thinker states and voice → Conditioning."""

    def __init__(self, config: TalkerConfig, thinker_width: int) -> None:
        super().__init__()
        d = config.d_model
        self.character = nn.Embedding(N_CHARACTERS, d)
        self.state = nn.Linear(thinker_width, d, bias=False)
        self.voice = nn.Embedding(len(config.voices), d)
        self.transformer = Transformer(
            TransformerShape(
                d_model=d,
                n_layers=config.n_text_layers,
                n_heads=config.n_heads,
                n_kv_heads=config.n_heads,
                d_ff=config.d_ff,
                causal=False,
                feed_forward="gelu",
                dropout=config.dropout,
            )
        )
        for embedding in (self.character, self.voice):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, states: Tensor, char_ids: Tensor, char_tokens: Tensor, char_lengths: Tensor, voices: Tensor) -> Conditioning:
        """states (B,T,thinker width) of the reply; char_ids (B,C); char_tokens (B,C) the position in T of each character's token;
        voices (B,) ids."""
        of_token = states.gather(1, char_tokens[..., None].expand(-1, -1, states.shape[-1]))  # (B, C, thinker width)
        x = self.character(char_ids) + self.state(of_token) + self.voice(voices)[:, None]
        return Conditioning(self.transformer(x, lengths=char_lengths), char_lengths)


class FrameConditioning(nn.Module):
    """The characters that sound in the four slots of a frame, and how far each has come, as one vector."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.character = nn.Linear(width, width)
        self.progress = nn.Linear(2, width, bias=False)
        self.frame = nn.Linear(SLOTS * width, width)

    def forward(self, characters: Tensor, durations: Tensor, n_frames: int) -> Tensor:
        """States (C,d) of characters that last `durations` (C,) slots → (n_frames,d); cut, or with the last character going on, to fit."""
        slots = torch.repeat_interleave(torch.arange(len(durations), device=durations.device), durations)[: n_frames * SLOTS]
        slots = F.pad(slots, (0, n_frames * SLOTS - len(slots)), value=len(durations) - 1)  # (F·4,) the character in each slot
        begins = durations.cumsum(0) - durations
        lasts = durations[slots].clamp(min=1).float()
        done = ((torch.arange(len(slots), device=slots.device) - begins[slots]) / lasts).clamp(max=1.0)
        progress = torch.stack((done, lasts.log()), dim=-1).to(characters.dtype)
        x = F.gelu(self.character(characters)[slots] + self.progress(progress))
        return self.frame(x.view(n_frames, -1))


class TalkerTiny(nn.Module):
    """Thinker states, spelling and previous codes (B,F,K) → logits of the K codes of every frame."""

    def __init__(self, config: TalkerConfig, codec: CodecConfig, thinker_width: int, n_mels: int = 128) -> None:
        super().__init__()
        assert codec.stride % SLOTS == 0, f"{codec.stride} mel frames a code frame are no {SLOTS} slots"
        self.config, self.codec = config, codec
        d, n, width = config.d_model, codec.codebook_size, config.code_width or config.d_model
        self.aligner = Aligner(n_mels, codec.stride // SLOTS, config.aligner_width)
        self.conditioning = TalkerConditioning(config, thinker_width)
        self.duration = nn.Linear(d, 1)
        self.frame_conditioning = FrameConditioning(d)
        self.begin = nn.Parameter(torch.zeros(d))
        self.code_emb = nn.ModuleList(nn.Embedding(n, width) for _ in range(codec.n_codebooks))
        self.code_in = nn.Linear(width, d, bias=False) if width != d else nn.Identity()
        self.transformer = Transformer(
            TransformerShape(
                d_model=d,
                n_layers=config.n_layers,
                n_heads=config.n_heads,
                n_kv_heads=config.n_kv_heads,
                d_ff=config.d_ff,
                causal=True,
                dropout=config.dropout,
            )
        )
        self.first_out = nn.Linear(d, width)
        self.rest_mix = nn.ModuleList(
            nn.Sequential(RMSNorm(d), nn.Linear(d, d // 2), nn.GELU(), nn.Linear(d // 2, d)) for _ in range(codec.n_codebooks - 1)
        )
        self.rest_out = nn.ModuleList(nn.Linear(d, width) for _ in range(codec.n_codebooks - 1))
        for weight in self.code_emb.parameters():
            nn.init.normal_(weight, std=width**-0.5)
        nn.init.normal_(self.begin, std=0.02)
        nn.init.constant_(self.duration.bias, math.log(USUAL))

    def make_cache(self, batch_size: int, max_length: int | None = None) -> KVCache:
        """An empty cache for so many frames (default: the context)."""
        return self.transformer.make_cache(batch_size, max_length or self.config.context_length)

    # --- what is said when

    def log_durations(self, conditioning: Conditioning) -> Tensor:
        """ln of the slots of every character, (B,C)."""
        return self.duration(conditioning.embeddings)[..., 0]

    def durations(self, conditioning: Conditioning) -> list[Tensor]:
        """Of every row the slots (C,) that its characters last, rounded so that no error adds up."""
        slots = self.log_durations(conditioning).float().exp().clamp(max=LONGEST)
        ends = [row[:n].cumsum(0).round().long() for row, n in zip(slots, conditioning.lengths.tolist(), strict=True)]
        return [row.diff(prepend=row.new_zeros(1)) for row in ends]

    def frame_conditions(self, conditioning: Conditioning, durations: list[Tensor], n_frames: list[int]) -> list[Tensor]:
        """Of every row what its frames are to say, (F,d), given the slots (C,) that its characters last."""
        rows = zip(conditioning.embeddings, durations, n_frames, strict=True)
        return [self.frame_conditioning(characters[: len(lasts)], lasts, n) for characters, lasts, n in rows]

    # --- how it sounds

    def embed_codes(self, codes: Tensor) -> Tensor:
        """codes (…,k) of the first k codebooks → (…,d)."""
        return self.code_in(torch.stack([self.code_emb[k](codes[..., k]) for k in range(codes.shape[-1])]).sum(0))

    def first_logits(self, states: Tensor) -> Tensor:
        """(…,d) → (…,N), of the first codebook."""
        return self.first_out(states) @ self.code_emb[0].weight.T  # type: ignore[operator]

    def rest_logits(self, states: Tensor, earlier: Tensor) -> Tensor:
        """Logits (…,N) of codebook k = earlier.shape[-1], given the state (…,d) and codes 0 … k-1 (…,k) of the same frame."""
        k = earlier.shape[-1]
        x = states + self.embed_codes(earlier)
        return self.rest_out[k - 1](x + self.rest_mix[k - 1](x)) @ self.code_emb[k].weight.T  # type: ignore[operator]

    def choose(self, states: Tensor, pick: Callable[[Tensor], Tensor]) -> Tensor:
        """States (B,d) of a frame → its codes (B,K), the first by the state, each later one by the codes before it too. `pick` takes a code of
        every row by its logits: (B,N) → (B,)."""
        codes = pick(self.first_logits(states))[:, None]
        for _ in range(1, self.codec.n_codebooks):
            codes = torch.cat((codes, pick(self.rest_logits(states, codes))[:, None]), dim=1)
        return codes

    def step(self, history: Tensor, conditions: Tensor, cache: KVCache) -> Tensor:
        """The embedded codes of the frame before (or `begin`) and what the next frame is to say, both (B,d) → its state (B,d)."""
        return self.transformer((conditions + history)[:, None], cache=cache)[:, 0]

    def read(self, codes: Tensor, conditions: Tensor, cache: KVCache | None = None, lengths: list[int] | None = None) -> Tensor:
        """Codes (B,F,K) of frames that say `conditions` (B,F,d) → the states (B,F,d) that each frame's codes were to be predicted from.
        `lengths` of the rows are needed with a cache, if they differ."""
        history = torch.cat((self.begin.expand(len(codes), 1, -1), self.embed_codes(codes[:, :-1])), dim=1)
        if self.training and self.config.history_dropout:  # what is to be said counts more than how it sounded so far
            shares = torch.rand(len(history), 1, device=history.device) * self.config.history_dropout
            hidden = torch.rand(history.shape[:2], device=history.device) < shares
            history = torch.where(hidden[..., None], self.begin, history)
        return self.transformer(conditions + history, cache=cache, lengths=lengths)

    def forward(self, codes: Tensor, conditioning: Conditioning, durations: list[Tensor]) -> TalkerOutput:
        """Teacher forcing over codes (B,F,K), right-padded (padding cannot reach earlier frames; mask it in the loss), while the characters of
        each row last `durations`."""
        conditions = torch.stack(self.frame_conditions(conditioning, durations, [codes.shape[1]] * len(codes)))
        states = self.read(codes, conditions)
        rest = [self.rest_logits(states, codes[..., :k]) for k in range(1, self.codec.n_codebooks)]
        empty = states.new_zeros(*codes.shape[:2], 0, self.codec.codebook_size)
        return TalkerOutput(self.first_logits(states), torch.stack(rest, dim=2) if rest else empty, self.log_durations(conditioning))
