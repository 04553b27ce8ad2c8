"""The document's trainer: its examples run, settings reach the one Trainer, and a run is continued."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.utils.data import DataLoader

from omni import MultimodalPretrainingConfig, MultimodalPretrainingTrainer
from omni.audio import save_audio
from omni.checkpoint import save_model
from omni.config import SpeechLMConfig, preset
from omni.errors import ConfigError
from omni.omni_model import OmniModel
from omni.pretraining.core.audio import SNACTokenizer
from omni.pretraining.core.dataset import MultimodalDataset
from omni.speech_lm import SpeechLM

ROOT = Path(__file__).parents[1]
TEXTS = ["bad cab", "hide", "a big jig", "hi"]


@pytest.fixture
def config(tmp_path: Path) -> MultimodalPretrainingConfig:
    """Small, for beeps."""
    return MultimodalPretrainingConfig(
        d_model=16,
        n_heads=2,
        n_kv_heads=1,
        n_layers=1,
        d_ff=16,
        batch_size=2,
        max_steps=3,
        audio_sample_rate=100,
        output_dir=str(tmp_path / "run"),
    )


@pytest.fixture
def dataset(letters, beeps, beeped) -> MultimodalDataset:
    return MultimodalDataset([{"audio": beeped(text), "text": text} for text in TEXTS], letters, beeps)


def loaders(data: MultimodalDataset, batch_size: int = 2) -> tuple[DataLoader, DataLoader]:
    return tuple(DataLoader(data, batch_size=batch_size, collate_fn=data.collate) for _ in range(2))  # type: ignore[return-value, arg-type]


def test_the_documents_example(config, dataset, letters, beeps) -> None:
    config.audio_weight = 2.0  # Higher weight for audio
    config.text_weight = 0.5  # Lower weight for text
    train_loader, val_loader = loaders(dataset)

    trainer = MultimodalPretrainingTrainer(config)
    model, metrics = trainer.train(train_loader, val_loader)
    assert {"loss", "audio_perplexity", "text_accuracy"} <= set(metrics)
    assert model.speech_config.audio_weight == 2.0

    text_tokens = letters.encode("cab")
    audio_tokens = model.generate_audio(text_tokens, beeps)
    audio = beeps.decode_audio(audio_tokens)
    assert len(audio) % 10 == 0 and len(audio)
    text_tokens = model.generate_text(audio_tokens)
    assert isinstance(letters.decode(text_tokens), str)


@pytest.mark.slow
def test_the_documents_examples_on_snac_and_a_text_tokenizer_from_a_folder(random_snac, tmp_path: Path, monkeypatch) -> None:
    """Word for word, but for the package's name, folders for what a hub would give, and soundfile for torchaudio."""
    transformers = pytest.importorskip("transformers")
    import soundfile
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["?", "the", "rain", "has", "stopped"])}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path / "text")
    data = []
    for i in range(2):
        save_audio(tmp_path / f"{i}.wav", np.random.default_rng(i).standard_normal(900).astype(np.float32) * 0.1, 24_000)
        data.append({"audio": str(tmp_path / f"{i}.wav"), "text": "the rain has stopped"})

    config = MultimodalPretrainingConfig(d_model=16, n_heads=2, n_layers=1, batch_size=2, max_steps=2, output_dir=str(tmp_path / "run"))
    text_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "text")
    audio_tokenizer = SNACTokenizer(random_snac(tmp_path, "24khz"))

    def preprocess_audio(audio_path):
        audio, sr = soundfile.read(audio_path)
        return audio

    dataset = MultimodalDataset(
        data=data, text_tokenizer=text_tokenizer, audio_tokenizer=audio_tokenizer, audio_preprocessor=preprocess_audio
    )
    train_loader, val_loader = loaders(dataset)
    trainer = MultimodalPretrainingTrainer(config)
    model, metrics = trainer.train(train_loader, val_loader)

    text_tokens = text_tokenizer.encode("the rain")
    audio_tokens = model.generate_audio(text_tokens, audio_tokenizer, most_frames=9)
    audio = audio_tokenizer.decode_audio(audio_tokens)
    assert len(audio) and len(audio) % audio_tokenizer.samples_per_frame == 0
    text_tokens = model.generate_text(audio_tokens)
    assert isinstance(text_tokenizer.decode(text_tokens), str)

    monkeypatch.chdir("/")
    lm = SpeechLM.from_pretrained(tmp_path / "run", "cpu")  # knows its tokenizers by itself, wherever it is loaded
    assert lm.audio_tokenizer.encode_audio(data[0]["audio"]) == audio_tokenizer.encode_audio(data[0]["audio"])
    assert lm.text_tokenizer.encode("the rain") == text_tokenizer.encode("the rain")


