"""What people import: every name documented, nothing imported before it is used."""

import inspect
import runpy
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tssr_jax
from tests.support.runs import ROOT

# A training step on arrays, ranks and a checkpoint's modules, as a library user has them.
ON_ARRAYS = """
import sys
import jax, numpy as np, optax
from tssr_jax import TSSR, LossConfig, encode, init_params, item_contrast, next_item_loss, rank
from tssr_jax import ranking_metrics, score, top_k, tssr_loss, user_contrast, UserError
from tssr_jax import default_config
import tssr_jax.checkpoints.checkpointer
from tssr_jax.models.content import Content
from tssr_jax.training.optimizer import make_optimizer
from tssr_jax.training.state import create_train_state
from tssr_jax.training.step import make_train_step

config = default_config()
config.model.update(d_model=8, d_ffn=8, num_heads=2, num_cross_layers=1, max_length=4)
model = TSSR(9, d_model=8, d_ffn=8, num_heads=2, num_cross_layers=1, max_length=4)
windows = np.arange(1, 6)[None] + np.arange(4)[:, None]
features = np.random.default_rng(0).normal(size=(10, 5)).astype(np.float32)
batch = {"item_sequence": windows[:, :-1], "labels": windows[:, 1:], "row_mask": np.ones(4, bool)}
params = init_params(model, {"text": 5}, seed=0)
optimizer = make_optimizer(config.optimizer)
state = create_train_state(params, optimizer, config)
state = make_train_step(model, optimizer, config)(state, batch, Content({"text": features}))
ranks = rank(model, state.params, windows[:, :-1], windows[:, -1], features)
print(int(state.step), len(ranks), "tensorflow" in sys.modules)
"""


def output_of(program):
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_importing_the_package_imports_nothing_large():
    program = "import sys, tssr_jax; print(*(m in sys.modules for m in ('jax', 'numpy', 'flax')))"
    assert output_of(program) == ["False", "False", "False"]


def test_a_step_and_ranks_on_arrays_need_no_tensorflow():
    assert output_of(ON_ARRAYS) == ["1", "4", "False"]


@pytest.mark.parametrize("name", sorted(set(tssr_jax.__all__) - {"__version__"}))
def test_every_public_name_has_a_docstring_with_an_example(name):
    value = getattr(tssr_jax, name)
    assert value.__name__ in {name, "get_config"}
    text = inspect.cleandoc(value.__doc__)
    if name != "UserError":
        example = [line for line in text.splitlines() if line.startswith("    ")]
        names = (name, f"{name[0].lower()}{name[1:]}")
        assert any(word in line for line in example for word in names), "no example"


def test_a_name_that_does_not_exist():
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        tssr_jax.nothing  # noqa: B018
    assert {"TSSR", "train"} <= set(dir(tssr_jax))


def test_the_training_loop_of_ones_own(capsys):
    path = ROOT / "examples" / "own_training_loop.py"
    assert path.read_text().count("\n") <= 60
    losses = runpy.run_path(str(path))["main"]()
    assert len(losses) == 20 and losses[-1] < losses[0] / 2
    assert "after [43, 44, 45, 46, 47, 48, 49, 50]: [1," in capsys.readouterr().out


def test_the_loss_is_the_cross_entropy_of_the_scores():
    """Without contrasting, of histories of one item: softmax over all items but padding."""
    model = tssr_jax.TSSR(6, streams=("id",), d_model=8, num_heads=2, max_length=1)
    params = tssr_jax.init_params(model, {}, seed=0)
    sequence, labels = jnp.array([[2], [5]]), jnp.array([[3], [1]])
    loss, metrics = tssr_jax.tssr_loss(model, params, {"item_sequence": sequence, "labels": labels})
    scores = np.asarray(tssr_jax.score(model, params, sequence))[:, 1:]
    chosen = scores[[0, 1], [2, 0]]
    expected = (np.log(np.exp(scores).sum(axis=1)) - chosen).mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert metrics.keys() == {"prediction"}


def test_drawn_items_need_a_key_and_estimate_the_whole_loss():
    model = tssr_jax.TSSR(6, streams=("id",), d_model=8, num_heads=2, max_length=2, dropout_rate=0)
    params = tssr_jax.init_params(model, {}, seed=0)
    batch = {"item_sequence": jnp.array([[2, 4]]), "labels": jnp.array([[4, 1]])}
    config = tssr_jax.LossConfig(next_item="sampled", num_negatives=20_000)
    with pytest.raises(ValueError, match="needs a key"):
        tssr_jax.tssr_loss(model, params, batch, None, config)
    whole, _ = tssr_jax.tssr_loss(model, params, batch)
    drawn, _ = tssr_jax.tssr_loss(model, params, batch, None, config, jax.random.key(0))
    np.testing.assert_allclose(drawn, whole, rtol=0.02)


def test_defaults_of_the_model_and_the_loss_are_those_of_the_configuration():
    config = tssr_jax.default_config()
    model, loss = tssr_jax.TSSR(3), tssr_jax.LossConfig.from_config(config)
    for name, value in config.model.items():
        if name != "id_dropout":  # of the train step
            assert getattr(model, name) == value, name
    assert loss == tssr_jax.LossConfig()


def test_lists_leave_out_what_was_seen():
    model = tssr_jax.TSSR(5, streams=("id",), d_model=8, num_heads=2, max_length=3)
    params = tssr_jax.init_params(model, {}, seed=0)
    sequence = jnp.array([[0, 2, 4]])
    items, scores = tssr_jax.top_k(model, params, sequence, 3)
    assert sorted(items[0].tolist()) == [1, 3, 5] and (jnp.diff(scores[0]) <= 0).all()
    (rank,) = tssr_jax.rank(model, params, sequence, items[:, 1])
    assert rank == 1
    (all_items,), _ = tssr_jax.top_k(model, params, sequence, 5, excluded=jnp.array([[-1]]))
    assert sorted(all_items.tolist()) == [1, 2, 3, 4, 5]
