"""Models with memories: scores by the dense formula, the gate's lessons, what they must not see."""

import csv
import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.raw_data import take_again
from tests.support.runs import assert_same_run, final_state, metrics_of
from tests.support.with_memories import config_of, fixture_recommender, fixture_workdir
from tssr_jax.config.choices import MEMORIES
from tssr_jax.config.saved import load_config
from tssr_jax.data_pipeline.gate_rows import gate_rows, trained_lengths
from tssr_jax.errors import UserError
from tssr_jax.evaluation import ranking
from tssr_jax.evaluation.evaluate import evaluate, restore_best
from tssr_jax.evaluation.ranking import rank
from tssr_jax.evaluation.top_k import top_k
from tssr_jax.memory.co_occurrence import training_events
from tssr_jax.memory.popularity import Popularity, popularity_at
from tssr_jax.memory.repeats import repeat_rates, repeat_table
from tssr_jax.memory.scores import Neighbours
from tssr_jax.memory.tables import scale_of
from tssr_jax.models.apply import encode, head_weights, score
from tssr_jax.models.content import CONTENT_LAYOUT
from tssr_jax.models.recall import GATE
from tssr_jax.parallel.devices import ROWS, Devices
from tssr_jax.run import build_run
from tssr_jax.training.gate import PERIOD, gate_gradients
from tssr_jax.training.gate import ROWS as GATE_ROWS
from tssr_jax.training.gate_inputs import gate_inputs
from tssr_jax.training.loop import train, train_batches

MINUTE = 60.0

__all__ = ["fixture_recommender", "fixture_workdir"]


def dense_scores(workdir, history, minutes):
    """Scores of all classes by the formulas of `models.recall` and `memory.scores`, in loops."""
    run, params, _ = restore_best(workdir)
    decay, names = run.config.memory.decay, run.data.item_ids
    items = [names.index(item) + 1 for item in history][-run.model.max_length :]
    minutes = minutes[-len(items) :]
    outputs = encode(run.model, params, np.array([items], np.int32), run.content)
    weights = head_weights(run.model, params, run.content)
    neural = np.asarray(outputs.fused[0, -1] @ weights.kernel)
    length = max(len(items), int(run.content.memories.least_length))
    read = [1.0, np.log(length) - 1, float(len(items) > 1 and minutes[-1] == minutes[-2])]
    gate = {name: 10 * np.asarray(values) for name, values in params[GATE].items()}
    factors = np.exp(np.array(read) @ gate["factors"]) * [1, *[0.6] * 4, *[5] * 4]
    memories = run.content.memories
    offset, *exponents = gate["frequency"]
    assert np.abs(gate["frequency"][:-1]).min() > 0  # nobody takes an item again
    frequency = np.asarray(memories.frequency)
    scores = factors[0] * neural + np.asarray(weights.bias) + offset * frequency
    for i, name in enumerate(run.model.memory):
        sums = np.zeros(len(neural))
        if name == "popularity":
            sums = np.asarray(popularity_at(memories.popularity, np.array(minutes[-1:])))[0]
        else:
            classes, likeness = map(np.asarray, memories.tables[name])
            for s, item in enumerate(items):
                places = [len(items) - 1 - t for t in range(len(items)) if minutes[t] == minutes[s]]
                factor = (0.97 if name == "repeats" else decay) ** np.mean(places)
                np.add.at(sums, classes[item], factor * likeness[item])
        weights = factors[1 + i] * np.exp(exponents[i] * frequency)
        scores = scores + weights * np.log1p(factors[5 + i] * sums)
    return scores, items, names


