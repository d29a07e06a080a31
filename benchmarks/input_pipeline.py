"""Training sequences per second of the tf.data pipeline alone.

    python -m benchmarks.input_pipeline --config=configs/ml100k.py --config.model.max_length=10

The median of `--repeats` runs over `--seconds` each; the first second of a run is not counted.
"""

import statistics
import time
from collections.abc import Sequence

from absl import app, flags
from ml_collections import config_flags

from tssr_jax.adapting import adapted
from tssr_jax.data_pipeline.input_pipeline import TrainBatches, make_train_batches
from tssr_jax.data_pipeline.prepare import prepare
from tssr_jax.data_pipeline.store import open_store

_CONFIG = config_flags.DEFINE_config_file("config", "configs/ml100k.py", "Data and batch size.")
_SECONDS = flags.DEFINE_float("seconds", 3.0, "Length of a run.", lower_bound=0.1)
_REPEATS = flags.DEFINE_integer("repeats", 5, "Runs.", lower_bound=1)


def sequences_per_second(batches: TrainBatches, batch_size: int, seconds: float) -> float:
    """Rate of one run from the start of the stream."""
    stream = batches.iterate(0)
    warm = time.perf_counter() + 1.0
    while time.perf_counter() < warm:
        next(stream)
    start, count = time.perf_counter(), 0
    while (now := time.perf_counter()) < start + seconds:
        next(stream)
        count += 1
    return count * batch_size / (now - start)


def main(argv: Sequence[str]) -> None:
    """Prints one line."""
    del argv
    config = adapted(_CONFIG.value)
    data = prepare(config.data)
    batch_size, length = config.train.batch_size, config.model.max_length
    batches = make_train_batches(open_store(data, config), config)
    rates = [
        sequences_per_second(batches, batch_size, _SECONDS.value) for _ in range(_REPEATS.value)
    ]
    print(
        f"{data.num_users:,} users, batch {batch_size}, length {length}: median "
        f"{statistics.median(rates):,.0f} sequences/s ({min(rates):,.0f} to {max(rates):,.0f} in "
        f"{len(rates)} runs)"
    )


if __name__ == "__main__":
    app.run(main)
