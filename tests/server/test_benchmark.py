"""`muomni bench serve`, against a server process of its own, and `bench generate`, without one."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from served import MUOMNI, ROOT


@pytest.mark.slow
def test_the_load_is_measured_and_nothing_is_lost_or_mixed_up(checkpoint: Path, tmp_path: Path) -> None:
    options = [
        "--ckpt",
        checkpoint,
        "--clients",
        "6",
        "--spoken-clients",
        "2",
        "--seconds",
        "3",
        "--threads",
        "1",
        "--out",
        tmp_path / "x.json",
    ]
    done = subprocess.run([*MUOMNI, "bench", "serve", "--json", *map(str, options)], cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["what"] == "serve"
    assert json.loads((tmp_path / "x.json").read_text()) == result
    metrics = result["metrics"]
    for name, clients in (("alone", 1), ("many", 6), ("spoken_alone", 1), ("spoken", 2)):
        load = metrics[name]
        assert load["clients"] == clients
        assert load["asked"] == load["whole"] > 0
        assert load["first_ms"] > 0
        assert name.startswith("spoken") or load["tokens_per_s"] * load["seconds"] == pytest.approx(64 * load["whole"], rel=0.05)
        assert name.startswith("spoken") or load["as_alone"] >= 0.99 * load["whole"] or load["largest_gap"] < 1e-3
    assert metrics["say_first_audio_ms"] > 0
    assert metrics["many"]["tokens_per_s"] > 0


@pytest.mark.slow
def test_generation_is_measured_in_one_process(checkpoint: Path) -> None:
    command = [*MUOMNI, "bench", "generate", "--ckpt", str(checkpoint), "--seconds", "0.5", "--device", "cpu", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["what"] == "generate"
    assert all(result["metrics"][name] > 0 for name in ("tokens_per_s", "first_text_ms", "replies"))
