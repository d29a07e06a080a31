"""The two-stream sequential recommender (arXiv 2403.07623, section 3; docs/method.md)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import linen as nn

from tssr_jax.catalogue import Catalogue
from tssr_jax.collectives import Axis
from tssr_jax.models import experts, initializers
from tssr_jax.models.attention import causal_padding_mask, packed_mask
from tssr_jax.models.blocks import EncoderBlock
from tssr_jax.models.content.frozen import FrozenContent
from tssr_jax.models.content.fusion import ContentFeatures, FusedContent
from tssr_jax.models.dropout import Dropout
from tssr_jax.models.gate import Concatenation, Gate
from tssr_jax.models.head import Head, HeadWeights
from tssr_jax.models.packing import Packed, unpack
from tssr_jax.models.recurrent import RecurrentEncoder
from tssr_jax.models.streams import StreamEncoders

STREAMS = ("id", "content", "sum")
# All that make sense together.
STREAM_SETS = (("id", "content"), ("id",), ("content",), ("sum",))
ENCODERS = ("attention", "gru")
# Beside the features of the modalities: bool [shard_classes], items that training has seen.
KNOWN = "known"


def reads_content(streams: Sequence[str]) -> bool:
    """Whether a model of these streams reads the content of items."""
    return bool({"content", "sum"} & set(streams))


def ranks_by_content(head: str, streams: Sequence[str]) -> bool:
    """Whether items that were never trained are scored by their content."""
    return head == "content" or (head == "tied" and reads_content(streams))


class StreamStates(NamedTuple):
    """States of one stream, each [batch, length, d_model].

    Attributes:
      input_embedding: item embeddings WITHOUT positions, the targets of the item-grained loss.
      encoded: after the unimodal encoder.
      crossed: after the multimodal encoder; `encoded` itself where there is no other stream.
    """

    input_embedding: jax.Array
    encoded: jax.Array
    crossed: jax.Array


class TSSROutputs(NamedTuple):
    """Everything that losses and ranking need; None where a stream (or the gate) is absent.

    Attributes:
      id: states of the id stream.
      content: states of the content stream.
      gate: weight of the id stream in what the gate makes of both, [batch, length, d_model].
      fused: what the prediction head reads, [batch, length, d_model]; [batch, length, 2 * d_model]
        with experts.
      experts: the states by which each predicts, [batch, length, d_model]; {} where they don't.
    """

    id: StreamStates | None
    content: StreamStates | None
    gate: jax.Array | None
    fused: jax.Array
    experts: Mapping[str, jax.Array]


class TSSR(nn.Module):
    """Embeddings, unimodal encoders, multimodal encoders, gate and prediction head.

    With one stream there is nothing to cross or to gate: the unimodal encoder feeds the head.
    `streams=("id",)` is SASRec (arXiv 1808.09781) trained with cross entropy over the catalogue,
    `("sum",)` the same with an item's content added to its id's vector.

    Attributes:
      catalogue: its size, and how its classes lie on the devices; ids are 1..num_items, 0 is
        padding.
      streams: one of `STREAM_SETS`.
      d_model: width of every state.
      num_heads: attention heads; divides d_model.
      d_ffn: width of the feed-forward layers.
      num_unimodal_layers: self-attention blocks of each stream, or layers of a recurrent one.
      num_cross_layers: cross-attention blocks of each stream.
      max_length: number of positions.
      dropout_rate: see `EncoderBlock`.
      encoder: "attention", or "gru" for a single stream.
      no_content_vector: see `FrozenContent`.
      content_hidden: see `FrozenContent`.
      compute_dtype: one of `COMPUTE_DTYPES`, see `precision`.
      residual_init: see `EncoderBlock`.
      keep_products: see `StreamEncoders`.
      modalities: of the content stream, one or two of `MODALITIES`.
      fusion: of two modalities, see `FusedContent`.
      mixing: of the two streams, one of `MIXINGS`.
      head: "classes", weights of its own for each class; "content", these and what a projection
        makes of its content, so that items which were never trained are ranked by content alone;
        "tied", the sum of the vectors by which the streams read it.
      id_reads_content: with two streams, what the id stream encodes is the sum of an item's id
        vector and its content's; see `models.experts` for what its expert scores by. The
        item-grained loss compares with the id vector alone.
      rows_axis: the device axis that batches are cut along; None on one device.
    """

    catalogue: Catalogue
    streams: tuple[str, ...]
    d_model: int
    num_heads: int
    d_ffn: int
    num_unimodal_layers: int
    num_cross_layers: int
    max_length: int
    dropout_rate: float
    encoder: str = "attention"
    no_content_vector: bool = True
    content_hidden: int = 0
    compute_dtype: str = "float32"
    residual_init: float = 1e-8
    keep_products: bool = True
    modalities: tuple[str, ...] = ("text",)
    fusion: str = "sum"
    mixing: str = "gate"
    head: str = "classes"
    id_reads_content: bool = False
    rows_axis: Axis = None

    @property
    def predicts_by_experts(self) -> bool:
        """Whether each of `EXPERTS` predicts by itself."""
        return self.mixing == "experts" and len(self.streams) == 2

    def setup(self) -> None:
        """Makes the layers that the streams need; the names are those of the parameters."""
        table, classes = initializers.table(self.catalogue.num_items), self.catalogue.shard_classes
        self.position_embedding = nn.Embed(self.max_length, self.d_model, embedding_init=table)
        if self.streams != ("content",):
            self.token_embedding = nn.Embed(classes, self.d_model, embedding_init=table)
        if reads_content(self.streams):
            self.content_projection = self._make_content_projection()
        dropout = Dropout(self.dropout_rate, self.rows_axis, parent=None)
        both = len(self.streams) == 2
        self.blocks = self._make_encoder(dropout, self.num_cross_layers if both else 0)
        if both and self.mixing in {"gate", "experts"}:
            self.gate = Gate(self.compute_dtype)
        elif both and self.mixing == "concatenation":
            self.concatenation = Concatenation(self.compute_dtype)
        self.output = Head(classes, self.d_model, bias_only=self.head == "tied")
        if self.head == "content":
            self.output_content = self._make_content_projection()

    def _make_encoder(self, dropout: Dropout, num_cross: int) -> nn.Module:
        if self.encoder == "gru":
            return RecurrentEncoder(self.num_unimodal_layers, dropout)
        block = EncoderBlock(
            *(self.num_heads, self.d_ffn, dropout),
            *(self.compute_dtype, self.residual_init),
            parent=None,
        )
        return StreamEncoders(block, self.num_unimodal_layers, num_cross, self.keep_products)

    def _make_content_projection(self) -> nn.Module:
        settings = (
            *(self.d_model, self.catalogue, self.no_content_vector),
            *(self.compute_dtype, self.content_hidden),
        )
        if len(self.modalities) == 1:
            return FrozenContent(*settings)
        return FusedContent(self.modalities, self.fusion, *settings)

    def encode(
        self,
        item_sequence: jax.Array,
        item_features: ContentFeatures | None,
        packed: Packed | None = None,
        *,
        deterministic: bool = True,
        last_only: bool = False,
    ) -> TSSROutputs:
        """Runs a history through the streams, up to the state that the head reads.

        Args:
          item_sequence: int [batch, length], left padded with 0; length <= max_length.
          item_features: [shard_classes, feature_dim], or one such table for each modality (see
            `ItemFeatures` for others than tables); may be None without a content stream.
          packed: the same items in fewer rows, which are encoded instead; the states come back at
            the places of `item_sequence`, zeros on its padding.
          deterministic: whether dropout is off; if not, `apply` needs the rng "dropout".
          last_only: what is crossed and fused are the last position's states, [batch, 1, d_model];
            ranking needs no others, and this costs less than half. Not with `packed` or dropout.

        Raises:
          ValueError: if a content stream gets no features, or `last_only` meets packed windows.
        """
        if packed is not None:
            if last_only:
                raise ValueError("last_only is for ranking, which packs no windows")
            outputs = self._encode(
                packed["items"],
                packed_mask(packed["segments"]),
                self.position_embedding(packed["positions"]),
                item_features,
                deterministic=deterministic,
            )
            return jax.tree.map(lambda states: unpack(states, packed["places"]), outputs)
        # Left padding: the last position is the newest item, whatever the length.
        positions = self.position_embedding.embedding[-item_sequence.shape[1] :]
        mask = causal_padding_mask(item_sequence)
        return self._encode(
            item_sequence,
            mask,
            positions,
            item_features,
            deterministic=deterministic,
            last_only=last_only,
        )

    def _encode(
        self,
        item_sequence: jax.Array,
        mask: jax.Array,
        positions: jax.Array,
        item_features: ContentFeatures | None,
        *,
        deterministic: bool,
        last_only: bool = False,
    ) -> TSSROutputs:
        embeddings = self._embeddings(item_sequence, item_features)
        dropout = not deterministic and self.dropout_rate > 0
        encoded = self.blocks(
            self._inputs(embeddings, positions),
            mask,
            self.make_rng("dropout") if dropout else None,
            last_only=last_only,
        )
        states = {
            stream: StreamStates(embedding, encoded.unimodal[i], encoded.crossed[i])
            for i, (stream, embedding) in enumerate(embeddings.items())
        }
        gate, fused = self._mix([own.crossed for own in states.values()])
        by: dict[str, jax.Array] = {}
        if self.predicts_by_experts:
            newest = slice(-1, None) if last_only else slice(None)
            by = {name: own.encoded[:, newest] for name, own in states.items()} | {"joint": fused}
            fused = experts.pool(by, id_reads_content=self.id_reads_content)
        return TSSROutputs(states.get("id"), states.get("content"), gate, fused, by)

    def attention(
        self, item_sequence: jax.Array, item_features: ContentFeatures | None
    ) -> jax.Array:
        """How much each position of a history attends to each; see `StreamEncoders.attention`.

        Raises:
          ValueError: if the encoder is recurrent.
        """
        if self.encoder != "attention":
            raise ValueError(f"a {self.encoder} has no attention")
        positions = self.position_embedding.embedding[-item_sequence.shape[1] :]
        embeddings = self._embeddings(item_sequence, item_features)
        inputs = self._inputs(embeddings, positions)
        weights = self.blocks.attention(inputs, causal_padding_mask(item_sequence))
        return cast(jax.Array, weights)

    def _embeddings(
        self, item_sequence: jax.Array, item_features: ContentFeatures | None
    ) -> dict[str, jax.Array]:
        streams = [stream for stream in STREAMS if stream in self.streams]
        return {name: self.embed(name, item_sequence, item_features) for name in streams}

    def _inputs(self, embeddings: Mapping[str, jax.Array], positions: jax.Array) -> jax.Array:
        """What the first block reads, [streams, batch, length, d_model]."""
        inputs = dict(embeddings)
        if self.id_reads_content and len(self.streams) == 2:
            inputs["id"] = embeddings["id"] + embeddings["content"]
        return jnp.stack([x + positions for x in inputs.values()])

    def _mix(self, states: list[jax.Array]) -> tuple[jax.Array | None, jax.Array]:
        """The gate, where there is one, and the state that the head reads."""
        if len(states) == 1:
            return None, states[0]
        if self.mixing in {"gate", "experts"}:
            return self.gate(*states)
        if self.mixing == "sum":
            return None, states[0] + states[1]
        return None, self.concatenation(*states)

    def embed(
        self, stream: str, item_sequence: jax.Array, item_features: ContentFeatures | None
    ) -> jax.Array:
        """Item embeddings of a stream without positions, [batch, length, d_model]."""
        if stream == "sum":
            parts = (self.embed(one, item_sequence, item_features) for one in ("id", "content"))
            return next(parts) + next(parts)
        if stream == "id":
            return self.catalogue.lookup(self._own_vectors(item_features), item_sequence)
        if item_features is None:
            raise ValueError("the content stream needs item_features")
        return self.content_projection(item_sequence, self._content(item_features))

    def head_weights(self, item_features: ContentFeatures | None) -> HeadWeights:
        """What scores this device's classes; class 0 is padding."""
        weights = self.output()
        known = _known(item_features)
        if known is not None:
            weights = HeadWeights(weights.kernel * known, weights.bias * known)
        if self.head == "classes":
            return weights
        if self.head == "tied":
            vectors = self._vectors_of_classes(item_features)
            if self.predicts_by_experts:
                return weights._replace(kernel=jnp.concatenate(vectors, axis=0))
            return weights._replace(kernel=sum(vectors[1:], vectors[0]))
        if item_features is None:
            raise ValueError("a head that reads content needs item_features")
        content = self.output_content(None, self._content(item_features))
        return weights._replace(kernel=weights.kernel + content.T)

    def _vectors_of_classes(self, item_features: ContentFeatures | None) -> list[jax.Array]:
        """By what the streams read this device's classes, each [d_model, shard_classes]."""
        vectors = []
        if self.streams != ("content",):
            vectors.append(ids_as_read(self.token_embedding.embedding, _known(item_features)))
        if reads_content(self.streams):
            if item_features is None:
                raise ValueError("a head that reads content needs item_features")
            vectors.append(self.content_projection(None, self._content(item_features)))
        return [own.T for own in vectors]

    def _own_vectors(self, item_features: ContentFeatures | None) -> Callable[..., jax.Array]:
        """The id's row of each class on this device; zeros for items that were never trained."""
        known = _known(item_features)
        if known is None:
            return self.token_embedding
        return lambda place: self.token_embedding(place) * known[place][..., None]

    def _content(self, item_features: ContentFeatures) -> ContentFeatures:
        if len(self.modalities) == 1 and isinstance(item_features, Mapping):
            return item_features[self.modalities[0]]
        return item_features

    def __call__(
        self,
        item_sequence: jax.Array,
        item_features: ContentFeatures | None,
        *,
        deterministic: bool = True,
    ) -> tuple[TSSROutputs, jax.Array]:
        """`encode`, then `score` at every position: logits [batch, length, shard_classes]."""
        outputs = self.encode(item_sequence, item_features, deterministic=deterministic)
        return outputs, self.head_weights(item_features).score(outputs.fused, self.compute_dtype)


def ids_as_read(table: Any, known: Any) -> Any:
    """An id table [classes, d_model] as streams read it: zeros for what is not `known`."""
    return table if known is None else table * known[:, None]


def _known(item_features: ContentFeatures | None) -> jax.Array | None:
    """1 for the classes whose own vectors count, 0 for others; None where all do."""
    known = item_features.get(KNOWN) if isinstance(item_features, Mapping) else None
    return None if known is None else jnp.asarray(known, jnp.float32)
