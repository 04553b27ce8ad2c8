"""From manifest rows to examples: media decoded, text tokenised. What cannot be read stops with the manifest's file and line."""

from __future__ import annotations

import io
import logging
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import Any, Generic, TypeVar

import numpy as np
import soundfile
import torch
import torch.nn.functional as F
from torch import Tensor

from omni.alignment import SLOTS
from omni.audio import SILENCE, LogMel, decode_audio
from omni.characters import encode_characters
from omni.chat import DESCRIBE, MediaBudget, Message, Rendered, Reply, parts_of, render, render_reply
from omni.config import AudioConfig, DataConfig, ModelConfig
from omni.data.manifests import Manifests, Row, Rows
from omni.errors import DataError
from omni.image import decode_image, to_pixels
from omni.pitch import pitch_hz
from omni.tokenizer import BPETokenizer

log = logging.getLogger(__name__)
E = TypeVar("E")
INT16 = 32767


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


class SoundReader(Generic[E]):
    """What `make` makes of the waveforms (n,) of clips no longer than `data.max_audio_s`; for the most recent `data.cached_hours` of them it
    is kept."""

    def __init__(self, audio: AudioConfig, data: DataConfig, make: Callable[[Tensor], E]) -> None:
        self.rate, self.make = audio.sample_rate_hz, make
        self.max_audio_s, self.cache_samples = data.max_audio_s, int(data.cached_hours * 3600 * self.rate)
        self._cache: OrderedDict[tuple[str, str], tuple[E, int]] = OrderedDict()
        self._cached_samples = 0

    def __call__(self, rows: Rows, value: Any) -> E:
        """The clip in a row's media field. Raises DataError if it is unreadable or too long."""
        if not isinstance(value, str):
            return self._read(rows, value)[0]
        key = (str(rows.root), value)
        if key in self._cache:
            self._cache.move_to_end(key)
        else:
            self._cache[key] = self._read(rows, value)
            self._cached_samples += self._cache[key][1]
        made, _ = self._cache[key]
        while self._cached_samples > self.cache_samples:
            _, (_, n_samples) = self._cache.popitem(last=False)
            self._cached_samples -= n_samples
        return made

    def _read(self, rows: Rows, value: Any) -> tuple[E, int]:
        data, name = media_bytes(rows, value)
        wave = decode_audio(data, name, self.rate)
        if len(wave) > self.max_audio_s * self.rate:
            raise DataError(
                f"{name}: {len(wave) / self.rate:.1f} s exceed data.max_audio_s {self.max_audio_s:g}; cut the clip or raise the limit"
            )
        return self.make(torch.from_numpy(wave)), len(wave)


class MelReader(SoundReader[Tensor]):
    """Clips as scaled log-mel (T,mels). Kept ones are in float16, so all are rounded to that: a clip is the same whether or not it was kept,
    and a resumed run reads the same."""

    def __init__(self, config: ModelConfig, data: DataConfig) -> None:
        log_mel = LogMel(config.audio)
        super().__init__(config.audio, data, lambda wave: log_mel(wave).half())

    def __call__(self, rows: Rows, value: Any) -> Tensor:
        """The clip in a row's media field. Raises DataError if it is unreadable or too long."""
        return super().__call__(rows, value).float()


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
        """`file:line` of every clip whose text does not fit into the CTC slots of its frames. Decodes no sound."""
        return [self.rows[i][1].where(self.rows[i][2]) for i in infeasible_clips(self.rows, self.config)]


def infeasible_clips(rows: Manifests, config: ModelConfig) -> list[int]:
    """The rows whose text does not fit into the CTC slots of their sound (Graves et al. 2006: a character that follows itself needs a blank
    between)."""
    encoder = config.audio_encoder
    return _too_short(rows, config.audio, encoder.downsample, encoder.ctc_slots, lambda text: slots_needed(encode_characters(text)))


