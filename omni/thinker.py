"""The Thinker: a decoder-only language model over text ids, or over embeddings that already hold pictures and sound.

B batch  T positions  V vocabulary  d model width"""

from __future__ import annotations

from torch import Tensor, nn

from omni.config import ThinkerConfig
from omni.nn.kv_cache import KVCache
from omni.nn.moe import Routing
from omni.nn.transformer import RMSNorm, Transformer, TransformerShape


class ThinkerLM(nn.Module):
    """ids (B,T) or embeddings (B,T,d) → logits (B,T,V)."""

    def __init__(self, config: ThinkerConfig) -> None:
        super().__init__()
        self.config = config
        self.tok_emb = nn.Embedding(config.vocab_size, config.d_model)
        self.transformer = Transformer(
            TransformerShape(
                d_model=config.d_model,
                n_layers=config.n_layers,
                n_heads=config.n_heads,
                n_kv_heads=config.n_kv_heads,
                d_ff=config.d_ff,
                causal=True,
                rope_theta=config.rope_theta,
                qk_norm=config.qk_norm,
                n_experts=config.n_experts,
                experts_per_token=config.experts_per_token,
                dropout=config.dropout,
            )
        )
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        nn.init.normal_(self.tok_emb.weight, std=0.02)
        nn.init.normal_(self.lm_head.weight, std=0.02)
        if config.tie_embeddings:
            self.lm_head.weight = self.tok_emb.weight

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer blocks."""
        return self.transformer.blocks

    @property
    def norm(self) -> RMSNorm:
        """The last norm; `hidden_states` has applied it already."""
        return self.transformer.norm

    def hidden_states(
        self,
        input_ids: Tensor | None = None,
        *,
        embeddings: Tensor | None = None,
        lengths: Tensor | list[int] | None = None,
        cache: KVCache | None = None,
        routing: list[Routing] | None = None,
        branches: Tensor | None = None,
    ) -> Tensor:
        """The normed states (B,T,d) that the LM head and the Talker read. Exactly one of `input_ids` and `embeddings` is given."""
        assert (input_ids is None) != (embeddings is None), "give input_ids or embeddings, not both"
        x = self.tok_emb(input_ids) if embeddings is None else embeddings
        return self.transformer(x, lengths=lengths, cache=cache, routing=routing, branches=branches)

    def forward(
        self,
        input_ids: Tensor | None = None,
        *,
        embeddings: Tensor | None = None,
        lengths: Tensor | list[int] | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Logits (B,T,V) of the next token at every position."""
        return self.lm_head(self.hidden_states(input_ids, embeddings=embeddings, lengths=lengths, cache=cache))

    def make_cache(self, batch_size: int, max_length: int | None = None) -> KVCache:
        """An empty cache for `max_length` positions (default: the context)."""
        return self.transformer.make_cache(batch_size, max_length or self.config.context_length)
