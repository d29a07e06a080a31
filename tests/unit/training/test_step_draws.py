"""What a training step draws: dropout and ids that are left out, by seed and step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.support.small_batches import (
    NUM_ITEMS,
    fixture_batch,  # noqa: F401
    fixture_features,  # noqa: F401
    small_config,
)
from tests.support.small_model import with_attention
from tssr_jax.models.content import Content
from tssr_jax.models.init import init_params, make_model
from tssr_jax.parallel.catalogue import Catalogue
from tssr_jax.training.state import TOTAL, create_train_state
from tssr_jax.training.step import make_train_step


@pytest.fixture(name="losses")
def fixture_losses(batch, features):
    """What gives the losses of two steps on one batch that change no parameter."""

    def losses(config, change=lambda params: params):
        model = make_model(config, Catalogue(NUM_ITEMS))
        params = init_params(model, {"text": features.shape[1]}, seed=0)
        optimizer = optax.sgd(0.0)
        params = change(with_attention(params, 0.5))
        state = create_train_state(params, optimizer, config)
        step = jax.jit(make_train_step(model, optimizer, config))
        content = Content({"text": features})
        if config.model.head == "content":
            content = content.replace(known=jnp.ones(NUM_ITEMS + 1, bool))
        sums = [0.0]
        for _ in range(2):
            state = step(state, batch, content)
            sums.append(float(state.loss_sums[TOTAL].sum))
        return np.diff(sums)

    return losses


def test_dropout_is_drawn_anew_at_each_step_and_by_seed(losses):
    none, again = losses(small_config())
    assert none == pytest.approx(again, rel=1e-6)
    config = small_config(dropout_rate=0.3)
    first, second = losses(config)
    assert len({round(x, 4) for x in (none, first, second)}) == 3
    np.testing.assert_array_equal(losses(config), [first, second])
    config.seed = 1
    assert not np.isclose(losses(config), [first, second], rtol=1e-5).any()


def test_ids_are_left_out_as_if_their_items_were_unknown(losses):
    config = small_config()
    config.model.head = "content"

    def without_ids(params):
        own = {name: params[name] for name in ("token_embedding", "output")}
        return {**params, **jax.tree.map(jnp.zeros_like, own)}

    all_known, _ = losses(config)
    none_known, _ = losses(config, without_ids)
    config.model.id_dropout = 1.0 - 1e-9
    np.testing.assert_allclose(losses(config), none_known, rtol=1e-5)
    config.model.id_dropout = 0.5
    first, second = losses(config)
    values = (all_known, none_known, first, second)
    assert len({round(x, 4) for x in values}) == 4
    config.model.id_dropout = 1e-9
    np.testing.assert_allclose(losses(config), all_known, rtol=1e-5)
