"""What a model looks at in a history: the gate, and the newest position's attention."""

from typing import Any

import jax
import numpy as np

from tssr_jax.config.choices import STREAMS
from tssr_jax.errors import UserError
from tssr_jax.models.apply import attention, encode
from tssr_jax.models.content import Content
from tssr_jax.models.tssr import TSSR
from tssr_jax.parallel.devices import exactly
from tssr_jax.recommending.items import Items, KnownHistory
from tssr_jax.recommending.results import Explanation
from tssr_jax.recommending.step import side_names

_encode = jax.jit(exactly(encode), static_argnums=0)
_attention = jax.jit(exactly(attention), static_argnums=0)


def explanation(
    model: TSSR, params: Any, content: Content, items: Items, known: KnownHistory
) -> Explanation:
    """See `Recommender.explain`."""
    classes, unknown = known.classes, known.unknown
    if not classes:
        raise UserError("None of the history's items is in the catalogue: nothing to explain.")
    length = model.max_length
    window = classes[-length:]
    seen = len(window)
    # One program for all lengths: padding on the left is neither read nor reported.
    sequence = np.array([[0] * (length - seen) + window], np.int32)
    arguments = (model, params, sequence, content)
    beside, names = known.side(length), side_names(model)
    fill = [0] * (length - seen)
    side = {name: np.array([fill + beside[name]], np.int32) for name in names}
    gate = _encode(*arguments, side=side).gate
    attended: dict[str, np.ndarray] = {}
    layers: tuple[str, ...] = ()
    if model.encoder == "attention" and "blocks" in params:
        weights = np.asarray(_attention(*arguments, side=side))[:, :, 0, -1, -seen:]
        streams = [name for name in STREAMS if name in model.streams]
        attended = {name: weights[:, i] for i, name in enumerate(streams)}
        layers = tuple(_layer_name(i, model.num_unimodal_layers) for i in range(len(weights)))
    return Explanation(
        items=tuple((items.ids[c - 1], items.titles[c - 1]) for c in window),
        id_weight=None if gate is None else np.asarray(gate)[0, -seen:].mean(axis=-1),
        attention=attended,
        layers=layers,
        unknown=tuple(unknown),
    )


def _layer_name(layer: int, own: int) -> str:
    return f"self {layer + 1}" if layer < own else f"cross {layer + 1 - own}"
