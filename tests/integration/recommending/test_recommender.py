"""Recommendations against whole sorts of the model's scores, and what is told with them."""

import jax
import numpy as np
import polars as pl
import pytest

from tests.support.raw_data import tiny_config, write_image_model, write_images
from tests.support.runs import best_params
from tssr_jax.config import default
from tssr_jax.config.saved import load_config
from tssr_jax.errors import UserError
from tssr_jax.evaluation.evaluate import restore_best
from tssr_jax.models.apply import attention, encode, head_weights
from tssr_jax.recommending.items import Items
from tssr_jax.recommending.new_items import read_new_items
from tssr_jax.recommending.recommender import Recommender
from tssr_jax.training.loop import train

HISTORIES = [
    ["i3", "i4", "i5"],
    ["i1"],
    ["i9", "nothing", "i10"],
    [],
    ["nothing"],
    [f"i{i}" for i in range(15)],  # longer than the window
    ["i7", "i7", "i8"],
]


def dense(workdir, histories):
    """Scores of all classes and gates, one history at a time, without batches."""
    run, params, _ = restore_best(workdir)
    content, model = run.content, run.model
    ids = {item: i for i, item in enumerate(run.data.item_ids, 1)}
    weights = head_weights(model, params, content)
    results = []
    for history in histories:
        known = [ids[item] for item in history if item in ids]
        sequence = np.array([known[-model.max_length :]], np.int32)
        outputs = encode(model, params, sequence, content)
        scores = np.array(weights.score(outputs.fused[0, -1], "float32"))
        results.append((known, scores, float(outputs.gate[0, -1].mean())))
    return run.data, results


@pytest.mark.parametrize("keep_seen", [False, True])
def test_lists_are_those_of_a_sort(workdir, recommender, keep_seen):
    lists = recommender.recommend(HISTORIES, top_k=5, keep_seen=keep_seen)
    model_ranks = [i for i in range(len(HISTORIES)) if i not in (3, 4)]
    data, expected = dense(workdir, [HISTORIES[i] for i in model_ranks])
    for i, (known, scores, gate) in zip(model_ranks, expected, strict=True):
        scores[[0] if keep_seen else [0, *known]] = -np.inf
        best = np.argsort(-scores, kind="stable")[:5]
        found = lists[i]
        assert [item.item for item in found.items] == [data.item_ids[c - 1] for c in best]
        assert [item.title for item in found.items] == [data.titles[c - 1] for c in best]
        np.testing.assert_allclose([x.score for x in found.items], scores[best], rtol=1e-4)
        assert found.stream_weights["id"] == pytest.approx(gate, abs=1e-5)
        assert sum(found.stream_weights.values()) == pytest.approx(1)
        assert not found.popular
    assert lists[2].unknown == ("nothing",) and lists[0].unknown == ()


def test_without_a_known_item_the_popular_ones_are_told_as_such(workdir, recommender):
    lists = recommender.recommend(HISTORIES, top_k=4)
    sequences = workdir.parent / "raw" / "interactions.csv"
    times = {}
    for line in sequences.read_text().splitlines()[1:]:
        user, item, time = line.split(",")
        times.setdefault(user, []).append((int(time), item))
    counts = {}
    for rows in times.values():
        for _, item in sorted(rows)[:-2][-9:]:  # the newest window and its last label
            counts[item] = counts.get(item, 0) + 1
    for i in (3, 4):
        assert lists[i].popular and lists[i].stream_weights is None
        assert [x.score for x in lists[i].items] == sorted(counts.values(), reverse=True)[:4]
        assert all(counts[x.item] == x.score for x in lists[i].items)
    assert lists[4].unknown == ("nothing",)


