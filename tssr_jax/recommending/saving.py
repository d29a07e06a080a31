"""Writes what evaluate, recommend, serve and export need of a run, into a folder of its own."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from etils import epath

from tssr_jax.config.files import write_whole
from tssr_jax.config.saved import FILE_NAME as CONFIG_FILE
from tssr_jax.evaluation.evaluate import SPLITS
from tssr_jax.models.content import Content
from tssr_jax.reporting import METRICS_FILE
from tssr_jax.run import DATA_FILE, Run
from tssr_jax.run_folder import save_trained

_NEEDED: Sequence[str] = (DATA_FILE, CONFIG_FILE)
# What was measured; a run that was not tested has none.
_MEASURED = (METRICS_FILE, *(f"{split}_metrics.json" for split in SPLITS))


def save_run(  # noqa: PLR0917
    folder: Path,
    run: Run,
    params: Any,
    content: Content,
    step: int,
    workdir: epath.Path,
    *,
    sequences: bool = False,
) -> None:
    """Writes a run into a new folder.

    Args:
      folder: it does not exist.
      run: the run.
      params: its best parameters, each device with the whole catalogue.
      content: what the model reads of the items, by these parameters.
      step: when they were the best.
      workdir: where the run lies.
      sequences: also the users' sequences, so that it can be evaluated.
    """
    folder.mkdir(parents=True)
    target = epath.Path(folder)
    users = run.users().data.folder if sequences else None
    for name in _NEEDED:
        write_whole(target / name, (workdir / name).read_bytes())
    for name in _MEASURED:
        if (workdir / name).exists():
            write_whole(target / name, (workdir / name).read_bytes())
    save_trained(target, run, params, step, content, users=users)
