"""The second system: one language model over text and audio tokens (after QWEN-OMNI's design; Qwen3's block: Yang et al. 2025, §2).

It is the Thinker with another vocabulary, so with the same transformer, cache and sampling: grouped queries, QK-norm, RoPE, SwiGLU, RMSNorm, and
one embedding for text and sound, which is the output head too. `generate_audio` says a text, `generate_text` writes down a clip; a grammar
(omni.speech_tokens) leaves the model no way to an invalid sequence. `SpeechLM` is the model with its tokenizers: `say` and `transcribe`.

B batch  T positions  V vocabulary  K codebooks  F frames"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from omni.audio_tokenizers import CodecTokenizer, Ids, SNACTokenizer, Sound, id_list, waveform_of
from omni.checkpoint import SavedModel, default_checkpoint, find_checkpoint, load_into, load_model
from omni.config import DEFAULT_SPEECH_LM, SpeechLMConfig, ThinkerConfig
from omni.errors import CheckpointError, ConfigError, DataError
from omni.inference.omni import GREEDY, placed
from omni.inference.sampling import Sampling, sample
from omni.inference.speech import LONGEST_CLAUSE, Speech, clauses
from omni.parameters import count
from omni.speech_tokens import (
    AudioTokenizer,
    Frame,
    Grammar,
    Option,
    ScaleLayout,
    SpeechVocabulary,
    TextTokenizer,
    is_forced,
    vocabulary_size,
)
from omni.spoken import spoken_form
from omni.thinker import ThinkerLM
from omni.tokenizer import BPETokenizer

log = logging.getLogger(__name__)

COMPONENT = "speech_lm"  # in checkpoints; it is no part of an OmniModel
BATCH = 32  # texts or clips that are decoded together
SLOWEST_S, PAUSE_S = 0.15, 2.0  # speech that lasts longer than so much a character and a pause has gone astray
CHARACTERS = 4  # of a text id, where only ids are known: about those of a word's piece
TEXT_TOKENIZER = "text_tokenizer"  # folder of one of Transformers, in the model's
SPEAKING = Sampling(temperature=0.7, top_p=0.9)  # what is said is drawn by chance: the likeliest code after the likeliest code is silence
PIECE_S, QUIET_S = 10.0, 0.1  # recordings are cut into pieces of at most so long, at the quietest stretch of the last half
TEXT_PER_FRAME, MORE_TEXT = 4, 32  # text ids that a clip can hold at most: no one speaks that fast

# What else belongs to the second system stands above this module: it is loaded when it is asked for (as `omni.Omni` is).
_ELSEWHERE = {
    "MultimodalDataset": "omni.data.multimodal",
    "MultimodalPretrainingConfig": "omni.config",
    "MultimodalPretrainingTrainer": "omni.pretraining",
}


def __getattr__(name: str) -> Any:
    if name in _ELSEWHERE:
        return getattr(import_module(_ELSEWHERE[name]), name)
    raise AttributeError(f"module 'omni.speech_lm' has no attribute {name!r}")


class MultimodalLLM(ThinkerLM):
    """ids (B,T) of the shared vocabulary → logits (B,T,V)."""

    def __init__(self, config: SpeechLMConfig) -> None:
        layout = ScaleLayout(config.codebook_size, config.code_rates)
        vocabulary = SpeechVocabulary(config.text_vocab_size, layout, len(config.voices))
        super().__init__(
            ThinkerConfig(
                vocab_size=vocabulary.size,
                d_model=config.d_model,
                n_layers=config.n_layers,
                n_heads=config.n_heads,
                n_kv_heads=config.n_kv_heads,
                d_ff=config.d_ff,
                context_length=config.context_length,
                rope_theta=config.rope_theta,
                tie_embeddings=True,
                qk_norm=True,
                dropout=config.dropout,
            )
        )
        self.speech_config, self.vocabulary = config, vocabulary

    @classmethod
    def from_saved(cls, saved: SavedModel) -> MultimodalLLM:
        """The language model in a checkpoint of stage speech-lm, in evaluation mode. Raises CheckpointError for any other checkpoint."""
        if COMPONENT not in saved.components:
            raise CheckpointError(f"{saved.folder}: holds {', '.join(saved.components)}, no {COMPONENT}; train one with stage speech-lm")
        model = cls(saved.config.speech_lm)
        tensors = {name.removeprefix(f"{COMPONENT}."): t for name, t in saved.tensors.items() if name.startswith(f"{COMPONENT}.")}
        load_into(model, tensors, str(saved.folder))
        return model.eval()

    def parameter_table(self) -> dict[str, int]:
        """Parameters by what they are for; an id's row of the embedding is its row of the output head, too. (By default text ids and blocks alone
        are 7.02 M, the document's 7.03 M: there audio ids have no rows of their own.)"""
        own, width = self.vocabulary, self.config.d_model
        rows = {"text_ids": own.text_size, "audio_ids": len(own.audio), "markers": own.size - own.text_size - len(own.audio)}
        return {name: n * width for name, n in rows.items()} | {"blocks": count(self.transformer.blocks), "norm": count(self.norm)}

    def set_gradient_checkpointing(self, on: bool) -> None:
        """Recompute every block's activations in the backward pass instead of keeping them (Chen et al. 2016)."""
        self.transformer.gradient_checkpointing = on

    # --- the document's two verbs

    def generate_audio(
        self,
        text_tokens: Ids,
        audio_tokenizer: AudioTokenizer | None = None,
        *,
        sampling: Sampling = SPEAKING,
        voice: str | None = None,
        most_frames: int | None = None,
    ) -> list[int]:
        """Text ids → the audio tokenizer's ids of a clip that says them, at most `most_frames` long: by default, where the tokenizer tells how
        long a frame is, what a text of so many ids takes at most. Raises DataError for ids that are no text or leave no room, ConfigError for
        an unknown voice or for a tokenizer with other codes than the model's."""
        text = id_list(text_tokens)
        if audio_tokenizer is not None:
            self.check_tokenizer(audio_tokenizer)
            most_frames = frames_for(CHARACTERS * len(text), audio_tokenizer) if most_frames is None else most_frames
        return self.speak([text], [voice], sampling, None if most_frames is None else [most_frames])[0]

    def generate_text(self, audio_tokens: Ids, *, sampling: Sampling = GREEDY) -> list[int]:
        """An audio tokenizer's ids of a clip → text ids of what is said in it. Raises DataError for a clip without a whole frame, or one that
        is longer than the context."""
        return self.write([id_list(audio_tokens)], sampling)[0]

    def check_tokenizer(self, tokenizer: AudioTokenizer) -> None:
        """Raises ConfigError unless its codes are those of the vocabulary."""
        if tokenizer.layout != self.vocabulary.layout:
            raise ConfigError(f"the audio tokenizer has {tokenizer.layout}, and the model was made for {self.vocabulary.layout}")

    # --- many at once

    def speak(
        self, texts: Sequence[Sequence[int]], voices: Sequence[str | None], sampling: Sampling, most_frames: Sequence[int] | None = None
    ) -> list[list[int]]:
        """`generate_audio` of several texts, decoded together; each as it would be said alone."""
        most = [None] * len(texts) if most_frames is None else most_frames
        lines = [self._speaking(text, voice, sampling, n) for text, voice, n in zip(texts, voices, most, strict=True)]
        self._decode(lines)
        own = self.vocabulary
        start, end = own.layout.start_id, own.layout.end_id
        return [[start, *(i - own.text_size for i in line.ids if i in own.audio), end] for line in lines]

    def _speaking(self, text: Sequence[int], voice: str | None, sampling: Sampling, most_frames: int | None) -> _Line:
        own, words = self.vocabulary, self.speech_config
        if not text:
            raise DataError("there is nothing to say: the text is empty")
        if not 0 <= min(text) <= max(text) < own.text_size:
            wrong = min(text) if min(text) < 0 else max(text)
            raise DataError(f"text id {wrong} is outside the model's text vocabulary of {own.text_size}")
        room = self.room_for(text)
        if room < 1:
            raise DataError(f"a text of {len(text)} ids leaves no room to say it in a context of {words.context_length}; shorten it")
        most = room if most_frames is None else max(1, min(room, most_frames))
        grammar = own.speaking(text, side_by_side=words.lead_frames is not None, most_frames=most, voice=self.voice_id(voice))
        return _Line(grammar, sampling, len(text) + 5 + most * (1 + own.layout.tokens_per_frame))

    def room_for(self, text: Sequence[int]) -> int:
        """How many frames fit the context besides a text."""
        return (self.speech_config.context_length - len(text) - 5) // (1 + self.vocabulary.layout.tokens_per_frame)

    def write(self, clips: Sequence[Sequence[int]], sampling: Sampling) -> list[list[int]]:
        """`generate_text` of several clips, decoded together."""
        lines = [self._hearing(clip, sampling) for clip in clips]
        self._decode(lines)
        return [[i for i in line.ids if i in self.vocabulary.text] for line in lines]

    def _hearing(self, clip: Sequence[int], sampling: Sampling) -> _Line:
        own, words = self.vocabulary, self.speech_config
        frames = self.shared_frames(clip)
        if not frames:
            raise DataError("there is nothing to hear: the clip has no whole frame of codes")
        n_heard = len(frames) * (1 + own.layout.tokens_per_frame) + 3
        room = words.context_length - n_heard
        if room < 1:
            raise DataError(f"a clip of {len(frames)} frames does not fit a context of {words.context_length}; cut it")
        most = min(room, TEXT_PER_FRAME * len(frames) + MORE_TEXT)
        return _Line(own.hearing(frames, side_by_side=words.lag_frames is not None, most_text=most), sampling, n_heard + most)

    def shared_frames(self, clip: Sequence[int]) -> list[Frame]:
        """The whole frames of an audio tokenizer's ids, in shared ids; it is told how many ids are of no use."""
        frames, lost = self.vocabulary.layout.read_frames(clip)
        if lost:
            log.warning(
                "%d of %d ids of a clip are out of order, and left out: were they made for %s?", lost, len(clip), self.vocabulary.layout
            )
        return [[self.vocabulary.text_size + i for i in frame] for frame in frames]

    def voice_id(self, name: str | None) -> int | None:
        """The number of a voice, None if the model has none; without a name the first. Raises ConfigError with the known names."""
        voices = self.speech_config.voices
        if name is None:
            return 0 if voices else None
        if name not in voices:
            raise ConfigError(f"no voice {name!r}; this model has: {', '.join(voices) or 'none with a name'}")
        return voices.index(name)

    @torch.inference_mode()
    def _decode(self, lines: Sequence[_Line]) -> None:
        """Take every line to its end. What the grammar forces (prompts, frames that are heard) is read in one piece."""
        device, lines = self.tok_emb.weight.device, list(lines)
        pieces = [line.advance(None) for line in lines]
        padding = 4 + self.vocabulary.layout.tokens_per_frame  # rows are padded to the longest piece, at most a frame and what is about it
        cache = self.make_cache(len(lines), max((line.longest for line in lines), default=0) + padding)
        while lines:
            lengths = [len(piece) for piece in pieces]
            ids = pad_sequence([torch.tensor(piece) for piece in pieces], batch_first=True, padding_value=self.vocabulary.pad)
            states = self.hidden_states(ids.to(device), lengths=None if len(set(lengths)) == 1 else lengths, cache=cache)
            logits = self.lm_head(states[torch.arange(len(lines)), torch.tensor(lengths) - 1]).float().cpu()  # (B, V)
            pieces = [line.advance(row) for line, row in zip(lines, logits, strict=True)]
            for i in reversed([i for i, line in enumerate(lines) if line.done]):
                cache.leave(i)  # the last row takes its place
                lines[i], pieces[i] = lines[-1], pieces[-1]
                del lines[-1], pieces[-1]


