"""Questions about scenes: true, unambiguous, balanced."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omni.data.worlds.questions import (
    KINDS,
    NUMBERS,
    Balance,
    Question,
    caption,
    is_right,
    plain_caption,
    question_texts,
    questions,
    things_named,
)
from omni.data.worlds.scenes import COLOURS, HELD_OUT_COMBINATIONS, RADII, SEEN_COMBINATIONS, SHAPES, SIZE, Scene, Thing, random_scene


def scenes(n: int, most: int = 6) -> Iterator[tuple[Scene, list[Question]]]:
    for seed in range(n):
        rng = Random(seed)
        scene = random_scene(rng, rng.randint(1, most))
        yield scene, questions(scene, rng)


def matching(scene: Scene, noun: str) -> list[Thing]:
    """The things that a noun phrase such as "red circle" or "red things" fits."""
    words = [w.removesuffix("s") for w in noun.split()]
    return [t for t in scene.things if all(w in ("thing", t.colour, t.shape) for w in words)]


def only(scene: Scene, noun: str) -> Thing:
    (thing,) = matching(scene, noun)
    return thing


def looked_up(scene: Scene, question: str) -> str:
    """The answer slot, found from the words of the question: written apart from the generator."""
    if m := re.fullmatch(r"What colour is the (\w+)\?", question):
        return only(scene, m[1]).colour
    if m := re.fullmatch(r"What shape is the (\w+) thing\?", question):
        return only(scene, m[1]).shape
    if m := re.fullmatch(r"What size is the (.+)\?", question):
        return only(scene, m[1]).size
    if m := re.fullmatch(r"How many (.+) are there\?", question):
        return NUMBERS[len(matching(scene, m[1]))]
    if m := re.fullmatch(r"Where is the (.+)\?", question):
        t = only(scene, m[1])
        return f"{('bottom', 'top')[t.y < SIZE // 2]} {('right', 'left')[t.x < SIZE // 2]}"
    if m := re.fullmatch(r"Which is (bigger|smaller), the (\w+) or the (\w+)\?", question):
        pick = max if m[1] == "bigger" else min
        return pick((only(scene, m[2]), only(scene, m[3])), key=lambda t: RADII[t.size]).shape
    if m := re.fullmatch(r"Is there an? (.+)\?", question):
        return "yes" if matching(scene, m[1]) else "no"
    m = re.fullmatch(r"Is the (\w+) (left of|right of|above|below) the (\w+)\?", question)
    assert m, question
    one, other = only(scene, m[1]), only(scene, m[3])
    holds = {"left of": one.x < other.x, "right of": one.x > other.x, "above": one.y < other.y, "below": one.y > other.y}
    return "yes" if holds[m[2]] else "no"


def test_every_answer_is_what_one_finds_by_looking() -> None:
    kinds = set()
    for scene, asked in scenes(150):
        for q in asked:
            assert looked_up(scene, q.question) == q.answer, (scene, q)
            kinds.add(q.kind)
    assert kinds == set(KINDS)


def test_a_question_has_one_answer_in_a_scene() -> None:
    for _, asked in scenes(100):
        assert len({q.question for q in asked}) == len(asked)


def test_there_are_over_five_hundred_different_full_sentences() -> None:
    sentences = {q.sentence for _, asked in scenes(1500, most=3) for q in asked}
    assert len(sentences) >= 500
    assert all(re.fullmatch(r"[A-Z][a-z, ]+\.", s) for s in sentences)


def test_a_sentence_is_right_for_its_own_answer_and_for_no_other_of_the_kind() -> None:
    answers = defaultdict(set)
    rows = [q for _, asked in scenes(60) for q in asked]
    for q in rows:
        answers[q.kind].add(q.answer)
    for q in rows:
        assert [a for a in answers[q.kind] if is_right(a, q.sentence)] == [q.answer]


def test_naming_several_answers_is_wrong() -> None:
    assert is_right("red", "the circle is RED")
    assert not is_right("red", "The circle is red and blue.")
    assert not is_right("top left", "The star is at the top left or at the top right.")
    assert not is_right("yes", "No, yes.")
    assert not is_right("red", "The circle is bored.") and not is_right("red", "")


def test_asked_in_balance_a_guess_without_looking_is_poor() -> None:
    balance, asked = Balance(), []
    for seed in range(1200):
        rng = Random(seed)
        scene = random_scene(rng, rng.randint(1, 3))
        asked.append(balance.pick(questions(scene, rng)))
    kinds = Counter(q.kind for q in asked)
    assert max(kinds.values()) - min(kinds.values()) <= 10
    for kind, ceiling in {
        "yes_no": 0.55,
        "relation": 0.55,
        "comparison": 0.3,
        "colour": 0.2,
        "shape": 0.3,
        "size": 0.4,
        "position": 0.35,
    }.items():
        answers = Counter(q.answer for q in asked if q.kind == kind)
        assert answers.most_common(1)[0][1] <= ceiling * kinds[kind], (kind, answers)
    assert Counter(q.answer for q in asked if q.kind == "count").most_common(1)[0][1] <= 0.4 * kinds["count"]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), n_things=st.integers(1, 6))
def test_a_caption_names_everything_from_left_to_right(seed: int, n_things: int) -> None:
    scene = random_scene(Random(seed), n_things)
    expected = [(t.size, t.colour, t.shape) for t in sorted(scene.things, key=lambda t: t.x)]
    pattern = rf"({'|'.join(RADII)}) ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
    for rng in (None, Random(seed), Random(seed + 1), Random(seed + 2)):
        assert re.findall(pattern, caption(scene, rng)) == expected


def test_the_plain_caption_reads_well() -> None:
    scene = Scene((Thing("blue", "circle", "small", 180, 40), Thing("red", "star", "big", 60, 60)), 0)
    assert caption(scene) == "A big red star and a small blue circle."


@pytest.mark.parametrize("placed", [0.0, 0.25, 0.75])
def test_a_share_of_captions_tells_places(placed: float) -> None:
    scene = Scene((Thing("blue", "circle", "small", 180, 40), Thing("red", "star", "big", 60, 60)), 0)
    told = Counter(caption(scene, Random(seed), placed) for seed in range(400))
    places = told["A big red star at the top left and a small blue circle at the top right."]
    assert abs(places / 400 - placed) < 0.06
    assert abs(told[caption(scene)] / 400 - (1 - placed) * 2 / 3) < 0.08 and len(told) == 4 + (placed > 0)


def test_a_caption_in_any_wording_names_all_things_and_can_be_made_plain() -> None:
    for seed in range(200):
        rng = Random(seed)
        scene = random_scene(rng, rng.randint(1, 6))
        text = caption(scene, rng)
        assert things_named(text) == [f"{t.size} {t.name}" for t in sorted(scene.things, key=lambda t: t.x)]
        assert plain_caption(text) == caption(scene)


def test_every_question_that_may_be_trained_on_is_listed() -> None:
    known = set(question_texts(SEEN_COMBINATIONS))
    for seed in range(10_000, 10_100):
        rng = Random(seed)
        scene = random_scene(rng, rng.randint(1, 6), SEEN_COMBINATIONS)
        assert {q.question for q in questions(scene, rng, SEEN_COMBINATIONS)} <= known
    assert not [text for text in known if any(f"{colour} {shape}" in text for colour, shape in HELD_OUT_COMBINATIONS)]
