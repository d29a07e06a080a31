"""Sets the fields of a configuration that depend on the data (`config.by_data` has the rules)."""

from collections.abc import Callable

import ml_collections
import numpy as np
from etils import epath

from tssr_jax.config.by_data import LONG, Facts, filled, open_fields
from tssr_jax.config.fields import flattened
from tssr_jax.config.saved import load_config
from tssr_jax.config.validation import validate_config
from tssr_jax.data_pipeline.gate_rows import had_before
from tssr_jax.data_pipeline.prepare import prepare
from tssr_jax.data_pipeline.splits import Targets
from tssr_jax.data_pipeline.store import SequenceStore, open_store
from tssr_jax.data_pipeline.windows import held_out_items
from tssr_jax.memory.co_occurrence import training_events
from tssr_jax.memory.tables import chosen_fading
from tssr_jax.parallel import processes

# As many users tell the share of repeats.
_MOST_USERS = 20_000


def adapted(
    config: ml_collections.ConfigDict, say: Callable[[str], None] = print
) -> ml_collections.ConfigDict:
    """The configuration with a value for each field that is open; itself if there is none.

    Args:
      config: the configuration, whose data are prepared if they are not yet.
      say: is told what was chosen.

    Raises:
      UserError: if the configuration or the data make no sense.
    """
    names = open_fields(config)
    if not names:
        return config
    validate_config(config)
    with processes.first_goes_first("prepare"):
        data = prepare(config.data)
    sequences = open_store(data, config)
    if config.train.warm_start:  # the model is that of the other run, whatever the data are now
        there = flattened(load_config(epath.Path(config.train.warm_start).expanduser()))
        config = config.copy_and_resolve_references()
        of_model = {name: there[name] for name in names if name.startswith("model.")}
        config.update_from_flattened_dict(of_model)
    facts = _facts(config, sequences, data.num_items)
    whole = filled(config, facts)
    fields = flattened(whole)
    chosen = ", ".join(f"{name}={fields[name]}" for name in names)
    say(
        f"Half of the users have up to {facts.median_length:.0f} interactions to train on; "
        f"{facts.repeats:.1%} of the newest are repeats. Settings that fit: {chosen}"
    )
    return whole


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
    targets = np.maximum(trained - 1, 0)
    a_window = targets.max(initial=1) if median < LONG else config.model.max_length
    return Facts(
        median,
        float(repeats.mean()) if several.size else 0.0,
        fading,
        float(np.ceil(targets / a_window).sum()),
    )


def _counts_pairs(config: ml_collections.ConfigDict) -> bool:
    """Whether co-occurrence is read."""
    if config.baseline.kind:
        return bool(config.baseline.kind == "item_knn")
    memory = config.model.memory
    return memory is None or "co_occurrence" in memory
