"""Which terms count, and the switch for the positions of the next-item loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.model_losses import loss_terms, term_weights
from tssr_jax.config import default
from tssr_jax.losses.base import LossTerm
from tssr_jax.losses.objective import ITEM_TERMS, PREDICTION, USER_TERMS, total_loss
from tssr_jax.models.apply import encode
from tssr_jax.models.init import init_params, make_model
from tssr_jax.parallel.catalogue import Catalogue

NUM_ITEMS = 9


@pytest.fixture(name="config")
def fixture_config():
    config = default.get_config()
    config.model.d_model, config.model.d_ffn, config.model.num_heads = 8, 8, 2
    config.model.num_cross_layers, config.model.max_length = 1, 4
    return config


def batch():
    return {
        "item_sequence": jnp.array([[0, 3, 4, 5], [1, 2, 3, 4]]),
        # As the pipeline makes them: the last padding position is labelled with the first item.
        "labels": jnp.array([[3, 4, 5, 6], [2, 3, 4, 7]]),
        "row_mask": jnp.array([True, True]),
    }


def terms_of(config, rows=None):
    features = jax.random.normal(jax.random.key(1), (NUM_ITEMS + 1, 6))
    model = make_model(config, Catalogue(NUM_ITEMS))
    params = init_params(model, {"text": features.shape[1]}, seed=0)

    def compute(params, batch):
        outputs = encode(model, params, batch["item_sequence"], features)
        return loss_terms(model, params, outputs, batch, config)

    return jax.jit(compute)(params, batch() if rows is None else rows)


def test_last_padding_position_counts_only_in_reference_mode(config):
    assert terms_of(config)["prediction"].weight == 7
    assert terms_of(config)["item_text2id"].weight == 5
    config.corrections.valid_positions_only = False
    assert terms_of(config)["prediction"].weight == 8
    assert terms_of(config)["item_text2id"].weight == 6


def test_pooling_averages_padding_positions_only_in_reference_mode(config):
    corrected = terms_of(config)
    config.corrections.pool_valid_positions = False
    reference = terms_of(config)
    changed = {name for name in corrected if corrected[name].sum != reference[name].sum}
    assert changed == set(USER_TERMS)


def test_false_negatives_count_only_in_reference_mode(config):
    """At position 2 both rows go on with item 4: without it only the row itself is left."""
    same = batch()
    same["item_sequence"] = jnp.array([[0, 3, 9, 4], [1, 2, 3, 4]])
    # Row 0 has one target that no other row has at its place, row 1 has two.
    corrected = terms_of(config, same)
    config.corrections.mask_false_negatives = False
    reference = terms_of(config, same)
    for name in ITEM_TERMS:
        assert corrected[name].sum < reference[name].sum
        assert corrected[name].weight == reference[name].weight
    for name in (PREDICTION, *USER_TERMS):
        assert corrected[name].sum == reference[name].sum


def test_the_padding_class_competes_only_in_reference_mode(config):
    corrected = terms_of(config)
    config.corrections.exclude_padding_class = False
    reference = terms_of(config)
    changed = {name for name in corrected if corrected[name].sum != reference[name].sum}
    assert changed == {PREDICTION} and corrected[PREDICTION].sum < reference[PREDICTION].sum


@pytest.mark.parametrize("streams", [("id",), ("content",)])
def test_one_stream_has_only_the_prediction_term(config, streams):
    config.model.streams = streams
    assert terms_of(config).keys() == {"prediction"}


@pytest.mark.parametrize("id_reads_content", [False, True])
def test_each_expert_has_a_loss_of_its_own(config, id_reads_content):
    """Against the cross entropy of each expert's dense scores."""
    config.model.update(mixing="experts", head="tied", id_reads_content=id_reads_content)
    config.loss.lambda_user = config.loss.lambda_item = 0.0
    features = jax.random.normal(jax.random.key(1), (NUM_ITEMS + 1, 6))
    model, rows = make_model(config, Catalogue(NUM_ITEMS)), batch()
    params = init_params(model, {"text": features.shape[1]}, seed=0)
    outputs = encode(model, params, rows["item_sequence"], features)
    terms = loss_terms(model, params, outputs, rows, config, features=features)
    assert term_weights(config) == dict.fromkeys(terms, 1.0)
    own = params["token_embedding"]["embedding"]
    content = outputs_of(params["content_projection"], features)
    for name, states, vectors in (
        ("prediction_id", outputs.id.encoded, own + content if id_reads_content else own),
        ("prediction_content", outputs.content.encoded, content),
        ("prediction", outputs.experts["joint"], own + content),
    ):
        scores = (states @ vectors.T + params["output"]["bias"])[..., 1:]  # without padding
        chosen = jnp.take_along_axis(scores, rows["labels"][..., None] - 1, -1)[..., 0]
        losses = jax.nn.logsumexp(scores, axis=-1) - chosen
        valid = rows["item_sequence"] > 0
        np.testing.assert_allclose(terms.pop(name).sum, losses[valid].sum(), rtol=1e-5)
    assert not terms


def outputs_of(dense, x):
    return x @ dense["kernel"] + dense["bias"]


def test_lambda_0_switches_terms_off(config):
    config.loss.lambda_user = 0.0
    assert terms_of(config).keys() == {"prediction", "item_text2id", "item_id2text"}
    config.loss.lambda_item = 0.0
    assert terms_of(config).keys() == {"prediction"}


def test_total_is_the_weighted_sum_of_means(config):
    config.loss.lambda_user, config.loss.lambda_item = 0.5, 2.0
    names = term_weights(config)
    terms = {name: LossTerm(jnp.float32(6.0), jnp.float32(2.0)) for name in names}
    np.testing.assert_allclose(total_loss(terms, names), 3 * (1 + 2 * 0.5 + 2 * 2.0))
