"""What all stages share: a model made of components, started from the checkpoints of earlier stages, exported as components."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from omni.checkpoint import SavedModel, find_checkpoint, load_model
from omni.config import ModelConfig, RunConfig, parse
from omni.errors import CheckpointError, ConfigError
from omni.omni_model import COMPONENTS, OmniModel, with_section
from omni.tokenizer import BPETokenizer
from omni.training.stage import Export, Stage

B = TypeVar("B")


class OmniStage(Stage[B]):
    """A stage whose model is an `OmniModel` of `needs` + `trains`. A component of `needs` must come from an `init_from` checkpoint and
    is not changed; one of `trains` starts from there if it can, else from random weights."""

    needs: tuple[str, ...] = ()
    trains: tuple[str, ...] = ()

    def __init__(self, run: RunConfig) -> None:
        super().__init__(run)
        unknown = sorted({name.partition(".")[0] for name in run.train.freeze} - set(COMPONENTS))
        if unknown:
            raise ConfigError(f"train.freeze: no component {unknown[0]!r}; known: {', '.join(COMPONENTS)}")
        self.sources: dict[str, SavedModel] = {}
        for folder in run.init_from:
            saved = load_model(find_checkpoint(folder))
            self.sources |= dict.fromkeys(saved.components, saved)
        missing = [name for name in self.needs if name not in self.sources]
        if missing:
            raise CheckpointError(
                f"stage {self.name} needs a trained {missing[0]}, and none of init_from ({', '.join(run.init_from) or 'empty'}) has one; "
                "train the stage before it or name its folder"
            )
        self.config = self._config()
        self.tokenizer = self._tokenizer()

    def _config(self) -> ModelConfig:
        """The run's model, with the section of every component that comes from a checkpoint as that checkpoint has it, but for `image_tokens`."""
        config = self.run.model
        for name, saved in self.sources.items():
            if name in self.needs + self.trains:
                if saved.config.audio != config.audio:
                    raise ConfigError(f"{saved.folder}: its mel front end (section audio) differs from this run's; use the same")
                config = with_section(config, name, saved.config)
        if self.run.image_tokens is None:
            return config
        changed = config.model_dump() | {"vision_encoder": config.vision_encoder.model_dump() | {"image_tokens": self.run.image_tokens}}
        return parse(ModelConfig, changed, f"stage {self.name}")

    def _tokenizer(self) -> BPETokenizer | None:
        """The tokenizer that came with the Thinker."""
        source = self.sources.get("thinker")
        return BPETokenizer(source.tokenizer) if source is not None and source.tokenizer is not None else None

    def require_tokenizer(self) -> BPETokenizer:
        """The Thinker's tokenizer; every stage that needs a Thinker has one."""
        if self.tokenizer is None:
            raise CheckpointError(f"stage {self.name}: the Thinker in init_from came without tokenizer.model")
        return self.tokenizer

    def build_omni(self) -> OmniModel:
        """The model with everything taken over; what this stage does not train has requires_grad off."""
        model = OmniModel(self.config, self.needs + self.trains)
        for name in model.components:
            if name in self.sources:
                model.load_components(self.sources[name], only=[name])
        for name in (*self.needs, *self.run.train.freeze):
            self._freeze(model, name)
        return model

    def _freeze(self, model: OmniModel, name: str) -> None:
        """A component that the model has, or a part of one ("talker.transformer")."""
        component, _, part = name.partition(".")
        paths = [path for path, _ in model.named_parameters() if path.startswith(f"{component}.")]
        chosen = [path for path in paths if f"{path}.".startswith(f"{name}.")]
        if paths and not chosen:
            parts = sorted({path.split(".")[1] for path in paths})
            raise ConfigError(f"train.freeze: {component} has no part {part!r}; it has: {', '.join(parts)}")
        for path in chosen:
            model.get_parameter(path).requires_grad_(False)

    def build_model(self) -> nn.Module:
        return self.build_omni()

    def omni_of(self, model: nn.Module) -> OmniModel:
        """The OmniModel inside what `build_model` returned."""
        assert isinstance(model, OmniModel)
        return model

    def export(self, model: nn.Module) -> Export:
        """The trained components (with the tokenizer if the Thinker is among them)."""
        omni = self.omni_of(model)
        tokenizer = self.tokenizer.serialized if self.tokenizer is not None and "thinker" in self.trains else None
        return Export(omni.tensors(self.trains), omni.config, self.trains, tokenizer, {"stage": self.name})
