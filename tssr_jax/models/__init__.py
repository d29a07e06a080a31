"""The two-stream model as pure Flax (linen) modules."""
