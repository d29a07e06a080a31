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
from tssr_jax.content.text_encoder import TextInputs, TrainedText
from tssr_jax.content.text_features import TextEncoder, features_key, text_model_folder
from tssr_jax.content.trained import NO_ITEM
from tssr_jax.data_pipeline import cache
from tssr_jax.data_pipeline.tensorflow_cpu import tf
from tssr_jax.errors import UserError
from tssr_jax.parallel.devices import exactly

# A row is as long as the longest text, and at least as long as this many texts of mean length: in
# shorter rows more places would stay empty.
_TEXTS_PER_ROW = 4
_LENGTH_UNIT = 4
_TEXTS_PER_BATCH = 64


class PreparedText(NamedTuple):
    """A text encoder with the texts of a catalogue.

    Attributes:
      key: identifies texts, encoder and settings.
      encoder: the trained part.
      params: its pretrained parameters.
      inputs: the encoder's inputs, as host arrays.
    """

    key: str
    encoder: TrainedText
    params: dict[str, Any]
    inputs: TextInputs

    def part(self, items: tf.Tensor, num_devices: int, mine: slice) -> Any:
        """See `PreparedEncoder`: the items of each row, int32 [rows, texts], see `TrainedText`.

        There are as many rows as any batch of this size needs, so that shapes are constant.
        """
        texts = texts_of_a_row(self.inputs.lengths, self.encoder.row_length)
        most = min(int(np.count_nonzero(self.inputs.lengths)), int(np.prod(items.shape)))
        total = int(np.sort(self.inputs.lengths)[-most:].sum())
        # All rows but one are half full, or have all the texts that a row may have.
        bound = min(most, 2 * total // self.encoder.row_length + most // texts + 2)
        share = self.encoder.number_of_rows(-(-bound // num_devices))

        def read(items: np.ndarray) -> np.ndarray:
            return self._dealt(np.unique(items), share, num_devices, mine)

        return tf.ensure_shape(tf.numpy_function(read, [items], tf.int32), [None, texts])

    def catalogue_parts(self, num_devices: int, mine: slice) -> Iterator[Any]:
        """See `PreparedEncoder`; all texts at once, since they lie on the devices."""
        yield self._dealt(np.arange(len(self.inputs.lengths)), None, num_devices, mine)

    def _dealt(
        self, items: np.ndarray, share: int | None, num_devices: int, mine: slice
    ) -> np.ndarray:
        """Rows of these items for the devices `mine`; `share` for each, None: as many as needed."""
        lengths = np.asarray(self.inputs.lengths)
        own = items[lengths[items] > 0]
        texts = texts_of_a_row(lengths, self.encoder.row_length)
        rows = packed_texts(own, lengths[own], self.encoder.row_length, texts)
        if share is None:
            share = self.encoder.number_of_rows(-(-len(rows) // num_devices))
        dealt = np.full((share * num_devices, texts), NO_ITEM, np.int32)
        dealt[: len(rows)] = rows
        # Round robin, so that every device gets an equal share.
        dealt = dealt.reshape(share, num_devices, texts).swapaxes(0, 1)[mine]
        return np.ascontiguousarray(dealt).reshape(-1, texts)


def texts_of_a_row(lengths: np.ndarray | jax.Array, row_length: int) -> int:
    """How many texts share a row at most: twice as many as those of mean length would be."""
    lengths = np.asarray(lengths)
    return max(1, int(2 * row_length / lengths[lengths > 0].mean()))


def packed_texts(items: np.ndarray, lengths: np.ndarray, row_length: int, texts: int) -> np.ndarray:
    """Lays texts side by side in rows: the longest that is left, then the shortest that fit.

    Args:
      items: int [number].
      lengths: int [number], tokens of each item's text, from 1 to `row_length`.
      row_length: tokens of a row.
      texts: how many texts a row has at most.

    Returns:
      int32 [rows, texts], the items of each row, then `NO_ITEM`. All rows but the last are more
      than half full, or have `texts` items.
    """
    order = np.argsort(lengths, kind="stable")
    items, ends = items[order], np.cumsum(lengths[order])
    shortest, longest, rows = 0, len(items) - 1, []
    while shortest <= longest:
        before = ends[shortest - 1] if shortest else 0
        room = row_length - (ends[longest] - (ends[longest - 1] if longest else 0))
        fit = int(np.searchsorted(ends[shortest:longest], before + room, "right"))
        fit = min(fit, texts - 1)
        row = np.full(texts, NO_ITEM, np.int32)
        row[0] = items[longest]
        row[1 : fit + 1] = items[shortest : shortest + fit]
        rows.append(row)
        shortest, longest = shortest + fit, longest - 1
    return np.stack(rows) if rows else np.empty((0, texts), np.int32)


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
    folder = text_model_folder(settings.model_dir, cache_dir)
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
    tokens = np.zeros((len(lengths), lengths.max()), np.int32)
    for row, ids in zip(rows, token_ids, strict=True):
        tokens[row + 1, : len(ids)] = ids
    first_layer = -1 if settings.trained_layers < 0 else layers - settings.trained_layers
    encoder = TrainedText(
        whole.bert,
        first_layer,
        settings.pooling,
        _row_length(lengths[lengths > 0]),
        settings.micro_batch,
        settings.lora_rank,
    )
    key = features_key(texts, folder, settings)
    params, base = encoder.split(jax.tree.map(np.asarray, whole.params), jax.random.key(seed))
    inputs = TextInputs(tokens, lengths, base)
    if first_layer >= 0:
        inputs = _frozen_states(inputs, whole, first_layer, f"{key}-{first_layer}", cache_dir)
    return PreparedText(
        f"{key}-{settings.trained_layers}-{settings.lora_rank}",
        encoder,
        jax.tree.map(np.asarray, params),
        inputs,
    )


def _row_length(lengths: np.ndarray) -> int:
    longest = max(lengths.max(), _TEXTS_PER_ROW * lengths.mean())
    return int(-(-longest // _LENGTH_UNIT) * _LENGTH_UNIT)


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
        mask = (np.arange(tokens.shape[1]) < lengths[:, None])[:, None]
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
