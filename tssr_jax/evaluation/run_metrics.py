"""What a run has measured, read from its folder."""

import dataclasses
import io
import json
from typing import Any

import numpy as np
import polars as pl
from etils import epath

from tssr_jax.errors import UserError, shown
from tssr_jax.evaluation.evaluate import PER_USER_FILE, SIMPLE_FILE, SPLITS, Metrics
from tssr_jax.reporting import METRICS_FILE

_VALIDATED = "validation/ndcg@10"
_OF_ANSWERS = ("test_rank", "history")
_SHOWN = ("ndcg@10", "recall@10", "mrr", "num_users")


@dataclasses.dataclass(frozen=True)
class RunMetrics:
    """What a run has measured.

    Attributes:
      test: metrics of the best parameters, by name, e.g. "ndcg@10"; {} without a test.
      validation: of the same parameters.
      simple: test metrics of baselines, by their names; {} if none were measured.
      epochs: a row for each validation: "step", "epoch", the losses since the one before
        ("train/total", ...) and "validation/ndcg@10" and the other metrics.
      answers: a row for each test answer: "test_rank", from 0 (a large number where the user had
        the answer before), and "history", the number of items before it. Without rows in a run that
        was exported.
    """

    test: Metrics
    validation: Metrics
    simple: dict[str, Metrics]
    epochs: pl.DataFrame
    answers: pl.DataFrame

    def __str__(self) -> str:
        columns = {"validation": self.validation, "test": self.test}
        columns |= {f"{name}, test": metrics for name, metrics in self.simple.items()}
        columns = {name: metrics for name, metrics in columns.items() if metrics}
        rows = ["".join([f"{'':12}", *(f"{name:>18}" for name in columns)])]
        for name in _SHOWN:
            values = (_shown(metrics.get(name)) for metrics in columns.values())
            rows.append("".join([f"{name:12}", *(f"{value:>18}" for value in values)]))
        return "\n".join(rows)

    __repr__ = __str__


def read_metrics(workdir: epath.Path) -> RunMetrics:
    """Reads the metrics of a run's folder; what was not measured is empty.

    Raises:
      UserError: if metrics.jsonl is damaged.
    """
    validation, test = (_read(workdir / f"{split}_metrics.json") for split in SPLITS)
    records: dict[int, dict[str, Any]] = {}
    path = workdir / METRICS_FILE
    lines = path.read_text().splitlines() if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):
                break  # it was being written when the run was killed
            raise UserError(f"{path}, line {number} is damaged ({shown(error)}).") from error
        records.setdefault(record["step"], {}).update(record)
    validated = [record for record in records.values() if _VALIDATED in record]
    epochs = pl.DataFrame(validated, infer_schema_length=None)
    simple = _read(workdir / SIMPLE_FILE)
    return RunMetrics(test, validation, simple, epochs, _answers(workdir / PER_USER_FILE))


def _answers(path: epath.Path) -> pl.DataFrame:
    if not path.exists():
        return pl.DataFrame(schema=dict.fromkeys(_OF_ANSWERS, pl.Int64))
    with np.load(io.BytesIO(path.read_bytes())) as arrays:
        return pl.DataFrame({name: arrays[name].astype(np.int64) for name in _OF_ANSWERS})


def _read(path: epath.Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def _shown(value: float | int | None) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if isinstance(value, float) else f"{value:,}"
