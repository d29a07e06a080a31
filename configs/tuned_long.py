"""For histories of dozens of items: what ranked best on MovieLens-1M (docs/results/movielens.md).

    python -m tssr_jax.main --config=configs/tuned_long.py:csv:FOLDER --workdir=runs/mine

The argument names another file of this folder, as for configs/tuned.py, which has what ranked best
on short ones. Needs frozen content encoders.
"""

import ml_collections

from tssr_jax.config import load


def get_config(base: str = "ml1m") -> ml_collections.ConfigDict:
    """Returns the configuration `base` with tuned settings of model, losses and training."""
    config = load(f"tuned:{base}")
    config.model.id_reads_content = False
    # A width of 128 learns more per epoch, but an epoch takes twice as long.
    config.model.d_model = 64
    config.model.num_heads = 2
    config.model.d_ffn = 128
    config.model.num_unimodal_layers = 2
    config.model.dropout_rate = 0.2
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 0.0
    # Training uses the whole histories, in many steps of small batches.
    config.train.windows = "strided"
    config.train.window_stride = 50
    config.train.batch_size = 32
    config.train.time_noise = ()
    return config
