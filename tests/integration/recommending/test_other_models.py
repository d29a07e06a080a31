"""What is asked of models of one stream, of a recurrent, of a cut one, and of no model at all."""

import numpy as np
import pytest

from tests.support.raw_data import tiny_config
from tssr_jax.errors import UserError
from tssr_jax.evaluation.evaluate import evaluate, restore_best, run_baseline
from tssr_jax.models.apply import encode, head_weights
from tssr_jax.recommending.recommender import Recommender
from tssr_jax.training.loop import train

HISTORY = ["i3", "i4", "i5"]


@pytest.mark.parametrize(
    ("fields", "attended"),
    [
        ({"model.streams": ("sum",), "model.head": "tied"}, ["sum"]),
        ({"model.streams": ("content",), "model.head": "tied"}, ["content"]),
        ({"model.streams": ("id",), "model.encoder": "gru"}, []),
        (
            {
                "model.mixing": "concatenation",
                "parallel": "shard_map",
                "num_devices": 6,
                "model_devices": 3,
            },
            ["content", "id"],
        ),
    ],
    ids=str,
)
def test_lists_and_explanations(tmp_path, fields, attended):
    config = tiny_config(tmp_path)
    config.update_from_flattened_dict(fields)
    config.train.update(num_epochs=1, batch_size=18)
    metrics = train(config, tmp_path / "run")
    assert evaluate(tmp_path / "run") == metrics
    recommender = Recommender.from_workdir(tmp_path / "run", batch_size=8)
    recommender.warm_up()
    assert recommender.apart == ()
    run, params, _ = restore_best(tmp_path / "run", whole_catalogue=True)
    ids = run.data.item_ids
    sequence = np.array([[ids.index(item) + 1 for item in HISTORY]], np.int32)
    state = encode(run.model, params, sequence, run.content).fused[0, -1]
    weights = head_weights(run.model, params, run.content)
    scores = np.array(weights.score(state, "float32"))
    scores[[0, *sequence[0]]] = -np.inf
    best = np.argsort(-scores, kind="stable")[:4]
    (found,) = recommender.recommend([HISTORY], top_k=4)
    assert [x.item for x in found.items] == [ids[c - 1] for c in best]
    np.testing.assert_allclose([x.score for x in found.items], scores[best], rtol=1e-4)
    assert found.stream_weights is None
    told = recommender.explain(HISTORY)
    assert [item for item, _ in told.items] == HISTORY and told.id_weight is None
    assert sorted(told.attention) == attended
    for rows in told.attention.values():
        assert rows.shape == (len(told.layers), 3)
        np.testing.assert_allclose(rows.sum(axis=1), 1.0, rtol=1e-5)
    if fields.get("model.mixing") == "concatenation":
        with pytest.raises(UserError, match="none is scored by itself"):
            recommender.recommend([HISTORY], stream="id")


def test_a_baseline_is_not_asked(tmp_path):
    config = tiny_config(tmp_path)
    config.baseline.kind = "popularity"
    config.model.streams = ("id",)
    run_baseline(config, tmp_path / "run")
    with pytest.raises(UserError, match="a run of the baseline 'popularity', not of a model"):
        Recommender.from_workdir(tmp_path / "run")
