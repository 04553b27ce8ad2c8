"""Pairs of sound and text as sequences of the speech LM: of every pair one in which the text is said, and one in which the sound is heard."""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from torch import Tensor

from omni.audio import UNKNOWN_LENGTH, as_waveform, decode_audio, load_audio
from omni.config import SpeechLMConfig
from omni.data.collate import IGNORE, Batch, lengths_of, pad_ids
from omni.data.datasets import media_bytes, voice_number, without_long_clips
from omni.data.manifests import Manifests, Row, Rows, open_rows
from omni.errors import ConfigError, DataError
from omni.speech_tokens import AudioTokenizer, Frame, SpeechVocabulary, TextTokenizer, choices, vocabulary_size

log = logging.getLogger(__name__)

TimesOfIds = Callable[[np.ndarray, list[int], str], list[float]]  # waveform (n,), text ids, name of the clip → when each id is said (s)
Preprocessor = Callable[[Any], Any]  # what a row has as "audio" → waveform (n,) or (1,n) at the audio tokenizer's rate


@dataclass(frozen=True)
class MultimodalExample:
    """ids (T+1,) of a sequence, and whether each is a choice of the model's (T+1,); whether it is spoken or heard."""

    ids: list[int]
    chosen: list[bool]
    speaks: bool


@dataclass(frozen=True)
class MultimodalBatch(Batch):
    """input_ids, labels (B,T), lengths (B,), speaks (B,). Right-padded: a causal model's positions see no padding."""

    input_ids: Tensor
    labels: Tensor
    lengths: Tensor
    speaks: Tensor


@dataclass(frozen=True)
class _Pair:
    """Text ids, frames (F, ids of a frame) in shared ids, and the frame in which each text id is said (None: not known)."""

    text: list[int]
    frames: np.ndarray
    said_in: list[int] | None


def _duration_s(row: Mapping[str, Any], source: Rows | None) -> float:
    """How long a clip is, as its row says or else the header of its file; 0 where neither can tell."""
    if isinstance(declared := row.get("duration_s"), int | float):
        return declared
    audio = row.get("audio")
    if isinstance(audio, Mapping):
        audio = io.BytesIO(audio["bytes"]) if audio.get("bytes") else audio.get("path")
    if isinstance(audio, str) and source is not None:
        audio = source.path(audio)
    if not isinstance(audio, str | Path | io.BytesIO):
        return 0.0
    try:
        header = soundfile.info(audio)
    except (soundfile.SoundFileError, TypeError):
        return 0.0  # what is wrong with it is said when it is read
    return header.duration if header.frames < UNKNOWN_LENGTH else 0.0


def _name_of(audio: Any) -> str:
    """A file by its name, what is there as it is by its content."""
    if isinstance(audio, Mapping):
        audio = audio.get("bytes") or audio.get("path")
    if audio is None or isinstance(audio, str | Path):
        return str(audio)
    return hashlib.sha256(audio if isinstance(audio, bytes) else np.asarray(audio).tobytes()).hexdigest()[:16]


