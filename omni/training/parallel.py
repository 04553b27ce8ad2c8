"""Several processes: DDP (every rank holds the model) and FSDP2 (every rank holds a shard), each giving what one process would give.

Stages call whatever they like inside their model, so what is wrapped is not the model but a `Runner`, whose forward is a function call
with the model in it. A parameter that some rank does not use still takes part in the exchange of gradients, through `touch`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from omni import distributed
from omni.training.stage import Objective


class Runner(nn.Module):
    """Calls functions of `model` under the hooks of whatever wraps it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)


def touch(model: nn.Module) -> Tensor | float:
    """0, as a function of every trainable parameter that is here in full: its gradient exists on every rank, if only as zeros."""
    empty = [p.reshape(-1)[:0].sum() for p in model.parameters() if p.requires_grad and not isinstance(p, DTensor)]
    return torch.stack(empty).sum() if empty else 0.0


class Parallel:
    """The model as this rank holds it. `run(objective, function, *arguments)` calls a function under the right wrapper."""

    def __init__(self, model: nn.Module, kind: Literal["ddp", "fsdp"], device: torch.device, shard_units: Sequence[nn.Module]) -> None:
        self.model = model
        self.kind = kind if distributed.world_size() > 1 else None
        self._runner = Runner(model)
        self._wrapped: dict[str, DistributedDataParallel] = {}
        if self.kind is not None:
            for tensor in (*model.parameters(), *model.buffers()):
                distributed.broadcast_(tensor.data)
        if self.kind == "fsdp":
            self._shard(device, shard_units)

    def _shard(self, device: torch.device, units: Sequence[nn.Module]) -> None:
        # Frozen parts stay whole, since ranks may differ in whether they run them; so do scalars, which cannot be sharded.
        whole = {p for p in self.model.parameters() if not p.requires_grad or p.ndim == 0}
        mesh = init_device_mesh(device.type, (distributed.world_size(),))
        for unit in units:
            if not whole.issuperset(unit.parameters()):
                fully_shard(unit, mesh=mesh, ignored_params=whole)
        fully_shard(self._runner, mesh=mesh, ignored_params=whole)

    def add(self, objective: Objective) -> None:
        """Make ready for the backward passes of one objective; its parameters must be the only trainable ones at this moment."""
        if self.kind == "ddp":
            with warnings.catch_warnings():  # torch 2.13 has another name for broadcast_buffers, which 2.9 does not know
                warnings.simplefilter("ignore", FutureWarning)
                wrapped = DistributedDataParallel(self._runner, broadcast_buffers=False, gradient_as_bucket_view=True)
            self._wrapped[objective.name] = wrapped

    def run(self, objective: str | None, function: Callable[..., Any], *arguments: Any) -> Any:
        """`function(*arguments)`; with an objective its gradients are going to be exchanged."""
        if self.kind == "fsdp":
            return self._runner(function, *arguments)
        if self.kind == "ddp" and objective is not None:
            return self._wrapped[objective](function, *arguments)
        return function(*arguments)

    @contextmanager
    def accumulating(self, objective: str, last: bool) -> Iterator[None]:
        """Around one micro-batch: gradients are exchanged with the last one only."""
        if isinstance(self._runner, FSDPModule):
            self._runner.set_requires_gradient_sync(last)
        wrapped = self._wrapped.get(objective)
        with wrapped.no_sync() if wrapped is not None and not last else nullcontext():
            yield

    def rest(self) -> None:
        """Between passes: nothing is held but this rank's own shard."""
        for module in self._runner.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def grad_norm(self, parameters: list[nn.Parameter]) -> Tensor:
        """The norm of the whole gradient, float64, the same on every rank.

        A gradient that is zero throughout is dropped, as if the parameter had not been used: then momentum and weight decay leave
        unused parameters alone, however many processes there are.
        """
        used = [p for p in parameters if p.grad is not None]
        if not used:
            return torch.zeros((), dtype=torch.float64)
        if self.kind == "fsdp":
            for p in used:
                if not isinstance(p, DTensor):  # a scalar, which FSDP does not see
                    p.grad = distributed.all_reduce_sum(_grad(p)) / distributed.world_size()
        squares = torch.stack(torch._foreach_norm([local(_grad(p)) for p in used])).double() ** 2
        if self.kind == "fsdp":
            copies = [1 if isinstance(p, DTensor) else distributed.world_size() for p in used]
            squares = distributed.all_reduce_sum(squares / squares.new_tensor(copies))
        for p, square in zip(used, squares.tolist(), strict=True):
            if square == 0.0:
                p.grad = None
        return squares.sum().sqrt()

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Every parameter in full, on every rank, so that the model can be saved as if it had never been sharded."""
        self.rest()
        whole: dict[int, nn.Parameter] = {}
        sharded: list[tuple[nn.Module, str, nn.Parameter]] = []
        for module in self.model.modules():
            for name, p in module._parameters.items():
                if isinstance(p, DTensor):
                    if id(p) not in whole:
                        whole[id(p)] = nn.Parameter(p.full_tensor().detach(), requires_grad=p.requires_grad)
                    sharded.append((module, name, p))
        for module, name, p in sharded:
            module._parameters[name] = whole[id(p)]
        try:
            yield
        finally:
            for module, name, p in sharded:
                module._parameters[name] = p


def _grad(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def local(tensor: Tensor) -> Tensor:
    """This rank's own part of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full(tensor: Tensor) -> Tensor:
    """The whole of a tensor; every rank must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, parameter: nn.Parameter) -> Tensor:
    """`tensor`, the whole of something shaped like `parameter`, placed as that is."""
    if isinstance(parameter, DTensor) and tensor.shape == parameter.shape:
        return distribute_tensor(tensor.to(parameter.device), parameter.device_mesh, parameter.placements)
    return tensor.to(parameter.device)
