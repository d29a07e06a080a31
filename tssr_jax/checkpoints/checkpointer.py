"""Checkpoints by Orbax: the newest, for resuming, and the best, for evaluation.

One folder per step holds `params` (used for ranking: the average, if there is one), `rest`
(optimiser state, accumulators, and the trained parameters if `params` is an average) and
`progress`.
A checkpoint can be restored on any other arrangement of devices or processes: arrays take the
shardings of the target. Arrays with one row per class are padded or cut to fit its shards.
The two newest checkpoints are kept, and the best checkpoint that each one's progress names. A
checkpoint becomes visible by a rename when it is complete, and old ones are removed only then: a
killed run always leaves its newest complete checkpoint and the best one. `progress` holds
fingerprints of all arrays. A checkpoint whose arrays do not match them counts as damaged, and the
one before it is used.
"""

import contextlib
import dataclasses
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from tssr_jax.checkpoints.alone import read_alone
from tssr_jax.checkpoints.corruption import DamagedError, damage, one_line
from tssr_jax.checkpoints.fingerprint import fingerprints
from tssr_jax.errors import UserError, shown
from tssr_jax.parallel import processes
from tssr_jax.parallel.sharding import class_dimension, path_names
from tssr_jax.run import are_alike, identity_of

FOLDER = "checkpoints"
# Saved with the progress: the catalogue's size, the data, and checksums that detect damage.
_NUM_ITEMS, _DATA = "num_items", "data"
_FINGERPRINTS = "fingerprints"
_CHECKSUM = "checksum"
Shape = tuple[int | str, ...]


@dataclasses.dataclass
class Progress:
    """State of the training loop that is not in the train state.

    Attributes:
      best_step: step of the best validation so far; -1 before the first.
      best_value: its NDCG@10.
      evaluations_without_improvement: validations since then.
    """

    best_step: int = -1
    best_value: float = -1.0
    evaluations_without_improvement: int = 0


class _KeepNewestAndBest:
    """Orbax preservation policy: the two newest checkpoints, and the best one of each.

    Attributes:
      best_steps: the best step that each checkpoint's progress names.
    """

    def __init__(self) -> None:
        self.best_steps: dict[int, int] = {}

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        del context
        newest = sorted(info.step for info in checkpoints)[-2:]
        kept = {*newest, *(self.best_steps.get(step, -1) for step in newest)}
        return [info.step in kept for info in checkpoints]


