"""Losses computed piecewise equal the same losses written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from omni.training import losses
from omni.training.losses import info_nce, next_token_loss
from omni.training.stage import Context


def example(vocabulary: int = 50, positions: int = 24) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(2, positions // 2, 16, generator=generator, requires_grad=True)
    weight = torch.randn(vocabulary, 16, generator=generator, requires_grad=True)
    labels = torch.randint(0, vocabulary, (2, positions // 2), generator=generator)
    labels[0, :5] = -100
    return hidden, weight, labels


@pytest.mark.parametrize("chunk", [1, 7 * 50, 10**6])
def test_next_token_loss_is_plain_cross_entropy(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(losses, "CHUNK_LOGITS", chunk)
    hidden, weight, labels = example()
    term = next_token_loss(hidden, weight, labels)
    (term.sum * 0.37).backward()
    got = hidden.grad, weight.grad
    hidden.grad = weight.grad = None
    expected = F.cross_entropy((hidden @ weight.T).flatten(0, 1), labels.flatten(), reduction="sum")
    (expected * 0.37).backward()
    torch.testing.assert_close(term.sum, expected)
    assert term.count == 19
    torch.testing.assert_close(got, (hidden.grad, weight.grad))


def test_next_token_loss_of_groups_counts_every_group_the_same() -> None:
    hidden, weight, labels = example()
    groups = torch.tensor([[0] * 6 + [1] * 6, [0] * 12])
    term = next_token_loss(hidden, weight, labels, groups=groups)
    term.sum.backward()
    got = hidden.grad, weight.grad
    hidden.grad = weight.grad = None
    pieces = (hidden[0, :6], labels[0, :6]), (hidden[0, 6:], labels[0, 6:]), (hidden[1], labels[1])  # of the first, one is learned
    expected = sum((F.cross_entropy(h @ weight.T, y) for h, y in pieces), torch.zeros(()))
    expected.backward()
    torch.testing.assert_close(term.sum, expected)
    assert term.count == 3
    torch.testing.assert_close(got, (hidden.grad, weight.grad))
    nothing = next_token_loss(hidden, weight, torch.full_like(labels, -100), groups=groups)
    assert (nothing.sum, nothing.count) == (0.0, 0)


def test_next_token_loss_never_holds_all_logits() -> None:
    hidden, weight, labels = example(vocabulary=32_000, positions=600)

    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = function(*args, **(kwargs or {}))
            Largest.numel = max([Largest.numel, *(t.numel() for t in tree_leaves(out) if isinstance(t, Tensor))])
            return out

    with Largest():
        next_token_loss(hidden, weight, labels).sum.backward()
    assert Largest.numel <= losses.CHUNK_LOGITS < 595 * 32_000


def test_next_token_loss_in_bfloat16_is_close_and_its_softmax_is_float32() -> None:
    hidden, weight, labels = example()
    exact = next_token_loss(hidden, weight, labels).sum
    with torch.autocast("cpu", torch.bfloat16):
        near = next_token_loss(hidden.bfloat16(), weight, labels)
        near.sum.backward()
    assert near.sum.dtype == torch.float32 and weight.grad is not None and weight.grad.dtype == torch.float32
    torch.testing.assert_close(near.sum, exact, rtol=0.01, atol=0.0)


def test_next_token_loss_with_a_frozen_head_no_gradient_or_nothing_to_predict() -> None:
    hidden, weight, labels = example()
    head = torch.nn.Linear(16, 50, bias=False)
    head.weight = torch.nn.Parameter(weight.detach(), requires_grad=False)
    next_token_loss(hidden, head, labels).sum.backward()
    assert hidden.grad is not None and head.weight.grad is None
    with torch.no_grad():
        assert not next_token_loss(hidden, weight, labels).sum.requires_grad
    nothing = next_token_loss(hidden, weight, torch.full_like(labels, -100))
    nothing.sum.backward()
    assert nothing.sum == 0 and nothing.count == 0 and weight.grad is not None and not weight.grad.any()


def test_info_nce_of_micro_batches_adds_up_to_the_formula() -> None:
    generator = torch.Generator().manual_seed(2)
    a, b = (F.normalize(torch.randn(6, 5, generator=generator), dim=-1).requires_grad_() for _ in range(2))
    log_scale = torch.tensor(1.3, requires_grad=True)
    logits = log_scale.exp() * a @ b.T
    expected = (F.cross_entropy(logits, torch.arange(6)) + F.cross_entropy(logits.T, torch.arange(6))) / 2
    wanted = torch.autograd.grad(expected, (a, b, log_scale))

    whole = {"images": a.detach(), "texts": b.detach()}
    total = torch.zeros(())
    for start, end in ((0, 1), (1, 4), (4, 6)):
        term = info_nce(a[start:end], b[start:end], log_scale, Context({}, whole, {"images": start, "texts": start}))
        assert term.count == end - start
        (term.sum / 6).backward()
        total = total + term.sum.detach() / 6
    torch.testing.assert_close(total, expected.detach())
    torch.testing.assert_close((a.grad, b.grad, log_scale.grad), wanted)


def test_info_nce_bounds_its_scale() -> None:
    a = F.normalize(torch.randn(3, 4, generator=torch.Generator().manual_seed(3)), dim=-1)
    whole = Context({}, {"images": a, "texts": a}, {"images": 0, "texts": 0})
    at_limit, beyond = (info_nce(a, a, torch.tensor(x).log(), whole).sum for x in (100.0, 10_000.0))
    assert at_limit == beyond
