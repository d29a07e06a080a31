"""The two-stream sequential recommender (arXiv 2403.07623, section 3; docs/reference/method.md)."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import linen as nn

from tssr_jax.config.choices import STREAMS, reads_content
from tssr_jax.models import initializers, mixing
from tssr_jax.models.attention import causal_padding_mask, packed_mask
from tssr_jax.models.blocks import EncoderBlock
from tssr_jax.models.content import Content, Features, FusedContent, ProjectedContent, as_content
from tssr_jax.models.encoder import StreamEncoders
from tssr_jax.models.head import Head, HeadWeights
from tssr_jax.models.layers import Dropout
from tssr_jax.models.mixing import Concatenation, Gate
from tssr_jax.models.packing import Packed, packed_values, unpack
from tssr_jax.models.recall import ByFrequency, MemoryGate, Trust
from tssr_jax.models.recurrent import RecurrentEncoder
from tssr_jax.models.shared_ids import ids_as_read, shared_vectors
from tssr_jax.models.side import NAMES, NO_SIDE, Side, with_side
from tssr_jax.parallel.catalogue import Catalogue
from tssr_jax.parallel.collectives import Axis


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
      gate: weight of the id stream in the gate's mixture, [batch, length, d_model].
      fused: what the prediction head reads, [batch, length, d_model]; [batch, length, 2 * d_model]
        with experts.
      experts: each expert's state, [batch, length, d_model]; {} without experts.
    """

    id: StreamStates | None
    content: StreamStates | None
    gate: jax.Array | None
    fused: jax.Array
    experts: Mapping[str, jax.Array]