@pytest.mark.parametrize("minutes", [[1, 2, 3, 4], [1, 7, 7, 7], [5, 5, 6, 10**6]])
def test_lists_are_those_of_the_dense_formula(workdir, recommender, minutes):
    history = ["i3", "i9", "i4", "i12"]
    seconds = [MINUTE * minute + 7 for minute in minutes]
    scores, items, names = dense_scores(workdir, history, minutes)
    run, params, _ = restore_best(workdir)
    whole = score(run.model, params, *map(jnp.array, ([items],)), run.content, jnp.array([minutes]))
    np.testing.assert_allclose(whole[0, 1:], scores[1:], rtol=1e-4)
    scores[[0, *items]] = -np.inf
    best = np.argsort(-scores, kind="stable")[:6]
    read = {"features": run.content, "times": jnp.array([minutes])}
    found, _ = top_k(run.model, params, jnp.array([items]), 6, **read)
    np.testing.assert_array_equal(found[0], best)
    ranks = [rank(run.model, params, jnp.array([items]), best[i : i + 1], **read) for i in (0, 5)]
    assert np.concatenate(ranks).tolist() == [0, 5]
    for batch in ([history], [["i1"], history, []]):
        times = [seconds if own is history else None for own in batch]
        found = recommender.recommend(batch, top_k=6, times=times)[batch.index(history)]
        assert [x.item for x in found.items] == [names[c - 1] for c in best]
        np.testing.assert_allclose([x.score for x in found.items], scores[best], rtol=1e-4)
    if minutes == [1, 2, 3, 4]:  # without times each item has a place of its own, up to now
        (without,) = recommender.recommend([history], top_k=6)
        late = [[MINUTE * (2**31 - 5 + minute) for minute in minutes]]
        (found,) = recommender.recommend([history], top_k=6, times=late)
        assert without == found


def test_a_network_of_experts_has_two_parts(tmp_path):
    """What it says by id vectors and by content vectors, each with a factor of its own."""
    run = build_run(config_of(tmp_path, **{"model.mixing": "experts", "model.head": "tied"}))
    rng, items = np.random.default_rng(0), np.array([[3, 9, 4]], np.int32)
    params = dict(run.initial_params())
    params[GATE] = {name: rng.normal(0, 0.05, x.shape) for name, x in params[GATE].items()}
    params["output"] = {"bias": jnp.array(rng.normal(size=run.data.num_items + 1))}
    assert params[GATE]["factors"].shape == (3, 2 + 2 * 4)
    found = score(run.model, params, items, run.content, np.array([[1, 2, 2]]))
    # Without a memory: each part's share of the score, beside that of its classes' frequency.
    nothing = run.content.memories._replace(
        tables={
            name: Neighbours(table.classes, jnp.zeros_like(table.likeness))
            for name, table in run.content.memories.tables.items()
        },
        popularity=Popularity(np.zeros(1, np.int32), np.zeros((2, run.data.num_items + 1))),
    )
    content = dataclasses.replace(run.content, memories=nothing)
    network = score(run.model, params, items, content, np.array([[1, 2, 2]]))
    assert (found[0, 1:] >= network[0, 1:]).all() and (found > network).any()
    fused = np.asarray(encode(run.model, params, items, run.content).fused[0, -1])
    kernel, bias = map(np.asarray, head_weights(run.model, params, run.content))
    width = run.model.d_model
    assert fused.shape == (2 * width,)
    length = max(3, int(nothing.least_length))
    read = np.array([1.0, np.log(length) - 1, 1.0])
    factors = np.exp(10 * read @ params[GATE]["factors"][:, :2])
    expected = factors[0] * (fused[:width] @ kernel[:width])
    expected += factors[1] * (fused[width:] @ kernel[width:]) + bias
    expected += 10 * params[GATE]["frequency"][0] * np.asarray(nothing.frequency)
    np.testing.assert_allclose(network[0], expected, rtol=1e-4, atol=1e-5)


def test_a_history_of_one_item(workdir, recommender):
    """Whatever the width of the window, nothing stands before it."""
    run, params, _ = restore_best(workdir)
    item = jnp.array([[run.data.item_ids.index("i3") + 1]])
    narrow = score(run.model, params, item, run.content, jnp.array([[5]]))
    wide = score(
        run.model, params, jnp.pad(item, ((0, 0), (3, 0))), run.content, jnp.array([[0, 0, 0, 5]])
    )
    np.testing.assert_allclose(narrow, wide, rtol=1e-5)
    (found,) = recommender.recommend([["i3"]], top_k=1, times=[[300.0]])
    np.testing.assert_allclose(
        found.items[0].score, np.delete(np.asarray(wide)[0], [0, int(item[0, 0])]).max(), rtol=1e-5
    )


