"""The authors' settings and habits (docs/reference/method.md, "Reference mode").

    python -m tssr_jax.main --config=configs/reference.py:ml100k --workdir=runs/reference

The argument names another file of this folder, with its own argument behind a second colon:
`configs/reference.py:csv:FOLDER`.
"""

import ml_collections

from tssr_jax.config import load


def get_config(base: str = "ml100k") -> ml_collections.ConfigDict:
    """Returns the configuration `base` with the authors' settings in place of ours."""
    config = load(f"paper:{base}")
    config.model.d_model = 128
    config.model.num_heads = 4
    config.model.d_ffn = 256
    config.model.num_unimodal_layers = 1
    config.model.num_cross_layers = 4
    config.model.dropout_rate = 0.1
    config.model.max_length = 10
    config.model.no_content_vector = False
    config.loss.lambda_user = 1.0
    config.loss.lambda_item = 1.0
    config.loss.user_temperature = 0.2
    for habit in config.corrections:
        config.corrections[habit] = False
    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup_steps = 0
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = 0.0
    config.optimizer.ema_decay = 0.0
    config.train.batch_size = 128
    config.train.windows = "last"
    config.train.packing = False
    config.train.time_noise = ()
    return config
