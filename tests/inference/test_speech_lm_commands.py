"""`say`, `transcribe` and `params` with `--model speech-lm`, as the command line runs them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from omni.audio_tokenizers import CodecTokenizer
from omni.checkpoint import save_model
from omni.cli.app import main
from omni.config import SpeechLMConfig, preset
from omni.inference.omni import Omni
from omni.inference.sampling import Sampling
from omni.omni_model import OmniModel
from omni.speech_lm import COMPONENT, MultimodalLLM, SpeechLM

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def folder(omni: Omni, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random speech LM with a codec, as stage speech-lm leaves it."""
    torch.manual_seed(0)
    sizes = {"text_vocab_size": omni.tokenizer.vocab_size, "codebook_size": 16, "code_rates": (1, 1), "voices": ("ada", "ben")}
    words = SpeechLMConfig.model_validate(sizes | {"d_model": 16, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "d_ff": 16})
    tensors = {f"{COMPONENT}.{name}": t for name, t in MultimodalLLM(words).state_dict().items()} | omni.model.tensors(["codec"])
    path = tmp_path_factory.mktemp("speech_lm") / "model"
    save_model(path, tensors, omni.model.config.model_copy(update={"speech_lm": words}), [COMPONENT, "codec"], omni.tokenizer.serialized)
    return path


def run(capsys: Captured, *arguments: object) -> tuple[int, str, str]:
    code = main([str(a) for a in arguments])
    return code, *capsys.readouterr()


def test_say_and_transcribe_are_those_of_the_model(folder: Path, tmp_path: Path, capsys: Captured) -> None:
    lm = SpeechLM.from_pretrained(folder, "cpu")
    out = tmp_path / "x.wav"
    code, printed, _ = run(capsys, "say", "Hello there", "--model", "speech-lm", "--ckpt", folder, "--voice", "ben", "--out", out, "--json")
    speech = lm.say("Hello there", "ben")
    assert code == 0 and json.loads(printed)["audio_s"] == round(speech.duration_s, 3)
    assert json.loads(printed)["vocoder"] == "griffin-lim"
    assert soundfile.info(out).frames == len(speech.waveform)
    code, printed, _ = run(capsys, "transcribe", out, "--model", "speech-lm", "--ckpt", folder, "--json")
    assert code == 0 and json.loads(printed) == {"file": str(out), "text": lm.transcribe(out)}


def test_say_reads_manifests_and_streams_too(folder: Path, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    (tmp_path / "rows.jsonl").write_text('{"id": "a", "text": "Hello"}\n{"id": "b", "text": "Yes, no", "voice": "ben"}\n')
    common = ["--model", "speech-lm", "--ckpt", str(folder)]
    assert main(["say", "--manifest", str(tmp_path / "rows.jsonl"), "--out-dir", str(tmp_path), *common]) == 0
    assert all((tmp_path / f"{name}.wav").exists() for name in "ab")
    capsysbinary.readouterr()
    assert main(["say", "Hello", "--out", "-", *common]) == 0
    assert capsysbinary.readouterr().out.startswith(b"RIFF")


def test_a_stream_and_a_file_are_the_same_sound(folder: Path, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """To the sample, across clauses."""
    text, lm = "The circle is red, and there are two small stars. " * 4, SpeechLM.from_pretrained(folder, "cpu")
    assert isinstance(lm.audio_tokenizer, CodecTokenizer)
    lively = Sampling(temperature=4.0)
    parts = [speech.waveform for speech in lm.say_stream(text, "ben", sampling=lively)]
    assert len(parts) > 2 and np.array_equal(np.concatenate(parts), lm.say(text, "ben", sampling=lively).waveform)
    common = ["--model", "speech-lm", "--ckpt", str(folder), "--voice", "ben", "--temperature", "4", "--top-p", "1"]
    assert main(["say", text, "--out", str(tmp_path / "x.wav"), *common]) == 0
    capsysbinary.readouterr()
    assert main(["say", text, "--out", "-", *common]) == 0
    streamed = np.frombuffer(capsysbinary.readouterr().out[44:], "<i2").astype(int)
    assert np.array_equal(streamed, soundfile.read(tmp_path / "x.wav", dtype="int16")[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["say", "Hi", "--out", "x.wav", "--model", "speech"], "no model 'speech'; known: omni, speech-lm"),
        (["say", "Hi", "--out", "x.wav", "--model", "speech-lm", "--vocoder", "neural"], "--vocoder belongs to --model omni"),
        (["say", "Hi", "--out", "x.wav", "--model", "speech-lm", "--voice", "eve"], "no voice 'eve'; this model has: ada, ben"),
        (["transcribe", "x.wav", "--model", "speech-lm", "--decoder", "ctc"], "--decoder belongs to --model omni"),
        (["transcribe", "x.wav", "--model", "speech-lm"], "x.wav: no such audio file"),
    ],
)
def test_every_mistake_is_one_clear_line(folder: Path, capsys: Captured, arguments: list[str], message: str) -> None:
    code, _, err = run(capsys, *arguments, "--ckpt", folder)
    assert code == 1 and message in err and "Traceback" not in err


def test_params_of_the_default_configuration(capsys: Captured) -> None:
    code, out, _ = run(capsys, "params", "--model", "speech-lm", "--json")
    found = json.loads(out)
    assert code == 0 and found["total"] == sum(found["components"].values())
    assert found["components"]["text_ids"] == 50_257 * 128
    assert run(capsys, "params", "--model", "speech-lm")[1].count("audio ids") == 1


def test_params_of_the_release_are_those_of_a_model_on_its_codec(capsys: Captured) -> None:
    """Stage speech-lm takes the sizes of its tokenizers; the preset has to have the same."""
    config = preset("release")
    with torch.device("meta"):
        layout = CodecTokenizer(OmniModel(config, ["codec"]), config.speech_lm.codebooks).layout
    assert (config.speech_lm.codebook_size, config.speech_lm.code_rates) == (layout.codebook_size, layout.rates) == (1024, (1, 1, 1))
    code, out, _ = run(capsys, "params", "--model", "speech-lm", "--preset", "release", "--json")
    assert code == 0 and json.loads(out)["components"]["audio_ids"] == 3 * 1024 * 256 and json.loads(out)["total"] == 5_609_728
