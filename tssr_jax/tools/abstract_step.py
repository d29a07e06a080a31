"""A train step without data: shapes of its inputs, and the step compiled for them."""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import ml_collections

from tssr_jax.config.choices import ranks_by_content, reads_content
from tssr_jax.memory.popularity import PERIODS, Popularity
from tssr_jax.memory.scores import Memories, Neighbours
from tssr_jax.models.content import CONTENT_LAYOUT, Content
from tssr_jax.models.init import init_params, make_model
from tssr_jax.models.tssr import TSSR
from tssr_jax.parallel import sharding
from tssr_jax.parallel.devices import ROWS, Devices
from tssr_jax.training import gate
from tssr_jax.training.optimizer import make_optimizer
from tssr_jax.training.state import create_train_state
from tssr_jax.training.step import make_train_step


class AbstractStep(NamedTuple):
    """A train step, and what it takes.

    Attributes:
      step: `(state, batch, content) -> state`, compiled at its first call.
      start: makes the state before the first step.
      inputs: shapes of state, batch and content.
      model: the module of one device.
      devices: how bodies are run on the devices.
    """

    step: Any
    start: Any
    inputs: tuple[Any, Any, Content]
    model: TSSR
    devices: Devices

    def compile(self) -> Any:
        """The compiled step; nothing is run."""
        return self.step.lower(*self.inputs).compile()


def abstract_step(
    config: ml_collections.ConfigDict, devices: Sequence[Any], num_items: int, feature_dim: int
) -> AbstractStep:
    """The step of a configuration; content encoders that are trained, and packing, are left out.

    Args:
      config: `train.batch_size` is the global batch.
      devices: to compile for; they need not be present.
      num_items: size of the catalogue.
      feature_dim: width of the content features.
    """
    mesh = Devices("shard_map", 0, config.model_devices, devices)
    rows = mesh.round_up(config.train.batch_size)
    model = make_model(config, mesh.catalogue(num_items), mesh.rows_axis)
    optimizer = make_optimizer(config.optimizer, model.classes)
    widths = dict.fromkeys(model.modalities, feature_dim) if reads_content(model.streams) else {}
    features = {
        name: jax.ShapeDtypeStruct((model.classes.padded_classes, width), jnp.float32)
        for name, width in widths.items()
    }
    known: Any = None
    if ranks_by_content(model.head, model.streams):
        known = jax.ShapeDtypeStruct((model.classes.padded_classes,), jnp.bool_)
    chances: Any = None
    if config.loss.next_item == "sampled":
        chances = jax.ShapeDtypeStruct((model.classes.num_classes,), jnp.int32)
    memories = _memories(config, model.classes.num_classes)
    near = model.id_neighbours
    neighbours = _neighbours(model.classes.num_classes, near) if near else None
    content = Content(
        features, known=known, chances=chances, memories=memories, neighbours=neighbours
    )

    def start() -> Any:
        return create_train_state(init_params(model, widths, config.seed), optimizer, config)

    window = jax.ShapeDtypeStruct((rows, config.model.max_length), jnp.int32)
    row_mask = jax.ShapeDtypeStruct((rows,), jnp.bool_)
    batch: dict[str, Any] = {"item_sequence": window, "labels": window, "row_mask": row_mask}
    if model.memory:
        number = mesh.round_up(gate.ROWS)
        own = jax.ShapeDtypeStruct((number, config.model.max_length), jnp.int32)
        label = jax.ShapeDtypeStruct((number,), jnp.int32)
        counted = gate.counted_memories(model.memory)
        score = jax.ShapeDtypeStruct((number, len(counted)), jnp.float32)
        batch["gate"] = {"item_sequence": own, "times": own, "labels": label, "label_scores": score}
        batch["gate"]["asked"] = label
        if config.evaluate.split == "global_time":
            batch["gate"]["as_new"] = jax.ShapeDtypeStruct((number,), jnp.bool_)
        batch["gate"]["row_mask"] = jax.ShapeDtypeStruct((number,), jnp.bool_)
    state = jax.eval_shape(start)
    layout = sharding.layout(state)
    step: Any = mesh.run(
        make_train_step(model, optimizer, config),
        inputs=(layout, ROWS, CONTENT_LAYOUT),
        output=layout,
        donate=(0,),
    )
    return AbstractStep(step, start, (state, batch, content), model, mesh)


def _memories(config: ml_collections.ConfigDict, classes: int) -> Any:
    """Shapes of the memories; None without."""
    if not tuple(config.model.memory):
        return None
    names, of = tuple(config.model.memory), cast(Any, jax.ShapeDtypeStruct)
    widths = {"co_occurrence": config.memory.neighbours, "words": config.memory.neighbours}
    widths["repeats"] = 1
    tables = {name: _neighbours(classes, widths[name]) for name in names if name in widths}
    popularity: Any = None
    if "popularity" in names:
        before = config.evaluate.split == "global_time"
        scores = of((PERIODS + before, classes), jnp.float32)
        popularity = Popularity(of((PERIODS - 1 + before,), jnp.int32), scores, of((), jnp.int32))
    numbers = of((classes,), jnp.float32), of((), jnp.float32), of((), jnp.int32)
    return Memories(tables, popularity, *numbers)


def _neighbours(classes: int, number: int) -> Any:
    shape = (classes, min(number, classes - 1))
    return Neighbours(*(jax.ShapeDtypeStruct(shape, kind) for kind in (jnp.int32, jnp.float32)))  # type: ignore[arg-type]
