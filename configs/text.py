"""Trains the text encoder with the model, on another configuration's data.

    python -m tssr_jax.main --config=configs/text.py:ml1m --workdir=runs/ml1m_text

The argument names another file of this folder, with its own argument behind a second colon:
`configs/text.py:csv:FOLDER`. The model is the paper's: heads and memories that read the whole
catalogue need frozen encoders. `--config.content.text.trained_layers=2` trains the top two layers
only.
"""

import ml_collections

from tssr_jax.config import load


def get_config(base: str = "ml100k") -> ml_collections.ConfigDict:
    """Returns the configuration `base` with a text encoder that is trained."""
    config = load(f"paper:{base}")
    config.content.text.trained_layers = -1
    # A longer text costs every step, not just the first.
    config.content.text.max_tokens = 64
    return config
