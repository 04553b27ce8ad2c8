"""The gradient of a global batch, however it is cut into micro-batches and spread over ranks.

The counts of all micro-batches and ranks are added up first; then forward and backward run per micro-batch on sums divided by those
counts. Losses that are not additive get the statistics of the global batch as well (`Stage.statistics`)."""

from __future__ import annotations

from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from omni import distributed
from omni.nn.precision import autocast
from omni.training.parallel import Parallel, touch
from omni.training.random_state import rng_state, set_rng_state
from omni.training.stage import Context, Objective, Stage

B = TypeVar("B")


class GlobalGradients(Generic[B]):
    """Leaves gradients in the parameters of one objective at a time."""

    def __init__(self, stage: Stage[B], model: nn.Module, parallel: Parallel, device: torch.device, dtype: torch.dtype | None) -> None:
        self.stage, self.model, self.parallel = stage, model, parallel
        self.device, self.dtype = device, dtype
        self._weights: dict[str, float] = {}

    def of(self, objective: Objective, batches: list[B], step: int, scale: float) -> tuple[dict[str, tuple[float, float]], float]:
        """Gradients, times `scale`, of the global batch of which this rank has `batches`. Returns every term's (mean over the global
        batch, weight), and the norm of the gradient without `scale`; both are the same on all ranks."""
        contexts, states = self._contexts(objective, batches, step)
        sums: dict[str, Tensor] = {}
        factor = scale * distributed.world_size()  # DDP and FSDP average over ranks
        for i, (batch, context) in enumerate(zip(batches, contexts, strict=True)):
            if states:
                set_rng_state(states[i], self.device)
            with self.parallel.accumulating(objective.name, last=i == len(batches) - 1):
                with autocast(self.device, self.dtype):
                    loss, parts = self.parallel.run(objective.name, self._loss, self._to_device(batch), context)
                (loss * factor).backward()
            for name, part in parts.items():
                sums[name] = sums[name] + part if name in sums else part
        norm = self.parallel.grad_norm(objective.parameters).to(self.device) / scale
        return self._reduced(sums, norm, contexts[0])

    def _loss(self, batch: B, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
        """This micro-batch's part of the global loss, and (sum, count) of every term."""
        loss: Tensor | float = touch(self.model) if self.parallel.kind is not None else 0.0
        parts: dict[str, Tensor] = {}
        for name, term in self.stage.loss(self.model, batch, context).items():
            if term.weight:
                loss = loss + term.weight * term.sum.float() / max(context.totals.get(name, 1), 1)
            self._weights[name] = term.weight
            count = torch.as_tensor(term.count, dtype=torch.float64, device=self.device)
            parts[name] = torch.stack([term.sum.detach().double(), count])
        assert isinstance(loss, Tensor) and loss.requires_grad, f"stage {self.stage.name}: the loss depends on no trainable parameter"
        return loss, parts

    def _reduced(self, sums: dict[str, Tensor], norm: Tensor, context: Context) -> tuple[dict[str, tuple[float, float]], float]:
        """Sums and norm over all ranks, in one exchange; every rank gets the same bits of the norm, by averaging it."""
        names = sorted(sums)
        packed = torch.stack([*(sums[name] for name in names), torch.stack([norm, torch.ones_like(norm)])])
        *reduced, (norms, ranks) = distributed.all_reduce_sum(packed).tolist()
        terms: dict[str, tuple[float, float]] = {}
        for name, (total, count) in zip(names, reduced, strict=True):
            weight = self._weights[name]
            announced = context.totals.get(name, None if weight else count)
            assert count == announced, f"stage {self.stage.name}: term {name!r} has {count:g} targets, and counts() said {announced}"
            terms[name] = total / max(count, 1), weight
        return terms, norms / ranks

    def _contexts(self, objective: Objective, batches: list[B], step: int) -> tuple[list[Context], list[Tensor]]:
        """The context of every micro-batch. Where the stage has statistics, also the random state from which each was computed, so that
        the loss draws the same dropout."""
        counts = [self.stage.counts(batch) for batch in batches]
        names = sorted(counts[0])
        assert all(sorted(c) == names for c in counts), f"stage {self.stage.name}: counts() must name the same terms for every batch"
        own_totals = torch.tensor([sum(c[name] for c in counts) for name in names], dtype=torch.int64)
        totals = dict(zip(names, distributed.all_reduce_sum(own_totals).tolist(), strict=True))
        states: list[Tensor] = []
        collected: list[dict[str, Tensor]] = []
        for batch in batches:
            states.append(rng_state(self.device))
            with torch.no_grad(), autocast(self.device, self.dtype):
                statistics = self.parallel.run(None, self.stage.statistics, self.model, self._to_device(batch))
            if statistics is None:
                return [Context(totals, step=step, objective=objective.name)] * len(batches), []
            collected.append(statistics)
        whole = {name: distributed.all_gather_cat(torch.cat([s[name] for s in collected])) for name in collected[0]}
        return [Context(totals, whole, offset, step, objective.name) for offset in self._offsets(collected)], states

    @staticmethod
    def _offsets(collected: list[dict[str, Tensor]]) -> list[dict[str, int]]:
        """Where each micro-batch's rows begin in the global statistics: behind those of lower ranks and earlier micro-batches."""
        offsets: list[dict[str, int]] = [{} for _ in collected]
        for name in collected[0]:
            lengths = [len(s[name]) for s in collected]
            of_ranks = distributed.all_gather_cat(torch.tensor([sum(lengths)])).tolist()
            at = sum(of_ranks[: distributed.rank()])
            for offset, length in zip(offsets, lengths, strict=True):
                offset[name] = at
                at += length
        return offsets

    def _to_device(self, batch: B) -> B:
        return batch.to(self.device)  # type: ignore[attr-defined, no-any-return]
