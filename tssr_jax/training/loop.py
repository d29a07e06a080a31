"""The training loop: steps, logs, validations, checkpoints, early stopping, and the final test."""

import contextlib
import dataclasses
import time
from typing import Any

import jax
import ml_collections
import optax
from etils import epath
from rich.console import Console

from tssr_jax.adapting import adapted
from tssr_jax.checkpoints.checkpointer import Checkpointer, Progress
from tssr_jax.config.choices import trains_encoder
from tssr_jax.config.fields import flattened
from tssr_jax.config.saved import FILE_NAME, OF_A_MACHINE, require_same_config, save_config
from tssr_jax.config.validation import validate_config
from tssr_jax.data_pipeline import digests, report
from tssr_jax.data_pipeline.counts import repeated_share
from tssr_jax.data_pipeline.input_pipeline import (
    NOTHING_TO_TRAIN_ON,
    Cut,
    TrainBatches,
    make_train_batches,
)
from tssr_jax.data_pipeline.windows import held_out_items
from tssr_jax.errors import UserError
from tssr_jax.evaluation.evaluate import (
    evaluate_params,
    make_eval_batches,
    split_metrics,
)
from tssr_jax.evaluation.ranking import Ranked, Ranker
from tssr_jax.locks import one_writer
from tssr_jax.losses.objective import LossConfig, term_weights
from tssr_jax.models.content import CONTENT_LAYOUT
from tssr_jax.parallel import processes
from tssr_jax.parallel.devices import ROWS
from tssr_jax.reporting import MetricWriter, make_console
from tssr_jax.run import ItemArrays, Run, Users, build_run, require_same_data, save_data_report
from tssr_jax.run_folder import remove_trained, save_catalogue, save_trained
from tssr_jax.runtime import StopRequest
from tssr_jax.training.gate_inputs import gate_inputs
from tssr_jax.training.progress import CLOCK, TrainingLog, draw_curves
from tssr_jax.training.start import Start, find_start
from tssr_jax.training.state import (
    NEVER,
    TOTAL,
    TrainState,
    all_finite,
    zero_sums,
)
from tssr_jax.training.step import TrainStep, make_train_step
from tssr_jax.training.trackers import Trackers, require_trackers, tracking

SELECTION_METRIC = "ndcg@10"
# The host waits for the device after this many steps, so that the progress bar is right.
_STEPS_PER_SYNC = 8
_ADVICE = (
    "Nothing was saved since the last checkpoint. Try, in another --workdir, a lower "
    "--config.optimizer.learning_rate, --config.optimizer.clip_norm=1, or a warm-up."
)


def train(
    config: ml_collections.ConfigDict, workdir: epath.PathLike, stop: StopRequest | None = None
) -> dict[str, float | int] | None:
    """Trains, or resumes, the run of `config` in `workdir`, then tests its best checkpoint.

        config = default_config()
        config.data.update(source="csv", raw_dir="data")
        metrics = train(config, "runs/mine")

    Args:
      config: configuration of the run.
      workdir: the run's folder, on this machine or gs://.
      stop: requests a stop; by default at a SIGTERM.

    Returns:
      The test metrics; None if it was stopped: the state after the last step is saved, and the same
      call continues from there.

    Raises:
      UserError: if the configuration or the data make no sense, if `workdir` holds another run,
        or if a loss is not finite.
    """
    workdir = epath.Path(workdir).expanduser()
    validate_config(config)
    require_trackers(tuple(config.train.trackers))
    own = {name: v for name, v in flattened(config).items() if name not in OF_A_MACHINE}
    processes.require_alike("configurations", own)
    lock = one_writer(workdir) if processes.is_first() else contextlib.nullcontext()
    with lock, processes.ending_together():
        return _train(config, workdir, stop)