class _Line:
    """A sequence on its way: its ids so far, at most `longest`, and the options that its grammar leaves."""

    def __init__(self, grammar: Grammar, sampling: Sampling, longest: int) -> None:
        if sampling != Sampling(sampling.temperature, sampling.top_k, sampling.top_p, seed=sampling.seed):
            raise ConfigError("the speech LM draws by temperature, top_k, top_p and seed; leave what else belongs to sampling as it is")
        self.grammar, self.sampling, self.longest = grammar, sampling, longest
        self.generator = torch.Generator().manual_seed(sampling.seed)
        self.options: list[Option] = next(grammar)
        self.ids: list[int] = []
        self.done = False

    def advance(self, logits: Tensor | None) -> list[int]:
        """Choose an id by logits (V,), and take all that then follows of itself. Returns what is new."""
        start = len(self.ids)
        while not self.done and (logits is not None or is_forced(self.options)):
            if is_forced(self.options):
                taken = self.options[0].ids.start
            else:
                assert logits is not None
                taken, logits = self._choose(logits), None
            self.ids.append(taken)
            try:
                self.options = self.grammar.send(taken)
            except StopIteration:
                self.done = True
        return self.ids[start:]

    def _choose(self, logits: Tensor) -> int:
        """First which option, each with the probability of all its mass, then which of its ids: a frame goes on although each single code of it is
        unlikely."""
        option = self.options[0]
        if len(self.options) > 1:
            mass = [torch.cat([logits[r.start : r.stop] for r in o.mass]).logsumexp(0) for o in self.options]
            option = self.options[sample(torch.stack(mass), self.sampling, (), self.generator)]
        if len(option.ids) == 1:
            return option.ids.start
        return option.ids.start + sample(logits[option.ids.start : option.ids.stop], self.sampling, (), self.generator)


