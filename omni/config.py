"""Every setting of the system: frozen, validated, and with its one default here.

A model is described by `ModelConfig` (one section a component), a training run by `RunConfig` (stage, model, data, optimisation).
`preset("tiny")` returns a `ModelConfig`; `load_run("configs/x.json", ["train.steps=100"])` reads a file and applies dotted
overrides. Imports no torch, so that `muomni --help` is quick.
"""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from omni.errors import ConfigError

VOCODER_OVERLAP = 4  # hops that a frame of the neural vocoder's STFTs is long
VOCODER_ROUNDS = 3  # STFTs, each with its inverse
DEFAULT_CHECKPOINT = "checkpoints/omni-tiny"  # what is loaded where no folder is named
DEFAULT_SPEECH_LM = "checkpoints/speech-lm"  # the same for the second system
RELEASE = "omni-tiny"  # the folder of the released model
RELEASE_ALIASES = {"omni_sft_tiny": "sft", "thinker_tiny": "text"}  # names for it until the stage has made a folder of the name


class Config(BaseModel):
    """Frozen; unknown keys are refused with the nearest known name."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _check_heads(d_model: int, n_heads: int, n_kv_heads: int) -> None:
    if d_model % n_heads or (d_model // n_heads) % 2:
        raise ValueError(f"d_model {d_model} must be an even multiple of n_heads {n_heads}")
    if n_heads % n_kv_heads:
        raise ValueError(f"n_heads {n_heads} must be a multiple of n_kv_heads {n_kv_heads}")


class AudioConfig(Config):
    """The one mel front end, shared by audio encoder, codec and vocoder. Every rate in the system derives from it.

    With a window of 40 ms and an FFT of 64 ms none of the 128 filters is empty, and Griffin-Lim inverts the mel far better than
    with 25 ms (docs/decisions/0002).
    """

    sample_rate_hz: PositiveInt = 16_000
    hop_samples: PositiveInt = 160
    window_samples: PositiveInt = 640
    n_fft: PositiveInt = 1024
    n_mels: PositiveInt = 128
    f_min_hz: float = Field(0.0, ge=0.0)
    f_max_hz: PositiveFloat = 8_000.0
    filter_bank: Literal["slaney", "htk"] = "slaney"

    @property
    def mel_rate_hz(self) -> float:
        """Mel frames per second."""
        return self.sample_rate_hz / self.hop_samples

    @model_validator(mode="after")
    def _consistent(self) -> AudioConfig:
        if self.window_samples > self.n_fft:
            raise ValueError(f"window_samples {self.window_samples} exceeds n_fft {self.n_fft}")
        if self.hop_samples > self.window_samples:
            raise ValueError(f"hop_samples {self.hop_samples} exceeds window_samples {self.window_samples}")
        if not self.f_min_hz < self.f_max_hz <= self.sample_rate_hz / 2:
            raise ValueError(f"need f_min_hz < f_max_hz <= {self.sample_rate_hz / 2:g} (half the sample rate)")
        return self


class ThinkerConfig(Config):
    """The decoder-only language model; `n_experts` above 0 makes its feed-forward layers a mixture of experts."""

    vocab_size: PositiveInt = 5_000
    d_model: PositiveInt = 256
    n_layers: PositiveInt = 4
    n_heads: PositiveInt = 4
    n_kv_heads: PositiveInt = 2
    d_ff: PositiveInt = 1024
    context_length: PositiveInt = 512
    rope_theta: PositiveFloat = 10_000.0
    tie_embeddings: bool = False
    qk_norm: bool = False
    n_experts: int = Field(0, ge=0)
    experts_per_token: PositiveInt = 2
    load_balance_weight: float = Field(0.01, ge=0.0)
    dropout: float = Field(0.0, ge=0.0, lt=1.0)

    @model_validator(mode="after")
    def _consistent(self) -> ThinkerConfig:
        _check_heads(self.d_model, self.n_heads, self.n_kv_heads)
        if self.n_experts and self.experts_per_token > self.n_experts:
            raise ValueError(f"experts_per_token {self.experts_per_token} exceeds n_experts {self.n_experts}")
        return self


ImageTokens = Literal["cls", "grid", "pooled"]


class VisionEncoderConfig(Config):
    """ViT over square patches. `image_tokens`: what the Thinker sees (the CLS vector, every patch, or `pooled_size`² means)."""

    image_size: PositiveInt = 224
    patch_size: PositiveInt = 16
    d_model: PositiveInt = 128
    n_layers: PositiveInt = 4
    n_heads: PositiveInt = 2
    d_ff: PositiveInt = 512
    image_tokens: ImageTokens = "cls"
    pooled_size: PositiveInt = 7
    dropout: float = Field(0.0, ge=0.0, lt=1.0)

    @property
    def grid_size(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size

    @property
    def n_image_tokens(self) -> int:
        """Positions that one picture takes in the Thinker's context, without its two markers."""
        return {"cls": 1, "grid": self.grid_size**2, "pooled": self.pooled_size**2}[self.image_tokens]

    @model_validator(mode="after")
    def _consistent(self) -> VisionEncoderConfig:
        _check_heads(self.d_model, self.n_heads, self.n_heads)
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")
        if self.image_tokens == "pooled" and self.grid_size % self.pooled_size:
            raise ValueError(f"a grid of {self.grid_size} cannot be pooled to {self.pooled_size} evenly")
        return self


