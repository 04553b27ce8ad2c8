"""Mixture of experts: each token is handled by its `k` likeliest SwiGLU experts (Shazeer et al. 2017; Fedus et al. 2021, §2.2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Routing:
    """What one layer's router did: `probability` (E,) summed over valid tokens, with gradient; `chosen` (E,) how often each was picked."""

    probability: Tensor
    chosen: Tensor


def load_balance_loss(probability: Tensor, chosen: Tensor, n_tokens: Tensor | int) -> Tensor:
    """E · Σ_e f_e · P_e, 1 when balanced (Fedus et al. 2021, eq. 4). `chosen` and `n_tokens` count the whole global batch;
    `probability` (E,) may be one micro-batch's sum: the losses of the micro-batches add up to that of the batch."""
    fraction = chosen / chosen.sum()
    return len(chosen) * (fraction.detach() * probability / n_tokens).sum()


class MixtureOfExperts(nn.Module):
    """x (B,T,d) → (B,T,d) through `k` of `n_experts` experts, mixed by the router's renormalised probabilities."""

    def __init__(self, d_model: int, n_experts: int, k: int, make_expert) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self.router = nn.Linear(d_model, n_experts, bias=False)
        self.experts = nn.ModuleList(make_expert() for _ in range(n_experts))
        self.k = k

    def forward(self, x: Tensor, valid: Tensor | None = None, routing: list[Routing] | None = None) -> Tensor:
        """`valid` (B,T) excludes padding from the statistics appended to `routing`."""
        flat = x.reshape(-1, x.shape[-1])
        probability = torch.softmax(self.router(flat).float(), dim=-1)  # (N, E)
        weight, expert = probability.topk(self.k, dim=-1)  # (N, k)
        weight = (weight / weight.sum(-1, keepdim=True)).to(x.dtype)
        out = torch.zeros_like(flat)
        for index, module in enumerate(self.experts):
            token, slot = (expert == index).nonzero(as_tuple=True)
            out = out.index_add(0, token, (module(flat[token]) * weight[token, slot, None]).to(out.dtype))
        if routing is not None:
            keep = torch.ones(len(flat), dtype=torch.bool, device=x.device) if valid is None else valid.reshape(-1)
            chosen = torch.bincount(expert[keep].reshape(-1), minlength=len(self.experts)).float()
            routing.append(Routing((probability * keep[:, None]).sum(0), chosen))
        return out.view_as(x)
