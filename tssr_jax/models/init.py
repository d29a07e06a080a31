"""Everything that makes a model and its parameters."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from tssr_jax.models.tssr import TSSR
from tssr_jax.parallel import sharding
from tssr_jax.parallel.catalogue import Catalogue
from tssr_jax.parallel.collectives import Axis


def make_model(
    config: ml_collections.ConfigDict,
    catalogue: Catalogue | int,
    rows_axis: Axis = None,
    num_events: int = 0,
    profile_sizes: tuple[int, ...] = (),
) -> TSSR:
    """The model of sections `model` and `content` of a configuration, as one device runs it.

    Args:
      config: the whole configuration.
      catalogue: the number of items, or how the classes are cut over devices.
      rows_axis: the device axis that batches are cut along; None on one device.
      num_events: kinds of events of the data.
      profile_sizes: sizes of its fields of users.
    """
    fields = config.model.to_dict()
    del fields["id_dropout"]  # the train step's
    fields["streams"] = tuple(fields["streams"])
    fields["memory"] = tuple(fields["memory"])
    return TSSR(
        catalogue=catalogue,
        modalities=tuple(config.content.modalities),
        fusion=config.content.fusion,
        rows_axis=rows_axis,
        num_events=num_events,
        profile_sizes=profile_sizes,
        **fields,
    )


def init_params(
    model: TSSR,
    feature_widths: Mapping[str, int],
    seed: int = 0,
    encoders: Mapping[str, Any] | None = None,
) -> Any:
    """Initial parameters: a function of the model and the seed, for any number of devices.

        params = init_params(TSSR(1_000, d_model=64), {"text": 384}, seed=0)

    Args:
      model: the module of one device.
      feature_widths: widths of the content features, by modality; {} without a content stream.
      seed: any integer.
      encoders: pretrained parameters of trainable content encoders, by their names. They are zeros
        here: `training.state` fills them in once there is a state, so that nothing large is held
        twice.

    Returns:
      The parameters for all devices; arrays with one row per class have `padded_classes` rows.
    """
    params = _init_params(model, tuple(feature_widths.items()), jax.random.key(seed))
    return params | jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), dict(encoders or {}))


# One function, so that a model whose shapes are asked for several times is traced once.
@functools.partial(jax.jit, static_argnums=(0, 1))
def _init_params(model: TSSR, widths: tuple[tuple[str, int], ...], key: jax.Array) -> Any:
    whole = model.clone(catalogue=Catalogue(model.classes.num_items), rows_axis=None)
    sequence = jnp.zeros((1, model.max_length), jnp.int32)
    # No parameter depends on their values: the compiled program makes no such table.
    rows = whole.classes.num_classes
    features = {name: jnp.zeros((rows, width)) for name, width in widths}
    params = whole.init(key, sequence, features)["params"]
    return sharding.pad_classes(params, model.classes)