class AudioEncoderConfig(Config):
    """Strided 2-D convolutions over the mel, then a bidirectional transformer; a CTC head of several character slots a frame."""

    conv_channels: PositiveInt = 64
    downsample: Literal[4, 8] = 8
    d_model: PositiveInt = 192
    n_layers: PositiveInt = 4
    n_heads: PositiveInt = 3
    d_ff: PositiveInt = 768
    ctc_slots: PositiveInt = 4
    ctc_layers: int = Field(0, ge=0)  # transformer layers of the CTC head's own, behind what the Thinker hears
    dropout: float = Field(0.0, ge=0.0, lt=1.0)

    @model_validator(mode="after")
    def _consistent(self) -> AudioEncoderConfig:
        _check_heads(self.d_model, self.n_heads, self.n_heads)
        return self


class ProjectorConfig(Config):
    """Encoder width to Thinker width: one linear map, or two with a GELU between."""

    kind: Literal["linear", "mlp"] = "linear"


class CodecConfig(Config):
    """Log-mel to `n_codebooks` codes per frame of `stride` mel frames, and back (residual VQ over a strided convolutional pair)."""

    n_codebooks: PositiveInt = 2
    codebook_size: PositiveInt = 128
    latent_size: PositiveInt = 64
    stride: PositiveInt = 8
    hidden_size: PositiveInt = 256
    n_blocks: PositiveInt = 2
    look_ahead: int = Field(1, ge=0)  # code frames that the decoder waits for
    codebook_dropout: float = Field(0.0, ge=0.0, le=1.0)  # share of training clips that keep only some of the first codebooks
    hearing_weight: float = Field(1.0, ge=0.0)  # of the distance between what a trained audio encoder hears in both
    ema_decay: float = Field(0.99, gt=0.0, lt=1.0)
    commitment_weight: float = Field(0.25, ge=0.0)
    dead_code_threshold: float = Field(0.5, ge=0.0)

    @model_validator(mode="after")
    def _consistent(self) -> CodecConfig:
        if self.look_ahead > self.n_blocks:
            raise ValueError(f"look_ahead {self.look_ahead} exceeds n_blocks {self.n_blocks}, each of which sees one frame ahead")
        return self


class TalkerConfig(Config):
    """A reader of the reply's characters (each with its token's Thinker state) and a causal transformer over frames of codec codes, in a named
    voice."""

    d_model: PositiveInt = 192
    n_layers: PositiveInt = 4
    n_text_layers: PositiveInt = 2
    n_heads: PositiveInt = 3
    n_kv_heads: PositiveInt = 1
    d_ff: PositiveInt = 768
    code_width: PositiveInt | None = None  # of the code embeddings, which are also the output heads; None is d_model
    aligner_width: PositiveInt = 64
    context_length: PositiveInt = 1024  # frames
    voices: tuple[str, ...] = ("default",)
    conditioning_dropout: float = Field(0.1, ge=0.0, le=1.0)  # share of texts that are read without their Thinker states
    history_dropout: float = Field(
        1.0, ge=0.0, le=1.0
    )  # at most this share of a clip's frames, each clip another, is not told the codes before
    dropout: float = Field(0.0, ge=0.0, lt=1.0)

    @model_validator(mode="after")
    def _consistent(self) -> TalkerConfig:
        _check_heads(self.d_model, self.n_heads, self.n_kv_heads)
        if not self.voices or len(set(self.voices)) != len(self.voices):
            raise ValueError("voices must be one or more distinct names")
        return self


