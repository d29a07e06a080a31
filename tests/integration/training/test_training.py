"""The whole way: raw files, training, checkpoint, evaluation; interruption; bad input."""

import json
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath
from safetensors.numpy import load_file, save_file

from tests.support.raw_data import tiny_config, write_csv, write_text_model
from tests.support.runs import (
    assert_same_run,
    best_params,
    command,
    final_state,
    metrics_of,
    newest_step,
    run_command,
)
from tssr_jax.config.files import read_signed, write_signed
from tssr_jax.errors import UserError
from tssr_jax.evaluation.evaluate import evaluate
from tssr_jax.models.content import CONTENT_LAYOUT, Content
from tssr_jax.models.init import init_params
from tssr_jax.parallel.devices import ROWS, WHOLE
from tssr_jax.run import build_run
from tssr_jax.training.loop import train
from tssr_jax.training.optimizer import make_optimizer
from tssr_jax.training.state import create_train_state
from tssr_jax.training.step import make_train_step

ROOT = Path(__file__).parents[3]


@pytest.fixture(name="config")
def fixture_config(tmp_path):
    return tiny_config(tmp_path)


def test_train_then_evaluate_gives_identical_numbers(config, tmp_path):
    config.evaluate.list_length = 10
    workdir = tmp_path / "run"
    trained = train(config, workdir)
    assert set(trained) == {
        *(f"{name}@{k}" for name in ("recall", "ndcg") for k in (5, 10, 20, 50, 100)),
        *(f"{name}@10" for name in ("coverage", "gini", "novelty", "serendipity", "popularity")),
        *(f"{name}@10" for name in ("popularity_lift", "diversity_text", "diversity_id")),
        "mrr",
        "num_users",
    }
    assert trained["num_users"] == 40 and trained["recall@100"] == 1.0
    written = (workdir / "test_metrics.json").read_text()
    assert json.loads(written) == trained
    (workdir / "test_metrics.json").unlink()
    assert evaluate(workdir) == trained
    assert (workdir / "test_metrics.json").read_text() == written
    assert json.loads((workdir / "config.json").read_text())["model"]["d_model"] == 16
    assert list((workdir / "tensorboard").iterdir())
    steps = [(r["step"], r["epoch"]) for r in metrics_of(workdir)]
    assert steps == [(3, 1.0), (3, 1.0), (6, 2.0), (6, 2.0), (9, 3.0), (9, 3.0)]


def test_a_run_whose_raw_files_have_moved_is_asked_with_their_new_place(config, tmp_path):
    """They are read where the cache has not what was prepared of them."""
    config.train.num_epochs = 1
    trained = train(config, tmp_path / "run")
    Path(config.data.raw_dir).rename(tmp_path / "moved")
    assert evaluate(tmp_path / "run") == trained
    shutil.rmtree(config.data.cache_dir)
    with pytest.raises(UserError, match=r"there is no folder .*raw\. .* --raw_dir for a"):
        evaluate(tmp_path / "run")
    assert evaluate(tmp_path / "run", str(tmp_path / "moved")) == trained


def test_a_run_whose_text_encoder_has_moved_is_told_its_new_place(config, tmp_path):
    config.train.num_epochs = 1
    trained = train(config, tmp_path / "run")
    folder = Path(config.content.text.model_dir)
    folder.rename(tmp_path / "moved")
    assert evaluate(tmp_path / "run") == trained
    with pytest.raises(UserError, match=r"text_model has no config\.json.*its training command"):
        train(config, tmp_path / "run")
    config.content.text.model_dir = str(write_text_model(tmp_path / "other", hidden_size=8))
    with pytest.raises(UserError, match="The content features are not those of the run"):
        train(config, tmp_path / "run")
    config.content.text.model_dir = str(tmp_path / "moved")
    assert train(config, tmp_path / "run") == trained
    assert evaluate(tmp_path / "run") == trained


def test_training_learns_the_pattern(config, tmp_path):
    """Users walk along the items: the next one is certain."""
    config.train.num_epochs = 40
    config.train.epochs_per_evaluation = 10
    trained = train(config, tmp_path / "run")
    assert trained["recall@10"] == 1.0 and trained["mrr"] > 0.5


