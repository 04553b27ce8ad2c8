"""Estimates against what can be counted."""

from __future__ import annotations

import torch
from torch import nn

from omni.memory import MemoryEstimate, SavedBytes, estimate, peak, readable


def test_parameters_gradients_and_optimizer_are_counted_exactly() -> None:
    model = nn.Sequential(nn.Linear(10, 10, bias=False), nn.Linear(10, 10, bias=False).requires_grad_(False))
    got = estimate(model, example_activations=50, micro_batch_size=4)
    assert got == MemoryEstimate(parameters=800, gradients=400, optimizer=800, activations=200) and got.total == 2200
    assert estimate(model, 50, 4, world_size=2, sharded=True).parameters == 600


def test_activations_are_what_the_backward_pass_needs() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
    x = torch.randn(5, 8)
    saved = SavedBytes(model)
    with saved:
        out = model(x)
    assert saved.total == 5 * (8 + 16) * 4  # the input and the output of tanh; weights are not activations
    out.sum().backward()


def test_fit_and_text() -> None:
    small, large = MemoryEstimate(1, 1, 2, 2**20), MemoryEstimate(2**30, 2**30, 2**31, 10 * 2**30)
    assert small.fits() and not large.fits() and large.fits(24 * 2**30)
    assert "fits a 12 GB GPU" in str(small) and "does NOT fit" in str(large)
    assert [readable(n) for n in (12, 1536, 3 * 2**20, 2**31)] == ["12 B", "1.5 KiB", "3.0 MiB", "2.00 GiB"]
    assert peak(torch.device("cpu")) > 10 * 2**20
