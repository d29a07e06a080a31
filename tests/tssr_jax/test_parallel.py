"""A step on several devices equals a dense formula on one, whatever runs it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import default
from tssr_jax.errors import UserError
from tssr_jax.evaluate import make_eval_step
from tssr_jax.experiment import make_model
from tssr_jax.losses.total import ITEM_TERMS, PREDICTION, USER_TERMS, loss_terms, total_loss
from tssr_jax.models.tssr import encode
from tssr_jax.parallel import DATA_AXIS, KINDS, ROWS, WHOLE, DataParallel
from tssr_jax.train_state import TOTAL, create_train_state, init_params, make_train_step

NUM_ITEMS, ROWS_OF_BATCH, LENGTH = 20, 16, 5
TERMS = (PREDICTION, *USER_TERMS, *ITEM_TERMS)


def small_config(dropout_rate=0.0, negatives="all_gather"):
    config = default.get_config()
    config.model.update(d_model=8, d_ffn=8, num_heads=2, num_cross_layers=1, max_length=LENGTH)
    config.model.dropout_rate = dropout_rate
    config.loss.update(lambda_user=0.7, lambda_item=1.3, negatives=negatives)
    return config


@pytest.fixture(name="batch", scope="module")
def fixture_batch():
    """Few items, so that rows share targets; the last rows are short, or empty."""
    rng = np.random.default_rng(0)
    windows = rng.integers(1, NUM_ITEMS + 1, size=(ROWS_OF_BATCH, LENGTH + 1)).astype(np.int32)
    lengths = np.linspace(LENGTH + 1, 0, ROWS_OF_BATCH).round()
    windows[np.arange(LENGTH, -1, -1) >= lengths[:, None]] = 0
    row_mask = lengths > 1
    windows[~row_mask] = 0
    return {"item_sequence": windows[:, :-1], "labels": windows[:, 1:], "row_mask": row_mask}


@pytest.fixture(name="features", scope="module")
def fixture_features():
    return np.random.default_rng(1).normal(size=(NUM_ITEMS + 1, 6)).astype(np.float32)


@pytest.fixture(name="params", scope="module")
def fixture_params(features):
    """Initial values, but for residual scalars that let attention show."""
    params = init_params(make_model(small_config(), NUM_ITEMS), jnp.asarray(features), seed=0)
    return jax.tree.map(lambda x: jnp.full_like(x, 0.5) if x.ndim == 0 else x, params)


def dense_terms(params, batch, features):
    """The five terms from the states, each written as a softmax over dense scores."""
    outputs = encode(
        make_model(small_config(), NUM_ITEMS), params, batch["item_sequence"], features
    )
    sequence, labels, real = (batch[k] for k in ("item_sequence", "labels", "row_mask"))
    valid = sequence > 0

    head = params["output"]
    logits = (outputs.fused @ head["kernel"] + head["bias"])[..., 1:]
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels - 1, 0))
    terms = [jnp.mean(nll, where=valid & (labels > 0))]

    id_states, content_states = outputs.id, outputs.content
    pooled_id, pooled_content = (
        jnp.mean(x.encoded, axis=1, where=valid[..., None])[real]
        for x in (id_states, content_states)
    )
    cosine = optax.cosine_similarity(pooled_content[:, None], pooled_id[None], epsilon=1e-12)
    for scores in (cosine, cosine.T):
        terms.append(-jnp.mean(jnp.diagonal(jax.nn.log_softmax(scores / 0.2))))

    for anchor, target in ((content_states, id_states), (id_states, content_states)):
        losses = []
        for t in range(LENGTH - 1):
            items = sequence[:, t + 1]
            for i in np.flatnonzero(valid[:, t] & valid[:, t + 1]):
                others = np.flatnonzero((items > 0) & (items != items[i]))
                columns = np.array([i, *others])
                scores = target.input_embedding[columns, t + 1] @ anchor.encoded[i, t]
                losses.append(-jax.nn.log_softmax(scores)[0])
        terms.append(jnp.mean(jnp.stack(losses)))
    return dict(zip(TERMS, terms, strict=True))


@pytest.fixture(name="expected", scope="module")
def fixture_expected(params, batch, features):
    def total(params):
        terms = dense_terms(params, batch, features)
        user = sum(terms[name] for name in USER_TERMS)
        item = sum(terms[name] for name in ITEM_TERMS)
        return terms[PREDICTION] + 0.7 * user + 1.3 * item, terms

    (value, terms), grads = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
    return terms | {TOTAL: value}, grads


@pytest.mark.parametrize("negatives", ["all_gather", "ring"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_devices", [1, 2, 8])
def test_terms_and_gradients_equal_the_dense_formula(  # noqa: PLR0917
    params, batch, features, expected, num_devices, kind, negatives
):
    config, parallel = small_config(negatives=negatives), DataParallel(kind, num_devices)
    model = make_model(config, NUM_ITEMS, DATA_AXIS)
    weights = {name: expected_weight(name, config) for name in TERMS}

    def body(params, batch, features):
        def share(params):
            outputs = encode(model, params, batch["item_sequence"], features)
            terms = loss_terms(outputs, params, batch, config, DATA_AXIS)
            return total_loss(terms, weights, DATA_AXIS), terms

        (total, terms), grads = jax.lax.psum(
            jax.value_and_grad(share, has_aux=True)(params), DATA_AXIS
        )
        return {name: term.mean() for name, term in terms.items()} | {TOTAL: total}, grads

    terms, grads = parallel.run(body, inputs=(WHOLE, ROWS, WHOLE), output=WHOLE)(
        parallel.replicate(params), batch, parallel.replicate(features)
    )
    for name, value in expected[0].items():
        np.testing.assert_allclose(terms[name], value, rtol=1e-5, err_msg=name)
    assert_close(grads, expected[1], 1e-5)


def expected_weight(name, config):
    return 1.0 if name == PREDICTION else config.loss["lambda_" + name.split("_")[0]]


def assert_close(tree, expected, tolerance):
    """Within the tolerance, relative to the largest value of each array."""

    def check(path, value, wanted):
        # The key biases have no gradient but rounding.
        scale = max(np.abs(wanted).max(), 1e-2)
        np.testing.assert_allclose(
            value, wanted, rtol=tolerance, atol=tolerance * scale, err_msg=str(path)
        )

    jax.tree_util.tree_map_with_path(check, tree, expected)


@pytest.mark.parametrize(
    ("kind", "num_devices", "negatives"),
    [("pmap", 2, "ring"), ("pmap", 8, "all_gather"), ("shard_map", 8, "ring")],
)
def test_five_steps_with_dropout_are_those_of_one_device(  # noqa: PLR0917
    params, batch, features, kind, num_devices, negatives
):
    def train(parallel, config):
        # Not Adam: it turns the rounding of a gradient that is zero into steps of full size.
        optimizer = optax.sgd(0.1, momentum=0.9)
        model = make_model(config, NUM_ITEMS, DATA_AXIS)
        step = parallel.run(
            make_train_step(model, optimizer, config, DATA_AXIS),
            inputs=(WHOLE, ROWS, WHOLE),
            output=WHOLE,
            donate=(0,),
        )
        start = jax.tree.map(jnp.copy, params)
        state = parallel.replicate(create_train_state(start, optimizer, config))
        for _ in range(5):
            state = step(state, batch, parallel.replicate(features))
        return state

    alone = train(DataParallel("shard_map", 1), small_config(dropout_rate=0.3))
    state = train(DataParallel(kind, num_devices), small_config(0.3, negatives))
    assert int(state.step) == 5
    assert_close(state.params, alone.params, 1e-4)
    assert_close(state.loss_sums, alone.loss_sums, 1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_come_back_in_the_order_of_the_batch(params, batch, features, kind):
    model = make_model(small_config(), NUM_ITEMS, DATA_AXIS)
    rows = {
        "item_sequence": batch["item_sequence"],
        "answers": np.arange(1, ROWS_OF_BATCH + 1, dtype=np.int32),
        "excluded": np.zeros((ROWS_OF_BATCH, 1), np.int32),
    }
    ranks = [
        parallel.run(make_eval_step(model), inputs=(WHOLE, ROWS, WHOLE), output=ROWS)(
            parallel.replicate(params), rows, parallel.replicate(features)
        )
        for parallel in (DataParallel(kind, 1), DataParallel(kind, 8))
    ]
    assert ranks[0].shape == (ROWS_OF_BATCH,)
    assert len(set(np.asarray(ranks[0]).tolist())) > 4
    np.testing.assert_array_equal(*ranks)


def test_rounding_up_to_what_devices_can_share():
    parallel = DataParallel("pmap", 3)
    assert [parallel.round_up(n) for n in (1, 3, 128)] == [3, 3, 129]


def test_more_devices_than_there_are():
    with pytest.raises(UserError, match=r"num_devices is 9, but there are 8 device\(s\)"):
        DataParallel("pmap", 9)