@dataclass(frozen=True)
class Said(Speech):
    """`cut`: so many of its clauses were not over at the most frames that they may take."""

    cut: int


class SpeechLM:
    """The model with its two tokenizers."""

    def __init__(
        self, model: MultimodalLLM, text_tokenizer: TextTokenizer, audio_tokenizer: AudioTokenizer, folder: Path | None = None
    ) -> None:
        model.check_tokenizer(audio_tokenizer)
        size = vocabulary_size(text_tokenizer)
        if size != model.vocabulary.text_size:
            raise ConfigError(f"the text tokenizer has {size} ids, and the model was made for {model.vocabulary.text_size}")
        self.model, self.folder = model.eval(), folder
        self.text_tokenizer, self.audio_tokenizer = text_tokenizer, audio_tokenizer

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.tok_emb.weight.device

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path | None = None,
        device: str | None = None,
        *,
        text_tokenizer: TextTokenizer | None = None,
        audio_tokenizer: AudioTokenizer | None = None,
    ) -> SpeechLM:
        """Load a model folder or a training run's best onto `device`, in float32. The tokenizers are those that are saved with it, unless others
        are given. Raises CheckpointError when it is missing or damaged, or has no tokenizer with it and none is given."""
        advice = "train one with `muomni train speech-lm --config configs/speech_lm_tiny.json`"
        saved = load_model(find_checkpoint(folder or default_checkpoint(DEFAULT_SPEECH_LM, advice)))
        model = placed(MultimodalLLM.from_saved(saved), device)
        where = model.tok_emb.weight.device
        if text_tokenizer is None:
            text_tokenizer = _text_tokenizer(saved)
        if audio_tokenizer is None:
            audio_tokenizer = _audio_tokenizer(saved, model.vocabulary.layout.n_codebooks, where)
        log.info("loaded %s: speech LM of %s parameters, on %s", saved.folder, f"{count(model):,}", where)
        return cls(model, text_tokenizer, audio_tokenizer, saved.folder)

    @property
    def voices(self) -> tuple[str, ...]:
        """Names for `say`."""
        return self.model.speech_config.voices

    def voice_id(self, name: str | None) -> int | None:
        """The number of a voice. Raises ConfigError with the known names."""
        return self.model.voice_id(name)

    @property
    def sample_rate_hz(self) -> int:
        """Of what it says."""
        return self.audio_tokenizer.sample_rate_hz

    @cached_property
    def vocoder_name(self) -> str:
        """What makes its waveforms."""
        tokenizer = self.audio_tokenizer
        return tokenizer.model.vocoder_name if isinstance(tokenizer, CodecTokenizer) else type(tokenizer).__name__

    @property
    def longest_s(self) -> float:
        """Seconds of sound that are heard at once: longer recordings are cut."""
        frames = self.model.speech_config.context_length // (1 + self.model.vocabulary.layout.tokens_per_frame + TEXT_PER_FRAME)
        return min(PIECE_S, frames * (self.audio_tokenizer.samples_per_frame / self.sample_rate_hz))

    # --- speaking

    def say(self, text: str, voice: str | None = None, *, sampling: Sampling = SPEAKING) -> Said:
        """A text as speech; a long one clause by clause. Raises DataError for an empty text, ConfigError for an unknown voice."""
        return self.say_batch([text], voice, sampling=sampling)[0]

    def say_batch(
        self, texts: Sequence[str], voice: str | Sequence[str | None] | None = None, *, sampling: Sampling = SPEAKING
    ) -> list[Said]:
        """Several texts, decoded together; `voice` for all, or one for each."""
        voices = [voice] * len(texts) if voice is None or isinstance(voice, str) else voice
        parts = [(row, part) for row, text in enumerate(texts) for part in self._parts(text)]
        said: list[list[Said]] = [[] for _ in texts]
        for start in range(0, len(parts), BATCH):
            batch = parts[start : start + BATCH]
            clauses_said = self._say([part for _, part in batch], [voices[row] for row, _ in batch], sampling)
            for (row, _), speech in zip(batch, clauses_said, strict=True):
                said[row].append(speech)
        return [_joined(of_text) for of_text in said]

    def say_stream(self, text: str, voice: str | None = None, *, sampling: Sampling = SPEAKING) -> Iterator[Said]:
        """The clauses of a text, each as soon as it is said; joined they are what `say` says."""
        self.voice_id(voice)
        return (self._say([part], [voice], sampling)[0] for part in self._parts(text))

    def _parts(self, text: str) -> list[str]:
        if not any(map(str.isalnum, text)):
            raise DataError("there is nothing to say: the text has no words")
        text = spoken_form(text) or text.strip()  # of another script nothing would be left
        return [text] if len(text) <= LONGEST_CLAUSE else clauses(text)

    def _say(self, parts: Sequence[str], voices: Sequence[str | None], sampling: Sampling) -> list[Said]:
        """Clauses, their ids decoded together; each becomes sound by itself, so that a stream is the same to the sample."""
        texts = [self.text_tokenizer.encode(part) for part in parts]
        most = [
            min(frames_for(len(part), self.audio_tokenizer), self.model.room_for(text)) for part, text in zip(parts, texts, strict=True)
        ]
        clips = self.model.speak(texts, voices, sampling, most)
        said = [self._speech(clip, n, sampling) for clip, n in zip(clips, most, strict=True)]
        if n_cut := sum(speech.cut for speech in said):
            log.warning("%d of %d clauses were not over after the longest time that their text may take: cut", n_cut, len(said))
        return said

    def _speech(self, ids: Sequence[int], most_frames: int, sampling: Sampling) -> Said:
        """`codes` (F, ids of a frame)."""
        frames, _ = self.model.vocabulary.layout.read_frames(ids)
        slots = torch.tensor([k * self.model.speech_config.codebook_size for k in self.model.vocabulary.layout.slots])
        with torch.random.fork_rng():  # SNAC draws noise
            torch.manual_seed(sampling.seed)
            wave = self.audio_tokenizer.decode_audio(ids)
        return Said(wave, self.sample_rate_hz, torch.tensor(frames).view(-1, len(slots)) - slots, cut=int(len(frames) >= most_frames))

    # --- hearing

    def transcribe(self, sound: Sound, *, sampling: Sampling = GREEDY) -> str:
        """What is said in a file or waveform of any length. Raises DataError if it cannot be read."""
        return self.transcribe_batch([sound], sampling=sampling)[0]

    def transcribe_batch(self, sounds: Sequence[Sound], *, sampling: Sampling = GREEDY) -> list[str]:
        """Several recordings, decoded together."""
        waves = [waveform_of(sound, self.sample_rate_hz).numpy() for sound in sounds]
        parts = [(row, part) for row, wave in enumerate(waves) for part in pieces(wave, self.sample_rate_hz, self.longest_s)]
        order = sorted(range(len(parts)), key=lambda i: len(parts[i][1]))  # of about one length together
        heard = [""] * len(parts)
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            clips = [self.audio_tokenizer.encode_audio(parts[i][1]) for i in batch]
            for i, ids in zip(batch, self.model.write(clips, sampling), strict=True):
                heard[i] = self._words(ids)
        return [" ".join(text for (of, _), text in zip(parts, heard, strict=True) if of == row and text) for row in range(len(waves))]

    def _words(self, ids: list[int]) -> str:
        """Text without the marks of sentence and end that some tokenizers of Transformers have."""
        marks = {"skip_special_tokens": True} if hasattr(self.text_tokenizer, "all_special_ids") else {}
        return self.text_tokenizer.decode(ids, **marks).strip()


