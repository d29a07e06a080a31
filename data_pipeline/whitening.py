"""Whitening of features: what all items have in common tells nothing about any of them."""

import numpy as np

# Directions of less than this share of the largest variance are left out: they are rounding.
_LEAST_VARIANCE = 1e-6


def whiten(table: np.ndarray) -> np.ndarray:
    """Features of mean 0 and covariance 1 / width, so that the mean squared norm stays about 1.

    Vectors of pretrained encoders share a few large directions (WhitenRec, arXiv 2402.10602). The
    axes are turned back to the original ones (ZCA). Rows of zeros, items without features, stay.

    Args:
      table: float32 [num_items + 1, width].
    """
    present = np.any(table != 0, axis=1)
    own = table[present].astype(np.float64)
    if len(own) < 2:
        return table
    centred = own - own.mean(axis=0)
    variances, axes = np.linalg.eigh(centred.T @ centred / len(own))
    kept = variances > _LEAST_VARIANCE * variances[-1]
    scaled = axes[:, kept] / np.sqrt(variances[kept] * kept.sum())
    result = np.zeros_like(table)
    result[present] = centred @ scaled @ axes[:, kept].T
    return result
