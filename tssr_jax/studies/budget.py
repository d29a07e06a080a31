"""The budget of the trials of a folder; trials of another budget can't be compared with them."""

import json

from etils import epath

from tssr_jax.config.files import write_json
from tssr_jax.errors import UserError
from tssr_jax.studies.trial import SEARCHES_FOLDER, TRIALS_FOLDER

FILE_NAME = "budget.json"


def require_same_budget(workdir: epath.Path, **budget: float) -> None:
    """Saves the budget of a study or a search in its folder, or compares it with the saved one.

    Args:
      workdir: the folder.
      budget: values of flags, by their names.

    Raises:
      UserError: if its trials had another budget, or an unknown one.
    """
    path = workdir / FILE_NAME
    if not any((workdir / folder).exists() for folder in (TRIALS_FOLDER, SEARCHES_FOLDER)):
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(path, budget)
        return
    if not path.exists():
        raise UserError(
            f"{workdir} holds trials, but not their {FILE_NAME}: what they were given can't be "
            "told. Choose another --workdir."
        )
    there = json.loads(path.read_text())
    different = [
        f"--{name} is {budget.get(name, 'none')}, there it was {there.get(name, 'none')}"
        for name in there | budget
        if there.get(name) != budget.get(name)
    ]
    if different:
        raise UserError(
            f"{workdir} holds trials of another budget: {'; '.join(different)}. Give the same to "
            "go on, or choose another --workdir."
        )
