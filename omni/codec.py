"""The speech codec: log-mel ↔ a few codes every 80 ms, by residual vector quantisation (van den Oord et al. 2017; SoundStream,
Zeghidour et al. 2021, §III-C), codebooks kept as exponential moving averages.

B batch  T mel frames  F = ceil(T/stride) code frames  K codebooks  N codebook size  D latent width"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omni.audio import SILENCE
from omni.config import CodecConfig

KMEANS_ROUNDS = 10
STATISTICS = ("size", "total", "new_size", "new_total", "n_updates")  # buffers of a quantiser that only its training needs


class VectorQuantizer(nn.Module):
    """Nearest of N vectors, in a projected space (factorised codes, Kumar et al. 2023, §3.2; both projections start as identity).

    The codebook is an exponential moving average of what is assigned to each code. `forward` in training mode only adds to running
    sums; `update` moves the codebook once per optimizer update, so that micro-batches and ranks count as one batch.
    """

    size: Tensor  # (N,) moving average of how many vectors each code got
    total: Tensor  # (N,D) moving average of their sum
    new_size: Tensor
    new_total: Tensor
    n_updates: Tensor

    def __init__(self, n_codes: int, width: int, decay: float, dead_code_threshold: float) -> None:
        super().__init__()
        self.decay, self.dead_code_threshold = decay, dead_code_threshold
        self.in_proj = nn.Linear(width, width, bias=False)
        self.out_proj = nn.Linear(width, width, bias=False)
        nn.init.eye_(self.in_proj.weight)
        nn.init.eye_(self.out_proj.weight)
        self.codebook = nn.Parameter(torch.randn(n_codes, width) * 0.1, requires_grad=False)
        self.register_buffer("size", torch.ones(n_codes))
        self.register_buffer("total", self.codebook.detach().clone())
        self.register_buffer("new_size", torch.zeros(n_codes))
        self.register_buffer("new_total", torch.zeros(n_codes, width))
        self.register_buffer("n_updates", torch.zeros((), dtype=torch.long))

    def nearest(self, z: Tensor) -> Tensor:
        """(…,D) → (…) ids of the nearest codes."""
        distance = self.codebook.square().sum(1) - 2.0 * z.float() @ self.codebook.T
        return distance.argmin(-1)

    def decode(self, codes: Tensor) -> Tensor:
        """(…) → (…,D)."""
        return self.out_proj(self.codebook[codes])

    def forward(self, x: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (B,F,D), valid (B,F) → quantised x with a straight-through gradient, codes (B,F), summed squared distance to the codes."""
        z = self.in_proj(x).float()
        codes = self.nearest(z)
        chosen = self.codebook[codes]
        if self.training:
            self._count(z.detach()[valid], codes[valid])
        distance = ((z - chosen).square().mean(-1) * valid).sum()
        return self.out_proj(z + (chosen - z).detach()), codes, distance

    def _count(self, z: Tensor, codes: Tensor) -> None:
        self.new_size.index_add_(0, codes, torch.ones_like(codes, dtype=torch.float32))
        self.new_total.index_add_(0, codes, z)

    @torch.no_grad()
    def update(self, reduce: Callable[[Tensor], Tensor]) -> None:
        """Move the codebook by what was counted since the last update; `reduce` sums over ranks. A code whose average share has fallen
        below the threshold is put beside a well-used one."""
        new_size, new_total = reduce(self.new_size), reduce(self.new_total)
        self.size.lerp_(new_size, 1.0 - self.decay)
        self.total.lerp_(new_total, 1.0 - self.decay)
        self.codebook.data.copy_(self.total / self.size.clamp(min=1e-3)[:, None])
        self._revive(new_size)
        self.forget()
        self.n_updates += 1

    def forget(self) -> None:
        """Drop what was counted since the last update."""
        self.new_size.zero_()
        self.new_total.zero_()

    def _revive(self, new_size: Tensor) -> None:
        """Split the busiest codes: a dead one takes half of the members of a busy one, and a place a little beside it."""
        mean_size = new_size.sum() / len(self.size)
        is_dead = self.size < self.dead_code_threshold * mean_size.clamp(max=2.0)
        order = self.size.argsort(descending=True, stable=True)
        busy, dead = order[~is_dead[order]], order[is_dead[order]]
        count = min(len(dead), len(busy))
        if not count:
            return
        dead, busy = dead[:count], busy[:count]
        generator = torch.Generator().manual_seed(int(self.n_updates))
        offset = torch.randn(count, self.total.shape[1], generator=generator).to(self.total)
        self.codebook.data[dead] = self.codebook[busy] + 0.05 * self.codebook[busy].square().mean().sqrt() * offset
        self.size[busy] *= 0.5
        self.total[busy] *= 0.5
        self.size[dead] = self.size[busy]
        self.total[dead] = self.codebook[dead] * self.size[dead, None]

    @torch.no_grad()
    def initialise(self, x: Tensor) -> Tensor:
        """Start from k-means over x (M,D); returns what x leaves over, (M,D). Deterministic: the first centres are evenly spread rows."""
        z = self.in_proj(x).float()
        rows = torch.linspace(0, len(z) - 1, len(self.codebook), device=z.device).long()
        offset = torch.randn(self.codebook.shape, generator=torch.Generator().manual_seed(0)).to(z)
        self.codebook.data.copy_(z[rows] + offset * z.std() * 1e-3)
        for _ in range(KMEANS_ROUNDS):
            codes = self.nearest(z)
            size = torch.bincount(codes, minlength=len(self.codebook)).float()
            total = torch.zeros_like(self.total).index_add_(0, codes, z)
            self.codebook.data.copy_(torch.where(size[:, None] > 0, total / size.clamp(min=1.0)[:, None], self.codebook))
        self.size.copy_(size)
        self.total.copy_(self.codebook * self.size[:, None])
        return x - self.decode(self.nearest(z))


