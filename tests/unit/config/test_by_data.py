"""Fields that are open until the data are known."""

import pytest

from tssr_jax.config import default, load
from tssr_jax.config.by_data import Facts, filled, fit_to_data, open_fields
from tssr_jax.config.fields import flattened
from tssr_jax.config.validation import validate_config
from tssr_jax.errors import UserError

WITHOUT = ("default", "paper", "reference", "text", "__init__")


def fitted(**fields):
    config = default.get_config()
    fit_to_data(config)
    config.update_from_flattened_dict(fields)
    return config


@pytest.mark.parametrize("facts", [Facts(2), Facts(19), Facts(20, 0.06, 0.45), Facts(500)], ids=str)
def test_every_open_field_gets_a_value(facts):
    config = fitted()
    validate_config(config)
    whole = filled(config, facts)
    validate_config(whole)
    assert open_fields(config) and not open_fields(whole)
    assert {name: type(x) for name, x in flattened(whole).items()} == {
        name: type(x) for name, x in flattened(default.get_config()).items()
    }
    long = facts.median_length >= 20
    assert whole.train.windows == ("strided" if long else "last")
    assert whole.model.id_neighbours == (0 if long else 10)
    assert whole.memory.fading == facts.fading
    assert whole.evaluate.keep_seen == (facts.repeats > 0.05)
    assert ("repeats" in whole.model.memory) == whole.evaluate.keep_seen
    assert open_fields(config)  # unchanged


@pytest.mark.parametrize(
    ("length", "windows", "batch_size"),
    [(4, 30_000, 128), (4, 12_700, 64), (4, 1_700, 16), (4, 3, 16), (90, 3_300, 32), (90, 900, 16)],
)
def test_few_windows_make_small_batches(length, windows, batch_size):
    assert filled(fitted(), Facts(length, windows=windows)).train.batch_size == batch_size
    assert filled(fitted(**{"train.batch_size": 7}), Facts(length, windows=3)).train.batch_size == 7


def test_what_the_command_line_sets_stays():
    config = fitted(**{"model.d_model": 32, "train.time_noise": (), "evaluate.keep_seen": True})
    whole = filled(config, Facts(4))
    assert whole.model.d_model == 32 and whole.train.time_noise == ()
    assert whole.evaluate.keep_seen and whole.model.d_ffn == 256
    assert whole.model.memory == ("co_occurrence", "words", "popularity", "repeats")
    assert filled(fitted(**{"model.memory": ()}), Facts(4)).model.memory == ()
    without = filled(fitted(), Facts(4, 0.2, has_texts=False)).model
    assert without.memory == ("co_occurrence", "popularity", "repeats")
    assert without.id_neighbours == 0
    with pytest.raises(UserError, match="which 4 heads"):
        validate_config(fitted(**{"model.d_model": 30}))


@pytest.mark.parametrize(
    "fields", [{"model.streams": ("content",)}, {"optimizer.lazy_rows": True}], ids=str
)
def test_nothing_shares_ids_where_there_are_none(fields):
    config = fitted(**fields, **{"loss.next_item": "sampled"})
    assert filled(config, Facts(4)).model.id_neighbours == 0
    validate_config(config)


def test_strided_windows_end_a_window_apart():
    config = fitted(**{"model.max_length": 30})
    assert filled(config, Facts(200)).train.window_stride == 30


def test_without_open_fields_it_is_the_configuration():
    config = default.get_config()
    assert filled(config) is config


@pytest.mark.parametrize("name", ["csv", "hm", "ml100k", "ml20m", "amazon", "mind", "yelp"])
def test_data_sets_are_trained_by_what_ranked_best(name):
    config = load(name)
    assert {*open_fields(fitted())} - {"evaluate.keep_seen"} <= {*open_fields(config)}
    assert config.model.head == "tied"
    validate_config(config)
