"""What the codec and the vocoders keep of real speech: held-out clips of kathleen, and of lj (on whom nothing trains), each beside the recordings
themselves.

STOI (Taal et al. 2011) and wide-band PESQ (ITU-T P.862.2) compare with the recording, sample by sample; the judges' error rates ask whether the
words survive. `mel` stands for a vocoder that is given the recording's own log-mel, `codec` for one that is given what the codes say of it.

T mel frames  F code frames  K codebooks  n samples"""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from omni.audio import load_audio
from omni.errors import DataError
from omni.evaluation.asr import Clip, rates, speech_sets
from omni.evaluation.judge import INSTALL, Judge, find_judges
from omni.evaluation.metrics import points_over, rounded_ratio, spread
from omni.inference.omni import Omni
from omni.vocoder import GriffinLim

log = logging.getLogger(__name__)

RATE_HZ = 16_000  # of STOI and PESQ; the model's own as well
REAL_READERS = ("kathleen", "lj")
DEGRADED_CLIPS = 32  # of a reader, on which fewer codebooks are tried

Vocoder = Callable[[Tensor], Tensor]  # scaled log-mel (1,T,mels) → waveform (1, T·hop)
Row = dict[str, Any]


def vocoders(omni: Omni) -> dict[str, Vocoder]:
    """By name: Griffin-Lim, and the neural one if the checkpoint has it."""
    config, name = omni.model.config, omni.model.vocoder_name
    found: dict[str, Vocoder] = {"griffin-lim": GriffinLim(config.audio, config.vocoder).to(omni.device)}
    return {key.replace("-", "_"): vocoder for key, vocoder in (found | {name: omni.model.vocoder}).items()}


@torch.inference_mode()
def codes_of(omni: Omni, waveform: np.ndarray) -> Tensor:
    """(n,) → codes (1,F,K)."""
    return omni.model.codec.encode(omni.log_mel(waveform)[None].to(omni.device))


@torch.inference_mode()
def through_mel(omni: Omni, waveform: np.ndarray, vocoder: Vocoder) -> np.ndarray:
    """(n,) → log-mel → (n,)."""
    return vocoder(omni.log_mel(waveform)[None].to(omni.device))[0, : len(waveform)].cpu().numpy()


@torch.inference_mode()
def through_codec(omni: Omni, codes: Tensor, n_samples: int, vocoder: Vocoder) -> np.ndarray:
    """codes (1,F,k) of the first k codebooks → (n,)."""
    return vocoder(omni.model.codec.decode(codes))[0, :n_samples].cpu().numpy()


# --- measures


def stoi(reference: np.ndarray, made: np.ndarray) -> float | None:
    """Short-time objective intelligibility, up to 1; None for a clip with less than 0.4 s of speech."""
    measure = _package("pystoi").stoi
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # how pystoi says that it cannot
        try:
            return float(measure(reference, made, RATE_HZ))
        except RuntimeWarning:
            return None


def pesq(reference: np.ndarray, made: np.ndarray) -> float | None:
    """Wide-band perceptual quality, 1 to 4.64; None where no speech is found."""
    package = _package("pesq")
    value = package.pesq(RATE_HZ, reference, made, "wb", on_error=package.PesqError.RETURN_VALUES)
    return float(value) if value > 0 else None


