"""Words of the pocket world: little stories, facts and dialogues from a small grammar of a few hundred words."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from omni.data.worlds.questions import NUMBERS, a, ask, caption
from omni.data.worlds.scenes import COLOURS, SHAPES, Scene, random_scene

NAMES = {"Anna": "She", "Ben": "He", "Clara": "She", "David": "He", "Emma": "She", "Finn": "He", "Grace": "She", "Henry": "He"}
PLACES = ("garden", "kitchen", "school", "forest", "park", "house")
OBJECTS = ("ball", "box", "book", "kite", "hat", "cup")
ANIMALS = ("cat", "dog", "bird", "horse", "fox")
FOODS = ("apple", "cake", "egg", "pear")
FEELINGS = ("happy", "sad", "tired", "hungry")
TIMES = ("day", "morning", "evening")
SIDES = {"triangle": "three sides", "square": "four sides", "diamond": "four sides", "circle": "no sides", "star": "ten sides"}
OPPOSITES = {"big": "small", "left": "right", "top": "bottom", "happy": "sad", "black": "white", "yes": "no"}

NO_PICTURE = "I cannot see a picture."
NO_SOUND = "I cannot hear anything."
EMPTY_PICTURE = "The picture is empty."

Exchange = list[tuple[str, str]]  # what the user and the assistant say in turn

# Each with a question that it answers.
PLOTS = (
    ("{name} has {a_colour} {thing}. {He} gives it to {friend}.", "Who has the {thing} now?", "{friend} has the {thing}."),
    ("One {time} {name} walks to the {place}. {He} sees a {animal}.", "What does {name} see?", "{name} sees a {animal}."),
    (
        "{name} and {friend} are in the {place}. They play with {a_colour} {thing}.",
        "Where are {name} and {friend}?",
        "They are in the {place}.",
    ),
    (
        "The {animal} takes the {thing} and runs to the {place}. {name} runs after it.",
        "Where is the {animal}?",
        "The {animal} is in the {place}.",
    ),
    ("{name} wants {a_food}. There is none in the {place}. {friend} brings one.", "What does {name} want?", "{name} wants {a_food}."),
    ("{name} draws {a_colour} {shape}. {friend} draws a {size} {animal}.", "What does {name} draw?", "{name} draws {a_colour} {shape}."),
    (
        "{name} cannot find the {thing}. {friend} looks in the {place}. There it is!",
        "Where is the {thing}?",
        "The {thing} is in the {place}.",
    ),
    (
        "A {animal} sleeps in the {place}. {name} gives it {a_food}.",
        "Who gives {a_food} to the {animal}?",
        "{name} gives {a_food} to the {animal}.",
    ),
    ("{name} has a {size} {animal}. {friend} has {a_colour} {thing}.", "What does {friend} have?", "{friend} has {a_colour} {thing}."),
    (
        "{name} puts the {thing} on {a_colour} table. Then {name} goes to the {place}.",
        "Where does {name} go?",
        "{name} goes to the {place}.",
    ),
)
ENDINGS = (
    "Now {friend} is {feeling}.",
    "Then {name} goes home.",
    "It is a good {time}.",
    "{name} is {feeling} and {friend} is {other_feeling}.",
    "",
)
SMALL_TALK = (
    ("What is {m} plus {n}?", "{M} plus {n} is {sum}."),
    ("What is {sum} minus {n}?", "{Sum} minus {n} is {m}."),
    ("How many sides does a {shape} have?", "A {shape} has {sides}."),
    ("What is a {shape}?", "A {shape} is a shape."),
    ("What is a {animal}?", "A {animal} is an animal."),
    ("Is {colour} a colour?", "Yes, {colour} is a colour."),
    ("Is {colour} an animal?", "No, {colour} is a colour."),
    ("Is a {animal} a shape?", "No, a {animal} is an animal."),
    ("What is the opposite of {word}?", "The opposite of {word} is {opposite}."),
    ("I like the {animal}. What do I like?", "You like the {animal}."),
    ("My name is {name}. What is my name?", "Your name is {name}."),
    ("I have {a_colour} {thing}. What colour is it?", "Your {thing} is {colour}."),
)
GREETINGS = (
    ("Hello!", "Hello! How can I help you?"),
    ("Good morning.", "Good morning! How can I help you?"),
    ("How are you?", "I am well, thank you."),
    ("Who are you?", "I am a small model that can read, listen, look and speak."),
    ("What can you do?", "I can read, listen, look and speak."),
    ("Thank you.", "You are welcome."),
    ("Goodbye.", "Goodbye! See you soon."),
)
RECALL = "What is my name?"
EVERYDAY = (RECALL, *(question for question, _ in GREETINGS))  # too few to hold any out


def _slots(rng: Random) -> dict[str, str]:
    """Words for the templates above."""
    name, friend = rng.sample(tuple(NAMES), 2)
    feeling, other_feeling = rng.sample(FEELINGS, 2)
    colour, shape = rng.choice(tuple(COLOURS)), rng.choice(SHAPES)
    m, n = rng.randrange(6), rng.randrange(5)
    word, opposite = rng.choice((*OPPOSITES.items(), *((v, k) for k, v in OPPOSITES.items())))
    return {
        "name": name,
        "friend": friend,
        "He": NAMES[name],
        "colour": colour,
        "a_colour": a(colour),
        "shape": shape,
        "sides": SIDES[shape],
        "size": rng.choice(("small", "big")),
        "thing": rng.choice(OBJECTS),
        "place": rng.choice(PLACES),
        "animal": rng.choice(ANIMALS),
        "a_food": a(rng.choice(FOODS)),
        "time": rng.choice(TIMES),
        "feeling": feeling,
        "other_feeling": other_feeling,
        "m": NUMBERS[m],
        "M": NUMBERS[m].capitalize(),
        "n": NUMBERS[n],
        "sum": NUMBERS[m + n],
        "Sum": NUMBERS[m + n].capitalize(),
        "word": word,
        "opposite": opposite,
    }


def story(rng: Random) -> tuple[str, str, str]:
    """Two to four sentences about somebody and something, a question about them, and its answer."""
    slots = _slots(rng)
    plot, question, answer = rng.choice(PLOTS)
    return f"{plot} {rng.choice(ENDINGS)}".strip().format_map(slots), question.format_map(slots), answer.format_map(slots)


def small_talk(rng: Random) -> tuple[str, str]:
    """A question that needs neither picture nor story, and its answer."""
    slots = _slots(rng)
    question, answer = rng.choice(SMALL_TALK)
    return question.format_map(slots), answer.format_map(slots)


def described(scene: Scene, rng: Random) -> tuple[str, str]:
    """A scene told in words with a question about it, and the answer."""
    question = ask(scene, rng)
    while question.kind in ("position", "relation"):  # the words do not tell where things are
        question = ask(scene, rng)
    return f"{caption(scene)} {question.question}", question.sentence


def exchange(rng: Random) -> Exchange:
    """What belongs together in a dialogue: mostly a question and its answer."""
    kind = rng.random()
    if kind < 0.3:
        return [described(random_scene(rng, rng.randint(1, 3)), rng)]
    if kind < 0.6:
        told, question, answer = story(rng)
        return [(f"{told} {question}", answer)]
    if kind < 0.7:
        name = rng.choice(tuple(NAMES))
        return [(f"My name is {name}.", f"Hello {name}!"), small_talk(rng), (RECALL, f"Your name is {name}.")]
    return [rng.choice(GREETINGS)] if kind < 0.75 else [small_talk(rng)]


def dialogue(rng: Random, fits: Callable[[str], bool]) -> list[dict[str, Any]]:
    """Messages of one to three exchanges whose every question `fits`."""
    messages: list[dict[str, Any]] = []
    for _ in range(rng.choice((1, 1, 2, 3))):
        turns = exchange(rng)
        while not all(fits(user) for user, _ in turns):
            turns = exchange(rng)
        for user, assistant in turns:
            messages += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    return messages


def plain(rng: Random) -> str:
    """A story, a caption, or a question about a scene with its answer, as running text."""
    kind = rng.random()
    if kind < 0.5:
        return story(rng)[0]
    scene = random_scene(rng, rng.randint(1, 4))
    if kind < 0.7:
        return caption(scene, rng)
    question = ask(scene, rng)
    return f"{question.question} {question.sentence}"


def spoken_sentence(rng: Random) -> str:
    """Something short to say: mostly answers, also captions, small talk and sentences of stories."""
    kind = rng.random()
    if kind < 0.55:
        return ask(random_scene(rng, rng.randint(1, 3)), rng).sentence
    if kind < 0.75:
        return caption(random_scene(rng, rng.randint(1, 2)))
    if kind < 0.85:
        return small_talk(rng)[1]
    if kind < 0.87:
        return rng.choice((*(reply for _, reply in GREETINGS), NO_PICTURE, NO_SOUND))
    return rng.choice(story(rng)[0].replace("! ", "!|").replace(". ", ".|").split("|"))
