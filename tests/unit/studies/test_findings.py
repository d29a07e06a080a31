"""What is found of variants whose trials have ended in any order."""

import json

import numpy as np
import pytest

from tssr_jax.config import default
from tssr_jax.evaluation.evaluate import PER_USER_FILE
from tssr_jax.studies import plots
from tssr_jax.studies.designs import Study, Variant
from tssr_jax.studies.findings import find
from tssr_jax.studies.trial import Trial

STUDY = Study("?", (Variant("first"), Variant("second")))


def ended(folder, variant, ranks, *, seed=0, answers=(5, 6), history=(3, 4)):
    """A trial whose two users have their answers at these ranks."""
    config = default.get_config()
    config.seed = seed
    trial = Trial(variant, {}, config, folder)
    trial.run.mkdir(parents=True)
    with (trial.run / PER_USER_FILE).open("wb") as file:
        np.savez(file, test_rank=ranks, test_answer=answers, history=history)
    result = {"cost": {}, "metrics": {"test": {"coverage": 0.5, "recall@10": 0.0}}}
    (folder / "result.json").write_text(json.dumps(result))
    return trial


def test_the_study_s_first_variant_comes_first_though_another_ended_before(tmp_path):
    trials = [
        ended(tmp_path / "a", "second", [0, 50]),
        ended(tmp_path / "b", "first", [0, 1]),
        ended(tmp_path / "c", "second", [9, 50], seed=1),
    ]
    first, second = find(STUDY, trials)
    assert (first.name, first.seeds, second.name, second.seeds) == ("first", 1, "second", 2)
    assert first.comparisons == {"ndcg@10": None, "recall@10": None}
    assert second.estimates["recall@10"].mean == 0.5
    assert second.spread["recall@10"] == 0.0
    assert second.comparisons["recall@10"].difference.mean == -0.5
    # DCG of rank 0 is 1, of rank 1 1 / log2(3), of rank 9 1 / log2(11).
    expected = (1 + 1 / np.log2(11)) / 4
    assert second.estimates["ndcg@10"].mean == pytest.approx(expected)
    difference = expected - (1 + 1 / np.log2(3)) / 2
    assert second.comparisons["ndcg@10"].difference.mean == pytest.approx(difference)
    assert second.lists == {"coverage": 0.5}


def test_other_trainings_are_part_of_the_interval(tmp_path):
    """Of users who are all alike, only the seed tells what is found."""
    trials = [
        ended(tmp_path / "a", "first", [0, 0]),
        ended(tmp_path / "b", "first", [50, 50], seed=1),
    ]
    [first] = find(STUDY, trials)
    assert first.estimates["recall@10"] == (0.5, 0.0, 1.0)


def test_seeds_may_order_ties_in_different_ways(tmp_path):
    """One seed has the same answers in both variants, another seed has others."""
    trials = [
        ended(tmp_path / "a", "first", [0, 50], seed=0, answers=(5, 6)),
        ended(tmp_path / "b", "first", [0, 50], seed=1, answers=(5, 7)),
        ended(tmp_path / "c", "second", [0, 1], seed=1, answers=(5, 7)),
    ]
    _, second = find(STUDY, trials)
    assert second.comparisons["recall@10"].difference.mean == 0.5


@pytest.mark.parametrize("other", [{"answers": (5, 7)}, {"history": (3, 5)}])
def test_other_users_are_not_compared(other, tmp_path):
    trials = [
        ended(tmp_path / "a", "first", [0, 50]),
        ended(tmp_path / "b", "second", [0, 1], **other),
    ]
    _, second = find(STUDY, trials)
    assert second.comparisons["recall@10"] is None


def test_variants_alone_are_not_compared(tmp_path):
    [alone] = find(STUDY, [ended(tmp_path / "a", "second", [0, 50])])
    assert alone.name == "second" and alone.comparisons["ndcg@10"] is None


def test_the_picture_s_line_is_the_first_variant_s_or_none(tmp_path):
    trials = [ended(tmp_path / "a", "second", [0, 50]), ended(tmp_path / "b", "first", [0, 1])]
    grey = "stroke: #999999"
    assert plots.estimates(find(STUDY, trials), "ndcg@10", "first").count(grey) == 1
    assert grey not in plots.estimates(find(STUDY, trials[:1]), "ndcg@10", "first")
