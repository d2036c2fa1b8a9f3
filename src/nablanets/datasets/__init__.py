"""Data sets: by name, through package managers, and by path, in the formats that people have."""

from nablanets.datasets.catalog import CATALOG, Dataset, find_dataset
from nablanets.datasets.cifar import read_cifar
from nablanets.datasets.fetch import cache, find, get, path
from nablanets.datasets.idx import read_idx, read_idx_folder, read_mnist_json
from nablanets.datasets.labelled import Labelled

__all__ = [
    "CATALOG",
    "Dataset",
    "Labelled",
    "cache",
    "find",
    "find_dataset",
    "get",
    "path",
    "read_cifar",
    "read_idx",
    "read_idx_folder",
    "read_mnist_json",
]
