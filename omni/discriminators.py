"""What the vocoder trains against: networks that tell recordings from its output, and the losses of both sides. Used in training only.

B clips  n samples  C channels"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

RESOLUTIONS = ((256, 64), (512, 128), (1024, 256))  # FFT size and hop
PERIODS = (2, 3, 5, 7, 11)
COMPRESSION, QUIETEST = 0.3, 1e-3  # spectra become |S|^0.3 with their phase; what is quieter than QUIETEST does not matter
SLOPE = 0.2

Features = list[Tensor]  # of one discriminator, each (B,C,…); the last are its verdicts


class ConvolutionStack(nn.Module):
    """Convolutions (weights normalised, Salimans & Kingma 2016) with leaky ReLU between; (B,C,h,w) → what every layer made of it."""

    def __init__(self, layers: list[nn.Conv2d]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(weight_norm(layer) for layer in layers)

    def forward(self, x: Tensor) -> Features:
        x = x.contiguous(memory_format=torch.channels_last)  # several times as fast on CPUs
        features = []
        for i, layer in enumerate(self.layers):
            x = layer(F.leaky_relu(x, SLOPE) if i else x)
            features.append(x)
        return features


class SpectralDiscriminator(nn.Module):
    """Judges the complex STFT at one resolution (as Défossez et al. 2022, §3.4, after UnivNet, Jang et al. 2021, §2.3)."""

    window: Tensor

    def __init__(self, n_fft: int, hop: int, channels: int) -> None:
        super().__init__()
        self.n_fft, self.hop, c = n_fft, hop, channels
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)
        self.stack = ConvolutionStack(
            [
                nn.Conv2d(2, c, (3, 9), stride=(1, 4), padding=(1, 4)),
                *(nn.Conv2d(c, c, (3, 9), stride=(1, 2), dilation=(d, 1), padding=(d, 4)) for d in (1, 2, 4)),
                nn.Conv2d(c, c, (3, 3), padding=1),
                nn.Conv2d(c, 1, (3, 3), padding=1),
            ]
        )

    def forward(self, waveform: Tensor) -> Features:
        """waveform (B,n)."""
        spectrum = torch.stft(waveform, self.n_fft, self.hop, window=self.window, normalized=True, return_complex=True)
        x = torch.view_as_real(spectrum).permute(0, 3, 2, 1)  # (B, 2, frames, bins)
        power = x.square().sum(1, keepdim=True) + QUIETEST**2
        return self.stack(x * power ** ((COMPRESSION - 1) / 2))


class PeriodDiscriminator(nn.Module):
    """Judges the waveform folded into columns of every `period`-th sample (HiFi-GAN, Kong et al. 2020, §2.3)."""

    def __init__(self, period: int, channels: int) -> None:
        super().__init__()
        self.period = period
        widths = [channels * factor for factor in (1, 2, 4, 8)]
        self.stack = ConvolutionStack(
            [
                *(nn.Conv2d(a, b, (5, 1), stride=(3, 1), padding=(2, 0)) for a, b in zip([1, *widths], widths, strict=False)),
                nn.Conv2d(widths[-1], widths[-1], (5, 1), padding=(2, 0)),
                nn.Conv2d(widths[-1], 1, (3, 1), padding=(1, 0)),
            ]
        )

    def forward(self, waveform: Tensor) -> Features:
        """waveform (B,n)."""
        folded = F.pad(waveform, (0, -waveform.shape[1] % self.period)).unflatten(1, (-1, self.period))
        return self.stack(folded[:, None])


class Discriminators(nn.Module):
    """Several of either kind: waveform (B,n) → the features of each."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.members = nn.ModuleList(
            [
                *(SpectralDiscriminator(n_fft, hop, channels) for n_fft, hop in RESOLUTIONS),
                *(PeriodDiscriminator(period, channels) for period in PERIODS),
            ]
        )

    def forward(self, waveform: Tensor) -> list[Features]:
        return [member(waveform) for member in self.members]


def per_clip(x: Tensor) -> Tensor:
    """(B,…) → the mean of each (B,), added up in float32."""
    return x.mean(tuple(range(1, x.ndim)), dtype=torch.float32)


def hinge_loss(real: list[Features], fake: list[Features]) -> Tensor:
    """The discriminators' loss of each clip (B,): verdicts on recordings should exceed 1, those on made sound stay below -1 (Lim & Ye 2017)."""
    losses = [per_clip(F.relu(1 - r[-1])) + per_clip(F.relu(1 + f[-1])) for r, f in zip(real, fake, strict=True)]
    return torch.stack(losses).mean(0)


def adversarial_loss(fake: list[Features]) -> Tensor:
    """The vocoder's loss of each clip (B,): verdicts on what it made should exceed 1 (Défossez et al. 2022, §3.4)."""
    return torch.stack([per_clip(F.relu(1 - f[-1])) for f in fake]).mean(0)


def feature_matching_loss(real: list[Features], fake: list[Features]) -> Tensor:
    """How far the discriminators' inner features of made sound are from those of the recording, relative to their size, for each clip (B,)
    (Larsen et al. 2016; relative as in Défossez et al. 2022, §3.4)."""
    pairs = [pair for r, f in zip(real, fake, strict=True) for pair in zip(r[:-1], f[:-1], strict=True)]
    return torch.stack([per_clip((r - f).abs()) / per_clip(r.abs()).clamp(min=1e-3) for r, f in pairs]).mean(0)