@pytest.mark.parametrize("stream", ["id", "content"])
def test_what_one_stream_has_found(workdir, recommender, stream):
    run, params, _ = restore_best(workdir)
    ids = run.data.item_ids
    sequence = np.array([[ids.index(item) + 1 for item in HISTORIES[0]]], np.int32)
    outputs = encode(run.model, params, sequence, run.content)
    weights = head_weights(run.model, params, run.content)
    scores = np.array(weights.score(getattr(outputs, stream).crossed[0, -1], "float32"))
    scores[[0, *sequence[0]]] = -np.inf
    (found,) = recommender.recommend(HISTORIES[:1], top_k=5, stream=stream)
    best = np.argsort(-scores, kind="stable")[:5]
    assert [x.item for x in found.items] == [ids[c - 1] for c in best]
    (fused,) = recommender.recommend(HISTORIES[:1], top_k=5)
    assert fused.items != found.items


def test_lists_do_not_depend_on_the_batch(workdir, recommender):
    histories = HISTORIES * 3
    whole = recommender.recommend(histories, top_k=3)
    assert whole[:7] == whole[7:14] == whole[14:]
    for history, expected in zip(HISTORIES, whole, strict=False):
        (alone,) = recommender.recommend([history], top_k=3)
        assert [x.item for x in alone.items] == [x.item for x in expected.items]


def test_a_smaller_choice(recommender):
    (everything,) = recommender.recommend([["i3", "i4"]], top_k=18)
    order = [x.item for x in everything.items]
    only = [order[5], order[2], "i3", "nothing"]
    restricted = recommender.restricted(only=only, never=[order[9]])
    (some,) = restricted.recommend([["i3", "i4"]], top_k=5)
    assert [x.item for x in some.items] == [order[2], order[5]]  # i3 is seen
    (popular,) = restricted.recommend([[]], top_k=5)
    assert {x.item for x in popular.items} == {order[2], order[5], "i3"}
    (others,) = recommender.restricted(never=order[:2]).recommend([["i3", "i4"]], top_k=3)
    assert [x.item for x in others.items] == order[2:5]
    (again,) = recommender.recommend([["i3", "i4"]], top_k=18)
    assert again == everything  # what was restricted is another recommender
    (same,) = recommender.restricted(never=["nothing"]).recommend([["i3", "i4"]], top_k=18)
    assert same == everything
    with pytest.raises(UserError, match="names no item of the catalogue"):
        recommender.restricted(only=["nothing"])
    with pytest.raises(UserError, match="No item may be recommended"):
        recommender.restricted(only=order[:1], never=order[:1])


def test_a_list_is_no_longer_than_the_catalogue(recommender):
    (longest,) = recommender.recommend([["i1"]], top_k=500)
    assert len(longest.items) == 19
    with pytest.raises(UserError, match="top_k is 0; it must be a whole number, at least 1"):
        recommender.recommend([["i1"]], top_k=0)


def test_ids_as_files_and_programs_write_them(recommender):
    expected = recommender.recommend([["i1", "i2"]], top_k=3)
    assert recommender.recommend([(" i1", "i2\n")], top_k=3) == expected
    assert recommender.recommend([[7]], top_k=3)[0].unknown == ("7",)
    for wrong, message in (
        (["i1"], r"'i1' is one id where a list of ids belongs: put it"),
        ([None], "None is no list of ids"),
        (None, "Histories are of type NoneType; give lists of ids, or a DataFrame"),
        (pl.LazyFrame({"user": ["a"], "item": ["i1"]}), "Histories are of type LazyFrame"),
        ([[None]], "None is no id of an item"),
        ([[1.5]], "1.5 is no id of an item"),
    ):
        with pytest.raises(UserError, match=message):
            recommender.recommend(wrong)
    with pytest.raises(UserError, match="is one id where a list"):
        recommender.explain("i1")
    with pytest.raises(UserError, match="is one id where a list"):
        recommender.because(["i1"], "i2")
    assert recommender.recommend(iter([iter(["i1", "i2"])]), top_k=3) == expected
    for top_k in ("5", 2.5, True, -1):
        with pytest.raises(UserError, match="it must be a whole number, at least 1"):
            recommender.recommend([["i1"]], top_k=top_k)
    with pytest.raises(UserError, match="stream is 'ids'; known: fused, id, content"):
        recommender.recommend([["i1"]], stream="ids")
    for times in (["1"], "1", [float("nan")], [1e13]):
        with pytest.raises(UserError, match="Times of a history are"):
            recommender.recommend([["i1"]], times=[times])