class VocoderConfig(Config):
    """Griffin-Lim: rounds and momentum (Perraudin et al. 2013). The neural vocoder: `n_blocks` of width `d_model` that see
    `look_ahead_frames` mel frames ahead (its STFTs wait for more), and the discriminators that it trains against."""

    griffin_lim_rounds: PositiveInt = 32
    momentum: float = Field(0.99, ge=0.0, lt=1.0)
    d_model: PositiveInt = 256
    n_blocks: PositiveInt = 8
    d_ff: PositiveInt = 640
    look_ahead_frames: int = Field(4, ge=0, le=6)
    discriminator_channels: PositiveInt = 8

    @property
    def delay_frames(self) -> int:
        """Mel frames behind a frame that must be there before its samples are final: those that the network sees, and for every STFT the
        rest of a window."""
        return self.look_ahead_frames + VOCODER_ROUNDS * (VOCODER_OVERLAP - 1)


class SpeechLMConfig(Config):
    """The second system: one language model over text and audio tokens (omni.speech_lm). What its tokenizers decide, `text_vocab_size`,
    `codebook_size` and `code_rates` (codes of every codebook in a frame), stage speech-lm fills in; the defaults are GPT-2's and those of
    SNAC at 24 kHz."""

    text_vocab_size: PositiveInt = 50_257
    codebook_size: PositiveInt = 4_096
    code_rates: tuple[PositiveInt, ...] = (1, 2, 4)
    codebooks: PositiveInt | None = None  # of our codec: use the first so many; None all
    snac: str | None = None  # a hub name or a folder: SNAC's codes, instead of those of our codec
    voices: tuple[str, ...] = ()  # speakers that a text can be said by; without names nobody in particular
    d_model: PositiveInt = 128
    n_layers: PositiveInt = 3
    n_heads: PositiveInt = 4
    n_kv_heads: PositiveInt = 2
    d_ff: PositiveInt = 384
    context_length: PositiveInt = 4096  # ten seconds of SNAC at 44 kHz and their text
    rope_theta: PositiveFloat = 10_000.0
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    lead_frames: int | None = Field(None, ge=0)  # speaking: text comes so many frames before its sound; None: all of it before
    lag_frames: int | None = Field(None, ge=1)  # hearing: text comes so many frames behind its sound; None: all of it behind
    code_dropout: float = Field(0.0, ge=0.0, lt=1.0)  # share of codes that the model is not told in training
    audio_weight: PositiveFloat = 1.0  # of what is decided when speaking
    text_weight: PositiveFloat = 0.1  # of what is decided when writing what was heard

    @property
    def side_by_side(self) -> bool:
        """Whether text and sound are told as they pass, for which somebody must say when each text id is said."""
        return self.lead_frames is not None or self.lag_frames is not None

    @model_validator(mode="after")
    def _consistent(self) -> SpeechLMConfig:
        _check_heads(self.d_model, self.n_heads, self.n_kv_heads)
        if min(self.code_rates, default=0) != 1:
            raise ValueError("code_rates must be 1 for the slowest codebook, whose codes are the frames")
        if len(set(self.voices)) != len(self.voices):
            raise ValueError("voices must be distinct names")
        if self.snac is not None and self.codebooks is not None:
            raise ValueError("codebooks counts those of our codec; leave it out where snac is named")
        return self


class ModelConfig(Config):
    """One section a component."""

    audio: AudioConfig = AudioConfig()
    thinker: ThinkerConfig = ThinkerConfig()
    vision_encoder: VisionEncoderConfig = VisionEncoderConfig()
    audio_encoder: AudioEncoderConfig = AudioEncoderConfig()
    projectors: ProjectorConfig = ProjectorConfig()
    talker: TalkerConfig = TalkerConfig()
    codec: CodecConfig = CodecConfig()
    vocoder: VocoderConfig = VocoderConfig()
    speech_lm: SpeechLMConfig = SpeechLMConfig()

    @property
    def encoder_rate_hz(self) -> float:
        """Audio encoder frames (Thinker audio tokens) per second."""
        return self.audio.mel_rate_hz / self.audio_encoder.downsample

    @property
    def code_rate_hz(self) -> float:
        """Codec frames per second."""
        return self.audio.mel_rate_hz / self.codec.stride

    @property
    def max_audio_tokens(self) -> int:
        """The audio budget of one turn: a quarter of the context."""
        return self.thinker.context_length // 4


