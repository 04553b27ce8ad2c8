"""softmax(q·kᵀ/√D)·v for every head, with shared keys and values (grouped queries, Ainslie et al. 2023).

On CUDA, and for a single query, this is torch's fused kernel. On CPUs that kernel is slow at our lengths (a few hundred positions, heads
of 64): products over all heads of a block of queries take a quarter to a third of its time, in bfloat16 and float32 (docs/decisions/0007).
The softmax is kept for the backward pass, so memory grows with T·S; gradient checkpointing bounds that.

B batch  T queries  S keys  H heads  K key/value heads  G = H/K  D head width"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

QUERIES = 128  # in one block of causal attention; the keys behind a block are never touched


def attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, mask: Tensor | None = None) -> Tensor:
    """q (B,H,T,D), k and v (B,K,S,D) → (B,H,T,D). `causal`: query t sees keys 0…t (then T = S); `mask` (B,1,T,S) is true where a query
    may look, None for everywhere (with `causal`: 0…t; with both, every query may look somewhere and none ahead)."""
    assert not causal or q.shape[2] == k.shape[2]
    if q.device.type != "cpu" or q.shape[2] == 1:
        plainly = causal and mask is None
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=plainly, enable_gqa=q.shape[1] != k.shape[1])
    groups = q.shape[1] // k.shape[1]
    q = (q * q.shape[3] ** -0.5).unflatten(1, (-1, groups))  # (B, K, G, T, D)
    if causal:
        out = _Causal.apply(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), mask)
        assert isinstance(out, Tensor)
        return out.view(len(k), -1, *out.shape[2:])
    scores = q.flatten(2, 3) @ k.mT  # (B, K, G·T, S): one product for all heads that share a key
    if mask is not None:
        # a query that may look nowhere (a row of padding) gets the mean instead of NaN
        bias = torch.zeros(mask.shape, dtype=q.dtype).masked_fill_(~mask, torch.finfo(q.dtype).min)
        scores += torch.cat([bias] * groups, dim=2)
    return (scores.softmax(-1) @ v).unflatten(2, (groups, -1)).flatten(1, 2)


class _Causal(torch.autograd.Function):
    """A block of queries at a time, against the keys up to its end. The gradient is written out because torch would pad that of every
    block's keys and values to their full length."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """q (N,G,T,D), scaled, k and v (N,T,D), with N = B·K; mask (B,1,T,T) → (N,G,T,D)."""
        n, groups, length, width = q.shape
        future = torch.full((QUERIES, QUERIES), -math.inf, dtype=q.dtype).triu_(1)
        out, weights = torch.empty_like(q), []
        for start in range(0, length, QUERIES):
            end = min(start + QUERIES, length)
            scores = torch.bmm(q[:, :, start:end].reshape(n, -1, width), k[:, :end].mT)  # (N, G·t, end)
            if mask is None:
                scores.view(n, groups, -1, end)[..., start:] += future[: end - start, : end - start]
            else:
                scores.view(len(mask), -1, end - start, end).masked_fill_(~mask[:, :, start:end, :end], -math.inf)
            weights.append(scores.softmax(-1))
            out[:, :, start:end] = torch.bmm(weights[-1], v[:, :end]).view(n, groups, -1, width)
        ctx.save_for_backward(q, k, v, *weights)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # type: ignore[override]
        q, k, v, *weights = ctx.saved_tensors
        n, groups, length, width = q.shape
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for start, p in zip(range(0, length, QUERIES), weights, strict=True):
            end = min(start + QUERIES, length)
            q_rows, g_rows = (x[:, :, start:end].reshape(n, -1, width) for x in (q, g))
            dscores = torch._softmax_backward_data(torch.bmm(g_rows, v[:, :end].mT), p, -1, p.dtype)
            dq[:, :, start:end] = torch.bmm(dscores, k[:, :end]).view(n, groups, -1, width)
            dk[:, :end] += torch.bmm(dscores.mT, q_rows)
            dv[:, :end] += torch.bmm(p.mT, g_rows)
        return dq, dk, dv, None
