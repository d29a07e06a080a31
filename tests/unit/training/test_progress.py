"""The picture of a run's learning curves."""

import json

import pytest

from tssr_jax.training.progress import CURVES_FILE, METRICS_FILE, draw_curves


@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize(("epochs", "there"), [(0, False), (1, False), (2, True), (5, True)])
def test_learning_curves_begin_with_the_second_epoch(tmp_path, epochs, there):
    records = [
        {"epoch": epoch, "train/total": 9.0 - epoch, "validation/ndcg@10": 0.1 * epoch}
        for epoch in range(1, 1 + epochs)
    ]
    (tmp_path / METRICS_FILE).write_text("".join(f"{json.dumps(r)}\n" for r in records))
    draw_curves(tmp_path)
    picture = tmp_path / CURVES_FILE
    assert picture.is_file() == there
    if there:
        assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 5000


def test_a_run_without_metrics_has_no_curves(tmp_path):
    draw_curves(tmp_path)
    assert list(tmp_path.iterdir()) == []
