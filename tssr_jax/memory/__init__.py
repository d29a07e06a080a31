"""What is counted beside the model: co-occurrence, words of texts, popularity, repeats."""
