"""Settings of the library's tests and doctests."""

from tests.fixtures import doctest_names, seeded

__all__ = ["doctest_names", "seeded"]
