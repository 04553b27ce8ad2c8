"""What can be said and asked about a scene: captions, and seven kinds of questions with full-sentence answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from omni.data.worlds.scenes import COLOURS, RADII, SHAPES, SIZE, Scene, Thing

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
MARGIN = 14  # pixels by which a position or an order must be clear


@dataclass(frozen=True)
class Question:
    """`answer` is the slot that must be right; `sentence` the whole reply."""

    kind: str
    question: str
    sentence: str
    answer: str


def caption(scene: Scene) -> str:
    """All things from left to right: "A big red star, a small blue circle and a green square."""
    names = [f"a {t.size} {t.name}" for t in sorted(scene.things, key=lambda t: t.x)]
    text = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return f"{text[0].upper()}{text[1:]}."


def _alone(scene: Scene, key: Callable[[Thing], object]) -> list[Thing]:
    """Things that share `key` with no other."""
    keys = [key(t) for t in scene.things]
    return [t for t in scene.things if keys.count(key(t)) == 1]


def _colour(scene: Scene, rng: Random) -> Question | None:
    things = _alone(scene, lambda t: t.shape)
    if not things:
        return None
    t = rng.choice(things)
    return Question("colour", f"What colour is the {t.shape}?", f"The {t.shape} is {t.colour}.", t.colour)


def _shape(scene: Scene, rng: Random) -> Question | None:
    things = _alone(scene, lambda t: t.colour)
    if not things:
        return None
    t = rng.choice(things)
    return Question("shape", f"What shape is the {t.colour} thing?", f"The {t.colour} thing is a {t.shape}.", t.shape)


def _count(scene: Scene, rng: Random) -> Question | None:
    what = rng.choice(("thing", "shape", "colour"))
    if what == "thing":
        noun, n = "thing", len(scene.things)
    elif what == "shape":
        noun = rng.choice([t.shape for t in scene.things] + [rng.choice(SHAPES)])
        n = sum(t.shape == noun for t in scene.things)
    else:
        colour = rng.choice([t.colour for t in scene.things] + [rng.choice(tuple(COLOURS))])
        noun, n = f"{colour} thing", sum(t.colour == colour for t in scene.things)
    number = NUMBERS[n]
    sentence = f"There is one {noun}." if n == 1 else f"There are {number} {noun}s."
    return Question("count", f"How many {noun}s are there?", sentence, number)


def _position(scene: Scene, rng: Random) -> Question | None:
    things = [t for t in _alone(scene, lambda t: t.name) if abs(t.x - SIZE / 2) > MARGIN and abs(t.y - SIZE / 2) > MARGIN]
    if not things:
        return None
    t = rng.choice(things)
    place = f"{'top' if t.y < SIZE / 2 else 'bottom'} {'left' if t.x < SIZE / 2 else 'right'}"
    return Question("position", f"Where is the {t.name}?", f"The {t.name} is at the {place}.", place)


def _pair(scene: Scene, rng: Random) -> tuple[Thing, Thing] | None:
    things = _alone(scene, lambda t: t.shape)
    if len(things) < 2:
        return None
    a, b = rng.sample(things, 2)
    return a, b


def _comparison(scene: Scene, rng: Random) -> Question | None:
    pair = _pair(scene, rng)
    if pair is None or pair[0].size == pair[1].size:
        return None
    a, b = pair
    word = rng.choice(("bigger", "smaller"))
    first = (RADII[a.size] > RADII[b.size]) == (word == "bigger")
    winner = a if first else b
    return Question("comparison", f"Which is {word}, the {a.shape} or the {b.shape}?", f"The {winner.shape} is {word}.", winner.shape)


def _yes_no(scene: Scene, rng: Random) -> Question:
    there = {t.name for t in scene.things}
    if rng.random() < 0.5:
        name = rng.choice(sorted(there))
        return Question("yes_no", f"Is there a {name}?", f"Yes, there is a {name}.", "yes")
    seen = rng.choice(scene.things)  # a near miss: right in one attribute
    while True:
        name = rng.choice((f"{rng.choice(tuple(COLOURS))} {seen.shape}", f"{seen.colour} {rng.choice(SHAPES)}"))
        if name not in there:
            return Question("yes_no", f"Is there a {name}?", f"No, there is no {name}.", "no")


def _relation(scene: Scene, rng: Random) -> Question | None:
    pair = _pair(scene, rng)
    if pair is None:
        return None
    a, b = pair
    word, gap = rng.choice((("left of", b.x - a.x), ("right of", a.x - b.x), ("above", b.y - a.y), ("below", a.y - b.y)))
    if abs(gap) < MARGIN:
        return None
    yes = gap > 0
    sentence = f"Yes, the {a.shape} is {word} the {b.shape}." if yes else f"No, the {a.shape} is not {word} the {b.shape}."
    return Question("relation", f"Is the {a.shape} {word} the {b.shape}?", sentence, "yes" if yes else "no")


KINDS: dict[str, Callable[[Scene, Random], Question | None]] = {
    "colour": _colour,
    "shape": _shape,
    "count": _count,
    "position": _position,
    "comparison": _comparison,
    "yes_no": _yes_no,
    "relation": _relation,
}


def ask(scene: Scene, rng: Random) -> Question:
    """A question that this scene answers without doubt; kinds are tried in random order."""
    for kind in rng.sample(tuple(KINDS), len(KINDS)):
        question = KINDS[kind](scene, rng)
        if question is not None:
            return question
    raise AssertionError("a yes-or-no question is always possible")


def is_right(question_answer: str, reply: str) -> bool:
    """Whether a reply gives the answer slot as whole words, and does not begin with the opposite yes or no."""
    words = "".join(c if c.isalnum() else " " for c in reply.lower()).split()
    wanted = question_answer.split()
    if wanted[0] in ("yes", "no"):
        return words[:1] == wanted
    return any(words[i : i + len(wanted)] == wanted for i in range(len(words)))
