"""Sound as ids and back, behind one protocol (`omni.speech_tokens.AudioTokenizer`): our own codec, and SNAC.

n samples  K codebooks  F frames"""

from __future__ import annotations

import math
import operator
import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from omni.audio import as_waveform, load_audio
from omni.checkpoint import SavedModel, find_checkpoint, load_model
from omni.errors import CheckpointError, ConfigError, DataError
from omni.omni_model import OmniModel
from omni.speech_tokens import ScaleLayout

Sound = str | Path | np.ndarray | Tensor  # a file, or a waveform (n,) at the tokenizer's sample rate
Ids = Sequence[int] | Tensor
SPEAKING = ("codec", "vocoder")  # components of a checkpoint that turn codes into sound
SNAC_FILES = ("config.json", "pytorch_model.bin")


def id_list(ids: Ids) -> list[int]:
    """Ids as a list, from a sequence or a tensor (n,) or (1,n)."""
    if isinstance(ids, Tensor):
        if ids.is_floating_point() or ids.dim() > 2 or (ids.dim() == 2 and len(ids) != 1):
            raise DataError(f"ids are one row of whole numbers, found {ids.dtype} of shape {tuple(ids.shape)}")
        return ids.flatten().tolist()
    try:
        return [operator.index(i) for i in ids]
    except TypeError:
        raise DataError(f"ids are one row of whole numbers, found {ids!r:.80}") from None


def waveform_of(sound: Sound, sample_rate_hz: int) -> Tensor:
    """A file or waveform as float32 (n,). Raises DataError if it is no use."""
    if isinstance(sound, str | Path):
        return torch.from_numpy(load_audio(sound, sample_rate_hz))
    return as_waveform(sound)


class CodecTokenizer:
    """μOmni's own codec: one frame of K codes every 80 ms. `codebooks` uses only the first so many of its codebooks: fewer ids, coarser sound."""

    def __init__(self, model: OmniModel, codebooks: int | None = None) -> None:
        """`model` has the codec, and makes waveforms with its vocoder. Raises ConfigError for more codebooks than there are."""
        self.model = model.eval()
        config = model.codec.config
        if codebooks is not None and codebooks > config.n_codebooks:
            raise ConfigError(f"speech_lm.codebooks {codebooks}: the codec has {config.n_codebooks}")
        self.layout = ScaleLayout(config.codebook_size, (1,) * (codebooks or config.n_codebooks))

    @classmethod
    def from_saved(cls, saved: SavedModel, codebooks: int | None = None) -> CodecTokenizer:
        """The codec of a checkpoint, and its vocoder if it has one, else Griffin-Lim. Raises CheckpointError without a codec."""
        model = OmniModel(saved.config, [name for name in SPEAKING if name in saved.components])
        getattr(model, SPEAKING[0])  # says what the checkpoint lacks
        model.load_components(saved)
        return cls(model, codebooks)

    @classmethod
    def from_pretrained(cls, folder: str | Path, codebooks: int | None = None) -> CodecTokenizer:
        """From a model folder."""
        return cls.from_saved(load_model(find_checkpoint(folder)), codebooks)

    @property
    def sample_rate_hz(self) -> int:
        """Of waveforms."""
        return self.model.config.audio.sample_rate_hz

    @property
    def samples_per_frame(self) -> int:
        """Of one frame of codes."""
        return self.model.config.codec.stride * self.model.config.audio.hop_samples

    @torch.inference_mode()
    def encode_audio(self, audio: Sound) -> list[int]:
        """Ids of a clip, ceil(n / samples_per_frame) frames between the markers. Raises DataError for a file or waveform that is no use."""
        wave = waveform_of(audio, self.sample_rate_hz).to(self.model.log_mel.window.device)
        codes = self.model.codec.encode(self.model.log_mel(wave)[None])[0]  # (F, K)
        return self.layout.to_ids(codes[:, : self.layout.n_codebooks].T.tolist())

    @torch.inference_mode()
    def decode_audio(self, tokens: Ids) -> np.ndarray:
        """The waveform (F · samples_per_frame,) of the whole frames among `tokens` (see `ScaleLayout.read_frames`)."""
        codes = self.layout.to_codes(id_list(tokens))
        if not codes[0]:
            return np.zeros(0, np.float32)
        frames = torch.tensor(codes, device=self.model.log_mel.window.device).T[None]  # (1, F, K)
        return self.model.vocoder(self.model.codec.decode(frames))[0].float().cpu().numpy()


