"""From manifest rows to examples: media decoded, text tokenised. What cannot be read stops with the manifest's file and line."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from omni.audio import LogMel, decode_audio
from omni.characters import encode_characters
from omni.chat import MediaBudget, Rendered, Reply, render, render_reply
from omni.config import ModelConfig
from omni.data.manifests import Manifests, Rows
from omni.errors import DataError
from omni.image import decode_image, to_pixels
from omni.tokenizer import BPETokenizer


@contextmanager
def _at(rows: Rows, number: int) -> Iterator[None]:
    """Adds the manifest's file and line to what goes wrong."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{rows.where(number)}: {error}") from None


def media_bytes(rows: Rows, value: Any) -> tuple[bytes, str]:
    """The bytes of a media field and a name for errors: a path relative to the manifest, or a Hugging Face {"bytes", "path"}."""
    if isinstance(value, dict) and value.get("bytes"):
        return value["bytes"], str(value.get("path") or "embedded media")
    path = rows.path(value["path"] if isinstance(value, dict) else value)
    try:
        return path.read_bytes(), str(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


class MelReader:
    """Clips as scaled log-mel (T,mels), no longer than `max_audio_s`; the most recent ones are kept, `cache_frames` frames of them."""

    def __init__(self, config: ModelConfig, max_audio_s: float, cache_frames: int = 400_000) -> None:
        self.log_mel = LogMel(config.audio)
        self.max_audio_s, self.cache_frames = max_audio_s, cache_frames
        self._cache: OrderedDict[Any, Tensor] = OrderedDict()
        self._cached_frames = 0

    def __call__(self, rows: Rows, value: Any) -> Tensor:
        """The clip in a row's media field. Raises DataError if it is unreadable or too long."""
        key = (str(rows.root), value) if isinstance(value, str) else None
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key].float()
        data, name = media_bytes(rows, value)
        rate = self.log_mel.config.sample_rate_hz
        wave = decode_audio(data, name, rate)
        if len(wave) > self.max_audio_s * rate:
            raise DataError(f"{name}: {len(wave) / rate:.1f} s exceed data.max_audio_s {self.max_audio_s:g}; cut the clip or raise the limit")
        mel = self.log_mel(torch.from_numpy(wave))
        if key is not None:
            self._remember(key, mel)
        return mel

    def _remember(self, key: Any, mel: Tensor) -> None:
        self._cache[key] = mel.half()
        self._cached_frames += len(mel)
        while self._cached_frames > self.cache_frames:
            _, old = self._cache.popitem(last=False)
            self._cached_frames -= len(old)


@dataclass(frozen=True)
class SpeechExample:
    """mel (T,mels), the character ids of the text, the text."""

    mel: Tensor
    targets: list[int]
    text: str


class SpeechDataset:
    """Rows {"audio", "text"}."""

    def __init__(self, rows: Manifests, config: ModelConfig, max_audio_s: float) -> None:
        self.rows = rows
        self._mel = MelReader(config, max_audio_s)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> SpeechExample:
        row, source, number = self.rows[index]
        with _at(source, number):
            return SpeechExample(self._mel(source, row["audio"]).float(), encode_characters(row["text"]), row["text"])


@dataclass(frozen=True)
class CaptionExample:
    """pixels (3,H,W); ids of <bos> caption <|end|>; the caption."""

    pixels: Tensor
    input_ids: list[int]
    text: str


class CaptionDataset:
    """Rows {"image", "caption"}."""

    def __init__(self, rows: Manifests, config: ModelConfig, tokenizer: BPETokenizer) -> None:
        self.rows, self.image_size, self.tokenizer = rows, config.vision_encoder.image_size, tokenizer

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> CaptionExample:
        row, source, number = self.rows[index]
        with _at(source, number):
            pixels = to_pixels(decode_image(*media_bytes(source, row["image"])), self.image_size)
        ids = [self.tokenizer.bos_id, *self.tokenizer.encode(row["caption"]), self.tokenizer.end_id]
        return CaptionExample(pixels, ids, row["caption"])


@dataclass(frozen=True)
class TalkerExample:
    """mel (T,mels), the reply that it speaks, the voice's number."""

    mel: Tensor
    reply: Reply
    voice: int
    text: str


class TalkerDataset:
    """Rows {"audio", "text", "speaker"?}; a row without speaker is the first voice."""

    def __init__(self, rows: Manifests, config: ModelConfig, tokenizer: BPETokenizer, max_audio_s: float) -> None:
        self.rows, self.tokenizer, self.voices = rows, tokenizer, config.talker.voices
        self._mel = MelReader(config, max_audio_s)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> TalkerExample:
        row, source, number = self.rows[index]
        with _at(source, number):
            speaker = row.get("speaker", self.voices[0])
            if speaker not in self.voices:
                raise DataError(f"speaker {speaker!r} is not among the voices of the configuration: {', '.join(self.voices)}")
            mel = self._mel(source, row["audio"]).float()
            return TalkerExample(mel, render_reply(row["text"], self.tokenizer), self.voices.index(speaker), row["text"])


@dataclass(frozen=True)
class ConversationExample:
    """A rendered conversation, its pictures as (start, pixels) and its clips as (start, length, mel)."""

    rendered: Rendered
    images: list[tuple[int, Tensor]]
    clips: list[tuple[int, int, Tensor]]


class ConversationDataset:
    """Rows {"messages"}; pictures and clips are paths relative to the manifest."""

    def __init__(self, rows: Manifests, config: ModelConfig, tokenizer: BPETokenizer, max_audio_s: float) -> None:
        self.rows, self.config, self.tokenizer = rows, config, tokenizer
        self._mel = MelReader(config, max_audio_s)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> ConversationExample:
        row, source, number = self.rows[index]
        with _at(source, number):
            return self._example(row["messages"], source)

    def _example(self, messages: Sequence[dict[str, Any]], source: Rows) -> ConversationExample:
        mels: dict[str, Tensor] = {}

        def audio_tokens(value: str) -> int:
            mels[value] = self._mel(source, value).float()
            return -(-len(mels[value]) // self.config.audio_encoder.downsample)

        budget = MediaBudget(self.config.vision_encoder.n_image_tokens, audio_tokens, self.config.max_audio_tokens)
        rendered = render(messages, self.tokenizer, budget, self.config.thinker.context_length)
        images, clips = [], []
        for span in rendered.media:
            if span.kind == "image":
                pixels = to_pixels(decode_image(*media_bytes(source, span.source)), self.config.vision_encoder.image_size)
                images.append((span.start, pixels))
            else:
                clips.append((span.start, span.length, mels[span.source]))
        return ConversationExample(rendered, images, clips)