class Checkpointer:
    """Saves and restores the checkpoints of a workdir; use it as a context manager.

    Args:
      workdir: the run's folder.
      num_items: size of the catalogue.
      report: called with one line of text for each damaged checkpoint.
      reading: saves nothing, and leaves another process's unfinished checkpoint alone.
    """

    def __init__(
        self,
        workdir: epath.Path,
        num_items: int,
        report: Callable[[str], None] = lambda _: None,
        *,
        reading: bool = False,
    ):
        self._num_items = num_items
        self._report = report
        self._folder = epath.Path(workdir / FOLDER).absolute()
        self._data = identity_of(workdir)
        # Step and shapes of the newest parameters that were saved and not read back yet.
        self._unread: tuple[int, Any] | None = None
        self._policy = _KeepNewestAndBest()
        self._manager = ocp.CheckpointManager(
            self._folder,
            item_handlers={
                "params": ocp.StandardCheckpointHandler(),
                "rest": ocp.StandardCheckpointHandler(),
                "progress": ocp.JsonCheckpointHandler(),
            },
            options=ocp.CheckpointManagerOptions(
                preservation_policy=self._policy, cleanup_tmp_directories=not reading
            ),
        )

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind is None:
                self._read_back()
        finally:
            self._manager.close()

    def save(self, step: int, params: Any, rest: Any, progress: Progress) -> None:
        """Saves in the background; the arrays may be donated as soon as this returns.

        Does nothing if the step is already saved.

        Args:
          step: steps done.
          params: the parameters that rank.
          rest: a tree of everything else that a resumed run needs.
          progress: the state of the loop.

        Raises:
          UserError: if this checkpoint can't be written, or the previous one can't be read.
        """
        if step == self._manager.latest_step():
            return
        self._read_back()
        items = {"params": params, "rest": rest}
        fields: dict[str, Any] = dataclasses.asdict(progress)
        fields[_NUM_ITEMS], fields[_DATA] = self._num_items, self._data
        fields[_FINGERPRINTS] = {name: fingerprints(tree) for name, tree in items.items()}
        fields[_CHECKSUM] = _checksum(fields)
        self._policy.best_steps[step] = progress.best_step
        with self._clear_write_errors():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    progress=ocp.args.JsonSave(fields),
                    **{name: ocp.args.StandardSave(tree) for name, tree in items.items()},
                ),
            )
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
        self._unread = step, shapes

    def _read_back(self) -> None:
        """Reads the newest saved parameters, so that it is known that they can be read.

        (Where there are several processes, the first one does.)

        Raises:
          UserError: if it can't be written, or not be read.
        """
        with self._clear_write_errors():
            self._manager.wait_until_finished()
        if self._unread is None:
            return
        (step, shapes), self._unread = self._unread, None
        try:
            fields = self._fields(step)
            if processes.is_first():
                self._read_alone(step, "params", shapes, fields)
        except DamagedError as error:
            raise UserError(
                f"The checkpoint {self._folder / str(step)} was written, but can't be read back "
                f"({shown(error, 300)}). The disk or the network does not store data reliably: "
                "train in another --workdir."
            ) from error

    def restore_newest(self, params: Any, rest: Any) -> tuple[Any, Any, Progress] | None:
        """The newest parameters, rest and progress, or None if nothing was saved yet.

        Reports a damaged checkpoint, restores the one before it, and then moves the damaged one
        aside. If none can be read, moves nothing: the machine may be at fault.

        Args:
          params: a tree with the structure, shapes and shardings to restore; its arrays may be
            `jax.ShapeDtypeStruct`, which leaves memory for the restored arrays.
          rest: such a tree for the rest.

        Raises:
          UserError: if the checkpoint has other parameters or shapes, or none can be read.
        """
        damaged: dict[int, DamagedError] = {}
        for step in self._steps():
            try:
                fields = self._fields(step)
                found = self._restore_arrays(step, "params", params, fields)
                other = self._restore_arrays(step, "rest", rest, fields)
            except DamagedError as error:
                damaged[step] = error
                continue
            for newer, reason in damaged.items():
                self._move_aside(newer, reason)
            for older in self._steps():
                self._policy.best_steps[older] = self._best_step(older)
            return found, other, _progress(fields)
        if damaged:
            raise self._unreadable(damaged)
        return None

    def restore_best(self, target_params: Any) -> tuple[Any, int]:
        """Parameters of the best validation, and their step.

        If they are damaged, reports it and restores the previous best ones, or else the newest
        that can be read.

        Raises:
          UserError: if there is none, none can be read, or it has other parameters or shapes.
        """
        damaged: dict[int, DamagedError] = {}
        steps, evaluated, tried = self._steps(), [], set[int]()
        for step in steps:
            try:
                best = self._fields(step)["best_step"]
            except DamagedError as error:
                self._report_damage(step, error, damaged)
                continue
            if best < 0:
                continue
            evaluated.append(step)
            if best not in tried:
                tried.add(best)
                params = self._params(best, target_params, damaged)
                if params is not None:
                    return params, best
        for step in evaluated:
            params = None if step in tried else self._params(step, target_params, damaged)
            if params is not None:
                self._report(f"Using the checkpoint of step {step} instead of the best one.")
                return params, step
        if evaluated or (steps and damaged.keys() >= set(steps)):
            raise self._unreadable(damaged)
        raise UserError(
            f"{self._folder} holds no evaluated checkpoint. Train for at least "
            "--config.train.epochs_per_evaluation epochs first."
        )

    def _params(self, step: int, target: Any, damaged: dict[int, DamagedError]) -> Any | None:
        """A step's parameters, or None if they are damaged, which is reported."""
        try:
            return self._restore_arrays(step, "params", target, self._fields(step))
        except DamagedError as error:
            self._report_damage(step, error, damaged)
            return None

    def _report_damage(
        self, step: int, error: DamagedError, damaged: dict[int, DamagedError]
    ) -> None:
        damaged[step] = error
        self._report(f"The checkpoint {self._folder / str(step)} is damaged: {error}.")

    def _unreadable(self, damaged: dict[int, DamagedError]) -> UserError:
        reasons = "; ".join(f"step {step}: {error}" for step, error in damaged.items())
        return UserError(
            f"No checkpoint in {self._folder} can be read ({reasons}). They are left as they are. "
            "If the machine or the connection to the files is at fault, fix that and repeat the "
            "command; to start again from the beginning, move the folder away."
        )

    def _steps(self) -> list[int]:
        """Steps of the checkpoints, newest first."""
        with self._clear_write_errors():
            self._manager.wait_until_finished()  # a save in the background has no metadata yet
        return sorted(self._manager.all_steps(), reverse=True)

    def _best_step(self, step: int) -> int:
        try:
            return self._fields(step)["best_step"]
        except DamagedError:
            return -1

    def _fields(self, step: int) -> dict[str, Any]:
        """Reads and checks the fields that are saved with the arrays."""
        fields = dict(self._restore(step, "progress", ocp.args.JsonRestore()))
        if fields.pop(_CHECKSUM, None) != _checksum(fields):
            raise DamagedError("its progress is not what was written")
        if fields[_NUM_ITEMS] != self._num_items:
            raise UserError(
                f"The checkpoint {self._folder / str(step)} does not fit the data: it was written "
                f"for a catalogue of {fields[_NUM_ITEMS]:,} items, this one has "
                f"{self._num_items:,}."
            )
        if not are_alike(fields.get(_DATA, {}), self._data):
            raise UserError(
                f"The checkpoint {self._folder / str(step)} is not of this run: it was trained on "
                "other data. Copy the whole folder of the run anew."
            )
        return fields

    def _restore_arrays(self, step: int, item: str, target: Any, fields: dict[str, Any]) -> Any:
        with damage():
            saved = _shapes(self._manager.item_metadata(step)[item])
        if saved.keys() != fields[_FINGERPRINTS][item].keys():
            raise DamagedError(f"the list of arrays of {item} is not what was written")
        self._require_same_shapes(saved, _shapes(target), step)
        if jax.process_count() > 1:
            self._require_whole(step, item, target, fields)
        # Not strict: the number of classes is padded to a multiple of the shards.
        tree = self._restore(step, item, ocp.args.StandardRestore(target, strict=False))
        _require_written(tree, item, fields)
        return tree

    def _require_whole(self, step: int, item: str, target: Any, fields: dict[str, Any]) -> None:
        """Raises DamagedError in all processes if the first one finds damage."""
        reason = ""
        if processes.is_first():
            try:
                self._read_alone(step, item, target, fields)
            except DamagedError as error:
                reason = str(error)
        if processes.any_says(bool(reason)):
            raise DamagedError(reason or "the first process can't read it")

    def _read_alone(self, step: int, item: str, target: Any, fields: dict[str, Any]) -> None:
        """Reads arrays by this process alone; raises DamagedError."""
        _require_written(read_alone(self._folder / str(step) / item, target), item, fields)

    def _restore(self, step: int, item: str, args: Any) -> Any:
        with damage():
            return self._manager.restore(step, args=ocp.args.Composite(**{item: args}))[item]

    def _move_aside(self, step: int, error: DamagedError) -> None:
        number = 1
        while (place := self._folder.with_name(f"{FOLDER}-damaged-{step}-{number}")).exists():
            number += 1
        self._report(
            f"The checkpoint {self._folder / str(step)} is damaged: {error}. It is moved to "
            f"{place}, and the one before it is used."
        )
        processes.wait_for_all("damage found")
        if processes.is_first():
            (self._folder / str(step)).rename(place)
        processes.wait_for_all("damage moved")
        self._manager.reload()

    @contextlib.contextmanager
    def _clear_write_errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(
                f"A checkpoint could not be written to {self._folder}: "
                f"{one_line(error)}. The one before is whole; when there is room (or the place "
                "can be reached) again, the same command goes on from there."
            ) from error

    def _require_same_shapes(
        self, saved: dict[str, Shape], wanted: dict[str, Shape], step: int
    ) -> None:
        for name in sorted(saved.keys() | wanted.keys()):
            if saved.get(name) != wanted.get(name):
                there = saved.get(name, "none: it is not there")
                here = wanted.get(name, "none: it does not exist")
                raise UserError(
                    f"The checkpoint {self._folder / str(step)} does not fit the model: {name} has "
                    f"shape {there} in the checkpoint and {here} in the model. It was written "
                    "with another configuration or another catalogue."
                )


def _require_written(tree: Any, item: str, fields: dict[str, Any]) -> None:
    """Raises DamagedError if arrays that were read are not those that were written."""
    found, written = fingerprints(tree), fields[_FINGERPRINTS][item]
    for name in written:
        if found.get(name) != written[name]:
            raise DamagedError(f"{item}/{name} is not what was written")


def _progress(fields: dict[str, Any]) -> Progress:
    return Progress(**{field.name: fields[field.name] for field in dataclasses.fields(Progress)})


def _checksum(fields: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(fields, sort_keys=True).encode())


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