@pytest.mark.parametrize(
    ("streams", "encoder"),
    [
        (("id",), "attention"),
        (("content",), "attention"),
        (("sum",), "attention"),
        (("id",), "gru"),
    ],
)
def test_one_stream(config, tmp_path, streams, encoder):
    config.model.update(streams=streams, encoder=encoder)
    config.train.num_epochs = 1
    trained = train(config, tmp_path / "run")
    assert evaluate(tmp_path / "run") == trained
    assert metrics_of(tmp_path / "run")[0].keys() == {
        "step", "epoch", "train/prediction", "train/total"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("trained_layers", "parallel", "num_devices"),
    [(-1, "pmap", 1), pytest.param(1, "shard_map", 2, marks=pytest.mark.slow)],
)
def test_a_text_encoder_is_trained_with_the_rest(
    config, tmp_path, trained_layers, parallel, num_devices
):
    config.content.text.update(trained_layers=trained_layers, micro_batch=2, learning_rate=1e-2)
    config.update(parallel=parallel, num_devices=num_devices)
    config.optimizer.ema_decay = 0.5
    if num_devices == 1:
        config.model.streams = ("content",)
        config.train.packing = True
    trained = train(config, tmp_path / "run")
    assert evaluate(tmp_path / "run") == trained
    encoder = best_params(config, tmp_path / "run")["text_encoder"]
    start = build_run(config).pretrained["text_encoder"]
    assert encoder.keys() == start.keys()
    moved = jax.tree.map(lambda x, y: float(np.abs(x - y).max()), encoder, start)
    for i in range(2):
        name = f"layer_{i}"
        assert (name in moved) == (trained_layers == -1 or i == 1)
        if name in moved:
            assert moved[name]["query"]["kernel"] > 1e-4


def test_programs_are_compiled_once(config, tmp_path, caplog):
    """Packed batches have one shape in the first epoch, and at most another one later; all users
    that are ranked one, whichever split they are ranked in."""
    config.train.update(packing=True, batch_size=8, num_epochs=1)
    config.evaluate.update(list_length=5, batch_size=16)

    def compiled():
        with jax.log_compiles():
            assert train(config, tmp_path / "run")
        names = [record.args[0] for record in caplog.records if "Compiling" in record.msg]
        caplog.clear()
        return [names.count(f"jit({name})") for name in ("train_step", "step")]

    # Beside the model's, the ranking by item-kNN.
    assert compiled() == [1, 2]
    config.train.num_epochs = 3
    steps, rankings = compiled()
    assert steps in {1, 2} and rankings == 2


def test_a_run_with_a_trained_text_encoder_resumes_exactly(config, tmp_path):
    config.content.text.update(trained_layers=-1, micro_batch=4, learning_rate=1e-2)
    config.optimizer.weight_decay = 0.1
    config.model.streams = ("content",)
    config.train.num_epochs = 1
    train(config, tmp_path / "run")
    config.train.num_epochs = 3
    train(config, tmp_path / "run")
    train(config, tmp_path / "whole")
    first, second = (best_params(config, tmp_path / name) for name in ("run", "whole"))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    start = build_run(config).pretrained["text_encoder"]["layer_1"]["query"]["kernel"]
    assert np.abs(first["text_encoder"]["layer_1"]["query"]["kernel"] - start).max() > 1e-4


@pytest.mark.parametrize(
    ("next_item", "fields"),
    [
        ("sampled", {"loss.num_negatives": 8}),
        ("sampled", {"loss.num_negatives": 8, "model.head": "content", "model.id_dropout": 0.2}),
    ],
)
def test_a_catalogue_that_is_not_scored_whole(config, tmp_path, next_item, fields):
    """Learns the pattern, and evaluates as it was tested."""
    config.loss.next_item = next_item
    config.update_from_flattened_dict(fields)
    config.train.update(num_epochs=40, epochs_per_evaluation=20)
    config.optimizer.lazy_rows = True
    trained = train(config, tmp_path / "run")
    assert trained["recall@10"] > 0.9 and trained["mrr"] > 0.4
    assert evaluate(tmp_path / "run") == trained