def test_a_run_that_is_complete_is_not_begun_again_with_other_settings(config, dataset) -> None:
    MultimodalPretrainingTrainer(config).train(*loaders(dataset))
    config.audio_weight = 2.0
    with pytest.raises(ConfigError, match=r"complete.*audio_weight 1.0 → 2.0.*another folder"):
        MultimodalPretrainingTrainer(config).train(*loaders(dataset))


def test_validation_data_must_have_the_same_ids(config, dataset, letters, beeps, beeped) -> None:
    other = MultimodalDataset(
        [{"audio": beeped("hi"), "text": "hi"}], letters, beeps, config=SpeechLMConfig(voices=("ada",)), max_audio_duration=10.0
    )
    with pytest.raises(ConfigError, match="other ids, voices or orders"):
        MultimodalPretrainingTrainer(config).train(dataset, other)


def test_rows_that_say_they_are_too_long_are_left_out(letters, beeps, beeped, caplog) -> None:
    rows = [{"audio": beeped("hi"), "text": "hi", "duration_s": 1.0}, {"audio": "nowhere.wav", "text": "hi", "duration_s": 11.0}]
    with caplog.at_level("WARNING", "omni"):
        assert len(MultimodalDataset(rows, letters, beeps)) == 2
    assert "1 of 2 clips are longer" in caplog.text


def test_the_same_call_continues_a_run(config, dataset) -> None:
    MultimodalPretrainingTrainer(config).train(*loaders(dataset))
    config.max_steps = 5
    events = Path(config.output_dir) / "checkpoints"
    model, _ = MultimodalPretrainingTrainer(config).train(*loaders(dataset))
    assert [p.name for p in sorted(events.iterdir())] == ["step-00000003", "step-00000005"]
    again, _ = MultimodalPretrainingTrainer(config).train(*loaders(dataset))  # nothing is left to do
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_a_run_on_other_data_is_not_taken_for_this_one(config, dataset, letters, beeps, beeped) -> None:
    MultimodalPretrainingTrainer(config).train(dataset)
    kept = (Path(config.output_dir) / "model.safetensors").read_bytes()
    others = MultimodalDataset([{"audio": beeped(text), "text": text} for text in ("jig", "hi")], letters, beeps)
    config.max_steps = 5
    with pytest.raises(ConfigError, match="has a run on other data; name another output_dir"):
        MultimodalPretrainingTrainer(config).train(others)
    assert (Path(config.output_dir) / "model.safetensors").read_bytes() == kept
    MultimodalPretrainingTrainer(config).train(others, resume=False)

    class Backwards(type(letters)):
        def encode(self, text: str) -> list[int]:
            return super().encode(text)[::-1]

    rows = [{"audio": beeped(text), "text": text} for text in TEXTS]
    with pytest.raises(ConfigError, match="text tokenizers that differ"):
        MultimodalPretrainingTrainer(config).train(others, MultimodalDataset(rows, Backwards(), beeps))


def test_sound_that_is_told_by_another_tokenizer_is_other_data(config, dataset, letters, beeps, beeped) -> None:
    class Other(type(beeps)):
        def encode_audio(self, audio: Any) -> list[int]:
            return super().encode_audio(5 - np.asarray(audio))

    rows = [{"audio": beeped(text), "text": text} for text in TEXTS]
    others = MultimodalDataset(rows, letters, Other())
    MultimodalPretrainingTrainer(config).train(MultimodalDataset(rows, letters, beeps))
    with pytest.raises(ConfigError, match="has a run on other data"):
        MultimodalPretrainingTrainer(config).train(others)
    with pytest.raises(ConfigError, match="audio tokenizers that differ"):
        MultimodalPretrainingTrainer(config).train(dataset, others)