@pytest.mark.parametrize("space", ["scores", "id", "content"])
def test_similar_items(workdir, recommender, space):
    run, params, _ = restore_best(workdir)
    own = {
        "scores": np.array(head_weights(run.model, params, run.content).kernel.T),
        "id": np.array(params["token_embedding"]["embedding"]),
        "content": np.array(run.content.features["text"]),
    }[space]
    if space == "id":
        own[0] = 0.0  # padding is no item
    np.testing.assert_allclose(recommender.vectors(space), own, atol=1e-6)
    place = run.data.item_ids.index("i6") + 1
    norms = np.linalg.norm(own, axis=1) * np.linalg.norm(own[place])
    cosines = np.where(norms > 0, own @ own[place] / np.where(norms > 0, norms, 1), -np.inf)
    cosines[[0, place]] = -np.inf
    found = recommender.similar_items("i6", top_k=4, space=space)
    np.testing.assert_allclose([x.score for x in found], np.sort(cosines)[::-1][:4], atol=1e-5)
    for item in found:
        at = run.data.item_ids.index(item.item) + 1
        assert item.score == pytest.approx(cosines[at], abs=1e-5)
    with pytest.raises(UserError, match="'nothing' is not in the catalogue of 20 items"):
        recommender.similar_items("nothing")


@pytest.mark.parametrize("length", [3, 12])
def test_an_explanation(workdir, recommender, length):
    history = ["nothing", *(f"i{i}" for i in range(length))]
    told = recommender.explain(history)
    run, params, _ = restore_best(workdir)
    model, ids = run.model, run.data.item_ids
    window = history[1:][-model.max_length :]
    assert [item for item, _ in told.items] == window and told.unknown == ("nothing",)
    sequence = np.array([[ids.index(item) + 1 for item in window]], np.int32)
    gate = encode(model, params, sequence, run.content).gate[0].mean(axis=-1)
    np.testing.assert_allclose(told.id_weight, gate, atol=1e-6)
    weights = np.asarray(attention(model, params, sequence, run.content))
    assert told.layers == ("self 1", "cross 1") and told.attention.keys() == {"id", "content"}
    np.testing.assert_allclose(told.attention["content"], weights[:, 1, 0, -1], atol=1e-6)
    with pytest.raises(UserError, match="nothing to explain"):
        recommender.explain(["nothing"])


def test_new_items_are_ranked_by_their_content(workdir, recommender, tmp_path):
    new = tmp_path / "new.csv"
    titles = dict(zip(recommender.items.ids, recommender.items.titles, strict=True))
    new.write_text(f'item,title\nn1,{titles["i4"]}\n7,"red, big"\n')
    more = Recommender.from_workdir(workdir, new_items=new, batch_size=8)
    assert len(more.items.ids) == 22
    params = best_params(load_config(workdir), workdir)
    place = recommender.items.class_of("i4")
    # The same title gives the same content vector; an id's vector it has none.
    of_text = recommender.vectors("scores")[place] - params["token_embedding"]["embedding"][place]
    np.testing.assert_allclose(
        more.vectors("scores")[more.items.class_of("n1")], of_text, atol=1e-5
    )
    old, larger = (r.recommend([["i3", "i5"]], top_k=18)[0] for r in (recommender, more))
    kept = [x for x in larger.items if x.item not in {"n1", "7"}]
    assert [x.item for x in kept] == [x.item for x in old.items][: len(kept)]
    (all_of_them,) = more.recommend([["i3", "i5"]], top_k=22)
    assert {"n1", "7"} <= {x.item for x in all_of_them.items}
    (by_new,) = more.recommend([["n1"]], top_k=3)
    assert not by_new.popular and "n1" not in {x.item for x in by_new.items}
    (popular,) = more.recommend([[]], top_k=22)
    assert {x.item for x in popular.items[-2:]} == {"n1", "7"}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("item,title\ni4,red\n", "1 of the 1 new items are in the catalogue already: 'i4'"),
        ("item,title\nn1,red\nn1,blue\n", "'n1' twice, in lines 2 and 3"),
        ("id,title\nn1,red\n", "no column 'item'"),
    ],
)
def test_new_items_that_make_no_sense(workdir, tmp_path, table, message):
    (tmp_path / "new.csv").write_text(table)
    with pytest.raises(UserError, match=message):
        Recommender.from_workdir(workdir, new_items=tmp_path / "new.csv")


