"""BERT-family text encoder (arXiv 1810.04805) and its weights from model.safetensors."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util
from safetensors import SafetensorError
from safetensors.numpy import load_file

from tssr_jax.errors import UserError, shown


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """The fields of a BERT config.json that the encoder needs."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float

    @classmethod
    def from_folder(cls, folder: Path) -> "BertConfig":
        """Reads config.json; raises UserError if it describes something else than a BERT."""
        path = folder / "config.json"
        try:
            fields = json.loads(path.read_text())
        except (OSError, json.JSONDecodeError) as error:
            raise UserError(f"{path} can't be read ({shown(error)}).") from error
        kind = (fields.get("model_type"), fields.get("hidden_act"))
        positions = fields.get("position_embedding_type", "absolute")
        if kind != ("bert", "gelu") or positions != "absolute":
            raise UserError(
                f"{path} describes model_type, hidden_act {kind} with {positions} positions; only "
                "'bert' with 'gelu' and absolute positions is implemented."
            )
        missing = [f.name for f in dataclasses.fields(cls) if f.name not in fields]
        if missing:
            raise UserError(f"{path} lacks {', '.join(missing)}.")
        return cls(**{f.name: fields[f.name] for f in dataclasses.fields(cls)})


class BertLayer(nn.Module):
    """Self-attention and feed-forward, post-norm."""

    config: BertConfig

    @nn.compact
    def __call__(self, x: jax.Array, attention_mask: jax.Array) -> jax.Array:
        """Maps [batch, tokens, hidden] to the same shape; see `Bert.run` for the mask."""
        c = self.config
        batch, tokens, _ = x.shape
        d_head = c.hidden_size // c.num_attention_heads
        q, k, v = (
            nn.Dense(c.hidden_size, name=name)(x)
            .reshape(batch, tokens, c.num_attention_heads, d_head)
            .transpose(0, 2, 1, 3)
            for name in ("query", "key", "value")
        )
        attended = _attention(q * d_head**-0.5, k, v, attention_mask[:, None])
        attended = attended.transpose(0, 2, 1, 3).reshape(x.shape)
        x = x + nn.Dense(c.hidden_size, name="attention_output")(attended)
        x = nn.LayerNorm(c.layer_norm_eps, name="attention_norm", use_fast_variance=False)(x)
        hidden = _gelu(nn.Dense(c.intermediate_size, name="intermediate")(x))
        x = x + nn.Dense(c.hidden_size, name="output")(hidden)
        return nn.LayerNorm(c.layer_norm_eps, name="output_norm", use_fast_variance=False)(x)


# The backward pass computes the insides of attention and of GELU again: kept, they would take half
# as much memory again, and a step more time (docs/internals/performance.md).
@functools.partial(jax.checkpoint, prevent_cse=False)
def _attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """Attention of heads [batch, heads, tokens, d_head]; `mask` is broadcast over heads."""
    scores = jnp.where(mask, jnp.einsum("bhqd,bhkd->bhqk", q, k), -1e9)
    return jnp.einsum("bhqk,bhkd->bhqd", jax.nn.softmax(scores, axis=-1), v)


@functools.partial(jax.checkpoint, prevent_cse=False)
def _gelu(x: jax.Array) -> jax.Array:
    return nn.gelu(x, approximate=False)


