"""The whole system as one module: encode pictures and sound, splice them into the text, run the Thinker, feed the Talker.

A checkpoint may hold only some components (a stage trains one or two); asking for an absent one is an error, never a random guess.

B batch  T positions  N pictures  M clips  d Thinker width"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from omni.audio import LogMel
from omni.audio_encoder import AudioEncoderTiny
from omni.checkpoint import SavedModel, load_into
from omni.codec import MelCodec
from omni.config import ModelConfig
from omni.contrastive import ContrastiveHeads
from omni.errors import CheckpointError, ConfigError
from omni.nn.transformer import Block, Transformer
from omni.projector import Projector
from omni.talker import Conditioning, TalkerTiny
from omni.thinker import ThinkerLM
from omni.vision_encoder import ViTTiny
from omni.vocoder import GriffinLim, NeuralVocoder

COMPONENTS = ("thinker", "vision_encoder", "audio_encoder", "image_projector", "audio_projector", "talker", "codec", "vocoder")
VOCODERS = ("neural", "griffin-lim")
MORE_COMPONENTS = ("contrastive",)  # for measuring; a checkpoint may hold them, no interface needs them


def with_section(config: ModelConfig, component: str, source: ModelConfig) -> ModelConfig:
    """`config` with the section that describes `component` as `source` has it."""
    section = "projectors" if component.endswith("_projector") else component
    return config if component in MORE_COMPONENTS else config.model_copy(update={section: getattr(source, section)})


class OmniModel(nn.Module):
    """The components named in `components`, built from `config`; state-dict keys begin with a component's name."""

    thinker: ThinkerLM
    vision_encoder: ViTTiny
    audio_encoder: AudioEncoderTiny
    image_projector: Projector
    audio_projector: Projector
    talker: TalkerTiny
    codec: MelCodec
    vocoder: NeuralVocoder | GriffinLim
    contrastive: ContrastiveHeads

    def __init__(self, config: ModelConfig, components: Sequence[str] = COMPONENTS) -> None:
        super().__init__()
        known = COMPONENTS + MORE_COMPONENTS
        unknown = set(components) - set(known)
        if unknown:
            raise CheckpointError(f"unknown components {sorted(unknown)}; known: {', '.join(known)}")
        self.config = config
        self.components = tuple(name for name in known if name in components)
        width = config.thinker.d_model
        make: dict[str, Callable[[], nn.Module]] = {
            "thinker": lambda: ThinkerLM(config.thinker),
            "vision_encoder": lambda: ViTTiny(config.vision_encoder),
            "audio_encoder": lambda: AudioEncoderTiny(config.audio_encoder, config.audio.n_mels),
            "image_projector": lambda: Projector(config.projectors.kind, config.vision_encoder.d_model, width),
            "audio_projector": lambda: Projector(config.projectors.kind, config.audio_encoder.d_model, width),
            "talker": lambda: TalkerTiny(config.talker, config.codec, width, config.audio.n_mels),
            "codec": lambda: MelCodec(config.codec, config.audio.n_mels),
            "vocoder": lambda: NeuralVocoder(config.audio, config.vocoder),
            "contrastive": lambda: ContrastiveHeads(config.vision_encoder.d_model, width),
        }
        for name in self.components:
            setattr(self, name, make[name]())
        # without weights, so in every model and in no checkpoint
        self.log_mel = LogMel(config.audio)
        if "vocoder" not in self.components:
            self.vocoder = GriffinLim(config.audio, config.vocoder)

    @classmethod
    def from_saved(cls, saved: SavedModel, vocoder: str | None = None) -> OmniModel:
        """The model in a checkpoint, in evaluation mode, with one of VOCODERS; None: the neural one if the checkpoint has one. Raises
        CheckpointError that names a missing or mismatched tensor, or when the neural vocoder is asked for and not there."""
        if vocoder not in (None, *VOCODERS):
            raise ConfigError(f"no vocoder {vocoder!r}; known: {', '.join(VOCODERS)}")
        if vocoder == "neural" and "vocoder" not in saved.components:
            raise CheckpointError(f"{saved.folder}: has no neural vocoder (it holds {', '.join(saved.components)}); use griffin-lim")
        model = cls(saved.config, [name for name in saved.components if name != "vocoder" or vocoder != "griffin-lim"])
        model.load_components(saved)
        return model.eval()

    def __getattr__(self, name: str) -> Any:
        """An absent component is the user's to mend: this checkpoint cannot do what was asked."""
        if name in COMPONENTS + MORE_COMPONENTS and name not in self._modules:
            held = ", ".join(self.components)
            raise CheckpointError(f"this checkpoint has no {name} (it holds {held}); use one whose training included it")
        return super().__getattr__(name)

    def tensors(self, components: Sequence[str] | None = None) -> dict[str, Tensor]:
        """The weights of `components` (default: all), keyed `component.name`, as a checkpoint holds them."""
        tensors = {
            f"{name}.{key}": value for name in components or self.components for key, value in getattr(self, name).state_dict().items()
        }
        return MelCodec.without_statistics(tensors)

    def load_components(self, saved: SavedModel, only: Sequence[str] | None = None) -> None:
        """Take over the components that both this model and `saved` have (or those named in `only`)."""
        for name in only or [n for n in self.components if n in saved.components]:
            if name not in saved.components:
                raise CheckpointError(f"{saved.folder}: has no {name} (it holds {', '.join(saved.components)})")
            prefix = f"{name}."
            tensors = {key.removeprefix(prefix): value for key, value in saved.tensors.items() if key.startswith(prefix)}
            module = getattr(self, name)
            if isinstance(module, MelCodec):
                tensors = module.with_statistics(tensors)
            load_into(module, tensors, f"{saved.folder}: {name}")

    @property
    def vocoder_name(self) -> str:
        """What makes its waveforms: the trained vocoder, or Griffin-Lim where there is none."""
        return "neural" if "vocoder" in self.components else "griffin-lim"

    def set_gradient_checkpointing(self, on: bool) -> None:
        """Recompute every block's activations in the backward pass instead of keeping them (Chen et al. 2016)."""
        for module in self.modules():
            if isinstance(module, Transformer):
                module.gradient_checkpointing = on

    def shard_units(self) -> list[nn.Module]:
        """The blocks that FSDP shards one by one."""
        return [module for module in self.modules() if isinstance(module, Block)]

    # --- understanding

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Pixels (N,3,H,W) → Thinker embeddings (N, n_image_tokens, d)."""
        return self.image_projector(self.vision_encoder.image_tokens(pixels))

    def encode_audio(self, mel: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Scaled log-mel (M,T,mels) → Thinker embeddings (M,F,d) and their lengths (M,)."""
        states, lengths = self.audio_encoder(mel, lengths)
        return self.audio_projector(states), lengths

    def embed(
        self,
        input_ids: Tensor,
        *,
        pixels: Tensor | None = None,
        images: Tensor | None = None,
        image_slots: Tensor | None = None,
        mel: Tensor | None = None,
        mel_lengths: Tensor | None = None,
        audio_slots: Tensor | None = None,
    ) -> Tensor:
        """ids (B,T) → embeddings (B,T,d) with media in their places.

        `image_slots` (N,2) holds (row, start) of each picture in `pixels`, or of those encoded already in `images` (N, n_image_tokens, d);
        `audio_slots` (M,3) holds (row, start, length) of each clip in `mel`; a clip longer than its slot is cut to it.
        """
        x = self.thinker.tok_emb(input_ids)
        if pixels is not None and len(pixels):
            images = self.encode_images(pixels)
        if images is not None:
            assert image_slots is not None and len(image_slots) == len(images)
            column = image_slots[:, 1:2] + torch.arange(images.shape[1], device=x.device)
            x = x.index_put((image_slots[:, :1].expand_as(column), column), images.to(x.dtype))
        if mel is not None and len(mel):
            assert audio_slots is not None and len(audio_slots) == len(mel)
            sounds, _ = self.encode_audio(mel, mel_lengths)
            frame = torch.arange(sounds.shape[1], device=x.device)
            clip, at = (frame < audio_slots[:, 2:]).nonzero(as_tuple=True)
            x = x.index_put((audio_slots[clip, 0], audio_slots[clip, 1] + at), sounds[clip, at].to(x.dtype))
        return x

    # --- speaking

    @torch.no_grad()
    def reply_states(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        """The Thinker's states (B,T,d) over the reply's own ids: what the Talker is conditioned on. No gradient goes into the Thinker."""
        return self.thinker.hidden_states(input_ids, lengths=lengths)

    def condition(
        self,
        input_ids: Tensor,
        lengths: Tensor,
        char_ids: Tensor,
        char_tokens: Tensor,
        char_lengths: Tensor,
        voices: Tensor,
        keep_states: Tensor | None = None,
    ) -> Conditioning:
        """What the Talker is to say. `keep_states` (B,) false drops a row's Thinker states (conditioning dropout, or its ablation)."""
        states = self.reply_states(input_ids, lengths)
        if keep_states is not None:
            states = states * keep_states[:, None, None].to(states.dtype)
        return self.talker.conditioning(states, char_ids, char_tokens, char_lengths, voices)
