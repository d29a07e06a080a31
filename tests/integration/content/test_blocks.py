"""A catalogue that is encoded in blocks, here and on Ray, has the same vectors to the bit."""

import numpy as np
import pytest

from tests.support.clusters import two_nodes
from tests.support.raw_data import WORDS, write_images, write_text_model
from tssr_jax.config import default
from tssr_jax.content import text_features as module
from tssr_jax.content.pictures import decoded_images
from tssr_jax.content.text_features import text_features
from tssr_jax.engine import open_engine
from tssr_jax.errors import UserError

TEXTS = [" ".join(WORDS[(i + j) % 10] for j in range(1 + i % 6)) for i in range(60)]
TEXTS[6] = ""


@pytest.fixture(name="settings")
def fixture_settings(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "TOKENS_PER_BATCH", 64)
    monkeypatch.setattr(module, "_BATCHES_OF_A_BLOCK", 2)
    settings = default.get_config().content.text
    settings.max_tokens = 8
    settings.model_dir = str(write_text_model(tmp_path / "model"))
    return settings


def test_finished_blocks_are_not_encoded_again(settings, tmp_path, monkeypatch):
    expected = text_features(TEXTS, settings, str(tmp_path / "other")).table
    encode, calls = module._BlockEncoder.__call__, []

    def some(self, block):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(block)
        return encode(self, block)

    cache = tmp_path / "cache"
    monkeypatch.setattr(module._BlockEncoder, "__call__", some)
    with pytest.raises(KeyboardInterrupt):
        text_features(TEXTS, settings, str(cache))
    (blocks,) = (cache / "features").iterdir()
    first, second = sorted(blocks.iterdir())
    second.write_bytes(first.read_bytes()[:-1])  # damaged: it is encoded again

    monkeypatch.setattr(
        module._BlockEncoder, "__call__", lambda self, b: calls.append(b) or encode(self, b)
    )
    again = text_features(TEXTS, settings, str(cache))
    np.testing.assert_array_equal(again.table, expected)
    total = -(-len(list(module._batches(lengths(settings), settings.max_tokens))) // 2)
    assert len(calls) == 2 + total - 1 > 3
    assert [path.name for path in (cache / "features").iterdir()] == [f"{again.key}.npy"]


def lengths(settings):
    folder = module.text_model_folder(settings.model_dir, "")
    tokenizer = module.load_tokenizer(folder, settings.max_tokens)
    return [len(ids) for ids in module.tokenize(tokenizer, [t for t in TEXTS if t])]


def test_vectors_on_ray_are_those_of_this_process(settings, tmp_path):
    pytest.importorskip("ray")
    here = text_features(TEXTS, settings, str(tmp_path / "here"))
    with two_nodes() as place, open_engine(place) as engine:
        there = text_features(TEXTS, settings, str(tmp_path / "there"), engine)
        names = [f"{i}.png" for i in range(130)]
        write_images(tmp_path, names[:-2])
        pictures = decoded_images(names, str(tmp_path), str(tmp_path / "there"), engine)
    assert here.key == there.key and here.table.any()
    np.testing.assert_array_equal(there.table, here.table)
    expected = decoded_images(names, str(tmp_path), str(tmp_path / "here"))
    assert pictures.counts == expected.counts and pictures.items.size == 128
    np.testing.assert_array_equal(pictures(pictures.items), expected(expected.items))


def test_an_encoder_that_gives_nan_is_told(settings, tmp_path, monkeypatch):
    """Its features are not kept."""
    encode = module._BlockEncoder.__call__

    def broken(self, block):
        vectors = np.array(encode(self, block))
        vectors[-1, 0] = np.nan
        return vectors

    monkeypatch.setattr(module._BlockEncoder, "__call__", broken)
    with pytest.raises(UserError, match=r"gives NaN or infinite values for [0-9]+ of 60 items"):
        text_features(TEXTS, settings, str(tmp_path / "cache"))
    assert not list((tmp_path / "cache" / "features").glob("*.npy"))