def test_a_finished_run_is_extended_as_if_it_had_been_longer(config, tmp_path):
    train(config, tmp_path / "long")
    config.train.num_epochs = 1
    train(config, tmp_path / "short")
    config.train.num_epochs = 3
    train(config, tmp_path / "short")
    assert_same_run(config, tmp_path / "long", tmp_path / "short")


def test_early_stopping_counts_validations_without_improvement(config, tmp_path):
    config.optimizer.learning_rate = 1e-12  # nothing changes, so nothing improves
    config.train.num_epochs = 50
    config.train.early_stopping_patience = 3
    train(config, tmp_path / "run")
    assert final_state(config, tmp_path / "run")[1].evaluations_without_improvement == 3
    assert max(r["epoch"] for r in metrics_of(tmp_path / "run")) == 4.0


def test_the_step_is_compiled_once(config, tmp_path):
    """Logging, validating and saving leave the state where the compiled step expects it."""
    lowered = []

    def note(event, _, **details):
        if event.endswith("jaxpr_to_mlir_module_duration"):
            lowered.append(details["fun_name"])

    config.parallel = "shard_map"  # pmap gives its programs no names
    config.train.update(log_every_steps=2, checkpoint_every_steps=2)
    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        train(config, tmp_path / "run")
    finally:
        jax.monitoring.unregister_event_duration_listener(note)
    assert lowered.count("jit(train_step)") == 1


def test_a_run_of_many_devices_is_evaluated_where_there_are_fewer(config, tmp_path):
    config.train.num_epochs, config.num_devices = 1, 2
    trained = train(config, tmp_path / "run")
    path = epath.Path(tmp_path / "run" / "config.json")
    write_signed(path, read_signed(path) | {"num_devices": 64})
    assert evaluate(tmp_path / "run") == trained


def test_a_run_goes_on_with_other_devices(config, tmp_path):
    """One device, six that cut the catalogue in three, five that divide no batch."""
    config.optimizer.ema_decay = 0.9
    config.train.num_epochs = 3
    train(config, tmp_path / "alone")
    config.parallel = "shard_map"
    for epochs, devices, model_devices in ((1, 1, 1), (2, 6, 3), (3, 5, 1)):
        config.num_devices, config.model_devices = devices, model_devices
        config.train.num_epochs = epochs
        last = train(config, tmp_path / "moved")
    state, _ = final_state(config, tmp_path / "alone")
    moved, _ = final_state(config, tmp_path / "moved")
    assert int(moved.step) == int(state.step) == 9
    losses = [
        [r["train/total"] for r in metrics_of(tmp_path / name) if "train/total" in r]
        for name in ("alone", "moved")
    ]
    np.testing.assert_allclose(*losses, rtol=1e-3)
    config.num_devices = 1
    assert evaluate(tmp_path / "moved") == last


def test_nan_stops_the_run_with_the_step_and_the_term(config, tmp_path):
    config.optimizer.learning_rate = 1e30
    with pytest.raises(
        UserError, match=r"At step \d+ the loss became NaN or infinite; term\(s\): "
    ):
        train(config, tmp_path / "run")
    assert newest_step(tmp_path / "run") == -1


def test_the_terms_that_are_not_finite_are_named(config, tmp_path):
    config.loss.user_temperature = 1e-45  # cosines divided by it are infinite
    with pytest.raises(
        UserError, match=r"At step 1 .*term\(s\): total and user_id2text and user_text2id\."
    ):
        train(config, tmp_path / "run")


def test_parameters_that_are_not_finite_are_not_saved(config, tmp_path):
    """The last step of an epoch breaks them: no loss has seen it."""
    config.optimizer.learning_rate = 1e39  # infinite in float32
    config.train.update(batch_size=64, num_epochs=1)
    with pytest.raises(UserError, match=r"After step 1 parameters are NaN or infinite"):
        train(config, tmp_path / "run")
    assert newest_step(tmp_path / "run") == -1


