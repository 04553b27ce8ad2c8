"""`muomni eval SUITE`: how well a model does, on data that it never saw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from omni.cli.output import print_json
from omni.config import DEFAULT_CHECKPOINT, DEFAULT_SPEECH_LM
from omni.errors import ConfigError

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
    from omni.tokenizer import BPETokenizer

    if chosen.baseline is None:
        return text_suite(omni, chosen.data, limit=chosen.limit)
    gpt = load_plain_gpt(chosen.baseline)
    return text_suite(omni, chosen.data, limit=chosen.limit, baseline=(gpt, BPETokenizer(chosen.baseline / "tokenizer.model")))


def _asr(omni: Omni, chosen: Settings) -> dict[str, Any]:
    from omni.evaluation.asr import asr_suite

    return asr_suite(omni, chosen.data, limit=chosen.limit, judge=chosen.judge)


def _vision(omni: Omni, chosen: Settings) -> dict[str, Any]:
    from omni.evaluation.vision import vision_suite

    return vision_suite(omni, chosen.data, limit=chosen.limit)


def _codec(omni: Omni, chosen: Settings) -> dict[str, Any]:
    from omni.evaluation.codec import codec_suite

    return codec_suite(omni, chosen.data, limit=chosen.limit, judge=chosen.judge)


def _tts(omni: Omni, chosen: Settings) -> dict[str, Any]:
    from omni.evaluation.tts import tts_suite

    return tts_suite(omni, chosen.data, limit=chosen.limit, judge=chosen.judge)


def _speech_lm(model: SpeechLM, chosen: Settings) -> dict[str, Any]:
    from omni.evaluation.speech_lm import speech_lm_suite

    return speech_lm_suite(model, chosen.data, limit=chosen.limit, judge=chosen.judge)


SUITES: dict[str, Callable[[Any, Settings], dict[str, Any]]] = {  # of the model that `_load` gives
    "text": _text,
    "asr": _asr,
    "vision": _vision,
    "codec": _codec,
    "tts": _tts,
    "speech-lm": _speech_lm,
}


def _load(suite: str, checkpoint: Path | None, device: str) -> Omni | SpeechLM:
    if suite == "speech-lm":
        from omni.speech_lm import SpeechLM

        return SpeechLM.from_pretrained(checkpoint, device)
    from omni.inference.omni import Omni

    return Omni.from_pretrained(checkpoint, device)


def evaluate(
    suite: Annotated[str, typer.Argument(help=", ".join(SUITES))],
    checkpoint: Annotated[
        Path | None,
        typer.Option("--checkpoint", "--ckpt", help=f"model folder; default {DEFAULT_CHECKPOINT}, of speech-lm {DEFAULT_SPEECH_LM}"),
    ] = None,
    data: Annotated[Path, typer.Option(help="folder of `muomni data get`")] = Path("data"),
    limit: Annotated[int | None, typer.Option(min=1, help="so many items of each set, for a quick look; default all")] = None,
    baseline: Annotated[Path | None, typer.Option(help="text: checkpoint of a plain GPT to stand beside it")] = None,
    judge: Annotated[
        Path | None, typer.Option(help="asr, codec, tts, speech-lm: another environment than this one that has the speech recognizers")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="also write the result into this file")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N; auto is a GPU if there is one")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object on standard output")] = False,
) -> None:
    """Measure a model on held-out data. The same checkpoint and data give the same figures."""
    from omni.checkpoint import write_json

    if suite not in SUITES:
        raise ConfigError(f"no suite {suite!r}; known: {', '.join(SUITES)}")
    result = SUITES[suite](_load(suite, checkpoint, device), Settings(data, limit, baseline, judge))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, result)
    if as_json:
        print_json(result)
    else:
        for section in ("metrics", "baselines", "ceilings"):
            for name, value in flat(result[section]).items():
                print(f"{section[:-1]:9} {name:60} {value}")


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested figures by dotted names; lists are left out."""
    out: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            out |= flat(value, f"{prefix}{name}.")
        elif not isinstance(value, list):
            out[prefix + name] = value
    return out
