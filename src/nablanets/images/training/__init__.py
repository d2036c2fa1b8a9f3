"""Training on pictures: batches by seed and step, one process or many, checkpoints that resume exactly."""

from nablanets.images.training.fabric import Loss
from nablanets.images.training.loop import TrainResult, Validate, train
from nablanets.images.training.settings import TrainSettings
from nablanets.images.training.sources import Augment, Source, Stored, Ticket, as_floats

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
