"""From log-mel to a waveform: Griffin-Lim, which has no weights, and a trained network that streams.

B batch  T mel frames  n = T·hop samples  d width"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omni.audio import LOG_MEAN, LOG_STD, SILENCE, LogMel, hz_to_mel, unscale_mel
from omni.config import VOCODER_OVERLAP, AudioConfig, VocoderConfig

LOUDEST = 6.0  # scaled log-mel; no waveform within [-1, 1] reaches it, and its exponential is still finite


class GriffinLim(nn.Module):
    """Scaled log-mel (B,T,mels) → waveform (B, T·hop), by fast Griffin-Lim (Perraudin et al. 2013, eq. 11) from zero phase.

    The phase is found by going back and forth between the wanted magnitudes and the nearest real waveform, with momentum.
    """

    inverse: Tensor

    def __init__(self, audio: AudioConfig, config: VocoderConfig) -> None:
        super().__init__()
        self.config = config
        self.front_end = LogMel(audio)
        self.register_buffer("inverse", torch.linalg.pinv(self.front_end.filters.double()).float(), persistent=False)

    @torch.no_grad()
    def forward(self, mel: Tensor) -> Tensor:
        """The waveform; scaled down only where its peak would exceed 1."""
        with torch.autocast(mel.device.type, enabled=False):
            return self._synthesize(unscale_mel(mel.float().clamp(max=LOUDEST)))

    def mel_to_audio(self, mel: np.ndarray, domain: str = "auto") -> np.ndarray:
        """mel (T,mels) → (T·hop,). `domain`: "log" (scaled log-mel), "magnitude", or "auto": a mel with any negative value is a log."""
        x = torch.as_tensor(mel, dtype=torch.float32)[None]
        is_log = domain == "log" or (domain == "auto" and bool((x < 0).any()))
        return (self(x) if is_log else self._synthesize(x))[0].numpy()

    def _synthesize(self, mel: Tensor) -> Tensor:
        """Magnitude mel (B,T,mels) → (B, T·hop)."""
        magnitude = (mel @ self.inverse).clamp(min=0.0)  # (B, T, bins)
        spectrum = magnitude.to(torch.complex64)
        previous = torch.zeros_like(spectrum)
        for _ in range(self.config.griffin_lim_rounds):
            rebuilt = self.front_end.stft(self._waveform(spectrum))[:, : magnitude.shape[1]]
            ahead = rebuilt + self.config.momentum * (rebuilt - previous)
            spectrum = magnitude * ahead / ahead.abs().clamp(min=1e-8)
            previous = rebuilt
        wave = self._waveform(spectrum)
        return wave / wave.abs().amax(dim=-1, keepdim=True).clamp(min=1.0)

    def _waveform(self, spectrum: Tensor) -> Tensor:
        """(B,T,bins) → (B, T·hop). The last frame is repeated: the inverse STFT needs the one centred on the end."""
        c = self.front_end.config
        length = spectrum.shape[1] * c.hop_samples
        spectrum = F.pad(torch.view_as_real(spectrum).flatten(2).transpose(1, 2), (0, 1), mode="replicate").transpose(1, 2)
        spectrum = torch.view_as_complex(spectrum.unflatten(2, (-1, 2)).contiguous())
        return torch.istft(
            spectrum.transpose(1, 2), c.n_fft, c.hop_samples, c.window_samples, self.front_end.window, center=True, length=length
        )


# --- the neural vocoder

KERNEL = 7  # frames that a convolution sees: its own and the six before it
LOUDEST_NATS = 6.0  # of the logarithm of a spectral magnitude: above that of a full-scale sine
State = list[Tensor]


class ConvNeXtBlock(nn.Module):
    """x + scale · down(gelu(up(norm(depthwise(x))))), (B,T,d) → (B,T,d) (Liu et al. 2022, §2; along time as in Siuzdak 2023, §3.2).
    `past` (B,KERNEL-1,d) is what came before x; the new past comes back."""

    def __init__(self, d: int, d_ff: int, scale: float) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(d, d, (KERNEL, 1), groups=d)
        self.norm = nn.LayerNorm(d)
        self.up, self.down = nn.Linear(d, d_ff), nn.Linear(d_ff, d)
        self.scale = nn.Parameter(torch.full((d,), scale))

    def forward(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        seen = torch.cat((past, x), dim=1)
        # as a picture (B,d,T,1), of which (B,T,d) is the channels-last layout: several times as fast on CPUs as a 1-D convolution
        y = self.depthwise(seen.transpose(1, 2)[..., None])[..., 0].transpose(1, 2)
        return x + self.scale * self.down(F.gelu(self.up(self.norm(y)))), seen[:, 1 - KERNEL :]


def mel_to_bins(config: AudioConfig, n_bins: int) -> Tensor:
    """(mels, n_bins): linear interpolation from the centres of the mel filters to `n_bins` evenly spaced frequencies."""
    low, high = hz_to_mel(np.array([config.f_min_hz, config.f_max_hz]), config.filter_bank)
    mels = hz_to_mel(np.linspace(0.0, config.sample_rate_hz / 2, n_bins), config.filter_bank)
    place = np.clip((mels - low) / (high - low) * (config.n_mels + 1) - 1, 0, config.n_mels - 1)
    return torch.from_numpy(np.clip(1 - abs(place - np.arange(config.n_mels)[:, None]), 0.0, None)).float()


class NeuralVocoder(nn.Module):
    """Scaled log-mel (B,T,mels) → waveform (B, T·hop): ConvNeXt blocks at the mel rate, then an inverse STFT of the magnitudes and phases
    that they predict (Vocos, Siuzdak 2023, §3). Of the magnitudes they predict only the difference from the mel's own, which saves most of
    the training (docs/log.md).

    Everything is causal. What it sees of the future comes from a delay alone: the 10 ms of frame t are spoken when frame
    t + `look_ahead_frames` has been read. Before and behind a clip is silence. Whole clips and pieces go through the same code, `advance`.
    """

    window: Tensor
    to_bins: Tensor

    def __init__(self, audio: AudioConfig, config: VocoderConfig) -> None:
        super().__init__()
        self.audio, self.config = audio, config
        d, self.n_fft = config.d_model, VOCODER_OVERLAP * audio.hop_samples
        self.first = nn.Linear(KERNEL * audio.n_mels, d)  # a convolution
        self.first_norm = nn.LayerNorm(d)
        self.blocks = nn.ModuleList(ConvNeXtBlock(d, config.d_ff, 1 / config.n_blocks) for _ in range(config.n_blocks))
        self.last_norm = nn.LayerNorm(d)
        self.head = nn.Linear(d, self.n_fft + 2)
        # squared Hann windows, one hop apart, add up to 3/8 of their number
        self.register_buffer("window", torch.hann_window(self.n_fft) / (VOCODER_OVERLAP * 3 / 8), persistent=False)
        self.register_buffer("to_bins", mel_to_bins(audio, self.n_fft // 2 + 1), persistent=False)
        # a mel filter of unit area holds n_fft / sample_rate of the magnitude, which grows with the window
        self.gain_nats = math.log(audio.sample_rate_hz / audio.n_fft * self.n_fft / audio.window_samples)
        self.ahead = config.look_ahead_frames - VOCODER_OVERLAP // 2  # of the frame in the middle of the inverse STFT's window
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=0.02)
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        with torch.no_grad():  # at first a pulse in the middle of every frame
            self.head.bias.chunk(2)[1][1::2] = math.pi

    @property
    def look_ahead_frames(self) -> int:
        """Mel frames behind a frame that must be there before its samples are final, those under the inverse STFT's window included."""
        return self.config.look_ahead_frames

    @property
    def look_ahead_ms(self) -> float:
        """The same in milliseconds. (A mel measured from sound has itself looked half a window ahead.)"""
        return 1000 * self.look_ahead_frames / self.audio.mel_rate_hz

    @torch.no_grad()
    def forward(self, mel: Tensor) -> Tensor:
        """The waveform, within [-1, 1]."""
        return self.generate(torch.cat((mel, self.silence(mel)), dim=1)).clamp(-1.0, 1.0)

    def generate(self, mel: Tensor) -> Tensor:
        """mel (B, T + look_ahead_frames, mels) → (B, T·hop), not clipped, with gradient."""
        waveform, _ = self.advance(mel, self.start(mel))
        return waveform[:, self.look_ahead_frames * self.audio.hop_samples :]

    def stream(self) -> VocoderStream:
        """One clip in pieces."""
        return VocoderStream(self)

    def silence(self, mel: Tensor) -> Tensor:
        """(B, look_ahead_frames, mels): what follows a clip."""
        return mel.new_full((len(mel), self.look_ahead_frames, self.audio.n_mels), SILENCE)

    def start(self, mel: Tensor) -> State:
        """Before the first frame of `mel`: silence for the first convolution, zeros for the others and for the sum of the inverse STFT."""
        batch, d, hop = len(mel), self.config.d_model, self.audio.hop_samples
        return [
            mel.new_full((batch, KERNEL - 1, self.audio.n_mels), SILENCE),
            *(mel.new_zeros(batch, KERNEL - 1, d) for _ in self.blocks),
            mel.new_zeros(batch, VOCODER_OVERLAP - 1, hop),
        ]

    def advance(self, mel: Tensor, state: State) -> tuple[Tensor, State]:
        """The next T ≥ 1 mel frames (B,T,mels) → the waveform (B, T·hop) that they complete, which is `look_ahead_frames` behind, and the
        state to go on from: the last inputs of every convolution, and the overlapping ends of the last frames."""
        seen = torch.cat((state[0], mel.clamp(SILENCE, LOUDEST)), dim=1)
        after = [seen[:, 1 - KERNEL :]]
        x = self.first_norm(self.first(seen.unfold(1, KERNEL, 1).flatten(2)))
        for block, past in zip(self.blocks, state[1:-1], strict=True):
            x, past = block(x, past)
            after.append(past)
        with torch.autocast(mel.device.type, enabled=False):
            log_magnitude, phase = self.head(self.last_norm(x.float())).chunk(2, dim=-1)  # each (B, T, n_fft/2+1)
            at = KERNEL - 1 - self.ahead
            log_mel = seen[:, at : at + mel.shape[1]] * LOG_STD + LOG_MEAN  # of the frames that these magnitudes are of
            log_magnitude = log_magnitude + log_mel @ self.to_bins + self.gain_nats
            spectrum = torch.polar(log_magnitude.clamp(max=LOUDEST_NATS).exp(), phase)
            frames = torch.fft.irfft(spectrum, self.n_fft) * self.window
        parts = frames.unflatten(2, (VOCODER_OVERLAP, -1)).unbind(2)  # part k of frame t is for the hop t + k
        total = F.pad(state[-1], (0, 0, 0, mel.shape[1]))  # (B, T + overlap - 1, hop)
        for k, part in enumerate(parts):
            total = total + F.pad(part, (0, 0, k, VOCODER_OVERLAP - 1 - k))
        return total[:, : mel.shape[1]].flatten(1), [*after, total[:, mel.shape[1] :]]


class VocoderStream:
    """A clip that comes in pieces: all that `push` and `finish` give, joined, is what the vocoder gives for the whole."""

    def __init__(self, vocoder: NeuralVocoder) -> None:
        self._vocoder = vocoder
        self._state: State | None = None
        self._early = vocoder.look_ahead_frames  # so many hops still to come lie before the clip

    @torch.no_grad()
    def push(self, mel: Tensor) -> Tensor:
        """The next mel frames (1,T,mels), T ≥ 0 → the samples (1,n) that are final now."""
        if self._state is None:
            self._state = self._vocoder.start(mel)
        if not mel.shape[1]:
            return mel.new_zeros(1, 0)
        waveform, self._state = self._vocoder.advance(mel, self._state)
        early = min(self._early, mel.shape[1])
        self._early -= early
        return waveform[:, early * self._vocoder.audio.hop_samples :].clamp(-1.0, 1.0)

    def finish(self) -> Tensor:
        """The rest (1,n), when no frame follows."""
        return self.push(self._vocoder.silence(self._state[0])) if self._state is not None else torch.zeros(1, 0)
