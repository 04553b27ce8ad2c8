"""What `muomni train pocket` says at its end: what was measured, beside what the recipe promises."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from omni.cli import train
from omni.cli.app import main
from omni.errors import DataError
from omni.evaluation.pocket import PROMISED, SceneQuestion, WorldResults, answers
from omni.stages.recipes import StageSummary

QUESTIONS = [SceneQuestion("a.png", "?", Path("a.wav"), "red", "It is red.", kind) for kind in ("colour", "colour", "shape", "shape")]


def results(speech: float | None) -> WorldResults:
    """Three of four typed questions right, all but those of the shape by voice, nothing without a picture."""
    texts = {"typed": ["red"] * 3 + ["blue"], "spoken": ["red", "red", "blue", "blue"], "swapped": ["blue"] * 4, "withheld": [""] * 4}
    scenes = {name: answers(QUESTIONS, said) for name, said in (texts | {"majority": ["red", "red", "blue", "blue"]}).items()}
    spoken = {"items": 60, "wer": speech, "wer_95": (0.2, 0.4)} if speech else None
    return WorldResults(scenes, {"items": 200, "wer": 0.12, "wer_95": (0.1, 0.14)}, spoken)


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, list[str]]]:
    """Shows results: label → cells of its line."""
    monkeypatch.setenv("COLUMNS", "160")

    def show(found: WorldResults, preset: str) -> dict[str, list[str]]:
        train.show_world(found, PROMISED.get(preset, {}))
        rows = [[cell.strip() for cell in line.strip("│┃ ").split("│")] for line in capsys.readouterr().out.splitlines() if "│" in line]
        return {row[0]: row[1:] for row in rows}

    return show


def test_bounds_of_the_promise_are_kept_or_not(lines) -> None:
    found = lines(results(speech=0.3), "tiny")
    assert found["unseen scenes, typed questions: right"][:2] == ["4", "75.0%"]
    assert found["unseen scenes, typed questions: right"][3:] == ["≥ 80%", "no"]
    assert found["voices never heard: word errors of CTC"] == ["200", "12.0%", "10.0% to 14.0%", "≤ 15%", "yes"]
    assert found["its own speech: word errors of Whisper base"] == ["60", "30.0%", "20.0% to 40.0%", "≤ 30%", "yes"]
    assert found["… no picture"] == ["4", "0.0%", "0.0% to 49.0%"]


def test_another_preset_promises_nothing(lines) -> None:
    assert lines(results(speech=0.3), "nano")["voices never heard: word errors of CTC"] == ["200", "12.0%", "10.0% to 14.0%"]


def test_answers_are_broken_down_by_kind_of_question(lines) -> None:
    found = lines(results(speech=None), "tiny")
    assert found["colour"] == ["2", "100%", "34% to 100%", "100%", "34% to 100%"]
    assert found["shape"][:2] == ["2", "50%"] and found["shape"][3:] == ["0%", "0% to 66%"]
    assert found["its own speech: word errors of Whisper base"][1] == "unjudged"


@pytest.mark.parametrize("as_json", [False, True])
def test_unjudged_speech_is_said_again_at_the_end(as_json, tmp_path, monkeypatch, capsys) -> None:
    def nobody(name: str, environment: Path | None = None) -> None:
        raise DataError("nobody listens; install somebody")

    def run_pocket(preset: str, out: Path, **_: Any) -> list[StageSummary]:
        print("trained")
        return [StageSummary("text", 60.0, 3, {"loss": 1.0})]

    monkeypatch.setattr("omni.evaluation.judge.find_judge", nobody)
    monkeypatch.setattr("omni.stages.recipes.run_pocket", run_pocket)
    monkeypatch.setattr("omni.inference.omni.Omni.from_pretrained", lambda *_: SimpleNamespace())
    monkeypatch.setattr("omni.evaluation.pocket.evaluate_world", lambda *_: results(speech=None))
    assert main(["train", "pocket", "--out", str(tmp_path), *(["--json"] if as_json else [])]) == 0
    out, err = capsys.readouterr()
    assert err.strip().splitlines()[-1] == (
        "notice: its speech went unjudged: nobody listens; install somebody; after that, the same command only measures"
    )
    if as_json:
        assert json.loads(out.replace("trained\n", ""))["measured"]["speech"] is None
    else:
        assert "kind of question" in out and "≥ 80%" in out
