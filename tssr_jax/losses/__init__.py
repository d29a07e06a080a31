"""Losses as pure functions of states; each term is a (sum, weight) pair."""
