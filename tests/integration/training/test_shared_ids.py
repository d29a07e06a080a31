"""Items with like texts share id vectors: a dense formula, devices, new items."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.raw_data import tiny_config
from tests.support.runs import best_params
from tssr_jax.config import default
from tssr_jax.config.validation import validate_config
from tssr_jax.errors import UserError
from tssr_jax.evaluation.evaluate import make_eval_batches, restore_best
from tssr_jax.evaluation.ranking import Ranker
from tssr_jax.memory.scores import Neighbours
from tssr_jax.models.apply import score
from tssr_jax.models.shared_ids import ids_as_read, sharing
from tssr_jax.recommending.recommender import Recommender
from tssr_jax.run import build_run
from tssr_jax.training.loop import train


def config_of(tmp_path, **fields):
    config = tiny_config(tmp_path)
    config.model.update(head="tied", id_neighbours=3)
    config.update_from_flattened_dict(fields)
    return config


def test_a_hand_worked_example():
    likeness = np.array([[0, 0], [0.6, 0.2], [0.6, 0], [0.2, 0]], np.float32)
    table = Neighbours(np.array([[0, 0], [2, 3], [1, 0], [1, 0]], np.int32), likeness)
    shared = sharing(table, 2)
    np.testing.assert_allclose(shared.likeness, [[0, 0], [0.75, 0.25], [1, 0], [1, 0]])
    vectors = jnp.array([[9.0], [1.0], [10.0], [100.0]])
    np.testing.assert_allclose(
        ids_as_read(vectors, None, shared)[:, 0], [9, 1 + 7.5 + 25, 10 + 1, 100 + 1]
    )
    # Who was never trained shares nothing, and reads the others.
    known = np.array([False, True, False, True])
    np.testing.assert_allclose(ids_as_read(vectors, known, shared)[:, 0], [0, 26, 1, 101])
    np.testing.assert_allclose(sharing(table, 1).likeness[:, 0], [0, 1, 1, 1])
    # Item 3 has no vector of its own to share.
    np.testing.assert_allclose(sharing(table, 2, 2).likeness[1], [1, 0])


@pytest.mark.parametrize("streams", [("id",), ("id", "content"), ("sum",)], ids=str)
def test_scores_are_those_of_a_plain_model_with_shared_vectors(tmp_path, streams):
    run = build_run(config_of(tmp_path, **{"model.streams": streams}))
    params = run.initial_params()
    table = np.array(params["token_embedding"]["embedding"])
    dense = np.zeros((len(table), len(table)))
    for item, (others, weights) in enumerate(
        zip(*map(np.asarray, run.content.neighbours), strict=True)
    ):
        np.add.at(dense[item], others, weights)
    assert (dense[1:].sum(axis=1) > 0.99).all() and (np.diag(dense) == 0).all()
    shared = {"token_embedding": {"embedding": jnp.asarray(table + dense @ table, jnp.float32)}}
    items = jnp.array([[0, 3, 9, 4], [1, 2, 3, 12]])
    plain = run.model.clone(id_neighbours=0)
    ours = score(run.model, params, items, run.content)
    others = score(plain, {**params, **shared}, items, run.content)
    np.testing.assert_allclose(ours, others, rtol=1e-4, atol=1e-6)
    assert np.abs(score(plain, params, items, run.content) - ours).max() > 1e-4


@pytest.mark.parametrize("way", [("pmap", 4, 1), ("shard_map", 6, 3)], ids=str)
def test_training_does_not_depend_on_the_devices(tmp_path, way):
    params = []
    for i, (parallel, devices, model_devices) in enumerate((("pmap", 1, 1), way)):
        config = config_of(tmp_path, **{"train.num_epochs": 1, "model.dropout_rate": 0.0})
        config.update(parallel=parallel, num_devices=devices, model_devices=model_devices)
        train(config, tmp_path / str(i))
        params.append(best_params(config, tmp_path / str(i)))
    rows = len(params[0]["token_embedding"]["embedding"])
    one, other = (jax.tree.map(lambda x: x[:rows] if x.ndim else x, own) for own in params)
    np.testing.assert_allclose(
        other["token_embedding"]["embedding"], one["token_embedding"]["embedding"], atol=2e-4
    )


@pytest.mark.parametrize("encoder", ["attention", "gru"])
def test_ranks_do_not_depend_on_the_batches(tmp_path, encoder):
    """Many batches come in another order, in windows of several widths, with ties or without."""
    fields = {"model.tie_orders": 3, "train.num_epochs": 1, "evaluate.list_length": 5}
    if encoder == "gru":
        fields |= {"model.encoder": "gru", "model.streams": ("sum",)}
    config = config_of(tmp_path, **fields)
    path = tmp_path / "raw" / "interactions.csv"
    rows = [line.split(",") for line in path.read_text().splitlines()[1:]]
    kept = [f"{u},{i},{60 * (int(t) // 20)}" for u, i, t in rows if stays(u, i)]
    path.write_text("\n".join(["user,item,timestamp", *kept]) + "\n")
    config.data.min_user_interactions = 3
    train(config, tmp_path / "run")
    run, params, _ = restore_best(tmp_path / "run")
    found = []
    for size in (64, 2):
        run.config.evaluate.batch_size = size
        batches = make_eval_batches(run, "test")
        found.append(Ranker(run)(params, batches))
    assert len({batch["item_sequence"].shape for batch in batches}) == 3
    np.testing.assert_array_equal(*(ranks for ranks, _ in found))
    np.testing.assert_array_equal(*(lists for _, lists in found))


def stays(user, item):
    """Every third user keeps a third of the items."""
    return int(user[1:]) % 3 > 0 or int(item[1:]) % 3 == 0


def test_new_items_read_the_ids_of_items_like_them(tmp_path):
    fields = {"train.num_epochs": 1, "model.memory": ("words",), "model.id_neighbours": 2}
    config = config_of(tmp_path, **fields)
    train(config, tmp_path / "run")
    before = Recommender.from_workdir(tmp_path / "run", batch_size=8)
    titles = dict(zip(before.items.ids, before.items.titles, strict=True))
    (tmp_path / "new.csv").write_text(f"item,title\nn1,{titles['i4']}\n")
    after = Recommender.from_workdir(tmp_path / "run", new_items=tmp_path / "new.csv", batch_size=8)
    old, new = before.vectors("id"), after.vectors("id")
    np.testing.assert_allclose(new[:-1], old, rtol=1e-6)
    # Items of one title come first.
    same = [i for i, item in enumerate(before.items.ids, 1) if titles[item] == titles["i4"]]
    own = best_params(config, tmp_path / "run")["token_embedding"]["embedding"]
    np.testing.assert_allclose(new[-1], own[same].mean(axis=0), rtol=1e-5)
    (found,) = after.recommend([["i4"]], top_k=len(old))
    assert "n1" in [x.item for x in found.items]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model.streams": ("content",)}, "has no id vectors"),
        ({"optimizer.lazy_rows": True}, "lazy_rows leaves out"),
        ({"model.id_neighbours": -1}, "at least 0"),
    ],
    ids=str,
)
def test_what_does_not_go_with_shared_ids(fields, message):
    config = default.get_config()
    config.model.id_neighbours = 10
    config.update_from_flattened_dict(fields)
    with pytest.raises(UserError, match=message):
        validate_config(config)


@pytest.mark.parametrize("streams", [("id",), ("id", "content"), ("sum",)], ids=str)
def test_training_ends_with_metrics_of_lists(tmp_path, streams):
    """Each kind of stream: their id vectors, as they are read, tell how alike lists are."""
    config = config_of(tmp_path, **{"model.streams": streams})
    config.train.num_epochs, config.evaluate.list_length = 1, 5
    metrics = train(config, tmp_path / "run")
    assert 0 < metrics["diversity_id@5"] < 2
