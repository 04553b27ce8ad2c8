"""Batches: what the stages' losses read. Everything is right-padded; labels are -100 where nothing is to be predicted.

B batch  T positions  N pictures  M clips"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from omni.audio import SILENCE
from omni.characters import PAD_ID
from omni.data.datasets import CaptionExample, ConversationExample, SpeechExample, TalkerExample, VocoderExample
from omni.tokenizer import BPETokenizer

IGNORE = -100
PAD_TOKEN = BPETokenizer.pad_id


@dataclass(frozen=True)
class Batch:
    """A batch whose tensors move together."""

    def to(self, device: torch.device) -> Self:
        """The same batch on `device`."""
        moved = {f.name: getattr(self, f.name).to(device) for f in fields(self) if isinstance(getattr(self, f.name), Tensor)}
        return replace(self, **moved)


@dataclass(frozen=True)
class TextBatch(Batch):
    """input_ids, labels (B,T)."""

    input_ids: Tensor
    labels: Tensor


@dataclass(frozen=True)
class SpeechBatch(Batch):
    """mel (B,T,mels), mel_lengths (B,), targets (B,S) characters, target_lengths (B,)."""

    mel: Tensor
    mel_lengths: Tensor
    targets: Tensor
    target_lengths: Tensor
    texts: tuple[str, ...]


@dataclass(frozen=True)
class CaptionBatch(Batch):
    """pixels (B,3,H,W); captions between begin of sequence and end of turn, caption_ids (B,C) with caption_lengths (B,); the conversations in
    which they are the answers, input_ids, labels (B,T), with pictures at image_slots (B,2) = (row, start)."""

    pixels: Tensor
    caption_ids: Tensor
    caption_lengths: Tensor
    input_ids: Tensor
    labels: Tensor
    image_slots: Tensor
    texts: tuple[str, ...]


@dataclass(frozen=True)
class TalkerBatch(Batch):
    """What is said (input_ids (B,T) with lengths (B,); char_ids and char_tokens (B,C) with char_lengths (B,)), by whom (voices (B,)), and
    how it sounds (mel (B,T',mels), mel_lengths (B,)); `clips` says where each comes from."""

    mel: Tensor
    mel_lengths: Tensor
    input_ids: Tensor
    lengths: Tensor
    char_ids: Tensor
    char_tokens: Tensor
    char_lengths: Tensor
    voices: Tensor
    texts: tuple[str, ...]
    clips: tuple[str, ...]

    def with_text_of_neighbour(self) -> TalkerBatch:
        """The same sound with the text of the row before: does a model follow the text it is given?"""
        text = ("input_ids", "lengths", "char_ids", "char_tokens", "char_lengths")
        return replace(self, texts=self.texts[-1:] + self.texts[:-1], **{name: getattr(self, name).roll(1, 0) for name in text})


@dataclass(frozen=True)
class VocoderBatch(Batch):
    """Pieces of clips: waveform (B,n), pitch_hz (B,n/hop), mel (B,T,mels) with the look-ahead, and whether that went through the codec,
    through_codec (B,)."""

    mel: Tensor
    waveform: Tensor
    pitch_hz: Tensor
    through_codec: Tensor


@dataclass(frozen=True)
class ConversationBatch(Batch):
    """input_ids, labels (B,T); branches (B,T), 0 in what all conversations of a row share, n in what belongs to its nth; groups (B,T), numbers
    within a row of what the loss counts alike; pixels (N,3,H,W) with image_slots (N,2) = (row, start); mel (M,T',mels) and mel_lengths (M,) with
    audio_slots (M,3) = (row, start, length)."""

    input_ids: Tensor
    labels: Tensor
    branches: Tensor
    groups: Tensor
    pixels: Tensor
    image_slots: Tensor
    mel: Tensor
    mel_lengths: Tensor
    audio_slots: Tensor


def pad_ids(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Lists of ids → (B, longest)."""
    return pad_sequence([torch.as_tensor(row, dtype=torch.long) for row in rows], batch_first=True, padding_value=value)


def lengths_of(rows: Sequence[Any]) -> Tensor:
    """(B,)."""
    return torch.tensor([len(row) for row in rows], dtype=torch.long)


def pad_mels(mels: Sequence[Tensor]) -> Tensor:
    """(T_i, mels) each → (B, longest, mels), silence behind the end."""
    return pad_sequence(list(mels), batch_first=True, padding_value=SILENCE)


def shifted(ids: Sequence[Sequence[int]], spoken: Sequence[Sequence[bool]]) -> tuple[Tensor, Tensor]:
    """input_ids and labels (B, longest-1): position t predicts id t+1 where that is spoken."""
    labels = [[i if s else IGNORE for i, s in zip(row[1:], mask[1:], strict=True)] for row, mask in zip(ids, spoken, strict=True)]
    return pad_ids([row[:-1] for row in ids], PAD_TOKEN), pad_ids(labels, IGNORE)


def collate_text(examples: Sequence[Tensor]) -> TextBatch:
    """Packed (T+1,) each."""
    ids = torch.stack(list(examples)).long()
    return TextBatch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())


def collate_speech(examples: Sequence[SpeechExample]) -> SpeechBatch:
    """Clips with what is said in them."""
    targets = [example.targets for example in examples]
    mels = [example.mel for example in examples]
    return SpeechBatch(pad_mels(mels), lengths_of(mels), pad_ids(targets, PAD_ID), lengths_of(targets), tuple(e.text for e in examples))


def collate_captions(examples: Sequence[CaptionExample]) -> CaptionBatch:
    """Pictures with captions."""
    ids = [example.caption_ids for example in examples]
    input_ids, labels = shifted([e.rendered.input_ids for e in examples], [e.rendered.loss_mask for e in examples])
    return CaptionBatch(
        pixels=torch.stack([e.pixels for e in examples]),
        caption_ids=pad_ids(ids, PAD_TOKEN),
        caption_lengths=lengths_of(ids),
        input_ids=input_ids,
        labels=labels,
        image_slots=torch.tensor([(row, e.rendered.media[0].start) for row, e in enumerate(examples)], dtype=torch.long),
        texts=tuple(e.text for e in examples),
    )


def collate_talker(examples: Sequence[TalkerExample]) -> TalkerBatch:
    """Clips with the reply that they speak."""
    replies = [example.reply for example in examples]
    mels = [example.mel for example in examples]
    return TalkerBatch(
        mel=pad_mels(mels),
        mel_lengths=lengths_of(mels),
        input_ids=pad_ids([r.input_ids for r in replies], PAD_TOKEN),
        lengths=lengths_of([r.input_ids for r in replies]),
        char_ids=pad_ids([r.char_ids for r in replies], PAD_ID),
        char_tokens=pad_ids([r.char_tokens for r in replies], 0),
        char_lengths=lengths_of([r.char_ids for r in replies]),
        voices=torch.tensor([e.voice for e in examples]),
        texts=tuple(e.text for e in examples),
        clips=tuple(e.clip for e in examples),
    )


def collate_vocoder(examples: Sequence[VocoderExample]) -> VocoderBatch:
    """Pieces of one length."""
    return VocoderBatch(
        torch.stack([e.mel for e in examples]),
        torch.stack([e.waveform for e in examples]),
        torch.stack([e.pitch_hz for e in examples]),
        torch.tensor([e.through_codec for e in examples]),
    )


def collate_conversations(examples: Sequence[ConversationExample]) -> ConversationBatch:
    """Conversations with their pictures and clips."""
    input_ids, labels = shifted([e.input_ids for e in examples], [e.loss_mask for e in examples])
    images = [(row, start, pixels) for row, e in enumerate(examples) for start, pixels in e.images]
    clips = [(row, start, length, mel) for row, e in enumerate(examples) for start, length, mel in e.clips]
    mels = [mel for *_, mel in clips]
    return ConversationBatch(
        input_ids,
        labels,
        pad_ids([e.branches[:-1] for e in examples], 0),
        pad_ids([e.groups[:-1] for e in examples], 0),
        torch.stack([pixels for *_, pixels in images]) if images else torch.zeros(0, 3, 1, 1),
        torch.tensor([slot[:2] for slot in images], dtype=torch.long).view(-1, 2),
        pad_mels(mels) if mels else torch.zeros(0, 1, 1),
        lengths_of(mels),
        torch.tensor([slot[:3] for slot in clips], dtype=torch.long).view(-1, 3),
    )
