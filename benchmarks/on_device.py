"""Our programs on arrays that are made on the spot: no data, no TensorFlow, no network."""

import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from benchmarks.cases import FEATURE_DIM
from benchmarks.worker import median_seconds
from tssr_jax.config import default
from tssr_jax.evaluation.ranking import make_eval_step
from tssr_jax.losses.drawn_items import cumulative_chances
from tssr_jax.memory.popularity import PERIODS, Popularity
from tssr_jax.memory.scores import Memories, Neighbours
from tssr_jax.models.content import CONTENT_LAYOUT, Content
from tssr_jax.parallel import sharding
from tssr_jax.parallel.devices import ROWS
from tssr_jax.tools.abstract_step import abstract_step


def configure(
    case: dict[str, Any], config: ml_collections.ConfigDict | None = None
) -> ml_collections.ConfigDict:
    """The configuration of a case, by the default one or another, which is changed."""
    config = default.get_config() if config is None else config
    config.model.update(
        streams=tuple(case["streams"]),
        d_model=case["d_model"],
        d_ffn=case["d_ffn"],
        num_heads=case["num_heads"],
        num_unimodal_layers=case["num_unimodal"],
        num_cross_layers=case["num_cross"],
        max_length=case["length"],
    )
    config.train.batch_size = config.evaluate.batch_size = case["batch"]
    config.model.keep_products = case["keep_products"]
    config.loss.next_item = case["next_item"]
    config.optimizer.lazy_rows = case["lazy_rows"]
    return config


def made_up_batch(shapes: Any, num_items: int) -> dict[str, Any]:
    """Full windows of random items: arrays for the batch of an `AbstractStep`."""
    rng = np.random.default_rng(0)

    def make(path: Any, x: Any) -> np.ndarray:
        name = sharding.path_names(path)[-1]
        if name == "row_mask":
            return np.ones(x.shape, bool)
        if name == "times":  # one item a day
            return np.broadcast_to(np.arange(x.shape[1], dtype=np.int32) * 1440, x.shape).copy()
        if name == "label_scores":
            return np.zeros(x.shape, x.dtype)
        return rng.integers(1, num_items + 1, x.shape, np.int32)

    batch: dict[str, Any] = jax.tree_util.tree_map_with_path(make, shapes)
    return batch


def made_up_content(shapes: Content, num_items: int) -> Content:
    """Random arrays in the shapes of an `AbstractStep`'s content; all items are known."""
    rng = np.random.default_rng(0)

    def neighbours(shape: Neighbours) -> Neighbours:
        classes = rng.integers(1, num_items + 1, shape.classes.shape, np.int32)
        return Neighbours(classes, rng.random(shape.likeness.shape, np.float32))

    def memories(shape: Memories) -> Memories:
        popularity = None
        if shape.popularity is not None:
            scores = rng.random(shape.popularity.scores.shape, np.float32)
            popularity = Popularity(np.arange(PERIODS - 1, dtype=np.int32) * 1440, scores)
        tables = {name: neighbours(table) for name, table in shape.tables.items()}
        frequency = rng.random(shape.frequency.shape, np.float32)
        return Memories(tables, popularity, frequency, np.array(0.75, np.float32))

    def chances(shape: Any) -> np.ndarray:
        return cumulative_chances(np.arange(shape.size) > 0)

    return Content(
        {name: rng.normal(size=x.shape).astype(np.float32) for name, x in shapes.features.items()},
        known=None if shapes.known is None else np.ones(shapes.known.shape, bool),  # type: ignore[arg-type]
        chances=None if shapes.chances is None else chances(shapes.chances),  # type: ignore[arg-type]
        memories=None if shapes.memories is None else memories(shapes.memories),
        neighbours=None if shapes.neighbours is None else neighbours(shapes.neighbours),
    )


class Program:
    """A compiled training step and what it works on.

    Attributes:
      compile_seconds: of tracing and compiling.
      memory: bytes of arguments and of all else, by XLA's analysis.
      state: after the steps that were made.
    """

    def __init__(
        self, config: ml_collections.ConfigDict, devices: Sequence[Any], num_items: int
    ) -> None:
        abstract = abstract_step(config, devices, num_items, FEATURE_DIM)
        on, (state, batch, content) = abstract.devices, abstract.inputs
        self.state = on.build(abstract.start, sharding.layout(state))
        self._batch = on.place(made_up_batch(batch, num_items), ROWS)
        self._content = on.place(made_up_content(content, num_items), CONTENT_LAYOUT)
        begin = time.perf_counter()
        lowered = abstract.step.lower(self.state, self._batch, self._content)
        self._step = lowered.compile()
        self.compile_seconds = time.perf_counter() - begin
        memory = self._step.memory_analysis()
        self.memory = (memory.argument_size_in_bytes, memory.temp_size_in_bytes)

    def __call__(self) -> None:
        """One step."""
        self.state = jax.block_until_ready(self._step(self.state, self._batch, self._content))


class Ranking:
    """Ranks and lists of users whose histories are full.

    Args:
      config: of the model.
      device: to run on.
      num_items: size of the catalogue.
      users: how many.
      k: length of the lists; 0 makes none.
    """

    def __init__(
        self, config: ml_collections.ConfigDict, device: Any, num_items: int, users: int, k: int
    ) -> None:
        config.train.batch_size = users
        abstract = abstract_step(config, [device], num_items, FEATURE_DIM)
        on, (state, batch, content) = abstract.devices, abstract.inputs
        windows = made_up_batch(batch, num_items)["item_sequence"]
        rows = {
            "item_sequence": windows,
            "answers": np.random.default_rng(1).integers(1, num_items + 1, users, np.int32),
            "excluded": np.full((users, 1), -1, np.int32),
            "missed": np.zeros(users, bool),
            "row_mask": np.ones(users, bool),
        }
        self._params = on.build(abstract.start, sharding.layout(state)).params
        self._rows = on.place(rows, ROWS)
        self._content = on.place(made_up_content(content, num_items), CONTENT_LAYOUT)
        self._step = on.run(
            make_eval_step(abstract.model, None, k),
            inputs=(sharding.layout(state.params), ROWS, CONTENT_LAYOUT),
        )

    def __call__(self) -> Any:
        """Ranks everybody once."""
        return jax.block_until_ready(self._step(self._params, self._rows, self._content))


def peak(size: int, dtype: str) -> float:
    """FLOP/s of a product of two square matrices."""
    x = jnp.ones((size, size), dtype)
    product = jax.jit(lambda x: jnp.matmul(x, x, precision="highest"))
    return 2 * size**3 / median_seconds(lambda: jax.block_until_ready(product(x)))
