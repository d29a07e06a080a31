"""Inputs of a trainable text encoder: tokens of all items, or states of its frozen layers.

Frozen layers run once: their states are cached on disk like features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from rich.progress import track

from tssr_jax.content.bert import Bert
from tssr_jax.content.distinct import DistinctItems
from tssr_jax.content.text_encoder import TextInputs, TrainedText
from tssr_jax.content.text_features import TextEncoder, features_key, text_model_folder
from tssr_jax.data_pipeline import cache
from tssr_jax.data_pipeline.tensorflow_cpu import tf
from tssr_jax.errors import UserError
from tssr_jax.parallel.devices import exactly

# Quantiles of the texts' lengths that bound the buckets. (With one bucket, all texts would be
# padded to the length of the few longest ones.)
_QUANTILES = (0.6, 0.96, 1.0)
_LENGTH_UNIT = 4
_TEXTS_PER_BATCH = 64


class PreparedText(NamedTuple):
    """A text encoder with the texts of a catalogue.

    Attributes:
      key: identifies texts, encoder and settings.
      encoder: the trained part.
      params: its pretrained parameters.
      inputs: the encoder's inputs, as host arrays.
      bucket_of_item: int [num_classes], index of the encoder's bucket; -1 without text.
    """

    key: str
    encoder: TrainedText
    params: dict[str, Any]
    inputs: TextInputs
    bucket_of_item: np.ndarray

    def part(self, items: tf.Tensor, num_devices: int, mine: slice) -> Any:
        """See `PreparedEncoder`: the ids of each bucket, int32 [number]."""
        units = tuple(map(self.encoder.texts_at_a_time, self.encoder.buckets))
        found = DistinctItems(self.bucket_of_item, units)(items, num_devices)
        return tuple(tf.reshape(ids[mine], [-1]) for ids in found)

    def catalogue_parts(self, num_devices: int, mine: slice) -> Iterator[Any]:
        """See `PreparedEncoder`; all texts at once, since they lie on the devices."""
        items = tf.range(len(self.bucket_of_item), dtype=tf.int32)[None]
        part = self.part(items, num_devices, mine)
        yield tuple(ids.numpy() for ids in part)


def prepare_text(
    texts: Sequence[str], settings: ml_collections.ConfigDict, cache_dir: str, seed: int = 0
) -> PreparedText:
    """Tokenizes the texts and loads the encoder.

    Args:
      texts: text of item i + 1 at index i, "" without one.
      settings: section `content.text` of the config.
      cache_dir: where states and downloads are kept.
      seed: of the initial values of adapters.

    Raises:
      UserError: if the encoder has fewer layers than are to be trained, or there is no text.
    """
    folder = text_model_folder(settings, cache_dir)
    whole = TextEncoder(folder, settings.max_tokens, settings.pooling)
    layers = whole.bert.config.num_hidden_layers
    if settings.trained_layers > layers:
        raise UserError(
            f"--config.content.text.trained_layers is {settings.trained_layers}; the encoder in "
            f"{folder} has {layers} layers (-1 trains all of them and the embeddings)."
        )
    rows = [i for i, text in enumerate(texts) if text.strip()]
    if not rows:
        raise UserError("No item has a text, so that there is nothing to train an encoder on.")
    token_ids = whole.tokenize([texts[i] for i in rows])
    lengths = np.zeros(len(texts) + 1, np.int32)
    lengths[[i + 1 for i in rows]] = [len(ids) for ids in token_ids]
    buckets = _buckets(lengths[lengths > 0], settings.max_tokens)
    tokens = np.zeros((len(lengths), buckets[-1]), np.int32)
    for row, ids in zip(rows, token_ids, strict=True):
        tokens[row + 1, : len(ids)] = ids
    first_layer = -1 if settings.trained_layers < 0 else layers - settings.trained_layers
    encoder = TrainedText(
        whole.bert,
        first_layer,
        settings.pooling,
        buckets,
        settings.micro_batch,
        settings.lora_rank,
        settings.lora_alpha,
    )
    key = features_key(texts, folder, settings)
    params, base = encoder.split(jax.tree.map(np.asarray, whole.params), jax.random.key(seed))
    inputs = TextInputs(tokens, lengths, base)
    if first_layer >= 0:
        inputs = _frozen_states(inputs, whole, first_layer, f"{key}-{first_layer}", cache_dir)
    bucket_of_item = np.searchsorted(buckets, lengths)
    return PreparedText(
        f"{key}-{settings.trained_layers}-{settings.lora_rank}",
        encoder,
        jax.tree.map(np.asarray, params),
        inputs,
        np.where(lengths > 0, bucket_of_item, -1),
    )


def _buckets(lengths: np.ndarray, most: int) -> tuple[int, ...]:
    """Lengths that the texts are padded to: few, so that few programs are compiled."""
    ends = np.quantile(lengths, _QUANTILES, method="higher").astype(int)
    return tuple(sorted({min(most, -(-int(n) // _LENGTH_UNIT) * _LENGTH_UNIT) for n in ends}))


def _frozen_states(
    inputs: TextInputs, whole: TextEncoder, layers: int, key: str, cache_dir: str
) -> TextInputs:
    """States after the first `layers` layers, [classes, tokens, hidden], from the cache or new."""
    name = f"features/{key}-states.npy"
    known = cache.find_array(cache_dir, name)
    if known is not None:
        return inputs._replace(tokens=known)
    hidden = whole.bert.config.hidden_size
    states = np.zeros((*inputs.tokens.shape, hidden), np.float32)

    @jax.jit
    @exactly
    def run(params: Any, tokens: jax.Array, lengths: jax.Array) -> Any:
        mask = np.arange(tokens.shape[1]) < lengths[:, None]
        variables = {"params": params}
        x = whole.bert.apply(variables, tokens, method=Bert.embed)
        return whole.bert.apply(variables, x, mask, 0, layers, method=Bert.run)

    starts = range(0, len(states), _TEXTS_PER_BATCH)
    for start in track(starts, "Running frozen layers", disable=len(starts) < 4):
        some = slice(start, start + _TEXTS_PER_BATCH)
        fill = ((0, _TEXTS_PER_BATCH - len(states[some])), (0, 0))
        padded = np.pad(inputs.tokens[some], fill), np.pad(inputs.lengths[some], fill[0])
        states[some] = np.asarray(run(whole.params, *padded))[: len(states[some])]
    cache.save_array(cache_dir, name, states)
    return inputs._replace(tokens=states)
