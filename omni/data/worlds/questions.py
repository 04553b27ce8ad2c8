"""What can be said and asked about a scene: captions, and eight kinds of questions with full-sentence answers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations as pairs_of
from random import Random

from omni.data.worlds.scenes import ALL_COMBINATIONS, COLOURS, RADII, SHAPES, SIZE, Combination, Scene, Thing, random_scene

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
PLACES = ("top left", "top right", "bottom left", "bottom right")
MARGIN = 14  # pixels by which a position or an order must be clear
ANSWER_FAMILIES = (tuple(COLOURS), SHAPES, tuple(RADII), NUMBERS, PLACES)


@dataclass(frozen=True)
class Question:
    """`answer` is the slot that must be right; `sentence` the whole reply."""

    kind: str
    question: str
    sentence: str
    answer: str


def a(noun: str) -> str:
    """The noun with its indefinite article."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def caption(scene: Scene, rng: Random | None = None, placed: float = 0.25) -> str:
    """All things from left to right: "A big red star and a small blue circle." With `rng`, the wording varies, and a share `placed` of the captions
    tells the places."""
    style = rng.random() / (1 - placed) if rng else 0.0
    names = [a(f"{t.size} {t.name}") for t in sorted(scene.things, key=lambda t: t.x)]
    if style > 1:
        places = [place_of(t) for t in sorted(scene.things, key=lambda t: t.x)]
        names = [f"{name} at the {place}" if place else name for name, place in zip(names, places, strict=True)]
    opening = f"{rng.choice(('there is', 'I see', 'the picture shows'))} " if rng and 2 / 3 < style <= 1 else ""
    return _listed(names, opening)


def _listed(names: Sequence[str], opening: str = "") -> str:
    text = opening + (names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}")
    return f"{text[0].upper()}{text[1:]}."


NAMED = re.compile(rf"\b(?:{'|'.join(RADII)}) (?:{'|'.join(COLOURS)}) (?:{'|'.join(SHAPES)})\b")


def things_named(text: str) -> list[str]:
    """ "big red star" for every thing that a caption names, in its order, repeated ones too."""
    return NAMED.findall(text.lower())


def plain_caption(text: str) -> str:
    """A caption of a scene in the wording that `caption` has without `rng`. `text` must name something."""
    return _listed([a(name) for name in things_named(text)])


def place_of(thing: Thing) -> str | None:
    """The quarter of the picture, unless too near the middle to say."""
    if min(abs(thing.x - SIZE / 2), abs(thing.y - SIZE / 2)) <= MARGIN:
        return None
    return f"{'top' if thing.y < SIZE / 2 else 'bottom'} {'left' if thing.x < SIZE / 2 else 'right'}"


def _alone(scene: Scene, key: Callable[[Thing], object]) -> list[Thing]:
    """Things that share `key` with no other."""
    keys = [key(t) for t in scene.things]
    return [t for t in scene.things if keys.count(key(t)) == 1]


def _colour(scene: Scene) -> Iterator[Question]:
    for t in _alone(scene, lambda t: t.shape):
        yield Question("colour", f"What colour is the {t.shape}?", f"The {t.shape} is {t.colour}.", t.colour)


def _shape(scene: Scene) -> Iterator[Question]:
    for t in _alone(scene, lambda t: t.colour):
        yield Question("shape", f"What shape is the {t.colour} thing?", f"The {t.colour} thing is a {t.shape}.", t.shape)


def _size(scene: Scene) -> Iterator[Question]:
    for t in _alone(scene, lambda t: t.name):
        yield Question("size", f"What size is the {t.name}?", f"The {t.name} is {t.size}.", t.size)


def _count(scene: Scene) -> Iterator[Question]:
    counts = {"thing": len(scene.things)}
    counts |= {shape: sum(t.shape == shape for t in scene.things) for shape in SHAPES}
    counts |= {f"{colour} thing": sum(t.colour == colour for t in scene.things) for colour in COLOURS}
    for noun, n in counts.items():
        sentence = f"There is one {noun}." if n == 1 else f"There are {NUMBERS[n]} {noun}s."
        yield Question("count", f"How many {noun}s are there?", sentence, NUMBERS[n])


def _position(scene: Scene) -> Iterator[Question]:
    for t in _alone(scene, lambda t: t.name):
        place = place_of(t)
        if place:
            yield Question("position", f"Where is the {t.name}?", f"The {t.name} is at the {place}.", place)


