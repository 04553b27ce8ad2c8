"""What makes a run repeatable: deterministic operations, and random states as tensors, so that a checkpoint can hold them.

What libraries draw from is the global state, NumPy's old one included; new code of ours has generators of its own."""

# ruff: noqa: NPY002

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def rng_state(device: torch.device) -> Tensor:
    """torch's random state on the device: what dropout draws from."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def set_rng_state(state: Tensor, device: torch.device) -> None:
    """Undo of `rng_state`."""
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)


def all_rng_states(device: torch.device) -> dict[str, Tensor]:
    """The states of Python, NumPy and torch, as tensors."""
    version, words, gauss = random.getstate()
    assert version == 3
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    states = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor(words),
        "numpy": torch.tensor([*keys.tolist(), position, has_gauss]),  # type: ignore[union-attr]
        "gauss": torch.tensor([gauss is not None, gauss or 0.0, cached], dtype=torch.float64),
    }
    return states | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def set_all_rng_states(states: dict[str, Tensor], device: torch.device) -> None:
    """Undo of `all_rng_states`."""
    has_gauss, gauss, cached = states["gauss"].tolist()
    torch.set_rng_state(states["torch"].clone())  # of a view, such as a row of several processes' states, torch 2.13 reads behind the end
    random.setstate((3, tuple(states["python"].tolist()), gauss if has_gauss else None))
    *keys, position, numpy_has_gauss = states["numpy"].tolist()
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), position, numpy_has_gauss, cached))
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """On the CPU, where it costs little, operations whose result could depend on timing use their other implementation."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
