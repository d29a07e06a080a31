"""Configurations: what is refused, and what a workdir remembers."""

import json
from pathlib import Path

import pytest
from etils import epath

from configs import paper, reference
from tssr_jax.config import default, load
from tssr_jax.config.fields import flattened
from tssr_jax.config.saved import load_config, require_no_run, require_same_config, save_config
from tssr_jax.config.validation import validate_config
from tssr_jax.errors import UserError


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("seed", -1, "must be at least 0"),
        ("model.id_neighbours", 301, "only --config.memory.neighbours=300 of an item are kept"),
        ("model.d_model", 0, "must be at least 1"),
        ("model.num_heads", 3, "3 heads .* do not divide"),
        ("model.dropout_rate", 1.0, r"must be in \[0, 1\)"),
        ("train.time_noise", (0.0, -1.0), "each 0 or more"),
        ("train.time_noise", (float("nan"),), "each 0 or more"),
        ("model.memory", ("words", "words"), "each at most once: 'co_occurrence', 'words'"),
        ("model.memory", ("texts",), "allowed, each at most once"),
        ("memory.power", 1.5, r"must be in \[0, 1\]"),
        ("memory.fading", -0.1, "must be at least 0"),
        ("model.streams", ("id", "image"), r"must be \('id', 'content'\)"),
        ("model.streams", (), "must be"),
        ("model.streams", ("id", "id"), "must be"),
        ("model.compute_dtype", "float16", "known: float32, bfloat16"),
        ("loss.user_temperature", 0.0, "must be positive"),
        ("optimizer.learning_rate", -1.0, "must be positive"),
        ("train.batch_size", 0, "must be at least 1"),
        ("model.encoder", "gru", r"streams=.\('id',\)"),
        ("model.mixing", "experts", r"model\.head is 'classes': set it to tied"),
        ("model.content_hidden", -1, "at least 0"),
        ("model.mixing", "mean", "known: gate, experts, sum, concatenation"),
        ("baseline.kind", "random", "month_popularity, nearest_texts, own_items, item_knn"),
        ("model.dropout_rate", 1.0, r"must be in \[0, 1\)"),
        ("loss.lambda_user", -0.1, "must be at least 0"),
    ],
)
def test_values_that_make_no_sense(field, value, message):
    config = default.get_config()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=message):
        validate_config(config)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"loss.next_item": "some"}, "known: full, sampled\\."),
        ({"loss.num_negatives": 0}, "must be at least 1"),
        (
            {"loss.next_item": "sampled", "corrections.exclude_padding_class": False},
            "exclude_padding_class=True",
        ),
        ({"optimizer.lazy_rows": True, "model_devices": 2}, "model_devices is 2"),
        ({"optimizer.lazy_rows": True, "model.head": "content"}, "next_item=sampled"),
        ({"optimizer.lazy_rows": True, "model.head": "tied"}, "next_item=sampled"),
        ({"model.head": "tied", "content.text.trained_layers": 1}, "trained_layers=0"),
        ({"content.text.encoder": "ngrams", "content.text.trained_layers": 1}, "nothing to train"),
        (
            {"optimizer.lazy_rows": True, "content.text.trained_layers": 1},
            "content.text.trained_layers=0",
        ),
    ],
)
def test_what_does_not_go_with_a_large_catalogue(fields, message):
    config = default.get_config()
    config.update_from_flattened_dict(fields)
    with pytest.raises(UserError, match=message):
        validate_config(config)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"content.modalities": ()}, r"must be some of 'text'"),
        ({"content.modalities": ("text", "text")}, r"must be some of 'text'"),
        ({"content.modalities": ("sound",)}, r"must be some of 'text'"),
        ({"content.text.lora_rank": 8}, "no layer is to be adapted"),
        ({"content.text.trained_layers": 1, "model_devices": 2}, "set --config.model_devices=1"),
        (
            {
                "content.modalities": ("image",),
                "content.image.trained_stages": 1,
                "model_devices": 2,
            },
            "set --config.model_devices=1",
        ),
        (
            {"train.windows": "strided", "train.window_stride": 51},
            "some items would be in no window",
        ),
        ({"train.time_noise": (-1.0,)}, "each 0 or more"),
        ({"train.packing": True, "corrections.valid_positions_only": False}, "padding positions"),
        ({"train.packing": True, "corrections.pool_valid_positions": False}, "padding positions"),
    ],
)
def test_what_does_not_go_with_contents_and_windows(fields, message):
    config = default.get_config()
    config.model.max_length = 50
    config.update_from_flattened_dict(fields)
    with pytest.raises(UserError, match=message):
        validate_config(config)


