"""From raw dumps to batches: sources -> sequences -> builder -> features -> input pipeline."""
