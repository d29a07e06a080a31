"""Raw files to prepared sequences to batches; imports nothing of the rest but errors."""
