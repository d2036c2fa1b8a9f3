"""Data sets: by name, through package managers, and by path, in the formats that people have."""

from nablanets_studies.datasets.catalog import CATALOG, Dataset, find_dataset
from nablanets_studies.datasets.cifar import read_cifar
from nablanets_studies.datasets.fetch import cache, find, get, path
from nablanets_studies.datasets.idx import read_idx, read_idx_folder, read_mnist_json
from nablanets_studies.datasets.labelled import Labelled

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
