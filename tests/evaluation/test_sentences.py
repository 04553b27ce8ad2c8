"""The list of held-out sentences: what is committed is what is asked for, and nothing of it is trained on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from omni.data import release
from omni.errors import DataError
from omni.evaluation import sentences
from omni.evaluation.metrics import normalise
from omni.evaluation.sentences import (
    LENGTHS,
    LIST,
    check_held_out,
    load_sentences,
    make_list,
    plain,
    spoken_vocabulary,
    trained_on,
    training_words,
    write_list,
)

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("MUOMNI_DATA", ROOT / "data"))


def test_the_committed_list_is_long_and_varied_enough():
    found = load_sentences(ROOT / LIST)
    by_length = {length: [s for s in found if s.length == length] for length in LENGTHS}
    assert len(by_length["short"]) >= 200
    assert len(by_length["long"]) >= 100
    assert all(s.words in LENGTHS[s.length] and s.words == len(normalise(s.text).split()) for s in found)
    assert {s.source for s in by_length["short"]} == {"arctic", "novels", "dialogues"}
    assert {s.source for s in by_length["long"]} == {"novels", "dialogues"}
    assert len({s.id for s in found}) == len({normalise(s.text) for s in found}) == len(found)
    assert all(plain(s.text) for s in found)
    assert all("kathleen" in s.recordings for s in found if s.source == "arctic")


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="needs the data folder; name it with MUOMNI_DATA")
def test_nothing_of_the_committed_list_is_trained_on(tmp_path):
    found = load_sentences(ROOT / LIST)
    check_held_out(found, DATA)
    for reader in release.READERS:
        trained = {row["audio"] for row in release.speech_rows(DATA, held_out=False, readers=(reader,))}
        assert not {str((DATA / s.recordings[reader]).resolve()) for s in found if reader in s.recordings} & trained
    assert make_list(DATA) == found


# --- on a small data folder


@pytest.fixture
def data(release_data, write_rows) -> Path:
    """Beside what no list takes: a novel and dialogues of plain sentences, of which the training side holds one each."""
    novel = ["Nobody had lived in it for years.", "The children climbed over the wall.", "A cat sat on the stairs."]
    (release_data / f"text/novels/{release.HELD_OUT_NOVEL}.txt").write_text("\n\n".join([*novel, "He saw Mr. Brown went home again."]))
    (release_data / "text/novels/Doyle_Lost_1912.txt").write_text(f"So it was said:\n\n{novel[1]} It was a warm evening on the wall.")
    rows = [
        {"audio": f"kathleen/{i}.flac", "text": f"{word} was never said before.", "speaker": "kathleen"} for i, word in enumerate(WORDS)
    ]
    write_rows(release_data / "speech/kathleen.jsonl", [row | {"sentence_id": row["audio"], "duration_s": 1.0} for row in rows])
    return release_data


WORDS = [f"{a}{b}" for a in ("Kal", "Mor", "Tin", "Vel", "Sar") for b in ("a", "ea", "idor", "ost", "under", "wick")]


def test_the_list_has_held_out_sentences_with_their_recordings(data, tmp_path, monkeypatch):
    monkeypatch.setattr(sentences, "TYPO", 1)
    found = make_list(data)
    texts = {s.text for s in found}
    assert {"Nobody had lived in it for years.", "A cat sat on the stairs."} <= texts
    assert "The children climbed over the wall." not in texts  # a novel for training has it too
    assert not any("Brown" in text or "went home" in text for text in texts)
    assert "Only the dev file says this sentence." in texts
    read = [s for s in found if s.source == "arctic"]
    trained = {row["text"] for row in release.speech_rows(data, held_out=False, readers=("kathleen",))}
    assert read and not {s.text for s in read} & trained and len(read) + len(trained) == len(WORDS)
    assert all((s.recording("kathleen", data) or Path()).parent == data / "speech/kathleen" for s in read)
    assert all(s.recording("heart", data) is None for s in read)
    write_list(found, tmp_path / "list.jsonl")
    assert load_sentences(tmp_path / "list.jsonl") == found == make_list(data)
    check_held_out(found, data)


def test_what_the_teacher_said_is_a_recording(data, tmp_path, monkeypatch):
    sentence = make_list(data)[0]
    monkeypatch.setattr(sentences, "RECORDINGS", tmp_path)
    assert sentence.recording("heart", data) is None
    (tmp_path / "heart").mkdir()
    (tmp_path / f"heart/{sentence.id}.opus").touch()
    assert sentence.recording("heart", data) == tmp_path / f"heart/{sentence.id}.opus"


def test_a_part_of_a_longer_training_text_is_trained_on(data):
    assert trained_on("It was a warm evening!", data)
    assert trained_on("Children climbed over the wall.", data)
    assert not trained_on("Nobody had lived in it for years.", data)
    with pytest.raises(DataError, match="1 of 2 sentences are trained on, for example 'It was a warm evening.'"):
        check_held_out(
            [sentences.Sentence(str(i), t, "novels", 5) for i, t in enumerate(["A cat sat on the stairs.", "It was a warm evening."])], data
        )


def test_known_words_are_those_of_clips_for_training(data):
    known = spoken_vocabulary(data)
    assert {"table", "warm", "tea", "said"} <= known
    assert not known & {"stairs", "dev"}


def test_a_word_that_is_read_in_training_is_seen_though_no_clip_says_it(data):
    novel = data / "text/novels/Doyle_Lost_1912.txt"
    novel.write_text(novel.read_text() + "\n\nIn 1912 Sir Bors cried, 'Contradictious knaves I’d rather not meet.'")
    words = training_words(data)
    assert {"contradictious", "bors", "i'd", "warm", "tea"} <= words
    assert not {"bors", "contradictious"} & spoken_vocabulary(data)  # no synthesizer is given that
    assert not words & {"stairs", "dev"}


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("I'd say that I can, I think; can't we?", True),
        ("It costs 5 dollars.", False),
        ("The house of Mary is old.", False),
        ("It is an old-fashioned house.", False),
        ("Ok, that will do.", False),
        ("The dogs' tails wagged.", False),
        ("You have'nt been there.", False),
        ("What is that ?", False),
    ],
)
def test_a_plain_sentence_is_written_as_it_sounds(sentence, expected):
    assert plain(sentence) is expected


def test_an_empty_or_missing_list_is_one_clear_error(tmp_path):
    (tmp_path / "list.jsonl").touch()
    with pytest.raises(DataError, match="holds no sentence"):
        load_sentences(tmp_path / "list.jsonl")
    with pytest.raises(DataError, match="cannot be read"):
        load_sentences(tmp_path / "none.jsonl")
