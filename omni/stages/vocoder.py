"""Stage D, second part: the vocoder learns to make waveforms from log-mels, at first by spectral distance, then against discriminators too.

With a codec in init_from, `data.codec_share` of its examples are log-mels that went through the codec: it learns to make natural sound of
what the codec has smoothed."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omni.codec import MelCodec
from omni.config import RunConfig
from omni.data.collate import VocoderBatch
from omni.discriminators import Discriminators, adversarial_loss, feature_matching_loss, hinge_loss, per_clip
from omni.errors import CheckpointError
from omni.omni_model import OmniModel, with_section
from omni.stages.base import OmniStage
from omni.stages.data import vocoder_splits
from omni.training.spectral import SpectralDistance
from omni.training.stage import Context, Objective, Splits, Term
from omni.vocoder import NOISE_FRAMES, NeuralVocoder

PITCH_WEIGHT, ADVERSARIAL_WEIGHT, MATCHING_WEIGHT = 0.05, 0.1, 0.2  # beside a spectral distance of weight 1
QUARTER_TONE = 2 ** (1 / 24)


class VocoderGame(nn.Module):
    """The vocoder with its opponents."""

    def __init__(self, omni: OmniModel) -> None:
        super().__init__()
        self.omni = omni
        self.discriminators = Discriminators(omni.config.vocoder.discriminator_channels)
        self.distance = SpectralDistance(omni.config.audio)

    @property
    def vocoder(self) -> NeuralVocoder:
        """The one that trains."""
        assert isinstance(self.omni.vocoder, NeuralVocoder)
        return self.omni.vocoder


class VocoderStage(OmniStage[VocoderBatch]):
    """`muomni train vocoder --config configs/vocoder_tiny.json`: multi-resolution log-mel distance, and after `train.adversarial_after`
    updates the verdicts of the discriminators and their features."""

    name = "vocoder"
    best_metric, best_mode = "distance", "min"
    unit = "clips"
    trains = ("vocoder",)

    def __init__(self, run: RunConfig) -> None:
        super().__init__(run)
        self.codec = self._codec()
        if self.codec is None and run.data.codec_share:
            raise CheckpointError(
                f"stage vocoder: data.codec_share {run.data.codec_share:g} needs a trained codec, and none of init_from "
                f"({', '.join(run.init_from) or 'empty'}) has one; name its folder or set the share to 0"
            )

    def _codec(self) -> MelCodec | None:
        """The codec of init_from, frozen. It is not part of the model: it makes examples."""
        saved = self.sources.get("codec")
        if saved is None:
            return None
        model = OmniModel(with_section(self.config, "codec", saved.config), ["codec"])
        model.load_components(saved)
        return model.codec.eval().requires_grad_(False)

    def _resynthesise(self, mel: Tensor) -> Tensor:
        """mel (T,mels) → what the codec makes of it (T,mels)."""
        assert self.codec is not None
        return self.codec.decode(self.codec.encode(mel[None]))[0, : len(mel)]

    def build_model(self) -> VocoderGame:
        return VocoderGame(self.build_omni())

    def omni_of(self, model: nn.Module) -> OmniModel:
        assert isinstance(model, VocoderGame)
        return model.omni

    def build_data(self) -> Splits[VocoderBatch]:
        return vocoder_splits(self.run, self.config, self._resynthesise if self.codec is not None else None)

    def objectives(self, model: VocoderGame) -> list[Objective]:
        sides = (model.vocoder, model.discriminators)
        return [Objective(name, list(side.parameters())) for name, side in zip(("vocoder", "discriminators"), sides, strict=True)]

    def counts(self, batch: VocoderBatch) -> dict[str, int]:
        terms = dict.fromkeys(("spectral", "adversarial", "matching", "hinge"), len(batch.mel))
        return terms | {"pitch": batch.pitch_hz.numel()}

    def loss(self, model: VocoderGame, batch: VocoderBatch, context: Context) -> dict[str, Term]:
        """Of one of the two sides. The vocoder moves first; both see the same clips."""
        n, judged = len(batch.mel), context.step >= self.run.train.adversarial_after
        if context.objective == "discriminators":
            return {"hinge": Term(self._hinge(model, batch) if judged else _nothing(model.discriminators), n)}
        made, logits = self._made(model, batch)
        pitch = F.cross_entropy(logits.flatten(0, 1), model.vocoder.pitch_ids(batch.pitch_hz).flatten(), reduction="sum")
        terms = {
            "spectral": Term(model.distance(made, batch.waveform).sum(), n),
            "pitch": Term(pitch, batch.pitch_hz.numel(), PITCH_WEIGHT),
        }
        if judged:
            with torch.no_grad():
                real = model.discriminators(batch.waveform)
            fake = model.discriminators(made)
            terms["adversarial"] = Term(adversarial_loss(fake).sum(), n, ADVERSARIAL_WEIGHT)
            terms["matching"] = Term(feature_matching_loss(real, fake).sum(), n, MATCHING_WEIGHT)
        return terms

    def _made(self, model: VocoderGame, batch: VocoderBatch) -> tuple[Tensor, Tensor]:
        """The clips at their own pitch, with noise that the discriminators cannot know by heart, and the logits of the pitch that the vocoder hears."""
        frame = int(torch.randint(NOISE_FRAMES, ()))
        return model.vocoder.generate(batch.mel, model.vocoder.pitch_ids(batch.pitch_hz), frame)

    def _hinge(self, model: VocoderGame, batch: VocoderBatch) -> Tensor:
        with torch.no_grad():
            made, _ = self._made(model, batch)
        return hinge_loss(model.discriminators(batch.waveform), model.discriminators(made)).sum()

    def evaluate(self, model: VocoderGame, batches: Iterable[VocoderBatch]) -> dict[str, float]:
        """Mean absolute error of the scaled log-mel, multi-resolution distance, and the share of frames whose pitch is off by a quarter tone or
        voiced by mistake, from log-mels of recordings and, if there is a codec, from those that went through it ("codec_…"). `distance` is
        the sum of mel and spectral errors."""
        log_mel = model.omni.log_mel
        errors: dict[str, list[Tensor]] = {}
        for batch in batches:
            made, logits = model.vocoder.generate(batch.mel)
            of_clip = {
                "mel": per_clip((log_mel(made) - log_mel(batch.waveform)).abs()),
                "spectral": model.distance(made, batch.waveform),
                "pitch_errors": per_clip(_is_off(model.vocoder, logits, batch.pitch_hz)),
            }
            for name, error in of_clip.items():
                for prefix, rows in (("", ~batch.through_codec), ("codec_", batch.through_codec)):
                    errors.setdefault(prefix + name, []).append(error[rows])
        metrics = {name: float(rows.mean()) for name, parts in errors.items() if len(rows := torch.cat(parts))}
        return {"distance": sum(error for name, error in metrics.items() if not name.endswith("pitch_errors")), **metrics}


def _is_off(vocoder: NeuralVocoder, logits: Tensor, pitch_hz: Tensor) -> Tensor:
    """Which frames (B,T) are heard as voiced that are not, or the other way round, or at a pitch more than a quarter tone away."""
    heard = logits.argmax(-1)
    ratio = vocoder.pitches_hz[heard] / pitch_hz.clamp(min=1.0)
    is_near = (ratio < QUARTER_TONE) & (ratio > 1 / QUARTER_TONE)
    return ((heard > 0) != (pitch_hz > 0)) | ((heard > 0) & ~is_near)


def _nothing(module: nn.Module) -> Tensor:
    """0, as a function of a parameter."""
    return next(module.parameters()).sum() * 0.0
