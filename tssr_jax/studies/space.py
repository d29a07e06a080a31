"""The space of a search of settings (`config.search.space`)."""

import ast
import math
from typing import Any, NamedTuple

import ml_collections

from tssr_jax.config.fields import flattened
from tssr_jax.errors import UserError

_FORM = (
    "must look like 'optimizer.learning_rate: log 1e-4 1e-2', 'model.dropout_rate: range 0 0.5' or "
    "'model.d_model: choice 64 128'"
)


# What baselines read; popularity reads nothing.
_OF_BASELINES = {
    "nearest_texts": ("memory.decay", "memory.neighbours", "model.max_length"),
    "own_items": ("model.max_length",),
}
# Fields that only models with two streams read, and fields that only models with content read.
_OF_TWO_STREAMS = (
    "loss.lambda_user",
    "loss.lambda_item",
    "loss.user_temperature",
    "model.id_reads_content",
    "model.mixing",
    "model.num_cross_layers",
)
_OF_CONTENT = ("content.", "model.content_hidden", "model.no_content_vector", "model.id_dropout")
# Fields that recurrent encoders do not read.
_OF_ATTENTION = ("model.d_ffn", "model.num_heads")


class Dimension(NamedTuple):
    """One field of the configuration, and its values.

    Attributes:
      field: dotted name.
      kind: "log" or "range", between two numbers, or "choice".
      values: the two ends, or the choices.
    """

    field: str
    kind: str
    values: tuple[Any, ...]

    def suggest(self, trial: Any) -> Any:
        """The value that an Optuna trial suggests; whole if the field and both ends are whole."""
        if self.kind == "choice":
            names = [self.name_of(value) for value in self.values]
            return self.values[names.index(trial.suggest_categorical(self.field, names))]
        whole = all(isinstance(value, int) for value in self.values)
        ask = trial.suggest_int if whole else trial.suggest_float
        return ask(self.field, *self.values, log=self.kind == "log")

    def name_of(self, value: Any) -> Any:
        """The name of a value in Optuna: tuples become strings, since JSON has no tuples."""
        return repr(value) if isinstance(value, tuple) else value

    def value_of(self, name: Any) -> Any:
        """The value of a name from `name_of`."""
        return next((value for value in self.values if self.name_of(value) == name), name)

    def contains(self, value: Any) -> bool:
        """Whether the space has this value."""
        if self.kind == "choice":
            return value in self.values
        return bool(self.values[0] <= value <= self.values[1])


def counts(field: str, config: ml_collections.ConfigDict) -> bool:
    """Whether a configuration reads a field: other baselines, or a single stream, do not."""
    kind = config.baseline.kind
    if kind == "item_knn":
        return field.startswith("memory.") or field == "model.max_length"
    if kind:
        return field in _OF_BASELINES.get(kind, ())
    if field.startswith("memory."):  # a model weighs words by its gate
        memory = config.model.memory
        return (memory is None or len(memory) > 0) and field != "memory.words"
    if len(config.model.streams) == 1 and field in _OF_TWO_STREAMS:
        return False
    if config.model.encoder == "gru" and field in _OF_ATTENTION:
        return False
    return tuple(config.model.streams) != ("id",) or not field.startswith(_OF_CONTENT)


def parse_space(config: ml_collections.ConfigDict) -> list[Dimension]:
    """The dimensions of `config.search.space`.

    Raises:
      UserError: if one can't be read, names no field, or has values of another type.
    """
    fields = flattened(config)
    dimensions = []
    for text in config.search.space:
        name, _, rest = (part.strip() for part in text.partition(":"))
        kind, *words = rest.split() or [""]
        try:
            values = tuple(ast.literal_eval(word) for word in words)
        except (SyntaxError, ValueError) as error:
            raise UserError(f"--config.search.space has {text!r}; it {_FORM}.") from error
        numbers = all(isinstance(value, int | float) for value in values)
        ends = numbers and len(values) == 2
        if kind not in {"log", "range", "choice"} or not values or (kind != "choice" and not ends):
            raise UserError(f"--config.search.space has {text!r}; it {_FORM}.")
        if name not in fields:
            raise UserError(
                f"--config.search.space names {name!r}, which is no field of the configuration."
            )
        if isinstance(fields[name], float) and numbers:
            values = tuple(float(value) for value in values)
        dimensions.append(Dimension(name, kind, values))
        _require_values(dimensions[-1], config)
    if not dimensions:
        raise UserError(f"--config.search.space is empty; its entries {_FORM.partition(' ')[2]}.")
    return dimensions


def _require_values(dimension: Dimension, config: ml_collections.ConfigDict) -> None:
    """Raises UserError if its field can't have these values."""
    name, kind, values = dimension
    if kind != "choice" and not (0 if kind == "log" else -math.inf) < values[0] < values[1]:
        order = "0 < A < B" if kind == "log" else "A < B"
        raise UserError(
            f"--config.search.space has '{name}: {kind} {values[0]} {values[1]}', where the two "
            f"ends A and B must be {order}."
        )
    own = config.copy_and_resolve_references()
    for value in values:
        try:
            own.update_from_flattened_dict({name: value})
        except (TypeError, ValueError) as error:
            raise UserError(
                f"--config.search.space has {value!r} for {name}, which can't be that: "
                f"{type(value).__name__} is not its type."
            ) from error