def test_new_items_whose_number_is_there_are_refused():
    items = Items(["3.0", "a"], ["", ""], np.zeros(3, np.int64))
    with pytest.raises(UserError, match="1 of the 2 new items are in the catalogue already: '003'"):
        items.with_more(["003", "A"], ["", ""])
    assert items.with_more(["4", "A"], ["", ""]).ids == ["3.0", "a", "4", "A"]


def test_new_items_are_described_as_the_catalogue_is(tmp_path):
    """Columns in another order, and others beside: only those that the catalogue's texts have."""
    config = default.get_config()
    (tmp_path / "new.csv").write_text("item,price,genre,title\nn1,9.99,toys,red car\n")
    told = read_new_items(tmp_path / "new.csv", config).row(0, named=True)
    assert told == {"item": "n1", "title": "red car", "text": "red car. toys", "image": ""}
    config.data.text_fields = ("price", "title")
    told = read_new_items(tmp_path / "new.csv", config).row(0, named=True)
    assert told["title"] == "9.99" and told["text"] == "9.99. red car"


def test_new_items_of_a_table_with_a_column_that_is_called_like_ours(tmp_path):
    config = default.get_config()
    config.data.item_column = "sku"
    (tmp_path / "new.csv").write_text("item,sku,title\n7,n1,red car\n")
    told = read_new_items(tmp_path / "new.csv", config).row(0, named=True)
    assert (told["item"], told["title"]) == ("n1", "red car")


def test_new_items_with_pictures_and_without(tmp_path):
    config = tiny_config(tmp_path)
    raw = tmp_path / "raw"
    lines = (raw / "items.csv").read_text().splitlines()
    rows = [f"{line},p{i}.png" for i, line in enumerate(lines[1:])]
    (raw / "items.csv").write_text("\n".join(["item,title,image", *rows]) + "\n")
    write_images(raw, [f"p{i}.png" for i in range(20)])
    config.content.modalities = ("text", "image")
    config.content.image.model_file = str(write_image_model(tmp_path / "resnet.safetensors"))
    config.model.head = "tied"
    config.train.num_epochs = 1
    train(config, tmp_path / "run")
    params = best_params(config, tmp_path / "run")
    table = params["token_embedding"]["embedding"]
    # The same title with and without its picture, and a title without one.
    title = lines[1 + 4].split(",")[1]
    (tmp_path / "new.csv").write_text(f"item,title,image\nn1,{title},p4.png\nn2,{title},\n")
    more = Recommender.from_workdir(tmp_path / "run", new_items=tmp_path / "new.csv")
    vectors = more.vectors("scores")
    old = more.items.class_of("i4")
    new, bare = (vectors[more.items.class_of(item)] for item in ("n1", "n2"))
    np.testing.assert_allclose(new, vectors[old] - table[old], atol=1e-5)
    assert np.abs(new - bare).max() > 1e-3
    (tmp_path / "plain.csv").write_text(f"item,title\nn3,{title}\n")  # no pictures at all
    plain = Recommender.from_workdir(tmp_path / "run", new_items=tmp_path / "plain.csv")
    np.testing.assert_allclose(plain.vectors("scores")[-1], bare, atol=1e-6)
    assert len(plain.recommend([["n3", "i2"]], top_k=21, keep_seen=True)[0].items) == 21


