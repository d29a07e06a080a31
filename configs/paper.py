"""The paper's model and training, on another configuration's data.

    python -m tssr_jax.main --config=configs/paper.py:csv:FOLDER --workdir=runs/paper

The argument names another file of this folder, with its own argument behind a second colon. Others
train what ranked best (docs/reference/options.md); configs/reference.py has the authors' habits.
"""

import ml_collections

from tssr_jax.config import default, load


def get_config(base: str = "ml100k") -> ml_collections.ConfigDict:
    """Returns the defaults with the data, texts and `keep_seen` of the configuration `base`."""
    config = default.get_config()
    other = load(base)
    config.data = other.data
    config.content = other.content
    if other.evaluate.keep_seen is not None:
        config.evaluate.keep_seen = other.evaluate.keep_seen
    return config
