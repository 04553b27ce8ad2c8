"""`muomni demo`: the released model answers a spoken question about a picture, aloud. `--from-nothing`: a small one is trained for it, with proof
that it hears, sees, reads, answers and speaks."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from omni.cli.output import make_folder, note, print_json
from omni.config import DEFAULT_CHECKPOINT
from omni.errors import ConfigError, OmniError

if TYPE_CHECKING:
    from omni.inference.omni import Omni

SCENES = 100


class DemoFailed(OmniError):
    """The trained model did no better than one that cannot see, or its speech did not fit its text."""


def register(app: typer.Typer) -> None:
    """Add `demo`."""
    app.command()(demo)


def demo(
    from_nothing: Annotated[bool, typer.Option("--from-nothing", help="train the nano model first, and test it")] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="folder of the spoken answer, and of data and model; default runs/demo, from nothing runs/pocket-nano"),
    ] = None,
    ckpt: Annotated[Path | None, typer.Option(help=f"checkpoint folder; default {DEFAULT_CHECKPOINT}")] = None,
    seed: Annotated[int | None, typer.Option(help="from nothing: seed of world and training; default 0")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print what came out as one JSON object")] = False,
) -> None:
    """Ask a model by voice about a picture, and let it answer aloud."""
    if from_nothing:
        if ckpt is not None:
            raise ConfigError("--from-nothing trains its own model; leave out --ckpt")
        _from_nothing(out or Path("runs/pocket-nano"), seed or 0, as_json)
    else:
        if seed is not None:
            raise ConfigError("--seed belongs to --from-nothing; the released model is what it is")
        _released(out or Path("runs/demo"), ckpt, as_json)


def _released(out: Path, ckpt: Path | None, as_json: bool) -> None:
    """The first of the questions that the model is measured on."""
    from dataclasses import replace

    from omni.audio import load_audio, save_audio
    from omni.data.worlds.scenes import render
    from omni.evaluation.scenes import asked_scenes, question_voices, scene_questions
    from omni.inference.omni import Omni

    make_folder(out)
    asked = asked_scenes(1)
    (question,) = scene_questions(asked, question_voices())
    omni = Omni.from_pretrained(ckpt)
    render(asked[0].scene).save(out / "scene.png")
    rate_hz = omni.model.config.audio.sample_rate_hz
    save_audio(out / "question.wav", load_audio(question.spoken, rate_hz), rate_hz)
    shown = _show_one(omni, replace(question, image=out / "scene.png", spoken=out / "question.wav"), out / "answer.wav")
    if as_json:
        print_json(shown)


def _from_nothing(out: Path, seed: int, as_json: bool) -> None:
    """Train the nano model, ask it by voice about a picture, then test it on 100 unseen scenes."""
    from omni.evaluation.pocket import scene_questions
    from omni.inference.omni import Omni
    from omni.stages.recipes import run_pocket

    make_folder(out)
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


def _show_one(omni: Omni, question: Any, answer_file: Path) -> dict[str, Any]:
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
    reply = omni.say_reply(reply)
    if (speech := reply.speech) is not None:
        save_audio(answer_file, speech.waveform, speech.sample_rate_hz)
        note(
            f"spoken          {answer_file}: {len(speech.codes)} code frames, {speech.duration_s:.2f} s  [{time.monotonic() - start:.2f} s]"
        )
    for notice in reply.notices:
        note(f"notice: {notice}")
    note("")
    shown = {
        "image": str(question.image),
        "audio": str(question.spoken),
        "question": question.question,
        "heard": heard,
        "text": reply.text,
        "right": question.sentence,
    }
    return shown | ({"file": str(answer_file)} if speech is not None else {})


def _measure(omni: Omni, questions: Any) -> dict[str, Any]:
    from dataclasses import asdict

    from rich.console import Console
    from rich.table import Table

    from omni.evaluation.pocket import evaluate_scenes, speech_fit

    scenes = evaluate_scenes(omni, questions)
    fit = speech_fit(omni, scenes.typed_replies + [q.sentence for q in questions])
    table = Table("unseen scenes", "right", "95 %", "items", title="does it see?")
    labels = ("typed question", "spoken question, unseen voices", "another scene's picture", "no picture", "commonest answer of the kind")
    for score, label in zip(scenes.scores.values(), labels, strict=True):
        low, high = score["share_95"]
        table.add_row(label, f"{score['share']:.0%}", f"{low:.0%} to {high:.0%}", str(score["items"]))
    console = Console(stderr=True)
    console.print(table)
    note("by kind of question: " + "  ".join(f"{kind} {row['share']:.0%}" for kind, row in scenes.scores["typed"]["by_kind"].items()))
    note(
        f"does it say the words? its own CTC prefers the right text over another's in {fit.share:.0%} of {fit.items} sentences "
        f"(95 %: {fit.share_95[0]:.0%} to {fit.share_95[1]:.0%}); nats a character: own {fit.own:.2f}, other {fit.other:.2f}"
    )
    return {"scenes": scenes.scores, "speech": asdict(fit)}


def _judge(result: dict[str, Any]) -> None:
    """Raises DemoFailed unless the model uses the picture and its speech fits its text."""
    scenes, speech = result["scenes"], result["speech"]
    for name in ("swapped", "withheld"):
        if scenes["typed"]["share"] <= scenes[name]["share"]:
            raise DemoFailed(
                f"the model answers {scenes['typed']['share']:.0%} of unseen scenes, and {scenes[name]['share']:.0%} with pictures {name}: it does not see"
            )
    if speech["share_95"][0] <= 0.5 or speech["own"] >= speech["other"]:
        raise DemoFailed(
            f"the speech fits its own text in {speech['share']:.0%} of cases, no better than chance: it does not say the words"
        )
    note("passed: it sees, and it says the words")
