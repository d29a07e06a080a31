"""Reference mode reproduces every number of the reference implementation."""

import jax
import numpy as np
import pytest
from flax import traverse_util

from tests.support.model_losses import loss_terms, term_weights
from tests.support.reference_numbers import GoldenCase, case_paths
from tssr_jax.data_pipeline.eval_batches import excluded_classes
from tssr_jax.evaluation.metrics import ranking_metrics
from tssr_jax.evaluation.ranking import make_eval_step
from tssr_jax.losses.contrastive import pool
from tssr_jax.losses.objective import ITEM_TERMS, PREDICTION, USER_TERMS
from tssr_jax.losses.objective import total_loss as weighted_total
from tssr_jax.models.apply import encode, head_weights
from tssr_jax.models.content import Content
from tssr_jax.training.optimizer import make_optimizer
from tssr_jax.training.state import TOTAL, create_train_state, zero_sums
from tssr_jax.training.step import make_train_step

OUTPUT_TOLERANCE = 1e-5
LOSS_TOLERANCE = 2e-5


@pytest.fixture(scope="module", params=case_paths(), ids=lambda path: path.stem)
def case(request) -> GoldenCase:
    return GoldenCase.load(request.param)


def test_outputs(case):
    outputs = jax.jit(encode, static_argnums=0)(
        case.model(), case.params, case.inputs["item_sequence"], case.inputs["item_features"]
    )
    sequence = case.inputs["item_sequence"]
    computed = {
        "id_input_embedding": outputs.id.input_embedding,
        "content_input_embedding": outputs.content.input_embedding,
        "id_encoded": outputs.id.encoded,
        "content_encoded": outputs.content.encoded,
        "id_crossed": outputs.id.crossed,
        "content_crossed": outputs.content.crossed,
        "gate": outputs.gate,
        "fused": outputs.fused,
        "logits": head_weights(case.model(), case.params, None).score(outputs.fused, "float32"),
        "pooled_id": pool(outputs.id.encoded, sequence, valid_positions=False),
        "pooled_content": pool(outputs.content.encoded, sequence, valid_positions=False),
    }
    assert computed.keys() == case.outputs.keys()
    for name, expected in case.outputs.items():
        np.testing.assert_allclose(computed[name], expected, atol=OUTPUT_TOLERANCE, err_msg=name)


def test_losses_and_gradients(case):
    config, batch = case.config(), case.batch()

    def total(params):
        outputs = encode(case.model(), params, batch["item_sequence"], case.inputs["item_features"])
        terms = loss_terms(case.model(), params, outputs, batch, config)
        return weighted_total(terms, term_weights(config)), terms

    (value, terms), grads = jax.jit(jax.value_and_grad(total, has_aux=True))(case.params)
    computed = {name: term.mean() for name, term in terms.items()} | {"total": value}
    assert computed.keys() == case.losses.keys()
    for name, expected in case.losses.items():
        np.testing.assert_allclose(computed[name], expected, atol=LOSS_TOLERANCE, err_msg=name)

    computed_grads = traverse_util.flatten_dict(grads, sep="/")
    expected_grads = traverse_util.flatten_dict(case.grads, sep="/")
    assert computed_grads.keys() == expected_grads.keys()
    for name, expected in expected_grads.items():
        np.testing.assert_allclose(
            computed_grads[name], expected, atol=1e-5, rtol=1e-4, err_msg=name
        )


def test_ranks_and_metrics(case):
    sequence, answers = case.inputs["item_sequence"], case.inputs["answers"]
    with_padding = (sequence == 0).any(axis=1)
    excluded = excluded_classes(sequence, answers, with_padding).numpy()
    eval_step = jax.jit(make_eval_step(case.model()))
    rows = {"item_sequence": sequence, "answers": answers, "excluded": excluded}
    rows["missed"] = np.zeros(len(answers), bool)
    rows["row_mask"] = np.ones(len(sequence), bool)
    ranks = np.asarray(eval_step(case.params, rows, case.inputs["item_features"]).ranks)
    np.testing.assert_array_equal(ranks, case.metrics["answer_rank"])
    metrics = ranking_metrics(ranks, cutoffs=case.settings["metric_ks"])
    for k in case.settings["metric_ks"]:
        for name in ("recall", "ndcg"):
            expected = case.metrics[f"{name}_at_{k}"]
            np.testing.assert_allclose(metrics[f"{name}@{k}"], expected, atol=1e-6)


def test_adam_trajectory(case):
    config, features = case.config(), jax.numpy.asarray(case.inputs["item_features"])
    optimizer = make_optimizer(config.optimizer)
    state = create_train_state(jax.tree.map(jax.numpy.asarray, case.params), optimizer, config)
    step = jax.jit(make_train_step(case.model(), optimizer, config))
    columns = (TOTAL, PREDICTION, *USER_TERMS, *ITEM_TERMS)
    trajectory = []
    for _ in range(len(case.trajectory)):
        state = step(state, case.batch(), Content({"text": features}))
        trajectory.append([float(state.loss_sums[name].mean()) for name in columns])
        state = state.replace(loss_sums=zero_sums(state.loss_sums))
    np.testing.assert_allclose(trajectory, case.trajectory, rtol=1e-3)
