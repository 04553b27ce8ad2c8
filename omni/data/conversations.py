"""The conversations of stage E: pictures, sounds and sentences turned into what somebody asks about them, and what is to be answered.

Every row is {"kind", "about", "messages"}, or {"kind", "about", "text"} of what is read besides, so that it is not forgotten. `about` lists the
pictures and sentences in it, by which a split decides. A medium is given as the path that its row has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, TypeVar

from omni.chat import DESCRIBE, TRANSCRIBE, Message
from omni.data.worlds.text import EMPTY_PICTURE, NO_PICTURE, NO_SOUND

T = TypeVar("T")
Row = dict[str, Any]
Aloud = dict[str, list[list[str]]]  # a sentence → for every reader that says it, the clips

# The first of each is what the interfaces ask; "" is a medium without a word.
DESCRIBE_WORDINGS = (DESCRIBE, "What is in the picture?", "What do you see?", "Describe this image.", "")
PLACES_WORDINGS = ("Where is everything?", "Describe the picture and where things are.")
TRANSCRIBE_WORDINGS = (TRANSCRIBE, "What do you hear?", "What is said here?", "Transcribe this recording.")
STATEMENT_WORDINGS = ("{}", "True or false? {}", "{} True or false?", "Is this true or false? {}")
USUAL_WORDING = 0.5  # how often it is the first


@dataclass(frozen=True)
class Asked:
    """A question about a picture, typed, its answer, and what kind of question it is."""

    image: str
    question: str
    reply: str
    kind: str = ""


def take(items: Sequence[T], n: int, rng: Random) -> list[T]:
    """`n` of them: each as often as any other, give or take one."""
    assert items, "nothing to take from"
    return [*items] * (n // len(items)) + rng.sample(items, n % len(items))


def user(*, image: str | None = None, audio: str | None = None, text: str | None = None) -> Message:
    """What the user shows, plays and types."""
    given = {"image": image, "audio": audio, "text": text or None}
    return {"role": "user", "content": [{"type": kind, kind: value} for kind, value in given.items() if value is not None]}


def conversation(kind: str, about: Iterable[str], *turns: Message | str) -> Row:
    """A row; turns that are text alone are the assistant's."""
    messages = [{"role": "assistant", "content": turn} if isinstance(turn, str) else turn for turn in turns]
    return {"kind": kind, "about": sorted(set(about)), "messages": messages}


def _wording(wordings: Sequence[str], rng: Random) -> str:
    return wordings[0] if rng.random() < USUAL_WORDING else rng.choice(wordings[1:])


def clip_of(aloud: Aloud, sentence: str, rng: Random) -> str:
    """A clip of a sentence; every reader is as likely, however many clips it has."""
    return rng.choice(rng.choice(aloud[sentence]))


# --- one exchange


def described(rows: Iterable[Row], rng: Random, wordings: Sequence[str] = DESCRIBE_WORDINGS) -> Iterator[Row]:
    """Of rows {"image", "caption"}."""
    for row in rows:
        yield conversation("caption", [row["image"]], user(image=row["image"], text=_wording(wordings, rng)), row["caption"])


def transcribed(rows: Iterable[Row], rng: Random) -> Iterator[Row]:
    """Of rows {"audio", "text"}."""
    for row in rows:
        yield conversation("transcribe", [row["text"]], user(audio=row["audio"], text=_wording(TRANSCRIBE_WORDINGS, rng)), row["text"])


def judged(rows: Iterable[Row], rng: Random) -> Iterator[Row]:
    """Of rows {"image", "sentence", "label"}: is the sentence true of the picture? The sentence is what they are about: it comes with several
    pictures, which it must not give away."""
    for row in rows:
        asked = user(image=row["image"], text=rng.choice(STATEMENT_WORDINGS).format(row["sentence"]))
        yield conversation("statement", [row["sentence"]], asked, "True." if row["label"] else "False.")


def typed(asked: Iterable[Asked]) -> Iterator[Row]:
    """Questions about pictures in writing."""
    for a in asked:
        yield conversation("image_qa", [a.image], user(image=a.image, text=a.question), a.reply)


def spoken(asked: Iterable[Asked], aloud: Aloud, rng: Random) -> Iterator[Row]:
    """Questions about pictures in speech. All must be in `aloud`."""
    for a in asked:
        yield conversation("image_qa_spoken", [a.image], user(image=a.image, audio=clip_of(aloud, a.question, rng)), a.reply)


