"""Whitening of features: what all items have in common tells nothing about any of them."""

import numpy as np

# Directions of less than this share of the largest variance are left out: they are rounding.
_LEAST_VARIANCE = 1e-6


def whiten(table: np.ndarray, catalogue: np.ndarray | None = None) -> np.ndarray:
    """Features of mean 0 and covariance 1 / width, so that the mean squared norm stays about 1.

    Vectors of pretrained encoders share a few large directions (WhitenRec, arXiv 2402.10602). The
    axes are turned back to the original ones (ZCA). Rows of zeros, items without features, stay.

    Args:
      table: float32 [num_items + 1, width].
      catalogue: the items, [items + 1, width], whose mean and covariance count; by default the
        table's own.
    """
    all_items = table if catalogue is None else catalogue
    all_items = all_items[np.any(all_items != 0, axis=1)].astype(np.float64)
    if len(all_items) < 2:
        return table
    mean = all_items.mean(axis=0)
    centred = all_items - mean
    variances, axes = np.linalg.eigh(centred.T @ centred / len(all_items))
    kept = variances > _LEAST_VARIANCE * variances[-1]
    scaled = axes[:, kept] / np.sqrt(variances[kept] * kept.sum())
    result = np.zeros_like(table)
    present = np.any(table != 0, axis=1)
    result[present] = (table[present] - mean) @ scaled @ axes[:, kept].T
    return result
