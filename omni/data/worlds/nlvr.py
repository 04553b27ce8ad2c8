"""Look-alikes of NLVR (Suhr et al. 2017): three grey boxes with coloured shapes, towers or scattered, and statements that are true or false.

A box is a list of items as the `objects` field of an NLVR row holds them; x grows to the right and y downwards, in pixels of a box of
100 x 100, from its top left corner to the item's. One table of templates both makes statements and reads them, so that what they mean
can be checked against the labels that people gave (`read`)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, TypedDict

from PIL import Image, ImageDraw

from omni.data.worlds.questions import NUMBERS, a

BOX, GAP = 100, 50  # pixels
N_BOXES = 3
PAPER, BETWEEN = (211, 211, 211), (128, 128, 128)
PAINTS = {"Yellow": (255, 255, 0), "Black": (0, 0, 0), "#0099ff": (0, 153, 255)}
COLOURS = {"Yellow": "yellow", "Black": "black", "#0099ff": "blue"}
SIZES = {10: "small", 20: "medium", 30: "big"}
SHAPES = ("circle", "square", "triangle")
BLOCK, BLOCK_X, STEP = 20, 40, 21  # a tower's blocks are squares, one pixel apart
MOST_BLOCKS, MOST_ITEMS = 4, 7  # in a box
TOUCH = 2  # pixels from an edge that still look like touching it


class Item(TypedDict):
    """One shape: the top left corner of its bounding square, and its side."""

    type: str
    color: str
    size: int
    x_loc: int
    y_loc: int


Box = Sequence[Item]
Boxes = Sequence[Box]


def is_tower(box: Box) -> bool:
    """Whether all items are blocks in one pile."""
    return all(item["type"] == "square" and item["size"] == BLOCK and item["x_loc"] == BLOCK_X for item in box)


def from_base(box: Box) -> list[Item]:
    """The items from the lowest to the highest."""
    return sorted(box, key=lambda item: -item["y_loc"])


def caption(objects: Boxes) -> str:
    """The boxes in words, towers from the base up, other items from left to right: "First box: a small yellow circle and a big black
    square. Second box: a tower of two blocks, yellow and blue. Third box: a blue block.\""""
    parts = zip(("First", "Second", "Third"), objects, strict=True)
    return " ".join(f"{nth} box: {_tower(box) if is_tower(box) else _scattered(box)}." for nth, box in parts)


def _tower(box: Box) -> str:
    colours = [COLOURS[item["color"]] for item in from_base(box)]
    return f"{a(colours[0])} block" if len(colours) == 1 else f"a tower of {NUMBERS[len(colours)]} blocks, {_listed(colours)}"


def _scattered(box: Box) -> str:
    in_order = sorted(box, key=lambda item: (item["x_loc"] + item["size"] / 2, item["y_loc"]))
    return _listed([a(f"{SIZES[item['size']]} {COLOURS[item['color']]} {item['type']}") for item in in_order])


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


# --- pictures


def random_boxes(rng: Random, towers: bool | None = None) -> list[list[Item]]:
    """Three boxes, all with `towers` or all with scattered items (default: towers two times in three)."""
    if towers is None:
        towers = rng.random() < 2 / 3
    return [_random_tower(rng) if towers else _random_items(rng) for _ in range(N_BOXES)]


def _random_tower(rng: Random) -> list[Item]:
    colours = [rng.choice(tuple(COLOURS)) for _ in range(rng.randint(1, MOST_BLOCKS))]
    return [Item(type="square", color=c, size=BLOCK, x_loc=BLOCK_X, y_loc=BOX - BLOCK - i * STEP) for i, c in enumerate(colours)]


def _random_items(rng: Random) -> list[Item]:
    """Items that do not overlap; the places are cut off at the right and at the bottom, where many therefore touch the edge."""
    n, items = rng.randint(1, MOST_ITEMS), list[Item]()
    while len(items) < n:
        size = rng.choice(tuple(SIZES))
        x, y = (min(rng.randrange(BOX), BOX - size) for _ in range(2))
        if all(max(abs(2 * (x - o["x_loc"]) + size - o["size"]), abs(2 * (y - o["y_loc"]) + size - o["size"])) > size + o["size"] for o in items):
            items.append(Item(type=rng.choice(SHAPES), color=rng.choice(tuple(COLOURS)), size=size, x_loc=x, y_loc=y))
    return items


def render(objects: Boxes) -> Image.Image:
    """400 x 100 RGB."""
    image = Image.new("RGB", (N_BOXES * BOX + (N_BOXES - 1) * GAP, BOX), BETWEEN)
    for i, box in enumerate(objects):
        paper = Image.new("RGB", (BOX, BOX), PAPER)
        draw = ImageDraw.Draw(paper)
        for item in box:
            x, y, far, fill = item["x_loc"], item["y_loc"], item["size"] - 1, PAINTS[item["color"]]
            if item["type"] == "square":
                draw.rectangle((x, y, x + far, y + far), fill=fill)
            elif item["type"] == "circle":
                draw.ellipse((x, y, x + far, y + far), fill=fill)
            else:
                draw.polygon(((x, y + far), (x + far / 2, y), (x + far, y + far)), fill=fill)
        image.paste(paper, (i * (BOX + GAP), 0))
    return image


# --- slots of the templates: how they are read, and how they are filled

Test = Callable[[Any], bool]
NUMBER_WORDS = {word: n for n, word in enumerate(NUMBERS) if 1 <= n <= MOST_ITEMS}
EDGES: dict[str, Callable[[Item], bool]] = {
    "touching the edge": lambda item: _touches(item, "left", "right", "top", "bottom"),
    "touching the base": lambda item: _touches(item, "bottom"),
    "touching right wall of a box": lambda item: _touches(item, "right"),
    "touching a corner": lambda item: _touches(item, "left", "right") and _touches(item, "top", "bottom"),
}
# wordings of each of these, the frequent ones first
EDGE_WORDS = {
    "touching the edge": ("touching the edge", "touching the wall", "touching an edge", "touching the side", "touching a edge"),
    "touching the base": ("touching the base", "closely touching the bottom of a box"),
    "touching right wall of a box": ("closely touching right wall of a box",),
    "touching a corner": ("touching the corner", "closely touching a corner", "closely touching a corner of a box"),
}
NOWHERE = ("not touching any edge", "not touching the edge", "not touching the wall")


def _touches(item: Item, *sides: str) -> bool:
    gaps = {
        "left": item["x_loc"],
        "right": BOX - item["x_loc"] - item["size"],
        "top": item["y_loc"],
        "bottom": BOX - item["y_loc"] - item["size"],
    }
    return any(gaps[side] <= TOUCH for side in sides)


def _number(word: str) -> int:
    return NUMBER_WORDS[word] if word in NUMBER_WORDS else int(word)


def _quantity(words: str) -> Callable[[int], bool]:
    """ "a" is at least one; a bare number is exactly that many."""
    words = words.removeprefix("there is ").removeprefix("there are ")
    if words == "no":
        return lambda count: count == 0
    if words in ("a", "an", "at least a"):
        return lambda count: count >= 1
    n = _number(words.split()[-1])
    return (lambda count: count >= n) if words.startswith("at least") else (lambda count: count == n)


def _thing(words: str) -> Callable[[Item], bool]:
    """ "small yellow circles": a test of one item."""
    *adjectives, noun = words.split()
    shape = noun.removesuffix("s")

    def test(item: Item) -> bool:
        about = (COLOURS[item["color"]], SIZES[item["size"]])
        return (shape not in SHAPES or item["type"] == shape) and all(word in about for word in adjectives)

    return test


def _where(words: str) -> Callable[[Item], bool]:
    if words in NOWHERE:
        return lambda item: not EDGES["touching the edge"](item)
    return EDGES[next(key for key, wordings in EDGE_WORDS.items() if words in wordings)]


def _either(words: Sequence[str]) -> str:
    return "|".join(sorted(map(re.escape, words), key=len, reverse=True))


_NUMBER = rf"(?:{_either(list(NUMBER_WORDS))}|[1-7])"
_COLOUR = _either(list(COLOURS.values()))
_QUANTITY = rf"(?:no|at least a|an?|(?:exactly |at least |only )?{_NUMBER})"
_ALL_EDGES = [w for words in EDGE_WORDS.values() for w in words] + list(NOWHERE)


@dataclass(frozen=True)
class Slot:
    """`pattern` finds it in a sentence, `meaning` says what it means, `fill(rng, towers)` makes one up in the singular; `counts` says that it
    sets the number of the nouns after it."""

    pattern: str
    meaning: Callable[[str], Any]
    fill: Callable[[Random], str]
    counts: bool = False


def _fill_number(rng: Random, most: int = 4) -> str:
    n = rng.randint(1, most)
    return NUMBERS[n] if rng.random() < 0.6 else str(n)


def _fill_quantity(rng: Random) -> str:
    kind = rng.choice(("a", "a", "no", "", "", "exactly ", "exactly ", "at least ", "at least ", "only "))
    return kind if kind in ("a", "no") else kind + _fill_number(rng, 3)


def _fill_thing(rng: Random) -> str:
    noun = rng.choice((*SHAPES, "item", "object"))
    colour = rng.choice(tuple(COLOURS.values())) if noun in ("item", "object") or rng.random() < 0.8 else ""
    size = rng.choice(("small", "big")) if rng.random() < 0.05 else ""
    return " ".join(filter(None, (size, colour, noun)))


SLOTS = {
    "there": Slot(rf"there (?:is|are) {_QUANTITY}", _quantity, _fill_quantity, counts=True),
    "q": Slot(_QUANTITY, _quantity, _fill_quantity, counts=True),
    "n": Slot(_NUMBER, _number, _fill_number, counts=True),
    "c": Slot(_COLOUR, str, lambda rng: rng.choice(tuple(COLOURS.values()))),
    "thing": Slot(rf"(?:(?:small|medium|big) )?(?:(?:{_COLOUR}) )?(?:circle|square|triangle|item|object)s?", _thing, _fill_thing),
    "where": Slot(_either(_ALL_EDGES), _where, lambda rng: rng.choice(rng.choice((*EDGE_WORDS.values(), NOWHERE)))),
    "end": Slot("top|base|bottom", str, lambda rng: rng.choice(("top", "top", "base", "base", "bottom"))),
    "over": Slot("over|above|on|on top of", str, lambda rng: rng.choice(("over", "above", "on"))),
    "has": Slot(r"with|having|that has|which has|has|that contains?", str, lambda rng: rng.choice(("with", "with", "having", "which has"))),
    "block": Slot("blocks?|items?|objects?", str, lambda rng: "block"),
    "s": Slot("s?", str, lambda rng: ""),
}
_SLOT = re.compile(r"\{([a-z]+)(\d?)\}")


@dataclass(frozen=True)
class Template:
    """Ways of saying one thing, and its truth: `holds(boxes, **meanings of the slots)`."""

    name: str
    patterns: tuple[str, ...]
    towers: bool
    holds: Callable[..., bool]


TEMPLATES: list[Template] = []


def _template(towers: bool, *patterns: str) -> Callable[[Callable[..., bool]], Callable[..., bool]]:
    def register(holds: Callable[..., bool]) -> Callable[..., bool]:
        TEMPLATES.append(Template(holds.__name__.strip("_"), patterns, towers, holds))
        return holds

    return register


def _regex(pattern: str) -> re.Pattern[str]:
    return re.compile(_SLOT.sub(lambda m: f"(?P<{m[1]}{m[2]}>{SLOTS[m[1]].pattern})", pattern))


@dataclass(frozen=True)
class Claim:
    """A sentence (lower case, no full stop), its template, and its truth about three boxes."""

    template: str
    sentence: str
    holds: Callable[[Boxes], bool]


_TYPOS = {"atleast": "at least", "tleast": "at least", "t least": "at least", "ll": "all", "tocuhing": "touching", "cirlce": "circle", "squere": "square"}


def read(sentence: str) -> Claim | None:
    """The claim of a sentence that follows one of the templates."""
    text = re.sub(r"[,.]", "", " ".join(sentence.lower().split()))
    text = re.sub(rf"\b(?<!at )(?:{_either(list(_TYPOS))})\b", lambda m: _TYPOS[m[0]], text)
    for template in TEMPLATES:
        for pattern in template.patterns:
            found = _regex(pattern).fullmatch(text)
            if found:
                return _claim(template, text, found)
    return None


def _claim(template: Template, sentence: str, found: re.Match[str]) -> Claim:
    slots = {name: SLOTS[name.rstrip("0123456789")].meaning(words) for name, words in found.groupdict().items() if not name.startswith("s")}
    return Claim(template.name, sentence, lambda boxes: template.holds(boxes, **slots))


def random_claim(rng: Random, towers: bool) -> Claim:
    """A claim about `towers` or about scattered items, true or false as it comes."""
    template = rng.choice([t for t in TEMPLATES if t.towers == towers])
    pattern = rng.choice(template.patterns)
    plural = False

    def fill(match: re.Match[str]) -> str:
        nonlocal plural
        slot, words = SLOTS[match[1]], SLOTS[match[1]].fill(rng)
        if slot.counts:
            plural = words.split()[-1] not in ("a", "no", "one", "1")
            return f"there {'are' if plural else 'is'} {words}" if match[1] == "there" else words
        return words + "s" if plural and match[1] in ("s", "thing", "block") else words

    sentence = _SLOT.sub(fill, pattern)
    found = _regex(pattern).fullmatch(sentence)
    assert found, (pattern, sentence)
    return _claim(template, sentence, found)


def _count(boxes: Boxes, test: Test) -> int:
    return sum(test(item) for box in boxes for item in box)


def _colours(box: Box) -> list[str]:
    """From the base up."""
    return [COLOURS[item["color"]] for item in from_base(box)]


def _at(box: Box, end: str) -> str:
    return _colours(box)[-1 if end == "top" else 0]


def _pairs(box: Box) -> Iterator[tuple[str, str]]:
    """(lower, upper) colours of neighbours."""
    colours = _colours(box)
    return zip(colours, colours[1:], strict=False)
