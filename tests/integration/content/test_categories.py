"""Models that read categories of items: the features, training, new items, days that follow."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest

from tests.support.raw_data import tiny_config
from tests.support.raw_layouts import write_layout
from tssr_jax.content.categories import item_categories, values_of
from tssr_jax.data_pipeline.prepare import prepare
from tssr_jax.errors import UserError
from tssr_jax.evaluation.evaluate import evaluate, restore_best
from tssr_jax.models.apply import embed_items
from tssr_jax.recommending.recommender import Recommender
from tssr_jax.training.loop import train

BRANDS = ("Red & Co", "Blue", "Blue", "Green")


def config_of(folder, **fields):
    """20 items with brands and kinds; item 7 has neither, item 8 a brand of its own."""
    config = tiny_config(folder)
    path = folder / "raw" / "items.csv"
    lines = path.read_text().split("\n")[1:-1]
    rows = []
    for i, line in enumerate(lines):
        brand = {7: "", 8: "Rare"}.get(i, BRANDS[i % 4])
        kind = {7: ""}.get(i, "toy| fun " if i % 2 else "toy;book,toy")
        rows.append(f'{line},{brand},"{kind}"')
    path.write_text("\n".join(["item,title,brand,kind", *rows]) + "\n")
    config.content.update(modalities=("text", "categories"), category_fields=("brand", "kind"))
    config.model.head = "tied"
    config.update_from_flattened_dict(fields)
    return config


@pytest.fixture(name="config")
def fixture_config(tmp_path):
    return config_of(tmp_path)


def test_features_by_hand(config):
    data = prepare(config.data)
    names, table = item_categories(data.item_ids, config.data, ("brand", "kind"))
    # Red & Co and Green have four items each, Rare has one.
    assert names == ("kind=toy", "brand=Blue", "kind=book", "kind=fun", "brand=", "kind=")
    found = {
        item: {names[i] for i in np.flatnonzero(row)}
        for item, row in zip(data.item_ids, table.table[1:], strict=True)
    }
    assert not table.table[0].any() and set(np.unique(table.table)) == {0.0, 1.0}
    assert found["i7"] == set()
    assert found["i8"] == {"brand=", "kind=toy", "kind=book"}
    assert found["i0"] == {"brand=", "kind=toy", "kind=book"}
    assert found["i1"] == {"brand=Blue", "kind=toy", "kind=fun"}
    assert found["i3"] == {"brand=", "kind=toy", "kind=fun"}


def test_an_item_reads_the_sum_of_its_categories_vectors(config, tmp_path):
    config.content.modalities = ("categories",)
    train(config, tmp_path / "run")
    run, params, _ = restore_best(tmp_path / "run")
    kernel = np.asarray(params["content_projection"]["kernel"])
    bias = np.asarray(params["content_projection"]["bias"])
    place = {name: i for i, name in enumerate(run.categories)}
    class_of = {item: i for i, item in enumerate(run.data.item_ids, 1)}
    items = jnp.array([[class_of["i1"], class_of["i7"]]])
    found = embed_items(run.model, params, "content", items, run.content)[0]
    rows = [kernel[place[name]] for name in ("brand=Blue", "kind=toy", "kind=fun")]
    np.testing.assert_allclose(found[0], sum(rows) + bias, atol=1e-5)
    np.testing.assert_allclose(found[1], params["content_projection"]["no_content"], atol=1e-6)


def test_carried_and_asked_for_new_items(config, tmp_path):
    workdir = tmp_path / "run"
    metrics = train(config, workdir)
    carried = shutil.copytree(workdir, tmp_path / "elsewhere" / "run")
    shutil.rmtree(tmp_path / "raw")
    assert evaluate(workdir)["ndcg@10"] == pytest.approx(metrics["ndcg@10"])
    new = tmp_path / "new.csv"
    new.write_text(
        "item,title,brand,kind\nx,red car,Blue,toy|fun\ny,red car,Unheard,\nz,red car,,\n"
    )
    recommender = Recommender.from_workdir(carried, new_items=new)
    names = recommender.run.categories
    own = np.asarray(recommender.tables[1].features["categories"])[-3:]
    found = [{names[i] for i in np.flatnonzero(row)} for row in own]
    assert found == [{"brand=Blue", "kind=toy", "kind=fun"}, {"brand="}, set()]
    (lists,) = recommender.recommend([["i4", "i5"]], top_k=23)
    assert {"x", "y", "z"} <= {item.item for item in lists.items}
    new.write_text("item,title,brand\nx,red car,Blue\n")
    with pytest.raises(UserError, match="has no column 'kind'"):
        Recommender.from_workdir(carried, new_items=new)


def test_a_warm_start_finds_categories_by_their_names(config, tmp_path):
    train(config, tmp_path / "one")
    items = tmp_path / "raw" / "items.csv"
    text = items.read_text().replace("Green", "Alone").replace("Red & Co", "Alone")
    items.write_text(text)
    config.train.update(warm_start=str(tmp_path / "one"), num_epochs=0)
    train(config, tmp_path / "two")
    (one, before, _), (two, after, _) = (restore_best(tmp_path / x) for x in ("one", "two"))
    kernels = [np.asarray(x["content_projection"]["categories"]["kernel"]) for x in (before, after)]
    old, new = ({n: i for i, n in enumerate(run.categories)} for run in (one, two))
    assert "brand=Alone" in new and "brand=Alone" not in old and "brand=Green" not in new
    for name, place in new.items():
        expected = old.get(name, old[name[: name.index("=") + 1]])
        np.testing.assert_array_equal(kernels[1][place], kernels[0][expected])


def test_categories_and_events_on_several_devices(config, tmp_path):
    config.model.dropout_rate = 0.0
    config.train.num_epochs = 1
    losses = []
    for i, (way, devices, model_devices) in enumerate((("pmap", 1, 1), ("shard_map", 6, 3))):
        config.update(parallel=way, num_devices=devices, model_devices=model_devices)
        train(config, tmp_path / str(i))
        lines = (tmp_path / str(i) / "metrics.jsonl").read_text().splitlines()
        losses.append([x["train/total"] for x in map(json.loads, lines) if "train/total" in x])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"content.category_fields": ()}, "category_fields must name columns, each once"),
        ({"content.modalities": ("text",)}, "if modalities has 'categories'"),
        ({"content.category_fields": ("brand", "brand")}, "each once"),
        ({"content.category_fields": ("maker",)}, "has no column 'maker'"),
        ({"content.category_fields": ("a=b",)}, r"'a=b'.*has a '=' in its name: rename"),
        ({"content.category_fields": ("item2",)}, "no value of item2 occurs in at least 5 items"),
    ],
)
def test_what_is_wrong_is_told(tmp_path, fields, told):
    config = config_of(tmp_path, **fields)
    path = tmp_path / "raw" / "items.csv"
    header, *lines = path.read_text().splitlines()
    rows = [f"{line},{i}" for i, line in enumerate(lines)]
    path.write_text("\n".join([f"{header},item2", *rows]) + "\n")
    with pytest.raises(UserError, match=told):
        train(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("layout", "field", "wanted"),
    [
        ("ml-20m", "genres", {"Action", "Drama"}),
        ("parquet", "category", {"Things"}),
        ("hm", "colour_group_name", {"Black"}),
        ("yelp", "categories", {"Tea", "Pubs"}),
        ("yelp-old", "categories", {"Tea", "Pubs"}),
        ("amazon-2014", "brand", {"Acme"}),
        ("amazon-2023", "brand", {"Acme"}),
        ("mind", "category", {"sports"}),
    ],
)
def test_other_sources(tmp_path, layout, field, wanted):
    config = write_layout(layout, tmp_path / "raw")
    config.data.cache_dir = str(tmp_path / "cache")
    data = prepare(config.data)
    names, features = item_categories(data.item_ids, config.data, (field,))
    assert {name.partition("=")[2] for name in names} == {*wanted, ""}
    assert np.count_nonzero(features.table[1:].any(axis=1)) >= 19


def test_a_value_is_one_category_in_all_spellings():
    table = pl.DataFrame(
        {"year": ["1990.0", "1990", " 1990 ", "nan", None], "old": ["True", "true", "", "no", "no"]}
    )
    found = table.select(values_of(("year", "old")))["categories"].to_list()
    both = ["year=1990", "old=true"]
    assert found == [both, both, ["year=1990"], ["old=no"], ["old=no"]]


def test_lists_of_a_parquet_file_are_several_values(config, tmp_path):
    raw = tmp_path / "raw"
    table = pl.read_csv(raw / "items.csv")
    kinds = pl.Series(
        "kind", [["toy", "book"]] * 10 + [["toy"]] * 9 + [None], dtype=pl.List(pl.String)
    )
    table.with_columns(kinds).write_parquet(raw / "items.parquet")
    (raw / "items.csv").unlink()
    data = prepare(config.data)
    names, features = item_categories(data.item_ids, config.data, ("kind",))
    assert names == ("kind=toy", "kind=book", "kind=")
    assert jax.device_get(features.table).sum(axis=0).tolist() == [19.0, 10.0, 0.0]
