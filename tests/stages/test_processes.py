"""A recipe's stage in several processes is the stage in one: the same training, and the same error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from omni.config import RunConfig
from omni.errors import DataError
from omni.stages import STAGES, processes
from omni.training.trainer import train

pytestmark = pytest.mark.slow


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two, whatever the machine has; and nothing is trained in this process."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(processes, "train", None)
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def test_two_processes_train_as_one(nano_run: Callable[..., RunConfig], tmp_path: Path, two_cores: None) -> None:
    one, two = (nano_run("text", "text", steps=3, out=str(tmp_path / name)) for name in ("one", "two"))
    expected, found = train(STAGES["text"](one)), processes.train_on_all(two)
    assert found.steps == 3 and found.run_dir == tmp_path / "two"
    assert found.metrics == pytest.approx(expected.metrics, rel=1e-3)
    again = processes.train_on_all(two)
    assert (again.steps, again.metrics) == (3, found.metrics)


def test_an_error_in_a_process_is_the_callers(nano_run: Callable[..., RunConfig], tmp_path: Path, two_cores: None) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl"):
        processes.train_on_all(nano_run("text", "none", out=str(tmp_path / "out")))


def test_a_batch_that_cannot_be_divided_is_trained_in_one(
    nano_run: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, two_cores: None
) -> None:
    monkeypatch.setattr(processes, "train", lambda stage: stage.run.stage)
    assert processes.train_on_all(nano_run("text", "text", batch_size=7, out=str(tmp_path))) == "text"
