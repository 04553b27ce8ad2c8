"""Words of the pocket world: little stories, facts and dialogues from a small grammar."""

from __future__ import annotations

from random import Random
from typing import Any

from omni.data.worlds.questions import NUMBERS, ask, caption
from omni.data.worlds.scenes import COLOURS, SHAPES, Scene, random_scene

NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Finn", "Grace", "Henry")
PLACES = ("garden", "kitchen", "school", "forest", "park", "house")
OBJECTS = ("ball", "box", "book", "kite", "hat", "cup")
ANIMALS = ("cat", "dog", "bird", "horse", "fox")
FEELINGS = ("happy", "sad", "tired", "hungry")

NO_PICTURE = "I cannot see a picture."
NO_SOUND = "I cannot hear anything."
TRANSCRIBE = "Write down what you hear."
DESCRIBE = "Describe the picture."


def story(rng: Random) -> str:
    """Three or four sentences about somebody and something."""
    name, other = rng.sample(NAMES, 2)
    thing, place, animal, colour = rng.choice(OBJECTS), rng.choice(PLACES), rng.choice(ANIMALS), rng.choice(tuple(COLOURS))
    feeling = rng.choice(FEELINGS)
    opening = rng.choice(
        (
            f"{name} has a {colour} {thing}.",
            f"{name} is in the {place} with a {animal}.",
            f"One day {name} goes to the {place}.",
        )
    )
    middle = rng.choice(
        (
            f"{name} gives the {colour} {thing} to {other}.",
            f"{other} sees a {animal} near the {place}.",
            f"The {animal} takes the {thing} and runs to the {place}.",
        )
    )
    end = rng.choice((f"Now {other} is {feeling}.", f"Then {name} and {other} go home.", f"The {animal} is {feeling}."))
    return f"{opening} {middle} {end}"


def described(scene: Scene, rng: Random) -> tuple[str, str]:
    """A scene told in words with a question about it, and the answer."""
    question = ask(scene, rng)
    while question.kind in ("position", "relation", "comparison"):  # the words do not tell where things are
        question = ask(scene, rng)
    return f"{caption(scene)} {question.question}", question.sentence


def small_talk(rng: Random) -> tuple[str, str]:
    """A question that needs no picture, and its answer."""
    a, b = rng.randrange(4), rng.randrange(4)
    colour, shape, animal, name = rng.choice(tuple(COLOURS)), rng.choice(SHAPES), rng.choice(ANIMALS), rng.choice(NAMES)
    number = NUMBERS[a + b]
    pairs = (
        ("Hello!", "Hello! How can I help you?"),
        ("How are you?", "I am well, thank you."),
        ("What can you do?", "I can read, listen, look and speak."),
        ("Thank you.", "You are welcome."),
        (f"What is {NUMBERS[a]} plus {NUMBERS[b]}?", f"{NUMBERS[a].capitalize()} plus {NUMBERS[b]} is {number}."),
        (f"What is a {shape}?", f"A {shape} is a shape."),
        (f"What is a {animal}?", f"A {animal} is an animal."),
        (f"Is {colour} a colour?", f"Yes, {colour} is a colour."),
        (f"Is {colour} an animal?", f"No, {colour} is a colour."),
        (f"My name is {name}. What is my name?", f"Your name is {name}."),
        (f"I like the {animal}. What do I like?", f"You like the {animal}."),
    )
    return rng.choice(pairs)


def dialogue(rng: Random) -> list[dict[str, Any]]:
    """One to three turns."""
    messages = []
    for _ in range(rng.choice((1, 1, 2, 3))):
        user, assistant = described(random_scene(rng, rng.randint(1, 3), unseen=False), rng) if rng.random() < 0.5 else small_talk(rng)
        messages += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    return messages


def plain(rng: Random) -> str:
    """A story, a caption, or a question with its answer, as running text."""
    choice = rng.random()
    if choice < 0.4:
        return story(rng)
    scene = random_scene(rng, rng.randint(1, 4), unseen=False)
    if choice < 0.6:
        return caption(scene)
    question = ask(scene, rng)
    return f"{question.question} {question.sentence}"