def _train(
    config: ml_collections.ConfigDict, workdir: epath.Path, stop: StopRequest | None
) -> dict[str, float | int] | None:
    console = make_console(quiet=not processes.is_first())
    config = adapted(config, console.print, workdir)
    resuming = (workdir / FILE_NAME).exists()
    if resuming:
        require_same_config(config, workdir)

    def keep(users: Users, arrays: ItemArrays, content_key: str) -> None:
        data = users.data
        read = {"prepared data": digests.of_records(data.folder), "content": content_key}
        processes.require_alike("data", read)
        if resuming:
            require_same_data(data, content_key, workdir)
        if processes.is_first():
            workdir.mkdir(parents=True, exist_ok=True)
            save_data_report(users, config, content_key, workdir)
            # The features of an encoder that is trained are known at the end only.
            if trains_encoder(config):
                remove_trained(workdir)
            else:
                save_catalogue(workdir, data, arrays, keep=resuming)

    run = build_run(config, keep)
    if processes.is_first():
        save_config(config, workdir)  # last: it makes the folder a run's workdir
    for line in report.summary(run.data.report, keep_seen=config.evaluate.keep_seen):
        console.print(line)
    if told := run.sequences.splits.told:
        console.print(f"split by time: {told}")
    if run.sequences.has_events:
        for line in report.of_repeats(repeated_share(run.sequences), config.evaluate.keep_seen):
            console.print(line)
    with tracking(config, workdir, silent=not processes.is_first()) as trackers:
        return _train_and_test(run, workdir, stop, console, trackers)


def _train_and_test(
    run: Run,
    workdir: epath.Path,
    stop: StopRequest | None,
    console: Console,
    trackers: Trackers,
) -> dict[str, float | int] | None:
    checkpoints = Checkpointer(workdir, run.data.num_items, console.print)
    with checkpoints as checkpointer, stop or StopRequest() as request:
        start = find_start(run, checkpointer)
        from_step, silent = int(start.state.step), not processes.is_first()
        written = MetricWriter(workdir, from_step, also=trackers.log, silent=silent)
        trainer = Trainer(run, start, checkpointer, written, console)
        if not trainer.run(request):
            # A SIGTERM may have come to another process.
            cause = "the limit of time" if request.late and not request.terminated else "SIGTERM"
            console.print(
                f"Stopped by {cause} after step {int(trainer.state.step):,}, which is saved. The "
                "same command goes on from there."
            )
            return None
        if processes.is_first():
            draw_curves(workdir)
        params, step = checkpointer.restore_best(trainer.global_state().eval_params)
    if trains_encoder(run.config):
        save_trained(workdir, run, params, step, trainer.rank.content(params))
    if not run.config.evaluate.held_out:
        console.print(f"{workdir}, step {step}: trained on all interactions, so not tested.")
        return {}
    title = f"{workdir}, step {step}"
    found = trainer.best_found if step == trainer.progress.best_step else None
    columns = evaluate_params(run, params, title, workdir, console, trainer.rank, found)
    trackers.test(step, columns["test"])
    return columns["test"]


def compiled_step(run: Run, optimizer: optax.GradientTransformation, layout: Any) -> TrainStep:
    """The train step for all devices; it reuses the memory of the state it is given.

    Args:
      run: content, model and devices.
      optimizer: the optimiser of the train state.
      layout: layout of the train state on the devices.
    """
    step = make_train_step(run.model, optimizer, run.config, run.trained)
    return run.devices.run(step, inputs=(layout, ROWS, CONTENT_LAYOUT), output=layout, donate=(0,))


def train_batches(run: Run) -> TrainBatches:
    """The training batches of a run; each process reads its own rows."""
    config, devices = run.config, run.devices
    rows = devices.round_up(config.train.batch_size)
    return make_train_batches(
        run.sequences,
        config,
        Cut(rows, devices.local_rows(rows), devices.num_devices),
        run.encoders,
        held_out_items(config, run.data.num_items),
        gate_inputs(run),
    )