class MultimodalDataset:
    """Rows {"audio", "text", "speaker"?, "duration_s"?}, in a list or a manifest, in order: of each an example in which it is said, and one in which
    it is heard. Where the configuration names voices, clips of other speakers are heard only, and those of no speaker are the first voice's.

    A clip is encoded once. `audio_preprocessor` makes waveforms of what rows have as "audio" (default: files are loaded, waveforms taken as they
    are)."""

    def __init__(
        self,
        data: Sequence[Row] | Manifests | str | Path,
        text_tokenizer: TextTokenizer,
        audio_tokenizer: AudioTokenizer,
        audio_preprocessor: Preprocessor | None = None,
        *,
        config: SpeechLMConfig | None = None,
        max_audio_duration: float = 10.0,
        aligner: TimesOfIds | None = None,
    ) -> None:
        """`config`: how sequences are made; `max_audio_duration` in seconds: a row that says it is longer is left out, and so is a file
        whose header does, unless there is an `audio_preprocessor`; a waveform that is longer is an error. Raises ConfigError when text and sound
        are to be side by side, and there is no `aligner`; DataError when every clip is too long, or none is of one of the voices."""
        self.config = config or SpeechLMConfig()
        if self.config.side_by_side and aligner is None:
            raise ConfigError(
                "speech_lm.lead_frames and lag_frames need an aligner, which says when each text id is said; set both to null"
            )
        if isinstance(data, str | Path):
            data = Manifests([open_rows(str(data), ("audio", "text"))])
        self.data = without_long_clips(data, max_audio_duration) if isinstance(data, Manifests) else data
        if audio_preprocessor is None:  # which may shorten them
            self._leave_out_long_clips(max_audio_duration)
        self.text_tokenizer, self.audio_tokenizer = text_tokenizer, audio_tokenizer
        self.vocabulary = SpeechVocabulary(vocabulary_size(text_tokenizer), audio_tokenizer.layout, len(self.config.voices))
        self.audio_preprocessor, self.max_audio_duration, self.aligner = audio_preprocessor, max_audio_duration, aligner
        self._pairs: dict[object, _Pair] = {}  # a clip that stands in several rows is encoded once
        self._examples = [
            (number, speaks) for number in range(len(self.data)) for speaks in (True, False) if not speaks or self._is_voice(number)
        ]
        if self.data and not any(speaks for _, speaks in self._examples):
            raise DataError(f"no clip is of one of the voices of the configuration: {', '.join(self.config.voices)}")
        if n_heard_only := 2 * len(self.data) - len(self._examples):
            log.info("%d of %d clips are of speakers who are no voices: heard only", n_heard_only, len(self.data))

    def _leave_out_long_clips(self, limit_s: float) -> None:
        short = []
        for number in range(len(self.data)):
            row, _, source = self._row(number)
            if _duration_s(row, source) <= limit_s:
                short.append(number)
        if len(short) == len(self.data):
            return
        found = f"{len(self.data) - len(short)} of {len(self.data)} clips are longer than max_audio_duration {limit_s:g}"
        if not short:
            raise DataError(f"{found}: none is left; cut the clips or raise the limit")
        log.warning("%s: left out", found)
        self.data = self.data.choose(short) if isinstance(self.data, Manifests) else [self.data[number] for number in short]

    def _is_voice(self, number: int) -> bool:
        voices = self.config.voices
        return not voices or (self._row(number)[0].get("speaker") or voices[0]) in voices

    def told(self, most: int | None = None, text_tokenizer: TextTokenizer | None = None) -> list[tuple[str, list[int]]]:
        """Of (at most so many) rows the audio by name and the text's ids, by which data sets are told apart; by another tokenizer, if one is given."""
        encode = (text_tokenizer or self.text_tokenizer).encode
        rows = (self._row(number)[0] for number in range(len(self.data))[:most])
        return [(_name_of(row.get("audio")), list(encode(str(row.get("text"))))) for row in rows]

    def heard(self, most: int, audio_tokenizer: AudioTokenizer | None = None) -> list[list[int]]:
        """Of at most so many clips the ids of the sound, likewise. Raises DataError for one that cannot be read."""
        encode, found = (audio_tokenizer or self.audio_tokenizer).encode_audio, []
        for number in range(len(self.data))[:most]:
            row, where, source = self._row(number)
            try:
                found.append(list(encode(self._waveform(row.get("audio"), source))))
            except DataError as error:
                raise DataError(f"{where}: {error}") from None
        return found

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> MultimodalExample:
        """Raises DataError, with file and line if there are, for a row that cannot be used."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        number, speaks = self._examples[index]
        row, where, source = self._row(number)
        try:
            missing = [name for name in ("audio", "text") if row.get(name) is None]
            if missing:
                raise DataError(f"has no {missing[0]!r}")
            if not isinstance(row["text"], str):
                raise DataError(f"has a 'text' that is none: {row['text']!r:.80}")
            return self._example(number, row, source, speaks)
        except DataError as error:
            raise DataError(f"{where}: {error}") from None

    def _row(self, number: int) -> tuple[Mapping[str, Any], str, Rows | None]:
        """A row, where it stands, and the manifest that it stands in."""
        if isinstance(self.data, Manifests):
            row, source, at = self.data[number]
            return row, source.where(at), source
        assert not isinstance(self.data, str | Path)
        row = self.data[number]
        if not isinstance(row, Mapping):
            raise DataError(f"row {number}: a row names its 'audio' and 'text', found {type(row).__name__}")
        return row, f"row {number}", None

    def _example(self, number: int, row: Mapping[str, Any], source: Rows | None, speaks: bool) -> MultimodalExample:
        audio = row["audio"]
        file = (source.path(audio) if source is not None else audio) if isinstance(audio, str) else number
        key = (file, row["text"])
        if key not in self._pairs:
            self._pairs[key] = self._pair(row, source)
        pair, own, words = self._pairs[key], self.vocabulary, self.config
        frames: list[Frame] = pair.frames.tolist()
        side_by_side = (words.lead_frames if speaks else words.lag_frames) is not None
        if speaks:
            voice = voice_number(row, words.voices) if words.voices else None
            ids = own.speaking_ids(pair.text, frames, self._due(pair, speaks), voice)
            grammar = own.speaking(pair.text, side_by_side=side_by_side, most_frames=len(frames) + 1, voice=voice)
        else:
            ids = own.hearing_ids(pair.text, frames, self._due(pair, speaks))
            grammar = own.hearing(frames, side_by_side=side_by_side, most_text=len(pair.text) + 1)
        if len(ids) > words.context_length:
            raise DataError(
                f"text and sound take {len(ids)} ids, and speech_lm.context_length is {words.context_length}; cut the clip or raise the limit"
            )
        return MultimodalExample(ids, choices(grammar, ids), speaks)

    def _due(self, pair: _Pair, speaks: bool) -> list[int] | None:
        shift = self.config.lead_frames if speaks else self.config.lag_frames
        if shift is None or pair.said_in is None:
            return None
        return [max(0, n - shift) if speaks else max(1, n + shift) for n in pair.said_in]

    def _pair(self, row: Mapping[str, Any], source: Rows | None) -> _Pair:
        wave = self._waveform(row["audio"], source)
        seconds = len(wave) / self.audio_tokenizer.sample_rate_hz
        if seconds > self.max_audio_duration:
            raise DataError(
                f"{seconds:.1f} s exceed the {self.max_audio_duration:g} s of max_audio_duration; cut the clip or raise the limit"
            )
        text = list(self.text_tokenizer.encode(row["text"]))
        if not text:
            raise DataError("the text is empty")
        if not 0 <= min(text) <= max(text) < self.vocabulary.text_size:
            raise DataError(f"the text tokenizer gave an id outside its vocabulary of {self.vocabulary.text_size}")
        clip, _ = self.audio_tokenizer.layout.read_frames(self.audio_tokenizer.encode_audio(wave))
        frames = np.array(clip, dtype=np.int32) + self.vocabulary.text_size
        said_in = None
        if self.aligner is not None:
            frames_per_s = self.audio_tokenizer.sample_rate_hz / self.audio_tokenizer.samples_per_frame
            times = accumulate(self.aligner(wave, text, str(row["audio"])), max)
            said_in = [min(int(time * frames_per_s), len(frames) - 1) for time in times]
        return _Pair(text, frames, said_in)

    def _waveform(self, audio: Any, source: Rows | None) -> np.ndarray:
        """(n,) float32."""
        rate = self.audio_tokenizer.sample_rate_hz
        if self.audio_preprocessor is not None:
            audio = self.audio_preprocessor(source.path(audio) if source is not None and isinstance(audio, str) else audio)
        elif source is not None:
            return decode_audio(*media_bytes(source, audio), rate)
        if isinstance(audio, str | Path):
            return load_audio(audio, rate)
        return as_waveform(audio).numpy()

    def collate(self, examples: Sequence[MultimodalExample]) -> MultimodalBatch:
        """For a DataLoader's `collate_fn`."""
        labels = [[i if c else IGNORE for i, c in zip(e.ids[1:], e.chosen[1:], strict=True)] for e in examples]
        inputs = [e.ids[:-1] for e in examples]
        return MultimodalBatch(
            input_ids=pad_ids(inputs, self.vocabulary.pad),
            labels=pad_ids(labels, IGNORE),
            lengths=lengths_of(inputs),
            speaks=torch.tensor([e.speaks for e in examples]),
        )
