"""The train state, the pure step that advances it, the optimiser and the loop."""