def test_several_devices_and_a_model_of_ids_only(tmp_path):
    config = tiny_config(tmp_path)
    config.model.streams = ("id",)
    config.train.num_epochs = 1
    config.num_devices = 4
    train(config, tmp_path / "run")
    recommender = Recommender.from_workdir(tmp_path / "run", batch_size=6)
    lists = recommender.recommend(HISTORIES[:3], top_k=4)
    assert all(x.stream_weights is None and len(x.items) == 4 for x in lists)
    run, params, _ = restore_best(tmp_path / "run")
    ids = run.data.item_ids
    sequence = np.array([[ids.index(item) + 1 for item in HISTORIES[0]]], np.int32)
    state = encode(run.model, params, sequence, None).fused[0, -1]
    scores = np.array(head_weights(run.model, params, None).score(state, "float32"))
    scores[[0, *sequence[0]]] = -np.inf
    best = np.argsort(-scores, kind="stable")[:4]
    assert [x.item for x in lists[0].items] == [ids[c - 1] for c in best]
    (tmp_path / "new.csv").write_text("item,title\nn1,red\n")
    with pytest.raises(UserError, match="can't rank new items"):
        Recommender.from_workdir(tmp_path / "run", new_items=tmp_path / "new.csv")
    with pytest.raises(UserError, match="one stream, 'id'; ask for 'fused'"):
        recommender.recommend([["i1"]], stream="content")
    with pytest.raises(UserError, match="has no vectors 'content'"):
        recommender.similar_items("i1", space="content")


@pytest.mark.parametrize("id_reads_content", [False, True])
def test_experts_together_and_alone(tmp_path, id_reads_content):
    config = tiny_config(tmp_path)
    config.model.update(head="tied", mixing="experts", content_hidden=6)
    config.model.id_reads_content = id_reads_content
    config.train.num_epochs = 1
    train(config, tmp_path / "run")
    recommender = Recommender.from_workdir(tmp_path / "run", batch_size=8)
    run, params, _ = restore_best(tmp_path / "run")
    ids = run.data.item_ids
    sequence = np.array([[ids.index(item) + 1 for item in HISTORIES[0]]], np.int32)
    states = encode(run.model, params, sequence, run.content).experts
    weights = head_weights(run.model, params, run.content)
    first, second = np.split(np.array(weights.kernel), 2)
    by_id = first + second if id_reads_content else first
    scores = {
        name: np.array(states[name])[0, -1] @ kernel + np.array(weights.bias)
        for name, kernel in (("id", by_id), ("content", second), ("joint", first + second))
    }
    scores["fused"] = sum(scores.values()) / 3
    for stream in ("fused", "id", "content"):
        scores[stream][[0, *sequence[0]]] = -np.inf
        best = np.argsort(-scores[stream], kind="stable")[:5]
        (found,) = recommender.recommend(HISTORIES[:1], top_k=5, stream=stream)
        assert [x.item for x in found.items] == [ids[c - 1] for c in best]
        expected = scores[stream][best]
        np.testing.assert_allclose([x.score for x in found.items], expected, rtol=1e-4)
    assert 0 < found.stream_weights["id"] < 1
    assert recommender.vectors("scores").shape == (len(ids) + 1, 2 * config.model.d_model)


def test_what_was_warmed_up_does_not_compile(workdir):
    recommender = Recommender.from_workdir(workdir, batch_size=8)
    recommender.warm_up()
    traced = []

    def listen(event, *_, **__):
        traced.append(event)

    history = [f"i{i}" for i in range(18)]
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for histories in ([["i3"]], [history], [["i3"], *[history] * 6]):
            recommender.recommend(histories, 5)
        for stream in ("id", "content"):
            recommender.recommend([history], 2, stream=stream)
        recommender.explain(history)
        assert not [event for event in traced if "compile" in event or "trace" in event]
        recommender.recommend([["i3"]] * 2, 2, stream="id")  # several histories by one stream
        assert [event for event in traced if "compile" in event]
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
