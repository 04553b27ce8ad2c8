"""The suite `speech-lm`: both ways, beside controls and ceilings, by command too."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from omni.audio_tokenizers import CodecTokenizer
from omni.cli.app import main
from omni.config import SpeechLMConfig
from omni.errors import DataError
from omni.evaluation import speech_lm as suite_module
from omni.evaluation import tts
from omni.evaluation.asr import Clip
from omni.evaluation.sentences import Sentence, write_list
from omni.evaluation.speech_lm import evaluate_hearing, speech_lm_suite
from omni.inference.omni import Omni
from omni.parameters import count
from omni.speech_lm import MultimodalLLM, SpeechLM

TEXTS = ["A cat sat on the stairs.", "The old house stood quietly.", "It looked at them."]


@pytest.fixture
def lm(speaker: Omni) -> SpeechLM:
    """A small random one on the random codec."""
    torch.manual_seed(0)
    sizes = {"text_vocab_size": speaker.tokenizer.vocab_size, "codebook_size": 16, "code_rates": (1, 1), "voices": ("heart", "kathleen")}
    words = SpeechLMConfig.model_validate(
        sizes | {"d_model": 16, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "d_ff": 16, "lag_frames": 1}
    )
    return SpeechLM(MultimodalLLM(words), speaker.tokenizer, CodecTokenizer(speaker.model), Path("checkpoint"))


@pytest.fixture
def suite(lm, sounds, tmp_path, monkeypatch, told_judge) -> Any:
    """Runs it with a judge who hears what should be said, in order."""
    write_list([Sentence(f"s{i}", text, "novels", len(text.split())) for i, text in enumerate(TEXTS)], tmp_path / "list.jsonl")
    clips = [Clip(path, text, text) for path, text in zip(sounds, TEXTS, strict=True)]
    monkeypatch.setattr(tts, "find_judges", lambda environment: [told_judge([t.lower() for t in TEXTS])])
    monkeypatch.setattr(tts, "check_held_out", lambda sentences, data: None)
    monkeypatch.setattr(tts, "training_words", lambda data: frozenset(["a", "cat"]))
    monkeypatch.setattr(suite_module, "speech_sets", lambda data: {"kathleen": clips, "lj": clips})
    return lambda **settings: json.loads(json.dumps(speech_lm_suite(lm, tmp_path, sentences=tmp_path / "list.jsonl", **settings)))


def test_both_ways_are_measured_beside_controls_and_ceilings(suite, lm) -> None:
    result = suite()
    metrics, baselines, ceilings = result["metrics"], result["baselines"], result["ceilings"]
    assert result["items"] == 2 * 3 + 3 and metrics["parameters"] == count(lm.model)
    assert set(metrics["speaking"]) == set(baselines["speaking"]) == {"heart", "kathleen"}
    assert metrics["speaking"]["heart"]["short"]["whisper-base"]["wer"] == 0.0
    assert baselines["speaking"]["heart"]["swapped_text"]["short"]["whisper-base"]["wer"] > 0.8
    assert set(metrics["hearing"]) == {"kathleen"}  # lj is a stranger
    assert metrics["hearing"]["kathleen"]["wer"] > 0.8 and metrics["hearing"]["kathleen"]["items"] == 3
    assert set(baselines["hearing"]["kathleen"]["shuffled_audio"]) == {"wer", "wer_95", "cer", "cer_95"}
    assert ceilings["hearing"]["kathleen"]["recordings"]["wer"] == ceilings["hearing"]["kathleen"]["codes"]["wer"] == 0.0


def test_clauses_that_do_not_end_are_counted(suite, lm) -> None:
    at, logit = torch.tensor([lm.model.vocabulary.audio_end]), 1e4
    lm.model.lm_head.register_forward_hook(lambda _, inputs, logits: logits.index_fill(-1, at, logit))
    assert suite()["metrics"]["speaking"]["heart"]["cut"] == 0
    logit = -1e4
    assert suite()["metrics"]["speaking"]["heart"]["cut"] == 3


def test_what_is_heard_is_compared_with_its_own_text_and_with_anothers(lm, sounds, told_judge, monkeypatch) -> None:
    monkeypatch.setattr(lm, "transcribe_batch", lambda waves: [text.upper() for text in TEXTS])
    clips = [Clip(path, text, text) for path, text in zip(sounds, TEXTS, strict=True)]
    metrics, control, _ = evaluate_hearing(lm, clips, told_judge(TEXTS))
    assert metrics["wer"] == 0.0 and control["shuffled_audio"]["wer"] > 0.8
    assert metrics["hours"] == round(4.5 / 3600, 4)
    with pytest.raises(DataError, match="two clips or more"):
        evaluate_hearing(lm, clips[:1], told_judge(TEXTS))


def test_the_ceiling_is_the_recording_as_codes(lm, sounds) -> None:
    wave = np.random.default_rng(0).standard_normal(3000).astype(np.float32) * 0.1
    made = suite_module.through_tokenizer(lm, wave)
    tokenizer = lm.audio_tokenizer
    assert len(made) == 3000 and np.array_equal(made, tokenizer.decode_audio(tokenizer.encode_audio(wave))[:3000])


@pytest.fixture
def speech_lm_report(monkeypatch) -> ModuleType:
    """The script in `benchmarks`."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("speech_lm_report")


