"""Attention as training uses it: gradients, and how exact bfloat16 is."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from omni.nn.attention import QUERIES, attention
from omni.nn.transformer import RMSNorm


def inputs(length: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, heads, length, 16, generator=generator).to(dtype).requires_grad_() for heads in (4, 2, 2))
    return q, k, v


def gradients(out: Tensor, parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    target = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out).to(out.dtype)
    return torch.autograd.grad((out * target).sum(), parts)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("length", [1, QUERIES, 2 * QUERIES + 5])
def test_gradients_are_those_of_torchs_attention(causal: bool, length: int) -> None:
    parts = inputs(length)
    ours, theirs = attention(*parts, causal=causal), F.scaled_dot_product_attention(*parts, is_causal=causal, enable_gqa=True)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradients(ours, parts), gradients(theirs, parts))


def test_gradients_through_a_padding_mask_are_those_of_torchs_attention() -> None:
    parts = inputs(9)
    mask = (torch.arange(9) < torch.tensor([9, 4])[:, None])[:, None, None].expand(-1, 1, 9, -1)
    ours, theirs = attention(*parts, mask=mask), F.scaled_dot_product_attention(*parts, attn_mask=mask, enable_gqa=True)
    got = gradients(ours, parts)
    torch.testing.assert_close(got, gradients(theirs, parts))
    assert not got[1][1, :, 4:].any()


@pytest.mark.parametrize("length", [3, QUERIES, 2 * QUERIES + 5])
def test_gradients_where_causal_queries_may_not_look_everywhere_are_those_of_torchs_attention(length: int) -> None:
    parts = inputs(length)
    index = torch.arange(length)
    shared = torch.tensor([length // 3, length // 2])[:, None, None, None]  # keys that all see; of the others a query sees its own kind
    mask = (index[:, None] >= index) & ((index < shared) | (index[:, None] % 2 == index % 2))
    ours, theirs = attention(*parts, causal=True, mask=mask), F.scaled_dot_product_attention(*parts, attn_mask=mask, enable_gqa=True)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradients(ours, parts), gradients(theirs, parts))


def test_bfloat16_is_within_one_percent_of_float64() -> None:
    exact, rough = inputs(300), inputs(300, torch.bfloat16)
    outs = [(out := attention(*parts, causal=True), *gradients(out, parts)) for parts in (exact, rough)]
    for a, b in zip(*outs, strict=True):
        assert float((a - b.double()).detach().norm() / a.detach().norm()) < 0.01


def test_under_autocast_the_norm_reads_float32_and_gives_what_the_next_product_wants() -> None:
    norm = RMSNorm(64)
    norm.weight.data.uniform_(0.5, 2.0, generator=torch.Generator().manual_seed(1))
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(2), requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = norm(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, F.rms_norm(x, (64,), norm.weight, 1e-6).bfloat16())
    out.sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.float32