def test_the_first_bad_step_is_kept_not_a_later_one(config):
    run = build_run(config)
    optimizer = make_optimizer(config.optimizer)
    params = init_params(run.model, run.feature_widths, 0)
    state = create_train_state(params, optimizer, config)
    step = run.devices.run(
        make_train_step(run.model, optimizer, config), inputs=(WHOLE, ROWS, CONTENT_LAYOUT)
    )
    sequence = np.array([[1, 2, 3, 4]], np.int32)
    batch = {"item_sequence": sequence, "labels": sequence + 1, "row_mask": np.array([True])}
    state = step(state, batch, run.content)
    never = {int(at) for at in state.first_nonfinite.values()}
    assert len(never) == 1 and min(never) > 10**9
    bad = Content({"text": run.content.features["text"].at[2].set(np.inf)})
    for _ in range(2):
        state = step(state, batch, bad)
    assert {int(at) for at in state.first_nonfinite.values()} == {2}


def test_another_configuration_or_other_data_is_refused(config, tmp_path):
    config.train.num_epochs = 1
    workdir = tmp_path / "run"
    trained = train(config, workdir)
    config.model.d_model = 8
    with pytest.raises(UserError, match=r"another configuration; .*model.d_model"):
        train(config, workdir)
    config.model.d_model = 16
    write_csv(Path(config.data.raw_dir), seed=1)
    with pytest.raises(UserError, match="The data is not that of the run"):
        train(config, workdir)
    assert evaluate(workdir) == trained  # the run's own data is in the cache
    shutil.rmtree(config.data.cache_dir)
    with pytest.raises(UserError, match="The data is not that of the run"):
        evaluate(workdir)


def test_another_text_encoder_in_the_place_of_a_run_s_is_told(config, tmp_path):
    config.train.num_epochs = 1
    trained = train(config, tmp_path / "run")
    weights = Path(config.content.text.model_dir) / "model.safetensors"
    save_file({name: 2 * x for name, x in load_file(weights).items()}, weights)
    with pytest.raises(UserError, match="content features are not those of the run"):
        train(config, tmp_path / "run")
    assert evaluate(tmp_path / "run") == trained  # by the run's own vectors


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.modle.d_model=3"], "Unknown field modle.d_model; did you mean model.d_model?"),
        (["--config.model.d_modl=3"], "Unknown field model.d_modl; did you mean model.d_model?"),
        (["--config.model.num_heads=3"], "3 heads"),
        (["--config.content.text.trained_layers=3"], "has 2 layers"),
        (["--config.content.text.pooling=max"], "known: mean, cls, pooler"),
        (["--config.train.batch_size=x"], "invalid literal"),
        (["--config=configs/reference.py:nope"], "there is no configuration 'nope'; known: amazon"),
        (["--mode=dream"], "--mode is 'dream'; known: train, refit, evaluate"),
        (["extra"], "Unexpected argument 'extra'"),
    ],
)
def test_wrong_flags_get_one_paragraph(config, tmp_path, flags, message):
    finished = run_command(command(config, tmp_path / "run", *flags))
    assert finished.returncode != 0
    assert message in finished.stderr
    assert "Traceback" not in finished.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--workdir=x"], "--config=NAME is required"),
        (["--config=configs/ml100k.py"], "--workdir=DIR is required"),
        (["--config=configs/nope.py", "--workdir=x"], "configs/nope.py"),
        (["--mode=evaluate", "--workdir=nowhere"], "nowhere is not the workdir of a run"),
        (
            ["evaluate", "--config=ml100k", "--workdir=x"],
            "--config is no flag of evaluate. It reads",
        ),
        (["recommend", "--workdir=x", "--seeds=3"], "--seeds is no flag of recommend"),
        (["--confg=ml100k", "--workdir=x"], "--confg is no flag of train; did you mean config?"),
        (["recomend", "--workdir=x"], "There is no mode recomend; did you mean recommend?"),
        (["--config.model.d_model=3", "--workdir=x", "--config=ml100k"], "4 heads"),
    ],
)
def test_missing_flags_and_folders(flags, message):
    finished = run_command([sys.executable, "-m", "tssr_jax.main", *flags])
    assert finished.returncode == 1
    assert message in finished.stderr and "Traceback" not in finished.stderr
