"""The unseen scenes that the whole loop is measured on, what is asked about each, and the clips in which unseen synthetic voices ask it.

Scenes and questions follow from the code. Clips are in `evaluation_data/questions`, a manifest an engine with rows {"audio", "text", "speaker"},
every question in every voice:

    muomni data voices --questions --held-out --out evaluation_data
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from omni.data.manifests import open_rows
from omni.data.worlds.questions import Balance, Question, questions
from omni.data.worlds.scenes import Scene, render
from omni.errors import DataError
from omni.evaluation.pocket import SceneQuestion
from omni.evaluation.sentences import EVALUATION_DATA
from omni.evaluation.vision import unseen_scenes

CLIPS = EVALUATION_DATA / "questions"
SCENES = 200
LOOKED_AT = 1_000  # unseen scenes before them: the suite `vision` has these, and how to go on training was decided by questions about some
MAKE_THEM = "make the clips with: muomni data voices --questions --held-out --out evaluation_data"

Voices = dict[str, dict[str, Path]]  # speaker → question → clip


@dataclass(frozen=True)
class AskedScene:
    """A scene with what is asked about it at first, and later in the same conversation."""

    scene: Scene
    first: Question
    later: Question


def asked_scenes(n: int = SCENES) -> list[AskedScene]:
    """`n` of them, always the same first; kinds of questions and answers are balanced."""
    rng, first, later = Random("questions of the suite omni"), Balance(), Balance()
    found: list[AskedScene] = []
    for scene in unseen_scenes(LOOKED_AT + n)[LOOKED_AT:]:
        options = questions(scene, rng)
        question = first.pick(options)
        found.append(AskedScene(scene, question, later.pick([q for q in options if q != question])))
    return found


def commonest_answers(asked: Sequence[AskedScene]) -> list[str]:
    """What one would say to the first questions who knows what is mostly so, and does not look: the commonest answer to the same words about the
    scenes before, or to that kind of question where nobody asks it there."""
    rng, told = Random("questions of the suite omni"), defaultdict[str, Counter[str]](Counter)
    for scene in unseen_scenes(LOOKED_AT):
        for q in questions(scene, rng):
            told[q.question][q.answer] += 1
            told[q.kind][q.answer] += 1
    return [(told.get(one.first.question) or told[one.first.kind]).most_common(1)[0][0] for one in asked]


def question_voices(folder: Path = CLIPS) -> Voices:
    """Who asks. Raises DataError when nobody does."""
    voices: Voices = {}
    for manifest in sorted(folder.glob("*.jsonl")):
        rows = open_rows(str(manifest), ("audio", "text", "speaker"))
        for row in rows:
            voices.setdefault(row["speaker"], {})[row["text"]] = rows.path(row["audio"])
    if not voices:
        raise DataError(f"{folder}: no manifest of spoken questions there; {MAKE_THEM}")
    return voices


def scene_questions(asked: list[AskedScene], voices: Voices, speaker: str | None = None) -> list[SceneQuestion]:
    """The first questions in the voice of `speaker`; without one, the voices take turns with every kind of question. Raises DataError for a
    question that nobody asked."""
    names = [speaker] if speaker is not None else list(voices)
    found: list[SceneQuestion] = []
    turns: dict[str, int] = {}  # of every kind of question: whose turn it is
    for one in asked:
        q = one.first
        turn = turns.setdefault(q.kind, len(turns))
        name, turns[q.kind] = names[turn % len(names)], turn + 1
        if q.question not in voices[name]:
            raise DataError(f"no clip of {q.question!r} by {name}; {MAKE_THEM}")
        found.append(SceneQuestion(render(one.scene), q.question, voices[name][q.question], q.answer, q.sentence, q.kind))
    return found