def _comparison(scene: Scene) -> Iterator[Question]:
    for a, b in _ordered_pairs(scene):
        for word, sign in (("bigger", 1), ("smaller", -1)):
            difference = sign * (RADII[a.size] - RADII[b.size])
            if difference:
                winner = a.shape if difference > 0 else b.shape
                yield Question("comparison", f"Which is {word}, the {a.shape} or the {b.shape}?", f"The {winner} is {word}.", winner)


def _relation(scene: Scene) -> Iterator[Question]:
    for a, b in _ordered_pairs(scene):
        for word, gap in (("left of", b.x - a.x), ("right of", a.x - b.x), ("above", b.y - a.y), ("below", a.y - b.y)):
            if gap >= MARGIN:
                yield Question("relation", f"Is the {a.shape} {word} the {b.shape}?", f"Yes, the {a.shape} is {word} the {b.shape}.", "yes")
            elif gap <= -MARGIN:
                yield Question(
                    "relation", f"Is the {a.shape} {word} the {b.shape}?", f"No, the {a.shape} is not {word} the {b.shape}.", "no"
                )


def _ordered_pairs(scene: Scene) -> Iterator[tuple[Thing, Thing]]:
    """Pairs of things that are the only one of their shape, both ways round."""
    for one, other in pairs_of(_alone(scene, lambda t: t.shape), 2):
        yield one, other
        yield other, one


def _yes_no(scene: Scene, combinations: Sequence[Combination]) -> Iterator[Question]:
    """About what is there, and about near misses: right in one attribute."""
    there = dict.fromkeys((t.colour, t.shape) for t in scene.things)
    for colour, shape in there:
        name = a(f"{colour} {shape}")
        yield Question("yes_no", f"Is there {name}?", f"Yes, there is {name}.", "yes")
    for colour, shape in combinations:
        if (colour, shape) not in there and any((colour == c) or (shape == s) for c, s in there):
            yield Question("yes_no", f"Is there {a(f'{colour} {shape}')}?", f"No, there is no {colour} {shape}.", "no")


KINDS = ("colour", "shape", "size", "count", "position", "comparison", "relation", "yes_no")


def questions(scene: Scene, rng: Random, combinations: Sequence[Combination] = ALL_COMBINATIONS) -> list[Question]:
    """Every question that this scene answers without doubt, shuffled. Near misses come from `combinations`."""
    found = [q for kind in (_colour, _shape, _size, _count, _position, _comparison, _relation) for q in kind(scene)]
    found += _yes_no(scene, combinations)
    rng.shuffle(found)
    return found


def question_texts(combinations: Sequence[Combination]) -> list[str]:
    """Every question that scenes of these `combinations` give rise to: they are few, and so many scenes leave none out."""
    found: set[str] = set()
    for seed in range(3_000):
        rng = Random(seed)
        found |= {q.question for q in questions(random_scene(rng, rng.randint(2, 6), combinations), rng, combinations)}
    return sorted(found)


class Balance:
    """Picks questions so that every kind is asked as often, and every answer given to a question as often, as the scenes allow:
    who does not look can only guess."""

    def __init__(self) -> None:
        self._asked: Counter[tuple[str, ...]] = Counter()

    def pick(self, options: Sequence[Question]) -> Question:
        """The most wanted of the `options`; the first of equals."""
        best = min(options, key=lambda q: [self._asked[key] for key in self._keys(q)])
        self._asked.update(self._keys(best))
        return best

    @staticmethod
    def _keys(q: Question) -> list[tuple[str, ...]]:
        return [(q.kind,), (q.kind, q.answer, q.question), (q.kind, q.answer)]


def ask(scene: Scene, rng: Random) -> Question:
    """One question, of a random kind."""
    options = questions(scene, rng)
    kind = rng.choice(sorted({q.kind for q in options}))
    return next(q for q in options if q.kind == kind)


def is_right(answer: str, reply: str) -> bool:
    """Whether a reply gives the answer slot as whole words and no rival to it ("The circle is red and blue." is not right for "red"),
    or begins with the right yes or no."""
    words = "".join(c if c.isalnum() else " " for c in reply.lower()).split()
    if answer in ("yes", "no"):
        return words[:1] == [answer]
    text = f" {' '.join(words)} "
    family = next((f for f in ANSWER_FAMILIES if answer in f), ())
    return f" {answer} " in text and not any(f" {rival} " in text for rival in family if rival != answer)
