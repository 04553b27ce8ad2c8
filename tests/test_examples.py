"""The examples of the released model run as their docstrings say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from omni.data.worlds.scenes import render
from omni.evaluation.scenes import asked_scenes, question_voices

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_a_conversation_is_answered_and_spoken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    one, clips = asked_scenes(1)[0], next(iter(question_voices().values()))
    render(one.scene).save(tmp_path / "scene.png")
    command = [sys.executable, "examples/conversation.py", tmp_path / "scene.png", clips[one.first.question], tmp_path / "answer.wav"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    caption, answer, written = done.stdout.splitlines()
    assert caption and answer and written.startswith(f"{tmp_path / 'answer.wav'}: ")
    assert (tmp_path / "answer.wav").stat().st_size > 10_000
