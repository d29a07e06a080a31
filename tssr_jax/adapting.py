"""Sets the fields of a configuration that depend on the data (`config.by_data` has the rules)."""

import itertools
from collections.abc import Callable, Sequence

import ml_collections
import numpy as np
from etils import epath

from tssr_jax.config.by_data import LONG, Facts, filled, open_fields
from tssr_jax.config.fields import flattened
from tssr_jax.config.saved import FILE_NAME, load_config
from tssr_jax.config.validation import validate_config
from tssr_jax.data_pipeline.gate_rows import had_before
from tssr_jax.data_pipeline.prepare import prepare
from tssr_jax.data_pipeline.splits import Targets
from tssr_jax.data_pipeline.store import SequenceStore, open_store
from tssr_jax.data_pipeline.windows import TrainWindows, held_out_items
from tssr_jax.memory.co_occurrence import training_events
from tssr_jax.memory.tables import chosen_fading
from tssr_jax.parallel import processes

# The share of repeats is estimated from at most this many users.
_MOST_USERS = 20_000


def adapted(
    config: ml_collections.ConfigDict,
    say: Callable[[str], None] = print,
    workdir: epath.Path | None = None,
    *,
    has_texts: bool = True,
) -> ml_collections.ConfigDict:
    """The configuration with a value for each field that is open; itself if there is none.

    Args:
      config: the configuration, whose data are prepared if they are not yet.
      say: is told what was chosen.
      workdir: of the run. If it has begun, it keeps what was chosen then.
      has_texts: whether items have texts.

    Raises:
      UserError: if the configuration or the data make no sense.
    """
    names = open_fields(config)
    if not names:
        return config
    validate_config(config)
    if workdir is not None and (workdir / FILE_NAME).exists():
        return _with_values(config, names, workdir)
    with processes.first_goes_first("prepare"):
        data = prepare(config.data)
    sequences = open_store(data, config)
    if other := config.train.warm_start or config.train.init_from:
        # The model is that of the other run, whatever the data are now.
        of_model = [name for name in names if name.startswith("model.")]
        config = _with_values(config, of_model, epath.Path(other).expanduser())
    facts = _facts(config, sequences, data.num_items)._replace(has_texts=has_texts)
    whole = filled(config, facts)
    fields = flattened(whole)
    say(
        f"Half of the users have up to {facts.median_length:.0f} interactions to train on; "
        f"{facts.repeats:.1%} of the newest are repeats. Settings that fit:"
    )
    sections = itertools.groupby(sorted(names), lambda name: name.partition(".")[0])
    for section, own in sections:
        chosen = (f"{name.partition('.')[2]}={fields[name]}" for name in own)
        say(f"  {section}: {', '.join(chosen)}")
    return whole


def _with_values(
    config: ml_collections.ConfigDict, names: Sequence[str], workdir: epath.Path
) -> ml_collections.ConfigDict:
    """The configuration with the values that some fields have in the run of `workdir`."""
    there = flattened(load_config(workdir))
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict({name: there[name] for name in names})
    return config


def _facts(config: ml_collections.ConfigDict, sequences: SequenceStore, num_items: int) -> Facts:
    trained = sequences.splits.trained
    ends = sequences.newest_predicted
    several = np.flatnonzero(ends > 0)[:_MOST_USERS]
    repeats = had_before(sequences, Targets(several, ends[several]))
    settings, fading = config.memory, 0.0
    if settings.fading is None and _counts_pairs(config):
        events = training_events(sequences, held_out_items(config, num_items))
        fading = chosen_fading(events, num_items, settings, config.data.cache_dir)
    median = float(np.median(trained[trained > 0]))
    kind = config.train.windows or ("last" if median < LONG else "strided")
    length = config.model.max_length
    stride = config.train.window_stride or length
    return Facts(
        median,
        float(repeats.mean()) if several.size else 0.0,
        fading,
        TrainWindows(trained, kind, length, stride).number,
    )


def _counts_pairs(config: ml_collections.ConfigDict) -> bool:
    """Whether co-occurrence is read."""
    if config.baseline.kind:
        return bool(config.baseline.kind == "item_knn")
    memory = config.model.memory
    return memory is None or "co_occurrence" in memory
