"""Settings of the studies' tests and doctests: those of the library."""

from tests.fixtures import doctest_names, seeded

__all__ = ["doctest_names", "seeded"]