def test_the_report_sets_both_systems_side_by_side(suite, speech_lm_report, tmp_path, monkeypatch) -> None:
    result = suite()
    rates = result["metrics"]["hearing"]["kathleen"]
    spoken = result["metrics"]["speaking"]["heart"]
    files = {
        "tts": {"metrics": {"heart": {"talker": spoken, "items": spoken["items"]}}, "ceilings": {"heart": {"recordings": spoken}}},
        "asr": {"metrics": {"kathleen": {"greedy": rates, "beam": None, "items": rates["items"]}}},
        "optimizers": {
            "steps": {
                "speech-lm-muon": {"curves": {"validation/loss": [[50, 3.0], [100, 2.0], [600, 1.0]]}},
                "speech-lm-adamw-0.001": {"curves": {"validation/loss": [[50, 4.0], [600, 2.6]]}},
                "speech-lm-adamw-0.002": {"curves": {"validation/loss": [[50, 4.0], [600, 2.5]]}},
            }
        },
    }
    arguments = ["report", str(tmp_path / "lm.json"), "--checkpoints", str(tmp_path / "omni"), "--page", str(tmp_path / "page.md")]
    (tmp_path / "lm.json").write_text(json.dumps(result))
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        arguments += [f"--{name}", str(tmp_path / f"{name}.json")]
    steps = {"talker": 6000, "talker-tuned": 1000} | dict.fromkeys(("text", "chat", "sft", "sft-hearing", "sft-remembering"), 100)
    training = [{"step": name, "steps": n, "seconds": 7200, "data": {"hours": 4.25}} for name, n in steps.items()]
    (tmp_path / "omni").mkdir()
    (tmp_path / "omni" / "config.json").write_text(json.dumps({"extra": {"training": training, "unrecorded": ["sft-seeing"]}}))
    (tmp_path / "page.md").write_text("before\n<!-- measured -->\nold\n<!-- end -->\nbehind\n")
    monkeypatch.setattr("sys.argv", arguments)
    speech_lm_report.main()
    page = (tmp_path / "page.md").read_text()
    assert page.startswith("before\n") and page.endswith("behind\n") and "old" not in page
    assert "| heart | μOmni | 3 | 0.0 (0.0–0.0)" in page and "| kathleen | μOmni, greedy | 3 |" in page and "beam" not in page
    assert re.search(r"Talker: says \| [\d,]+ \| 4.2 \| 7,000 \| 4.0 \|", page)
    assert re.search(r"Talker's \(without sft-seeing, whose record is lost\) \| [\d,]+ \| 4.2 \| 500 \| 10.0 \|", page)
    assert re.search(r"audio encoder: hears \| [\d,]+ \|  \|  \|  \|", page)  # none of its steps has been
    assert "| says as heart, short | at most 50 | 0.0 | yes |" in page
    assert re.search(r"\| says as heart, short \| over 90 with another's \| [\d.]+ \| (yes|\*\*no\*\*) \|", page)
    assert f"| hears kathleen | at most 50 | {100 * rates['wer']:.1f} | **no** |" in page
    assert f"may take: {spoken['cut']} as heart, " in page
    assert f"| {result['metrics']['parameters']:,} |" in page
    assert "learning rates (0.001, 0.002: 0.002), ends its 600 updates at a validation loss of 2.500, which Muon has after 100" in page


def test_figures_of_other_items_do_not_stand_beside_each_other(speech_lm_report) -> None:
    with pytest.raises(SystemExit, match="heart: the speech LM was measured on 8 items, μOmni on 446"):
        speech_lm_report.same_items("heart", {"items": 8}, {"items": 446})


def test_eval_speech_lm_prints_one_object(suite, lm, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("omni.speech_lm.SpeechLM.from_pretrained", lambda *_: lm)
    monkeypatch.setattr(tts, "load_sentences", lambda path: [Sentence(f"s{i}", t, "novels", len(t.split())) for i, t in enumerate(TEXTS)])
    assert main(["eval", "speech-lm", "--data", str(tmp_path), "--limit", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["suite"] == "speech-lm"
