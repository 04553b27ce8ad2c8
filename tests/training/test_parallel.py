"""Two processes, DDP or FSDP2, train what one process trains, and continue each other's checkpoints."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from toy_stage import run_processes, run_toy

STEP = "step-00000004"
STAGE_NAMES = ("ToyStage", "ContrastiveStage", "SometimesStage")

pytestmark = pytest.mark.slow


def state(run_dir: Path, step: str = "step-00000008") -> dict[str, torch.Tensor]:
    """Everything that a checkpoint holds except random states, which belong to the number of processes."""
    folder = run_dir / "checkpoints" / step
    tensors = load_file(folder / "model.safetensors") | load_file(folder / "training_state.safetensors")
    return {name: t for name, t in tensors.items() if not name.startswith("rng.")}


def losses(run_dir: Path) -> list[dict[str, float]]:
    return json.loads((run_dir / "updates.json").read_text())


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process first (batches of 8 in one piece), then two (each 4, in micro-batches of 2), also from each other's checkpoints."""
    root = tmp_path_factory.mktemp("parallel")
    for stage in (*STAGE_NAMES, "TwoObjectiveStage"):
        folder = root / f"one-{stage}"
        updates = run_toy({"stage": stage, "out_dir": str(folder)})
        (folder / "updates.json").write_text(json.dumps(updates))

    def two(stage: str, kind: str, name: str) -> dict[str, Any]:
        return {"stage": stage, "out_dir": str(root / name), "train": {"micro_batch_size": 2, "parallel": kind}}

    together = [two(stage, kind, f"{kind}-{stage}") for stage in STAGE_NAMES for kind in ("ddp", "fsdp")]
    together.append(two("TwoObjectiveStage", "ddp", "ddp-TwoObjectiveStage"))
    for kind in ("ddp", "fsdp"):  # continue what one process began
        shutil.copytree(root / "one-ToyStage" / "checkpoints" / STEP, root / f"one-to-{kind}" / "checkpoints" / STEP)
        together.append(two("ToyStage", kind, f"one-to-{kind}"))
    run_processes(together, root, n=2)
    return root


@pytest.mark.parametrize("name", [f"{kind}-{stage}" for stage in STAGE_NAMES for kind in ("ddp", "fsdp")] + ["ddp-TwoObjectiveStage"])
def test_two_processes_train_as_one(runs: Path, name: str) -> None:
    one = f"one-{name.split('-')[1]}"
    for ours, theirs in zip(losses(runs / name), losses(runs / one), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)
    tensors, expected = state(runs / name), state(runs / one)
    assert tensors.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(tensors[key], value, rtol=1e-3, atol=1e-5, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_continue_what_one_began(runs: Path, kind: str) -> None:
    expected = state(runs / "one-ToyStage")
    for key, value in state(runs / f"one-to-{kind}").items():
        torch.testing.assert_close(value, expected[key], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_one_process_continues_what_two_began(runs: Path, tmp_path: Path, kind: str) -> None:
    shutil.copytree(runs / f"{kind}-ToyStage" / "checkpoints" / STEP, tmp_path / "checkpoints" / STEP)
    run_toy({"out_dir": str(tmp_path)})
    expected = state(runs / "one-ToyStage")
    for key, value in state(tmp_path).items():
        torch.testing.assert_close(value, expected[key], rtol=1e-3, atol=1e-5)


def test_two_processes_continue_what_two_began(runs: Path, tmp_path: Path) -> None:
    name = "ddp-ToyStage"
    shutil.copytree(runs / name / "checkpoints" / STEP, tmp_path / name / "checkpoints" / STEP)
    run_processes([{"out_dir": str(tmp_path / name), "train": {"micro_batch_size": 2, "parallel": "ddp"}}], tmp_path, n=2)
    files = [Path("checkpoints/step-00000008", file) for file in ("model.safetensors", "training_state.safetensors")]
    for file in files:  # random states too
        expected = load_file(runs / name / file)
        assert all(torch.equal(t, expected[key]) for key, t in load_file(tmp_path / name / file).items())


def test_the_parameter_nobody_used_is_left_alone(runs: Path) -> None:
    for name in ("one-ToyStage", "ddp-ToyStage", "fsdp-ToyStage"):
        before, after = state(runs / name, STEP), state(runs / name)
        assert torch.equal(before["model.unused.weight"], after["model.unused.weight"])
        assert not any(key.startswith("optimizer.model.unused") for key in after)
