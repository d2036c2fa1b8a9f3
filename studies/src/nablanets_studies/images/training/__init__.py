"""Training on pictures: batches by seed and step, one process or many, checkpoints that resume exactly."""

from nablanets_studies.images.training.fabric import Loss
from nablanets_studies.images.training.loop import TrainResult, Validate, train
from nablanets_studies.images.training.settings import TrainSettings
from nablanets_studies.images.training.sources import Augment, Source, Stored, Ticket, as_floats

__all__ = [
    "Augment",
    "Loss",
    "Source",
    "Stored",
    "Ticket",
    "TrainResult",
    "TrainSettings",
    "Validate",
    "as_floats",
    "train",
]
