"""From manifest rows to examples: media decoded, text tokenised. What cannot be read stops with the manifest's file and line."""

from __future__ import annotations

import io
import logging
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Generic, TypeVar

import soundfile
import torch
from torch import Tensor

from omni.audio import LogMel, decode_audio
from omni.characters import encode_characters
from omni.chat import DESCRIBE, MediaBudget, Message, Rendered, Reply, render, render_reply
from omni.config import DataConfig, ModelConfig
from omni.data.manifests import Manifests, Row, Rows
from omni.errors import DataError
from omni.image import decode_image, to_pixels
from omni.tokenizer import BPETokenizer

log = logging.getLogger(__name__)
E = TypeVar("E")


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
    value = value.get("path") if isinstance(value, dict) else value
    if not isinstance(value, str):
        raise DataError(f"neither the bytes nor the path of a file, found {value!r:.80}")
    path = rows.path(value)
    try:
        return path.read_bytes(), str(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


class MelReader:
    """Clips as scaled log-mel (T,mels), no longer than `data.max_audio_s`; the most recent `data.cached_hours` of them are kept.

    Kept ones are in float16, so all are rounded to that: a clip is the same whether or not it was kept, and a resumed run reads the same.
    """

    def __init__(self, config: ModelConfig, data: DataConfig) -> None:
        self.log_mel = LogMel(config.audio)
        self.max_audio_s, self.cache_frames = data.max_audio_s, int(data.cached_hours * 3600 * config.audio.mel_rate_hz)
        self._cache: OrderedDict[tuple[str, str], Tensor] = OrderedDict()
        self._cached_frames = 0

    def __call__(self, rows: Rows, value: Any) -> Tensor:
        """The clip in a row's media field. Raises DataError if it is unreadable or too long."""
        if not isinstance(value, str):
            return self._read(rows, value).float()
        key = (str(rows.root), value)
        if key in self._cache:
            self._cache.move_to_end(key)
        else:
            self._cache[key] = self._read(rows, value)
            self._cached_frames += len(self._cache[key])
        mel = self._cache[key]
        while self._cached_frames > self.cache_frames:
            _, old = self._cache.popitem(last=False)
            self._cached_frames -= len(old)
        return mel.float()

    def _read(self, rows: Rows, value: Any) -> Tensor:
        data, name = media_bytes(rows, value)
        rate = self.log_mel.config.sample_rate_hz
        wave = decode_audio(data, name, rate)
        if len(wave) > self.max_audio_s * rate:
            raise DataError(
                f"{name}: {len(wave) / rate:.1f} s exceed data.max_audio_s {self.max_audio_s:g}; cut the clip or raise the limit"
            )
        return self.log_mel(torch.from_numpy(wave)).half()


class ManifestDataset(ABC, Generic[E]):
    """Examples made from rows when they are asked for."""

    def __init__(self, rows: Manifests) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> E:
        row, source, number = self.rows[index]
        with _at(source, number):
            return self._example(row, source, number)

    @abstractmethod
    def _example(self, row: Row, source: Rows, number: int) -> E:
        """The example in a row, which is number `number` of `source`."""


def without_long_clips(rows: Manifests, max_audio_s: float) -> Manifests:
    """The rows but for those whose `duration_s` exceeds the limit: these are counted and reported. (A long clip whose row does not say so is an
    error when it is read.) Raises DataError when none is left."""
    short: list[int] = []
    example = ""
    for index in range(len(rows)):
        row, source, number = rows[index]
        with _at(source, number):
            duration_s = _number(row, "duration_s")
        if duration_s is None or duration_s <= max_audio_s:
            short.append(index)
        else:
            example = example or f"{source.where(number)} ({duration_s:g} s)"
    n_long = len(rows) - len(short)
    if not n_long:
        return rows
    found = f"{n_long} of {len(rows)} clips are longer than data.max_audio_s {max_audio_s:g}, the first at {example}"
    if not short:
        raise DataError(f"{found}: none is left; cut the clips or raise the limit")
    log.warning("%s: left out", found)
    return rows.choose(short)


def _number(row: Row, name: str) -> float | None:
    value = row.get(name)
    if value is None or value == "":
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        raise DataError(f"{name!r} should be a number, found {value!r:.80}") from None


@dataclass(frozen=True)
class SpeechExample:
    """mel (T,mels), the character ids of the text, the text."""

    mel: Tensor
    targets: list[int]
    text: str


class SpeechDataset(ManifestDataset[SpeechExample]):
    """Rows {"audio", "text", "duration_s"?}."""

    def __init__(self, rows: Manifests, config: ModelConfig, data: DataConfig) -> None:
        super().__init__(without_long_clips(rows, data.max_audio_s))
        self.config = config
        self._mel = MelReader(config, data)

    def _example(self, row: Row, source: Rows, number: int) -> SpeechExample:
        return SpeechExample(self._mel(source, row["audio"]), encode_characters(row["text"]), row["text"])

    def infeasible(self) -> list[str]:
        """`file:line` of every clip whose text does not fit into the CTC slots of its frames (Graves et al. 2006: a character that follows
        itself needs a blank between). Decodes no sound."""
        places = []
        audio, encoder = self.config.audio, self.config.audio_encoder
        for index in range(len(self.rows)):
            row, source, number = self.rows[index]
            with _at(source, number):
                data, name = media_bytes(source, row["audio"])
                duration_s = _duration_s(data, name)
            mel_frames = -(-round(duration_s * audio.sample_rate_hz) // audio.hop_samples)
            slots = -(-mel_frames // encoder.downsample) * encoder.ctc_slots
            if slots < slots_needed(encode_characters(row["text"])):
                places.append(source.where(number))
        return places


def slots_needed(targets: list[int]) -> int:
    """The fewest CTC steps that can spell `targets`."""
    return len(targets) + sum(a == b for a, b in pairwise(targets))


def _duration_s(data: bytes, name: str) -> float:
    try:
        return soundfile.info(io.BytesIO(data)).duration
    except soundfile.SoundFileError as error:
        raise DataError(f"{name}: not a readable audio file ({error}); use WAV, FLAC, Ogg or MP3") from None


@dataclass(frozen=True)
class CaptionExample:
    """pixels (3,H,W); ids of <bos> caption <|end|>; the conversation in which the caption answers DESCRIBE, the picture's place in it; the
    caption."""

    pixels: Tensor
    caption_ids: list[int]
    rendered: Rendered
    text: str


class CaptionDataset(ManifestDataset[CaptionExample]):
    """Rows {"image", "caption"}."""

    def __init__(self, rows: Manifests, config: ModelConfig, tokenizer: BPETokenizer) -> None:
        super().__init__(rows)
        self.config, self.tokenizer = config, tokenizer
        self._budget = MediaBudget(config.vision_encoder.n_image_tokens, lambda clip: 0, 0)

    def _example(self, row: Row, source: Rows, number: int) -> CaptionExample:
        pixels = to_pixels(decode_image(*media_bytes(source, row["image"])), self.config.vision_encoder.image_size)
        ids = [self.tokenizer.bos_id, *self.tokenizer.encode(row["caption"]), self.tokenizer.end_id]
        _check_length(ids, self.config.thinker.context_length, "caption")
        asked: Message = {"role": "user", "content": [{"type": "image", "image": row["image"]}, {"type": "text", "text": DESCRIBE}]}
        messages = [asked, {"role": "assistant", "content": row["caption"]}]
        rendered = render(messages, self.tokenizer, self._budget, self.config.thinker.context_length, strict=True)
        return CaptionExample(pixels, ids, rendered, row["caption"])


def _check_length(ids: list[int], context_length: int, name: str) -> None:
    if len(ids) > context_length:
        raise DataError(f"the {name} takes {len(ids)} positions, but the Thinker's context is {context_length}; shorten it")


@dataclass(frozen=True)
class TalkerExample:
    """mel (T,mels), the reply that it speaks, the voice's number."""

    mel: Tensor
    reply: Reply
    voice: int
    text: str


class TalkerDataset(ManifestDataset[TalkerExample]):
    """Rows {"audio", "text", "speaker"?, "duration_s"?}; a row without speaker is the first voice. Raises DataError for an unknown one."""

    def __init__(self, rows: Manifests, config: ModelConfig, tokenizer: BPETokenizer, data: DataConfig) -> None:
        super().__init__(without_long_clips(rows, data.max_audio_s))
        self.config, self.tokenizer = config, tokenizer
        self._mel = MelReader(config, data)
        for index in range(len(self.rows)):
            row, source, number = self.rows[index]
            with _at(source, number):
                self._voice(row)

    def _voice(self, row: Row) -> int:
        voices = self.config.talker.voices
        speaker = row.get("speaker") or voices[0]
        if speaker not in voices:
            raise DataError(f"speaker {speaker!r} is not among the voices of the configuration: {', '.join(voices)}")
        return voices.index(speaker)

    def _example(self, row: Row, source: Rows, number: int) -> TalkerExample:
        reply = render_reply(row["text"], self.tokenizer)
        _check_length(reply.input_ids, self.config.thinker.context_length, "text")
        return TalkerExample(self._mel(source, row["audio"]), reply, self._voice(row), row["text"])


@dataclass(frozen=True)
class ConversationExample:
    """A rendered conversation, its pictures as (start, pixels) and its clips as (start, length, mel)."""

    rendered: Rendered
    images: list[tuple[int, Tensor]]
    clips: list[tuple[int, int, Tensor]]


class ConversationDataset(ManifestDataset[ConversationExample]):
    """Rows {"messages"}; pictures and clips are paths relative to the manifest. What does not fit the context is logged once a row."""

    def __init__(self, rows: Manifests, config: ModelConfig, tokenizer: BPETokenizer, data: DataConfig) -> None:
        super().__init__(rows)
        self.config, self.tokenizer = config, tokenizer
        self._mel = MelReader(config, data)
        self.cut: set[str] = set()  # file:line of the conversations seen so far that did not fit whole

    def _example(self, row: Row, source: Rows, number: int) -> ConversationExample:
        mels: dict[int, Tensor] = {}  # by identity of the message's value

        def audio_tokens(value: Any) -> int:
            mels[id(value)] = self._mel(source, value)
            return -(-len(mels[id(value)]) // self.config.audio_encoder.downsample)

        budget = MediaBudget(self.config.vision_encoder.n_image_tokens, audio_tokens, self.config.max_audio_tokens)
        rendered = render(row["messages"], self.tokenizer, budget, self.config.thinker.context_length)
        where = source.where(number)
        if rendered.notices and where not in self.cut:
            self.cut.add(where)
            log.warning("%s: %s", where, "; ".join(rendered.notices))
        images, clips = [], []
        for span in rendered.media:
            if span.kind == "image":
                pixels = to_pixels(decode_image(*media_bytes(source, span.source)), self.config.vision_encoder.image_size)
                images.append((span.start, pixels))
            else:
                clips.append((span.start, span.length, mels[id(span.source)]))
        return ConversationExample(rendered, images, clips)
