"""BERT-family text encoder (arXiv 1810.04805) and its weights from model.safetensors."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util
from safetensors import SafetensorError
from safetensors.numpy import load_file

from tssr_jax.errors import UserError


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
            raise UserError(f"{path} can't be read ({error}).") from error
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
        """Maps [batch, tokens, hidden] to the same shape; mask bool [batch, tokens] of keys."""
        c = self.config
        batch, tokens, _ = x.shape
        d_head = c.hidden_size // c.num_attention_heads
        q, k, v = (
            nn.Dense(c.hidden_size, name=name)(x)
            .reshape(batch, tokens, c.num_attention_heads, d_head)
            .transpose(0, 2, 1, 3)
            for name in ("query", "key", "value")
        )
        scores = jnp.einsum("bhqd,bhkd->bhqk", q * d_head**-0.5, k)
        scores = jnp.where(attention_mask[:, None, None, :], scores, -1e9)
        attended = jnp.einsum("bhqk,bhkd->bhqd", jax.nn.softmax(scores, axis=-1), v)
        attended = attended.transpose(0, 2, 1, 3).reshape(x.shape)
        x = x + nn.Dense(c.hidden_size, name="attention_output")(attended)
        x = nn.LayerNorm(c.layer_norm_eps, name="attention_norm", use_fast_variance=False)(x)
        hidden = nn.gelu(nn.Dense(c.intermediate_size, name="intermediate")(x), approximate=False)
        x = x + nn.Dense(c.hidden_size, name="output")(hidden)
        return nn.LayerNorm(c.layer_norm_eps, name="output_norm", use_fast_variance=False)(x)


class Bert(nn.Module):
    """The encoder up to the last hidden states, without dropout."""

    config: BertConfig

    @nn.compact
    def __call__(self, token_ids: jax.Array, attention_mask: jax.Array) -> jax.Array:
        """Encodes texts.

        Args:
          token_ids: int [batch, tokens].
          attention_mask: bool [batch, tokens], False on padding.

        Returns:
          [batch, tokens, hidden_size].
        """
        c = self.config
        x = nn.Embed(c.vocab_size, c.hidden_size, name="word_embedding")(token_ids)
        positions = nn.Embed(c.max_position_embeddings, c.hidden_size, name="position_embedding")
        types = nn.Embed(c.type_vocab_size, c.hidden_size, name="token_type_embedding")
        x = x + positions(jnp.arange(token_ids.shape[1])) + types(jnp.zeros((), jnp.int32))
        x = nn.LayerNorm(c.layer_norm_eps, name="embedding_norm", use_fast_variance=False)(x)
        for i in range(c.num_hidden_layers):
            x = BertLayer(c, name=f"layer_{i}")(x, attention_mask)
        return x


def mean_pool(states: jax.Array, attention_mask: jax.Array) -> jax.Array:
    """Mean over the attended tokens, then L2 norm: [batch, tokens, d] -> [batch, d].

    As sentence-transformers/all-MiniLM-L6-v2 prescribes.
    """
    weights = attention_mask[:, :, None].astype(states.dtype)
    pooled = (states * weights).sum(axis=1) / jnp.maximum(weights.sum(axis=1), 1e-9)
    return pooled / jnp.maximum(jnp.linalg.norm(pooled, axis=-1, keepdims=True), 1e-12)


# Our parameter names -> those of the original checkpoints, by module.
_EMBEDDINGS = {
    "word_embedding": "embeddings.word_embeddings",
    "position_embedding": "embeddings.position_embeddings",
    "token_type_embedding": "embeddings.token_type_embeddings",
    "embedding_norm": "embeddings.LayerNorm",
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


def load_params(folder: Path, config: BertConfig) -> dict[str, Any]:
    """Parameters of `Bert` from the folder's model.safetensors.

    Raises:
      UserError: if the file is unreadable, or a tensor is missing or has another shape.
    """
    path = folder / "model.safetensors"
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} can't be read as safetensors ({error}).") from error
    tensors = {name.removeprefix("bert."): tensor for name, tensor in tensors.items()}
    token = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    shapes = jax.eval_shape(Bert(config).init, jax.random.key(0), token, token)["params"]
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