class ResidualVQ(nn.Module):
    """K quantisers, each on what the ones before it left over."""

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.dropout = config.codebook_dropout
        self.quantizers = nn.ModuleList(
            VectorQuantizer(config.codebook_size, config.latent_size, config.ema_decay, config.dead_code_threshold)
            for _ in range(config.n_codebooks)
        )

    def encode(self, x: Tensor) -> Tensor:
        """(B,F,D) → codes (B,F,K)."""
        codes = []
        for quantizer in self.quantizers:
            codes.append(quantizer.nearest(quantizer.in_proj(x)))  # type: ignore[operator]
            x = x - quantizer.decode(codes[-1])  # type: ignore[operator]
        return torch.stack(codes, dim=-1)

    def decode(self, codes: Tensor) -> Tensor:
        """codes (…,k) of the first k ≤ K codebooks → (…,D); fewer codebooks give a coarser answer."""
        return torch.stack([self.quantizers[k].decode(codes[..., k]) for k in range(codes.shape[-1])]).sum(0)  # type: ignore[operator]

    @torch.no_grad()
    def vectors(self) -> list[Tensor]:
        """What each code of every codebook adds, (N,D)."""
        return [q.decode(torch.arange(len(q.codebook), device=q.codebook.device)) for q in self.quantizers]  # type: ignore[operator,union-attr,arg-type]

    def forward(self, x: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (B,F,D), valid (B,F) → quantised (B,F,D), codes (B,F,K), summed commitment. In training a share `dropout` of the rows keeps only its
        first 1 to K codebooks, so that fewer are enough for a coarser answer (SoundStream, §III-C)."""
        left, out, codes, commitment = x, torch.zeros_like(x), [], x.new_zeros((), dtype=torch.float32)
        n_kept = torch.full((len(x),), len(self.quantizers), device=x.device)
        if self.training and self.dropout:
            fewer = torch.randint(1, len(self.quantizers) + 1, n_kept.shape, device=x.device)
            n_kept = torch.where(torch.rand(n_kept.shape, device=x.device) < self.dropout, fewer, n_kept)
        for k, quantizer in enumerate(self.quantizers):
            part, ids, distance = quantizer(left, valid)
            left, commitment = left - part, commitment + distance
            out = out + part * (k < n_kept)[:, None, None]
            codes.append(ids)
        return out, torch.stack(codes, dim=-1), commitment


class ResidualConvolution(nn.Module):
    """x + convolution over three frames, at the code rate: (B,H,F) → (B,H,F). The three end `ahead` (0 or 1) frames ahead. Padding is zeroed
    first, so a clip is the same alone and in a batch."""

    def __init__(self, width: int, ahead: int) -> None:
        super().__init__()
        self.padding = (2 - ahead, ahead)
        self.spread = nn.Conv1d(width, width, 3)
        self.mix = nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        return x + self.mix(F.gelu(self.spread(F.pad(F.gelu(x) * keep, self.padding))))


class ConvolutionStack(nn.Module):
    """(B,F,d_in) → (B,F,d_out) through `n_blocks` residual convolutions of `hidden` channels, of which the first `look_ahead` see one frame
    ahead and the others none."""

    def __init__(self, d_in: int, hidden: int, d_out: int, n_blocks: int, look_ahead: int) -> None:
        super().__init__()
        self.first = nn.Linear(d_in, hidden)
        self.blocks = nn.ModuleList(ResidualConvolution(hidden, ahead=int(i < look_ahead)) for i in range(n_blocks))
        self.last = nn.Linear(hidden, d_out)

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        """`keep` (B,F) true on valid frames."""
        x = self.first(x).transpose(1, 2)
        for block in self.blocks:
            x = block(x, keep[:, None].to(x.dtype))
        return self.last(x.transpose(1, 2))


@dataclass(frozen=True)
class CodecOutput:
    """mel (B,T,mels) rebuilt; codes (B,F,K); sums over valid frames: `absolute` and `squared` error (mean over bins), `commitment`."""

    mel: Tensor
    codes: Tensor
    absolute: Tensor
    squared: Tensor
    commitment: Tensor


class MelCodec(nn.Module):
    """Scaled log-mel (B,T,mels) ↔ codes (B, ceil(T/stride), K).

    `stride` mel frames, each projected to D numbers, are folded into one vector, so that convolutions run at the code rate only. The encoder
    sees both ways; the decoder sees `look_ahead` code frames ahead, so that it can run while codes are still to come.
    """

    def __init__(self, config: CodecConfig, n_mels: int = 128) -> None:
        super().__init__()
        self.config = config
        width, folded = config.latent_size, config.latent_size * config.stride
        self.proj_in = nn.Linear(n_mels, width)
        self.encoder = ConvolutionStack(folded, config.hidden_size, width, config.n_blocks, look_ahead=config.n_blocks)
        self.rvq = ResidualVQ(config)
        self.decoder = ConvolutionStack(width, config.hidden_size, folded, config.n_blocks, look_ahead=config.look_ahead)
        self.proj_out = nn.Linear(width, n_mels)

    def n_code_frames(self, mel_lengths: Tensor) -> Tensor:
        """Code frames of clips of so many mel frames."""
        return (mel_lengths + self.config.stride - 1) // self.config.stride

    def _latents(self, mel: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """Unquantised (B,F,D) and which frames are valid (B,F). What lies behind a clip's end is silence."""
        if lengths is None:
            lengths = torch.full((len(mel),), mel.shape[1], device=mel.device)
        inside = torch.arange(mel.shape[1], device=mel.device) < lengths[:, None]
        mel = mel.masked_fill(~inside[..., None], SILENCE)
        mel = F.pad(mel, (0, 0, 0, -mel.shape[1] % self.config.stride), value=SILENCE)
        x = self.proj_in(mel).unflatten(1, (-1, self.config.stride)).flatten(2)  # (B, F, stride·D)
        valid = torch.arange(x.shape[1], device=x.device) < self.n_code_frames(lengths)[:, None]
        return self.encoder(x, valid), valid

    def _rebuild(self, latents: Tensor, valid: Tensor) -> Tensor:
        """(B,F,D) → (B, F·stride, mels)."""
        return self.proj_out(self.decoder(latents, valid).unflatten(2, (self.config.stride, -1)).flatten(1, 2))

    @torch.no_grad()
    def encode(self, mel: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Codes (B,F,K); those behind a clip's end mean nothing."""
        return self.rvq.encode(self._latents(mel, lengths)[0])

    @torch.no_grad()
    def decode(self, codes: Tensor, lengths: Tensor | None = None) -> Tensor:
        """codes (B,F,k), k ≤ K, `lengths` (B,) in code frames → scaled log-mel (B, F·stride, mels)."""
        frame = torch.arange(codes.shape[1], device=codes.device)
        valid = (frame < lengths[:, None]) if lengths is not None else torch.ones(codes.shape[:2], dtype=torch.bool, device=codes.device)
        return self._rebuild(self.rvq.decode(codes), valid)

    def decode_span(self, codes: Tensor, start: int, end: int) -> Tensor:
        """codes (B,F,k) → the mel of code frames `start` ≤ f < `end` alone, the same as `decode` gives there, from the frames near them. Codes
        of `look_ahead` frames behind `end` must be there already, unless speech ends before."""
        first = max(0, start - 2 * self.config.n_blocks)  # every block sees two frames back
        mel = self.decode(codes[:, first : end + self.config.look_ahead])
        return mel[:, (start - first) * self.config.stride : (end - first) * self.config.stride]

    def forward(self, mel: Tensor, lengths: Tensor) -> CodecOutput:
        """There and back, with the sums that the losses are made of."""
        latents, valid = self._latents(mel, lengths)
        quantised, codes, commitment = self.rvq(latents, valid)
        rebuilt = self._rebuild(quantised, valid)[:, : mel.shape[1]].float()
        inside = torch.arange(mel.shape[1], device=mel.device) < lengths[:, None]
        difference = (rebuilt - mel) * inside[..., None]
        return CodecOutput(rebuilt, codes, difference.abs().mean(-1).sum(), difference.square().mean(-1).sum(), commitment)

    @torch.no_grad()
    def initialise(self, mel: Tensor, lengths: Tensor) -> None:
        """Start every codebook by k-means over these clips, each on what the ones before left over."""
        latents, valid = self._latents(mel, lengths)
        left = latents[valid]
        for quantizer in self.rvq.quantizers:
            left = quantizer.initialise(left)  # type: ignore[operator]

    def update_codebooks(self, reduce: Callable[[Tensor], Tensor]) -> None:
        """Once after every optimizer update; `reduce` sums a tensor over ranks."""
        for quantizer in self.rvq.quantizers:
            quantizer.update(reduce)  # type: ignore[operator]

    def forget_statistics(self) -> None:
        """Drop what the forward passes counted (an update was skipped)."""
        for quantizer in self.rvq.quantizers:
            quantizer.forget()  # type: ignore[operator]

    @staticmethod
    def without_statistics(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """What it takes to use the codec: half of a state dict of many codes is statistics to train it on."""
        return {name: t for name, t in tensors.items() if not (".quantizers." in name and name.rpartition(".")[2] in STATISTICS)}

    def with_statistics(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The opposite: statistics that were left out begin anew, as if every code had been met once."""
        fresh: dict[str, Tensor] = {}
        for name, module in self.named_modules():
            if isinstance(module, VectorQuantizer) and f"{name}.codebook" in tensors:
                fresh |= {f"{name}.{key}": torch.zeros_like(getattr(module, key)) for key in STATISTICS}
                fresh |= {f"{name}.size": torch.ones_like(module.size), f"{name}.total": tensors[f"{name}.codebook"]}
        return fresh | tensors

    def usage(self) -> list[tuple[float, float]]:
        """Of each codebook: the share of codes in use and the perplexity of their moving averages."""
        out = []
        for quantizer in self.rvq.quantizers:
            p = quantizer.size / quantizer.size.sum()  # type: ignore[operator,union-attr,arg-type]
            entropy = -(p * p.clamp(min=1e-12).log()).sum()
            out.append((float((p > 0.1 / len(p)).float().mean()), float(entropy.exp())))
        return out
