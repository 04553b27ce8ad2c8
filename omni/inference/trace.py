"""Every stage's tensor shapes, taken from a run of the (untrained) model, beside those of the design document.

The pipelines are those of the design notes' dry run (docs/shapes.md), with its inputs: so many tokens, one picture, one second of sound. Shapes come
from forward hooks and results; none is typed, except the document's own. Where ours differ, the row says why."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn

from omni.alignment import SLOTS
from omni.characters import encode_characters
from omni.config import ModelConfig
from omni.omni_model import OmniModel

Shape = tuple[int, ...]
DOCUMENTED_PRESET = "tiny"
ONE_SECOND = 1.0
SAID = "This is a test of text to speech."  # ten tokens, says the document
TRAINING_FRAMES = 50
CHARACTER_SLOTS = 3


@dataclass(frozen=True)
class Step:
    """One stage: the shape that leaves it, the document's (None: it has no such stage, or another preset is traced), and why they
    differ."""

    stage: str
    shape: Shape
    document: Shape | None = None
    why: str = ""


@dataclass
class Recorder:
    """While it is open, the shapes that leave every submodule of `model`, by name, in order of calls."""

    model: nn.Module
    shapes: dict[str, list[Shape]] = field(default_factory=dict)
    _hooks: list[Any] = field(default_factory=list)

    def __enter__(self) -> Self:
        for name, module in self.model.named_modules():
            self._hooks.append(module.register_forward_hook(self._hook(name)))
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _hook(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) else output
            if isinstance(first, Tensor):
                self.shapes.setdefault(name, []).append(tuple(first.shape))

        return hook

    def __getitem__(self, name: str) -> Shape:
        """What left module `name` when it was last called."""
        return self.shapes[name][-1]


class Tracer:
    """Runs the pipelines on one preset."""

    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        self.config = config
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.model = OmniModel(config).eval()
        self.generator = torch.Generator().manual_seed(seed)

    def run(self, pipeline: str) -> list[Step]:
        """The steps of one of `PIPELINES`."""
        with torch.no_grad(), Recorder(self.model) as shapes:
            return list(PIPELINES[pipeline](self, shapes))

    def ids(self, length: int) -> Tensor:
        """Random token ids (1,length)."""
        return torch.randint(0, self.config.thinker.vocab_size, (1, length), generator=self.generator)

    def pixels(self) -> Tensor:
        """A picture of noise (1,3,H,W)."""
        size = self.config.vision_encoder.image_size
        return torch.randn(1, 3, size, size, generator=self.generator)

    def waveform(self) -> Tensor:
        """A second of noise (1,n)."""
        return 0.1 * torch.randn(1, round(ONE_SECOND * self.config.audio.sample_rate_hz), generator=self.generator)

    # --- the pipelines

    def text(self, shapes: Recorder) -> Iterable[Step]:
        ids = self.ids(6)
        cache = self.model.thinker.make_cache(1)
        logits = self.model.thinker(ids, cache=cache)
        yield Step("token ids", tuple(ids.shape), (1, 6))
        yield Step("token embedding", shapes["thinker.tok_emb"], (1, 6, 256))
        heads = self.config.thinker.n_heads
        width = self.config.thinker.d_model // heads
        keys = tuple(cache.keys[0, :, :, : cache.lengths[0]].shape)
        assert shapes["thinker.transformer.blocks.0.attention.qkv"][-1] == (heads + 2 * keys[1]) * width
        yield Step("queries of block 1", (1, heads, 6, width), (1, 4, 6, 64))
        why = "grouped queries: 2 heads of keys and values serve 4 of queries; the documents' own parameter count needs that"
        yield Step("keys of block 1; values alike", keys, (1, 4, 6, 64), why)
        yield Step("attention of block 1", shapes["thinker.transformer.blocks.0.attention"], (1, 6, 256))
        yield Step("feed-forward of block 1", shapes["thinker.transformer.blocks.0.feed_forward"], (1, 6, 256))
        yield from self._thinker(shapes, 6, logits)
        next_id = logits[:, -1:].argmax(-1)
        yield Step("next token", tuple(next_id.shape), (1, 1))
        logits = self.model.thinker(next_id, cache=cache)
        yield Step("logits of one cached step", tuple(logits.shape), (1, 1, 5000))
        seen = tuple(cache.keys[:, :, :, : cache.lengths[0]].shape)
        yield Step(
            "cached keys (layers, batch, heads, positions, width)",
            seen,
            None,
            "an argument of forward that the caller owns, never hidden state",
        )

    def image(self, shapes: Recorder) -> Iterable[Step]:
        pixels = self.pixels()
        yield from self._image(shapes, pixels)
        yield from self._spliced(shapes, "1 image token + 8 text tokens", 8, 9, pixels=pixels)

    def audio(self, shapes: Recorder) -> Iterable[Step]:
        waveform = self.waveform()
        mel = self.model.log_mel(waveform)
        yield from self._audio(shapes, waveform, mel)
        yield from self._spliced(shapes, "audio tokens + 5 text tokens", 5, 30, mel=mel)

    def all(self, shapes: Recorder) -> Iterable[Step]:
        pixels, mel = self.pixels(), self.model.log_mel(self.waveform())
        yield Step("picture as Thinker embeddings", tuple(self.model.encode_images(pixels).shape), (1, 1, 256))
        yield Step("sound as Thinker embeddings", tuple(self.model.encode_audio(mel)[0].shape), (1, 25, 256), SLOWER)
        yield from self._spliced(shapes, "image, audio, text", 9, 35, pixels=pixels, mel=mel)

    def speech(self, shapes: Recorder) -> Iterable[Step]:
        model, talker, codec = self.model, self.model.talker, self.config.codec
        ids = self.ids(10)
        yield Step("token ids of the reply", tuple(ids.shape), (1, 10))
        characters = torch.tensor([encode_characters(SAID)])
        n_characters = characters.shape[1]
        yield Step("characters of the reply", tuple(characters.shape), None, "5,000 pieces say too little about pronunciation")
        token = torch.arange(n_characters)[None] * ids.shape[1] // n_characters
        conditioning = model.condition(
            ids, torch.tensor([10]), characters, token, torch.tensor([n_characters]), torch.zeros(1, dtype=torch.long)
        )
        yield Step("Thinker states", shapes["thinker.transformer"], None, "the Talker is told what to say")
        yield Step(
            "conditioning: a character with its token's state", tuple(conditioning.embeddings.shape), None, "spelling and meaning together"
        )
        lasts = torch.full((n_characters,), CHARACTER_SLOTS)  # an untrained Talker has no idea: 60 ms each
        frames = -(-n_characters * CHARACTER_SLOTS // SLOTS)
        yield Step("slots of 20 ms that each character lasts", (1, *lasts.shape), None, "predicted; speech ends with the last one")
        conditions = talker.frame_conditioning(conditioning.embeddings[0], lasts, frames)
        yield Step("what each frame is to say", (1, *conditions.shape), None, "the characters in its four slots")
        cache = talker.make_cache(1)
        codes = torch.empty(1, 0, codec.n_codebooks, dtype=torch.long)
        history, logits_shapes = talker.begin[None], []

        def likeliest(logits: Tensor) -> Tensor:
            logits_shapes.append(tuple(logits.shape))
            return logits.argmax(-1)

        for frame in range(frames):
            code = talker.choose(talker.step(history, conditions[frame : frame + 1], cache), likeliest)
            codes = torch.cat((codes, code[:, None]), dim=1)
            history = talker.embed_codes(code)
        yield Step(
            "Talker input, a frame",
            (1, 1, talker.config.d_model),
            (1, 1, 192),
            "begin is a vector; the document's zero codes are a valid sound",
        )
        yield Step("logits of the first codebook", logits_shapes[0], (1, 128))
        if codec.n_codebooks > 1:
            yield Step("logits of the next codebook", logits_shapes[1], (1, 128))
        why = f"the characters decide how long: {n_characters} of 60 ms are {frames} frames, 10 tokens are not 300"
        yield Step("codes", tuple(codes.shape), (1, 301, 2), why)
        mel = model.codec.decode(codes)
        yield Step("log-mel", tuple(mel.shape), (1, 301, 128), f"a code frame is {codec.stride} mel frames (12.5 and 100 Hz)")
        waveform = model.vocoder(mel)
        yield Step(
            "waveform", tuple(waveform.shape), (1, 385_280), f"{frames} frames of 80 ms are {frames / self.config.code_rate_hz:.2f} s"
        )

    def talker_training(self, shapes: Recorder) -> Iterable[Step]:
        model, codec = self.model, self.config.codec
        mel = torch.randn(2, TRAINING_FRAMES * codec.stride, self.config.audio.n_mels, generator=self.generator)
        codes = model.codec.encode(mel)
        why = f"{TRAINING_FRAMES} code frames of 80 ms; the document takes mel frames for code frames"
        yield Step("log-mel", tuple(mel.shape), (2, 50, 128), why)
        yield Step(
            "mel frames folded to the code rate", shapes["codec.encoder"], None, "before quantisation, behind the strided convolutions"
        )
        yield Step("codes", tuple(codes.shape), (2, 50, 2))
        ids = torch.cat((self.ids(10), self.ids(10)))
        characters = torch.tensor([encode_characters(SAID)] * 2)
        n_characters = characters.shape[1]
        token = (torch.arange(n_characters) * ids.shape[1] // n_characters).expand(2, -1)
        lengths = torch.tensor([n_characters] * 2)
        conditioning = model.condition(ids, torch.tensor([10, 10]), characters, token, lengths, torch.zeros(2, dtype=torch.long))
        lasts = torch.full((n_characters,), CHARACTER_SLOTS)
        output = model.talker(codes, conditioning, [lasts, lasts])
        yield Step("Talker input", shapes["talker.transformer"], (2, 50, 192), "what a frame is to say, and the codes of the one before")
        yield Step("logits of the first codebook", tuple(output.first.shape), (2, 50, 128))
        rest = (
            "each given the state and the earlier codes of its frame"
            if codec.n_codebooks == 2
            else f"{codec.n_codebooks - 1} later codebooks"
        )
        yield Step("logits of the later codebooks", tuple(output.rest.shape), (2, 50, 128), f"frames × codebooks × codes; {rest}")
        yield Step("durations", tuple(output.log_durations.shape), None, "when the speech ends is learned too")
        yield Step("targets", (output.first.shape[:2].numel() + output.rest.shape[:3].numel(),), (200,))

    # --- parts

    def _thinker(self, shapes: Recorder, length: int, logits: Tensor, why: str = "") -> Iterable[Step]:
        thinker = self.config.thinker
        for block in range(thinker.n_layers):
            yield Step(f"Thinker block {block + 1}", shapes[f"thinker.transformer.blocks.{block}"], (1, length, 256), why)
        yield Step("final norm", shapes["thinker.transformer.norm"], (1, length, 256), why)
        yield Step("logits", tuple(logits.shape), (1, length, 5000), why)

    def _image(self, shapes: Recorder, pixels: Tensor) -> Iterable[Step]:
        embeddings = self.model.encode_images(pixels)
        cls, grid = self.model.vision_encoder(pixels)
        yield Step("pixels", tuple(pixels.shape), (1, 3, 224, 224))
        yield Step("patches", shapes["vision_encoder.proj"], (1, 128, 14, 14))
        for block in range(self.config.vision_encoder.n_layers):
            yield Step(f"CLS and patches, ViT block {block + 1}", shapes[f"vision_encoder.transformer.blocks.{block}"], (1, 197, 128))
        yield Step("CLS", tuple(cls.shape), (1, 1, 128))
        yield Step("patch grid", tuple(grid.shape), (1, 196, 128), "kept: image_tokens may be cls, grid or pooled")
        yield Step("projected to the Thinker", tuple(embeddings.shape), (1, 1, 256))

    def _audio(self, shapes: Recorder, waveform: Tensor, mel: Tensor) -> Iterable[Step]:
        encoder = self.config.audio_encoder
        states, _ = self.model.audio_encoder(mel)
        embeddings = self.model.audio_projector(states)
        yield Step("waveform, 1 s at 16 kHz", tuple(waveform.shape), (1, 16_000))
        yield Step("log-mel, 100 Hz", tuple(mel.shape), (1, 100, 128))
        documented = [(1, 64, 50, 64), (1, 64, 25, 32)]
        for index in range(len(self.model.audio_encoder.down)):
            shape = documented[index] if index < len(documented) else None
            yield Step(
                f"convolution {index + 1}",
                shapes[f"audio_encoder.down.{index}"],
                shape,
                "" if shape else "a third halving: 12.5 Hz, as the architecture overview has it",
            )
        yield Step("projected to the encoder's width", shapes["audio_encoder.proj"], (1, 25, 192), SLOWER)
        for block in range(encoder.n_layers):
            yield Step(f"AuT block {block + 1}", shapes[f"audio_encoder.transformer.blocks.{block}"], (1, 25, 192), SLOWER)
        slots = self.model.audio_encoder.ctc_logits(states)
        yield Step("CTC logits", tuple(slots.shape), None, f"{encoder.ctc_slots} character slots a frame: one could not spell English")
        yield Step("projected to the Thinker", tuple(embeddings.shape), (1, 25, 256), SLOWER)

    def _spliced(
        self, shapes: Recorder, what: str, n_text: int, documented: int, *, pixels: Tensor | None = None, mel: Tensor | None = None
    ) -> Iterable[Step]:
        """Media, then text, through the model's own splice."""
        n_image = self.config.vision_encoder.n_image_tokens if pixels is not None else 0
        n_audio = -(-mel.shape[1] // self.config.audio_encoder.downsample) if mel is not None else 0
        embeddings = self.model.embed(
            self.ids(n_image + n_audio + n_text),
            pixels=pixels,
            image_slots=torch.tensor([[0, 0]]) if pixels is not None else None,
            mel=mel,
            mel_lengths=torch.tensor([mel.shape[1]]) if mel is not None else None,
            audio_slots=torch.tensor([[0, n_image, n_audio]]) if mel is not None else None,
        )
        logits = self.model.thinker(embeddings=embeddings)
        why = SLOWER if mel is not None else ""
        yield Step(
            what,
            tuple(embeddings.shape),
            (1, documented, 256),
            why or "the chat template adds the markers around each medium and the roles",
        )
        yield from self._thinker(shapes, documented, logits, why)


SLOWER = "12.5 Hz, not 25: one second is 13 frames"
PIPELINES: dict[str, Callable[[Tracer, Recorder], Iterable[Step]]] = {
    "text": Tracer.text,
    "image": Tracer.image,
    "audio": Tracer.audio,
    "all": Tracer.all,
    "speech": Tracer.speech,
    "talker-training": Tracer.talker_training,
}


def trace(config: ModelConfig, pipeline: str, *, documented: bool = True) -> list[Step]:
    """The steps of `pipeline`. `documented` off drops the comparison, which is about preset tiny."""
    steps = Tracer(config).run(pipeline)
    return steps if documented else [Step(step.stage, step.shape) for step in steps]


def spell(shape: Shape | None) -> str:
    """(1, 6, 256), or a dash for None."""
    return "–" if shape is None else str(shape).replace(",)", ")")


def reasons(steps: list[Step]) -> list[str]:
    """Why each differs; a ditto mark where that is the reason of the row before."""
    before = ["", *(step.why for step in steps)]
    return ["″" if step.why and step.why == last else step.why for step, last in zip(steps, before, strict=False)]


def as_markdown(pipeline: str, steps: list[Step]) -> str:
    """A section with one table, as it stands in docs/shapes.md."""
    rows = [
        f"| {s.stage} | {spell(s.shape)} | {'same' if s.shape == s.document else spell(s.document)} | {why} |"
        for s, why in zip(steps, reasons(steps), strict=True)
    ]
    return "\n".join((f"### {pipeline}", "", "| stage | shape | document | why it differs |", "|---|---|---|---|", *rows))
