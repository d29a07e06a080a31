"""Measurements; each module says how it is run. Never part of the tests."""
