"""A run that is killed, whenever, ends with the bits of one that was not."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from toy_stage import run_toy, start

TRAIN = {"steps": 80, "batch_size": 4, "micro_batch_size": 2, "checkpoint_every": 5, "evaluate_every": 10, "log_every": 1}
OPTIONS = {"noise": True, "n_train": 18}


def bits(run_dir: Path) -> dict[str, bytes]:
    """Every file that matters, and the training state without the clock."""
    files = {str(p.relative_to(run_dir)): p.read_bytes() for p in run_dir.rglob("*") if p.suffix in (".safetensors", ".model")}
    for path in run_dir.glob("checkpoints/*/training_state.json"):
        values = json.loads(path.read_text())
        del values["progress"]["seconds"], values["run"]["out_dir"]
        files[str(path.relative_to(run_dir))] = json.dumps(values).encode()
    return files


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    run_toy({"out_dir": str(folder), "train": TRAIN, "options": OPTIONS})
    return folder


def settings(folder: Path, **how: Any) -> dict[str, Any]:
    return {"out_dir": str(folder), "train": TRAIN, "options": OPTIONS} | how


def outcomes(process: Any) -> list[bool]:
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return [json.loads(line) for line in out.splitlines()]


def test_a_run_killed_at_five_random_moments_gives_the_same_bits(uninterrupted: Path, tmp_path: Path) -> None:
    moments = random.Random(5)
    folder = tmp_path / "run"
    runs = [settings(folder, kill_after_s=moments.uniform(0.0, 0.02)) for _ in range(5)]
    died = outcomes(start([*runs, settings(folder, die_at=0)], tmp_path / "runs.json"))
    assert all(died[:5]), "a run ended before it was killed: raise its steps"
    assert bits(folder) == bits(uninterrupted)
    assert curve_steps(folder, "train/loss") == list(range(1, TRAIN["steps"] + 1))
    validation = curve_steps(folder, "validation/loss")
    assert len(set(validation)) == len(validation)


def test_a_run_killed_at_any_step_of_saving_gives_the_same_bits(tmp_path: Path) -> None:
    """Each of these runs dies at another of its writes, renames and deletions, and is then continued."""
    short = TRAIN | {"steps": 3, "checkpoint_every": 1, "evaluate_every": 1, "keep_checkpoints": 1, "warmup_steps": 0}

    def run(name: str, **how: Any) -> dict[str, Any]:
        return settings(tmp_path / name, **how) | {"train": short}

    moments = range(1, 110, 7)
    runs = [run("whole", die_at=0)] + [run(f"killed-{n}", die_at=at) for n in moments for at in (n, 0)]
    died = outcomes(start(runs, tmp_path / "runs.json"))
    assert sum(died) > 9, "the steps of saving are no longer counted"
    for n in moments:
        assert bits(tmp_path / f"killed-{n}") == bits(tmp_path / "whole"), f"killed at step {n} of saving"
        assert not list((tmp_path / f"killed-{n}").rglob(".*")), "temporary files are left"


def curve_steps(run_dir: Path, curve: str) -> list[int]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0}, purge_orphaned_data=True)
    events.Reload()
    return [event.step for event in events.Scalars(curve)]
