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

    A variant's changes stay. A search starts with the variant's own values, if they lie in the
    space, so that the result is no worse by validation. Ended searches are not repeated.

    Args:
      study: the study, whose variants change `config`.
      config: the study's configuration.
      workdir: folder of the study; searches are in its folder SEARCHES_FOLDER.
      num_trials: trials of each search.
      only: names of variants that are searched; () searches all. Other variants use the results of
        earlier searches.
      pace: how trials are run.

    Returns:
      The study, with the results in the variants' settings.

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
