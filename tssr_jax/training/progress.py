"""Output of training: one aligned row an epoch, a bar on a terminal, a picture."""

import datetime
import io
import json
from collections.abc import Iterable

import jax
from etils import epath
from rich.console import Console
from rich.progress import Progress

from tssr_jax.config.files import write_whole
from tssr_jax.reporting import METRICS_FILE, make_progress

CURVES_FILE = "learning_curves.png"
# Width and title of the columns.
_COLUMNS = (
    (7, "epoch"),
    (9, "loss"),
    (9, "NDCG@10"),
    (5, ""),
    (13, "sequences/s"),
    (9, "s/epoch"),
    (12, "left at most"),
)


class CompileClock:
    """Seconds that this process has spent on tracing and compiling, so far."""

    _EVENTS = (
        "/jax/core/compile/jaxpr_trace_duration",
        "/jax/core/compile/jaxpr_to_mlir_module_duration",
        "/jax/core/compile/backend_compile_duration",
    )

    def __init__(self) -> None:
        self.seconds = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._note)

    def _note(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event in self._EVENTS:
            self.seconds += duration_secs


CLOCK = CompileClock()


class TrainingLog:
    """Rows for people, and a bar; use it as a context manager.

    Args:
      console: prints the rows and the bar.
      steps: steps of the whole training.
      done: steps done before.
      patience: validations without improvement after which training stops; 0 is never.
    """

    def __init__(self, console: Console, steps: int, done: int, patience: int):
        self._console = console
        self._bar: Progress = make_progress(console)
        self._task = self._bar.add_task("Training", total=steps, completed=done, message="")
        self._stops = f", stops after {patience} without gain" if patience else ""
        self._titled = False

    def __enter__(self) -> "TrainingLog":
        self._bar.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._bar.stop()

    def compiling(self, what: str) -> None:
        """Says that something is being compiled, which shows nothing for a while."""
        self._bar.update(self._task, message=f"compiling {what} ...")
        self._console.print(f"Compiling {what} ...")

    def step(self, done: int) -> None:
        """Moves the bar."""
        self._bar.update(self._task, completed=done)

    def row(  # noqa: PLR0917
        self,
        epoch: float,
        loss: float | None,
        value: float | None,
        best: float,
        rate: float,
        seconds: float,
        left: float,
    ) -> None:
        """Adds a row.

        Args:
          epoch: epochs done.
          loss: the weighted sum of its terms' means since the last row; None between two logs.
          value: validation NDCG@10; None where there was no validation.
          best: the best so far.
          rate: sequences a second, without compiling.
          seconds: of an epoch, without compiling.
          left: seconds until the last epoch, if training does not stop earlier.
        """
        if not self._titled:
            self._print(title for _, title in _COLUMNS)
            self._titled = True
        mark = "best" if value is not None and value >= best else ""
        ndcg = "" if value is None else f"{value:.4f}"
        time = str(datetime.timedelta(seconds=round(left)))
        total = "" if loss is None else f"{loss:.4f}"
        self._print((f"{epoch:g}", total, ndcg, mark, f"{rate:,.0f}", f"{seconds:.1f}", time))
        told = f"loss {total}" + (f" · val {ndcg}" if ndcg else "")
        told += f" · best {best:.4f}{self._stops}" if best >= 0 else ""
        self._bar.update(self._task, message=told)

    def _print(self, cells: Iterable[str]) -> None:
        widths = (width for width, _ in _COLUMNS)
        text = " ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
        self._console.print(text.rstrip())


def draw_curves(workdir: epath.Path) -> None:
    """Writes learning_curves.png: training loss and validation NDCG@10, from two epochs on."""
    path = workdir / METRICS_FILE
    if not path.is_file():
        return
    records = [json.loads(line) for line in path.read_text().splitlines()]
    curves = {
        "training loss": [(r["epoch"], r["train/total"]) for r in records if "train/total" in r],
        "validation NDCG@10": [
            (r["epoch"], r["validation/ndcg@10"]) for r in records if "validation/ndcg@10" in r
        ],
    }
    if max(map(len, curves.values())) < 2:
        return
    # Not at the top: it takes half a second, and is needed once, at the end.
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, points) in zip(figure.subplots(1, 2), curves.items(), strict=True):
        if points:
            axes.plot(*zip(*points, strict=True), marker=".")
        axes.set(title=title, xlabel="epoch")
        axes.grid(alpha=0.3)
    picture = io.BytesIO()
    figure.savefig(picture, dpi=100)
    write_whole(workdir / CURVES_FILE, picture.getvalue())