_TINY = ModelConfig()
PRESETS: dict[str, ModelConfig] = {
    "nano": ModelConfig(
        thinker=ThinkerConfig(
            vocab_size=480, d_model=80, n_layers=3, n_heads=5, n_kv_heads=1, d_ff=128, context_length=256, tie_embeddings=True
        ),
        vision_encoder=VisionEncoderConfig(image_size=112, d_model=48, n_layers=2, n_heads=3, d_ff=80, image_tokens="grid"),
        audio_encoder=AudioEncoderConfig(conv_channels=12, d_model=64, n_layers=2, n_heads=4, d_ff=80),
        codec=CodecConfig(n_codebooks=3, codebook_size=64, latent_size=16, hidden_size=40, n_blocks=1),
        vocoder=VocoderConfig(d_model=8, n_blocks=1, d_ff=16, discriminator_channels=2),
        talker=TalkerConfig(
            d_model=48, n_layers=2, n_text_layers=1, n_heads=3, n_kv_heads=1, d_ff=64, code_width=16, aligner_width=16, context_length=512
        ),
        speech_lm=SpeechLMConfig(text_vocab_size=320, d_model=48, n_layers=2, n_heads=3, n_kv_heads=1, d_ff=80, context_length=1024),
    ),
    "tiny": _TINY,
    "release": _TINY.model_copy(
        update={
            "vision_encoder": VisionEncoderConfig(image_tokens="pooled"),
            "audio_encoder": AudioEncoderConfig(ctc_layers=4),
            "codec": CodecConfig(n_codebooks=8, codebook_size=1024, latent_size=64, hidden_size=256, n_blocks=3, codebook_dropout=0.3),
            "talker": TalkerConfig(
                d_model=224,
                n_heads=4,
                n_kv_heads=2,
                d_ff=512,
                code_width=64,
                voices=("heart", "kathleen", "joe"),
                dropout=0.1,
            ),
            "vocoder": VocoderConfig(d_model=192, n_blocks=6, d_ff=384),
            "speech_lm": SpeechLMConfig(
                text_vocab_size=384,
                codebook_size=1024,
                code_rates=(1, 1, 1),
                codebooks=3,
                voices=("heart", "kathleen"),
                d_model=256,
                n_layers=6,
                d_ff=768,
                dropout=0.1,
                lead_frames=4,
                lag_frames=6,
                code_dropout=0.1,
                text_weight=3.0,
            ),
        }
    ),
    "tiny-32k": _TINY.model_copy(update={"thinker": ThinkerConfig(vocab_size=32_000)}),
    "small": ModelConfig(
        thinker=ThinkerConfig(
            vocab_size=32_000, d_model=640, n_layers=12, n_heads=10, n_kv_heads=5, d_ff=1728, context_length=2048, tie_embeddings=True
        ),
        vision_encoder=VisionEncoderConfig(d_model=320, n_layers=6, n_heads=5, d_ff=1280, image_tokens="pooled"),
        audio_encoder=AudioEncoderConfig(d_model=384, n_layers=6, n_heads=6, d_ff=1536),
        codec=CodecConfig(n_codebooks=8, codebook_size=1024, latent_size=128, hidden_size=384, n_blocks=3),
        talker=TalkerConfig(d_model=384, n_layers=6, n_heads=6, n_kv_heads=2, d_ff=1152),
    ),
}


def preset(name: str) -> ModelConfig:
    """The model configuration called `name`. Raises ConfigError with the known names."""
    if name not in PRESETS:
        raise ConfigError(f"no preset {name!r}; known: {', '.join(PRESETS)}")
    return PRESETS[name]


class DataSizes(Config):
    """What `muomni data plan` counted in the training manifests: good rows, tokens of text, seconds of sound."""

    rows: int = Field(ge=1)
    tokens: int = Field(ge=0)
    audio_s: float = Field(ge=0.0)


