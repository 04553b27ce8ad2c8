"""The one transformer: pre-norm blocks of attention and feed-forward, causal or bidirectional, used by every model here.

RMSNorm (Zhang & Sennrich 2019), rotary positions (Su et al. 2021), grouped-query attention (Ainslie et al. 2023), SwiGLU (Shazeer
2020), optional QK-norm (Henry et al. 2020).

B batch  T new positions (queries)  S all positions (keys)  H heads  K key/value heads  D head width"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from omni.nn.attention import attention
from omni.nn.kv_cache import KVCache
from omni.nn.moe import MixtureOfExperts, Routing


@dataclass(frozen=True)
class TransformerShape:
    """What a stack of blocks looks like; each model derives it from its own config section."""

    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_ff: int
    causal: bool
    feed_forward: Literal["swiglu", "gelu"] = "swiglu"
    rope_theta: float | None = 10_000.0  # None: no rotation (the model adds positions of its own)
    qk_norm: bool = False
    n_experts: int = 0
    experts_per_token: int = 2
    dropout: float = 0.0

    @property
    def head_dim(self) -> int:
        """D."""
        return self.d_model // self.n_heads


class RMSNorm(nn.RMSNorm):
    """x / rms(x) · weight over the last dimension, computed in float32; under autocast the result is in the autocast precision, which is
    what the matrix product behind it wants."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        if device != "cpu":
            return F.rms_norm(x.float(), self.normalized_shape, self.weight.float(), self.eps).to(dtype)
        out = _RMSNorm.apply(x, self.weight, self.eps, dtype)
        assert isinstance(out, Tensor)
        return out


class _RMSNorm(torch.autograd.Function):
    """With the gradient written out (torch has no fused kernel on CPUs): y = x·r·w, r = (mean(x²) + eps)^-½, so
    dx = r·(g·w − x·r·mean(g·w·x·r)). It passes over x half as often as the chain of single operations."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
        r = (norm.square() / x.shape[-1] + eps).rsqrt()
        ctx.save_for_backward(x, weight, r)
        return (x * r).mul_(weight).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None, None]:  # type: ignore[override]
        x, weight, r = ctx.saved_tensors
        normed = x * r
        g = g.to(normed.dtype)
        product = (normed * g).flatten(0, -2)
        mean = (product @ weight.to(g.dtype)).view_as(r) / x.shape[-1]
        dx = (g * weight).sub_(normed.mul_(mean)).mul_(r)
        return dx.to(x.dtype), product.sum(0).to(weight.dtype), None, None


def rotation(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and signed sin of every position's angles for `rotate`, each (..., T, D); positions (..., T) may be fractional."""
    frequency = theta ** (-torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim)
    angle = positions.float()[..., None] * frequency
    cos, sin = angle.cos(), angle.sin()
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (x_i, x_{i+D/2}) by their position's angle. x (B,heads,T,D), cos and sin (B or 1, 1, T, D)."""
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat((b, a), dim=-1) * sin


class Attention(nn.Module):
    """Softmax(q·kᵀ/√D)·v for every head; K < H heads of keys and values are shared by groups of query heads."""

    def __init__(self, shape: TransformerShape) -> None:
        super().__init__()
        self.shape = shape
        self.qkv = nn.Linear(shape.d_model, (shape.n_heads + 2 * shape.n_kv_heads) * shape.head_dim, bias=False)
        self.out = nn.Linear(shape.d_model, shape.d_model, bias=False)
        self.q_norm = RMSNorm(shape.head_dim) if shape.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(shape.head_dim) if shape.qk_norm else nn.Identity()

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor] | None, mask: Tensor | None, cache: KVCache | None, layer: int) -> Tensor:
        """x (B,T,d) → (B,T,d). `turn`: cos and sin; `mask` (B,1,T,S) true where a query may look, None for plain causal or full."""
        heads, kv_heads, width = self.shape.n_heads, self.shape.n_kv_heads, self.shape.head_dim
        batch, length, _ = x.shape
        # heads first and contiguous: rotation and attention are then long runs of memory
        qkv = self.qkv(x).view(batch, length, heads + 2 * kv_heads, width).transpose(1, 2).contiguous()  # (B, H+2K, T, D)
        qk, v = qkv.split((heads + kv_heads, kv_heads), dim=1)
        if self.shape.qk_norm:
            qk = torch.cat((self.q_norm(qk[:, :heads]), self.k_norm(qk[:, heads:])), dim=1)
        if turn is not None:
            cos, sin = (t.to(qk.dtype) for t in turn)
            qk = rotate(qk, cos, sin)
        q, k = qk.split((heads, kv_heads), dim=1)
        if cache is not None:
            k, v = cache.append(layer, k, v)  # (B, K, S, D)
        square = cache is None or mask is None  # otherwise the mask says what the rows of a cache have seen
        y = attention(q, k, v, causal=self.shape.causal and square and length > 1, mask=mask)
        return self.out(y.transpose(1, 2).reshape(batch, length, -1))


