"""The trainer of the second system as its document has it: a face of the one Trainer.

config = MultimodalPretrainingConfig()
model, metrics = MultimodalPretrainingTrainer(config).train(train_loader, val_loader)
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from omni.checkpoint import load_model
from omni.config import MultimodalPretrainingConfig, RunConfig, SpeechLMConfig, parse, read_json
from omni.data.multimodal import MultimodalBatch, MultimodalDataset
from omni.errors import ConfigError
from omni.speech_lm import TEXT_TOKENIZER, MultimodalLLM
from omni.speech_tokens import TextTokenizer
from omni.stages.speech_lm import SpeechLMStage
from omni.tokenizer import BPETokenizer
from omni.training.stage import Splits
from omni.training.trainer import train

SAMPLE, CLIPS = 100, 2  # texts and clips by which tokenizers are compared


class _GivenDataStage(SpeechLMStage):
    """Stage speech-lm on data sets that are there already."""

    needs = ()

    def __init__(self, run: RunConfig, train_data: MultimodalDataset, validation: MultimodalDataset | None) -> None:
        super().__init__(run)
        self._data = train_data, validation
        own: TextTokenizer = train_data.text_tokenizer
        self.tokenizer = own if isinstance(own, BPETokenizer) else None

    def build_data(self) -> Splits[MultimodalBatch]:
        train_data, validation = self._data
        return self.splits(train_data, [] if validation is None else validation)


class MultimodalPretrainingTrainer:
    """Trains a `MultimodalLLM` in `config.output_dir`. The same call again continues a run that was interrupted, or one whose `max_steps` was
    raised."""

    def __init__(self, config: MultimodalPretrainingConfig) -> None:
        self.config = config

    @property
    def _folder(self) -> Path:
        return Path(self.config.output_dir)

    def train(
        self, train_loader: Any, val_loader: Any = None, *, resume: bool = True, device: str | None = None
    ) -> tuple[MultimodalLLM, dict[str, float]]:
        """The model (its best, by the loss on the validation data, if there are any) and its scores. Loaders are DataLoaders over a
        `MultimodalDataset`, or such data sets themselves: of a DataLoader only the data set is used, since the order is the Trainer's, so that a
        run can be continued. Raises ConfigError where data and configuration contradict each other, or where `output_dir` has a run on other data."""
        train_data, validation = _data_of(train_loader), None if val_loader is None else _data_of(val_loader)
        for data in (train_data, validation):
            if data is not None:
                self._check(data)
        if validation is not None:
            _check_alike(train_data, validation)
        if (size := getattr(train_loader, "batch_size", self.config.batch_size)) != self.config.batch_size:
            raise ConfigError(f"train_loader has batch_size {size}, and the configuration {self.config.batch_size}; make them equal")
        run = self.run(train_data)
        if resume and (there := self._folder / "run.json").exists() and read_json(there)["data"]["train"] != list(run.data.train):
            raise ConfigError(f"{self._folder}: has a run on other data; name another output_dir, or give resume=False to begin anew")
        if (keep := getattr(train_data.text_tokenizer, "save_pretrained", None)) is not None:  # one of Transformers
            keep(self._folder / TEXT_TOKENIZER)
        train(_GivenDataStage(run, train_data, validation), resume=resume, device=device)
        saved = load_model(self.config.output_dir)
        return MultimodalLLM.from_saved(saved), dict(saved.extra["metrics"])

    def _check(self, data: MultimodalDataset) -> None:
        config, rate = self.config, data.audio_tokenizer.sample_rate_hz
        if rate != config.audio_sample_rate:
            raise ConfigError(f"audio_sample_rate {config.audio_sample_rate}: the audio tokenizer works at {rate} Hz; set it to that")
        if data.max_audio_duration != config.max_audio_duration:
            raise ConfigError(
                f"max_audio_duration {config.max_audio_duration:g}: the data set has clips of up to {data.max_audio_duration:g} s; "
                "give it max_audio_duration=config.max_audio_duration"
            )

    def run(self, data: MultimodalDataset) -> RunConfig:
        """The configuration as the Trainer has it. How sequences are made, and how long they may be, is for the data set's to say; instead of
        files it names what the data set holds."""
        config, told = self.config, data.told()
        held = repr((told, data.heard(CLIPS)))
        words: SpeechLMConfig = data.config.model_copy(
            update={
                "d_model": config.d_model,
                "n_heads": config.n_heads,
                "n_kv_heads": config.n_kv_heads,
                "n_layers": config.n_layers,
                "d_ff": config.d_ff,
                "dropout": config.dropout,
                "audio_weight": config.audio_weight,
                "text_weight": config.text_weight,
            }
        )
        raw = {
            "stage": "speech-lm",
            "model": {"speech_lm": words.model_dump()},
            "data": {"train": [f"{len(told)} pairs {hashlib.sha256(held.encode()).hexdigest()[:16]}"]},
            "train": {
                "steps": config.max_steps,
                "batch_size": config.batch_size,
                "micro_batch_size": config.batch_size,
                "optimizer": config.optimizer,
                "learning_rate": config.learning_rate,
                "warmup_steps": min(config.warmup_steps, config.max_steps),
                "weight_decay": config.weight_decay,
                "evaluate_every": config.eval_every,
                "checkpoint_every": config.save_every,
                "seed": config.seed,
            },
            "out_dir": config.output_dir,
        }
        return parse(RunConfig, raw, "MultimodalPretrainingConfig")


def _check_alike(train_data: MultimodalDataset, validation: MultimodalDataset) -> None:
    """Raises ConfigError unless sequences of both mean the same."""
    sides = [(data.vocabulary, data.config.voices, data.config.lead_frames, data.config.lag_frames) for data in (train_data, validation)]
    if sides[0] != sides[1]:
        raise ConfigError(
            "training and validation data have other ids, voices or orders; make both with the same tokenizers and configuration"
        )
    if validation.told(SAMPLE) != validation.told(SAMPLE, train_data.text_tokenizer):
        raise ConfigError("training and validation data have text tokenizers that differ; make both with the same one")
    if validation.heard(CLIPS) != validation.heard(CLIPS, train_data.audio_tokenizer):
        raise ConfigError("training and validation data have audio tokenizers that differ; make both with the same one")


def _data_of(loader: Any) -> MultimodalDataset:
    data = getattr(loader, "dataset", loader)
    if not isinstance(data, MultimodalDataset):
        raise ConfigError(
            f"a loader needs a MultimodalDataset, found {type(data).__name__}; for a part of the data make a data set of its rows"
        )
    return data
