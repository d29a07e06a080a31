"""The two-stream sequential recommender (arXiv 2403.07623, section 3; SPEC "The model")."""

from typing import NamedTuple

import jax
from flax import linen as nn

from tssr_jax.models import initializers
from tssr_jax.models.attention import causal_padding_mask
from tssr_jax.models.content.frozen import FrozenContent
from tssr_jax.models.dense import Dense
from tssr_jax.models.gate import Gate
from tssr_jax.models.multimodal import MultimodalEncoder
from tssr_jax.models.unimodal import UnimodalEncoder

STREAMS = ("id", "content")


class TSSROutputs(NamedTuple):
    """States of both streams, each [batch, length, d_model]; None where a stream is absent.

    Attributes:
      id_input_embedding, content_input_embedding: item embeddings WITHOUT positions, the
        targets of the item-grained loss.
      id_encoded, content_encoded: after the unimodal encoders.
      id_crossed, content_crossed: after the multimodal encoders.
      gate: weight of the id stream in `fused`.
      fused: what the prediction head reads.
    """

    id_input_embedding: jax.Array | None
    content_input_embedding: jax.Array | None
    id_encoded: jax.Array | None
    content_encoded: jax.Array | None
    id_crossed: jax.Array | None
    content_crossed: jax.Array | None
    gate: jax.Array | None
    fused: jax.Array


class TSSR(nn.Module):
    """Embeddings, unimodal encoders, multimodal encoders, gate and prediction head.

    With one stream there is nothing to cross or to gate: the unimodal encoder feeds the head.
    `streams=("id",)` is SASRec (arXiv 1808.09781) trained with cross entropy over the catalogue.

    Attributes:
      num_items: size of the catalogue; ids are 1..num_items, 0 is padding.
      streams: ("id", "content"), ("id",) or ("content",).
      d_model: width of every state.
      num_heads: attention heads; divides d_model.
      d_ffn: width of the feed-forward layers.
      num_unimodal_layers: self-attention blocks of each stream.
      num_cross_layers: cross-attention blocks of each stream.
      max_length: number of positions.
      dropout_rate: see `EncoderBlock`.
    """

    num_items: int
    streams: tuple[str, ...]
    d_model: int
    num_heads: int
    d_ffn: int
    num_unimodal_layers: int
    num_cross_layers: int
    max_length: int
    dropout_rate: float

    def setup(self) -> None:
        width = {
            "num_heads": self.num_heads,
            "d_ffn": self.d_ffn,
            "dropout_rate": self.dropout_rate,
        }
        table = initializers.table(self.num_items)
        self.position_embedding = nn.Embed(self.max_length, self.d_model, embedding_init=table)
        if "id" in self.streams:
            self.token_embedding = nn.Embed(self.num_items + 1, self.d_model, embedding_init=table)
            self.id_encoder = UnimodalEncoder(self.num_unimodal_layers, **width)
        if "content" in self.streams:
            self.content_projection = FrozenContent(self.d_model)
            self.content_encoder = UnimodalEncoder(self.num_unimodal_layers, **width)
        if len(self.streams) == 2:
            self.id_cross = MultimodalEncoder(self.num_cross_layers, **width)
            self.content_cross = MultimodalEncoder(self.num_cross_layers, **width)
            self.gate = Gate()
        self.output = Dense(self.num_items + 1)

    def encode(
        self,
        item_sequence: jax.Array,
        item_features: jax.Array | None,
        *,
        deterministic: bool = True,
    ) -> TSSROutputs:
        """Runs a history through the streams, up to the state that the head reads.

        Args:
          item_sequence: int [batch, length], left padded with 0; length <= max_length.
          item_features: [num_items + 1, feature_dim]; may be None without a content stream.
          deterministic: whether dropout is off; if not, `apply` needs the rng "dropout".
        """
        mask = causal_padding_mask(item_sequence)
        # Left padding: the last position is the newest item, whatever the length.
        positions = self.position_embedding.embedding[-item_sequence.shape[1] :]

        id_input = id_encoded = content_input = content_encoded = None
        if "id" in self.streams:
            id_input = self.token_embedding(item_sequence)
            id_encoded = self.id_encoder(id_input + positions, mask, deterministic=deterministic)
        if "content" in self.streams:
            content_input = self.content_projection(item_sequence, item_features)
            content_encoded = self.content_encoder(
                content_input + positions, mask, deterministic=deterministic
            )

        id_crossed = content_crossed = gate = None
        if id_encoded is not None and content_encoded is not None:
            id_crossed = self.id_cross(
                id_encoded, content_encoded, mask, deterministic=deterministic
            )
            content_crossed = self.content_cross(
                content_encoded, id_encoded, mask, deterministic=deterministic
            )
            gate, fused = self.gate(id_crossed, content_crossed)
        else:
            fused = id_encoded if id_encoded is not None else content_encoded
        return TSSROutputs(
            id_input_embedding=id_input,
            content_input_embedding=content_input,
            id_encoded=id_encoded,
            content_encoded=content_encoded,
            id_crossed=id_crossed,
            content_crossed=content_crossed,
            gate=gate,
            fused=fused,
        )

    def score(self, fused: jax.Array) -> jax.Array:
        """Scores all items: [..., d_model] -> [..., num_items + 1]; class 0 is padding."""
        return self.output(fused)

    def __call__(
        self,
        item_sequence: jax.Array,
        item_features: jax.Array | None,
        *,
        deterministic: bool = True,
    ) -> tuple[TSSROutputs, jax.Array]:
        """`encode`, then `score` at every position: logits [batch, length, num_items + 1]."""
        outputs = self.encode(item_sequence, item_features, deterministic=deterministic)
        return outputs, self.score(outputs.fused)
