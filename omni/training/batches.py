"""In which order examples are read, and the thread that reads ahead.

The order is a function of (seed, position): the position, a number of examples over all ranks, is all there is to save and restore."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

from omni.errors import DataError
from omni.training.stage import Examples, Splits

B = TypeVar("B")


class EpochOrder:
    """Endless shuffled epochs over n examples: `[position]` is (epoch, index)."""

    def __init__(self, n: int, seed: int) -> None:
        if n == 0:
            raise DataError("no training samples: the training data is empty after reading; check data.train")
        self.n, self.seed = n, seed
        self._epoch, self._permutation = -1, torch.empty(0, dtype=torch.int64)

    def __getitem__(self, position: int) -> tuple[int, int]:
        epoch, place = divmod(position, self.n)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._epoch, self._permutation = epoch, torch.randperm(self.n, generator=generator)
        return epoch, int(self._permutation[place])


def read_examples(data: Examples, order: EpochOrder, positions: range) -> list[Any]:
    """The examples at these positions of the order."""
    examples = []
    set_epoch = getattr(data, "set_epoch", None)
    for position in positions:
        epoch, index = order[position]
        if set_epoch is not None:
            set_epoch(epoch)
        examples.append(data[index])
    return examples


@dataclass(frozen=True)
class Share(Generic[B]):
    """This rank's part of one global batch, and the number of examples that each of its micro-batches holds."""

    micro_batches: list[B]
    sizes: list[int]


class Prefetcher(Generic[B]):
    """Yields this rank's share of every global batch from `position` on; a thread reads `ahead` of them before they are asked for.

    An error in the data is raised where its batch would have come.
    """

    def __init__(
        self,
        splits: Splits[B],
        order: EpochOrder,
        *,
        position: int,
        batch_size: int,
        micro_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        ahead: int = 2,
    ) -> None:
        self._splits, self._order = splits, order
        self._position, self._batch_size, self._micro = position, batch_size, micro_batch_size
        self._rank, self._own = rank, batch_size // world_size
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._pending: deque[Future[Share[B]]] = deque()
        for _ in range(ahead):
            self._submit()

    def _submit(self) -> None:
        self._pending.append(self._pool.submit(self._read, self._position))
        self._position += self._batch_size

    def _read(self, position: int) -> Share[B]:
        start = position + self._rank * self._own
        examples = read_examples(self._splits.train, self._order, range(start, start + self._own))
        if self._splits.length is not None:
            examples.sort(key=self._splits.length)
        pieces = [examples[at : at + self._micro] for at in range(0, self._own, self._micro)]
        return Share([self._splits.collate(piece) for piece in pieces], [len(piece) for piece in pieces])

    def __next__(self) -> Share[B]:
        share = self._pending.popleft().result()
        self._submit()
        return share

    def __iter__(self) -> Iterator[Share[B]]:
        return self

    def close(self) -> None:
        """Stop reading ahead."""
        self._pool.shutdown(cancel_futures=True)


class ValidationBatches(Generic[B]):
    """The validation examples in order, in batches on a device; may be gone through again."""

    def __init__(self, data: Examples, collate: Callable[[list[Any]], B], batch_size: int, to_device: Callable[[B], B]) -> None:
        self._data, self._collate, self._size, self._to_device = data, collate, batch_size, to_device

    def __iter__(self) -> Iterator[B]:
        for at in range(0, len(self._data), self._size):
            examples = [self._data[i] for i in range(at, min(at + self._size, len(self._data)))]
            yield self._to_device(self._collate(examples))