class TSSR(nn.Module):
    """Embeddings, unimodal encoders, multimodal encoders, gate and prediction head.

        model = TSSR(1_000, d_model=64)
        params = init_params(model, {"text": 384}, seed=0)
        encode(model, params, item_sequence, features).fused  # [batch, length, 64]

    With one stream there is nothing to cross or to gate: the unimodal encoder feeds the head.
    `streams=("id",)` is SASRec (arXiv 1808.09781) trained with cross entropy over the catalogue;
    `("sum",)` adds an item's content to its id's vector. Defaults are those of section `model` of
    the configuration, where each field has a comment.

    Attributes:
      catalogue: the number of items, or a `Catalogue` that says how its classes are cut over
        devices; ids are 1..num_items, 0 is padding.
      streams: one of `config.choices.STREAM_SETS`.
      d_model: width of every state.
      num_heads: attention heads; divides d_model.
      d_ffn: width of the feed-forward layers.
      num_unimodal_layers: self-attention blocks of each stream, or layers of a recurrent one.
      num_cross_layers: cross-attention blocks of each stream.
      max_length: number of positions.
      dropout_rate: see `EncoderBlock`.
      encoder: "attention", or "gru" for a single stream.
      no_content_vector: see `ProjectedContent`.
      content_hidden: see `ProjectedContent`.
      compute_dtype: "float32" or "bfloat16", see `models.layers`.
      keep_products: see `StreamEncoders`.
      modalities: modalities of the content stream, e.g. ("text",) or ("text", "image").
      fusion: how modalities are combined, see `FusedContent`.
      mixing: how two streams are combined: "gate", "experts", "sum" or "concatenation".
      head: "classes", learnt weights of each class; "content", these plus a projection of the
        class's content, so that items that were never trained are ranked by content alone; "tied",
        the sum of the class's input vectors in the streams.
      id_reads_content: with two streams, the id stream encodes the sum of an item's id vector and
        content vector; `models.mixing` has its expert's scores. The item-grained loss uses the id
        vector alone.
      id_neighbours: items with like texts share their id vectors, see `models.shared_ids`; 0 is
        none.
      tie_orders: orders of items of one time that ranking averages over, see `models.tie_orders`.
      memory: names of the memories that a gate adds to the scores, see `models.recall`.
      num_events: kinds of events that interactions have, e.g. views and purchases; their learnt
        vectors are added to what the first blocks read. 0 reads none.
      profile_sizes: sizes of the users' fields (`data_pipeline.profiles`), read alike; () is none.
      rows_axis: the device axis that batches are cut along; None on one device.

    Raises:
      ValueError: if the heads don't divide d_model.
    """

    catalogue: Catalogue | int
    streams: tuple[str, ...] = ("id", "content")
    d_model: int = 128
    num_heads: int = 4
    d_ffn: int = 256
    num_unimodal_layers: int = 1
    num_cross_layers: int = 4
    max_length: int = 50
    dropout_rate: float = 0.1
    encoder: str = "attention"
    no_content_vector: bool = True
    content_hidden: int = 0
    compute_dtype: str = "float32"
    keep_products: bool = True
    modalities: tuple[str, ...] = ("text",)
    fusion: str = "sum"
    mixing: str = "gate"
    head: str = "classes"
    id_reads_content: bool = False
    id_neighbours: int = 0
    tie_orders: int = 1
    memory: tuple[str, ...] = ()
    num_events: int = 0
    profile_sizes: tuple[int, ...] = ()
    rows_axis: Axis = None

    def __post_init__(self) -> None:
        """Completes a catalogue that is given by its size."""
        if not isinstance(self.catalogue, Catalogue):
            object.__setattr__(self, "catalogue", Catalogue(self.catalogue))
        if self.d_model % self.num_heads:
            raise ValueError(f"{self.num_heads} heads do not divide d_model={self.d_model}")
        super().__post_init__()

    @property
    def classes(self) -> Catalogue:
        """How the classes lie on the devices."""
        return cast(Catalogue, self.catalogue)

    @property
    def predicts_by_experts(self) -> bool:
        """Whether each of the id stream, the content stream and the gate predicts by itself."""
        return self.mixing == "experts" and len(self.streams) == 2

    def setup(self) -> None:
        """Creates the layers that the streams need; attribute names are parameter names."""
        classes, init = self.classes.shard_classes, initializers.table(self.classes.num_items)
        table = functools.partial(nn.Embed, features=self.d_model, embedding_init=init)
        self.position_embedding = table(self.max_length)
        if self.streams != ("content",):
            self.token_embedding = table(classes)
        if reads_content(self.streams):
            self.content_projection = self._make_content_projection()
        if self.num_events:
            self.event_embedding = table(self.num_events + 1)
        if self.profile_sizes:
            self.profile_embedding = table(sum(self.profile_sizes))
        dropout = Dropout(self.dropout_rate, self.rows_axis, parent=None)
        both = len(self.streams) == 2
        self.blocks = self._make_encoder(dropout, self.num_cross_layers if both else 0)
        if both and self.mixing in {"gate", "experts"}:
            self.gate = Gate(self.compute_dtype)
        elif both and self.mixing == "concatenation":
            self.concatenation = Concatenation(self.compute_dtype)
        if self.memory:
            parts = 2 if self.predicts_by_experts else 1
            self.memory_gate = MemoryGate(parts, len(self.memory))
        self.output = Head(classes, self.d_model, bias_only=self.head == "tied")
        if self.head == "content":
            self.output_content = self._make_content_projection()

    def _make_encoder(self, dropout: Dropout, num_cross: int) -> nn.Module:
        if self.encoder == "gru":
            return RecurrentEncoder(self.num_unimodal_layers, dropout)
        block = EncoderBlock(self.num_heads, self.d_ffn, dropout, self.compute_dtype, parent=None)
        return StreamEncoders(block, self.num_unimodal_layers, num_cross, self.keep_products)

    def _make_content_projection(self) -> nn.Module:
        settings = (
            *(self.d_model, self.classes, self.no_content_vector),
            *(self.compute_dtype, self.content_hidden),
        )
        if len(self.modalities) == 1:
            return ProjectedContent(*settings)
        return FusedContent(self.modalities, self.fusion, *settings)

    def encode(
        self,
        item_sequence: jax.Array,
        features: Features,
        packed: Packed | None = None,
        *,
        side: Side = NO_SIDE,
        deterministic: bool = True,
        last_only: bool = False,
    ) -> TSSROutputs:
        """Runs a history through the streams, up to the state that the head reads.

        Args:
          item_sequence: int [batch, length], left padded with 0; length <= max_length.
          features: of the items, see `as_content`; None without a content stream.
          packed: the items in fewer rows, which are encoded instead; the states are moved back to
            the positions of `item_sequence`, zeros on its padding.
          side: see `models.side`; read with `num_events` and `profile_sizes`.
          deterministic: whether dropout is off; if not, `apply` needs the rng "dropout".
          last_only: cross-attention and the gate run on the last position only, and give
            [batch, 1, d_model]; ranking needs no more, and this costs less than half. Not with
            `packed` or dropout.

        Raises:
          ValueError: if a content stream gets no features, or `last_only` meets packed windows.
        """
        content = as_content(features, self.modalities)
        if packed is not None:
            if last_only:
                raise ValueError("last_only is for ranking, which packs no windows")
            outputs = self._encode(
                packed["items"],
                packed_mask(packed["segments"]),
                self._with_side(
                    self.position_embedding(packed["positions"]),
                    {name: packed_values(values, packed) for name, values in side.items()},
                ),
                content,
                deterministic=deterministic,
            )
            return jax.tree.map(lambda states: unpack(states, packed["places"]), outputs)
        # Left padding: the last position is the newest item, whatever the length.
        positions = self.position_embedding.embedding[-item_sequence.shape[1] :]
        mask = causal_padding_mask(item_sequence)
        return self._encode(
            item_sequence,
            mask,
            self._with_side(positions, side),
            content,
            deterministic=deterministic,
            last_only=last_only,
        )

    def _with_side(self, positions: jax.Array, side: Side) -> jax.Array:
        events = self.event_embedding if self.num_events else None
        profiles = self.profile_embedding if self.profile_sizes else None
        return with_side(positions, side, events, profiles, self.profile_sizes)

    def _encode(
        self,
        item_sequence: jax.Array,
        mask: jax.Array,
        positions: jax.Array,
        content: Content,
        *,
        deterministic: bool,
        last_only: bool = False,
    ) -> TSSROutputs:
        embeddings = self._embeddings(item_sequence, content)
        dropout = not deterministic and self.dropout_rate > 0
        key = self.make_rng("dropout") if dropout else None
        inputs = self._inputs(embeddings, positions)
        encoded = self.blocks(inputs, mask, key, last_only=last_only)
        states = {
            stream: StreamStates(embedding, encoded.unimodal[i], encoded.crossed[i])
            for i, (stream, embedding) in enumerate(embeddings.items())
        }
        gate, fused = self._mix([own.crossed for own in states.values()])
        by: dict[str, jax.Array] = {}
        if self.predicts_by_experts:
            newest = slice(-1, None) if last_only else slice(None)
            by = {name: own.encoded[:, newest] for name, own in states.items()} | {"joint": fused}
            fused = mixing.pool(by, id_reads_content=self.id_reads_content)
        return TSSROutputs(states.get("id"), states.get("content"), gate, fused, by)

    def attention(
        self, item_sequence: jax.Array, features: Features, side: Side = NO_SIDE
    ) -> jax.Array:
        """How much each position of a history attends to each; see `StreamEncoders.attention`.

        Raises:
          ValueError: if the encoder is recurrent.
        """
        if self.encoder != "attention":
            raise ValueError(f"a {self.encoder} has no attention")
        positions = self.position_embedding.embedding[-item_sequence.shape[1] :]
        embeddings = self._embeddings(item_sequence, as_content(features, self.modalities))
        inputs = self._inputs(embeddings, self._with_side(positions, side))
        return cast(jax.Array, self.blocks.attention(inputs, causal_padding_mask(item_sequence)))

    def _embeddings(self, item_sequence: jax.Array, content: Content) -> dict[str, jax.Array]:
        streams = [stream for stream in STREAMS if stream in self.streams]
        return {name: self._embed(name, item_sequence, content) for name in streams}

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

    def embed(self, stream: str, item_sequence: jax.Array, features: Features) -> jax.Array:
        """Item embeddings of a stream without positions, [batch, length, d_model]."""
        return self._embed(stream, item_sequence, as_content(features, self.modalities))

    def _embed(self, stream: str, item_sequence: jax.Array, content: Content) -> jax.Array:
        if stream == "sum":
            parts = (self._embed(one, item_sequence, content) for one in ("id", "content"))
            return next(parts) + next(parts)
        if stream == "id":
            return self.classes.lookup(self._id_vectors(content), item_sequence)
        return self.content_projection(item_sequence, self._features(content))

    def head_weights(self, features: Features) -> HeadWeights:
        """Head weights of this device's classes; class 0 is padding."""
        content = as_content(features, self.modalities)
        weights = self.output()
        if content.known is not None:
            known = jnp.asarray(content.known, jnp.float32)
            weights = HeadWeights(weights.kernel * known, weights.bias * known)
        if self.head == "classes":
            return weights
        if self.head == "tied":
            vectors = self._vectors_of_classes(content)
            if self.predicts_by_experts:
                return weights._replace(kernel=jnp.concatenate(vectors, axis=0))
            return weights._replace(kernel=sum(vectors[1:], vectors[0]))
        own = self.output_content(None, self._features(content))
        return weights._replace(kernel=weights.kernel + own.T)

    def _vectors_of_classes(self, content: Content) -> list[jax.Array]:
        """Input vectors of this device's classes in each stream, each [d_model, shard_classes]."""
        vectors = []
        if self.streams != ("content",):
            own = self._id_vectors(content)
            vectors.append(own(jnp.arange(self.classes.shard_classes)))
        if reads_content(self.streams):
            vectors.append(self.content_projection(None, self._features(content)))
        return [own.T for own in vectors]

    def _id_vectors(self, content: Content) -> Callable[[jax.Array], jax.Array]:
        """A lookup of id vectors by place on this device; zeros for items never trained."""
        table = ids_as_read(self.token_embedding.embedding, content.known)
        if not self.id_neighbours or self.is_initializing():
            return lambda place: table[place]
        if content.neighbours is None:
            raise ValueError("a model with id_neighbours needs Content(neighbours=...)")
        return shared_vectors(table, content.neighbours, self.classes)

    def _features(self, content: Content) -> Any:
        """Inputs of the projection: one modality's features, or several modalities' by name."""
        missing = [name for name in self.modalities if name not in content.features]
        if missing:
            raise ValueError(f"the content stream needs features of {missing[0]!r}")
        if len(self.modalities) == 1:
            return content.features[self.modalities[0]]
        return content.features

    def trust(self, items: jax.Array, times: jax.Array, least_length: jax.Array | int = 1) -> Trust:
        """How much the network and each memory count for a history, see `MemoryGate`."""
        return cast(Trust, self.memory_gate(items, times, least_length))

    def by_frequency(self, frequency: jax.Array) -> ByFrequency:
        """What memories add depends on how often training saw a class, see `MemoryGate`."""
        return cast(ByFrequency, self.memory_gate.by_frequency(frequency))

    def __call__(
        self, item_sequence: jax.Array, features: Features, *, deterministic: bool = True
    ) -> tuple[TSSROutputs, jax.Array]:
        """`encode`, then `score` at every position: logits [batch, length, shard_classes]."""
        side = dict.fromkeys(NAMES, jnp.zeros_like(item_sequence))
        outputs = self.encode(item_sequence, features, side=side, deterministic=deterministic)
        if self.memory and self.is_initializing():
            self.trust(item_sequence, item_sequence)
        return outputs, self.head_weights(features).score(outputs.fused, self.compute_dtype)
