"""A study whose variants have settings of their own, found by searches of the same length."""

import dataclasses
from collections.abc import Sequence

import ml_collections
from etils import epath

from tssr_jax.reporting import make_console
from tssr_jax.studies.designs import Study, Variant
from tssr_jax.studies.search import best_before, search
from tssr_jax.studies.slots import UNHURRIED, Pace
from tssr_jax.studies.space import counts, parse_space
from tssr_jax.studies.trial import SEARCHES_FOLDER, configured, folder_name


def tune(
    study: Study,
    config: ml_collections.ConfigDict,
    workdir: epath.Path,
    num_trials: int,
    only: Sequence[str] = (),
    *,
    pace: Pace = UNHURRIED,
) -> Study:
    """Searches the settings of each variant: fields of `config.search.space` that it reads.

    What makes a variant what it is (its changes) stays. A search begins with the variant's own
    values, if they lie in the space: what is found is then no worse by validation. What has been
    searched before is not searched again.

    Args:
      study: whose variants change `config`.
      config: the study's.
      workdir: of the study; searches lie in its folder SEARCHES_FOLDER.
      num_trials: of each search.
      only: names of variants that are searched; () searches all. Others have what was found for
        them before.
      pace: how they are run.

    Returns:
      The study with what was found in the variants' settings.

    Raises:
      UserError: as `search` does.
    """
    console = make_console()

    def tuned(variant: Variant) -> Variant:
        own = configured(config, variant, config.seed)
        own.search.space = tuple(
            text
            for text, dimension in zip(own.search.space, parse_space(own), strict=True)
            if dimension.field not in variant.changes and counts(dimension.field, own)
        )
        if not own.search.space:
            return variant
        folder = workdir / SEARCHES_FOLDER / folder_name(variant.name)
        if only and variant.name not in only:
            found = best_before(own, folder) or {}
        else:
            console.print(f"Settings of {variant.name}: {num_trials} trials.")
            found = search(own, folder, num_trials, pace)
        return dataclasses.replace(variant, settings={**variant.settings, **found})

    variants = tuple(tuned(variant) for variant in study.variants_of(config))
    return dataclasses.replace(study, variants=variants, fewer_fields=False)
