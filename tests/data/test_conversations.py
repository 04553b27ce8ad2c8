"""The conversations of stage E: what is answered belongs to the picture and the sound that are there."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

import pytest

from omni.chat import DESCRIBE, TRANSCRIBE, parts_of
from omni.data import conversations
from omni.data.conversations import Aloud, Asked, chats, described, follow_ups, judged, passages, refusals, spoken, take, transcribed, typed
from omni.data.worlds.text import EMPTY_PICTURE, NO_PICTURE, NO_SOUND

QUESTIONS = [f"What is {word}?" for word in "abcdefgh"]
ASKED = [Asked(f"{picture}.png", question, f"{picture} says {question}") for picture in range(20) for question in QUESTIONS]
ALOUD: Aloud = {q: [[f"{q}.one"], [f"{q}.two.{i}" for i in range(9)]] for q in QUESTIONS[:6]}  # two are never heard
CLIPS = [{"audio": f"clip{i}.flac", "text": f"Sentence {i}."} for i in range(10)]
BETWEEN = list(transcribed(CLIPS, Random(0)))


def parts(message: dict[str, Any]) -> dict[str, Any]:
    return dict(parts_of(message))


def heard(clip: str) -> str:
    """The sentence that a clip says."""
    return clip.split(".")[0]


def test_taking_repeats_evenly() -> None:
    counts = Counter(take(range(7), 24, Random(0)))
    assert sum(counts.values()) == 24 and set(counts.values()) == {3, 4}
    assert len(set(take(range(100), 30, Random(0)))) == 30


def test_passages_are_stretches_of_the_texts_and_some_are_their_beginning() -> None:
    texts = [f"{word} " * n for word, n in (("a", 50), ("b", 500), ("c", 3))]
    rows = list(passages(texts, 40, 400, Random(0)))
    said = [row["text"] for row in rows]
    assert all(any(s in text for text in texts) and 0 < len(s) <= 40 for s in said)
    assert sum(s.startswith("b") for s in said) > 5 * sum(s.startswith("a") for s in said) > 0
    texts = ["".join(chr(i) for i in range(200, 400))]
    assert 0.05 < sum(row["text"].startswith(texts[0][:9]) for row in passages(texts, 40, 400, Random(0))) / 400 < 0.2


@pytest.mark.parametrize("row", [*typed(ASKED), *spoken([a for a in ASKED if a.question in ALOUD], ALOUD, Random(0))])
def test_a_question_is_asked_of_the_picture_that_the_answer_is_about(row) -> None:
    user, reply = row["messages"]
    given = parts(user)
    question = given["text"] if "text" in given else heard(given["audio"])
    assert reply["content"] == f"{given['image'].removesuffix('.png')} says {question}"
    assert row["about"] == [given["image"]] and next(iter(given)) == "image"


def test_every_reader_asks_as_often_however_many_clips_it_has() -> None:
    rng = Random(0)
    clips = [conversations.clip_of(ALOUD, QUESTIONS[0], rng) for _ in range(1000)]
    assert 400 < sum(clip.endswith(".one") for clip in clips) < 600


def test_pictures_are_described_and_clips_written_down_in_several_wordings() -> None:
    shown = list(described([{"image": f"{i}.png", "caption": f"Thing {i}."} for i in range(200)], Random(0)))
    assert all(row["messages"][1]["content"] == f"Thing {parts(row['messages'][0])['image'][:-4]}." for row in shown)
    wordings = Counter(parts(row["messages"][0]).get("text") for row in shown)
    assert wordings.most_common(1)[0][0] == DESCRIBE and wordings[None] > 0  # a picture without a word too
    written = list(transcribed(CLIPS * 20, Random(0)))
    said = {clip["audio"]: clip["text"] for clip in CLIPS}
    assert all(row["messages"][1]["content"] == said[parts(row["messages"][0])["audio"]] for row in written)
    assert {TRANSCRIBE} < {parts(row["messages"][0])["text"] for row in written}


def test_statements_are_answered_true_or_false_and_split_by_sentence() -> None:
    rows = list(judged([{"image": f"{i}.png", "sentence": "There is a box", "label": i % 3 == 0} for i in range(40)], Random(0)))
    assert all(row["messages"][1]["content"] == ("True." if i % 3 == 0 else "False.") for i, row in enumerate(rows))
    assert all("There is a box" in parts(row["messages"][0])["text"] and row["about"] == ["There is a box"] for row in rows)


def test_a_dialogue_whose_first_message_somebody_says_is_also_heard() -> None:
    said = [{"role": "user", "content": QUESTIONS[0]}, {"role": "assistant", "content": "Yes."}]
    unsaid = [{"role": "user", "content": "Nobody says this."}, {"role": "assistant", "content": "No."}]
    passage = [{"role": "assistant", "content": QUESTIONS[0]}]
    rows = list(chats([{"messages": m} for m in (said, unsaid, passage)], ALOUD, Random(0)))
    assert [row["kind"] for row in rows] == ["chat", "chat_spoken", "chat", "chat"]
    assert heard(parts(rows[1]["messages"][0])["audio"]) == QUESTIONS[0] and rows[1]["messages"][1:] == said[1:]
    assert rows[0]["about"][0] in rows[1]["about"]  # the spoken one is on the side of the typed one


def test_follow_ups_are_about_the_picture_shown_last() -> None:
    shown_again = something_between = asked_after_another = 0
    for row in follow_ups(ASKED, ALOUD, BETWEEN, 200, Random(0)):
        picture, users = None, row["messages"][::2]
        assert len(users) >= 2 and [m["role"] for m in row["messages"]] == ["user", "assistant"] * len(users)
        for user, reply in zip(users, row["messages"][1::2], strict=True):
            given = parts(user)
            picture = given.get("image", picture)
            question = heard(given["audio"]) if "audio" in given else given["text"]
            if question in QUESTIONS:
                assert reply["content"] == f"{str(picture).removesuffix('.png')} says {question}"
            else:
                something_between += 1
        shown = [number for number, user in enumerate(users) if "image" in parts(user)]
        assert {parts(users[number])["image"] for number in shown} <= set(row["about"])
        shown_again += len(shown) > 1
        asked_after_another += len(shown) > 1 and shown[-1] < len(users) - 1
    assert 10 < shown_again < 100 and something_between > 20 and asked_after_another > 2


def test_another_picture_comes_when_there_is_nothing_left_to_ask_about_the_first() -> None:
    few = [Asked(f"{picture}.png", question, "Yes.") for picture in range(4) for question in QUESTIONS[:2]]
    for row in follow_ups(few, ALOUD, BETWEEN, 100, Random(0)):
        asked: set[tuple[str, str]] = set()
        picture = ""
        for user in row["messages"][::2]:
            given = parts(user)
            picture = given.get("image", picture)
            question = heard(given["audio"]) if "audio" in given else given["text"]
            assert (picture, question) not in asked or "image" in given
            asked.add((picture, question))


def test_what_is_not_there_is_refused_and_what_is_there_never() -> None:
    replies: Counter[str] = Counter()
    beside_pictures = 0
    for row in refusals(ASKED, ALOUD, CLIPS, ["blank1.png", "blank2.png"], ["silence1.flac"], 400, Random(0)):
        user, reply = row["messages"]
        given, said = parts(user), reply["content"]
        replies[said] += 1
        if said == NO_PICTURE:
            assert "image" not in given and given.get("text") != TRANSCRIBE
        elif said == EMPTY_PICTURE:
            assert given["image"].startswith("blank")
        else:
            assert said == NO_SOUND and given.get("audio", "silence").startswith("silence")
            assert "audio" in given or "text" in given
            beside_pictures += "image" in given
    assert 20 < beside_pictures < 100
    assert set(replies) == {NO_PICTURE, NO_SOUND, EMPTY_PICTURE} and min(replies.values()) > 80
