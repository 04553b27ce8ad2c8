"""The training log in figures (benchmarks/curves.py): every step that is asked for has its row, whatever its run folder still has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from torch.utils.tensorboard import SummaryWriter

from omni.checkpoint import load_model
from omni.config import DEFAULT_CHECKPOINT

RESULT = {"steps": 1500, "seconds": 7200, "metrics": {"loss": 1.25}, "data": {"rows": 900}}


@pytest.fixture
def write_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the command on `steps` and returns the page, the picture and the JSON."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import curves

    def run(*steps: str, more: tuple[str, ...] = ()) -> tuple[str, str, dict[str, Any]]:
        out = tmp_path / "training"
        given = [
            "curves",
            str(tmp_path / "runs"),
            "--steps",
            *steps,
            "--hardware",
            "one core; b as two processes",
            "--out",
            str(out),
            *more,
        ]
        monkeypatch.setattr("sys.argv", given)
        curves.main()
        return out.with_suffix(".md").read_text(), out.with_suffix(".svg").read_text(), json.loads(out.with_suffix(".json").read_text())

    return run


def leave(folder: Path, *, result: bool = False, curves: bool = False) -> None:
    folder.mkdir(parents=True)
    if result:
        (folder / "result.json").write_text(json.dumps(RESULT | {"step": folder.name}))
    if curves:
        with SummaryWriter(str(folder / "tensorboard")) as writer:
            for step in range(1, 4):
                writer.add_scalar("train/loss", 4.0 / step, step)


def test_a_step_without_a_record_has_a_row_that_says_so(tmp_path, write_log) -> None:
    leave(tmp_path / "runs/whole", result=True, curves=True)
    leave(tmp_path / "runs/drawn", curves=True)
    leave(tmp_path / "runs/told", result=True)
    page, picture, found = write_log("whole", "drawn", "gone", "told")
    row = "900 rows | 1,500 | 2.0 | loss 1.25 |"
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert rows == [f"| `whole` | {row}", "| `drawn` | record lost | | | |", "| `gone` | record lost | | | |", f"| `told` | {row}"]
    assert "one core; b as two processes" in page
    assert [name for name in ("whole", "drawn", "gone", "told") if f">{name}</text>" in picture] == ["whole", "drawn"]
    assert write_log("whole", "drawn", "gone", "told") == (page, picture, found)  # the JSON it wrote is read again


def test_what_is_no_longer_there_stays_as_it_was(tmp_path, write_log) -> None:
    leave(tmp_path / "runs/whole", result=True, curves=True)
    before = write_log("whole")
    (tmp_path / "runs/whole").rename(tmp_path / "elsewhere")
    assert write_log("whole") == before


def test_a_checkpoint_tells_of_steps_whose_folders_are_gone(tmp_path, write_log) -> None:
    records = {record["step"]: record for record in load_model(Path(DEFAULT_CHECKPOINT)).extra["training"]}
    shorter = records["talker-tuned"] | {"steps": 600, "curves": {"train/loss": [(1, 2.0), (2, 1.0)]}}  # of an earlier run
    chat = records["chat"] | {"curves": shorter["curves"]}
    known = {"hardware": "one core", "steps": {"talker-tuned": shorter, "chat": chat}}
    (tmp_path / "training.json").write_text(json.dumps(known))
    page, _, found = write_log("talker-tuned", "chat", more=("--ckpt", DEFAULT_CHECKPOINT))
    assert found["steps"]["talker-tuned"] == records["talker-tuned"]
    assert "curves" in found["steps"]["chat"]
    assert "The curves of `talker-tuned` went" in page
