"""Sequential recommendation that learns from item ids and item content, in JAX (arXiv 2403.07623).

The model and its losses work on arrays, in a training loop of your own:

    from tssr_jax import TSSR, LossConfig, init_params, top_k, tssr_loss

    model = TSSR(num_items, d_model=64)
    params = init_params(model, {"text": features.shape[1]}, seed=0)
    loss, metrics = tssr_loss(model, params, batch, features, LossConfig(), key)
    items, scores = top_k(model, params, item_sequence, 10, features)

or the program does all of it, from DataFrames (or files) to lists:

    from tssr_jax import fit

    recommender = fit(interactions, items)
    recommender.recommend([["i3", "i7"]])

Names are imported when they are first used: `import tssr_jax` itself imports neither JAX nor
TensorFlow.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from tssr_jax.config import default_config as default_config
    from tssr_jax.errors import UserError as UserError
    from tssr_jax.evaluation.evaluate import evaluate as evaluate
    from tssr_jax.evaluation.metrics import ranking_metrics as ranking_metrics
    from tssr_jax.evaluation.ranking import rank as rank
    from tssr_jax.evaluation.top_k import top_k as top_k
    from tssr_jax.fitting import fit as fit
    from tssr_jax.losses.contrastive import item_contrast as item_contrast
    from tssr_jax.losses.contrastive import user_contrast as user_contrast
    from tssr_jax.losses.next_item import next_item_loss as next_item_loss
    from tssr_jax.losses.objective import LossConfig as LossConfig
    from tssr_jax.losses.objective import tssr_loss as tssr_loss
    from tssr_jax.models.apply import encode as encode
    from tssr_jax.models.apply import score as score
    from tssr_jax.models.init import init_params as init_params
    from tssr_jax.models.tssr import TSSR as TSSR
    from tssr_jax.recommending.recommender import Recommender as Recommender
    from tssr_jax.training.loop import train as train
    from tssr_jax.training.refit import refit as refit

_PUBLIC = {
    "LossConfig": "losses.objective",
    "Recommender": "recommending.recommender",
    "TSSR": "models.tssr",
    "UserError": "errors",
    "default_config": "config",
    "encode": "models.apply",
    "evaluate": "evaluation.evaluate",
    "fit": "fitting",
    "init_params": "models.init",
    "item_contrast": "losses.contrastive",
    "next_item_loss": "losses.next_item",
    "rank": "evaluation.ranking",
    "ranking_metrics": "evaluation.metrics",
    "refit": "training.refit",
    "score": "models.apply",
    "top_k": "evaluation.top_k",
    "train": "training.loop",
    "tssr_loss": "losses.objective",
    "user_contrast": "losses.contrastive",
}
__all__ = ["__version__", *_PUBLIC]  # noqa: PLE0604 - names of a dictionary


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'tssr_jax' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"tssr_jax.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
