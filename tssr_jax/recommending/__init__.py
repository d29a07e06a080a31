"""From a run's best checkpoint to recommendations: histories -> lists of items."""
