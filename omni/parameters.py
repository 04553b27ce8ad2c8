"""How many parameters each component has, counted from its modules.

The documents' table counts backbones. What was added to make them work has rows of its own, so that nothing is hidden and the table
can be compared."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

# row: the component it is part of, and the submodules or parameters that it counts
ADDITIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "ctc_head": ("audio_encoder", ("ctc_transformer", "ctc_head")),
    "talker_conditioning": ("talker", ("conditioning", "duration", "frame_conditioning", "begin")),
    "talker_rest_heads": ("talker", ("rest_mix", "rest_out")),
    "talker_aligner": ("talker", ("aligner",)),
    "codec_strides": ("codec", ("encoder", "decoder")),
    "neural_vocoder": ("vocoder", ("first", "first_norm", "blocks", "last_norm", "head", "pitch_head")),
}
MEANINGS = {
    "thinker": "language model: embedding, transformer, LM head",
    "vision_encoder": "patches, CLS, positions, transformer",
    "audio_encoder": "convolutions, transformer",
    "projectors": "encoder widths to the Thinker's",
    "talker": "code embeddings, transformer, first codebook's head",
    "codec": "mel projections, residual vector quantiser",
    "vocoder": "Griffin-Lim has no weights",
    "ctc_head": "several character slots per 80 ms frame",
    "talker_conditioning": "spelling, Thinker states and voice; durations; what is said in a frame",
    "talker_rest_heads": "later codebooks given the earlier ones",
    "talker_aligner": "how long characters last in what the Talker learns from",
    "codec_strides": "convolutions between 100 Hz mel and 12.5 Hz codes",
    "neural_vocoder": "log-mel to pitch, and to what shapes pulses and noise",
}


@dataclass(frozen=True)
class ParameterTable:
    """`components`: the backbones of the documents' table; `additions`: what was added to them. Tied weights count once."""

    components: dict[str, int]
    additions: dict[str, int]

    @property
    def total(self) -> int:
        """Of the backbones."""
        return sum(self.components.values())

    @property
    def grand_total(self) -> int:
        """Of everything."""
        return self.total + sum(self.additions.values())


def count(module: nn.Module) -> int:
    """Parameters, each once; fixed ones (codebooks) too, buffers not."""
    return sum(p.numel() for p in module.parameters())


def parameter_table(model: nn.Module) -> ParameterTable:
    """Of a model with all components (it may be on the meta device)."""
    rows: dict[str, tuple[str, ...]] = {
        name: (name,) for name in ("thinker", "vision_encoder", "audio_encoder", "projectors", "talker", "codec", "vocoder")
    }
    rows["projectors"] = ("image_projector", "audio_projector")
    components = {row: sum(count(getattr(model, name)) for name in names) for row, names in rows.items()}
    additions = {}
    for row, (component, parts) in ADDITIONS.items():
        own = dict(getattr(model, component).named_parameters())
        additions[row] = sum(p.numel() for name, p in own.items() if name.split(".")[0] in parts)
        components[component] -= additions[row]
    return ParameterTable(components, additions)
