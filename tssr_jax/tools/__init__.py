"""What a step needs on which devices; preparing data without training."""
