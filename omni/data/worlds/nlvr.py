"""Look-alikes of NLVR (Suhr et al. 2017): three grey boxes with coloured shapes, towers or scattered, and statements that are true or false.

A box is a list of items as the `objects` field of an NLVR row holds them; x grows to the right and y downwards, in pixels of a box of
100 x 100, from its top left corner to the item's. One table of templates both makes statements and reads them, so that what they mean
can be checked against the labels that people gave (`read`)."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, TypedDict

from PIL import Image, ImageDraw

from omni.data.worlds.questions import NUMBERS, a

BOX, GAP = 100, 50  # pixels
SUPERSAMPLING = 4
N_BOXES = 3
WIDTH = N_BOXES * BOX + (N_BOXES - 1) * GAP
PAPER, BETWEEN = (211, 211, 211), (128, 128, 128)
PAINTS = {"Yellow": (255, 255, 0), "Black": (0, 0, 0), "#0099ff": (0, 153, 255)}
COLOURS = {"Yellow": "yellow", "Black": "black", "#0099ff": "blue"}
SIZES = {10: "small", 20: "medium", 30: "big"}
SHAPES = ("circle", "square", "triangle")
BLOCK, BLOCK_X, STEP = 20, 40, 21  # a tower's blocks are squares, one pixel apart
MOST_BLOCKS, MOST_ITEMS = 4, 7  # in a box
TRIES = 16  # to make a claim true or false before another is taken
TOUCH = 1  # pixel from an edge that people still call touching it


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
        if all(
            max(abs(2 * (x - o["x_loc"]) + size - o["size"]), abs(2 * (y - o["y_loc"]) + size - o["size"])) > size + o["size"]
            for o in items
        ):
            items.append(Item(type=rng.choice(SHAPES), color=rng.choice(tuple(COLOURS)), size=size, x_loc=x, y_loc=y))
    return items


def render(objects: Boxes) -> Image.Image:
    """400 x 100 RGB, smooth at the edges."""
    image = Image.new("RGB", (WIDTH, BOX), BETWEEN)
    for i, box in enumerate(objects):
        paper = Image.new("RGB", (SUPERSAMPLING * BOX,) * 2, PAPER)
        draw = ImageDraw.Draw(paper)
        for item in box:
            x, y, side = (SUPERSAMPLING * item[name] for name in ("x_loc", "y_loc", "size"))  # type: ignore[literal-required]
            right, bottom, fill = x + side - 1, y + side - 1, PAINTS[item["color"]]
            if item["type"] == "square":
                draw.rectangle((x, y, right, bottom), fill=fill)
            elif item["type"] == "circle":
                draw.ellipse((x, y, right, bottom), fill=fill)
            else:
                draw.polygon(((x, bottom), ((x + right) / 2, y), (right, bottom)), fill=fill)
        image.paste(paper.resize((BOX, BOX), Image.Resampling.BOX), (i * (BOX + GAP), 0))
    return image


# --- slots of the templates: how they are read, and how they are filled

Test = Callable[[Any], bool]
NUMBER_WORDS = {word: n for n, word in enumerate(NUMBERS) if 1 <= n <= MOST_ITEMS}
EDGES: dict[str, Callable[[Item], bool]] = {
    "touching the edge": lambda item: touches_edge(item),
    "touching the base": lambda item: _touches(item, "bottom"),
    "touching right wall of a box": lambda item: _touches(item, "right"),
    "touching a corner": lambda item: _touches(item, "left", "right") and _touches(item, "top", "bottom"),
}
# wordings of each of these, the frequent ones first
EDGE_WORDS = {
    "touching the edge": ("touching the edge", "touching the wall", "touching an edge", "touching the side", "touching a edge"),
    "touching the base": ("touching the base", "closely touching the bottom of a box"),
    "touching right wall of a box": ("closely touching right wall of a box",),
    "touching a corner": ("touching the corner", "touching a corner", "closely touching a corner", "closely touching a corner of a box"),
}
NOWHERE = ("not touching any edge", "not touching the edge", "not touching the wall")


def touches_edge(item: Item) -> bool:
    """Whether an item touches any edge of its box."""
    return _touches(item, "left", "right", "top", "bottom")


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
        return lambda item: not touches_edge(item)
    return EDGES[next(key for key, wordings in EDGE_WORDS.items() if words in wordings)]


def _either(words: Sequence[str]) -> str:
    return "|".join(sorted(map(re.escape, words), key=len, reverse=True))


_NUMBER = rf"(?:{_either(list(NUMBER_WORDS))}|[1-7])"
_COLOUR = _either(list(COLOURS.values()))
_QUANTITY = rf"(?:no|at least a|an?|(?:exactly |at least |only )?{_NUMBER})"
_THING = rf"(?:(?:small|medium|big) )?(?:(?:{_COLOUR}) )?(?:circle|square|triangle|item|object)s?"
_ALL_EDGES = [w for words in EDGE_WORDS.values() for w in words] + list(NOWHERE)


@dataclass(frozen=True)
class Slot:
    """`pattern` finds it in a sentence, `meaning` says what it means (None: wording only), `fill` makes one up in the singular; `counts`
    says that it sets the number of the nouns after it, `differs` that it does not repeat what another slot holds."""

    pattern: str
    meaning: Callable[[str], Any] | None
    fill: Callable[[Random], str]
    counts: bool = False
    differs: bool = False


def _fill_number(rng: Random, most: int = 4) -> str:
    n = rng.randint(1, most)
    return NUMBERS[n] if rng.random() < 0.6 else str(n)


def _fill_quantity(rng: Random) -> str:
    kind = rng.choice(("a", "a", "no", "", "", "exactly ", "exactly ", "at least ", "at least ", "only "))
    return kind if kind in ("a", "no") else kind + _fill_number(rng, 3)


def _fill_many(rng: Random) -> str:
    return rng.choice(("", "exactly ", "at least ", "only ")) + _fill_number(rng)


def _fill_thing(rng: Random) -> str:
    noun = rng.choice((*SHAPES, "item", "object"))
    colour = rng.choice(tuple(COLOURS.values())) if noun in ("item", "object") or rng.random() < 0.8 else ""
    size = rng.choice(("small", "big")) if rng.random() < 0.05 else ""
    return " ".join(filter(None, (size, colour, noun)))


SLOTS = {
    "there": Slot(rf"there (?:is|are) {_QUANTITY}", _quantity, _fill_quantity, counts=True),
    "q": Slot(_QUANTITY, _quantity, _fill_quantity, counts=True),
    "n": Slot(_NUMBER, _number, _fill_number, counts=True),
    "items": Slot(_QUANTITY, _quantity, lambda rng: rng.choice(("", "exactly ", "only ")) + _fill_number(rng, MOST_ITEMS), counts=True),
    "many": Slot(_QUANTITY, _quantity, _fill_many, counts=True),
    "other": Slot(_COLOUR, str, lambda rng: rng.choice(tuple(COLOURS.values())), differs=True),
    "c": Slot(_COLOUR, str, lambda rng: rng.choice(tuple(COLOURS.values()))),
    "thing": Slot(_THING, _thing, _fill_thing),
    "things": Slot(_THING, _thing, lambda rng: f"{_fill_thing(rng)}s"),
    "where": Slot(_either(_ALL_EDGES), _where, lambda rng: rng.choice(rng.choice((*EDGE_WORDS.values(), NOWHERE)))),
    "end": Slot("top|base|bottom", str, lambda rng: rng.choice(("top", "top", "base", "base", "bottom"))),
    "over": Slot("over|above|on|on top of", None, lambda rng: rng.choice(("over", "above", "on"))),
    "has": Slot(
        r"with|having|that has|which has|has|that contains?|contains?",
        None,
        lambda rng: rng.choice(("with", "with", "having", "which has")),
    ),
    "block": Slot("blocks?|items?|objects?", None, lambda rng: "block"),
    "es": Slot("(?:es)?", None, lambda rng: ""),
    "s": Slot("s?", None, lambda rng: ""),
}
_SLOT = re.compile(r"\{([a-z]+)(\d?)\}")


@dataclass(frozen=True)
class Template:
    """Ways of saying one thing of `towers`, of scattered items or of both (None), and its truth: `holds(boxes, **meanings of the slots)`."""

    name: str
    patterns: tuple[str, ...]
    towers: bool | None
    holds: Callable[..., bool]
    weight: float


TEMPLATES: list[Template] = []


def _template(towers: bool | None, *patterns: str, weight: float = 1) -> Callable[[Callable[..., bool]], Callable[..., bool]]:
    def register(holds: Callable[..., bool]) -> Callable[..., bool]:
        TEMPLATES.append(Template(holds.__name__.strip("_"), patterns, towers, holds, weight))
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


_TYPOS = {
    "atleast": "at least",
    "tleast": "at least",
    "t least": "at least",
    "ll": "all",
    "tocuhing": "touching",
    "cirlce": "circle",
    "squere": "square",
    "colour": "color",
    "colours": "colors",
}


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
    slots = {}
    for name, words in found.groupdict().items():
        meaning = SLOTS[name.rstrip("0123456789")].meaning
        if meaning is not None:
            slots[name] = meaning(words)
    return Claim(template.name, sentence, lambda boxes: template.holds(boxes, **slots))


def random_claim(rng: Random, towers: bool, name: str | None = None) -> Claim:
    """A claim about `towers` or about scattered items, true or false as it comes, of the template called `name` or of any."""
    able = [t for t in TEMPLATES if t.towers in (None, towers) and name in (None, t.name)]
    template = rng.choices(able, [t.weight for t in able])[0]
    pattern = rng.choice(template.patterns)
    plural, used = False, set[str]()

    def fill(match: re.Match[str]) -> str:
        nonlocal plural
        slot = SLOTS[match[1]]
        words = slot.fill(rng)
        while slot.differs and words in used:
            words = slot.fill(rng)
        used.add(words)
        if slot.counts:
            plural = words.split()[-1] not in ("a", "no", "one", "1")
            return f"there {'are' if plural else 'is'} {words}" if match[1] == "there" else words
        return words + ("es" if match[1] == "es" else "s") if plural and match[1] in ("s", "es", "thing", "block") else words

    sentence = _SLOT.sub(fill, pattern)
    found = _regex(pattern).fullmatch(sentence)
    assert found, (pattern, sentence)
    return _claim(template, sentence, found)


def statement(objects: Boxes, rng: Random) -> tuple[str, bool]:
    """A sentence about three boxes as people write them, and whether it is true: as often as not."""
    wanted, towers = rng.random() < 0.5, all(map(is_tower, objects))
    while True:
        claim = random_claim(rng, towers)
        for _ in range(TRIES):  # the rare truths of a template get their share
            if claim.holds(objects) == wanted:
                return _written(claim.sentence, rng), wanted
            claim = random_claim(rng, towers, claim.template)


def example(rng: Random, boxes: Callable[[Random, bool], Boxes] | None = None) -> tuple[Boxes, str, bool]:
    """(three boxes, sentence, label): the sentence first, then boxes for which it is true or false as a coin says, so that a reader who does
    not look can only guess. `boxes(rng, towers)` draws them (default: `random_boxes`)."""
    towers, wanted, draw = rng.random() < 2 / 3, rng.random() < 0.5, boxes or random_boxes
    while True:
        claim = random_claim(rng, towers)
        kinds = {claim.holds(drawn): drawn for drawn in (draw(rng, towers) for _ in range(TRIES))}
        if len(kinds) == 2:  # neither always true nor always false
            return kinds[wanted], _written(claim.sentence, rng), wanted


def _written(sentence: str, rng: Random) -> str:
    first = sentence[0].upper() if rng.random() < 0.6 else sentence[0]
    return first + sentence[1:] + ("." if rng.random() < 0.5 else "")


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
    return itertools.pairwise(colours)


# --- the templates: of towers

Count = Callable[[int], bool]


@_template(
    *(True, "{there} tower{s} {has} a {c} block at the {end}", "{there} tower{s} {has} a {c} {end}", "{q} tower{s} has a {c} {end}"),
    *("{there} tower{s} {has} a {c} block at {end}", "{q} of the three towers has a {c} {end}"),
    weight=6,
)
def _tower_end(boxes: Boxes, c: str, end: str, there: Count | None = None, q: Count | None = None) -> bool:
    quantity = there or q
    assert quantity is not None
    return quantity(sum(_at(box, end) == c for box in boxes))


@_template(True, "{there} {c} block{s} as the {end} of a tower", "{there} {c} block{s} at the {end} of a tower", weight=3)
def _block_as_end(boxes: Boxes, there: Count, c: str, end: str) -> bool:
    return there(sum(_at(box, end) == c for box in boxes))


@_template(True, "{there} {c} block{s} as the {end} of a tower with {many} block{s1}", weight=2)
def _block_as_end_of_n(boxes: Boxes, there: Count, c: str, end: str, many: Count) -> bool:
    return there(sum(_at(box, end) == c and many(len(box)) for box in boxes))


@_template(True, "{there} tower{s} {has} {many} block{s1} {has1} a {c} block at the {end}")
def _tower_of_n_end(boxes: Boxes, there: Count, many: Count, c: str, end: str) -> bool:
    return there(sum(_at(box, end) == c and many(len(box)) for box in boxes))


@_template(
    *(True, "the tower with {n} block{s} has a {c} block at the {end}", "the {end} of the {n} blocks tower is {c}"),
    *("the {end} of a {n} blocks tower is {c}",),
)
def _the_tower_end(boxes: Boxes, n: int, c: str, end: str) -> bool:
    return any(_at(box, end) == c and len(box) == n for box in boxes)


@_template(True, "{there} tower{s} {has} a {c} block {over} a {c2} block", "{q} tower{s} has a {c} block {over} a {c2} block", weight=3)
def _tower_over(boxes: Boxes, c: str, c2: str, there: Count | None = None, q: Count | None = None) -> bool:
    quantity = there or q
    assert quantity is not None
    return quantity(sum((c2, c) in _pairs(box) for box in boxes))


@_template(True, "{there} {c} {block} {over} a {c2} {block1}", weight=2)
def _block_over(boxes: Boxes, there: Count, c: str, c2: str) -> bool:
    return there(sum(pair == (c2, c) for box in boxes for pair in _pairs(box)))


@_template(True, "{there} {c} block{s}", weight=2)
def _blocks(boxes: Boxes, there: Count, c: str) -> bool:
    return there(_count(boxes, lambda item: COLOURS[item["color"]] == c))


@_template(True, "{there} tower{s} {has} {many} block{s1}", weight=2)
def _tower_of_n(boxes: Boxes, there: Count, many: Count) -> bool:
    return there(sum(many(len(box)) for box in boxes))


@_template(
    *(True, "{there} tower{s} {has} {q} {c} block{s1}", "{there} tower{s} {has} {c} blocks"),
    weight=3,
)
def _tower_with_n(boxes: Boxes, there: Count, c: str, q: Count = bool) -> bool:
    return there(sum(q(_colours(box).count(c)) for box in boxes))


@_template(True, "there is a {n} blocks tower {has} {q} {c} block{s}")
def _tower_of_n_with_n(boxes: Boxes, n: int, q: Count, c: str) -> bool:
    return any(len(box) == n and q(_colours(box).count(c)) for box in boxes)


@_template(True, "{there} tower{s} {has} 2 {c} blocks stacked together")
def _stacked(boxes: Boxes, there: Count, c: str) -> bool:
    return there(sum((c, c) in _pairs(box) for box in boxes))


@_template(True, "there is a {c} tower")
def _tower_of_colour(boxes: Boxes, c: str) -> bool:
    return any(set(_colours(box)) == {c} for box in boxes)


@_template(True, "there is a {c} tower {has} {many} block{s}", "there is a tower {has} {many} {block} which is {c}")
def _tower_of_colour_and_n(boxes: Boxes, c: str, many: Count) -> bool:
    return any(set(_colours(box)) == {c} and many(len(box)) for box in boxes)


@_template(True, "there is a {n} blocks tower {has} only one color")
def _tower_of_n_one_colour(boxes: Boxes, n: int) -> bool:
    return any(len(box) == n and len(set(_colours(box))) == 1 for box in boxes)


@_template(True, "{there} tower{s} {has} only {c} and {other} blocks")
def _tower_only(boxes: Boxes, there: Count, c: str, other: str) -> bool:
    return there(sum(set(_colours(box)) == {c, other} for box in boxes))


@_template(
    *(True, "{there} tower{s} {has} a {c} block and a {other} block", "{there} tower{s} {has} {n} {c} blocks and a {other} block"),
)
def _tower_with_two(boxes: Boxes, there: Count, c: str, other: str, n: int = 1) -> bool:
    return there(sum(_colours(box).count(c) >= n and other in _colours(box) for box in boxes))


@_template(True, "{there} tower{s} {has} a {c} block and {n} {other} block{s1}")
def _tower_and_n(boxes: Boxes, there: Count, c: str, n: int, other: str) -> bool:
    return there(sum(c in _colours(box) and _colours(box).count(other) >= n for box in boxes))


@_template(
    *(True, "{there} tower{s} {has} blocks of all 3 colors"),
    *("{there} tower{s} {has} a yellow block a blue block and a black block",),
)
def _tower_all_colours(boxes: Boxes, there: Count) -> bool:
    return there(sum(len(set(_colours(box))) == len(COLOURS) for box in boxes))


@_template(True, "there are at least two towers with the same height")
def _same_height(boxes: Boxes) -> bool:
    return len({len(box) for box in boxes}) < len(boxes)


@_template(True, "there are only two towers which has the same {end} color")
def _same_end(boxes: Boxes, end: str) -> bool:
    return len({_at(box, end) for box in boxes}) == 2


@_template(True, "there is only one tower where the second block is {c}", "there is a tower that the second block from the base is {c}")
def _second(boxes: Boxes, c: str) -> bool:
    return sum(_colours(box)[1:2] == [c] for box in boxes) == 1


@_template(True, "all towers contain {q} {c} block{s}", "all 3 towers have {q} {c} block{s}")
def _all_towers(boxes: Boxes, q: Count, c: str) -> bool:
    return all(q(_colours(box).count(c)) for box in boxes)


@_template(None, "all 3 different colors are touching the wall")
def _all_colours_touch(boxes: Boxes) -> bool:
    return len(_touching_colours(boxes)) == len(COLOURS)


@_template(None, "there is only one color touching the wall")
def _one_colour_touches(boxes: Boxes) -> bool:
    return len(_touching_colours(boxes)) == 1


def _touching_colours(boxes: Boxes) -> set[str]:
    return {item["color"] for box in boxes for item in box if touches_edge(item)}


# --- of scattered items, or of both


@_template(False, "{there} {thing}", weight=4)
def _things(boxes: Boxes, there: Count, thing: Test) -> bool:
    return there(_count(boxes, thing))


@_template(False, "{there} {thing} {where}", "{there} {thing} that is {where}", weight=16)
def _things_where(boxes: Boxes, thing: Test, where: Test, there: Count) -> bool:
    return there(_count(boxes, lambda item: thing(item) and where(item)))


@_template(False, "there is a {thing} {where} that is not {c}", "there is a {thing} that is not {c} {where}")
def _not_colour_where(boxes: Boxes, thing: Test, where: Test, c: str) -> bool:
    return bool(_count(boxes, lambda item: thing(item) and where(item) and COLOURS[item["color"]] != c))


@_template(False, "{things} are {where}", "all {things} are {where}")
def _all_where(boxes: Boxes, things: Test, where: Test) -> bool:
    return all(where(item) for box in boxes for item in box if things(item))


@_template(False, "none of the {things} are {where}")
def _none_where(boxes: Boxes, things: Test, where: Test) -> bool:
    return not _count(boxes, lambda item: things(item) and where(item))


@_template(False, "each box has {q} {thing}", "there is {q} {thing} in each box", weight=2)
def _each_box(boxes: Boxes, q: Count, thing: Test) -> bool:
    return all(q(sum(map(thing, box))) for box in boxes)


@_template(False, "each grey box contains {q} {thing} {where}", weight=2)
def _each_box_where(boxes: Boxes, q: Count, thing: Test, where: Test) -> bool:
    return all(q(sum(thing(item) and where(item) for item in box)) for box in boxes)


@_template(False, "{there} box{es} {has} {q} {thing} {where}", "{there} grey box{es} with {q} {thing} {where}", weight=3)
def _boxes_where(boxes: Boxes, there: Count, q: Count, thing: Test, where: Test) -> bool:
    return there(sum(q(sum(thing(item) and where(item) for item in box)) for box in boxes))


@_template(False, "{there} box{es} {has} {q} {thing}", "one box has {q} {thing}", weight=4)
def _box_with(boxes: Boxes, q: Count, thing: Test, there: Count = bool) -> bool:
    return there(sum(q(sum(map(thing, box))) for box in boxes))


@_template(
    *(False, "one of the grey box has {items} {block}", "one of the grey square {has} {items} {block}"),
    *("there is a box with {items} {block}",),
    weight=4,
)
def _box_of_n(boxes: Boxes, items: Count) -> bool:
    return any(items(len(box)) for box in boxes)


@_template(
    *(False, "one of the grey box has {items} {block} one of which is a {thing}"),
    *("one of the grey square contains {items} {block} which is {c}",),
)
def _box_of_n_with(boxes: Boxes, items: Count, thing: Test = bool, c: str = "") -> bool:
    return any(items(len(box)) and any(thing(item) and c in COLOURS[item["color"]] for item in box) for box in boxes)


@_template(False, "there is a box with {q} {thing} and {q2} {thing2}", "there is a box which {q} {thing} and {q2} {thing2}", weight=4)
def _box_with_two(boxes: Boxes, q: Count, thing: Test, q2: Count, thing2: Test) -> bool:
    return any(q(sum(map(thing, box))) and q2(sum(map(thing2, box))) for box in boxes)


@_template(False, "there is a box with a {thing} a {thing2} and a {thing3}")
def _box_with_three(boxes: Boxes, thing: Test, thing2: Test, thing3: Test) -> bool:
    return any(all(any(map(test, box)) for test in (thing, thing2, thing3)) for box in boxes)


@_template(
    *(None, "there is a box with {items} {block} and a {c} item on top", "there is a box with {items} {block} and the {c} one is on top"),
    *("there is a box with {items} {block} and a {c} one on top", "there is a box with {items} {block} and {c} one on top"),
)
def _box_with_top(boxes: Boxes, items: Count, c: str) -> bool:
    return any(items(len(box)) and _at(box, "top") == c for box in boxes)


@_template(None, "{there} box{es} {has} a {c} item on top", "there is a {c} item on top")
def _on_top(boxes: Boxes, c: str, there: Count = bool) -> bool:
    return there(sum(_at(box, "top") == c for box in boxes))


@_template(None, "there is a box with all 3 colors and a {c} item on top")
def _all_colours_and_top(boxes: Boxes, c: str) -> bool:
    return any(len(set(_colours(box))) == len(COLOURS) and _at(box, "top") == c for box in boxes)


@_template(None, "{there} box{es} {has} only {c} and {other} items", "{there} box{es} {has} items of only {c} and {other} color", weight=2)
def _box_only_two(boxes: Boxes, there: Count, c: str, other: str) -> bool:
    return there(sum(set(_colours(box)) == {c, other} for box in boxes))


@_template(
    *(None, "there is a box with {items} {block} of {c} and {other} color", "there is a box with {n} items of only {c} and {other} color"),
)
def _box_only_two_of_n(boxes: Boxes, c: str, other: str, items: Count = bool, n: int = 0) -> bool:
    return any(set(_colours(box)) == {c, other} and items(len(box)) and n in (0, len(box)) for box in boxes)


@_template(None, "{there} box{es} {has} only {c} items")
def _box_only(boxes: Boxes, there: Count, c: str) -> bool:
    return there(sum(set(_colours(box)) == {c} for box in boxes))


@_template(None, "there is a box with items of only one color", weight=0.3)
def _box_one_colour(boxes: Boxes) -> bool:
    return any(len(set(_colours(box))) == 1 for box in boxes)


@_template(None, "there is a box with {n} items of all 3 different colors")
def _box_all_colours(boxes: Boxes, n: int) -> bool:
    return any(len(box) == n and len(set(_colours(box))) == len(COLOURS) for box in boxes)


@_template(False, "there is a box with items of {n} different colors and a {thing}")
def _box_colours_and(boxes: Boxes, n: int, thing: Test) -> bool:
    return any(len(set(_colours(box))) == n and any(map(thing, box)) for box in boxes)


@_template(None, "all {c} items are in the same box")
def _same_box(boxes: Boxes, c: str) -> bool:
    return sum(c in _colours(box) for box in boxes) == 1
