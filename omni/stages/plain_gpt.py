"""The baseline of stage A: a plain GPT (Radford et al. 2019, GPT-2) of the Thinker's depth, width, vocabulary and parameter count.

It has none of what the Thinker has beyond GPT-2: learned positions for rotations, LayerNorm for RMSNorm, GELU for SwiGLU, a key and a
value head for every query head, and biases. Data, tokenizer, loss and Trainer are the same.

B batch  T positions  V vocabulary  d model width  H heads  D head width"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omni.checkpoint import CONFIG, TOKENIZER, latest, load_into, load_model
from omni.config import RunConfig, ThinkerConfig
from omni.errors import CheckpointError, ConfigError
from omni.nn.attention import attention
from omni.nn.moe import Routing
from omni.parameters import count
from omni.stages.text import TextStage
from omni.thinker import ThinkerLM
from omni.tokenizer import BPETokenizer
from omni.training.stage import Export

COMPONENT = "plain_gpt"  # in checkpoints; it is no part of an OmniModel


class PlainBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), (B,T,d) → (B,T,d)."""

    def __init__(self, config: ThinkerConfig, d_ff: int) -> None:
        super().__init__()
        d = config.d_model
        self.n_heads = config.n_heads
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.up, self.down = nn.Linear(d, d_ff), nn.Linear(d_ff, d)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.qkv(self.norm1(x)).unflatten(-1, (3 * self.n_heads, -1)).transpose(1, 2).contiguous()  # (B, 3H, T, D)
        y = attention(*heads.chunk(3, dim=1), causal=True)
        x = x + self.dropout(self.out(y.transpose(1, 2).flatten(2)))
        return x + self.dropout(self.down(F.gelu(self.up(self.norm2(x)))))


class PlainGPT(nn.Module):
    """ids (B,T) → logits (B,T,V). The head is tied to the embedding if the Thinker's is; `d_ff` None: as many parameters as the Thinker."""

    def __init__(self, config: ThinkerConfig, d_ff: int | None = None) -> None:
        super().__init__()
        self.config = config
        d_ff = matched_width(config) if d_ff is None else d_ff
        self.tok_emb = nn.Embedding(config.vocab_size, config.d_model)
        self.pos_emb = nn.Embedding(config.context_length, config.d_model)
        self.blocks = nn.ModuleList(PlainBlock(config, d_ff) for _ in range(config.n_layers))
        self.norm = nn.LayerNorm(config.d_model)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                residual = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * config.n_layers) ** 0.5 if residual else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
        if config.tie_embeddings:
            self.lm_head.weight = self.tok_emb.weight

    def hidden_states(self, input_ids: Tensor, *, routing: list[Routing] | None = None) -> Tensor:
        """The normed states (B,T,d) that the head reads; T is at most the context length. `routing` stays as it is: nothing is routed."""
        x = self.tok_emb(input_ids) + self.pos_emb.weight[: input_ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.lm_head(self.hidden_states(input_ids))


def matched_width(config: ThinkerConfig) -> int:
    """The MLP width at which the plain GPT comes nearest to the Thinker's parameter count. Raises ConfigError where none does."""
    with torch.device("meta"):
        wanted, one, two = count(ThinkerLM(config)), count(PlainGPT(config, 1)), count(PlainGPT(config, 2))
    width = 1 + round((wanted - one) / (two - one))
    if config.n_experts or width < 1:
        raise ConfigError("stage plain-gpt needs a dense Thinker with more parameters than a GPT of its width has outside the MLPs")
    return width


def load_plain_gpt(folder: str | Path) -> tuple[PlainGPT, BPETokenizer]:
    """The trained baseline in a folder of stage plain-gpt, in evaluation mode, and its tokenizer. Raises CheckpointError for any other checkpoint, and
    for a run that is not finished, which would be no fair comparison."""
    folder = Path(folder)
    if latest(folder) is not None and not (folder / CONFIG).exists():
        raise CheckpointError(f"{folder}: its training is not finished")
    saved = load_model(folder)
    if COMPONENT not in saved.components:
        raise CheckpointError(f"{saved.folder}: holds {', '.join(saved.components)}, no {COMPONENT}; train one with stage plain-gpt")
    model = PlainGPT(saved.config.thinker)
    load_into(model, {name.removeprefix(f"{COMPONENT}."): tensor for name, tensor in saved.tensors.items()}, str(saved.folder))
    return model.eval(), BPETokenizer(saved.folder / TOKENIZER)


class PlainGPTStage(TextStage):
    """`muomni train plain-gpt --config FILE`: stage A with a plain GPT in the Thinker's place. `init_from` names a Thinker, of which only
    the tokenizer and the configuration are taken."""

    name = "plain-gpt"
    needs: tuple[str, ...] = ("thinker",)
    trains: tuple[str, ...] = ()

    def __init__(self, run: RunConfig) -> None:
        super().__init__(run)
        self.tokenizer: BPETokenizer | None = self.require_tokenizer()

    def build_model(self) -> nn.Module:
        return nn.ModuleDict({"thinker": PlainGPT(self.config.thinker)})  # where TextStage looks for its language model

    def export(self, model: nn.Module) -> Export:
        assert isinstance(model, nn.ModuleDict)
        tensors = {f"{COMPONENT}.{name}": tensor for name, tensor in model["thinker"].state_dict().items()}
        return Export(tensors, self.config, (COMPONENT,), self.require_tokenizer().serialized, {"stage": self.name})
