"""Seconds to encode a catalogue's texts, tokenizing and compiling included.

    python -m benchmarks.text_encoding --config=configs/csv.py:FOLDER

Nothing is read from the cache of features. Each repeat builds its encoder anew, so that all of
them compile.
"""

import statistics
import time
from collections.abc import Sequence

from absl import app, flags
from ml_collections import config_flags

from tssr_jax.content.text_features import TextEncoder, text_model_folder
from tssr_jax.data_pipeline.prepare import prepare

_CONFIG = config_flags.DEFINE_config_file("config", "configs/ml100k.py", "Data and text encoder.")
_REPEATS = flags.DEFINE_integer("repeats", 3, "Runs.", lower_bound=1)


def main(argv: Sequence[str]) -> None:
    """Prints one line."""
    del argv
    config = _CONFIG.value
    texts = [text for text in prepare(config.data).texts if text.strip()]
    folder = text_model_folder(config.content.text.model_dir, config.data.cache_dir)
    seconds = []
    for _ in range(_REPEATS.value):
        start = time.perf_counter()
        TextEncoder(folder, config.content.text.max_tokens).encode(texts)
        seconds.append(time.perf_counter() - start)
    print(
        f"{len(texts):,} texts: median {statistics.median(seconds):.1f} s "
        f"({min(seconds):.1f} to {max(seconds):.1f} in {len(seconds)} runs)"
    )


if __name__ == "__main__":
    app.run(main)
