"""Data sets: by name, through package managers, and by path, in the formats that people have."""

from nablanets.datasets.catalog import CATALOG, Dataset, find_dataset
from nablanets.datasets.fetch import cache, find, get, path

__all__ = ["CATALOG", "Dataset", "cache", "find", "find_dataset", "get", "path"]
