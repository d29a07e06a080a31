"""A study whose variants have settings of their own, found by searches of the same length."""

import dataclasses
from collections.abc import Sequence

import ml_collections
from etils import epath

from tssr_jax.studies.designs import Study, Variant
from tssr_jax.studies.search import search
from tssr_jax.studies.space import counts, parse_space
from tssr_jax.studies.trial import configured, folder_name

SEARCHES_FOLDER = "searches"


def tune(
    study: Study,
    config: ml_collections.ConfigDict,
    workdir: epath.Path,
    num_trials: int,
    only: Sequence[str] = (),
    *,
    minutes: float = 0.0,
    at_once: int = 1,
) -> Study:
    """Searches the settings of each variant, over the fields of `config.search.space` it reads.

    A search begins with the variant's own values, so none is worse by validation than it was. What
    has been searched before is not searched again.

    Args:
      study: whose variants change `config`.
      config: the study's.
      workdir: of the study; searches lie in its folder SEARCHES_FOLDER.
      num_trials: of each search.
      only: names of variants that are searched; () searches all. Others stay as they are.
      minutes: that training of a trial may take; 0 is no limit.
      at_once: trials that run side by side.

    Returns:
      The study with what was found in the variants' changes.

    Raises:
      UserError: as `search` does.
    """

    def tuned(variant: Variant) -> Variant:
        own = configured(config, variant, config.seed)
        if not any(counts(dimension.field, own) for dimension in parse_space(own)):
            return variant
        folder = workdir / SEARCHES_FOLDER / folder_name(variant.name)
        found = search(own, folder, num_trials, minutes=minutes, at_once=at_once)
        return dataclasses.replace(variant, changes={**variant.changes, **found})

    variants = study.variants_of(config)
    return dataclasses.replace(
        study,
        variants=tuple(tuned(v) if not only or v.name in only else v for v in variants),
        fewer_fields=False,
    )
