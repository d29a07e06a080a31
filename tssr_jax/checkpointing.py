"""Checkpoints by Orbax: the newest, for resuming, and the best, for evaluation.

One folder per step holds `params` (those that rank: the average where there is one), `rest`
(optimiser state, accumulators, and the trained parameters beside an average) and `progress`.
What was saved on one arrangement of devices or processes is restored on any other: arrays take the
shardings of the target, and those with one row per class are filled up or cut to its shards.
The newest checkpoint's progress says which step is the best one; that one is kept as well. A
checkpoint becomes visible by a rename when it is complete, and old ones are removed only then:
whenever a run is killed, the newest whole checkpoint and its best one are there.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from tssr_jax.errors import UserError
from tssr_jax.placement import class_dimension, path_names
from tssr_jax.train_state import TrainState

FOLDER = "checkpoints"
_NUM_ITEMS = "num_items"
Shape = tuple[int | str, ...]


@dataclasses.dataclass
class Progress:
    """Where the loop stands, beside the train state.

    Attributes:
      best_step: step of the best validation so far; -1 before the first.
      best_value: its NDCG@10.
      evaluations_without_improvement: validations since then.
    """

    best_step: int = -1
    best_value: float = -1.0
    evaluations_without_improvement: int = 0


@dataclasses.dataclass
class _KeepNewestAndBest:
    """Orbax preservation policy; `best_step` is set before each save."""

    best_step: int = -1

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        del context
        newest = max(info.step for info in checkpoints) if checkpoints else -1
        return [info.step in (newest, self.best_step) for info in checkpoints]


class Checkpointer:
    """Saves and restores the checkpoints of a workdir; use it as a context manager.

    Args:
      workdir: the run's folder.
      num_items: size of the catalogue.
    """

    def __init__(self, workdir: Path, num_items: int):
        self._num_items = num_items
        self._folder = (workdir / FOLDER).absolute()
        self._policy = _KeepNewestAndBest()
        self._manager = ocp.CheckpointManager(
            self._folder,
            item_handlers={
                "params": ocp.StandardCheckpointHandler(),
                "rest": ocp.StandardCheckpointHandler(),
                "progress": ocp.JsonCheckpointHandler(),
            },
            options=ocp.CheckpointManagerOptions(
                preservation_policy=self._policy, cleanup_tmp_directories=True
            ),
        )

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._manager.close()

    def save(self, state: TrainState, progress: Progress) -> None:
        """Saves in the background; the state may be donated as soon as this returns.

        A step that is saved already stays as it is.
        """
        if int(state.step) == self._manager.latest_step():
            return
        self._policy.best_step = progress.best_step
        self._manager.save(
            int(state.step),
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(state.eval_params),
                rest=ocp.args.StandardSave(_rest(state)),
                progress=ocp.args.JsonSave(
                    dataclasses.asdict(progress) | {_NUM_ITEMS: self._num_items}
                ),
            ),
        )

    def restore_newest(self, target: TrainState) -> tuple[TrainState, Progress] | None:
        """The newest state and progress, or None if nothing was saved yet.

        Args:
          target: a state of the same structure and shapes.

        Raises:
          UserError: if the checkpoint has other parameters or shapes.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        progress = self._progress(step)
        ranking = self._restore_params(step, target.eval_params)
        rest = self._restore_arrays(step, "rest", _rest(target))
        average = ranking if "params" in rest else None
        rest = {"params": ranking} | rest
        return TrainState(average=average, **rest), progress

    def restore_best(self, target_params: Any) -> tuple[Any, int]:
        """Parameters of the best validation, and their step.

        Raises:
          UserError: if there is none, or it has other parameters or shapes.
        """
        step = self._manager.latest_step()
        best_step = -1 if step is None else self._progress(step).best_step
        if best_step < 0:
            raise UserError(
                f"{self._folder} holds no evaluated checkpoint. Train for at least "
                "--config.train.epochs_per_evaluation epochs first."
            )
        return self._restore_params(best_step, target_params), best_step

    def _progress(self, step: int) -> Progress:
        saved = self._restore(step, progress=ocp.args.JsonRestore())
        fields = dict(saved["progress"])
        num_items = fields.pop(_NUM_ITEMS)
        if num_items != self._num_items:
            raise UserError(
                f"The checkpoint {self._folder / str(step)} does not fit the data: it was written "
                f"for a catalogue of {num_items:,} items, this one has {self._num_items:,}."
            )
        return Progress(**fields)

    def _restore_params(self, step: int, target: Any) -> Any:
        self._manager.wait_until_finished()  # a save in the background has no metadata yet
        saved = self._manager.item_metadata(step)["params"]
        self._require_same_shapes(_shapes(saved), _shapes(target), step)
        return self._restore_arrays(step, "params", target)

    def _restore_arrays(self, step: int, item: str, target: Any) -> Any:
        # Not strict: the number of classes is filled up to what the devices share equally.
        return self._restore(step, **{item: ocp.args.StandardRestore(target, strict=False)})[item]

    def _restore(self, step: int, **args: Any) -> Any:
        return self._manager.restore(step, args=ocp.args.Composite(**args))

    def _require_same_shapes(
        self, saved: dict[str, Shape], wanted: dict[str, Shape], step: int
    ) -> None:
        for name in sorted(saved.keys() | wanted.keys()):
            if saved.get(name) != wanted.get(name):
                raise UserError(
                    f"The checkpoint {self._folder / str(step)} does not fit the model: parameter "
                    f"{name} has shape {saved.get(name, 'none: it is not there')} in the "
                    "checkpoint "
                    f"and {wanted.get(name, 'none: it does not exist')} in the model. It was "
                    "written with another configuration or another catalogue."
                )


def _rest(state: TrainState) -> dict[str, Any]:
    fields = {field.name for field in dataclasses.fields(state)} - {"average"}
    if state.average is None:
        fields -= {"params"}
    return {name: getattr(state, name) for name in sorted(fields)}


def _shapes(tree: Any) -> dict[str, Shape]:
    """Shapes by path; a dimension that counts classes is not compared by its number."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
    shapes: dict[str, Shape] = {}
    for path, leaf in leaves:
        names, shape = path_names(path), list[int | str](leaf.shape)
        dimension = class_dimension(names)
        if dimension is not None:
            shape[dimension] = "classes"
        shapes["/".join(names)] = tuple(shape)
    return shapes
