"""An independent recognizer (Whisper, Radford et al. 2022) in an environment of its own, as a reference for what can be heard."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

from omni.errors import DataError

WORKER = Path(__file__).with_name("judge_worker.py")
WHISPER_TINY = "whisper-tiny.en"


def judge_hears(environment: Path, audio: Sequence[Path], model: str = WHISPER_TINY) -> list[str]:
    """What the recognizer hears in every file. `environment` is a virtual environment with faster-whisper, and its models in the folder
    `judges`. Raises DataError when they are not there or fail."""
    python, folder = environment / "bin/python", environment / "judges" / model
    for needed in (python, folder):
        if not needed.exists():
            raise DataError(f"{needed}: not there; --judge names a virtual environment with faster-whisper and the folder judges/{model}")
    files = json.dumps([str(path.resolve()) for path in audio])
    # -I: the environment's own modules only
    done = subprocess.run([python.absolute(), "-I", WORKER, folder], input=files, capture_output=True, text=True, check=False)
    heard = [json.loads(line) for line in done.stdout.splitlines()]
    if done.returncode or len(heard) < len(audio):
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise DataError(f"{environment}: {model} failed after {len(heard)} of {len(audio)} files: {reason}")
    return heard
