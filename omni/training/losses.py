"""Losses that need care: next-token loss without the full logits, and InfoNCE that is exact over micro-batches and ranks.

N positions  V vocabulary  d width"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from omni.training.stage import Context, Term

CHUNK_LOGITS = 2**22  # float32 logits held at once: 16 MiB
MAX_SCALE = 100.0  # Radford et al. 2021, §2.5


class _NextTokenLoss(torch.autograd.Function):
    """Σ −share · log softmax(hidden · weightᵀ)[label] over positions, a chunk of positions at a time, with the gradients computed on the way."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, shares: Tensor, rows: Tensor, dtype: torch.dtype, with_gradient: bool
    ) -> Tensor:
        """hidden (N,d), weight (V,d), labels (N,), shares (N,) how much each counts, rows (M,) the positions that do → () float32. Matrix products
        in `dtype`, softmax in float32."""
        total = hidden.new_zeros((), dtype=torch.float32)
        grad_hidden = torch.zeros_like(hidden) if with_gradient and ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if with_gradient and ctx.needs_input_grad[1] else None
        w = weight.to(dtype)
        with torch.autocast(hidden.device.type, enabled=False):
            for chunk in rows.split(max(1, CHUNK_LOGITS // len(weight))):
                h, y, share = hidden[chunk].to(dtype), labels[chunk], shares[chunk, None]
                p = (h @ w.T).softmax(-1, dtype=torch.float32)
                right = p.gather(1, y[:, None])
                total -= (share * right.clamp(min=torch.finfo(torch.float32).tiny).log()).sum()  # no label costs more than 87 nats
                if grad_hidden is None and grad_weight is None:
                    continue
                gradient = p.scatter_(1, y[:, None], right - 1.0).mul_(share).to(dtype)
                if grad_hidden is not None:
                    grad_hidden.index_copy_(0, chunk, (gradient @ w).to(grad_hidden.dtype))
                if grad_weight is not None:
                    grad_weight += gradient.T @ h
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        hidden, weight = ctx.saved_tensors
        grad_hidden = None if hidden is None else hidden * grad.to(hidden.dtype)
        grad_weight = None if weight is None else (weight * grad).to(ctx.weight_dtype)
        return grad_hidden, grad_weight, None, None, None, None, None


def next_token_loss(
    hidden: Tensor, head: Tensor | torch.nn.Linear, labels: Tensor, *, ignore: int = -100, groups: Tensor | None = None
) -> Term:
    """Cross-entropy in nats of `labels` (B,T) under the head (a Linear without bias, or its weight (V,d)) on `hidden` (B,T,d), summed
    over the labels that are not `ignore`, and their count; or with `groups` (B,T), the numbers of groups within a row, the sum of the groups'
    means, and the count of groups.

    The logits of all positions, (N,V) in float32, never exist: positions are taken in chunks, and ignored ones not at all.
    """
    weight = head if isinstance(head, Tensor) else head.weight
    shares = torch.ones_like(labels, dtype=torch.float32) if groups is None else shares_in_groups(labels != ignore, groups)
    shares = shares.reshape(-1)
    hidden, labels = hidden.reshape(-1, hidden.shape[-1]), labels.reshape(-1)
    rows = (labels != ignore).nonzero()[:, 0]
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.promote_types(hidden.dtype, weight.dtype)
    total = _NextTokenLoss.apply(hidden, weight, labels, shares, rows, dtype, torch.is_grad_enabled())
    assert isinstance(total, Tensor)
    return Term(total, round(float(shares[rows].sum())))


def shares_in_groups(counted: Tensor, groups: Tensor) -> Tensor:
    """Of what is `counted` (B,T) in the `groups` (B,T) of its row: one over how much of it its group has; elsewhere 0."""
    sizes = torch.zeros(len(groups), int(groups.max()) + 1, device=groups.device).scatter_add_(1, groups, counted.float())
    return counted / sizes.gather(1, groups).clamp(min=1)


def info_nce(a: Tensor, b: Tensor, log_scale: Tensor, context: Context, names: tuple[str, str] = ("images", "texts")) -> Term:
    """Symmetric contrastive loss (CLIP, Radford et al. 2021, fig. 3) of unit vectors a and b, each (n,E), over the global batch.

    `context.statistics[names]` (N,E) are the vectors of all micro-batches and ranks. Each micro-batch computes the whole loss with its
    own rows alive and the others constant, so that the gradients of the micro-batches add up to that of the global batch (GradCache,
    Gao et al. 2021). Those of the temperature would add up to N/n times too much; they are scaled by this micro-batch's share n/N. So
    is the value. Without statistics the micro-batch is the global batch.
    """
    whole_a, whole_b = (_with_own_rows(context, name, x) for name, x in zip(names, (a, b), strict=True))
    share = len(a) / len(whole_a)
    scale = log_scale.float().exp().clamp(max=MAX_SCALE)
    scale = scale * share + scale.detach() * (1 - share)
    with torch.autocast(a.device.type, enabled=False):
        logits = scale * whole_a.float() @ whole_b.float().T  # (N, N)
    pairs = torch.arange(len(logits), device=logits.device)
    loss = (F.cross_entropy(logits, pairs, reduction="sum") + F.cross_entropy(logits.T, pairs, reduction="sum")) / 2
    return Term(loss - loss.detach() * (1 - share), len(a))


def _with_own_rows(context: Context, name: str, own: Tensor) -> Tensor:
    """The global statistics with this micro-batch's rows replaced by `own`, which carry gradient."""
    if name not in context.statistics:
        return own
    whole, at = context.statistics[name].to(own.dtype), context.offsets[name]
    return torch.cat((whole[:at], own, whole[at + len(own) :]))


def ctc_nats(logits: Tensor, lengths: Tensor, targets: Tensor, target_lengths: Tensor, blank: int) -> Tensor:
    """Negative log-likelihood (B,) in nats of targets (B,S) under logits (B,T,characters) with `lengths` (B,) valid steps (Graves et
    al. 2006, eq. 8); 0 where the text cannot fit into the steps."""
    log_p = logits.float().log_softmax(-1).transpose(0, 1)
    return F.ctc_loss(log_p, targets, lengths, target_lengths, blank=blank, reduction="none", zero_infinity=True)
