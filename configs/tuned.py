"""What ranked best on Amazon toys (docs/results/amazon_toys.md), on another configuration's data.

    python -m tssr_jax.main --config=configs/tuned.py:csv:FOLDER --workdir=runs/mine

The argument names another file of this folder, with its own argument behind a second colon:
`configs/tuned.py:amazon:toys-2014`. Needs frozen content encoders.
"""

import ml_collections

from tssr_jax.config import load


def get_config(base: str = "ml100k") -> ml_collections.ConfigDict:
    """Returns the configuration `base` with tuned settings of model, losses and training."""
    config = load(base)
    # Items are scored by their input vectors; each stream, and the gate, predicts separately. One
    # stream reads content, the other ids and content.
    config.model.head = "tied"
    config.model.mixing = "experts"
    config.model.id_reads_content = True
    config.model.content_hidden = 256
    config.model.d_model = 128
    config.model.num_heads = 4
    config.model.d_ffn = 256
    config.model.num_unimodal_layers = 1
    config.model.num_cross_layers = 1
    config.model.dropout_rate = 0.4
    config.model.max_length = 50
    config.loss.lambda_user = 0.1
    config.loss.lambda_item = 0.1
    config.optimizer.learning_rate = 6e-4
    config.optimizer.weight_decay = 0.1
    config.optimizer.ema_decay = 0.99
    config.train.time_noise = (0.0, 7.0, 30.0, 1e6)
    config.train.packing = True
    config.train.num_epochs = 40
    config.train.early_stopping_patience = 3
    return config
