"""`Omni`: a trained model behind five verbs."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from omni.audio import SILENCE, as_waveform, load_audio
from omni.chat import DESCRIBE, TRANSCRIBE, MediaBudget, Message, render
from omni.checkpoint import default_checkpoint, find_checkpoint, load_model
from omni.config import DEFAULT_CHECKPOINT, released
from omni.errors import CheckpointError, ConfigError, DataError
from omni.image import load_image, to_pixels, video_frames
from omni.inference.ctc_beam import BeamSearch, ThinkerWords, segments
from omni.inference.engine import Engine, Generation, Prompt, Stopped, TextEvent
from omni.inference.sampling import Sampling
from omni.inference.speech import Speaker, Speech
from omni.inference.transcript import Transcript
from omni.nn.precision import autocast, autocast_dtype
from omni.omni_model import OmniModel
from omni.tokenizer import BPETokenizer

log = logging.getLogger(__name__)

DECODERS = ("ctc", "ctc-beam", "thinker")
WINDOW_S, OVERLAP_S = 20.0, 4.0  # of long recordings: windows overlap, and each answers for the part far from its ends
GREEDY = Sampling()
CUT_OFF = "the reply was cut at the limit of its length (--max-new-tokens, or the context)"

Picture = str | Path | Image.Image | Tensor  # a file, a picture, or pixels (3,H,W) as `to_pixels` makes them
Sound = str | Path | np.ndarray  # a file, or a waveform (n,) at the model's sample rate


@dataclass(frozen=True)
class Reply:
    """What the model answered; `notices` say what of the conversation did not fit; `speech` if it was asked to speak and had words."""

    text: str
    notices: list[str]
    speech: Speech | None = None
    stopped: Stopped = "end"


M = TypeVar("M", bound=nn.Module)


def placed(model: M, device: str | None) -> M:
    """The model on `device` ("auto" or None: a GPU if there is one). Raises ConfigError for one that cannot be used."""
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device in (None, "auto") else str(device)
    try:
        return model.to(chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"device {chosen!r} cannot be used: {str(error).splitlines()[0]}") from None


class Omni:
    """Text, pictures and sound in; text and speech out."""

    def __init__(self, model: OmniModel, tokenizer: BPETokenizer | None, folder: Path | None = None) -> None:
        self.model, self.folder = model.eval(), folder
        self._tokenizer = tokenizer

    @classmethod
    def from_pretrained(cls, folder: str | Path | None = None, device: str | None = None, vocoder: str | None = None) -> Omni:
        """Load a model folder, be it by another name of the released model, or a training run's best, onto `device` ("auto" or None: a GPU if
        there is one), in float32. Raises CheckpointError when it is missing, damaged or of another shape, ConfigError for a device that cannot
        be used. `vocoder`: "neural", "griffin-lim", or None: the neural one if the checkpoint has one; what it is is logged and in
        `model.vocoder_name`."""
        advice = "make one with `make demo-from-nothing` or `muomni train pocket --preset nano`"
        saved = load_model(find_checkpoint(released(folder) if folder else default_checkpoint(DEFAULT_CHECKPOINT, advice)))
        model = placed(OmniModel.from_saved(saved, vocoder), device)
        parameters, where = sum(p.numel() for p in model.parameters()), model.log_mel.window.device
        log.info("loaded %s: %s, %s parameters, on %s", saved.folder, ", ".join(model.components), f"{parameters:,}", where)
        if "talker" in model.components:
            log.info("it speaks through its %s vocoder", model.vocoder_name)
        return cls(model, BPETokenizer(saved.tokenizer) if saved.tokenizer is not None else None, saved.folder)

    @property
    def tokenizer(self) -> BPETokenizer:
        """The checkpoint's. Raises CheckpointError where it has none (an audio encoder alone can still transcribe)."""
        if self._tokenizer is None:
            raise CheckpointError(f"{self.folder}: has no tokenizer.model, so it cannot read or write text")
        return self._tokenizer

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.log_mel.window.device

    @cached_property
    def engine(self) -> Engine:
        """The Thinker at work."""
        return Engine(self.model, self.tokenizer)

    @cached_property
    def speaker(self) -> Speaker:
        """The Talker at work."""
        return Speaker(self.model, self.tokenizer)

    @cached_property
    def beam_search(self) -> BeamSearch:
        """CTC with the Thinker as language model."""
        return BeamSearch(ThinkerWords(self.model.thinker, self.tokenizer))

    @property
    def voices(self) -> tuple[str, ...]:
        """Names for `say`."""
        return self.model.config.talker.voices

    def voice_id(self, name: str | None) -> int:
        """The number of a voice; without a name the first. Raises ConfigError with the known names."""
        return self.speaker.voice_id(name)

    @property
    def sample_rate_hz(self) -> int:
        """Of what it says."""
        return self.model.config.audio.sample_rate_hz

    @property
    def vocoder_name(self) -> str:
        """What makes its waveforms."""
        return self.model.vocoder_name

    # --- understanding

    def prompt(self, messages: Sequence[Message], *, reserve: int, strict: bool = False) -> Prompt:
        """A conversation ready for the engine, with room for a reply of `reserve` tokens, or of a quarter of the context if that is less.
        Pictures may be paths or PIL images, sounds paths or waveforms. Raises DataError for what is malformed, missing or too long."""
        config = self.model.config
        waves: dict[int, np.ndarray] = {}

        def wave_of(sound: Sound) -> np.ndarray:
            if id(sound) not in waves:
                waves[id(sound)] = self.waveform(sound)
            return waves[id(sound)]

        def audio_tokens(sound: Sound) -> int:
            return -(-self.model.log_mel.n_frames(len(wave_of(sound))) // config.audio_encoder.downsample)

        budget = MediaBudget(config.vision_encoder.n_image_tokens, audio_tokens, config.max_audio_tokens)
        room = min(reserve, config.thinker.context_length // 4)
        rendered = render(
            messages, self.tokenizer, budget, config.thinker.context_length, reserve=room, add_generation_prompt=True, strict=strict
        )
        pixels = [self._pixels(span.source) for span in rendered.media if span.kind == "image"]
        samples_per_token = config.audio_encoder.downsample * config.audio.hop_samples
        mels = [self.log_mel(wave_of(span.source)[: span.length * samples_per_token]) for span in rendered.media if span.kind == "audio"]
        return Prompt(rendered, pixels, mels)

    def waveform(self, sound: Sound) -> np.ndarray:
        """A file's or the given float32 waveform (n,). Raises DataError if it is no use."""
        if isinstance(sound, (str, Path)):
            return load_audio(sound, self.model.config.audio.sample_rate_hz)
        return as_waveform(sound).numpy()

    def log_mel(self, sound: Sound) -> Tensor:
        """A file or waveform as scaled log-mel (T,mels) on the CPU."""
        return self.model.log_mel(torch.from_numpy(self.waveform(sound)).to(self.device)).cpu()

    def _pixels(self, picture: Picture) -> Tensor:
        if isinstance(picture, Tensor):
            return picture
        image = picture.convert("RGB") if isinstance(picture, Image.Image) else load_image(picture)
        return to_pixels(image, self.model.config.vision_encoder.image_size)

    def chat(
        self,
        messages: Sequence[Message],
        sampling: Sampling = GREEDY,
        *,
        speak: bool = False,
        voice: str | None = None,
        strict: bool = False,
    ) -> Reply:
        """Answer the last message of a conversation, aloud too if `speak`."""
        if speak:
            self.speaker.voice_id(voice)
        reply = self.chat_batch([messages], sampling, strict=strict)[0]
        return self.say_reply(reply, voice, sampling=sampling) if speak else reply

    def chat_batch(self, conversations: Sequence[Sequence[Message]], sampling: Sampling = GREEDY, *, strict: bool = False) -> list[Reply]:
        """Answer several conversations together; each as it would be answered alone."""
        return self.answer([self.prompt(messages, reserve=sampling.max_new_tokens, strict=strict) for messages in conversations], sampling)

    def answer(self, prompts: Sequence[Prompt], sampling: Sampling = GREEDY) -> list[Reply]:
        """Replies to prompts, decoded together."""
        replies: list[Generation] = self.engine.generate(prompts, sampling)
        return [Reply(r.text, p.rendered.notices, stopped=r.stopped) for p, r in zip(prompts, replies, strict=True)]

    def chat_stream(
        self, messages: Sequence[Message], sampling: Sampling = GREEDY, *, strict: bool = False
    ) -> tuple[list[str], Iterator[TextEvent]]:
        """The notices, and the answer in pieces as they come."""
        prompt = self.prompt(messages, reserve=sampling.max_new_tokens, strict=strict)
        return prompt.rendered.notices, self.engine.stream(prompt, sampling)

    def ask(
        self,
        text: str | None = None,
        *,
        image: Picture | None = None,
        audio: Sound | None = None,
        video: str | Path | None = None,
        speak: bool = False,
        voice: str | None = None,
        sampling: Sampling = GREEDY,
        strict: bool = False,
    ) -> Reply:
        """One question by text, picture, sound or video (one frame a second), answered in text and, if `speak`, aloud."""
        message, notices = self.question(text, image=image, audio=audio, video=video, strict=strict)
        reply = self.chat([message], sampling, speak=speak, voice=voice, strict=strict)
        return replace(reply, notices=notices + reply.notices)

    def question(
        self,
        text: str | None = None,
        *,
        image: Picture | None = None,
        audio: Sound | None = None,
        video: str | Path | None = None,
        strict: bool = False,
    ) -> tuple[Message, list[str]]:
        """One user message, and notices. Raises DataError when there is nothing in it."""
        content: list[dict[str, Any]] = []
        notices: list[str] = []
        if image is not None:
            content.append({"type": "image", "image": image})
        if video is not None:
            frames = video_frames(video)
            config = self.model.config
            most = max(1, config.thinker.context_length // 2 // (config.vision_encoder.n_image_tokens + 2))
            if len(frames) > most:
                notices.append(f"{video}: {len(frames)} frames exceed half of the context: kept {most}, evenly spread")
                if strict:
                    raise DataError(notices[0])
                frames = [frames[i * len(frames) // most] for i in range(most)]
            content += [{"type": "image", "image": frame} for frame in frames]
        if audio is not None:
            content.append({"type": "audio", "audio": audio})
        if text is not None and text.strip():
            content.append({"type": "text", "text": text})
        if not content:
            raise DataError("nothing was asked: give a text, a picture, a sound or a video")
        return {"role": "user", "content": content}, notices

    def describe(self, image: Picture, sampling: Sampling = GREEDY) -> str:
        """What is in a picture."""
        return self.ask(DESCRIBE, image=image, sampling=sampling).text

    def transcribe(self, audio: Sound, decoder: str = "ctc") -> str:
        """What is said in a recording of any length: the likeliest path of the audio encoder's own CTC head ("ctc"), a beam search over
        it with the Thinker as language model ("ctc-beam"), or the Thinker's answer when asked, window by window ("thinker")."""
        if decoder not in DECODERS:
            raise ConfigError(f"no decoder {decoder!r}; known: {', '.join(DECODERS)}")
        wave = self.waveform(audio)
        if decoder == "ctc":
            return next(heard for heard in self.transcripts(wave) if heard.complete).text
        config = self.model.config
        if decoder == "ctc-beam":
            search = self.beam_search
            log_probabilities = torch.cat([logits.float().log_softmax(-1) for logits, _ in self._ctc_logits(wave)])
            pieces = segments(log_probabilities, int(WINDOW_S * config.encoder_rate_hz) * config.audio_encoder.ctc_slots)
            return " ".join(text for piece in pieces if (text := search(piece)[0].text.strip()))
        longest = config.max_audio_tokens * config.audio_encoder.downsample * config.audio.hop_samples
        parts = np.array_split(wave, -(-len(wave) // longest))  # of equal length: a short last one would have nothing to hear
        return " ".join(text for part in parts if (text := self.ask(TRANSCRIBE, audio=part).text.strip()))

    def transcripts(self, audio: Sound) -> Iterator[Transcript]:
        """What is said in a recording of any length and when, as far as it has been heard: one window more each time, the whole at last."""
        config = self.model.config
        path: list[int] = []
        slot_s = 1 / (config.encoder_rate_hz * config.audio_encoder.ctc_slots)
        for logits, last in self._ctc_logits(self.waveform(audio)):
            path += logits.argmax(-1).tolist()
            yield Transcript(tuple(path), slot_s, last)

    @torch.inference_mode()
    def ctc_logits(self, mels: Sequence[Tensor]) -> list[Tensor]:
        """Log-mels (T,mels) of a few seconds each → what the audio encoder's own head reads in them: float32 logits (slots, characters) on the CPU.
        Matrix products are in bfloat16 where the device computes with it, which takes a third of the time."""
        encoder = self.model.audio_encoder
        padded = pad_sequence(list(mels), batch_first=True, padding_value=SILENCE).to(self.device)
        with autocast(self.device, autocast_dtype(self.device, "auto")):
            states, lengths = encoder(padded, torch.tensor([len(mel) for mel in mels], device=self.device))
            logits = encoder.ctc_logits(states, lengths).float().cpu()
        slots = lengths * self.model.config.audio_encoder.ctc_slots
        return [row[:n] for row, n in zip(logits, slots.tolist(), strict=True)]

    @torch.inference_mode()
    def _ctc_logits(self, wave: np.ndarray) -> Iterator[tuple[Tensor, bool]]:
        """(slots, characters) on the CPU, piece by piece, and whether it is the last, from windows that overlap; every frame is decided by the
        window in whose middle it lies."""
        config = self.model.config
        frame = config.audio_encoder.downsample * config.audio.hop_samples  # samples of an encoder frame
        window = int(WINDOW_S * config.encoder_rate_hz)  # frames
        margin = int(OVERLAP_S / 2 * config.encoder_rate_hz)
        start = 0
        last = False
        while not last:
            last = (start + window) * frame >= len(wave)
            mel = self.log_mel(wave[start * frame : (start + window) * frame])
            logits = self.ctc_logits([mel])[0].unflatten(0, (-1, config.audio_encoder.ctc_slots))  # (frames, slots, characters)
            yield logits[margin if start else 0 : None if last else window - margin].flatten(0, 1), last
            start += window - 2 * margin

    # --- speaking

    def say(self, text: str, voice: str | None = None, *, sampling: Sampling = GREEDY) -> Speech:
        """A text as speech, however long. Raises DataError for a text without words, ConfigError for a voice that the model does not have."""
        return self.say_batch([text], voice, sampling=sampling)[0]

    def say_reply(self, reply: Reply, voice: str | None = None, *, sampling: Sampling = GREEDY) -> Reply:
        """A reply with its speech, or with a notice if it has no words. Raises ConfigError for a voice that the model does not have."""
        try:
            return replace(reply, speech=self.say(reply.text, voice, sampling=sampling))
        except DataError as error:
            return replace(reply, notices=[*reply.notices, f"the reply is not spoken: {error}"])

    def say_batch(
        self, texts: Sequence[str], voice: str | Sequence[str | None] | None = None, *, sampling: Sampling = GREEDY
    ) -> list[Speech]:
        """Several texts as speech, decoded together; each as it would be said alone. `voice`: for all, or one for each."""
        return self.speaker.say(texts, voice, sampling)

    def say_stream(self, text: str, voice: str | None = None, *, sampling: Sampling = GREEDY) -> Iterator[Speech]:
        """The same in pieces, each as soon as it is ready; joined, they are what `say` gives."""
        return self.speaker.stream(text, voice, sampling)
