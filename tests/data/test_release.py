"""The data of recipe release: one split for text, speech and pictures, that no order of reading or voice can cross."""

from __future__ import annotations

from pathlib import Path

import pytest

from omni.data import release
from omni.data.release import passages, sentence_held_out, sentences, speakable, speech_rows, spoken_texts, text_documents
from omni.data.split import normalised
from omni.errors import DataError


@pytest.fixture
def data(release_data) -> Path:
    return release_data


def test_every_document_is_on_one_side(data):
    train, held = (list(text_documents(data, held_out=side)) for side in (False, True))
    of = lambda rows, source: [p for row in rows if row["source"] == source for p in passages(row)]  # noqa: E731
    assert not set(of(train, "stories")) & set(of(held, "stories"))
    assert len(of(train, "stories")) + len(of(held, "stories")) == 80 and 0 < len(of(held, "stories")) < 15
    assert all(release.HELD_OUT_NOVEL in text for text in of(held, "novels")) and of(held, "novels")
    assert not any(release.HELD_OUT_NOVEL in text for text in of(train, "novels"))
    assert of(held, "dialogues") == ["Only the dev file says this sentence.", "Yes it does, indeed."]


def test_novels_are_cut_at_paragraphs_without_loss(data):
    documents = [row["text"] for row in text_documents(data, held_out=True) if row["source"] == "novels"]
    assert "\n".join(documents).count("goes over two rows") == 300
    assert all(len(d) < 2 * release.DOCUMENT_CHARACTERS for d in documents)


def test_all_takes_of_a_sentence_are_on_one_side(data):
    train, held = (list(speech_rows(data, held_out=side)) for side in (False, True))
    assert not {normalised(r["text"]) for r in train} & {normalised(r["text"]) for r in held}
    assert len(train) + len(held) == 2 * (3 * 8 + 1)
    assert all(Path(row["audio"]).is_absolute() for row in train)


def test_a_sentence_of_a_held_out_document_is_never_trained_on_in_any_voice(data):
    assert sentence_held_out(data, "only the DEV file says this sentence!")
    assert "Only the dev file says this sentence." not in {row["text"] for row in speech_rows(data, held_out=False)}


def test_synthesizers_say_neither_held_out_sentences_nor_those_of_the_real_readers(data):
    train, held = (spoken_texts(data, held_out=side) for side in (False, True))
    assert train and held and not set(map(normalised, train)) & set(map(normalised, held))
    assert all(speakable(text) for text in train + held)
    assert "Only the dev file says this sentence." in held
    assert not any("reader says" in text for text in train + held)


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("I would like a table, please.", True),
        ("Is it far?", True),
        ("Go.", False),
        ("It costs $5 today.", False),
        ("Call Mr. Smith now.", False),
        ("no capital letter here.", False),
        ("It has no end", False),
        ("Word " * 25 + "end.", False),
    ],
)
def test_what_is_speakable_is_spelled_as_it_is_said(sentence, expected):
    assert speakable(sentence) is expected


def test_sentences_end_at_their_marks():
    assert list(sentences({"text": 'One is here. "Is two there?" Three!\nFour'})) == ["One is here.", '"Is two there?', "Three!", "Four"]


def test_a_missing_file_says_how_to_get_it(tmp_path):
    with pytest.raises(DataError, match=r"dialogues.train.*muomni data get"):
        list(text_documents(tmp_path, held_out=False))


def test_a_broken_line_is_named(data):
    (data / "text/stories.jsonl").write_text('{"title": "a", "text": "b"}\n{"title"')
    with pytest.raises(DataError, match=r"stories.jsonl:2: not JSON"):
        list(text_documents(data, held_out=False))


def test_drawings_of_a_name_are_on_one_side_or_known_from_another_set(data, write_rows):
    rows = [
        {"image": f"emoji/{s}-{i}.png", "caption": f"Thing {i}.", "name": f"thing {i}", "set": s}
        for i in range(300)
        for s in ("google", "openmoji")
    ]
    write_rows(data / "images/emoji.jsonl", rows)
    write_rows(data / "images/clipart.jsonl", [{"image": "clipart/x.png", "caption": "X.", "name": "x", "set": "tuxpaint"}])
    train, held = (list(release.drawing_rows(data, held_out=side)) for side in (False, True))
    assert len(train) + len(held) == len(rows) + 1
    trained = {row["name"] for row in train}
    by_name = {row["name"] for row in held if row["split"] == "name"}
    drawn = [row for row in held if row["split"] == "drawing"]
    assert by_name and not by_name & trained
    assert drawn and {row["name"] for row in drawn} <= trained and {row["set"] for row in drawn} == {"openmoji"}


def test_nobody_trains_on_the_unseen_reader(data):
    assert {row["speaker"] for row in speech_rows(data, held_out=False)} == {"kathleen", "heart"}
    assert sum(row["speaker"] == "lj" for row in speech_rows(data, held_out=True)) == 16