class DataConfig(Config):
    """Manifests (paths or Hugging Face data set names) of one stage. `validation` empty: `validation_fraction` of `train` by text."""

    train: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    validation_fraction: float = Field(0.02, ge=0.0, lt=1.0)
    max_audio_s: PositiveFloat = 15.0
    sizes: DataSizes | None = None  # a record; no run depends on it
    mel_masks: int = Field(0, ge=0)  # SpecAugment in stage audio: so many bands of time and of frequency are hidden in every clip
    vary_speech: bool = (
        False  # stages audio, sft: another vocal tract, room, noise, channel and (audio) speed for every clip of every epoch
    )
    cached_hours: PositiveFloat = 4.0  # of decoded sound that are kept in memory (0.1 GB an hour, in stage vocoder 0.3)
    side_by_side: PositiveInt = 1  # stage sft: up to so many conversations that begin with one picture are one example, which holds it once
    segment_s: PositiveFloat = 0.8  # stage vocoder: length of the pieces of clips, others in every epoch
    codec_share: float = Field(0.0, ge=0.0, le=1.0)  # stage vocoder: share of pieces whose log-mel went through the codec of init_from


VisionLoss = Literal["contrastive", "caption", "words"]


class TrainConfig(Config):
    """One optimisation run. Batch sizes count sequences over all ranks; `micro_batch_size` is what one forward pass holds on one rank."""

    steps: PositiveInt = 1_000
    freeze: tuple[str, ...] = ()  # components, or parts of them ("talker.transformer"), that this run does not change
    batch_size: PositiveInt = 32
    micro_batch_size: PositiveInt = 32
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: PositiveFloat = 1e-3
    final_learning_rate_fraction: float = Field(0.1, ge=0.0, le=1.0)
    warmup_steps: int = Field(50, ge=0)
    weight_decay: float = Field(0.1, ge=0.0)
    beta1: float = Field(0.9, ge=0.0, lt=1.0)
    beta2: float = Field(0.95, ge=0.0, lt=1.0)
    max_grad_norm: PositiveFloat = 1.0
    exploding_grad_norm: PositiveFloat = 100.0
    max_loss: PositiveFloat = 1e6
    max_bad_updates: PositiveInt = 10
    checkpoint_every: PositiveInt = 500
    evaluate_every: PositiveInt = 500
    keep_checkpoints: PositiveInt = 2
    log_every: PositiveInt = 10
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    parallel: Literal["ddp", "fsdp"] = "ddp"
    adversarial_after: int = Field(0, ge=0)  # stage vocoder: updates by spectral distance alone, before the discriminators begin
    vision_losses: tuple[VisionLoss, ...] = Field(("contrastive", "caption"), min_length=1)  # of stage vision; the first says what is best
    gradient_checkpointing: bool = False
    debug_nan: bool = False
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        if self.batch_size % self.micro_batch_size and self.micro_batch_size < self.batch_size:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of micro_batch_size {self.micro_batch_size}")
        if len(set(self.vision_losses)) < len(self.vision_losses):
            raise ValueError(f"vision_losses names one twice: {', '.join(self.vision_losses)}")
        return self


STAGES = ("text", "plain-gpt", "audio", "vision", "codec", "vocoder", "talker", "sft", "speech-lm")
StageName = Literal["text", "plain-gpt", "audio", "vision", "codec", "vocoder", "talker", "sft", "speech-lm"]


class RunConfig(Config):
    """A training run: which stage, on which model, from which checkpoints, with which data, into which folder.

    `init_from` names checkpoint folders whose components this stage starts from or depends on (later ones win). `image_tokens`: what the Thinker
    sees of a picture from now on, where that is to be other than the vision encoder's checkpoint says; its weights serve all ways.
    """

    stage: StageName
    preset: str = "tiny"
    model: ModelConfig = _TINY
    init_from: tuple[str, ...] = ()
    image_tokens: ImageTokens | None = None
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    out_dir: str

    @model_validator(mode="before")
    @classmethod
    def _model_on_preset(cls, raw: Any) -> Any:
        """The `model` section is written as changes to the preset."""
        if not isinstance(raw, dict):
            return raw
        name = raw.get("preset", "tiny")
        if name not in list(PRESETS):
            raise ValueError(f"no preset {name!r}; known: {', '.join(PRESETS)}")
        base = PRESETS[name].model_dump()
        changes = raw.get("model", {})
        changes = changes.model_dump() if isinstance(changes, ModelConfig) else changes
        return raw | {"model": _merged(base, changes)}