def test_it_resumes_exactly(tmp_path):
    config = config_of(tmp_path, **{"train.time_noise": (0.0, 1e6), "train.packing": True})
    config.train.update(num_epochs=2, checkpoint_every_steps=2)
    train(config, tmp_path / "whole")
    config.train.num_epochs = 1
    train(config, tmp_path / "parts")
    config.train.num_epochs = 2
    metrics = train(config, tmp_path / "parts")
    assert_same_run(config, tmp_path / "whole", tmp_path / "parts")
    assert evaluate(tmp_path / "parts") == metrics
    assert "train/memory" in metrics_of(tmp_path / "parts")[0]
    state, _ = final_state(config, tmp_path / "parts")
    assert np.abs(state.params[GATE]["factors"]).max() > 0


def test_without_memories_there_is_nothing_of_them(tmp_path):
    config = config_of(tmp_path, **{"model.memory": ()})
    run = build_run(config)
    assert GATE not in run.initial_params() and run.content.memories is None
    assert gate_inputs(run) is None
    assert "gate" not in next(train_batches(run).iterate(0))
    lengths = run.sequences.lengths
    np.testing.assert_array_equal(trained_lengths(run.sequences, config), lengths - 2)


@pytest.mark.parametrize("way", [("pmap", 4, 1), ("shard_map", 4, 1), ("shard_map", 6, 3)], ids=str)
def test_gradients_depend_neither_on_devices_nor_on_tiles(tmp_path, way, monkeypatch):
    config = take_again(config_of(tmp_path, **{"model.tie_orders": 3, "model.head": "tied"}))
    results = []
    for devices, tile in ((Devices("pmap", 1), ranking.SCORES_PER_TILE), (Devices(*way), 16)):
        monkeypatch.setattr(ranking, "SCORES_PER_TILE", tile)
        config.update(parallel=way[0], num_devices=devices.num_devices)
        config.model_devices = way[2] if devices.num_devices > 1 else 1
        run = build_run(config)
        params = run.devices.build(run.initial_params, run.params_layout)
        rows = {name: values[:GATE_ROWS] for name, values in gate_inputs(run).arrays.items()}
        rows = {name: np.resize(x, (12, *x.shape[1:])) for name, x in rows.items()}
        rows["times"][::2, -1] = rows["times"][::2, -2]
        rows["row_mask"] = np.arange(12) != 5
        rows["as_new"] = np.arange(12) % 5 == 0
        model = run.model

        def body(params, rows, content, model=model):
            return gate_gradients(model, params[GATE], params, rows, content, keep_seen=True)

        step = run.devices.run(body, inputs=(run.params_layout, ROWS, CONTENT_LAYOUT))
        placed = next(run.devices.ahead(iter([rows])))
        results.append(jax.device_get(step(params, placed, run.content)))
    (grads, term), (others, other) = results
    assert term.weight == other.weight == 11
    np.testing.assert_allclose(other.sum, term.sum, rtol=1e-5)
    for name, own in grads.items():
        np.testing.assert_allclose(others[name], own, rtol=1e-4, atol=1e-6)
        assert np.abs(own).min() > 0


def test_the_gradient_is_that_of_the_loss(tmp_path):
    """By differences of the loss, for each of the gate's parameters."""
    run = build_run(config_of(tmp_path))
    params = run.initial_params()
    rows = {name: jnp.asarray(values) for name, values in gate_inputs(run).arrays.items()}
    rows["row_mask"] = jnp.ones(len(rows["labels"]), bool)
    rng = np.random.default_rng(0)
    gate = {name: jnp.array(rng.normal(0, 0.05, x.shape)) for name, x in params[GATE].items()}

    @jax.jit
    def compute(gate):
        grads, term = gate_gradients(run.model, gate, params, rows, run.content)
        return grads, term.mean()

    def loss(gate):
        return float(compute(gate)[1])

    grads, _ = compute(gate)
    for name, values in gate.items():
        for place in np.ndindex(values.shape):
            step = jnp.zeros_like(values).at[place].set(3e-3)
            near = (loss({**gate, name: values + sign * step}) for sign in (1, -1))
            difference = (next(near) - next(near)) / 6e-3
            np.testing.assert_allclose(grads[name][place], difference, rtol=0.02, atol=2e-3)


