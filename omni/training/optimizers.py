"""AdamW with decay on matrices only, Muon for the matrices of transformer blocks, and the learning rate over a run."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from omni.config import TrainConfig
from omni.errors import ConfigError
from omni.nn.precision import computes_bfloat16
from omni.nn.transformer import Block
from omni.training.stage import Objective

MUON_MOMENTUM = 0.95


def make_optimizers(model: nn.Module, objective: Objective, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """What updates the objective's parameters, each of which belongs to exactly one optimizer: AdamW all of them, or with
    `config.optimizer` "muon" the matrices of transformer blocks Muon and the rest (embeddings, heads, convolutions, norms, biases) AdamW.
    Raises ConfigError for Muon on sharded parameters."""
    if config.optimizer == "adamw":
        return [adamw(model, objective.parameters, config)]
    if config.parallel == "fsdp":
        raise ConfigError("train.optimizer: muon needs whole matrices, which fsdp shards; use ddp, or adamw")
    in_blocks = {id(p) for m in model.modules() if isinstance(m, Block) for p in m.parameters() if p.ndim == 2}
    matrices = [p for p in objective.parameters if id(p) in in_blocks]
    others = [p for p in objective.parameters if id(p) not in in_blocks]
    found: list[torch.optim.Optimizer] = [adamw(model, others, config)] if others else []
    if matrices:
        found.append(Muon(matrices, config))
    return found


class Muon(torch.optim.Muon):
    """Muon (Jordan et al. 2024): momentum whose matrix is made orthogonal. Steps are scaled to the size of AdamW's (Liu et al. 2025, §2.2), so that
    one learning rate serves both. It is torch's where the device computes in bfloat16, as torch always does; where that would be emulated the
    same is computed in float32."""

    def __init__(self, matrices: list[nn.Parameter], config: TrainConfig) -> None:
        rate, decay = config.learning_rate, config.weight_decay
        super().__init__(matrices, lr=rate, weight_decay=decay, momentum=MUON_MOMENTUM, adjust_lr_fn="match_rms_adamw")

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        if all(computes_bfloat16(p.device) for group in self.param_groups for p in group["params"]):
            return super().step(closure)
        assert closure is None, "the Trainer has computed the gradients"
        for group in self.param_groups:
            rate, share = group["lr"], group["momentum"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                momentum = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p.grad))
                momentum.lerp_(p.grad, 1 - share)
                update = orthogonal(p.grad.lerp(momentum, share), group["ns_coefficients"], group["ns_steps"], group["eps"])
                p.mul_(1 - rate * group["weight_decay"]).add_(update, alpha=-rate * 0.2 * math.sqrt(max(p.shape)))


def orthogonal(matrix: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """The nearest orthogonal matrix, about: its singular values are near one (a Newton-Schulz iteration of fifth order)."""
    a, b, c = coefficients
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = wide / wide.norm().clamp(min=eps)  # no singular value is above one
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide is matrix else x.T


def adamw(model: nn.Module, parameters: list[nn.Parameter], config: TrainConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019) over `parameters` of the model; weights of linear and convolution layers decay, embeddings (also
    tied ones), norms, biases and other parameters do not."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    matrices = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear | _ConvNd)} - embeddings
    groups = [
        {"params": [p for p in parameters if id(p) in matrices], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if id(p) not in matrices], "weight_decay": 0.0},
    ]
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=fused or None
    )


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up to `learning_rate`, then a cosine down to its final fraction (Loshchilov & Hutter 2017), for update `step` from 0."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(config.steps - config.warmup_steps, 1)
    floor = config.final_learning_rate_fraction
    return config.learning_rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))


def check_objectives(model: nn.Module, objectives: list[Objective]) -> None:
    """Raises ConfigError unless something trains; every trainable parameter must be in exactly one objective."""
    names = {id(p): name for name, p in model.named_parameters()}
    trainable = {id(p) for p in model.parameters() if p.requires_grad}
    if not trainable:
        raise ConfigError("nothing to train: every parameter of the model is frozen (see train.freeze)")
    held = [id(p) for objective in objectives for p in objective.parameters]
    twice = {i for i in held if held.count(i) > 1} if len(set(held)) < len(held) else set()
    assert not twice, f"in more than one objective: {sorted(names[i] for i in twice)}"
    assert set(held) <= trainable, f"in an objective but frozen: {sorted(names.get(i, '?') for i in set(held) - trainable)}"
    assert trainable <= set(held), f"trainable, but in no objective: {sorted(names[i] for i in trainable - set(held))}"
