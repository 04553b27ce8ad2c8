"""The speech LM: one language model learns to say text and to write down sound (omni.speech_lm).

The codes are those of a trained codec. Where text and sound are side by side, a trained audio encoder says when each text id is said; neither
is part of the model, and neither changes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import soxr
import torch
from torch import Tensor, nn

from omni.audio_tokenizers import SPEAKING, CodecTokenizer, SNACTokenizer
from omni.characters import encode_characters
from omni.config import RunConfig
from omni.data.collate import IGNORE
from omni.data.datasets import without_infeasible_clips
from omni.data.manifests import Manifests
from omni.data.multimodal import MultimodalBatch, MultimodalDataset, TimesOfIds
from omni.errors import ConfigError, DataError
from omni.omni_model import OmniModel, with_section
from omni.speech_lm import COMPONENT, MultimodalLLM
from omni.stages.base import OmniStage
from omni.stages.data import open_splits, own_tokenizer
from omni.tokenizer import BPETokenizer
from omni.training.losses import CHUNK_LOGITS, next_token_loss
from omni.training.stage import Context, Examples, Export, Splits, Term

MODALITIES = ("audio", "text")  # what the model decides: sound when it speaks, text when it hears


def ctc_aligner(model: OmniModel, tokenizer: BPETokenizer, sample_rate_hz: int) -> TimesOfIds:
    """When each text id is said in a waveform at `sample_rate_hz`: where the audio encoder names the last of its characters."""
    own_rate_hz = model.config.audio.sample_rate_hz

    def times(wave: np.ndarray, ids: list[int], clip: str) -> list[float]:
        characters: list[int] = []
        n_until = []  # characters up to the end of each id
        for piece in tokenizer.pieces(ids):
            characters += encode_characters(piece)
            n_until.append(len(characters))
        if sample_rate_hz != own_rate_hz:
            wave = soxr.resample(wave, sample_rate_hz, own_rate_hz)
        mel = model.log_mel(torch.from_numpy(wave))
        named, n_slots = model.audio_encoder.named_at(mel, characters)
        if named is None:
            raise DataError(f"{clip}: {len(mel)} frames are too short for the {len(characters)} characters of its text")
        slot_s = len(wave) / own_rate_hz / n_slots
        return [named[n - 1] * slot_s if n else 0.0 for n in n_until]

    return times


class SpeechLMStage(OmniStage[MultimodalBatch]):
    """`muomni train speech-lm --config configs/speech_lm_tiny.json`: next-token loss on what the grammar leaves to choose, a mean over all
    targets, weighted by what they are of."""

    name = "speech-lm"
    best_metric, best_mode = "loss", "min"
    unit = "tokens"
    needs: tuple[str, ...] = ("codec",)

    def __init__(self, run: RunConfig) -> None:
        """Raises ConfigError for a speech LM in `init_from`: one always begins anew."""
        words = run.model.speech_lm
        if self.needs:  # else the data are there already
            sounds = ("codec",) if words.snac is None else ()
            self.needs = (*sounds, "audio_encoder") if words.side_by_side else sounds
        super().__init__(run)
        if COMPONENT in self.sources:
            raise ConfigError(f"{self.sources[COMPONENT]}: a speech LM begins anew; leave it out of init_from")
        if "vocoder" in self.sources and "codec" in self.needs:
            self.needs = (*self.needs, "vocoder")
            self.config = self._config()

    # --- data

    def build_data(self) -> Splits[MultimodalBatch]:
        words, parts = self.config.speech_lm, self.build_omni().eval()
        train, validation = (self._usable(rows) for rows in open_splits(self.run, ("audio", "text")))
        self.tokenizer = own_tokenizer(self.run, train, words.text_vocab_size)
        sounds = CodecTokenizer(parts, words.codebooks) if words.snac is None else SNACTokenizer(words.snac)
        aligner = ctc_aligner(parts, self.tokenizer, sounds.sample_rate_hz) if words.side_by_side else None
        limit_s = self.run.data.max_audio_s
        sides = [
            MultimodalDataset(rows, self.tokenizer, sounds, config=words, max_audio_duration=limit_s, aligner=aligner)
            for rows in (train, validation)
        ]
        return self.splits(sides[0], sides[1])

    def _usable(self, rows: Manifests) -> Manifests:
        return without_infeasible_clips(rows, self.config) if self.config.speech_lm.side_by_side else rows

    def splits(self, train: MultimodalDataset, validation: Examples) -> Splits[MultimodalBatch]:
        """These data, and from now on a model that has their vocabulary."""
        self.sounds = train.audio_tokenizer
        vocabulary = train.vocabulary
        sizes = {
            "text_vocab_size": vocabulary.text_size,
            "codebook_size": vocabulary.layout.codebook_size,
            "code_rates": vocabulary.layout.rates,
        }
        self.config = self.config.model_copy(update={"speech_lm": self.config.speech_lm.model_copy(update=sizes)})
        return Splits(train, validation, train.collate, length=lambda example: len(example.ids))

    # --- model

    def build_model(self) -> MultimodalLLM:
        return MultimodalLLM(self.config.speech_lm)

    @torch.no_grad()
    def prepare(self, model: MultimodalLLM, batch: MultimodalBatch) -> None:
        """Codes of our codec that sound alike begin alike: half the variance of a code's row is from what the code adds to the codec's latents, turned
        by one random rotation into the model's width, so that the sum of a frame's rows tells the latent."""
        if not isinstance(self.sounds, CodecTokenizer):
            return
        rows, codes = model.tok_emb.weight, model.vocabulary.audio
        meaning = torch.cat(self.sounds.model.codec.rvq.vectors())[: len(codes)].to(rows)
        turned = meaning @ nn.init.orthogonal_(torch.empty(meaning.shape[1], rows.shape[1])).to(rows)
        own = rows[codes.start : codes.stop]
        own.copy_((own + turned * own.std() / turned.std()) / math.sqrt(2))

    def items(self, batch: MultimodalBatch, n_examples: int) -> int:
        return int(batch.lengths.sum())

    def counts(self, batch: MultimodalBatch) -> dict[str, int]:
        return {name: int((self._labels(batch, name) != IGNORE).sum()) for name in MODALITIES}

    def _labels(self, batch: MultimodalBatch, modality: str) -> Tensor:
        """(B,T) with the labels of one modality alone."""
        own = batch.speaks if modality == "audio" else ~batch.speaks
        return batch.labels.masked_fill(~own[:, None], IGNORE)

    def _weights(self) -> dict[str, float]:
        words = self.config.speech_lm
        return {"audio": words.audio_weight, "text": words.text_weight}

    def loss(self, model: MultimodalLLM, batch: MultimodalBatch, context: Context) -> dict[str, Term]:
        """Σ weight · nats / Σ weight over the targets of the global batch. While it speaks the text is known, and the model only decides when its
        next id comes: there the nats are those of any text."""
        hidden = model.hidden_states(self._untold(model, batch.input_ids))
        weights = self._weights()
        whole = max(sum(weights[name] * context.totals.get(name, 0) for name in MODALITIES), 1e-9)
        terms = {}
        for name in MODALITIES:
            term = _nats(model, hidden, self._labels(batch, name), name)
            # the Trainer divides by the modality's own count: with this weight the quotient is the one above
            terms[name] = Term(term.sum, term.count, weights[name] * context.totals.get(name, 0) / whole)
        return terms

    def _untold(self, model: MultimodalLLM, ids: Tensor) -> Tensor:
        """In training some codes are hidden, so that the model leans on the text when it speaks, and on more than one code when it hears."""
        share, codes = self.config.speech_lm.code_dropout, model.vocabulary.audio
        if not (model.training and share):
            return ids
        hide = (ids >= codes.start) & (ids < codes.stop) & (torch.rand(ids.shape, device=ids.device) < share)
        return ids.masked_fill(hide, model.vocabulary.hidden)

    def evaluate(self, model: MultimodalLLM, batches: Iterable[MultimodalBatch]) -> dict[str, float]:
        """The loss; perplexity and accuracy of the codes that are said and the text that is written; and of when something comes: a frame, an end,
        text that is known."""
        nats, right, count = (dict.fromkeys((*MODALITIES, "timing"), 0.0) for _ in range(3))
        weights, weighted, whole = self._weights(), 0.0, 0.0
        for batch in batches:
            hidden = model.hidden_states(batch.input_ids)
            for modality in MODALITIES:
                labels = self._labels(batch, modality)
                ids = model.vocabulary.audio if modality == "audio" else model.vocabulary.text
                is_said = (labels >= ids.start) & (labels < ids.stop)
                for name, own in ((modality, labels.masked_fill(~is_said, IGNORE)), ("timing", labels.masked_fill(is_said, IGNORE))):
                    term = _nats(model, hidden, own, modality)
                    nats[name] += term.sum.item()
                    right[name] += _n_right(model, hidden, own, modality)
                    count[name] += int(term.count)
                    weighted, whole = weighted + weights[modality] * term.sum.item(), whole + weights[modality] * int(term.count)
        metrics = {"loss": weighted / max(whole, 1e-9)}
        for name, n in count.items():
            metrics[f"{name}_perplexity"] = math.exp(min(nats[name] / max(n, 1), 50.0))
            metrics[f"{name}_accuracy"] = right[name] / max(n, 1)
        return metrics

    def export(self, model: nn.Module) -> Export:
        """The language model, with its text tokenizer and with what makes sound of its codes."""
        tensors = {f"{COMPONENT}.{name}": tensor for name, tensor in model.state_dict().items()}
        components, config, extra = [COMPONENT], self.config, {"stage": self.name}
        if isinstance(self.sounds, CodecTokenizer):
            speaking = [name for name in self.sounds.model.components if name in SPEAKING]
            components += speaking
            tensors |= self.sounds.model.tensors(speaking)
            for name in ("audio", *speaking):
                config = with_section(config, name, self.sounds.model.config)
        elif isinstance(self.sounds, SNACTokenizer):
            folder = Path(self.sounds.name)
            extra["snac"] = str(folder.resolve()) if folder.is_dir() else self.sounds.name
        return Export(tensors, config, components, self.tokenizer.serialized if self.tokenizer is not None else None, extra)


def _nats(model: MultimodalLLM, hidden: Tensor, labels: Tensor, modality: str) -> Term:
    """Of the labels (B,T) of a modality, given the states (B,T,d)."""
    due = _text_is_due(model, labels, modality)
    term = next_token_loss(hidden, model.lm_head, labels.masked_fill(due, IGNORE))
    logits = model.lm_head(hidden[due]).float()  # (N,V), N the texts' ids
    any_text = (logits.logsumexp(-1) - logits[:, : model.vocabulary.text_size].logsumexp(-1)).sum()
    return Term(term.sum + any_text, term.count + int(due.sum()))


def _text_is_due(model: MultimodalLLM, labels: Tensor, modality: str) -> Tensor:
    """(B,T): where text comes that is known."""
    return (labels >= 0) & (labels < model.vocabulary.text_size) & (modality == "audio")


def _n_right(model: MultimodalLLM, hidden: Tensor, labels: Tensor, modality: str) -> int:
    """How many of the labels (B,T) are the likeliest id, given the states (B,T,d); of known text, any of text."""
    rows = (labels != IGNORE).nonzero(as_tuple=True)
    due = _text_is_due(model, labels, modality)
    right = 0
    for h, y, known in zip(*(x[rows].split(max(1, CHUNK_LOGITS // model.config.vocab_size)) for x in (hidden, labels, due)), strict=True):
        likeliest = model.lm_head(h).argmax(-1)
        right += int(torch.where(known, likeliest < model.vocabulary.text_size, likeliest == y).sum())
    return right
