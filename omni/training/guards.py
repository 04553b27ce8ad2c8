"""Numerical guards: the loss scale of float16, the check of every update, and the switch that finds where a NaN is born."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from omni.config import TrainConfig
from omni.errors import NonFiniteError


@dataclass
class LossScaler:
    """Keeps small float16 gradients above zero: the loss is multiplied by `scale`, which halves when gradients overflow and doubles
    after `interval` good updates (Micikevicius et al. 2018, §3.2).

    torch's GradScaler decides on every rank for itself, which a sharded run cannot bear; this one is told what all ranks agreed on.
    """

    enabled: bool
    scale: float = 2.0**16
    good: int = 0
    interval: int = 2_000

    def __post_init__(self) -> None:
        if not self.enabled:
            self.scale = 1.0

    @property
    def can_fall(self) -> bool:
        """Whether an overflow may be the scale's fault, not the model's."""
        return self.enabled and self.scale > 1.0

    def update(self, overflow: bool) -> None:
        """Once per update."""
        if not self.enabled:
            return
        if overflow:
            self.scale, self.good = max(self.scale / 2, 1.0), 0
        else:
            self.good += 1
            if self.good >= self.interval:
                self.scale, self.good = self.scale * 2, 0


@dataclass
class Guard:
    """Decides whether an update may happen, and gives up after too many in a row that may not."""

    config: TrainConfig
    skipped: int = 0
    in_a_row: int = 0

    def fault(self, step: int, loss: float, grad_norm: float) -> str | None:
        """What is wrong with an update, or None. Bounds on size apply after the warm-up; what is not finite is never applied."""
        if not math.isfinite(loss):
            return f"loss is {loss}"
        if not math.isfinite(grad_norm):
            return f"gradient norm is {grad_norm}"
        if step < self.config.warmup_steps:
            return None
        if abs(loss) > self.config.max_loss:
            return f"loss {loss:.4g} is beyond max_loss {self.config.max_loss:g}"
        if grad_norm > self.config.exploding_grad_norm:
            return f"gradient norm {grad_norm:.4g} is above exploding_grad_norm {self.config.exploding_grad_norm:g}"
        return None

    def passed(self) -> None:
        """The update was applied."""
        self.in_a_row = 0

    def refuse(self, step: int, fault: str, overflow: bool) -> None:
        """Count a skipped update. Raises NonFiniteError when there were `max_bad_updates` in a row, not counting those where the loss
        scale was merely too large."""
        self.skipped += 1
        if overflow:
            return
        self.in_a_row += 1
        if self.in_a_row >= self.config.max_bad_updates:
            raise NonFiniteError(
                f"step {step}: {self.in_a_row} updates in a row were refused, the last because {fault}; "
                "lower train.learning_rate, or find the first NaN with train.debug_nan=true"
            )


@contextmanager
def nan_watch(model: nn.Module) -> Iterator[None]:
    """Debug switch: stop with the name of the first module whose output is not finite, and trace NaN gradients to their operation."""
    handles = [module.register_forward_hook(_checker(name)) for name, module in model.named_modules() if not list(module.children())]
    try:
        with torch.autograd.set_detect_anomaly(True):
            yield
    finally:
        for handle in handles:
            handle.remove()


def _checker(name: str) -> Any:
    def check(module: nn.Module, inputs: Any, output: Any) -> None:
        for tensor in output if isinstance(output, tuple | list) else (output,):
            if isinstance(tensor, Tensor) and tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise NonFiniteError(f"debug_nan: the output of {name} ({type(module).__name__}) is not finite")

    return check
