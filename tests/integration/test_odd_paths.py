"""Folders whose names programs may take for something else."""

from tests.support.raw_data import tiny_config
from tssr_jax.evaluation.evaluate import evaluate
from tssr_jax.recommending.recommend import Request, run_recommend
from tssr_jax.training.loop import train


def test_a_run_in_a_folder_of_an_odd_name(tmp_path):
    """The data, the cache and the lists lie in brackets."""
    name = "-rün 1\n50%20#;*?{x}"
    folder = tmp_path / "data [1]"
    config = tiny_config(folder)
    config.train.num_epochs = 1
    metrics = train(config, tmp_path / name)
    assert evaluate(tmp_path / name) == metrics
    (folder / "histories.jsonl").write_text('{"items": ["i3"]}\n')
    output = folder / "lists.parquet"
    run_recommend(tmp_path / name, Request(folder / "histories.jsonl", output, top_k=3))
    assert output.exists()
