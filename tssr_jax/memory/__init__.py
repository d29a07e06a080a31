"""What is counted beside the model: items taken together, and items with texts alike."""
