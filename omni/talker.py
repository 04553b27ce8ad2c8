"""The Talker: says a reply. Characters, each carrying its token's Thinker state, come first; codec frames follow until it stops.

The sequence of one row is  characters · begin-of-speech · frame 0 · frame 1 · …  Frame f's first code is read from the state before
it; code k > 0 is predicted from that state and codes 0 … k-1 of the same frame. End of speech is id `codebook_size` of the first
head, outside the codebook, so it can never be decoded as sound.

Rotary positions are times in code frames: characters are spread at the average speaking rate, so that the sound of a character has
nearly its character's own position. Order, not position, decides what a frame may look at.

B batch  C characters  F frames  K codebooks  N codebook size  d model width"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omni.characters import N_CHARACTERS
from omni.config import CodecConfig, TalkerConfig
from omni.nn.kv_cache import KVCache
from omni.nn.transformer import RMSNorm, Transformer, TransformerShape

FRAMES_PER_CHARACTER = 0.85  # English read aloud: about 15 characters and 12.5 code frames a second


@dataclass(frozen=True)
class Conditioning:
    """What is to be said: `embeddings` (B,C,d), right-padded, and `lengths` (B,)."""

    embeddings: Tensor
    lengths: Tensor


@dataclass(frozen=True)
class TalkerOutput:
    """Logits at every step of teacher forcing. `first` (B,F+1,N+1): the last column is end of speech; `rest` (B,F,K-1,N)."""

    first: Tensor
    rest: Tensor


class TalkerConditioning(nn.Module):
    """Spelling, Thinker states and voice → Conditioning. A short convolution lets a character know its neighbours."""

    def __init__(self, config: TalkerConfig, thinker_width: int) -> None:
        super().__init__()
        d = config.d_model
        self.character = nn.Embedding(N_CHARACTERS, d)
        self.state = nn.Linear(thinker_width, d, bias=False)
        self.voice = nn.Embedding(len(config.voices), d)
        self.mix = nn.Conv1d(d, d, kernel_size=5, padding=2)
        self.norm = RMSNorm(d)
        for embedding in (self.character, self.voice):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, states: Tensor, char_ids: Tensor, char_tokens: Tensor, char_lengths: Tensor, voices: Tensor) -> Conditioning:
        """states (B,T,thinker width) of the reply; char_ids (B,C); char_tokens (B,C) the position in T of each character's token;
        voices (B,) ids."""
        of_token = states.gather(1, char_tokens[..., None].expand(-1, -1, states.shape[-1]))  # (B, C, thinker width)
        x = self.character(char_ids) + self.state(of_token)
        keep = (torch.arange(char_ids.shape[1], device=x.device) < char_lengths[:, None])[..., None].to(x.dtype)
        x = x + F.gelu(self.mix((x * keep).transpose(1, 2))).transpose(1, 2)
        return Conditioning(x + self.voice(voices)[:, None], char_lengths)


class TalkerTiny(nn.Module):
    """Thinker states, spelling and previous codes (B,F,K) → logits of the K codes of every frame."""

    def __init__(self, config: TalkerConfig, codec: CodecConfig, thinker_width: int) -> None:
        super().__init__()
        self.config, self.codec = config, codec
        d, n = config.d_model, codec.codebook_size
        self.conditioning = TalkerConditioning(config, thinker_width)
        self.begin = nn.Parameter(torch.zeros(d))
        self.code_emb = nn.ModuleList(nn.Embedding(n, d) for _ in range(codec.n_codebooks))
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
        self.first_head = nn.Linear(d, n, bias=False)
        self.end_head = nn.Linear(d, 1)
        self.rest_mix = nn.ModuleList(
            nn.Sequential(RMSNorm(d), nn.Linear(d, 2 * d), nn.GELU(), nn.Linear(2 * d, d)) for _ in range(codec.n_codebooks - 1)
        )
        self.rest_head = nn.ModuleList(nn.Linear(d, n, bias=False) for _ in range(codec.n_codebooks - 1))
        for weight in self.code_emb.parameters():
            nn.init.normal_(weight, std=0.02)
        nn.init.normal_(self.begin, std=0.02)

    @property
    def end_id(self) -> int:
        """End of speech: one past the last code."""
        return self.codec.codebook_size

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer blocks."""
        return self.transformer.blocks

    def make_cache(self, batch_size: int, max_length: int | None = None) -> KVCache:
        """An empty cache for characters and frames (default: the context)."""
        return self.transformer.make_cache(batch_size, max_length or self.config.context_length)

    def embed_frames(self, codes: Tensor) -> Tensor:
        """codes (B,F,K) → (B,F,d), the sum of the K embeddings."""
        return torch.stack([table(codes[..., k]) for k, table in enumerate(self.code_emb)]).sum(0)

    def first_logits(self, states: Tensor) -> Tensor:
        """(…,d) → (…,N+1): the first codebook, then end of speech."""
        return torch.cat((self.first_head(states), self.end_head(states)), dim=-1)

    def rest_logits(self, states: Tensor, earlier: Tensor) -> Tensor:
        """Logits (…,N) of codebook k = earlier.shape[-1], given the state (…,d) and codes 0 … k-1 (…,k) of the same frame."""
        k = earlier.shape[-1]
        x = states
        for j in range(k):
            x = x + self.code_emb[j](earlier[..., j])
        return self.rest_head[k - 1](x + self.rest_mix[k - 1](x))

    def start(self, conditioning: Conditioning, cache: KVCache) -> Tensor:
        """Read the text and begin-of-speech into `cache`; returns the state (B,d) that predicts frame 0."""
        x, positions, lengths, first = self._sequence(conditioning, conditioning.embeddings[:, :0])
        states = self.transformer(x, lengths=lengths, positions=positions, cache=cache)
        return states.gather(1, first[:, None, None].expand(-1, 1, states.shape[-1]))[:, 0]

    def step(self, codes: Tensor, frame: int, cache: KVCache) -> Tensor:
        """Feed the codes (B,K) of frame number `frame`; returns the state (B,d) that predicts the next."""
        positions = torch.full((len(codes), 1), frame + 1.0, device=codes.device)
        return self.transformer(self.embed_frames(codes[:, None]), positions=positions, cache=cache)[:, 0]

    def forward(self, codes: Tensor, conditioning: Conditioning) -> TalkerOutput:
        """Teacher forcing over codes (B,F,K), right-padded (padding cannot reach earlier frames; mask it in the loss)."""
        x, positions, lengths, first = self._sequence(conditioning, self.embed_frames(codes))
        states = self.transformer(x, positions=positions)
        at = first[:, None] + torch.arange(codes.shape[1] + 1, device=x.device)  # (B, F+1)
        states = states.gather(1, at[..., None].expand(-1, -1, states.shape[-1]))  # (B, F+1, d)
        rest = [self.rest_logits(states[:, :-1], codes[..., :k]) for k in range(1, self.codec.n_codebooks)]
        empty = states.new_zeros(*codes.shape[:2], 0, self.codec.codebook_size)
        return TalkerOutput(self.first_logits(states), torch.stack(rest, dim=2) if rest else empty)

    def _sequence(self, conditioning: Conditioning, frames: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Characters, begin and frames of each row without a gap: (B,L,d), times (B,L), valid lengths (B,) and the index (B,) of begin."""
        text, n_text = conditioning.embeddings, conditioning.lengths
        batch, width, device = len(text), text.shape[1], text.device
        n_after = 1 + frames.shape[1]
        x = torch.cat((text, self.begin.to(text.dtype).expand(batch, 1, -1), frames.to(text.dtype)), dim=1)
        time = torch.cat((torch.arange(width, device=device) * FRAMES_PER_CHARACTER, torch.arange(n_after, device=device).float()))
        index = torch.arange(width + n_after, device=device).expand(batch, -1)
        n_text = n_text[:, None]
        # position p of row b is character p, or, behind the row's own text, the column that skips the text's padding; padding goes last
        source = torch.where(index < n_text, index, (index + width - n_text).clamp(max=width + n_after - 1))
        x = x.gather(1, source[..., None].expand(-1, -1, x.shape[-1]))
        return x, time[source], n_text[:, 0] + n_after, n_text[:, 0]
