"""`muomni demo`: from nothing to a small model that hears, sees, reads, answers and speaks, with proof that it does."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from omni.cli.output import note, print_json
from omni.errors import OmniError

if TYPE_CHECKING:
    from omni.inference.omni import Omni

SCENES = 100


class DemoFailed(OmniError):
    """The trained model did no better than one that cannot see, or its speech did not fit its text."""


def register(app: typer.Typer) -> None:
    """Add `demo`."""
    app.command()(demo)


def demo(
    out: Annotated[Path, typer.Option(help="folder of data, runs, model and the spoken answer")] = Path("runs/pocket-nano"),
    seed: Annotated[int, typer.Option(help="seed of world and training")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="print the measurements as one JSON object")] = False,
) -> None:
    """Train the nano model from nothing, ask it by voice about a picture, then test it on 100 unseen scenes."""
    from omni.evaluation.pocket import scene_questions
    from omni.inference.omni import Omni
    from omni.stages.recipes import run_pocket

    start = time.monotonic()
    run_pocket("nano", out, seed=seed, on_event=note)
    note(f"trained in {time.monotonic() - start:.0f} s\n")
    omni = Omni.from_pretrained(out)
    questions = scene_questions(out / "data", SCENES)
    _show_one(omni, questions[0], out / "answer.wav")
    result = _measure(omni, questions)
    if as_json:
        print_json(result)
    _judge(result)


def _show_one(omni: Omni, question: Any, answer_file: Path) -> None:
    """One question asked by voice about a picture, with the time of every part."""
    from omni.audio import save_audio

    note(f"picture         {question.image}")
    note(f"asked by voice  {question.question}  ({question.spoken})")
    start = time.monotonic()
    heard = omni.transcribe(question.spoken)
    note(f"heard (CTC)     {heard}  [{time.monotonic() - start:.2f} s]")
    start = time.monotonic()
    reply = omni.ask(image=question.image, audio=question.spoken)
    note(f"answered        {reply.text}  [{time.monotonic() - start:.2f} s]  (right: {question.sentence})")
    start = time.monotonic()
    speech = omni.say(reply.text)
    save_audio(answer_file, speech.waveform, speech.sample_rate_hz)
    note(f"spoken          {answer_file}: {len(speech.codes)} code frames, {speech.duration_s:.2f} s  [{time.monotonic() - start:.2f} s]\n")


def _measure(omni: Omni, questions: Any) -> dict[str, Any]:
    from dataclasses import asdict

    from rich.console import Console
    from rich.table import Table

    from omni.evaluation.pocket import evaluate_scenes, speech_fit

    scenes = evaluate_scenes(omni, questions)
    fit = speech_fit(omni, scenes.typed_replies + [q.sentence for q in questions])
    table = Table("unseen scenes", "right", "95 %", "items", title="does it see?")
    rows = ("typed", "spoken", "swapped", "withheld", "majority")
    labels = ("typed question", "spoken question, unseen voices", "another scene's picture", "no picture", "commonest answer of the kind")
    for name, label in zip(rows, labels, strict=True):
        score = getattr(scenes, name)
        table.add_row(label, f"{score.share:.0%}", f"{score.interval[0]:.0%} to {score.interval[1]:.0%}", str(score.items))
    console = Console(stderr=True)
    console.print(table)
    note("by kind of question: " + "  ".join(f"{kind} {share:.0%}" for kind, share in scenes.typed.by_kind.items()))
    note(
        f"does it say the words? its own CTC prefers the right text over another's in {fit.share:.0%} of {fit.items} sentences "
        f"(95 %: {fit.interval[0]:.0%} to {fit.interval[1]:.0%}); nats a character: own {fit.own:.2f}, other {fit.other:.2f}"
    )
    return {"scenes": {name: asdict(getattr(scenes, name)) for name in rows}, "speech": asdict(fit)}


def _judge(result: dict[str, Any]) -> None:
    """Raises DemoFailed unless the model uses the picture and its speech fits its text."""
    scenes, speech = result["scenes"], result["speech"]
    for name in ("swapped", "withheld"):
        if scenes["typed"]["share"] <= scenes[name]["share"]:
            raise DemoFailed(
                f"the model answers {scenes['typed']['share']:.0%} of unseen scenes, and {scenes[name]['share']:.0%} with pictures {name}: it does not see"
            )
    if speech["interval"][0] <= 0.5 or speech["own"] >= speech["other"]:
        raise DemoFailed(
            f"the speech fits its own text in {speech['share']:.0%} of cases, no better than chance: it does not say the words"
        )
    note("passed: it sees, and it says the words")