def learnt_gate(run, rows, steps=150):
    """Loss of the gate's rows before and after fitting it to them."""
    params = run.initial_params()
    rows = {name: jnp.asarray(values) for name, values in rows.items()}
    rows["row_mask"] = jnp.ones(len(rows["labels"]), bool)
    step = jax.jit(lambda gate: gate_gradients(run.model, gate, params, rows, run.content))
    gate, losses = params[GATE], []
    for _ in range(steps):
        grads, term = step(gate)
        losses.append(float(term.mean()))
        gate = jax.tree.map(lambda x, g: x - 0.01 * g, gate, grads)
    return losses[0], losses[-1]


def test_shuffled_labels_teach_the_gate_to_ignore_co_occurrence(tmp_path):
    """Users take items at random: what others took says nothing.

    If the users' own pairs were counted, the memory would seem to know the answers.
    """
    rng = np.random.default_rng(0)
    config = config_of(tmp_path, **{"model.memory": ("co_occurrence",), "memory.neighbours": 80})
    config.memory.shrinkage = 1.0
    with (tmp_path / "raw" / "interactions.csv").open("w") as file:
        writer = csv.writer(file)
        writer.writerow(["user", "item", "timestamp"])
        for user in range(1500):
            taken = rng.choice(80, 7, replace=False)
            writer.writerows((f"u{user}", f"i{item}", 86400 * t) for t, item in enumerate(taken))
    titles = "".join(f"i{item},thing\n" for item in range(80))
    (tmp_path / "raw" / "items.csv").write_text("item,title\n" + titles)
    run = build_run(config)
    rows = dict(gate_inputs(run).arrays)
    uniform = np.log(80 - 4)  # the items that a history of four has not seen
    _, without_own = learnt_gate(run, rows)
    assert without_own > uniform - 0.05
    memories, items = run.content.memories, rows["item_sequence"]
    classes, likeness = map(np.asarray, memories.tables["co_occurrence"])
    there = classes[items] == rows["labels"][:, None, None]
    weights = run.config.memory.decay ** np.arange(items.shape[1])[::-1] * (items > 0)
    with_own = (weights * np.where(there, likeness[items], 0.0).sum(axis=2)).sum(axis=1)
    assert (with_own >= rows["label_scores"][:, 0]).all()
    rows["label_scores"] = with_own.astype(np.float32)[:, None]
    assert learnt_gate(run, rows)[1] < without_own - 0.2


