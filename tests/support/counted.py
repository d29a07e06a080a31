"""What users took, for tests of what is counted."""

import numpy as np

from tssr_jax.memory.co_occurrence import Events


def events_of(offsets, items, minutes, again=()):
    """Events; users took none of the items once more, but those at the places `again`."""
    more = np.zeros(len(items), bool)
    more[list(again)] = True
    return Events(np.asarray(offsets), np.asarray(items), np.asarray(minutes), more)