class SNACTokenizer:
    """SNAC (Siuzdak et al. 2024) from the `snac` package: a hub name such as hubertsiuzdak/snac_24khz, or a local folder with config.json and
    pytorch_model.bin. Three scales at 24 kHz, four at 32 and 44 kHz.

    Its decoder adds noise from torch's random generator: with one seed, one sound."""

    def __init__(self, name: str | Path = "hubertsiuzdak/snac_24khz", device: str | torch.device = "cpu") -> None:
        """Raises ConfigError without the package, CheckpointError for a model that is not there, cannot be fetched or is damaged."""
        self.name = str(name)
        self.snac = _load_snac(str(name)).to(device).eval().requires_grad_(False)
        strides = self.snac.vq_strides
        self.layout = ScaleLayout(self.snac.codebook_size, tuple(strides[0] // stride for stride in strides))

    @property
    def sample_rate_hz(self) -> int:
        """Of waveforms."""
        return self.snac.sampling_rate

    @property
    def samples_per_frame(self) -> int:
        """Of one code of the coarsest scale."""
        return int(self.snac.hop_length) * self.snac.vq_strides[0]

    @torch.inference_mode()
    def encode_audio(self, audio: Sound) -> list[int]:
        """Ids of a clip between the markers; the clip is padded with silence to whole frames, and to what the model's attention needs."""
        wave = waveform_of(audio, self.sample_rate_hz).to(next(self.snac.parameters()).device)
        return self.layout.to_ids([row[0].tolist() for row in self.snac.encode(wave[None, None])])

    @torch.inference_mode()
    def decode_audio(self, tokens: Ids) -> np.ndarray:
        """The waveform (F · samples_per_frame,) of the whole frames among `tokens` (see `ScaleLayout.read_frames`). Where the model's attention
        wants more frames the last is repeated, and cut off again."""
        codes = self.layout.to_codes(id_list(tokens))
        n_frames = len(codes[0])
        if not n_frames:
            return np.zeros(0, np.float32)
        window = math.lcm(self.snac.vq_strides[0], self.snac.attn_window_size or 1) // self.snac.vq_strides[0]  # frames
        missing = -n_frames % window
        device = next(self.snac.parameters()).device
        rows = [torch.tensor([row + row[-rate:] * missing], device=device) for row, rate in zip(codes, self.layout.rates, strict=True)]
        return self.snac.decode(rows)[0, 0, : n_frames * self.samples_per_frame].float().cpu().numpy()


def _load_snac(name: str) -> Any:
    try:
        from snac import SNAC
    except ImportError:
        raise ConfigError("SNAC needs the snac package; install it with: pip install -c constraints.txt -e .[snac]") from None
    folder = Path(name)
    for file in SNAC_FILES if folder.is_dir() else ():
        if not (folder / file).is_file():
            raise CheckpointError(f"{folder / file}: no such file; a SNAC model is {' and '.join(SNAC_FILES)}")
    if not folder.is_dir() and not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        raise CheckpointError(f"{name}: no such folder, and not a hub name such as hubertsiuzdak/snac_24khz")
    from huggingface_hub.errors import HTTPError

    try:  # files that are no model, a hub that cannot be reached, proxies and broken connections
        return SNAC.from_pretrained(name)
    except (EOFError, ValueError, RuntimeError, TypeError, KeyError, pickle.UnpicklingError, OSError, HTTPError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if folder.is_dir():
            raise CheckpointError(f"{folder}: not a SNAC model ({reason})") from None
        raise CheckpointError(
            f"{name}: cannot be fetched from the hub ({reason}); name a local folder with {' and '.join(SNAC_FILES)} instead"
        ) from None
