"""A small model with parameters under which every part of it shows."""

import jax
import jax.numpy as jnp
from flax import traverse_util

from tssr_jax.config import default
from tssr_jax.models import apply
from tssr_jax.models.init import init_params, make_model
from tssr_jax.parallel.catalogue import Catalogue

NUM_ITEMS, FEATURE_DIM = 12, 6
WIDTHS = {"text": FEATURE_DIM}
encode = jax.jit(apply.encode, static_argnums=0, static_argnames="last_only")
FEATURES = jax.random.normal(jax.random.key(9), (NUM_ITEMS + 1, FEATURE_DIM))


def make(streams=("id", "content"), **fields):
    config = default.get_config()
    config.model.update(d_model=8, d_ffn=16, num_heads=2, max_length=6, num_cross_layers=2)
    config.model.update(streams=streams, **fields)
    model = make_model(config, Catalogue(NUM_ITEMS))
    params = init_params(model, WIDTHS, seed=0)
    return model, with_attention(params, 1.0)


def with_attention(params, scale):
    """Residual scalars start at 1e-8: without larger ones attention would hardly show."""
    flat = traverse_util.flatten_dict(params)
    scalars = [path for path in flat if path[-1].endswith("_residual_scale")]
    assert scalars or not any("attention" in path for path in flat)
    flat |= {path: jnp.full_like(flat[path], scale) for path in scalars}
    return traverse_util.unflatten_dict(flat)
