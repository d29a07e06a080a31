"""The trained run of this package's tests."""

from tests.support.trained_run import fixture_recommender, fixture_workdir

__all__ = ["fixture_recommender", "fixture_workdir"]
