"""A run over HTTP: requests -> batches -> the recommender -> JSON, and a page to look at."""
