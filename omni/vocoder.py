"""From log-mel to a waveform: Griffin-Lim, which has no weights, and a trained network that streams.

B batch  T mel frames  n = T·hop samples  d width  K bins of a spectrum"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omni.audio import LOG_MEAN, LOG_STD, SILENCE, LogMel, hz_to_mel, unscale_mel
from omni.config import VOCODER_OVERLAP, VOCODER_ROUNDS, AudioConfig, VocoderConfig
from omni.pitch import HIGHEST_HZ, LOWEST_HZ

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
N_PITCHES = 256  # evenly spread over the logarithm of LOWEST_HZ to HIGHEST_HZ
NOISE_FRAMES = 512  # after which the noise repeats itself


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


def overlap_add(frames: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """Frames (B,T,overlap·hop), one hop apart, and the overlapping ends of those before, (B,overlap-1,hop) → the hops that are complete,
    (B,T,hop), and the overlapping ends now."""
    total = F.pad(before, (0, 0, 0, frames.shape[1]))
    for k, part in enumerate(frames.unflatten(2, (VOCODER_OVERLAP, -1)).unbind(2)):  # part k of frame t belongs to the hop t + k
        total = total + F.pad(part, (0, 0, k, VOCODER_OVERLAP - 1 - k))
    return total[:, : frames.shape[1]], total[:, frames.shape[1] :]


@dataclass(frozen=True)
class VocoderState:
    """What the frames so far leave to the next ones.

    mel (B,KERNEL-1,mels), inputs (B,KERNEL-1,d) each   the last inputs of the first layer and of every block
    cycles (B,1) float64, frame                          how far the pulses and the noise have come
    mix (B,1,2K), magnitudes (B,7,K)                     of the frames whose hops are not all there yet
    hops (B,overlap-1,hop) each, ends likewise           of every round: the last that came in, and the overlapping ends of what goes out
    """

    mel: Tensor
    inputs: tuple[Tensor, ...]
    cycles: Tensor
    frame: int
    mix: Tensor
    magnitudes: Tensor
    hops: tuple[Tensor, ...]
    ends: tuple[Tensor, ...]


class NeuralVocoder(nn.Module):
    """Scaled log-mel (B,T,mels) → waveform (B, T·hop): ConvNeXt blocks at the mel rate before inverse STFTs (Vocos, Siuzdak 2023, §3), with the
    phases of a voice and of noise (harmonic plus noise, as Wang et al. 2019).

    A network that sees a few frames cannot know how far the phase of a steady voice has come, and a mean over what it might be is no phase. So
    the network finds the pitch, and pulses at that pitch run on from frame to frame. The spectra of these pulses, filtered in phase, and of noise,
    mixed bin by bin as the network says, are scaled so that they have the mel, corrected by the network; what is finer than a mel filter
    stays theirs. One more round, as of Griffin-Lim, makes neighbouring frames agree.

    Everything is causal. What it sees of the future comes from a delay alone: the 10 ms of frame t are spoken when frame
    t + `delay_frames` has been read. Before and behind a clip is silence. Whole clips and pieces go through the same code, `advance`.
    """

    window: Tensor
    to_bins: Tensor
    smoothing: Tensor
    pitches_hz: Tensor
    noise: Tensor

    def __init__(self, audio: AudioConfig, config: VocoderConfig) -> None:
        super().__init__()
        self.audio, self.config = audio, config
        d, self.n_fft = config.d_model, VOCODER_OVERLAP * audio.hop_samples
        n_bins = self.n_fft // 2 + 1
        self.first = nn.Linear(KERNEL * audio.n_mels, d)  # a convolution
        self.first_norm = nn.LayerNorm(d)
        self.blocks = nn.ModuleList(ConvNeXtBlock(d, config.d_ff, 1 / config.n_blocks) for _ in range(config.n_blocks))
        self.last_norm = nn.LayerNorm(d)
        self.head = nn.Linear(d, 3 * n_bins)  # what is voice, its phase, and the correction of the magnitude
        self.pitch_head = nn.Linear(d, 1 + N_PITCHES)  # the first is no voice
        scale = 1 / math.sqrt(VOCODER_OVERLAP * 3 / 8)  # squares of windows of this height, one hop apart, add up to 1
        # a mel filter of unit area holds n_fft / sample_rate of the magnitude, which grows with the window
        self.gain_nats = math.log(scale * audio.sample_rate_hz / audio.n_fft * self.n_fft / audio.window_samples)
        noise = torch.randn(NOISE_FRAMES, audio.hop_samples, generator=torch.Generator().manual_seed(0))
        frames = torch.cat([noise.roll(-k, 0) for k in range(VOCODER_OVERLAP)], dim=1)
        to_bins = mel_to_bins(audio, n_bins)
        buffers = {
            "window": scale * torch.hann_window(self.n_fft),
            "to_bins": to_bins,
            "smoothing": (to_bins / to_bins.sum(1, keepdim=True).clamp(min=1e-6)).T
            @ to_bins,  # (K,K): the mean under the mel filters about a bin
            "pitches_hz": LOWEST_HZ * (HIGHEST_HZ / LOWEST_HZ) ** (torch.arange(-1, N_PITCHES).clamp(min=0) / (N_PITCHES - 1)),
            "noise": torch.fft.rfft(frames * scale * torch.hann_window(self.n_fft)),
        }
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer, persistent=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=0.02)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    @property
    def delay_frames(self) -> int:
        """Mel frames behind a frame that must be there before its samples are final, those under the windows of the STFTs included."""
        return self.config.delay_frames

    @property
    def delay_ms(self) -> float:
        """The same in milliseconds. (A mel measured from sound has itself looked half a window ahead.)"""
        return 1000 * self.delay_frames / self.audio.mel_rate_hz

    def pitch_ids(self, pitch_hz: Tensor) -> Tensor:
        """Hz (…), 0 for no voice → which of the pitches that is, from 1; 0 for no voice."""
        place = (pitch_hz.clamp(LOWEST_HZ, HIGHEST_HZ) / LOWEST_HZ).log() / math.log(HIGHEST_HZ / LOWEST_HZ)
        return torch.where(pitch_hz > 0, 1 + (place * (N_PITCHES - 1)).round().long(), 0)

    @torch.no_grad()
    def forward(self, mel: Tensor) -> Tensor:
        """The waveform, within [-1, 1]."""
        return self.generate(torch.cat((mel, self.silence(mel)), dim=1))[0].clamp(-1.0, 1.0)

    def generate(self, mel: Tensor, pitch_ids: Tensor | None = None, frame: int = 0) -> tuple[Tensor, Tensor]:
        """mel (B, T + delay_frames, mels) → (B, T·hop), not clipped, and the logits (B,T,1+N_PITCHES) of its pitch, with gradient. It is sung at
        the pitch of `pitch_ids` (B,T) if given, with the noise from `frame` on."""
        ahead = self.config.look_ahead_frames
        if pitch_ids is not None:
            pitch_ids = F.pad(pitch_ids, (ahead, self.delay_frames - ahead))
        waveform, logits, _ = self.advance(mel, self.start(mel, frame), pitch_ids)
        n_frames = mel.shape[1] - self.delay_frames
        return waveform[:, self.delay_frames * self.audio.hop_samples :], logits[:, ahead : ahead + n_frames]

    def stream(self) -> VocoderStream:
        """One clip in pieces."""
        return VocoderStream(self)

    def silence(self, mel: Tensor) -> Tensor:
        """(B, delay_frames, mels): what follows a clip."""
        return mel.new_full((len(mel), self.delay_frames, self.audio.n_mels), SILENCE)

    def start(self, mel: Tensor, frame: int = 0) -> VocoderState:
        """Before the first frame of `mel`: silence."""
        batch, past, n_bins = len(mel), KERNEL - 1, self.noise.shape[1]
        hops = VOCODER_ROUNDS * (mel.new_zeros(batch, VOCODER_OVERLAP - 1, self.audio.hop_samples),)
        return VocoderState(
            mel=mel.new_full((batch, past, self.audio.n_mels), SILENCE),
            inputs=tuple(mel.new_zeros(batch, past, self.config.d_model) for _ in self.blocks),
            cycles=mel.new_zeros(batch, 1, dtype=torch.float64),
            frame=frame,
            mix=mel.new_zeros(batch, _delay(0), 2 * n_bins),
            magnitudes=mel.new_zeros(batch, _delay(VOCODER_ROUNDS - 1), n_bins),
            hops=hops,
            ends=hops,
        )

    def advance(self, mel: Tensor, state: VocoderState, pitch_ids: Tensor | None = None) -> tuple[Tensor, Tensor, VocoderState]:
        """The next T ≥ 1 mel frames (B,T,mels) → the waveform (B, T·hop) that they complete, which is `delay_frames` behind; the logits
        (B,T,1+N_PITCHES) of the pitch, `config.look_ahead_frames` behind, as `pitch_ids` (B,T) are; and the state to go on from."""
        n_frames = mel.shape[1]
        seen = torch.cat((state.mel, mel.clamp(SILENCE, LOUDEST)), dim=1)
        x, inputs = self.first_norm(self.first(seen.unfold(1, KERNEL, 1).flatten(2))), []
        for block, past in zip(self.blocks, state.inputs, strict=True):
            x, past = block(x, past)
            inputs.append(past)
        with torch.autocast(mel.device.type, enabled=False):
            x = self.last_norm(x.float())
            logits, head = self.pitch_head(x), self.head(x)
            n_bins = self.noise.shape[1]
            mix = torch.cat((state.mix, head[..., : 2 * n_bins]), dim=1)
            log_mel = (
                seen[:, KERNEL - 1 - self.config.look_ahead_frames :][:, :n_frames] * LOG_STD + LOG_MEAN
            )  # of the frames that the head speaks of
            nats = log_mel @ self.to_bins + self.gain_nats + head[..., 2 * n_bins :]
            magnitudes = torch.cat((state.magnitudes, nats.clamp(max=LOUDEST_NATS).exp()), dim=1)
            sound, cycles = self._pulses(logits.argmax(-1) if pitch_ids is None else pitch_ids, state.cycles)
            hops, ends = [], []
            for k in range(VOCODER_ROUNDS):
                come = torch.cat((state.hops[k], sound), dim=1)
                frames = come.unfold(1, VOCODER_OVERLAP, 1).transpose(2, 3).flatten(2)  # (B,T,n_fft)
                spectra = torch.fft.rfft(frames * self.window)
                if k == 0:
                    spectra = self._with_noise(spectra, mix[:, :n_frames], state.frame)
                wanted = magnitudes[:, magnitudes.shape[1] - n_frames - _delay(k) :][:, :n_frames]
                spectra = spectra * (wanted / (spectra.abs() @ self.smoothing).clamp(min=1e-6))
                sound, end = overlap_add(torch.fft.irfft(spectra, self.n_fft) * self.window, state.ends[k])
                hops.append(come[:, n_frames:])
                ends.append(end)
        after = VocoderState(
            mel=seen[:, 1 - KERNEL :],
            inputs=tuple(inputs),
            cycles=cycles,
            frame=state.frame + n_frames,
            mix=mix[:, n_frames:],
            magnitudes=magnitudes[:, n_frames:],
            hops=tuple(hops),
            ends=tuple(ends),
        )
        return sound.flatten(1), logits, after

    @torch.no_grad()
    def _pulses(self, pitch_ids: Tensor, cycles: Tensor) -> tuple[Tensor, Tensor]:
        """Pitches (B,T) → (B,T,hop), all harmonics below half the sample rate in equal strength, silent without a pitch; and the cycles after.
        (The sum of the cosines is Dirichlet's kernel.)"""
        hop, rate = self.audio.hop_samples, self.audio.sample_rate_hz
        hz = self.pitches_hz[pitch_ids].double()  # (B,T)
        after = cycles + (hz * hop / rate).cumsum(1)
        half = math.pi * ((after[..., None] + (hz / rate)[..., None] * torch.arange(-hop, 0, device=hz.device)) % 1.0)
        n_harmonics = (rate / 2 / hz).floor()[..., None]
        sine = half.sin()
        kernel = torch.where(sine < 1e-4, 2 * n_harmonics + 1, ((2 * n_harmonics + 1) * half).sin() / sine.clamp(min=1e-4))
        pulses = (kernel - 1) / (2 * n_harmonics).sqrt()  # of power 1, as the noise is
        return (pulses * (pitch_ids > 0)[..., None]).float(), after[:, -1:] % 1.0

    def _with_noise(self, voice: Tensor, mix: Tensor, frame: int) -> Tensor:
        """Spectra of pulses (B,T,K) and what the head says of them (B,T,2K) → spectra of voice and noise."""
        share, phase = mix.chunk(2, dim=-1)
        share = share.sigmoid()
        noise = self.noise[torch.arange(frame, frame + voice.shape[1], device=voice.device) % NOISE_FRAMES]
        return voice * torch.polar(share, phase) + noise * (1 - share)


def _delay(k: int) -> int:
    """Frames that round `k` is behind the head: its STFT waits until the window about a frame is full, as those of the rounds before."""
    return (k + 1) * (VOCODER_OVERLAP - 1) - VOCODER_OVERLAP // 2


class VocoderStream:
    """A clip that comes in pieces: all that `push` and `finish` give, joined, is what the vocoder gives for the whole."""

    def __init__(self, vocoder: NeuralVocoder) -> None:
        self._vocoder = vocoder
        self._state: VocoderState | None = None
        self._early = vocoder.delay_frames  # so many hops still to come lie before the clip

    @torch.no_grad()
    def push(self, mel: Tensor) -> Tensor:
        """The next mel frames (1,T,mels), T ≥ 0 → the samples (1,n) that are final now."""
        if self._state is None:
            self._state = self._vocoder.start(mel)
        if not mel.shape[1]:
            return mel.new_zeros(1, 0)
        waveform, _, self._state = self._vocoder.advance(mel, self._state)
        early = min(self._early, mel.shape[1])
        self._early -= early
        return waveform[:, early * self._vocoder.audio.hop_samples :].clamp(-1.0, 1.0)

    def finish(self) -> Tensor:
        """The rest (1,n), when no frame follows."""
        return self.push(self._vocoder.silence(self._state.mel)) if self._state is not None else torch.zeros(1, 0)