class SwiGLU(nn.Module):
    """down(silu(gate(x)) · up(x)), (…, d) → (…, d); gate and up are one matrix."""

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(d_model, 2 * d_ff, bias=False)
        self.down = nn.Linear(d_ff, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = (F.linear(x, weight) for weight in self.gate_up.weight.chunk(2))  # both contiguous: 4 % faster than halves of one
        return self.down(F.silu(gate) * up)


class GELU(nn.Module):
    """down(gelu(up(x))), (…, d) → (…, d): the encoders' feed-forward."""

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.up = nn.Linear(d_model, d_ff)
        self.down = nn.Linear(d_ff, d_model)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, shape: TransformerShape) -> None:
        super().__init__()

        def feed_forward() -> nn.Module:
            return {"swiglu": SwiGLU, "gelu": GELU}[shape.feed_forward](shape.d_model, shape.d_ff)

        self.norm1 = RMSNorm(shape.d_model)
        self.attention = Attention(shape)
        self.norm2 = RMSNorm(shape.d_model)
        self.feed_forward = (
            MixtureOfExperts(shape.d_model, shape.n_experts, shape.experts_per_token, feed_forward) if shape.n_experts else feed_forward()
        )
        self.dropout = nn.Dropout(shape.dropout)

    def forward(
        self,
        x: Tensor,
        turn: tuple[Tensor, Tensor] | None = None,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
        layer: int = 0,
        valid: Tensor | None = None,
        routing: list[Routing] | None = None,
    ) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x), turn, mask, cache, layer))
        h = self.norm2(x)
        h = self.feed_forward(h, valid, routing) if isinstance(self.feed_forward, MixtureOfExperts) else self.feed_forward(h)
        return x + self.dropout(h)


def places_in_branches(branches: Tensor) -> Tensor:
    """branches (B,T) of a row, 0 first → positions (B,T) in time: every branch goes on where 0 ends."""
    index = torch.arange(branches.shape[1], device=branches.device)
    first = F.pad(branches[:, 1:] != branches[:, :-1], (1, 0), value=True)
    shared = (branches == 0).long().cumprod(1).sum(1, keepdim=True)
    return torch.where(index < shared, index, index - torch.where(first, index, 0).cummax(1).values + shared)


class Transformer(nn.Module):
    """A stack of blocks and a last norm: (B,T,d) → (B,T,d)."""

    def __init__(self, shape: TransformerShape) -> None:
        super().__init__()
        self.shape = shape
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.n_layers))
        self.norm = RMSNorm(shape.d_model)
        self.gradient_checkpointing = False
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal(0, 0.02); matrices that write into the residual stream are scaled down by its depth (Radford et al. 2019, §2.3)."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                residual = name.endswith(("attention.out", ".down"))
                nn.init.normal_(module.weight, std=0.02 / (2 * self.shape.n_layers) ** 0.5 if residual else 0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def make_cache(self, batch_size: int, max_length: int) -> KVCache:
        """An empty cache that fits this stack."""
        weight = self.norm.weight
        s = self.shape
        return KVCache(s.n_layers, batch_size, s.n_kv_heads, max_length, s.head_dim, dtype=weight.dtype, device=weight.device)

    def forward(
        self,
        x: Tensor,
        *,
        lengths: Tensor | list[int] | None = None,
        positions: Tensor | None = None,
        cache: KVCache | None = None,
        routing: list[Routing] | None = None,
        branches: Tensor | None = None,
    ) -> Tensor:
        """x (B,T,d), right-padded; `lengths` (B,) valid new positions a row; `positions` (B,T) in time, default 0,1,2… behind the
        cache. With a cache, x holds only the new positions and the cache is advanced by `lengths` (default T). `routing` collects
        what the routers did. `branches` (B,T) is 0 at the first positions of a row, and n in its nth way to go on from them, which is
        as if the others were not there (without a cache)."""
        batch, length, _ = x.shape
        index = torch.arange(length, device=x.device)
        seen = cache.lengths if cache is not None else [0] * batch
        start = torch.tensor(seen, device=x.device)[:, None]  # (B, 1)
        uniform = len(set(seen)) == 1
        turn = None
        if branches is not None:
            assert cache is None and positions is None and self.shape.causal
            positions = places_in_branches(branches)
        if self.shape.rope_theta is not None:
            if positions is None:
                positions = (index + seen[0])[None] if uniform else index + start
            cos, sin = rotation(positions, self.shape.head_dim, self.shape.rope_theta)
            turn = cos[:, None], sin[:, None]
        valid = None
        if lengths is not None:
            valid = index < torch.as_tensor(lengths, device=x.device)[:, None]  # (B, T)
        plainly_causal = uniform and (seen[0] == 0 or length == 1) and branches is None  # attention needs no written-out mask
        mask = None if self.shape.causal and plainly_causal else self._mask(index, start, valid, branches)
        for layer, block in enumerate(self.blocks):
            arguments = (x, turn, mask, cache, layer, valid, routing)
            x = checkpoint(block, *arguments, use_reentrant=False) if self.gradient_checkpointing and self.training else block(*arguments)
        if cache is not None:
            cache.advance([length] * batch if lengths is None else [int(n) for n in lengths])
        return self.norm(x)

    def _mask(self, index: Tensor, start: Tensor, valid: Tensor | None, branches: Tensor | None) -> Tensor | None:
        """(B,1,T,S), true where a query may look. Padding comes last, so a causal query never sees it."""
        if self.shape.causal:
            keys = torch.arange(int(start.max()) + len(index), device=index.device)
            looks = keys[None, None] <= (start + index)[:, :, None]
            if branches is not None:
                looks = looks & ((branches[:, None] == 0) | (branches[:, None] == branches[..., None]))
            return looks[:, None]
        if valid is None:
            return None
        return valid[:, None, None].expand(-1, 1, len(index), -1)
