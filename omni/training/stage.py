"""What a stage declares: model, data, losses, scores, export. The Trainer does everything else.

A loss is a sum with a count (`Term`), never a mean: the Trainer divides by the count of the whole global batch, over all micro-batches
and ranks, so that accumulating gradients or adding processes changes nothing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from omni.config import ModelConfig, RunConfig

B = TypeVar("B")
B_co = TypeVar("B_co", covariant=True)
Reduce = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Term:
    """One loss over one micro-batch: it adds weight · sum / (count of the global batch) to the loss.

    A term of weight 0 is only logged, as sum / count, and may be absent from `Stage.counts`.
    """

    sum: Tensor
    count: Tensor | int
    weight: float = 1.0


@dataclass(frozen=True)
class Objective:
    """Parameters that one optimizer moves for one loss. A GAN has two, one after the other in every update."""

    name: str
    parameters: list[nn.Parameter]


@dataclass(frozen=True)
class Context:
    """What a loss may know beyond its micro-batch.

    totals      targets per term in the global batch (`Stage.counts`, over all micro-batches and ranks)
    statistics  `Stage.statistics` of the global batch, concatenated along the first dimension in global order
    offsets     where this micro-batch's own rows begin in each of them
    """

    totals: Mapping[str, int] = field(default_factory=dict)
    statistics: Mapping[str, Tensor] = field(default_factory=dict)
    offsets: Mapping[str, int] = field(default_factory=dict)
    step: int = 0
    objective: str = "model"


class Examples(Protocol):
    """A map-style data set. What an example looks like must follow from (its seed, epoch, index) alone, never from global random
    state: a background thread reads it. A `set_epoch(int)` method, if there is one, is called before the examples of an epoch."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True)
class Splits(Generic[B_co]):
    """`collate` turns a list of examples into a batch with `.to(device)`. `validation` may be empty: then nothing is the best. With `length`,
    the examples of an update are put in that order before they are cut into micro-batches, so that little of these is padding."""

    train: Examples
    validation: Examples
    collate: Callable[[list[Any]], B_co]
    length: Callable[[Any], int] | None = None


@dataclass(frozen=True)
class Export:
    """What `omni.checkpoint.save_model` writes for users of the model."""

    tensors: dict[str, Tensor]
    config: ModelConfig
    components: Sequence[str]
    tokenizer: bytes | None = None
    extra: dict[str, Any] = field(default_factory=dict)


class Stage(ABC, Generic[B]):
    """One training stage as a declaration. The order of calls is build_data, build_model, prepare, then updates and evaluations."""

    name: ClassVar[str]
    best_metric: str = "loss"
    best_mode: Literal["min", "max"] = "min"
    unit: ClassVar[str] = "items"

    def __init__(self, run: RunConfig) -> None:
        self.run = run

    @abstractmethod
    def build_model(self) -> nn.Module:
        """Everything that trains and what that needs; frozen parts have requires_grad off. The seed is set by the Trainer."""

    @abstractmethod
    def build_data(self) -> Splits[B]:
        """Called first."""

    def prepare(self, model: Any, batch: B) -> None:
        """Once before the first update of a new run, with the whole first global batch, the same on every rank (k-means start)."""

    def objectives(self, model: Any) -> list[Objective]:
        """Which parameters train for which loss. Every trainable parameter belongs to exactly one objective."""
        return [Objective("model", [p for p in model.parameters() if p.requires_grad])]

    def shard_units(self, model: Any) -> list[nn.Module]:
        """Modules that FSDP shards one by one (default: `model.shard_units()`, if it has that). Only modules that every rank runs in
        every micro-batch may be named; all others are gathered together."""
        units = getattr(model, "shard_units", None)
        return list(units()) if units is not None else []

    @abstractmethod
    def counts(self, batch: B) -> dict[str, int]:
        """Targets per loss term, with the same names for every batch (0 is fine)."""

    def items(self, batch: B, n_examples: int) -> int:
        """How much work a micro-batch is, in `unit`s, for the figure per second."""
        return n_examples

    def statistics(self, model: Any, batch: B) -> dict[str, Tensor] | None:
        """For losses that are not additive: tensors (rows, …) of every micro-batch that each loss of the update needs to know. Runs
        without gradient, before the losses, with the same random numbers as the loss of the same micro-batch."""
        return None

    @abstractmethod
    def loss(self, model: Any, batch: B, context: Context) -> dict[str, Term]:
        """Terms of one micro-batch for `context.objective`, with the same names for every batch."""

    def after_update(self, model: Any, reduce: Reduce) -> None:
        """After every update that was not skipped; `reduce` sums a tensor over ranks (EMA codebooks)."""

    def after_skip(self, model: Any) -> None:
        """After an update that a guard refused: forget what the forward passes left behind (EMA sums)."""

    @abstractmethod
    def evaluate(self, model: Any, batches: Iterable[B]) -> dict[str, float]:
        """Scores on validation batches; must contain `best_metric`. The model is in evaluation mode, without gradient."""

    @abstractmethod
    def export(self, model: Any) -> Export:
        """The model for its users."""

    def is_better(self, value: float, best: float) -> bool:
        """Whether a score of `best_metric` beats the best so far; NaN never does."""
        return value < best if self.best_mode == "min" else value > best


def local_context(stage: Stage[B], model: nn.Module, batch: B, objective: str = "model") -> Context:
    """The context of a micro-batch that is the whole batch."""
    with torch.no_grad():
        statistics = stage.statistics(model, batch) or {}
    return Context(stage.counts(batch), statistics, dict.fromkeys(statistics, 0), objective=objective)
