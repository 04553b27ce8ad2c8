"""`muomni eval SUITE`: how well a model does, on data that it never saw. `muomni eval all` runs every suite, and measures speed and memory."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import omni
from omni.cli.bench import machine
from omni.cli.output import make_folder, note, print_json
from omni.config import DEFAULT_CHECKPOINT, DEFAULT_SPEECH_LM, read_json
from omni.errors import ConfigError, DataError

if TYPE_CHECKING:
    from omni.inference.omni import Omni
    from omni.speech_lm import SpeechLM


def register(app: typer.Typer) -> None:
    """Add `eval`."""
    app.command("eval")(evaluate)


@dataclass(frozen=True)
class Settings:
    """What the flags ask for."""

    data: Path
    limit: int | None
    baseline: Path | None
    judge: Path | None


def _text(omni: Omni, chosen: Settings) -> dict[str, Any]:
    from omni.evaluation.text import text_suite
    from omni.stages.plain_gpt import load_plain_gpt

    baseline = load_plain_gpt(chosen.baseline) if chosen.baseline is not None else None
    return text_suite(omni, chosen.data, limit=chosen.limit, baseline=baseline)


def _asr(omni: Omni, chosen: Settings) -> dict[str, Any]:
    from omni.evaluation.asr import asr_suite
    from omni.evaluation.judge import WHISPER_TINY, find_judge

    try:
        judge = find_judge(WHISPER_TINY, chosen.judge)
    except DataError as error:
        if chosen.judge is not None:
            raise
        note(f"notice: without ceilings: {error}")
        judge = None
    return asr_suite(omni, chosen.data, limit=chosen.limit, judge=judge)


def _vision(omni: Omni, chosen: Settings) -> dict[str, Any]:
    from omni.evaluation.vision import vision_suite

    return vision_suite(omni, chosen.data, limit=chosen.limit)


def _codec(omni: Omni, chosen: Settings) -> dict[str, Any]:
    from omni.evaluation.codec import codec_suite

    return codec_suite(omni, chosen.data, limit=chosen.limit, judge=chosen.judge)


def _tts(omni: Omni, chosen: Settings) -> dict[str, Any]:
    from omni.evaluation.tts import tts_suite

    return tts_suite(omni, chosen.data, limit=chosen.limit, judge=chosen.judge)


def _omni(omni: Omni, chosen: Settings) -> dict[str, Any]:
    from omni.evaluation.whole import omni_suite

    return omni_suite(omni, chosen.data, limit=chosen.limit, judge=chosen.judge)


def _speech_lm(model: SpeechLM, chosen: Settings) -> dict[str, Any]:
    from omni.evaluation.speech_lm import speech_lm_suite

    return speech_lm_suite(model, chosen.data, limit=chosen.limit, judge=chosen.judge)


SUITES: dict[str, Callable[[Any, Settings], dict[str, Any]]] = {  # of the model that `_load` gives
    "text": _text,
    "asr": _asr,
    "vision": _vision,
    "codec": _codec,
    "tts": _tts,
    "omni": _omni,
    "speech-lm": _speech_lm,
}
ALL = "all"
FAST = {"text": 20, "asr": 8, "vision": 40, "codec": 1, "tts": 1, "omni": 16}  # the suites of `all`, with how many items make a quick look


def _load(suite: str, checkpoint: Path | None, device: str) -> Any:  # an Omni or a SpeechLM
    if suite == "speech-lm":
        from omni.speech_lm import SpeechLM

        return SpeechLM.from_pretrained(checkpoint, device)
    from omni.inference.omni import Omni

    return Omni.from_pretrained(checkpoint, device)


def evaluate(
    suite: Annotated[str, typer.Argument(help=f"{', '.join(SUITES)}, or {ALL} of the model's own with speed and memory")],
    checkpoint: Annotated[
        Path | None,
        typer.Option("--checkpoint", "--ckpt", help=f"model folder; default {DEFAULT_CHECKPOINT}, of speech-lm {DEFAULT_SPEECH_LM}"),
    ] = None,
    data: Annotated[Path, typer.Option(help="folder of `muomni data get`")] = Path("data"),
    limit: Annotated[int | None, typer.Option(min=1, help="so many items of each set, for a quick look; default all")] = None,
    baseline: Annotated[Path | None, typer.Option(help="text: checkpoint of a plain GPT to stand beside it")] = None,
    judge: Annotated[
        Path | None,
        typer.Option(help="asr, codec, tts, omni, speech-lm: another environment than this one that has the speech recognizers"),
    ] = None,
    fast: Annotated[bool, typer.Option("--fast", help=f"{ALL}: few items of each set, under five minutes")] = False,
    before: Annotated[
        Path | None, typer.Option(help=f"{ALL}: folder of text.json, asr.json and tts.json, measured before tuning: what was forgotten?")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help=f"also write the result into this file; {ALL} of all items: default results/<checkpoint>.json")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N; auto is a GPU if there is one")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object on standard output")] = False,
) -> None:
    """Measure a model on held-out data. The same checkpoint and data give the same figures."""
    from omni.checkpoint import write_json
    from omni.evaluation.report import flat

    if suite not in (*SUITES, ALL):
        raise ConfigError(f"no suite {suite!r}; known: {', '.join(SUITES)}, {ALL}")
    if suite != ALL and (fast or before is not None):
        raise ConfigError(f"--fast and --before belong to the suite {ALL}")
    if limit is not None and before is not None:
        raise ConfigError("--before compares all items; leave out --limit")
    if fast and (limit is not None or before is not None):
        raise ConfigError("--fast looks at a few items of every suite; leave out --limit and --before")
    if out is not None:  # before hours of measuring
        if out.is_dir():
            raise ConfigError(f"{out}: is a folder; name a file to write into")
        make_folder(out.parent)
    model, chosen = _load(suite, checkpoint, device), Settings(data, limit, baseline, judge)
    result = _all(model, chosen, fast, before) if suite == ALL else _measure(suite, model, chosen)
    if suite == ALL and not fast and limit is None:  # a quick look overwrites no results
        out = out or Path("results") / f"{model.folder.name}.json"
        make_folder(out.parent)
    if out is not None:
        write_json(out, result)
    if as_json:
        print_json(result)
        return
    for name, found in (result["suites"] if suite == ALL else {suite: result}).items():
        for section in ("metrics", "baselines", "ceilings"):
            for figure, value in flat(found[section]).items():
                print(f"{name:6} {section[:-1]:9} {figure:60} {value}")


def _measure(suite: str, model: Any, chosen: Settings, *, again: bool = True) -> dict[str, Any]:
    """The suite's result, which is kept in the runs folder; unless `again`, one is taken that the same code measured there on the same items with
    the same weights and settings, on the same device (on however many threads): a suite may take hours."""
    from omni.checkpoint import write_json
    from omni.evaluation.judge import runs_folder
    from omni.evaluation.sentences import EVALUATION_DATA

    here = machine(model.device)
    settings = (str(chosen.data.resolve()), chosen.limit, str(chosen.judge), here["device"], here["torch"])
    digest = hashlib.sha256(repr(settings).encode())
    models = (model.folder, *([chosen.baseline] if chosen.baseline is not None and suite == "text" else []))  # no other suite reads it
    weights = (file for folder in models for kind in ("*.json", "*.safetensors", "*.model") for file in folder.glob(kind))
    items = (file for folder in (chosen.data, EVALUATION_DATA) for kind in ("*.jsonl*", "*.txt*") for file in folder.rglob(kind))
    for file in (*sorted(weights), *sorted(items), *sorted(Path(omni.__file__).parent.rglob("*.py"))):
        digest.update(file.read_bytes())
    kept = runs_folder() / "evaluated" / f"{suite}-{digest.hexdigest()[:16]}.json"
    if not again and kept.exists():
        note(f"suite {suite}: measured before ({kept})")
        return read_json(kept)
    result = SUITES[suite](model, chosen) | {"machine": here}
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_json(kept, result)
    return result


def _all(omni: Omni, chosen: Settings, fast: bool, before: Path | None) -> dict[str, Any]:
    """Every suite, sizes, speed, memory, and what tuning made worse. What is soon measured comes first, and what is missing is found before hours
    of measuring."""
    from omni.evaluation.codec import check_packages
    from omni.evaluation.judge import find_judges
    from omni.evaluation.report import KEPT, forgotten
    from omni.evaluation.speed import measure_speech
    from omni.omni_model import COMPONENTS, MORE_COMPONENTS
    from omni.parameters import count, parameter_table

    if chosen.baseline is None:
        note("notice: no plain GPT stands beside the Thinker; give one with: --baseline")
    if before is None and not fast:
        note("notice: what tuning made worse is not compared; give what was measured before it with: --before")
    earlier = {name: read_json(before / f"{name}.json") for name in KEPT} if before is not None else {}
    for name in (*COMPONENTS, *MORE_COMPONENTS):
        getattr(omni.model, name)  # says what the checkpoint lacks
    check_packages()
    find_judges(chosen.judge)
    speed = {"answer": _answer(omni), "speech": vars(measure_speech(omni, rounds=3 if fast else 10))}
    suites = {}
    for name in FAST:
        note(f"suite {name}")
        suites[name] = _measure(name, omni, replace(chosen, limit=FAST[name]) if fast else chosen, again=False)
    sizes = parameter_table(omni.model)
    speaking = sum(count(getattr(omni.model, name)) for name in ("talker", "codec", "vocoder"))
    assert omni.folder is not None, "a model from a folder"
    return {
        "suite": ALL,
        "checkpoint": str(omni.folder),
        "fast": fast,
        "limit": chosen.limit,
        "machine": machine(omni.device),
        "voices": list(omni.voices),
        "parameters": {**sizes.components, **sizes.additions, "everything": sum(p.numel() for p in omni.model.parameters())},
        "megabytes": {  # in bfloat16, and as it lies in its folder
            "talker, codec and vocoder": round(2 * speaking / 1e6, 1),
            "folder": round(sum(file.stat().st_size for file in omni.folder.iterdir() if file.is_file()) / 1e6, 1),
        },
        "speed": speed,
        "forgetting": forgotten(earlier, suites),
        "suites": suites,
    }


def _answer(omni: Omni) -> dict[str, Any]:
    """How soon a question is answered, by a process of its own, so that its memory is that of the model alone."""
    from omni.data.worlds.scenes import render
    from omni.evaluation.scenes import asked_scenes, question_voices

    one, clips = asked_scenes(1)[0], next(iter(question_voices().values()))
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "scene.png"
        render(one.scene).save(picture)
        asked = ["--image", str(picture), "--audio", str(clips[one.first.question])]
        command = [sys.executable, "-m", "omni.cli", "bench", "answer", *asked, "--ckpt", str(omni.folder), "--device", str(omni.device)]
        done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise DataError(f"the speed of an answer could not be measured: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}")
    metrics: dict[str, Any] = json.loads(done.stdout)["metrics"]
    return metrics