class Trainer:
    """One run's loop.

    Attributes:
      state: the train state.
      progress: the loop's state beside it.
      best_found: what ranking the validation split found at the best step, if that was in this
        process; else None.
      rank: ranks users by the model; its program is compiled at the first validation.

    Args:
      run: configuration, data, features and model.
      start: where it begins.
      checkpointer: of the run's workdir.
      writer: takes losses and metrics.
      console: where people read.

    Raises:
      UserError: if no user has enough interactions to train on.
    """

    def __init__(
        self,
        run: Run,
        start: Start,
        checkpointer: Checkpointer,
        writer: MetricWriter,
        console: Console,
    ):
        config = run.config
        self.state, self.progress = start.state, start.progress
        self._run, self._config, self._devices = run, config, run.devices
        self._checkpointer, self._writer, self._console = checkpointer, writer, console
        self.rank = Ranker(run)
        self.best_found: Ranked | None = None
        self._step = compiled_step(run, start.optimizer, start.layout)
        self._batches = train_batches(run)
        if not self._batches.num_users:
            raise UserError(NOTHING_TO_TRAIN_ON)
        validates = "validation" in config.evaluate.held_out
        self._validation = make_eval_batches(run, "validation") if validates else None
        self._total_steps = config.train.num_epochs * self._batches.steps_per_epoch
        self._weights = term_weights(
            run.model.streams, run.model.mixing, LossConfig.from_config(config), run.model.memory
        )
        patience = config.train.early_stopping_patience
        self._log = TrainingLog(console, self._total_steps, int(self.state.step), patience)
        # Since the last row: steps, and seconds without those of compiling.
        self._steps, self._seconds = 0, 0.0
        self._compiled_evaluation = False

    def run(self, stop: StopRequest) -> bool:
        """Trains until the last epoch, until validation stops improving, or until a request.

        A request saves the current state. With several processes a request to any of them stops
        all, at the next step at which they exchange requests.

        Returns:
          Whether training has ended; False if it was stopped.
        """
        step = int(self.state.step)
        size = sum(x.size for x in jax.tree.leaves(self.state.params))
        start = f"Resuming at step {step:,}" if step else "Training from the start"
        self._console.print(
            f"{start}: {size:,} parameters, {self._batches.num_windows:,} windows of "
            f"{self._batches.num_users:,} users in "
            f"{self._batches.steps_per_epoch:,} steps an epoch, on {jax.devices()[0].device_kind}."
        )
        # What a warm start begins with may be better than what training makes of it.
        measured = not self._total_steps or self._config.train.warm_start
        if measured and not step and self.progress.best_step < 0:
            if (value := self._validate(0)) is not None:
                self._console.print(f"As it starts, validation NDCG@10 is {value:.4f}.")
            self._save()
        with self._log:
            if step < self._total_steps and not self._out_of_patience():
                self._log.compiling("the training step")
            batches = self._devices.ahead(self._batches.iterate(step))
            while step < self._total_steps and not self._out_of_patience():
                if self._must_stop(stop, step):
                    self._require_finite_losses()
                    self._save()
                    return False
                started, compiled = time.monotonic(), CLOCK.seconds
                self.state = self._step(self.state, next(batches), self._run.content)
                step += 1
                boundary = self._is_boundary(step)
                if boundary or step % _STEPS_PER_SYNC == 0:
                    jax.block_until_ready(self.state.step)
                self._seconds += time.monotonic() - started - (CLOCK.seconds - compiled)
                self._steps += 1
                self._log.step(step)
                if boundary:
                    self._at_boundary(step)
        return True

    def _must_stop(self, stop: StopRequest, step: int) -> bool:
        if jax.process_count() > 1 and step % _STEPS_PER_SYNC:
            return False
        return processes.any_says(stop.requested)

    def global_state(self) -> TrainState:
        """The state as arrays of all processes, for checkpoints."""
        return self._devices.to_global(self.state)

    def _save(self) -> None:
        state = self.global_state()
        if not jax.jit(all_finite)(state.params):
            raise UserError(
                f"After step {int(state.step)} parameters are NaN or infinite, though the losses "
                f"were not. {_ADVICE}"
            )
        self._checkpointer.save(int(state.step), *state.for_checkpoint(), self.progress)

    def _is_boundary(self, step: int) -> bool:
        return self._logs_at(step) or self._evaluates_at(step) or self._saves_at(step)

    def _at_boundary(self, step: int) -> None:
        self._require_finite_losses()
        loss = self._write_losses(step) if self._logs_at(step) else None
        value = self._validate(step) if self._evaluates_at(step) else None
        if self._evaluates_at(step) or self._saves_at(step):
            self._save()
        if loss is None and value is None:
            return
        a_step = max(self._seconds, 0.0) / max(self._steps, 1)
        self._log.row(
            step / self._batches.steps_per_epoch,
            loss,
            value,
            self.progress.best_value,
            rate=self._config.train.batch_size / a_step if a_step else 0.0,
            seconds=a_step * self._batches.steps_per_epoch,
            left=a_step * (self._total_steps - step),
        )
        if loss is not None:
            self._steps, self._seconds = 0, 0.0

    def _logs_at(self, step: int) -> bool:
        return step % (self._config.train.log_every_steps or self._batches.steps_per_epoch) == 0

    def _evaluates_at(self, step: int) -> bool:
        period = self._config.train.epochs_per_evaluation * self._batches.steps_per_epoch
        return step % period == 0 or step == self._total_steps

    def _saves_at(self, step: int) -> bool:
        period = self._config.train.checkpoint_every_steps
        return bool(period) and step % period == 0

    def _out_of_patience(self) -> bool:
        patience = self._config.train.early_stopping_patience
        return bool(patience) and self.progress.evaluations_without_improvement >= patience

    def _require_finite_losses(self) -> None:
        first = {name: int(step) for name, step in self.state.first_nonfinite.items()}
        step = min(first.values())
        if step != NEVER:
            terms = " and ".join(name for name, at in first.items() if at == step)
            raise UserError(
                f"At step {step} the loss became NaN or infinite; term(s): {terms}. {_ADVICE}"
            )

    def _write_losses(self, step: int) -> float:
        """Writes the terms' means since the last record; returns their weighted sum."""
        means = {name: float(self.state.loss_sums[name].mean()) for name in self._weights}
        total = sum(weight * means[name] for name, weight in self._weights.items())
        record = {f"train/{name}": mean for name, mean in (means | {TOTAL: total}).items()}
        seconds = max(self._seconds, 1e-9)
        self._writer.write(
            step,
            {
                "epoch": step / self._batches.steps_per_epoch,
                **record,
                "sequences_per_second": self._steps * self._config.train.batch_size / seconds,
                "seconds_per_epoch": self._batches.steps_per_epoch * seconds / self._steps,
            },
        )
        # Placed like the step's own results; otherwise the step would be compiled again.
        sums = self._devices.place(zero_sums(self.state.loss_sums))
        self.state = dataclasses.replace(self.state, loss_sums=sums)
        return total

    def _validate(self, step: int) -> float | None:
        """Ranks the validation split, writes its metrics, returns its NDCG@10; None without it."""
        if self._validation is None:  # the newest parameters are the best
            self.progress = Progress(best_step=step)
            return None
        if not self._compiled_evaluation:
            self._log.compiling("the evaluation")
            self._compiled_evaluation = True
        found = self.rank(self.state.eval_params, self._validation)
        metrics = split_metrics(self._run, self._validation, found.ranks)
        record = {f"validation/{name}": value for name, value in metrics.items()}
        self._writer.write(step, {"epoch": step / self._batches.steps_per_epoch} | record)
        value = float(metrics[SELECTION_METRIC])
        if value > self.progress.best_value:
            self.progress = Progress(best_step=step, best_value=value)
            self.best_found = found
        else:
            self.progress.evaluations_without_improvement += 1
        return value
