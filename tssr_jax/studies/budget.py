"""What the trials of a folder were given; others can't be compared with them."""

import json

from etils import epath

from tssr_jax.errors import UserError
from tssr_jax.run_config import write_json
from tssr_jax.studies.trial import TRIALS_FOLDER

FILE_NAME = "budget.json"


def require_same_budget(workdir: epath.Path, **budget: float) -> None:
    """Keeps the budget of a study, or of a search, in its folder.

    Args:
      workdir: the folder.
      budget: values of flags, by their names.

    Raises:
      UserError: if its trials had another one, or it can't be told which.
    """
    path = workdir / FILE_NAME
    if not path.exists():
        if (workdir / TRIALS_FOLDER).exists():
            raise UserError(
                f"{workdir} holds trials, but not their {FILE_NAME}: what they were given can't be "
                "told. Choose another --workdir."
            )
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(path, budget)
    there = json.loads(path.read_text())
    different = [
        f"--{name} is {value:g}, there it was {there.get(name, 'none')}"
        for name, value in budget.items()
        if there.get(name) != value
    ]
    if different:
        raise UserError(
            f"{workdir} holds trials of another budget: {'; '.join(different)}. Give the same to "
            "go on, or choose another --workdir."
        )