def chats(dialogues: Iterable[Row], aloud: Aloud, rng: Random) -> Iterator[Row]:
    """Of rows {"messages"} without media: as they are, to learn both sides, and once more with the first message in speech if there is a clip of it."""
    for row in dialogues:
        messages = row["messages"]
        said = [message["content"] for message in messages]
        yield {"kind": "chat", "about": ["\n".join(said)], "messages": messages, "learn": "all"}
        if messages[0]["role"] == "user" and said[0] in aloud:
            heard = user(audio=clip_of(aloud, said[0], rng))
            yield {"kind": "chat_spoken", "about": ["\n".join(said), said[0]], "messages": [heard, *messages[1:]]}


def passages(texts: Sequence[str], characters: int, n: int, rng: Random) -> Iterator[Row]:
    """`n` stretches of `texts`, every character as likely, and no conversations. They are about the beginning of their text, where some begin."""
    for text in rng.choices(texts, weights=[len(text) for text in texts], k=n):
        start = max(0, rng.randrange(-characters // 2, max(1, len(text) - characters // 2)))
        yield {"kind": "prose", "about": [text[:100]], "text": text[start : start + characters]}


# --- several turns


def follow_ups(asked: Sequence[Asked], aloud: Aloud, between: Sequence[Row], n: int, rng: Random) -> Iterator[Row]:
    """`n` conversations of two or three questions, typed or spoken, about the picture that was shown last: mostly there is one, at times another
    comes with a later question. At times something else comes between (a whole row of `between`)."""
    by_picture: dict[str, list[Asked]] = {}
    for a in asked:
        by_picture.setdefault(a.image, []).append(a)
    pictures = [questions for questions in by_picture.values() if len(questions) > 1]
    for questions in take(pictures, n, rng):
        turns: list[Message | str] = []
        about: list[str] = []
        left: list[Asked] = []  # not asked yet about the picture that was shown last
        for number in range(rng.choice((2, 2, 3))):
            if rng.random() < 0.25:
                other = rng.choice(between)
                turns += other["messages"]
                about += other["about"]
            shown = not left or rng.random() < 0.15
            if shown:
                questions = rng.choice(pictures) if number else questions
                left = rng.sample(questions, len(questions))
            a = left.pop()
            turns += _turn(a, a.image if shown else None, aloud, rng)
            about.append(a.image)
        yield conversation("follow_up", about, *turns)


def _turn(a: Asked, image: str | None, aloud: Aloud, rng: Random) -> list[Message | str]:
    by_voice = a.question in aloud and rng.random() < 0.5
    asked = user(image=image, audio=clip_of(aloud, a.question, rng)) if by_voice else user(image=image, text=a.question)
    return [asked, a.reply]


# --- what cannot be answered


def refusals(
    asked: Sequence[Asked], aloud: Aloud, clips: Sequence[Row], blank: Sequence[str], silent: Sequence[str], n: int, rng: Random
) -> Iterator[Row]:
    """`n` requests about a picture that is not there or shows nothing, and about sound that is not there or says nothing. `clips` are rows
    {"audio", "text"} of somebody who says something else."""
    audible = [a for a in asked if a.question in aloud]
    for i in range(n):
        a, kind = rng.choice(audible), i % 8
        if kind == 0:
            yield conversation("refusal", [a.question], user(text=a.question), NO_PICTURE)
        elif kind == 1:
            yield conversation("refusal", [a.question], user(audio=clip_of(aloud, a.question, rng)), NO_PICTURE)
        elif kind == 2:
            clip = rng.choice(clips)
            request = user(audio=clip["audio"] if rng.random() < 0.3 else None, text=_wording(DESCRIBE_WORDINGS[:-1], rng))
            yield conversation("refusal", [clip["text"]], request, NO_PICTURE)
        elif kind in (3, 4):
            image = rng.choice(blank)
            by_voice = kind == 3
            text = None if by_voice else rng.choice((a.question, _wording(DESCRIBE_WORDINGS, rng)))
            yield conversation(
                "refusal", [image], user(image=image, audio=clip_of(aloud, a.question, rng) if by_voice else None, text=text), EMPTY_PICTURE
            )
        else:
            sound = rng.choice(silent) if kind > 5 else None
            shown = a.image if rng.random() < 0.4 else None
            text = _wording(TRANSCRIBE_WORDINGS, rng) if sound is None or rng.random() < 0.5 else None
            about = [medium for medium in (sound, shown) if medium is not None] or [f"silence {i}"]
            yield conversation("refusal", about, user(image=shown, audio=sound, text=text), NO_SOUND)
