"""Retrains a run with its validation targets in the training data, for its best number of epochs.

Training leaves out each user's newest two items, the targets of validation and test. Validation
chooses the number of epochs; after that its targets can be learnt from.
"""

import os

from etils import epath

from tssr_jax.config.saved import FILE_NAME, load_config
from tssr_jax.errors import UserError
from tssr_jax.evaluation.run_metrics import read_metrics
from tssr_jax.locks import require_no_writer
from tssr_jax.reporting import METRICS_FILE
from tssr_jax.training.loop import train


def refit(
    run: epath.PathLike,
    workdir: epath.PathLike,
    *,
    everything: bool = False,
    raw_dir: str | None = None,
) -> dict[str, float | int] | None:
    """Retrains a run in another workdir; the same call goes on where it stopped.

        metrics = refit("runs/mine", "runs/final")
        refit("runs/mine", "runs/served", everything=True)

    Args:
      run: workdir of a run that has ended.
      workdir: the new run's folder.
      everything: train on the test targets as well, to serve; there are no metrics then.
      raw_dir: where the raw files are now; None if they have not moved.

    Returns:
      The test metrics, {} if the test was trained on, too; None if it was stopped.

    Raises:
      UserError: if there is no such run, or it has nothing to repeat.
    """
    run, workdir = epath.Path(run).expanduser(), epath.Path(workdir).expanduser()
    config = load_config(run, raw_dir)
    if config.baseline.kind:
        raise UserError(
            f"{run} is a run of the baseline {config.baseline.kind!r}, which chose no epochs. "
            "Train it with --config.evaluate.held_out=\"('test',)\"."
        )
    require_no_writer(run)
    if not (run / "test_metrics.json").exists():
        raise UserError(f"{run} has not ended: it has no test_metrics.json. Train it to its end.")
    start = config.train.warm_start
    if start and os.path.realpath(epath.Path(start).expanduser()) == os.path.realpath(run):
        raise UserError(
            f"{run} started from {start}, and that path now leads to {run} itself. The parameters "
            "that it started from are gone."
        )
    config.train.update(num_epochs=best_epoch(run), early_stopping_patience=0)
    config.evaluate.held_out = ("test",)
    if everything:
        config.evaluate.held_out, config.train.held_out_items = (), 0.0
    if (workdir / FILE_NAME).exists():
        there = load_config(workdir).train.num_epochs
        if there != config.train.num_epochs:
            raise UserError(
                f"{workdir} holds a refit of {there} epochs, and {run} is best after "
                f"{config.train.num_epochs} by now. Name another --workdir."
            )
    return train(config, workdir)


def best_epoch(run: epath.Path) -> int:
    """The epoch of a run's best validation.

    Raises:
      UserError: if it was never validated, or is best before its first epoch (a warm start may be:
        what it counts is worth repeating).
    """
    epochs = read_metrics(run).epochs
    if epochs.is_empty():
        raise UserError(f"{run} has no validation in {METRICS_FILE}: nothing to repeat.")
    best = epochs.sort("validation/ndcg@10", descending=True, maintain_order=True)["epoch"][0]
    if best < 1 and not load_config(run).train.warm_start:
        raise UserError(
            f"No epoch of {run} was better than its start, so there is nothing to repeat."
        )
    return round(best)