def test_a_configuration_survives_its_file(tmp_path):
    config = paper.get_config()
    config.model.streams = ("id",)
    save_config(config, tmp_path)
    assert load_config(tmp_path).to_dict() == config.to_dict()
    require_same_config(config, tmp_path)


@pytest.mark.parametrize("place", ["~/raw", "gs://bucket/raw", ""])
def test_places_that_are_the_same_from_anywhere_stay(tmp_path, place):
    config = paper.get_config()
    config.data.raw_dir = place
    save_config(config, tmp_path)
    assert load_config(tmp_path).data.raw_dir == place


def test_a_run_keeps_whole_paths(tmp_path, monkeypatch):
    """It may be asked from another folder."""
    config = paper.get_config()
    config.data.raw_dir = "raw"
    config.content.text.model_dir = "weights/bert"
    config.content.image.model_file = "resnet.pth"
    monkeypatch.chdir(tmp_path)
    save_config(config, tmp_path)
    require_same_config(config, tmp_path, ())
    monkeypatch.chdir("/")
    kept = load_config(tmp_path)
    assert kept.data.raw_dir == str(tmp_path / "raw")
    assert kept.content.text.model_dir == str(tmp_path / "weights" / "bert")
    assert kept.content.image.model_file == str(tmp_path / "resnet.pth")
    assert load_config(tmp_path, "moved").data.raw_dir == "moved"
    require_same_config(config, tmp_path)  # their contents are compared later
    with pytest.raises(UserError, match=r"data\.raw_dir \(there"):
        require_same_config(config, tmp_path, ())


def test_another_configuration_is_refused_with_the_differing_fields(tmp_path):
    config = paper.get_config()
    save_config(config, tmp_path)
    config.model.d_model = 64
    config.train.num_epochs = 7  # may change: a run can be extended
    with pytest.raises(UserError, match=r"differs in model.d_model \(there 128, now 64\)\."):
        require_same_config(config, tmp_path)


def test_a_folder_that_is_no_workdir(tmp_path):
    with pytest.raises(UserError, match="not the workdir of a run"):
        load_config(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "config.json is damaged"),
        ("[]", "config.json is damaged"),
        ('{"modle": {"d_model": 1}}', "'modle.d_model', which this version .* does not know"),
        ('{"model": {"d_modle": 1}}', "'model.d_modle', which this version .* does not know"),
        ('{"model": {"d_model": "x"}}', "not a configuration of this version"),
    ],
)
def test_a_damaged_or_foreign_config_file(tmp_path, content, message):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=message):
        load_config(tmp_path)


def test_a_saved_configuration_that_was_changed_is_told(tmp_path):
    config = default.get_config()
    config.model.num_heads = 2
    save_config(config, tmp_path)
    assert load_config(tmp_path).model.num_heads == 2
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"num_heads": 2', '"num_heads": 4'))
    with pytest.raises(UserError, match=r"config.json has changed since it was written"):
        load_config(tmp_path)


def test_every_field_is_commented():
    lines = Path(default.__file__).read_text().splitlines()
    for name in flattened(default.get_config()):
        field = ".".join(["config", *name.split(".")][-2:])  # of the innermost section
        (index,) = (i for i, line in enumerate(lines) if line.startswith(f"    {field} = "))
        assert lines[index - 1].strip().startswith("#"), name


def test_reference_settings_are_the_authors():
    config = reference.get_config("csv:somewhere")
    assert config.data.raw_dir == "somewhere"
    assert config.model.max_length == 10 and config.optimizer.learning_rate == 1e-4
    # What configs/csv.py does against over-fitting is not theirs.
    assert config.train.time_noise == () and config.optimizer.ema_decay == 0
    assert not any(config.corrections.to_dict().values())
    assert json.dumps(config.to_dict())
    assert all(default.get_config().corrections.to_dict().values())


@pytest.mark.parametrize("base", ["csv:somewhere", "ml1m", "amazon:toys-2014", "hm", "mind"])
def test_the_papers_model_goes_with_the_data_of_other_configurations(base):
    config = load(f"paper:{base}")
    assert config.data == load(base).data
    for section in ("model", "loss", "optimizer", "train", "memory"):
        assert config[section] == default.get_config()[section]
    assert config.evaluate.keep_seen == (base == "hm")


def test_a_search_that_keeps_its_configuration_is_no_run(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    require_no_run(epath.Path(tmp_path))
    (tmp_path / "data.json").write_text("{}")
    with pytest.raises(UserError, match="is the folder of a run"):
        require_no_run(epath.Path(tmp_path))
