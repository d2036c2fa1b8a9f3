"""What the sinusoid studies measure of a network."""

from __future__ import annotations

from dataclasses import dataclass

from nablanets_studies.machinery.metrics import Metrics


@dataclass(frozen=True, kw_only=True)
class SinusoidMetrics(Metrics):
    """A network of one arm and seed.

    Attributes:
        test_mse: over the regular grid without noise.
        validation_mse: of the best weights, on noisy points.
        rate: the learning rate that was chosen.
        alpha: the start of alpha that was chosen, of networks that have one.
    """

    test_mse: float
    validation_mse: float
    rate: float
    alpha: float | None = None
