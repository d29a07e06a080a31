"""A step on several devices equals a dense formula on one, whatever runs it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.support import dense_model
from tests.support.model_losses import loss_terms
from tests.support.small_batches import (
    LENGTH,
    NUM_ITEMS,
    ROWS_OF_BATCH,
    assert_close,
    existing,
    fixture_batch,  # noqa: F401
    fixture_features,  # noqa: F401
    on,
    small_config,
)
from tests.support.small_model import with_attention
from tssr_jax.errors import UserError
from tssr_jax.evaluation.ranking import make_eval_step
from tssr_jax.losses.objective import ITEM_TERMS, PREDICTION, USER_TERMS, total_loss
from tssr_jax.models.apply import encode
from tssr_jax.models.content import CONTENT_LAYOUT, Content
from tssr_jax.models.init import init_params, make_model
from tssr_jax.parallel import collectives, sharding
from tssr_jax.parallel.catalogue import Catalogue
from tssr_jax.parallel.devices import CLASSES, ROWS, WHOLE, Devices
from tssr_jax.training.optimizer import clip_by_norm, make_optimizer
from tssr_jax.training.state import TOTAL, create_train_state
from tssr_jax.training.step import make_train_step

# Ways to run: kind, devices, and those of them that share a catalogue (21 classes: none of these
# numbers but 3 divides it).
WAYS = (
    ("pmap", 2, 1),
    ("pmap", 8, 1),
    ("shard_map", 1, 1),
    ("shard_map", 2, 1),
    ("shard_map", 8, 1),
    ("shard_map", 2, 2),
    ("shard_map", 6, 3),
    ("shard_map", 8, 4),
)
TERMS = (PREDICTION, *USER_TERMS, *ITEM_TERMS)


@pytest.fixture(name="params", scope="module")
def fixture_params(features):
    """Initial values, but for residual scalars that let attention show."""
    model = make_model(small_config(), Catalogue(NUM_ITEMS))
    params = init_params(model, {"text": features.shape[1]}, seed=0)
    return with_attention(params, 0.5)


def dense_terms(params, batch, features):
    """The five terms from the states, each written as a softmax over dense scores."""
    sequence, labels, real = (batch[k] for k in ("item_sequence", "labels", "row_mask"))
    valid = sequence > 0
    embedded, encoded, _, logits = dense_model.forward(params, sequence, features, heads=2)
    logits = logits[..., 1:]
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels - 1, 0))
    terms = [jnp.mean(nll, where=valid & (labels > 0))]

    pooled_id, pooled_content = (jnp.mean(x, axis=1, where=valid[..., None])[real] for x in encoded)
    cosine = optax.cosine_similarity(pooled_content[:, None], pooled_id[None], epsilon=1e-12)
    for scores in (cosine, cosine.T):
        terms.append(-jnp.mean(jnp.diagonal(jax.nn.log_softmax(scores / 0.2))))

    for anchor, target in ((encoded[1], embedded[0]), (encoded[0], embedded[1])):
        losses = []
        for t in range(LENGTH - 1):
            items = sequence[:, t + 1]
            for i in np.flatnonzero(valid[:, t] & valid[:, t + 1]):
                others = np.flatnonzero((items > 0) & (items != items[i]))
                columns = np.array([i, *others])
                scores = target[columns, t + 1] @ anchor[i, t]
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
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_terms_and_gradients_equal_the_dense_formula(  # noqa: PLR0917
    params, batch, features, expected, way, negatives
):
    config, devices = small_config(negatives=negatives), Devices(*way)
    model, params, features = on(devices, config, params, features)
    layout = sharding.layout(params)
    weights = {name: expected_weight(name, config) for name in TERMS}

    def body(params, batch, features):
        def share(params):
            outputs = encode(model, params, batch["item_sequence"], features)
            terms = loss_terms(model, params, outputs, batch, config)
            return total_loss(terms, weights, model.rows_axis), terms

        shares, grads = jax.value_and_grad(share, has_aux=True)(params)
        total, terms = collectives.psum(shares, model.rows_axis)
        grads = sharding.sum_gradients(grads, model.classes, model.rows_axis)
        return {name: term.mean() for name, term in terms.items()} | {TOTAL: total}, grads

    run = devices.run(body, inputs=(layout, ROWS, CLASSES), output=(WHOLE, layout))
    terms, grads = run(params, batch, features)
    for name, value in expected[0].items():
        np.testing.assert_allclose(terms[name], value, rtol=1e-5, err_msg=name)
    assert_close(existing(grads), expected[1], 1e-5)


def expected_weight(name, config):
    return 1.0 if name == PREDICTION else config.loss["lambda_" + name.split("_")[0]]


@pytest.mark.parametrize(
    ("way", "negatives"),
    [
        (("pmap", 2), "ring"),
        (("pmap", 8), "all_gather"),
        (("shard_map", 2), "all_gather"),
        (("shard_map", 8), "ring"),
        (("shard_map", 8, 2), "all_gather"),
        (("shard_map", 6, 3), "ring"),
    ],
    ids=str,
)
def test_five_steps_with_dropout_are_those_of_one_device(params, batch, features, way, negatives):
    def train(devices, config):
        # Not Adam: it turns the rounding of a gradient that is zero into steps of full size.
        model, start, placed_features = on(devices, config, params, features)
        clip = clip_by_norm(0.5, model.classes)
        optimizer = optax.chain(clip, optax.sgd(0.1, momentum=0.9))
        start = jax.tree.map(jnp.copy, start)
        state = create_train_state(start, optimizer, config)
        layout = sharding.layout(state)
        step = devices.run(
            make_train_step(model, optimizer, config),
            inputs=(layout, ROWS, CONTENT_LAYOUT),
            output=layout,
            donate=(0,),
        )
        state = devices.place(state, layout)
        for _ in range(5):
            state = step(state, batch, Content({"text": placed_features}))
        return state

    alone = train(Devices("shard_map", 1), small_config(dropout_rate=0.3))
    state = train(Devices(*way), small_config(0.3, negatives))
    assert int(state.step) == 5
    assert_close(existing(state.params), alone.params, 1e-4)
    assert_close(state.loss_sums, alone.loss_sums, 1e-4)


@pytest.mark.parametrize(
    ("way", "head"), [*((way, "classes") for way in WAYS), (("shard_map", 8, 4), "tied")], ids=str
)
def test_ranks_come_back_in_the_order_of_the_batch(params, batch, features, way, head):
    """Items that are not there and only fill up a shard compete with none."""
    config = small_config()
    config.model.head = head
    if head == "tied":
        # What stands for items without content scores higher than any that has some.
        projection = params["content_projection"]
        params = params | {"content_projection": projection | {"no_content": jnp.full(8, 9.0)}}
    rows = {
        "item_sequence": batch["item_sequence"],
        "answers": np.arange(ROWS_OF_BATCH, dtype=np.int32) % NUM_ITEMS + 1,
        "missed": np.zeros(ROWS_OF_BATCH, bool),
        "excluded": np.array([[0, -1, -1], [5, 0, -1], [3, 0, 7]] * 8, np.int32),
        "row_mask": np.arange(ROWS_OF_BATCH) != 4,
    }
    rows["excluded"][rows["excluded"] == rows["answers"][:, None]] = -1

    def rank(devices):
        model, placed, placed_features = on(devices, config, params, features)
        layout = sharding.layout(placed)
        step = devices.run(make_eval_step(model), inputs=(layout, ROWS, CLASSES))
        return step(placed, rows, placed_features).ranks

    alone, ranks = rank(Devices("pmap", 1)), rank(Devices(*way))
    assert ranks.shape == (ROWS_OF_BATCH,)
    assert ranks[4] == -1 and len(set(np.asarray(alone).tolist())) > 4
    np.testing.assert_array_equal(ranks, alone)


def test_each_device_holds_its_part_of_the_catalogue():
    devices = Devices("shard_map", 8, 8)
    config = small_config()
    model = make_model(config, devices.catalogue(NUM_ITEMS), devices.rows_axis)
    optimizer = make_optimizer(config.optimizer, model.classes)

    def start():
        params = init_params(model, {"text": 6}, seed=0)
        return create_train_state(params, optimizer, config)

    layout = sharding.layout(jax.eval_shape(start))
    state = devices.build(start, layout)
    whole = Devices("pmap", 1)
    alone = make_model(config, Catalogue(NUM_ITEMS))
    params = whole.build(lambda: init_params(alone, {"text": 6}, seed=0))
    assert_close(existing(state.params), params, 0)
    moments = state.opt_state[0].mu
    for tree in (state.params, moments):
        shards = tree["token_embedding"]["embedding"].addressable_shards
        assert {shard.data.shape for shard in shards} == {(3, 8)}
        shards = tree["output"]["kernel"].addressable_shards
        assert {shard.data.shape for shard in shards} == {(8, 3)}


@pytest.mark.parametrize("kind", ["pmap", "shard_map"])
def test_results_go_into_the_next_step_without_compiling_it_again(kind):
    devices = Devices(kind, 8)
    step = devices.run(lambda state, rows: state + rows.sum(), inputs=(WHOLE, ROWS))
    lowered = []

    def note(event, _, **details):
        if event.endswith("jaxpr_to_mlir_module_duration"):
            lowered.append(details["fun_name"])

    state, rows = devices.build(lambda: jnp.zeros(3)), np.ones(8, np.float32)
    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        batches = devices.ahead(iter([rows] * 3))
        first = step(state, next(batches))
        step(first, next(batches))
        step(devices.place(np.zeros(3, np.float32)), next(batches))
    finally:
        jax.monitoring.unregister_event_duration_listener(note)
    assert len(lowered) == 1


def test_products_are_of_the_precision_of_their_types():
    """What a TPU would round, a processor does not: the program is looked at."""
    devices = Devices("shard_map", 1)
    step = devices.run(lambda x, y: x @ y, inputs=(WHOLE, WHOLE))
    text = step.lower(np.ones((2, 2), np.float32), np.ones((2, 2), np.float32)).as_text()
    assert "precision = [HIGHEST, HIGHEST]" in text


@pytest.mark.parametrize("way", [("shard_map", 1), ("shard_map", 6, 3)], ids=str)
def test_a_bfloat16_step_is_near_the_float32_one_and_keeps_float32_states(
    params, batch, features, way
):
    states = {}
    for dtype in ("float32", "bfloat16"):
        config, devices = small_config(), Devices(*way)
        config.model.compute_dtype = dtype
        config.optimizer.ema_decay = 0.9
        model, start, placed_features = on(devices, config, params, features)
        optimizer = make_optimizer(config.optimizer, model.classes)
        state = create_train_state(start, optimizer, config)
        layout = sharding.layout(state)
        step = devices.run(
            make_train_step(model, optimizer, config),
            inputs=(layout, ROWS, CONTENT_LAYOUT),
            output=layout,
        )
        states[dtype] = step(
            devices.place(state, layout), batch, Content({"text": placed_features})
        )
    jax.tree.map(lambda x, y: x.dtype == y.dtype or pytest.fail(str(x.dtype)), *states.values())
    exact, rounded = (
        {name: float(term.sum) for name, term in state.loss_sums.items()}
        for state in states.values()
    )
    for name, value in exact.items():
        # Eight bits of mantissa in the inputs of products; sums and softmaxes are float32.
        assert rounded[name] == pytest.approx(value, rel=1e-2), name
        assert rounded[name] != value, name


@pytest.mark.parametrize("way", [("pmap", 1), ("pmap", 4), ("shard_map", 8, 2)], ids=str)
def test_batches_are_placed_a_step_ahead(way):
    devices, asked = Devices(*way), []

    def batches():
        for i in range(4):
            asked.append(i)
            yield {
                "items": np.arange(16, dtype=np.int32).reshape(8, 2) + i,
                "odd": {"x": np.ones(8)},
            }

    total = devices.run(
        lambda batch: collectives.psum(batch["items"].sum(), devices.rows_axis), inputs=(ROWS,)
    )
    found = []
    for number, batch in enumerate(devices.ahead(batches())):
        assert asked == list(range(min(number + 2, 4)))
        assert isinstance(batch["items"], jax.Array)
        assert len(batch["items"].sharding.device_set) == way[1]
        found.append(int(total(batch)))
    assert found == [120 + 16 * i for i in range(4)]


def test_rounding_up_to_what_devices_can_share():
    devices = Devices("pmap", 3)
    assert [devices.round_up(n) for n in (1, 3, 128)] == [3, 3, 129]


@pytest.mark.parametrize(
    ("way", "message"),
    [
        (("pmap", 9), r"num_devices is 9, but there are 8 device\(s\)"),
        (("shard_map", 8, 3), r"model_devices is 3, which does not divide the 8"),
        (("pmap", 8, 2), r"needs --config.parallel=shard_map"),
    ],
)
def test_devices_that_can_not_be_had(way, message):
    with pytest.raises(UserError, match=message):
        Devices(*way)
