"""The suite `tts`: every voice apart, beside its ceilings and controls; and how soon speech begins."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from omni.chat import render_reply
from omni.cli.app import main
from omni.errors import CheckpointError, ConfigError, DataError
from omni.evaluation import codec, speed, tts
from omni.evaluation.asr import Clip
from omni.evaluation.sentences import Sentence, write_list
from omni.evaluation.speed import OTHER, clocked, measure_speech, stages
from omni.evaluation.tts import Examination, evaluate_ceilings, is_cut, is_runaway, repeated, say, states_zeroed, tts_suite
from omni.inference.omni import GREEDY
from omni.inference.speech import Speech

TEXTS = ["A cat sat on the stairs.", "The old house stood quietly.", "It looked at them."]
KNOWN = frozenset(["a", "cat", "sat", "on", "the", "old", "house", "it", "looked", "at", "them"])


@pytest.fixture
def sentences(sounds, tmp_path) -> list[Sentence]:
    """Three, of which the reader kathleen has read the first two."""
    found = [Sentence(f"s{i}", text, "novels", len(text.split())) for i, text in enumerate(TEXTS)]
    return [Sentence(**{**vars(s), "recordings": {"kathleen": str(path)}}) for s, path in zip(found[:2], sounds, strict=False)] + found[2:]


@pytest.fixture
def suite(speaker, sentences, tmp_path, monkeypatch, told_judge):
    """Runs it with a judge who hears what should be said, in order."""
    write_list(sentences, tmp_path / "list.jsonl")
    monkeypatch.setattr(tts, "find_judges", lambda environment: [told_judge([t.lower() for t in TEXTS])])
    monkeypatch.setattr(tts, "check_held_out", lambda sentences, data: None)
    monkeypatch.setattr(tts, "training_words", lambda data: KNOWN)
    return lambda **settings: json.loads(json.dumps(tts_suite(speaker, tmp_path, sentences=tmp_path / "list.jsonl", **settings)))


def test_a_judge_that_goes_round_in_circles_is_counted():
    assert tts.is_loop("It rains.", "it rains " * 5) and not tts.is_loop("It rains.", "it is raining and it rains and rains")


def test_every_voice_is_measured_beside_its_ceilings_and_controls(suite):
    result = suite()
    assert result["items"] == 6
    assert set(result["metrics"]) == set(result["baselines"]) == set(result["ceilings"]) == {"kathleen", "joe"}
    kathleen = result["metrics"]["kathleen"]
    assert kathleen["talker"]["short"] == {
        "items": 3,
        "words": 15,
        "whisper-base": {"wer": 0.0, "wer_95": [0.0, 0.0], "cer": 0.0, "cer_95": [0.0, 0.0], "loops": 0},
    }
    assert kathleen["talker"]["unseen_words"] == {
        "words": 3,
        "whisper-base": {"heard": 1.0, "heard_95": [1.0, 1.0]},
    }  # stairs, stood, quietly
    assert kathleen["talker"]["seen_words"]["words"] == 12
    assert kathleen["talker"]["with_unseen_words"]["items"] == 2 and kathleen["talker"]["with_unseen_words"]["words"] == 11
    assert kathleen["talker_where_recorded"]["short"]["items"] == 2
    assert kathleen["repeated"] == {"items": 3, "same": 3, "identical": True}
    assert kathleen["over_recordings"] == {"short": {"items": 2, "whisper-base": {"points": 0.0, "points_95": [0.0, 0.0]}}}
    assert kathleen["replies"] == {"items": 0}  # of so few words no reply can be made
    assert kathleen["early_stops"] == 0
    assert kathleen["real_time_factor"] > 0
    assert result["baselines"]["kathleen"]["swapped_text"]["short"]["whisper-base"]["wer"] > 0.8
    assert result["baselines"]["kathleen"]["states_zeroed"]["short"]["items"] == 3
    assert set(result["ceilings"]["kathleen"]) == {"recordings", "mel_griffin_lim", "codec_griffin_lim", "mel_neural", "codec_neural"}
    assert result["ceilings"]["kathleen"]["recordings"]["short"]["items"] == 2


def test_a_voice_without_recordings_has_no_ceiling(suite, speaker, tmp_path):
    result = suite(limit=2)
    assert result["ceilings"]["joe"] == {}
    assert "talker_where_recorded" not in result["metrics"]["joe"]
    assert evaluate_ceilings(speaker, "joe", [], tmp_path, Examination([], KNOWN)) == {}


def test_replies_are_of_sixty_words_and_cut_ones_are_counted(speaker, sentences, told_judge):
    many = [Sentence(f"s{i}", TEXTS[i % 2], "novels", len(TEXTS[i % 2].split())) for i in range(26)]
    wanted = [" ".join(TEXTS[i % 2] for i in range(start, start - 11, -1)) for start in (25, 14)]
    found = tts.evaluate_replies(speaker, "joe", many, Examination([told_judge([wanted[0], "A cat"])], KNOWN))
    assert found["items"] == 2 and found["words"] == 2 * 60 + 1 and found["cut"] == 1
    assert 0.4 < found["whisper-base"]["wer"] < 0.6


def test_points_over_other_sounds_are_counted_sentence_by_sentence(sentences):
    exam = Examination([], KNOWN)
    found = exam.points_over(
        sentences, {"x": ["a cat sat on the", "nothing", "it looked at them"]}, {"x": [TEXTS[0], TEXTS[1], "it looked"]}
    )
    assert found["short"]["items"] == 3 and found["short"]["x"]["points"] == round(100 * (1 + 5 - 2) / 15, 4)


def test_words_that_were_not_heard_are_counted_by_whether_they_are_known(sentences, told_judge):
    exam = Examination([told_judge(["a cat sat on the", "the mould house stood quietly", "it looked at them"])], KNOWN)
    found = exam.of(sentences, [np.zeros(1, np.float32)] * 3)
    assert found["unseen_words"]["whisper-base"] == {"heard": round(2 / 3, 4), "heard_95": (0.0, 1.0)}
    assert found["seen_words"]["whisper-base"]["heard"] == round(11 / 12, 4)
    assert found["short"]["whisper-base"]["wer"] == round(2 / 15, 4)
    assert found["with_unseen_words"]["whisper-base"]["wer"] == round(2 / 11, 4)  # of the first two sentences


def test_without_unseen_words_there_is_no_figure_of_them(sentences, told_judge):
    found = Examination([told_judge(TEXTS)], KNOWN).of(sentences[2:], [np.zeros(1, np.float32)])
    assert "with_unseen_words" not in found and found["unseen_words"] == {"words": 0}


def test_what_is_measured_on_some_sentences_is_compared_on_these(suite, speaker, sentences, tmp_path, monkeypatch, told_judge):
    monkeypatch.setattr(tts, "CONTROLS", 1)
    result = suite()
    kathleen, ceilings = result["metrics"]["kathleen"], result["ceilings"]["kathleen"]
    zeroed = result["baselines"]["kathleen"]["states_zeroed"]
    assert kathleen["talker"]["short"]["items"] == 3
    assert zeroed["short"]["items"] == kathleen["talker_where_zeroed"]["short"]["items"] == 1
    assert zeroed["short"]["words"] == kathleen["talker_where_zeroed"]["short"]["words"]
    assert kathleen["zeroed_over_talker"]["short"]["items"] == 1
    for system in ("mel", "codec"):
        same = ceilings[f"{system}_griffin_lim"]["short"], ceilings[f"{system}_neural_where_griffin_lim"]["short"]
        assert [row["items"] for row in same] == [1, 1] and same[0]["words"] == same[1]["words"]
        assert ceilings[f"{system}_neural"]["short"]["items"] == 2
    exam = Examination([told_judge([TEXTS[0], "nothing"])], KNOWN)  # hears the first sentence only, which is the one of the few
    found = evaluate_ceilings(speaker, "kathleen", sentences[:2], tmp_path, exam)
    assert (
        found["mel_neural"]["short"]["whisper-base"]["wer"] > found["mel_neural_where_griffin_lim"]["short"]["whisper-base"]["wer"] == 0.0
    )


def test_griffin_lim_alone_is_compared_with_nothing(make_speaker, sentences, tmp_path, monkeypatch, told_judge):
    monkeypatch.setattr(tts, "CONTROLS", 1)
    exam = Examination([told_judge(TEXTS)], KNOWN)
    found = evaluate_ceilings(make_speaker("thinker", "talker", "codec"), "kathleen", sentences[:2], tmp_path, exam)
    assert {name: row["short"]["items"] for name, row in found.items()} == {"recordings": 2, "mel_griffin_lim": 2, "codec_griffin_lim": 2}


def test_points_of_the_control_are_over_the_talker_on_the_same_sentences(speaker, sentences, tmp_path, monkeypatch):
    monkeypatch.setattr(tts, "some", lambda sentences: [sentences[2], sentences[0]])
    monkeypatch.setattr(tts, "repeated", lambda *_: {})
    heard = iter([[TEXTS[0], "nothing", TEXTS[2]], [TEXTS[2], "a cat sat on"]])  # of the Talker, and without states of the few
    judge = SimpleNamespace(name="whisper-base", hear=lambda sounds: next(heard))
    metrics, controls = tts.evaluate_talker(speaker, "joe", sentences, [], tmp_path, Examination([judge], KNOWN))
    assert metrics["talker_where_zeroed"]["short"]["whisper-base"]["wer"] == 0.0
    assert metrics["zeroed_over_talker"]["short"]["whisper-base"]["points"] == 20.0  # two of ten words
    assert controls["states_zeroed"]["short"]["whisper-base"]["wer"] == 0.2


@torch.inference_mode()
def test_states_zeroed_is_the_talker_without_the_thinker(speaker, sentences):
    reply = render_reply(TEXTS[0], speaker.tokenizer)
    ids, chars, tokens = (torch.tensor([x]) for x in (reply.input_ids, reply.char_ids, reply.char_tokens))

    def conditioning(**settings):
        lengths = torch.tensor([ids.shape[1]]), torch.tensor([chars.shape[1]])
        return speaker.model.condition(ids, lengths[0], chars, tokens, lengths[1], torch.tensor([0]), **settings).embeddings

    with states_zeroed(speaker):
        zeroed = conditioning()
    assert torch.equal(zeroed, conditioning(keep_states=torch.tensor([False])))
    assert not torch.allclose(zeroed, conditioning(), atol=1e-3)


def test_speech_that_changes_is_not_identical(speaker, sentences, monkeypatch):
    calls = []

    def forgetful(omni, sentences, voice, sampling):
        calls.append(voice)
        return say(omni, sentences if len(calls) == 1 else [*sentences[1:], sentences[0]], voice, sampling=sampling)

    monkeypatch.setattr(tts, "say", forgetful)
    assert repeated(speaker, "joe", sentences) == {"items": 3, "same": 0, "identical": False}


def test_runaways_and_early_stops():
    sentence = Sentence("a", "A cat sat on the stairs.", "novels", 6)
    speech = lambda seconds: Speech(np.zeros(int(16_000 * seconds), np.float32), 16_000, torch.zeros(0, 2))  # noqa: E731
    assert not is_runaway(sentence, speech(3.0), 12.5)
    assert is_runaway(sentence, speech(5.0), 12.5)
    assert not is_cut(sentence, "a cat sat on the bears")
    assert is_cut(sentence, "a cat sat on")
    assert is_cut(sentence, "")


def test_what_cannot_be_measured_is_one_clear_error(suite, speaker, make_speaker, sentences, tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match="this checkpoint has no talker"):
        tts_suite(make_speaker("thinker", "codec"), tmp_path)
    write_list(sentences[:1], tmp_path / "list.jsonl")
    with pytest.raises(DataError, match="two sentences or more are needed"):
        suite()
    monkeypatch.undo()
    with pytest.raises(DataError, match="not there; --judge names a virtual environment"):
        tts_suite(speaker, tmp_path, judge=Path("nowhere"))


# --- speed


@pytest.fixture
def brief(monkeypatch) -> None:
    """Little is said."""
    monkeypatch.setattr(speed, "LONGER", "It looked. And it sat there quietly.")


def test_the_stages_of_the_first_sound_add_up_to_it(speaker, brief):
    found = measure_speech(speaker, "joe", rounds=2)
    assert sum(found.stages_ms.values()) == pytest.approx(found.first_audio_ms, abs=0.5)
    assert set(found.stages_ms) == {"thinker", "talker_text", "talker_frames", "codec", "vocoder", OTHER}
    assert all(ms > 0 for ms in found.stages_ms.values())
    assert found.words == 10
    assert found.streamed_difference < 1e-3  # untrained, and as loud as can be
    assert 0 < found.real_time_factor < 10
    assert found.look_ahead_ms == {"codec": 80.0, "vocoder": 130.0}


def test_griffin_lim_has_its_stages_too(make_speaker, brief):
    found = measure_speech(make_speaker("thinker", "talker", "codec"), rounds=1)
    assert found.vocoder == "griffin-lim"
    assert all(ms > 0 for ms in found.stages_ms.values())
    assert found.streamed_difference == 0


def test_after_the_clock_everything_is_as_it_was(speaker):
    before = speaker.say(TEXTS[0], sampling=GREEDY).waveform
    with clocked(stages(speaker)) as spent, pytest.raises(ConfigError):
        speaker.say(TEXTS[0], "nobody")
    assert not {"forward", "step", "durations"} & set(vars(speaker.model.talker))
    assert set(spent.values()) == {0.0}
    assert np.array_equal(speaker.say(TEXTS[0], sampling=GREEDY).waveform, before)


def test_bench_speech_prints_one_object(speaker, brief, monkeypatch, capsys):
    monkeypatch.setattr("omni.inference.omni.Omni.from_pretrained", lambda *_: speaker)
    assert main(["bench", "speech", "--rounds", "1", "--voice", "joe", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["what"] == "speech"
    assert set(result["metrics"]) == set(speed.SpeechSpeed.__dataclass_fields__)


def test_who_plays_what_comes_hears_it_after_its_silence_and_waits_for_what_is_late() -> None:
    loud, silent = np.full(100, 0.5, np.float32), np.zeros(100, np.float32)
    assert speed.played([(0.2, silent), (0.25, np.append(silent, loud))], 1000) == pytest.approx((0.4, 0.0))
    assert speed.played([(0.2, loud), (0.5, loud)], 1000) == pytest.approx((0.2, 0.2))
    assert speed.played([(0.2, silent)], 1000) == pytest.approx((0.3, 0.0))


def test_the_page_about_speech_has_every_figure_whoever_heard_it(suite, speaker, sounds, tmp_path, monkeypatch, told_judge) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import speech_report

    judges = [told_judge([t.lower() for t in TEXTS]), told_judge([t.lower() for t in TEXTS])]
    judges[1].name = "whisper-tiny.en"  # hears some of it only
    monkeypatch.setattr(tts, "find_judges", lambda environment: judges)
    result = suite()
    page = "\n".join(speech_report.tts_tables(result))
    assert (
        "On 3 short sentences said without the Thinker's states, points of WER over the Talker with them: 0.0 (0.0–0.0) (whisper-base)"
        in page
    )
    talker = next(line for line in page.splitlines() if line.startswith("| talker | 3 |"))
    assert talker.endswith("| 2 (11 words) | 0.0 (0.0–0.0) | 3 | 100.0 (100.0–100.0) |")
    assert (
        page.count("## Voice `kathleen`") == 1
        and page.count("heard by whisper-tiny.en") == 2
        and "| states zeroed |" in page
        and "| mel neural |" in page
    )
    assert "On 2 short sentences that its reader has recorded, points of WER over the recordings: 0.0 (0.0–0.0) (whisper-base), 0.0" in page
    monkeypatch.setattr(codec, "speech_sets", lambda data: {reader: [Clip(sounds[0], TEXTS[0], TEXTS[0])] for reader in ("kathleen", "lj")})
    monkeypatch.setattr(codec, "find_judges", lambda environment: judges)
    page = "\n".join(speech_report.codec_tables(json.loads(json.dumps(codec.codec_suite(speaker, tmp_path)))))
    assert page.count("codec griffin lim: ") == 2 and "WER %, whisper-tiny.en" in page
