"""Users who take their own few items again and again: what the memory of repeats brings."""

import csv
import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.raw_data import tiny_config
from tssr_jax.memory.scores import Neighbours
from tssr_jax.models.apply import score
from tssr_jax.models.recall import GATE
from tssr_jax.recommending.recommender import Recommender
from tssr_jax.training.loop import train

NUM_ITEMS, NUM_USERS = 60, 120


@pytest.fixture(name="own", scope="module")
def fixture_own():
    """Three items of each user, at random."""
    rng = np.random.default_rng(0)
    return [rng.choice(NUM_ITEMS, 3, replace=False) for _ in range(NUM_USERS)]


def config_of(folder, own, memory):
    config = tiny_config(folder)
    config.model.memory = memory
    config.evaluate.keep_seen = True
    config.train.num_epochs = 4
    rng = np.random.default_rng(1)
    with (folder / "raw" / "interactions.csv").open("w") as file:
        writer = csv.writer(file)
        writer.writerow(["user", "item", "timestamp"])
        for user, items in enumerate(own):
            taken = [*items, *rng.choice(items, 6)]
            writer.writerows((f"u{user}", f"i{item}", 60 * t) for t, item in enumerate(taken))
    titles = "".join(f"i{item},thing {item}\n" for item in range(NUM_ITEMS))
    (folder / "raw" / "items.csv").write_text("item,title\n" + titles)
    config.data.min_item_interactions = 1
    return config


def test_what_is_taken_again_comes_first(tmp_path, capsys, own):
    found = {}
    for name, memory in (("without", ()), ("with", ("repeats",))):
        (tmp_path / name).mkdir()
        found[name] = train(config_of(tmp_path / name, own, memory), tmp_path / name / "run")
    assert found["with"]["recall@5"] == 1.0 > found["without"]["recall@5"] + 0.3
    output = capsys.readouterr().out
    assert "own items, test" in output and "item-kNN, test" in output

    recommender = Recommender.from_workdir(tmp_path / "with" / "run")
    history = [f"i{item}" for item in own[0]]
    (shown,) = recommender.recommend([history], top_k=3)
    assert {x.item for x in shown.items} == {*history}
    (hidden,) = recommender.recommend([history], top_k=3, keep_seen=False)
    assert not {x.item for x in hidden.items} & {*history}
    check_scores(recommender, [*history, history[1]])
    ((reason,),) = recommender.because(history, history[:1])
    assert (reason.item, reason.memory) == (history[0], "repeats") and reason.score > 0


def check_scores(recommender, history):
    """What the memory adds to each item's score, by the formulas, in loops."""
    run, (params, content, _) = recommender.run, recommender.tables
    classes = [run.data.item_ids.index(item) + 1 for item in history]
    batch = jnp.array([classes]), content, jnp.array([[1, 2, 3, 4]])
    table = content.memories.tables["repeats"]
    nothing = Neighbours(table.classes, jnp.zeros_like(table.likeness))
    without = content.memories._replace(tables={"repeats": nothing})
    without = dataclasses.replace(content, memories=without)
    found = score(run.model, params, batch[0], *batch[1:])
    added = np.asarray(found - score(run.model, params, batch[0], without, batch[2]))[0]
    gate = {name: 10 * np.asarray(values) for name, values in params[GATE].items()}
    length = max(4, int(content.memories.least_length))
    factors = np.exp(np.array([1.0, np.log(length) - 1, 0.0]) @ gate["factors"])
    frequency, expected = np.asarray(content.memories.frequency), np.zeros(added.size)
    for item in classes:
        taken = sum(0.97 ** (3 - place) for place in range(4) if classes[place] == item)
        rate = np.asarray(table.likeness)[item, 0]
        trust = 0.6 * factors[-2] * np.exp(gate["frequency"][1] * frequency[item])
        expected[item] = trust * np.log1p(5 * factors[-1] * rate * taken)
    assert expected[classes].min() > 0.1
    np.testing.assert_allclose(added[1:], expected[1:], rtol=1e-3, atol=1e-4)
