"""Pairs as sequences: both ways, side by side where somebody says when, and clear words for rows that are no use."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from omni.audio import load_audio, save_audio
from omni.config import MultimodalPretrainingConfig, SpeechLMConfig
from omni.data.collate import IGNORE
from omni.data.multimodal import MultimodalDataset
from omni.errors import ConfigError, DataError
from omni.pretraining import MultimodalPretrainingTrainer

SIDE_BY_SIDE = SpeechLMConfig(lead_frames=1, lag_frames=1, voices=("ada", "ben"))


@pytest.fixture
def rows(beeped) -> list[dict]:
    return [{"audio": beeped(text), "text": text, "speaker": speaker} for text, speaker in (("bad cab", "ben"), ("hi", "ada"))]


def test_every_pair_is_said_and_heard(rows, letters, beeps) -> None:
    data = MultimodalDataset(rows, letters, beeps)
    v = data.vocabulary
    assert len(data) == 4 and v.text_size == 11
    said, heard = data[2], data[3]
    frames = [[v.text_size + i for i in frame] for frame in beeps.layout.frames([[7 % 6, 8 % 6], [5 - 7 % 6, 5 - 8 % 6]])]
    assert said.speaks and said.ids == v.speaking_ids([7, 8], frames, None)
    assert not heard.speaks and heard.ids == v.hearing_ids([7, 8], frames, None)
    assert [i for i, c in zip(heard.ids, heard.chosen, strict=True) if c] == [7, 8, v.text_end]
    assert not any(c for i, c in zip(said.ids, said.chosen, strict=True) if i in v.text)


def test_text_stands_beside_its_sound(rows, letters, beeps) -> None:
    """Letter n is said in frame n, so it leads by one when spoken and lags by one when heard."""
    data = MultimodalDataset(
        rows, letters, beeps, config=SIDE_BY_SIDE, aligner=lambda wave, ids, clip: [0.1 * n + 0.05 for n in range(len(ids))]
    )
    v, frame = data.vocabulary, lambda n: [11 + n % 6, 17 + 5 - n % 6]
    said, heard = data[2].ids, data[3].ids
    assert said == [v.voice(0), v.text_start, 7, 8, v.text_end, v.audio_start, v.frame_id, *frame(7), v.frame_id, *frame(8), v.audio_end]
    assert heard == [v.audio_start, v.frame_id, *frame(7), 7, v.frame_id, *frame(8), v.audio_end, 8, v.text_end]
    assert data[0].ids[0] == v.voice(1)
    assert data[0].ids.index(v.audio_start) < data[0].ids.index(v.text_end)


def test_a_batch_predicts_what_was_chosen_and_pads_behind(rows, letters, beeps) -> None:
    data = MultimodalDataset(rows, letters, beeps)
    examples = [data[i] for i in range(4)]
    batch = data.collate(examples)
    assert batch.input_ids.shape == batch.labels.shape == (4, max(len(e.ids) for e in examples) - 1)
    assert batch.speaks.tolist() == [True, False, True, False]
    for row, example in enumerate(examples):
        n = len(example.ids) - 1
        assert batch.lengths[row] == n
        assert batch.input_ids[row, :n].tolist() == example.ids[:-1]
        assert set(batch.input_ids[row, n:].tolist()) <= {data.vocabulary.pad}
        assert [i for i in batch.labels[row].tolist() if i != IGNORE] == [i for i, c in zip(example.ids, example.chosen, strict=True) if c]
        assert set(batch.labels[row, n:].tolist()) <= {IGNORE}


def test_a_clip_is_prepared_and_encoded_once(rows, letters, beeps, monkeypatch) -> None:
    seen = []

    def louder(audio):
        seen.append(len(audio))
        return (audio + 1)[None]

    data = MultimodalDataset(rows, letters, beeps, audio_preprocessor=louder)
    assert data[0].ids != MultimodalDataset(rows, letters, beeps)[0].ids
    assert data[1].ids and data[0].ids and seen == [70]


def test_a_file_that_stands_in_several_rows_is_encoded_once(letters, beeped, beeps, tmp_path: Path, monkeypatch) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(1000), 100)
    rows = [{"audio": "a.wav", "text": "a"}, {"audio": "a.wav", "text": "a"}, {"audio": "a.wav", "text": "b"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data, encode, seen = MultimodalDataset(tmp_path / "rows.jsonl", letters, beeps), beeps.encode_audio, []
    monkeypatch.setattr(beeps, "encode_audio", lambda wave: seen.append(len(wave)) or encode(wave))
    assert data[0].ids == data[2].ids != data[4].ids and len(seen) == 2


def test_manifests_and_lists_of_files_are_the_same(rows, letters, beeps, beeped, tmp_path: Path) -> None:
    save_audio(tmp_path / "a.wav", beeped("bad cab") / 8, 100)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"audio": "a.wav", "text": "bad cab", "duration_s": 0.7}) + "\n")
    listed = MultimodalDataset([{"audio": str(tmp_path / "a.wav"), "text": "bad cab"}], letters, beeps)
    assert MultimodalDataset(str(tmp_path / "rows.jsonl"), letters, beeps)[0].ids == listed[0].ids
    paths = []
    data = MultimodalDataset(str(tmp_path / "rows.jsonl"), letters, beeps, lambda path: paths.append(path) or beeped("hi"))
    assert data[1].ids == MultimodalDataset([{"audio": beeped("hi"), "text": "bad cab"}], letters, beeps)[1].ids
    assert paths == [tmp_path / "a.wav"]


def test_files_that_are_too_long_are_left_out_though_no_row_says_so(letters, beeps, tmp_path: Path, caplog) -> None:
    for seconds in (9, 11):
        save_audio(tmp_path / f"{seconds}.wav", np.zeros(seconds * 100, np.float32), 100)
    (tmp_path / "no.wav").write_text("no sound")
    rows = [{"audio": name, "text": "hi"} for name in ("9.wav", "11.wav", "no.wav")]
    rows.append({"audio": "9.wav", "text": "hi", "duration_s": 12.0})  # what a row says goes first
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    embedded = [{"audio": {"bytes": (tmp_path / "11.wav").read_bytes(), "path": None}, "text": "hi"}]
    listed = [row | {"audio": str(tmp_path / row["audio"])} for row in rows]
    for data, n_long, n in ((str(tmp_path / "rows.jsonl"), 1, 3), (listed, 2, 4), (listed + embedded, 3, 5)):
        caplog.clear()
        with caplog.at_level("WARNING", "omni"):
            found = MultimodalDataset(data, letters, beeps)
        assert f"{n_long} of {n} clips are longer than max_audio_duration 10: left out" in caplog.text
        assert len(found) == 4 and found[0].speaks and not found[1].speaks
        with pytest.raises(DataError, match="not a readable audio file"):  # is not passed over
            found[2]
    assert len(MultimodalDataset(listed[:3], letters, beeps, max_audio_duration=11.0)) == 6
    with pytest.raises(DataError, match="1 of 1 clips are longer than max_audio_duration 10: none is left"):
        MultimodalDataset(listed[1:2], letters, beeps)


@pytest.mark.parametrize("limit_s", [5.0, 20.0])
def test_the_configurations_limit_is_the_data_sets(rows, letters, beeps, limit_s: float) -> None:
    config = MultimodalPretrainingConfig(audio_sample_rate=100, max_audio_duration=limit_s)
    with pytest.raises(ConfigError, match=f"max_audio_duration {limit_s:g}: the data set has clips of up to 10 s; give it"):
        MultimodalPretrainingTrainer(config).train(MultimodalDataset(rows, letters, beeps))


def test_clips_of_other_speakers_are_heard_only(rows, letters, beeps) -> None:
    config = SpeechLMConfig(voices=("ada", "ben"))
    others = [rows[0], rows[1] | {"speaker": "eve"}, {k: v for k, v in rows[1].items() if k != "speaker"}]
    data = MultimodalDataset(others, letters, beeps, config=config)
    assert [data[i].speaks for i in range(len(data))] == [True, False, False, True, False]
    assert data[2].ids == data[4].ids and data[3].ids[0] == data.vocabulary.voice(0)
    with pytest.raises(DataError, match="no clip is of one of the voices of the configuration: ada, ben"):
        MultimodalDataset(others[1:2], letters, beeps, config=config)


def test_a_tokenizers_added_tokens_count(rows, letters, beeps) -> None:
    class Begun(type(letters)):
        """Begins every text with a token that is not among its `vocab_size`, as some of Transformers do."""

        def __len__(self) -> int:
            return self.vocab_size + 1

        def encode(self, text: str) -> list[int]:
            return [self.vocab_size, *super().encode(text)]

    data = MultimodalDataset(rows, Begun(), beeps)
    assert data.vocabulary.text_size == letters.vocab_size + 1 and data[0].ids


def test_a_preprocessor_may_shorten_what_is_too_long(letters, beeps, tmp_path: Path) -> None:
    save_audio(tmp_path / "long.wav", np.zeros(1200, np.float32), 100)
    row = {"audio": str(tmp_path / "long.wav"), "text": "a"}
    data = MultimodalDataset([row], letters, beeps, lambda file: load_audio(file, 100)[:50])
    assert len(data) == 2 and data[0].ids


def test_what_cannot_be_used_is_named(rows, letters, beeps, tmp_path: Path) -> None:
    def message(row: dict, **settings) -> str:
        with pytest.raises(DataError) as caught:
            MultimodalDataset([rows[1], row], letters, beeps, **settings)[2]
        return str(caught.value)

    assert message({"text": "a"}) == "row 1: has no 'audio'"
    assert message({"audio": np.zeros(2000), "text": "a"}).startswith("row 1: 20.0 s exceed the 10 s of max_audio_duration")
    assert message({"audio": {"array": [0.0]}, "text": "a"}).startswith("row 1: a waveform is an array of samples, found {'array'")
    assert (
        message({"audio": np.zeros((2, 9)), "text": "a"}) == "row 1: a waveform is one row of samples, found torch.float64 of shape (2, 9)"
    )
    assert message({"audio": np.zeros(9), "text": 7}) == "row 1: has a 'text' that is none: 7"
    assert message(rows[0] | {"text": "xyz"}) == "row 1: the text is empty"
    assert "row 1: text and sound take 32 ids, and speech_lm.context_length is 30" in message(
        rows[0], config=SpeechLMConfig(context_length=30)
    )
    with pytest.raises(DataError, match="row 0: a row names its 'audio' and 'text', found tuple"):
        MultimodalDataset([("a.wav", "a")], letters, beeps)
    with pytest.raises(ConfigError, match="need an aligner"):
        MultimodalDataset(rows, letters, beeps, config=SIDE_BY_SIDE)
    (tmp_path / "rows.jsonl").write_text('{"audio": "rows.jsonl", "text": "a"}\n')
    with pytest.raises(DataError, match=r"rows.jsonl:1: .*not a readable audio file"):
        MultimodalDataset(tmp_path / "rows.jsonl", letters, beeps)[0]
    with pytest.raises(IndexError):
        MultimodalDataset(rows, letters, beeps)[4]