class Bert(nn.Module):
    """The encoder, without dropout; layers can be run a few at a time.

    Attributes:
      config: of the checkpoint.
      pooler: whether it has the Dense layer that `pool("pooler")` needs.
    """

    config: BertConfig
    pooler: bool = False

    def setup(self) -> None:
        """Creates the layers; attribute names are parameter names."""
        c = self.config
        self.word_embedding = nn.Embed(c.vocab_size, c.hidden_size)
        self.position_embedding = nn.Embed(c.max_position_embeddings, c.hidden_size)
        self.token_type_embedding = nn.Embed(c.type_vocab_size, c.hidden_size)
        self.embedding_norm = nn.LayerNorm(c.layer_norm_eps, use_fast_variance=False)
        for i in range(c.num_hidden_layers):
            setattr(self, f"layer_{i}", BertLayer(c))
        if self.pooler:
            self.pooler_dense = nn.Dense(c.hidden_size)

    def embed(self, token_ids: jax.Array, positions: jax.Array | None = None) -> jax.Array:
        """Token, position and type embeddings.

        Args:
          token_ids: int [batch, tokens].
          positions: int [batch, tokens], the place of each token in its text; None if each row is
            one text.

        Returns:
          [batch, tokens, hidden].
        """
        if positions is None:
            positions = jnp.arange(token_ids.shape[1])
        x = self.word_embedding(token_ids) + self.position_embedding(positions)
        return self.embedding_norm(x + self.token_type_embedding(jnp.zeros((), jnp.int32)))

    def run(self, x: jax.Array, attention_mask: jax.Array, first: int, last: int) -> jax.Array:
        """Layers first..last - 1, compiled once for all of them.

        Args:
          x: states [batch, tokens, hidden].
          attention_mask: bool [batch, queries, tokens], which tokens a token attends to; one query
            stands for all.
          first: the first layer to run.
          last: the layer to stop before.
        """
        layers = [getattr(self, f"layer_{i}") for i in range(first, last)]
        if self.is_initializing() or not layers:
            for layer in layers:
                x = layer(x, attention_mask)
            return x
        weights = [layer.variables["params"] for layer in layers]

        def step(x: jax.Array, own: Any) -> tuple[jax.Array, None]:
            layer = BertLayer(self.config, parent=None)
            return cast(jax.Array, layer.apply({"params": own}, x, attention_mask)), None

        stacked = jax.tree.map(lambda *own: jnp.stack(own), *weights)
        return jax.lax.scan(step, x, stacked)[0]

    def pool(self, x: jax.Array, belongs: jax.Array, pooling: str) -> jax.Array:
        """One vector for each text: [batch, tokens, hidden] -> [batch, texts, hidden].

        Args:
          x: last hidden states.
          belongs: bool [batch, texts, tokens], the tokens of each text, which are adjacent.
          pooling: "mean" over the text's tokens, the state of its first token ("cls"), or the
            output of the pretrained "pooler" for it.
        """
        if pooling == "mean":
            total = jnp.einsum("bst,btd->bsd", belongs.astype(x.dtype), x)
            return total / jnp.maximum(belongs.sum(axis=2, keepdims=True), 1)
        first = jnp.take_along_axis(x, jnp.argmax(belongs, axis=2)[:, :, None], axis=1)
        return nn.tanh(self.pooler_dense(first)) if pooling == "pooler" else first

    def __call__(self, token_ids: jax.Array, attention_mask: jax.Array) -> jax.Array:
        """Encodes texts.

        Args:
          token_ids: int [batch, tokens].
          attention_mask: bool [batch, tokens], False on padding.

        Returns:
          [batch, tokens, hidden_size].
        """
        mask = attention_mask[:, None]
        x = self.run(self.embed(token_ids), mask, 0, self.config.num_hidden_layers)
        if self.pooler and self.is_initializing():
            self.pooler_dense(x[:, 0])
        return x


def unit_length(vectors: jax.Array) -> jax.Array:
    """Vectors [..., d] of L2 norm 1, as sentence encoders prescribe; zeros stay zeros."""
    squares = jnp.sum(jnp.square(vectors), axis=-1, keepdims=True)
    # Not the norm itself: its gradient at zero is NaN.
    return vectors * jax.lax.rsqrt(jnp.maximum(squares, 1e-24))


# Our parameter names -> those of the original checkpoints, by module.
_EMBEDDINGS = {
    "word_embedding": "embeddings.word_embeddings",
    "position_embedding": "embeddings.position_embeddings",
    "token_type_embedding": "embeddings.token_type_embeddings",
    "embedding_norm": "embeddings.LayerNorm",
    "pooler_dense": "pooler.dense",
}
_LAYER = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention_output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "intermediate": "intermediate.dense",
    "output": "output.dense",
    "output_norm": "output.LayerNorm",
}
_LEAF = {"embedding": "weight", "kernel": "weight", "scale": "weight", "bias": "bias"}


def load_params(folder: Path, bert: Bert) -> dict[str, Any]:
    """Parameters of `bert` from the folder's model.safetensors.

    Raises:
      UserError: if the file is unreadable, or a tensor is missing or has another shape.
    """
    path = folder / "model.safetensors"
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} can't be read as safetensors ({shown(error)}).") from error
    tensors = {name.removeprefix("bert."): tensor for name, tensor in tensors.items()}
    token = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    shapes = jax.eval_shape(bert.init, jax.random.key(0), token, token)["params"]
    params = {
        names: _tensor(tensors, _original_name(names), names[-1], struct.shape, path)
        for names, struct in traverse_util.flatten_dict(shapes).items()
    }
    return traverse_util.unflatten_dict(params)


def _original_name(names: tuple[str, ...]) -> str:
    *modules, leaf = names
    if len(modules) == 1:
        return f"{_EMBEDDINGS[modules[0]]}.{_LEAF[leaf]}"
    layer = modules[0].removeprefix("layer_")
    return f"encoder.layer.{layer}.{_LAYER[modules[1]]}.{_LEAF[leaf]}"


def _tensor(
    tensors: dict[str, np.ndarray], name: str, leaf: str, shape: tuple[int, ...], path: Path
) -> np.ndarray:
    if name not in tensors:
        raise UserError(
            f"{path} has no tensor {name!r}; is it the BERT that config.json describes?"
        )
    tensor = tensors[name].T if leaf == "kernel" else tensors[name]
    if tensor.shape != shape:
        raise UserError(f"{path}: {name!r} has shape {tensor.shape}, config.json wants {shape}.")
    return tensor.astype(np.float32)