def _package(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        raise DataError(f"the package {name} is not here; {INSTALL}") from None


def mean(values: Sequence[float | None], clips: Sequence[Clip]) -> tuple[float, tuple[float, float]]:
    """Over the clips that have a value, with its 95 % interval over sentences."""
    pairs = [(value, clip.sentence) for value, clip in zip(values, clips, strict=True) if value is not None]
    return rounded_ratio([value for value, _ in pairs], [1] * len(pairs), [sentence for _, sentence in pairs])


def fidelity(clips: Sequence[Clip], references: Sequence[np.ndarray], made: Sequence[np.ndarray]) -> Row:
    """STOI and PESQ of what was made of the references."""
    out: Row = {}
    for name, measure in (("stoi", stoi), ("pesq", pesq)):
        values = [measure(a, b) for a, b in zip(references, made, strict=True)]
        out[name], out[f"{name}_95"] = mean(values, clips)
        out[f"{name}_clips"] = sum(value is not None for value in values)
    return out


def judged(judges: Sequence[Judge], clips: Sequence[Clip], sounds: Sequence[np.ndarray]) -> Row:
    """Every judge's error rates."""
    return {judge.name: asdict(rates(clips, judge.hear(sounds))) for judge in judges}


def usage(codes: Sequence[Tensor], codebook_size: int) -> Row:
    """Of every codebook over codes (1,F,K): the share of its codes that occur, and their perplexity."""
    together = torch.cat([c[0] for c in codes])  # (F, K) of all clips
    counts = torch.stack([torch.bincount(column, minlength=codebook_size) for column in together.T]).double()
    p = counts / counts.sum(1, keepdim=True)
    perplexity = torch.special.entr(p).sum(1).exp()
    return {"used": [round(float(u), 4) for u in (counts > 0).double().mean(1)], "perplexity": [round(float(x), 1) for x in perplexity]}


@torch.inference_mode()
def degradation(omni: Omni, clips: Sequence[Clip], references: Sequence[np.ndarray], codes: Sequence[Tensor]) -> Row:
    """With the first k codebooks only, for every k: STOI through the model's vocoder, and the mean absolute error of the scaled log-mel."""
    out: Row = {}
    vocoder, mels = omni.model.vocoder, [omni.log_mel(reference) for reference in references]
    for k in range(1, omni.model.config.codec.n_codebooks + 1):
        rebuilt = [omni.model.codec.decode(c[..., :k]) for c in codes]
        errors = [(made[0, : len(mel)].cpu() - mel).abs().mean().item() for made, mel in zip(rebuilt, mels, strict=True)]
        sounds = [vocoder(made)[0, : len(r)].cpu().numpy() for made, r in zip(rebuilt, references, strict=True)]
        value, interval = mean([stoi(r, sound) for r, sound in zip(references, sounds, strict=True)], clips)
        out[str(k)] = {"stoi": value, "stoi_95": interval, "mel_l1": round(sum(errors) / len(errors), 4)}
    return out


def paced(work: Callable[[], list[Any]], audio_s: float) -> tuple[list[Any], float]:
    """The result, and the seconds of work for a second of sound."""
    start = time.perf_counter()
    result = work()
    return result, round((time.perf_counter() - start) / audio_s, 4)


# --- the suite


def evaluate_reader(omni: Omni, clips: Sequence[Clip], judges: Sequence[Judge]) -> tuple[Row, Row]:
    """Metrics and ceilings on one reader's clips. Raises DataError for no clip and for one that cannot be read."""
    if not clips:
        raise DataError("there is no held-out clip of the reader; fetch the data with: muomni data get")
    config = omni.model.config
    recordings = [load_audio(clip.audio, config.audio.sample_rate_hz) for clip in clips]
    audio_s = sum(map(len, recordings)) / config.audio.sample_rate_hz
    codes, encode_pace = paced(lambda: [codes_of(omni, wave) for wave in recordings], audio_s)
    with torch.inference_mode():
        _, decode_pace = paced(lambda: [omni.model.codec.decode(c) for c in codes], audio_s)
    few = spread(range(len(clips)), DEGRADED_CLIPS)
    metrics: Row = {
        "items": len(clips),
        "hours": round(audio_s / 3600, 4),
        "encode_real_time_factor": encode_pace,
        "decode_real_time_factor": decode_pace,
        "usage": usage(codes, config.codec.codebook_size),
        "codebooks": {"items": len(few)}
        | degradation(omni, [clips[i] for i in few], [recordings[i] for i in few], [codes[i] for i in few]),
    }
    ceilings: Row = {"recordings": judged(judges, clips, recordings)}
    as_recorded = judges[0].hear(recordings)
    for name, vocoder in vocoders(omni).items():
        sounds, pace = paced(lambda v=vocoder: [through_mel(omni, wave, v) for wave in recordings], audio_s)  # type: ignore[misc]
        ceilings[f"mel_{name}"] = {"real_time_factor": pace} | fidelity(clips, recordings, sounds) | judged(judges[:1], clips, sounds)
        sounds = [through_codec(omni, c, len(wave), vocoder) for c, wave in zip(codes, recordings, strict=True)]
        listeners = judges if vocoder is omni.model.vocoder else judges[:1]  # a second opinion on what is used, and on the recordings
        points, points_95 = points_over([c.text for c in clips], judges[0].hear(sounds), as_recorded, [c.sentence for c in clips])
        metrics[f"codec_{name}"] = fidelity(clips, recordings, sounds) | judged(listeners, clips, sounds)
        metrics[f"codec_{name}"]["over_recordings"] = {"points": points, "points_95": points_95}
    return metrics, ceilings


def check_packages() -> None:
    """Raises DataError unless what measures STOI and PESQ is installed."""
    for package in ("pystoi", "pesq"):
        _package(package)


def codec_suite(omni: Omni, data: Path, *, limit: int | None = None, judge: Path | None = None) -> Row:
    """The suite `codec`; `limit` clips of every reader, `judge` another environment than this one that has the judges. Raises DataError
    for missing data or judges, CheckpointError for a checkpoint without a codec."""
    config = omni.model.codec.config
    check_packages()
    judges = find_judges(judge)
    bits = config.n_codebooks * math.log2(config.codebook_size)
    metrics: Row = {"bits_per_second": round(bits * omni.model.config.code_rate_hz, 1)}
    ceilings: Row = {}
    items = 0
    sets = speech_sets(data)
    for reader in REAL_READERS:
        chosen = spread(sets[reader], limit)
        metrics[reader], ceilings[reader] = evaluate_reader(omni, chosen, judges)
        items += len(chosen)
        log.info("%s: %s", reader, metrics[reader])
    return {
        "suite": "codec",
        "checkpoint": str(omni.folder),
        "items": items,
        "metrics": metrics,
        "baselines": {},
        "ceilings": ceilings,
    }
