"""Trains a run anew on what its validation asked for, too, for as many epochs as were best.

The newest items of all users are what a run's training has not read: validation and the test needed
them. Once the epochs are chosen, they can be learnt from.
"""

from etils import epath

from tssr_jax.config.saved import load_config
from tssr_jax.errors import UserError
from tssr_jax.evaluation.run_metrics import read_metrics
from tssr_jax.reporting import METRICS_FILE
from tssr_jax.training.loop import train


def refit(
    run: epath.PathLike,
    workdir: epath.PathLike,
    *,
    everything: bool = False,
    raw_dir: str | None = None,
) -> dict[str, float | int] | None:
    """Trains the settings of a run in another workdir; the same call goes on where it stopped.

        metrics = refit("runs/mine", "runs/final")
        refit("runs/mine", "runs/served", everything=True)

    Args:
      run: workdir of a run that has ended.
      workdir: the new run's folder.
      everything: train on the answers of the test as well, to serve; there are no metrics then.
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
    config.train.update(num_epochs=best_epoch(run), early_stopping_patience=0)
    config.evaluate.held_out = () if everything else ("test",)
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
            f"{run} is best before its first epoch: what it began with. There is nothing to repeat."
        )
    return round(best)