class MultimodalPretrainingConfig(Config):
    """The settings of the second system as its document has them (omni.pretraining); unlike all others they may be changed, and are checked
    then. `max_audio_duration` is in seconds, `audio_sample_rate` in Hz and that of the audio tokenizer."""

    model_config = ConfigDict(frozen=False, validate_assignment=True, extra="forbid", allow_inf_nan=False)

    d_model: PositiveInt = 128
    n_heads: PositiveInt = 4
    n_kv_heads: PositiveInt = 2
    n_layers: PositiveInt = 3
    d_ff: PositiveInt = 384
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    batch_size: PositiveInt = 8
    max_steps: PositiveInt = 1000
    learning_rate: PositiveFloat = 1e-4
    warmup_steps: int = Field(50, ge=0)
    weight_decay: float = Field(0.1, ge=0.0)
    optimizer: Literal["muon", "adamw"] = "muon"
    eval_every: PositiveInt = 500
    save_every: PositiveInt = 500
    seed: int = Field(0, ge=0)
    max_audio_duration: PositiveFloat = 10.0
    audio_sample_rate: PositiveInt = 24_000
    audio_weight: PositiveFloat = 1.0
    text_weight: PositiveFloat = 0.1
    output_dir: str = "runs/speech-lm"

    @model_validator(mode="after")
    def _consistent(self) -> MultimodalPretrainingConfig:
        _check_heads(self.d_model, self.n_heads, self.n_kv_heads)
        return self


C = TypeVar("C", bound=Config)


def _merged(base: dict[str, Any], changes: Any) -> Any:
    """`changes` laid over `base`, section by section."""
    if not isinstance(changes, dict):
        return changes
    out = dict(base)
    for key, value in changes.items():
        out[key] = _merged(base[key], value) if isinstance(base.get(key), dict) else value
    return out


def parse(cls: type[C], raw: Any, source: str) -> C:
    """`raw` checked as `cls`. Raises ConfigError that lists every problem at once, each with `source`, the place and what to do."""
    try:
        return cls.model_validate(raw)
    except ValidationError as error:
        problems = [_explain(cls, e) for e in error.errors()]
        raise ConfigError(f"{source}: " + "; ".join(problems)) from None


def _explain(cls: type[Config], error: Any) -> str:
    path = [str(part) for part in error["loc"]]
    owner: Any = cls
    for part in path[:-1]:
        field = getattr(owner, "model_fields", {}).get(part)
        owner = field.annotation if field is not None else None
    where = ".".join(path)
    if error["type"] == "extra_forbidden" and owner is not None:
        near = difflib.get_close_matches(path[-1], owner.model_fields, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(owner.model_fields)}"
        return f"{owner.__name__} has no field {path[-1]!r}{f' (at {where})' if len(path) > 1 else ''}; {hint}"
    message = error["msg"].removeprefix("Value error, ")
    found = "" if error["type"] in ("missing", "value_error") else f", found {error['input']!r}"
    return f"{where}: {message}{found}" if where else f"{message}{found}"


def apply_overrides(raw: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """`raw` with dotted settings such as `train.steps=100` laid over it; values are JSON, or text where that fails."""
    for item in overrides:
        key, equals, text = item.partition("=")
        if not equals or not key:
            raise ConfigError(f"override {item!r}: write it as section.name=value")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        change: Any = value
        for part in reversed(key.split(".")):
            change = {part: change}
        raw = _merged(raw, change)
    return raw


def released(path: str | Path) -> Path:
    """`path`, with the folder of the released model in the place of another name for it, be it the last part or the one above. For whoever uses a
    model: training starts from what is named and nothing else."""
    path = Path(path)
    for named in (path, path.parent):
        if named.name in RELEASE_ALIASES and not named.exists() and named.with_name(RELEASE).is_dir():
            return named.with_name(RELEASE) / path.relative_to(named)
    return path


def read_json(path: str | Path) -> Any:
    """The JSON in `path`. Raises ConfigError naming the file, and the line where it stops being JSON."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}:{error.lineno}: not JSON: {error.msg}") from None


def load_run(path: str | Path, overrides: list[str] | None = None) -> RunConfig:
    """The run described by the JSON file `path`, with dotted overrides. Raises ConfigError."""
    raw = read_json(path)
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected an object of settings")
    return parse(RunConfig, apply_overrides(raw, overrides or []), str(path))


def model_config(preset_name: str, overrides: list[str] | None = None) -> ModelConfig:
    """Preset `preset_name` with dotted overrides such as `thinker.n_layers=2`. Raises ConfigError."""
    base = preset(preset_name)
    if not overrides:
        return base
    return parse(ModelConfig, apply_overrides(base.model_dump(), overrides), f"preset {preset_name}")
