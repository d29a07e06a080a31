"""Writes what evaluate, recommend, serve and export need of a run, into a folder of its own.

The folder is one that the Hugging Face Hub shows and keeps: parameters as safetensors, the
configuration, and a model card.
"""

import importlib
import re
from pathlib import Path
from typing import Any

import huggingface_hub
from etils import epath

from tssr_jax.config.default import get_config as default_config
from tssr_jax.config.files import write_whole
from tssr_jax.config.saved import DATA_FILE, load_config, save_config
from tssr_jax.errors import UserError, shown
from tssr_jax.evaluation.evaluate import SIMPLE_FILE, SPLITS
from tssr_jax.evaluation.run_metrics import read_metrics
from tssr_jax.models.content import Content
from tssr_jax.recommending import card
from tssr_jax.reporting import METRICS_FILE
from tssr_jax.run import Run
from tssr_jax.run_folder import save_trained

# What was measured; a run that was not tested has none.
_MEASURED = (METRICS_FILE, SIMPLE_FILE, *(f"{split}_metrics.json" for split in SPLITS))
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


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
      folder: the new folder.
      run: the run.
      params: its best parameters, each device with the whole catalogue.
      content: what the model reads of the items, by these parameters.
      step: when they were the best.
      workdir: where the run lies.
      sequences: also the users' sequences, so that it can be evaluated.

    Raises:
      UserError: if the folder exists.
    """
    if ":/" in str(folder):  # a Path of gs://
        raise UserError(f"{folder} is no folder of this machine: save here, and copy it.")
    if folder.exists():
        raise UserError(f"{folder} exists: name a new folder.")
    users = run.users().data.folder if sequences else None
    config = load_config(workdir)
    folder.mkdir(parents=True)
    target = epath.Path(folder)
    # They say where this machine has its files.
    config.data.update(raw_dir="", cache_dir=default_config().data.cache_dir)
    save_config(config, target)
    for name in (DATA_FILE, *_MEASURED):
        if (workdir / name).exists():
            write_whole(target / name, (workdir / name).read_bytes())
    save_trained(target, run, params, step, content, users=users)
    version = importlib.import_module("tssr_jax").__version__
    text = card.model_card(run, read_metrics(workdir), version, sequences=sequences)
    write_whole(target / card.FILE_NAME, text.encode())


def local_copy(name: str | Path | epath.Path) -> str | Path | epath.Path:
    """A folder itself; of OWNER/NAME on the Hugging Face Hub a copy, made once.

    Raises:
      UserError: if there is neither.
    """
    text = str(name)
    if Path(text).expanduser().exists() or not _REPOSITORY.fullmatch(text):
        return name
    try:
        return str(huggingface_hub.snapshot_download(text))
    except Exception as error:  # of the network, or of the Hub
        raise UserError(
            f"{name} is no folder, and can't be fetched from the Hugging Face Hub "
            f"({shown(error, 300)})."
        ) from error