def _too_short(rows: Manifests, audio: AudioConfig, stride: int, slots: int, needed: Callable[[str], int]) -> list[int]:
    """The rows of fewer slots, so many in every `stride` mel frames, than are `needed` for their text."""
    found = []
    for index in range(len(rows)):
        row, source, number = rows[index]
        with _at(source, number):
            duration_s = _number(row, "duration_s")
            if duration_s is None:
                duration_s = _duration_s(*media_bytes(source, row["audio"]))
            mel_frames = -(-round(duration_s * audio.sample_rate_hz) // audio.hop_samples)
            if -(-mel_frames // stride) * slots < needed(row["text"]):
                found.append(index)
    return found


def without_infeasible_clips(rows: Manifests, config: ModelConfig) -> Manifests:
    """The rows whose characters can be found in their sound; the others are counted and reported. Raises DataError when none is left."""
    return _without(infeasible_clips(rows, config), rows)


def _without(too_short: list[int], rows: Manifests) -> Manifests:
    if not too_short:
        return rows
    _, source, number = rows[too_short[0]]
    found = f"{len(too_short)} of {len(rows)} clips are too short for their text, the first at {source.where(number)}"
    if len(too_short) == len(rows):
        raise DataError(f"{found}: none is left")
    log.warning("%s: left out", found)
    left_out = set(too_short)
    return rows.choose([index for index in range(len(rows)) if index not in left_out])


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

    def captions(self) -> list[str]:
        """All of them. Decodes no picture."""
        return [self.rows[index][0]["caption"] for index in range(len(self.rows))]

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


def voice_number(row: Mapping[str, Any], voices: Sequence[str]) -> int:
    """Of the row's speaker; without one the first. Raises DataError for a speaker who is not among the voices."""
    speaker = row.get("speaker") or voices[0]
    if speaker not in voices:
        raise DataError(f"speaker {speaker!r} is not among the voices of the configuration: {', '.join(voices)}")
    return voices.index(speaker)


@dataclass(frozen=True)
class TalkerExample:
    """mel (T,mels), the reply that it speaks, the voice's number; the file, or the manifest's line that holds the sound."""

    mel: Tensor
    reply: Reply
    voice: int
    text: str
    clip: str


class TalkerDataset(ManifestDataset[TalkerExample]):
    """Rows {"audio", "text", "speaker"?, "duration_s"?}; a row without speaker is the first voice. Raises DataError for an unknown one."""

    def __init__(self, rows: Manifests, config: ModelConfig, tokenizer: BPETokenizer, data: DataConfig) -> None:
        rows = without_long_clips(rows, data.max_audio_s)
        too_short = _too_short(rows, config.audio, config.codec.stride, SLOTS, lambda text: len(encode_characters(f" {text} ")))
        super().__init__(_without(too_short, rows))
        self.config, self.tokenizer = config, tokenizer
        self._mel = MelReader(config, data)
        for index in range(len(self.rows)):
            row, source, number = self.rows[index]
            with _at(source, number):
                voice_number(row, config.talker.voices)

    def _example(self, row: Row, source: Rows, number: int) -> TalkerExample:
        reply = render_reply(row["text"], self.tokenizer)
        _check_length(reply.input_ids, self.config.thinker.context_length, "text")
        clip = str(source.path(row["audio"])) if isinstance(row["audio"], str) else source.where(number)
        return TalkerExample(self._mel(source, row["audio"]), reply, voice_number(row, self.config.talker.voices), row["text"], clip)


@dataclass(frozen=True)
class Recording:
    """A clip at rest: waveform (T·hop,) in 16 bits; its pitch (T,) in Hz, 0 where there is no voice; mel and what the codec makes of it, if
    there is one, (T,mels) in float16."""

    waveform: Tensor
    pitch_hz: Tensor
    mel: Tensor
    codec_mel: Tensor | None


@dataclass(frozen=True)
class VocoderExample:
    """A piece of a clip: waveform (n,), pitch_hz (n/hop,), mel (n/hop + look-ahead, mels), and whether that went through the codec."""

    waveform: Tensor
    pitch_hz: Tensor
    mel: Tensor
    through_codec: bool


class VocoderDataset(ManifestDataset[VocoderExample]):
    """Rows {"audio", "duration_s"?}: of each clip a piece of `data.segment_s`, other ones in every epoch, silence behind the end of a shorter
    clip. `codec_share` of the pieces have the log-mel that `resynthesise` (T,mels) → (T,mels) makes of the clip's."""

    def __init__(
        self,
        rows: Manifests,
        config: ModelConfig,
        data: DataConfig,
        *,
        codec_share: float = 0.0,
        resynthesise: Callable[[Tensor], Tensor] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(without_long_clips(rows, data.max_audio_s))
        assert resynthesise is not None or not codec_share
        self.codec_share, self.resynthesise = codec_share, resynthesise
        self.seed, self.epoch = seed, 0
        self.frames = max(1, round(data.segment_s * config.audio.mel_rate_hz))
        self.look_ahead = config.vocoder.delay_frames
        self._log_mel = LogMel(config.audio)
        self._recording = SoundReader(config.audio, data, self._rest)

    def set_epoch(self, epoch: int) -> None:
        """Which pieces are cut."""
        self.epoch = epoch

    def _rest(self, wave: Tensor) -> Recording:
        wave = F.pad(wave, (0, -len(wave) % self._log_mel.config.hop_samples))
        mel = self._log_mel(wave)
        codec_mel = self.resynthesise(mel).half() if self.resynthesise is not None and self.codec_share else None
        return Recording((wave.clamp(-1.0, 1.0) * INT16).round().short(), pitch_hz(wave, self._log_mel.config), mel.half(), codec_mel)

    def _example(self, row: Row, source: Rows, number: int) -> VocoderExample:
        recording = self._recording(source, row["audio"])
        random = np.random.default_rng((self.seed, self.epoch, number))
        through_codec = bool(random.random() < self.codec_share)
        mel = recording.codec_mel if through_codec else recording.mel
        assert mel is not None
        start = int(random.integers(0, max(1, len(mel) - self.frames + 1)))
        hop = self._log_mel.config.hop_samples
        mel = mel[start : start + self.frames + self.look_ahead].float()
        wave = recording.waveform[start * hop : (start + self.frames) * hop].float() / INT16
        pitch = recording.pitch_hz[start : start + self.frames]
        return VocoderExample(
            F.pad(wave, (0, self.frames * hop - len(wave))),
            F.pad(pitch, (0, self.frames - len(pitch))),
            F.pad(mel, (0, 0, 0, self.frames + self.look_ahead - len(mel)), value=SILENCE),
            through_codec,
        )


PIECE = 32  # a long text weighs as much as so many short answers as it has pieces of so many tokens, or it would be forgotten


@dataclass(frozen=True)
class ConversationExample:
    """Conversations as ids (T,), with True in `loss_mask` (T,) where the assistant speaks, their pictures as (start, pixels) and their clips as
    (start, length, mel). `branches` (T,) is 0 where all of them are, and n in what belongs to the nth alone. `groups` (T,) number what the loss
    counts alike: conversations, and where every word is learned pieces of PIECE tokens. `n_dropped_turns` did not fit."""

    input_ids: list[int]
    loss_mask: list[bool]
    branches: list[int]
    images: list[tuple[int, Tensor]]
    clips: list[tuple[int, int, Tensor]]
    n_dropped_turns: int = 0
    every_word: bool = False

    @property
    def groups(self) -> list[int]:
        return [place // PIECE for place in range(len(self.input_ids))] if self.every_word else self.branches


def side_by_side(examples: Sequence[ConversationExample]) -> ConversationExample:
    """Conversations that are the same up to the end of their first picture as one example."""
    shared = examples[0].input_ids.index(BPETokenizer.image_end_id) + 1
    assert all(e.input_ids[:shared] == examples[0].input_ids[:shared] and not any(e.loss_mask[: shared + 1]) for e in examples)
    ids, mask, branches = examples[0].input_ids[:shared], [False] * shared, [0] * shared
    images, clips = examples[0].images[:1], []
    for number, e in enumerate(examples, 1):
        moved = len(ids) - shared
        ids += e.input_ids[shared:]
        mask += e.loss_mask[shared:]
        branches += [number] * (len(e.input_ids) - shared)
        images += [(start + moved, pixels) for start, pixels in e.images[1:]]
        clips += [(start + moved, length, mel) for start, length, mel in e.clips]
    return ConversationExample(ids, mask, branches, images, clips)


def about_one_picture(rows: Manifests, most: int) -> list[list[int]]:
    """The rows {"messages"} or {"text"} in groups of up to `most` that begin with the same picture file; every other row by itself."""
    groups: dict[tuple[str, str] | int, list[int]] = {}
    for index in range(len(rows)):
        row, source, number = rows[index]
        with _at(source, number):
            users = [message for message in (row.get("messages") or [])[:1] if message["role"] == "user"]
            pictures = [value for first in users for kind, value in parts_of(first) if kind == "image" and isinstance(value, str)]
        shares = len(pictures) == 1 and row.get("learn") != "all"  # what is before the picture's end is learned by nobody
        groups.setdefault((source.source, pictures[0]) if shares else index, []).append(index)
    for group in groups.values():
        Random(group[0]).shuffle(group)  # or manifests would tell which kinds of conversation are together
    return [group[at : at + most] for group in groups.values() for at in range(0, len(group), most)]


class ConversationDataset(ManifestDataset[ConversationExample]):
    """Rows {"messages"}; pictures and clips are paths relative to the manifest. What does not fit the context is logged once a row. A model
    that learns the replies alone forgets what people say to it, and how it is to read what nobody says to anybody: of rows with "learn": "all" every
    word is learned, and so it is of rows {"text"}, which are no conversation at all. Those that begin with the
    same picture are taken together (`data.side_by_side`): most of what it takes to answer a question is to look."""

    def __init__(self, rows: Manifests, config: ModelConfig, tokenizer: BPETokenizer, data: DataConfig) -> None:
        super().__init__(rows)
        self.config, self.tokenizer = config, tokenizer
        self._mel = MelReader(config, data)
        self._groups = about_one_picture(rows, data.side_by_side) if data.side_by_side > 1 else [[index] for index in range(len(rows))]
        self._last: tuple[Rows | None, Any, Tensor] = None, None, torch.empty(0)
        self.cut: set[str] = set()  # file:line of the conversations seen so far that did not fit whole

    def __len__(self) -> int:
        return len(self._groups)

    def __getitem__(self, index: int) -> ConversationExample:
        found = list(map(super().__getitem__, self._groups[index]))
        whole = [example for example in found if not example.n_dropped_turns]  # these begin with the picture
        return side_by_side(whole) if len(whole) > 1 else (whole or found)[0]

    def _example(self, row: Row, source: Rows, number: int) -> ConversationExample:
        where = source.where(number)
        if not row.get("messages"):
            ids, most = [self.tokenizer.bos_id, *self.tokenizer.encode(row["text"])], self.config.thinker.context_length
            if len(ids) > most:
                self._note(where, f"the text takes {len(ids)} positions, of which the context has {most}: cut its end")
                ids = ids[:most]
            return ConversationExample(ids, [True] * len(ids), [0] * len(ids), [], [], every_word=True)
        mels: dict[int, Tensor] = {}  # by identity of the message's value

        def audio_tokens(value: Any) -> int:
            mels[id(value)] = self._mel(source, value)
            return -(-len(mels[id(value)]) // self.config.audio_encoder.downsample)

        budget = MediaBudget(self.config.vision_encoder.n_image_tokens, audio_tokens, self.config.max_audio_tokens)
        rendered = render(row["messages"], self.tokenizer, budget, self.config.thinker.context_length)
        if rendered.notices:
            self._note(where, "; ".join(rendered.notices))
        images, clips = [], []
        for span in rendered.media:
            if span.kind == "image":
                images.append((span.start, self._pixels(source, span.source)))
            else:
                clips.append((span.start, span.length, mels[id(span.source)]))
        ids, every_word = rendered.input_ids, row.get("learn") == "all"
        learned = [i != self.tokenizer.media_id for i in ids] if every_word else rendered.loss_mask
        return ConversationExample(ids, learned, [0] * len(ids), images, clips, rendered.n_dropped_turns, every_word)

    def _note(self, where: str, what: str) -> None:
        """Say once that a row did not fit."""
        if where not in self.cut:
            self.cut.add(where)
            log.warning("%s: %s", where, what)

    def _pixels(self, source: Rows, value: Any) -> Tensor:
        """The picture in a message, decoded once if it is that of the one before."""
        if (source, value) != self._last[:2]:
            pixels = to_pixels(decode_image(*media_bytes(source, value)), self.config.vision_encoder.image_size)
            self._last = source, value, pixels
        return self._last[2]