def frames_for(n_characters: int, tokenizer: AudioTokenizer) -> int:
    """The most frames that a text of so many characters may take."""
    return int((PAUSE_S + SLOWEST_S * n_characters) * tokenizer.sample_rate_hz / tokenizer.samples_per_frame)


def _joined(said: Sequence[Said]) -> Said:
    """The clauses of a text one after the other."""
    waveform, codes = np.concatenate([part.waveform for part in said]), torch.cat([part.codes for part in said])
    return Said(waveform, said[0].sample_rate_hz, codes, cut=sum(part.cut for part in said))


def _text_tokenizer(saved: SavedModel) -> TextTokenizer:
    """That of a checkpoint: our own, or one of Transformers."""
    if saved.tokenizer is not None:
        return BPETokenizer(saved.tokenizer)
    places = [folder / TEXT_TOKENIZER for folder in (saved.folder, *saved.folder.resolve().parents[:2])]  # a run's best is in its folder
    folder = next((place for place in places if place.is_dir()), None)
    if folder is None:
        raise CheckpointError(f"{saved.folder}: has no tokenizer.model; give the text_tokenizer that it was trained with")
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise ConfigError(f"{folder} needs the transformers package; install it, or give the text_tokenizer") from None
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    return tokenizer


def _audio_tokenizer(saved: SavedModel, codebooks: int, device: torch.device) -> AudioTokenizer:
    """That of a checkpoint: SNAC by its name, or the codec in it."""
    if "snac" in saved.extra:
        try:
            return SNACTokenizer(saved.extra["snac"], device)
        except CheckpointError as error:
            raise CheckpointError(
                f"{saved.folder} was trained with this SNAC; give it as audio_tokenizer if it is elsewhere: {error}"
            ) from None
    tokenizer = CodecTokenizer.from_saved(saved, codebooks)
    tokenizer.model.to(device)
    return tokenizer


def pieces(wave: np.ndarray, sample_rate_hz: int, longest_s: float) -> list[np.ndarray]:
    """A recording (n,) in pieces of at most `longest_s`, cut at the quietest stretch of the last half of each."""
    longest, stretch, found = int(longest_s * sample_rate_hz), max(1, int(QUIET_S * sample_rate_hz)), []
    while len(wave) > longest:
        half = wave[longest // 2 : longest]
        energy = np.square(half[: len(half) // stretch * stretch]).reshape(-1, stretch).sum(1)
        cut = longest // 2 + int(energy.argmin()) * stretch + stretch // 2
        found.append(wave[:cut])
        wave = wave[cut:]
    return [*found, wave]