def test_long_waveforms_that_differ_inside_are_other_data(letters, beeps) -> None:
    wave = np.zeros(4000, np.float32)
    other = wave.copy()
    other[2000] = 1.0
    first, second = (MultimodalDataset([{"audio": w, "text": "a"}], letters, beeps, max_audio_duration=60.0).told() for w in (wave, other))
    assert first != second


def test_without_validation_data_there_is_a_model_and_no_score(config, dataset) -> None:
    model, metrics = MultimodalPretrainingTrainer(config).train(dataset)
    assert not metrics and model.generate_audio([1, 2], most_frames=2)


def test_every_setting_reaches_the_run(dataset) -> None:
    config = MultimodalPretrainingConfig(audio_sample_rate=100, learning_rate=3e-4, optimizer="adamw", seed=7, dropout=0.1)
    run = MultimodalPretrainingTrainer(config).run(dataset)
    assert (run.train.steps, run.train.batch_size, run.train.learning_rate, run.train.optimizer, run.train.seed) == (
        1000,
        8,
        3e-4,
        "adamw",
        7,
    )
    words = run.model.speech_lm
    assert (words.d_model, words.n_heads, words.n_layers, words.dropout) == (128, 4, 3, 0.1)
    assert words.context_length == dataset.config.context_length


def test_the_configuration_is_checked_when_it_is_made_and_when_it_changes() -> None:
    config = MultimodalPretrainingConfig()
    assert (config.d_model, config.n_heads, config.n_layers, config.batch_size, config.max_steps) == (128, 4, 3, 8, 1000)
    assert (config.max_audio_duration, config.audio_sample_rate, config.audio_weight, config.text_weight) == (10.0, 24_000, 1.0, 0.1)
    with pytest.raises(ValidationError, match="greater than 0"):
        config.audio_weight = 0.0
    with pytest.raises(ValidationError, match="d_modle"):
        MultimodalPretrainingConfig(d_modle=3)  # type: ignore[call-arg]
    with pytest.raises(ValidationError, match="multiple of n_heads"):
        config.n_heads = 5


def test_data_that_contradict_the_configuration_are_refused(config, dataset, letters, beeps) -> None:
    trainer = MultimodalPretrainingTrainer(config)
    with pytest.raises(ConfigError, match="batch_size 3, and the configuration 2"):
        trainer.train(*loaders(dataset, 3))
    with pytest.raises(ConfigError, match="needs a MultimodalDataset, found list"):
        trainer.train([1, 2])
    with pytest.raises(ConfigError, match="clips of up to 20 s"):
        trainer.train(MultimodalDataset(dataset.data, letters, beeps, max_audio_duration=20.0))
    config.audio_sample_rate = 24_000
    with pytest.raises(ConfigError, match="works at 100 Hz"):
        trainer.train(dataset)


@pytest.mark.slow
def test_the_examples_train_resume_speak_and_write(tmp_path: Path) -> None:
    torch.manual_seed(0)
    codec = OmniModel(preset("nano"), ["codec"])
    save_model(tmp_path / "codec", codec.tensors(), codec.config, codec.components, None)
    lines = []
    for i, text in enumerate(["A cat sat here.", "The old house."]):
        save_audio(tmp_path / f"{i}.wav", np.random.default_rng(i).standard_normal(16_000).astype(np.float32) * 0.1, 16_000)
        lines.append(f'{{"audio": "{i}.wav", "text": "{text}"}}\n')
    (tmp_path / "rows.jsonl").write_text("".join(lines))

    def example(*arguments: str) -> str:
        command = [sys.executable, f"examples/{arguments[0]}.py", *arguments[1:]]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT), "PATH": ""}, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    common = (str(tmp_path / "rows.jsonl"), "--codec", str(tmp_path / "codec"), "--out", str(tmp_path / "run"), "--batch-size", "2")
    assert "parameters in" in example("train_speech_lm", *common, "--max-steps", "2")
    example("resume_speech_lm", *common, "--max-steps", "3")
    assert (tmp_path / "run/checkpoints/step-00000003").is_dir()
    assert " s from " in example("text_to_audio", str(tmp_path / "run"), "A cat.", str(tmp_path / "out.wav"))
    assert example("audio_to_text", str(tmp_path / "run"), str(tmp_path / "0.wav")).endswith("\n")
