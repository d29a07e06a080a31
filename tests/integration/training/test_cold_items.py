"""Items that no training window contains: kept out, ranked by their content, and measured apart."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.support import dense_model
from tests.support.model_losses import loss_terms
from tests.support.raw_data import tiny_config
from tests.support.runs import best_params
from tests.support.small_batches import (
    NUM_ITEMS,
    assert_close,
    existing,
    fixture_batch,  # noqa: F401
    fixture_features,  # noqa: F401
    on,
    small_config,
)
from tests.support.small_model import with_attention
from tssr_jax.config import default
from tssr_jax.config.validation import validate_config
from tssr_jax.data_pipeline.counts import history_mean, same_day, training_counts
from tssr_jax.data_pipeline.input_pipeline import TrainBatches
from tssr_jax.data_pipeline.store import SequenceStore
from tssr_jax.data_pipeline.tensorflow_cpu import tf
from tssr_jax.data_pipeline.windows import held_out_items, without_items
from tssr_jax.errors import UserError
from tssr_jax.evaluation.evaluate import evaluate, evaluate_params, restore_best
from tssr_jax.evaluation.ranking import make_eval_step
from tssr_jax.losses.objective import PREDICTION, Competitors, total_loss
from tssr_jax.models.apply import encode, head_weights
from tssr_jax.models.content import CONTENT_LAYOUT, Content
from tssr_jax.models.init import init_params, make_model
from tssr_jax.parallel import collectives, sharding
from tssr_jax.parallel.catalogue import Catalogue
from tssr_jax.parallel.devices import CLASSES, ROWS, WHOLE, Devices
from tssr_jax.reporting import make_console
from tssr_jax.training.loop import train

KNOWN = np.ones(NUM_ITEMS + 1, bool)
KNOWN[[4, 9, 17]] = False


def test_padding_competes_in_training_where_it_does_in_the_ranking(tmp_path):
    config = tiny_config(tmp_path)
    config.model.head = "tied"
    config.train.num_epochs = 1
    biases = []
    for excluded in (True, False):
        config.corrections.exclude_padding_class = excluded
        train(config, tmp_path / str(excluded))
        biases.append(best_params(config, tmp_path / str(excluded))["output"]["bias"][0])
    assert biases[0] == np.float32(0.1)  # as it began
    assert biases[1] < 0.09  # pushed down: it is never the answer


def mask(*items):
    return np.isin(np.arange(10), items)


def test_windows_close_up_by_hand():
    windows = tf.constant([[0, 1, 2, 3], [4, 2, 5, 2], [2, 2, 2, 2], [1, 3, 4, 2]])
    kept, times = without_items(mask(2), windows, 10 * windows)
    (alone,) = without_items(mask(2), windows[:, :2])
    np.testing.assert_array_equal(alone, [[0, 0], [0, 0], [0, 0], [1, 3]])
    expected = [[0, 0, 1, 3], [0, 0, 4, 5], [0, 0, 0, 0], [0, 1, 3, 4]]
    np.testing.assert_array_equal(kept, expected)
    np.testing.assert_array_equal(times, 10 * np.array(expected))


@pytest.fixture(name="store")
def fixture_store():
    """Users with the training sequences 1 2 3 4, 5 6 and 7 (the last two items are held out)."""
    items = tf.constant([1, 2, 3, 4, 8, 9, 5, 6, 8, 9, 7, 8, 9])
    return SequenceStore.in_memory(items, items, tf.constant([0, 6, 10, 13], tf.int64))


def test_the_mean_of_what_users_had_seen(store):
    means = [(1 + 2 + 3 + 4 + 8) / 5, (5 + 6 + 8) / 3, (7 + 8) / 2]
    assert history_mean(store, np.arange(10), "test") == pytest.approx(np.mean(means))
    means = [(1 + 2 + 3 + 4) / 4, (5 + 6) / 2, 7]
    assert history_mean(store, np.arange(10), "validation") == pytest.approx(np.mean(means))


def test_answers_of_the_day_of_the_item_before():
    """A day has 1,440 minutes and starts at midnight, not at the item before."""
    times = tf.constant([0, 1, 1439, 1440, 0, 1440, 2879])
    store = SequenceStore.in_memory(times + 1, times, tf.constant([0, 4, 7], tf.int64))
    np.testing.assert_array_equal(same_day(store, "validation"), [True, False])
    np.testing.assert_array_equal(same_day(store, "test"), [False, True])


def test_which_items_training_sees(store):
    config = default.get_config()
    config.model.max_length = 2

    def seen(**train_settings):
        config.train.update(**train_settings)
        return np.flatnonzero(training_counts(store, config, 9)).tolist()

    assert seen(windows="last") == [2, 3, 4, 5, 6]  # three items at most; 7 is alone
    assert seen(windows="strided") == [1, 2, 3, 4, 5, 6]
    held_out = held_out_items(config, 9)
    assert held_out is None
    config.train.held_out_items = 0.5
    held_out = held_out_items(config, 9)
    assert 0 < held_out.sum() < 9 and not held_out[0]
    assert not held_out[seen()].any()
    np.testing.assert_array_equal(held_out, held_out_items(config, 9))
    config.seed = 1
    assert (held_out != held_out_items(config, 9)).any()


@pytest.mark.parametrize("kind", ["last", "strided"])
def test_batches_contain_no_item_that_is_held_out(store, kind):
    held_out = mask(3, 6)
    batches = TrainBatches(
        store, batch_size=4, max_length=3, seed=0, windows=kind, packing=True, held_out=held_out
    )
    rows = set()
    for _, batch in zip(range(batches.steps_per_epoch), batches.iterate(0), strict=False):
        sequence, labels = batch["item_sequence"], batch["labels"]
        assert not held_out[sequence].any() and not held_out[labels].any()
        np.testing.assert_array_equal(batch["row_mask"], (labels > 0).any(axis=1))
        packed = batch["packed"]
        flat = np.append(packed["items"].reshape(-1), 0)
        np.testing.assert_array_equal(flat[packed["places"]], sequence)
        pairs = zip(sequence.tolist(), labels.tolist(), strict=True)
        rows |= {(tuple(x), tuple(y)) for x, y in pairs}
    rows.discard(((0, 0, 0), (0, 0, 0)))
    # User 2 is left with one item, which has nothing to predict.
    assert rows == {((0, 1, 2), (1, 2, 4))}


def content_config():
    config = small_config()
    config.model.head = "content"
    return config


@pytest.fixture(name="params", scope="module")
def fixture_params(features):
    model = make_model(content_config(), Catalogue(NUM_ITEMS))
    params = init_params(model, {"text": features.shape[1]}, seed=0)
    return with_attention(params, 0.5)


def dense_logits(params, sequence, features):
    """Ids' rows of unknown items are zeros, their scores are their content's alone."""
    table = params["token_embedding"]["embedding"] * KNOWN[:, None]
    shown = params | {"token_embedding": {"embedding": table}}
    fused = dense_model.forward(shown, sequence, features, heads=2)[2]
    content = dense_model.dense(params["output_content"], features)
    own = params["output"]
    kernel = own["kernel"].T * KNOWN[:, None] + content
    return fused @ kernel.T + own["bias"] * KNOWN


def without_unknown_inputs(batch):
    """Training windows hold known items only."""
    return {k: np.where(v > 0, np.where(KNOWN[v], v, 1), v) if v.ndim == 2 else v
            for k, v in batch.items()}  # fmt: skip


@pytest.mark.parametrize(
    "way", [("pmap", 1), ("pmap", 2), ("shard_map", 2, 2), ("shard_map", 6, 3)], ids=str
)
def test_loss_and_gradients_equal_the_dense_formula(params, batch, features, way):
    batch = without_unknown_inputs(batch)
    config, devices = content_config(), Devices(*way)
    model, placed, table = on(devices, config, params, features)
    fill = model.classes.padded_classes - KNOWN.size
    known = devices.place(np.pad(KNOWN, (0, fill)), CLASSES)
    layout = sharding.layout(placed)

    def dense(params):
        logits = dense_logits(params, batch["item_sequence"], features)
        logits = jnp.where(KNOWN, logits, -jnp.inf)[..., 1:]
        labels = batch["labels"]
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels - 1, 0))
        return jnp.mean(nll, where=(labels > 0) & (batch["item_sequence"] > 0))

    def body(params, batch, content):
        def share(params):
            outputs = encode(model, params, batch["item_sequence"], content)
            known = Competitors(known=content.known)
            terms = loss_terms(
                model, params, outputs, batch, config, features=content, competitors=known
            )
            return total_loss(terms, {PREDICTION: 1.0}, model.rows_axis)

        value, grads = jax.value_and_grad(share)(params)
        value = collectives.psum(value, model.rows_axis)
        return value, sharding.sum_gradients(grads, model.classes, model.rows_axis)

    run = devices.run(body, inputs=(layout, ROWS, CONTENT_LAYOUT), output=(WHOLE, layout))
    value, grads = run(placed, batch, Content({"text": table}, known=known))
    expected, wanted = jax.jit(jax.value_and_grad(dense))(params)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    wanted = jax.tree.map(jnp.zeros_like, params) | wanted
    assert_close(existing(grads), wanted, 1e-5)
    own = existing(grads)["output"]["kernel"]
    assert not own[:, ~KNOWN].any() and own[:, 1].any()


@pytest.mark.parametrize("way", [("pmap", 2), ("shard_map", 6, 3)], ids=str)
def test_ranks_of_unknown_items_are_those_of_their_content(params, batch, features, way):
    sequence = batch["item_sequence"]
    answers = np.resize(np.flatnonzero(~KNOWN), len(sequence)).astype(np.int32)
    rows = {
        "item_sequence": sequence,
        "answers": answers,
        "missed": np.zeros(len(answers), bool),
        "excluded": np.zeros((len(sequence), 1), np.int32),
        "row_mask": np.ones(len(sequence), bool),
    }
    devices = Devices(*way)
    model, placed, table = on(devices, content_config(), params, features)
    fill = model.classes.padded_classes - KNOWN.size
    known = devices.place(np.pad(KNOWN, (0, fill)), CLASSES)
    run = devices.run(make_eval_step(model), inputs=(sharding.layout(placed), ROWS, CONTENT_LAYOUT))
    ranks = run(placed, rows, Content({"text": table}, known=known)).ranks
    scores = np.asarray(dense_logits(params, sequence, features))[:, -1, 1:]
    own = scores[np.arange(len(scores)), answers - 1]
    np.testing.assert_array_equal(ranks, (scores > own[:, None]).sum(axis=1))


def test_an_unknown_items_own_parameters_are_not_read(params, features):
    model = make_model(content_config(), Catalogue(NUM_ITEMS))
    content = Content({"text": features}, known=KNOWN)
    sequence = np.array([[0, 0, 4, 1, 9]], np.int32)

    def run(params):
        outputs = encode(model, params, sequence, content)
        return outputs.fused, *head_weights(model, params, content)

    noise = np.where(KNOWN, 0, 7.0)
    changed = dict(params)
    table = params["token_embedding"]["embedding"] + noise[:, None]
    changed["token_embedding"] = {"embedding": table}
    output = params["output"]
    changed["output"] = {"kernel": output["kernel"] + noise, "bias": output["bias"] + noise}
    jax.tree.map(np.testing.assert_array_equal, run(params), run(changed))


def test_held_out_items_are_reported_apart(tmp_path):
    config = tiny_config(tmp_path)
    config.model.update(head="content", id_dropout=0.3)
    config.train.held_out_items = 0.3
    config.evaluate.list_length = 10
    metrics = train(config, tmp_path / "run")
    assert evaluate(tmp_path / "run") == metrics
    run, params, _ = restore_best(tmp_path / "run")
    held_out = held_out_items(config, run.data.num_items)
    assert not run.known[held_out].any()
    # Of the id vectors that nobody reads no metric knows, that of how alike lists are included.
    table = np.where(held_out[:, None], 9.0, np.asarray(params["token_embedding"]["embedding"]))
    changed = params | {"token_embedding": {"embedding": jnp.asarray(table)}}
    (tmp_path / "again").mkdir()
    again = evaluate_params(run, changed, "", tmp_path / "again", make_console(quiet=True))
    assert again["test"] == metrics and 0 < metrics["diversity_id@10"] < 2
    parts = [(metrics[f"{name}/num_users"], metrics[f"{name}/recall@10"])
             for name in ("warm", "cold")]  # fmt: skip
    assert sum(number for number, _ in parts) == metrics["num_users"]
    mean = sum(number * value for number, value in parts) / metrics["num_users"]
    assert metrics["recall@10"] == pytest.approx(mean)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert any("validation/cold/recall@10" in json.loads(line) for line in lines)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model.id_dropout": 0.1}, "without --config.model.head=content"),
        ({"model.head": "shared"}, "known: classes, content, tied"),
        ({"model.head": "content", "model.streams": ("id",)}, "it needs the content stream"),
        ({"model.head": "content", "content.text.trained_layers": 1}, "trained_layers=0"),
        ({"train.held_out_items": 1.0}, r"must be in \[0, 1\)"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    config = default.get_config()
    config.update_from_flattened_dict(settings)
    with pytest.raises(UserError, match=message):
        validate_config(config)
