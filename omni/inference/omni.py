"""`Omni`: a trained model behind five verbs."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from omni.audio import load_audio
from omni.characters import BLANK_ID, decode_characters
from omni.chat import MediaBudget, Message, parts_of, render
from omni.checkpoint import find_checkpoint, load_model
from omni.errors import CheckpointError, ConfigError, DataError
from omni.image import load_image, to_pixels, video_frames
from omni.inference.engine import Engine, Prompt
from omni.inference.sampling import Sampling
from omni.inference.speech import Speaker, Speech
from omni.omni_model import OmniModel
from omni.tokenizer import BPETokenizer

log = logging.getLogger(__name__)

DEFAULT_CHECKPOINT = "checkpoints/omni-tiny"
DESCRIBE, TRANSCRIBE = "Describe the picture.", "Write down what you hear."
DECODERS = ("ctc", "thinker")
WINDOW_S, OVERLAP_S = 20.0, 4.0  # of long recordings: windows overlap, and each answers for the part far from its ends
GREEDY = Sampling()


@dataclass(frozen=True)
class Reply:
    """What the model answered; `notices` say what of the conversation did not fit; `speech` if it was asked to speak."""

    text: str
    notices: list[str]
    speech: Speech | None = None


class Omni:
    """Text, pictures and sound in; text and speech out."""

    def __init__(self, model: OmniModel, tokenizer: BPETokenizer, folder: Path | None = None) -> None:
        self.model, self.tokenizer, self.folder = model.eval(), tokenizer, folder
        self.engine, self.speaker = Engine(model, tokenizer), Speaker(model, tokenizer)

    @classmethod
    def from_pretrained(cls, folder: str | Path | None = None, device: str | None = None) -> Omni:
        """Load a checkpoint folder (or a run's best). Raises CheckpointError when it is missing, damaged or of another shape."""
        if folder is None and not Path(DEFAULT_CHECKPOINT).is_dir():
            raise CheckpointError(f"{DEFAULT_CHECKPOINT}: no such checkpoint; name one with --ckpt, or make one: muomni train pocket --preset nano")
        saved = load_model(find_checkpoint(folder or DEFAULT_CHECKPOINT))
        if saved.tokenizer is None:
            raise CheckpointError(f"{saved.folder}: has no tokenizer.model, so it cannot read or write text")
        model = OmniModel.from_saved(saved)
        chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            model = model.to(chosen)
        except (RuntimeError, AssertionError) as error:
            raise ConfigError(f"device {chosen!r} cannot be used: {str(error).splitlines()[0]}") from None
        parameters = sum(p.numel() for p in model.parameters())
        log.info("loaded %s: %s, %s parameters, on %s", saved.folder, ", ".join(model.components), f"{parameters:,}", chosen)
        return cls(model, BPETokenizer(saved.tokenizer), saved.folder)

    @property
    def voices(self) -> tuple[str, ...]:
        """Names for `say`."""
        return self.model.config.talker.voices

    # --- understanding

    def prompt(self, messages: Sequence[Message], *, reserve: int, strict: bool = False) -> Prompt:
        """A conversation ready for the engine; pictures may be paths or PIL images, sounds paths or 16 kHz waveforms."""
        config = self.model.config
        mels: dict[int, Tensor] = {}
        for message in messages:
            for kind, value in parts_of(message):
                if kind == "audio":
                    mels[id(value)] = self.log_mel(value)
        budget = MediaBudget(
            config.vision_encoder.n_image_tokens,
            lambda value: -(-len(mels[id(value)]) // config.audio_encoder.downsample),
            config.max_audio_tokens,
        )
        room = min(reserve, config.thinker.context_length // 2)
        rendered = render(messages, self.tokenizer, budget, config.thinker.context_length, reserve=room, add_generation_prompt=True, strict=strict)
        pixels = [self._pixels(span.source) for span in rendered.media if span.kind == "image"]
        return Prompt(rendered, pixels, [mels[id(span.source)] for span in rendered.media if span.kind == "audio"])

    def log_mel(self, sound: str | Path | np.ndarray) -> Tensor:
        """A file or a 16 kHz waveform (n,) as scaled log-mel (T,mels) on the CPU."""
        wave = load_audio(sound, self.model.config.audio.sample_rate_hz) if isinstance(sound, (str, Path)) else sound
        device = self.engine.device
        return self.model.log_mel(torch.from_numpy(np.ascontiguousarray(wave)).to(device)).cpu()

    def _pixels(self, picture: str | Path | Image.Image) -> Tensor:
        image = picture if isinstance(picture, Image.Image) else load_image(picture)
        return to_pixels(image, self.model.config.vision_encoder.image_size)

    def chat(self, messages: Sequence[Message], sampling: Sampling = GREEDY, *, strict: bool = False) -> Reply:
        """Answer the last message of a conversation."""
        return self.chat_batch([messages], sampling, strict=strict)[0]

    def chat_batch(self, conversations: Sequence[Sequence[Message]], sampling: Sampling = GREEDY, *, strict: bool = False) -> list[Reply]:
        """Answer several conversations together; each as it would be answered alone."""
        prompts = [self.prompt(messages, reserve=sampling.max_new_tokens, strict=strict) for messages in conversations]
        replies = self.engine.generate(prompts, sampling)
        return [Reply(self.tokenizer.decode(r.ids), p.rendered.notices) for p, r in zip(prompts, replies, strict=True)]

    def chat_stream(self, messages: Sequence[Message], sampling: Sampling = GREEDY, *, strict: bool = False) -> tuple[list[str], Iterator[str]]:
        """The notices, and the answer in pieces as they come."""
        prompt = self.prompt(messages, reserve=sampling.max_new_tokens, strict=strict)
        return prompt.rendered.notices, self.engine.stream(prompt, sampling)

    def ask(
        self,
        text: str | None = None,
        *,
        image: str | Path | Image.Image | None = None,
        audio: str | Path | np.ndarray | None = None,
        video: str | Path | None = None,
        speak: bool = False,
        voice: str | None = None,
        sampling: Sampling = GREEDY,
        strict: bool = False,
    ) -> Reply:
        """One question by text, picture, sound or video (one frame a second), answered in text and, if `speak`, aloud."""
        content, notices = self.question(text, image=image, audio=audio, video=video)
        reply = self.chat([{"role": "user", "content": content}], sampling, strict=strict)
        speech = self.say(reply.text, voice=voice, sampling=sampling) if speak else None
        return Reply(reply.text, notices + reply.notices, speech)

    def question(self, text: str | None, *, image: Any = None, audio: Any = None, video: Any = None) -> tuple[list[dict[str, Any]], list[str]]:
        """The parts of a user message, and notices. Raises DataError when there is nothing in it."""
        content: list[dict[str, Any]] = []
        notices: list[str] = []
        if image is not None:
            content.append({"type": "image", "image": image})
        if video is not None:
            frames = video_frames(video)
            config = self.model.config
            most = max(1, config.thinker.context_length // 2 // (config.vision_encoder.n_image_tokens + 2))
            if len(frames) > most:
                notices.append(f"{video}: {len(frames)} frames exceed half of the context: kept the first {most}")
            content += [{"type": "image", "image": frame} for frame in frames[:most]]
        if audio is not None:
            content.append({"type": "audio", "audio": audio})
        if text:
            content.append({"type": "text", "text": text})
        if not content:
            raise DataError("nothing was asked: give a text, a picture, a sound or a video")
        return content, notices

    def describe(self, image: str | Path | Image.Image, sampling: Sampling = GREEDY) -> str:
        """What is in a picture."""
        return self.ask(DESCRIBE, image=image, sampling=sampling).text

    def transcribe(self, audio: str | Path | np.ndarray, decoder: str = "ctc") -> str:
        """What is said in a recording of any length: by the audio encoder's own CTC head, or by asking the Thinker window by window."""
        if decoder not in DECODERS:
            raise ConfigError(f"no decoder {decoder!r}; known: {', '.join(DECODERS)}")
        mel = self.log_mel(audio)
        if decoder == "ctc":
            return self._ctc(mel)
        rate = self.model.config.audio.mel_rate_hz
        window = int(self.model.config.max_audio_tokens * self.model.config.audio_encoder.downsample)
        wave = load_audio(audio) if isinstance(audio, (str, Path)) else audio
        samples = int(window / rate * self.model.config.audio.sample_rate_hz)
        parts = [wave[start : start + samples] for start in range(0, len(wave), samples)]
        return " ".join(self.ask(TRANSCRIBE, audio=part).text for part in parts)

    @torch.inference_mode()
    def _ctc(self, mel: Tensor) -> str:
        """Greedy CTC over windows that overlap; every frame is decided by the window in whose middle it lies."""
        encoder, config = self.model.audio_encoder, self.model.config
        stride = config.audio_encoder.downsample
        window = int(WINDOW_S * config.audio.mel_rate_hz) // stride * stride
        margin = int(OVERLAP_S / 2 * config.audio.mel_rate_hz) // stride * stride
        path: list[Tensor] = []
        start = 0
        while True:
            states, _ = encoder(mel[None, start : start + window].to(self.engine.device))
            best = encoder.ctc_logits(states)[0].argmax(-1).cpu().unflatten(0, (-1, config.audio_encoder.ctc_slots))  # (frames, slots)
            last = start + window >= len(mel)
            first = 0 if start == 0 else margin // stride
            path.append(best[first : None if last else (window - margin) // stride])
            if last:
                break
            start += window - 2 * margin
        merged = torch.unique_consecutive(torch.cat(path).flatten())
        return decode_characters(merged[merged != BLANK_ID].tolist())

    # --- speaking

    def say(self, text: str, *, voice: str | None = None, sampling: Sampling = GREEDY) -> Speech:
        """A text as speech, however long: clause by clause if need be."""
        parts = list(self.say_stream(text, voice=voice, sampling=sampling))
        return Speech(np.concatenate([p.waveform for p in parts]), parts[0].sample_rate_hz, torch.cat([p.codes for p in parts]), all(p.ended for p in parts))

    def say_stream(self, text: str, *, voice: str | None = None, sampling: Sampling = GREEDY) -> Iterator[Speech]:
        """The same clause by clause, each as soon as it is ready."""
        if not text.strip():
            raise DataError("there is nothing to say: the text is empty")
        return self.speaker.stream(text, voice, sampling)
