"""softmax(q·kᵀ/√D)·v for every head, with shared keys and values (grouped queries, Ainslie et al. 2023).

On CUDA, and for a single query, this is torch's fused kernel. On CPUs that kernel is slow at our lengths (a few hundred positions, heads
of 64): products over all heads of a block of queries take a quarter to a third of its time, in bfloat16 and float32 (docs/decisions/0007).
The softmax is kept for the backward pass, so memory grows with T·S; gradient checkpointing bounds that.

B batch  T queries  S keys  H heads  K key/value heads  G = H/K  D head width"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

QUERIES = 128  # in one block of causal attention; the keys behind a block are never touched


def attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, mask: Tensor | None = None) -> Tensor:
    """q (B,H,T,D), k and v (B,K,S,D) → (B,H,T,D). `causal`: query t sees keys 0…t (then T = S); `mask` (B,1,T,S) is true where a query
    may look, None for everywhere."""
    assert not causal or (mask is None and q.shape[2] == k.shape[2])
    if q.device.type != "cpu" or q.shape[2] == 1:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1])
    length = q.shape[2]
    q = (q * q.shape[3] ** -0.5).unflatten(1, (k.shape[1], -1))  # (B, K, G, T, D)
    k = k.transpose(2, 3)  # (B, K, D, S)
    if not causal:
        # a query that may look nowhere (a row of padding) gets the mean instead of NaN
        bias = None if mask is None else torch.zeros(mask.shape, dtype=q.dtype).masked_fill_(~mask, torch.finfo(q.dtype).min)
        return _attend(q, k, v, bias).flatten(1, 2)
    blocks = []
    for start in range(0, length, QUERIES):
        end = min(start + QUERIES, length)
        ahead = torch.full((end - start, end), -math.inf, dtype=q.dtype).triu_(start + 1)
        blocks.append(_attend(q[:, :, :, start:end], k[..., :end], v[:, :, :end], ahead))
    return torch.cat(blocks, dim=3).flatten(1, 2)


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Scaled q (B,K,G,T,D), k (B,K,D,S), v (B,K,S,D), bias (T,S) or (B,1,T,S) → (B,K,G,T,D)."""
    groups = q.shape[2]
    scores = q.flatten(2, 3) @ k  # (B, K, G·T, S): one product for all heads that share a key
    if bias is not None:
        scores += torch.cat([bias] * groups, dim=-2)
    return (scores.softmax(-1) @ v).unflatten(2, (groups, -1))