def test_what_the_gate_learns_from_no_window_has(tmp_path):
    config = config_of(tmp_path, **{"train.windows": "strided", "train.window_stride": 2})
    config.model.max_length = 3
    run = build_run(config)
    rows = gate_rows(run.sequences, config, run.data.num_items)
    number = -(-(run.sequences.lengths - 2).sum() // 64)
    assert len(rows.users) == number > 1
    lengths = run.sequences.lengths.tolist()
    whole = {
        user: run.sequences.rows(np.array([user])).windows(np.array([length]), length).numpy()[0]
        for user, length in enumerate(lengths)
    }
    for user, items, label in zip(rows.users, rows.items, rows.labels, strict=True):
        assert whole[user][-3] == label
        np.testing.assert_array_equal(items, whole[user][-6:-3])
    batches = train_batches(run)
    pairs = set()
    for batch, _ in zip(batches.iterate(0), range(batches.steps_per_epoch), strict=False):
        assert batch["gate"]["labels"].shape == (GATE_ROWS,)
        inputs, labels = batch["item_sequence"], batch["labels"]
        pairs |= {
            (int(a), int(b)) for a, b in zip(inputs[inputs > 0], labels[inputs > 0], strict=True)
        }
    # A gate's step reads the next rows, at each `PERIOD`-th step of the network.
    batches = [batch for batch, _ in zip(train_batches(run).iterate(0), range(9), strict=False)]
    order = np.concatenate([batch["gate"]["labels"] for batch in batches[::PERIOD]])
    np.testing.assert_array_equal(order, np.resize(rows.labels, order.size))
    trained = trained_lengths(run.sequences, config)
    expected = {
        (int(a), int(b))
        for user, items in whole.items()
        for a, b in itertools.pairwise(items[: trained[user]])
    }
    assert pairs == expected
    assert (run.sequences.lengths - 2 - trained).sum() == number


def test_an_item_that_the_user_had_before_is_no_label(tmp_path):
    config = config_of(tmp_path)
    path = tmp_path / "raw" / "interactions.csv"
    rows = [f"u{user},i{user % 5 + step},{60 * step}" for user in range(30) for step in range(6)]
    again = [
        f"v{user},i{user % 5 + step % 3},{60 * step}" for user in range(30) for step in range(6)
    ]
    path.write_text("\n".join(["user,item,timestamp", *rows, *again]) + "\n")
    config.data.min_item_interactions = 1
    run = build_run(config)
    users = gate_rows(run.sequences, config, run.data.num_items).users
    names = {run.data.user_ids[user][0] for user in users}
    assert names == {"u"}
    # Where it may be recommended it is one; users had it once before.
    config.evaluate.keep_seen = True
    rows = gate_rows(run.sequences, config, run.data.num_items)
    had = np.array([run.data.user_ids[user][0] == "v" for user in rows.users])
    assert 0 < had.sum() < had.size
    np.testing.assert_array_equal(rows.before, had)
    np.testing.assert_array_equal((rows.items == rows.labels[:, None]).sum(axis=1), had)


def test_labels_that_users_had_before_have_scores_without_themselves(tmp_path):
    """By repeats: as if the label were not among the interactions."""
    config = take_again(config_of(tmp_path))
    run = build_run(config)
    found = gate_inputs(run).arrays["label_scores"]
    rows = gate_rows(run.sequences, config, run.data.num_items)
    assert found.shape == (len(rows.users), 2) and {*rows.before.tolist()} >= {0, 1}
    whole = training_events(run.sequences)
    ends = run.sequences.splits.trained.copy()
    for row, user in enumerate(rows.users):
        ends[user] -= 1
        without = training_events(run.sequences, None, ends)
        ends[user] += 1
        places = np.arange(rows.items.shape[1])[::-1]  # no two are of one time
        had = 0.97**places * (rows.items[row] == rows.labels[row])
        rate = repeat_rates(without, run.data.num_items)[rows.labels[row]]
        scale = scale_of(repeat_table(whole, run.data.num_items))
        # The label counts among all interactions: in the mean rate, which differs by 1 in 200.
        np.testing.assert_allclose(found[row, 1], had.sum() * rate / scale, rtol=0.02)


@pytest.mark.parametrize("held_back", [1, 2])
def test_no_time_of_a_target_reaches_the_model(tmp_path, held_back):
    """Times of the newest interactions change, within their order: training and ranks don't."""
    ranks = []
    for shift in (0, 100_000):
        folder = tmp_path / str(shift)
        config = config_of(folder, **{"train.num_epochs": 1, "train.time_noise": (0.0, 7.0)})
        path = folder / "raw" / "interactions.csv"
        rows = [line.split(",") for line in path.read_text().splitlines()[1:]]
        newest = {}
        for user, _, time in rows:
            newest.setdefault(user, []).append(int(time))
        with path.open("w") as file:
            file.write("user,item,timestamp\n")
            for user, item, time in rows:
                last = sorted(newest[user])[-held_back:]
                late = shift if int(time) in last else 0
                file.write(f"{user},{item},{int(time) + late}\n")
        train(config, folder / "run")
        with np.load(folder / "run" / "per_user.npz") as users:
            ranks.append({name: users[name] for name in ("validation_rank", "test_rank")})
        ranks[-1]["losses"] = json.dumps(metrics_of(folder / "run"))
    seen = ["losses", "validation_rank"] + ["test_rank"] * (held_back == 1)
    for name in seen:
        np.testing.assert_array_equal(ranks[0][name], ranks[1][name])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"content.text.trained_layers": -1}, "memories go with frozen encoders only"),
        (
            {"data.min_user_interactions": 3, "data.min_item_interactions": 1},
            "found no user to learn from",
        ),
    ],
    ids=str,
)
def test_what_does_not_go_with_memories(tmp_path, fields, message):
    config = config_of(tmp_path, **fields)
    if "data.min_user_interactions" in fields:
        rows = (f"u{user},i{user + step},{step}\n" for user in range(5) for step in range(4))
        path = tmp_path / "raw" / "interactions.csv"
        path.write_text("user,item,timestamp\n" + "".join(rows))
    with pytest.raises(UserError, match=message):
        train(config, tmp_path / "run")


def test_a_run_is_saved_with_its_memories(workdir):
    config = load_config(workdir)
    assert tuple(config.model.memory) == MEMORIES and config.memory.neighbours == 6
