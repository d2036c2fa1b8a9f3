r"""When nearby points have opposite gradients: the provable form of Lemma 3.5 and Theorem 3.8 of the paper.

Let f = f_l + f_h, where the spectrum of f_h lies in the balls of radius r around w0 and -w0 and
:math:`|\nabla f_l| \le G`, and let :math:`C = \int |w| |\hat f_h(w)| dw`. With the step p = pi w0 / |w0|^2, for every x

.. math:: |\nabla f_h(x)| \le C, \qquad |\nabla f(x + p) + \nabla f(x)| \le \pi r C / |w_0| + 2 G,

and where e, the last bound divided by :math:`|\nabla f(x)|`, is below one, the cosine of the angle between
:math:`\nabla f(x)` and :math:`\nabla f(x + p)` is at most :math:`-\sqrt{1 - e^2}`. The proof: for w = +-w0 + d with
|d| <= r, :math:`|e^{i w p} + 1| \le |d p| \le \pi r / |w_0|`; and a vector within e |a| of -a has that cosine with a.
This form is ours; the paper's conditions are not known to us in full.

It says nothing where the band is broad (r near |w0|), where the slope of the low part is comparable to that of the
high part, and near the stationary points of f; there gradients of neighbours need not be opposite, and at a step other
than p they need not be either: in the direction across w0 they are nearly equal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from nablanets.errors import InvalidInputError


class Waves(NamedTuple):
    """sum_k a_k cos(w_k x + phi_k)."""

    frequencies: Tensor
    amplitudes: Tensor
    phases: Tensor

    def value(self, x: Tensor) -> Tensor:
        return torch.cos(x @ self.frequencies.mT + self.phases) @ self.amplitudes

    def gradient(self, x: Tensor) -> Tensor:
        return -(torch.sin(x @ self.frequencies.mT + self.phases) * self.amplitudes) @ self.frequencies

    def slope(self) -> Tensor:
        """The integral of |w| |spectrum|, which bounds the gradient everywhere."""
        return (self.frequencies.norm(dim=-1) * self.amplitudes.abs()).sum()


@dataclass(frozen=True)
class BandLimited:
    """A function with a low part and a high part whose spectrum lies in balls of radius r around +-centre.

    >>> f = BandLimited.draw(features=2, frequency=20.0, radius=0.1, low=0.01)
    >>> check = opposite_gradients(f, torch.rand(100, 2, dtype=torch.float64))
    >>> bool((check.sum_norm <= check.bound).all()), bool((check.cosine <= check.cosine_bound + 1e-9).all())
    (True, True)
    """

    centre: Tensor
    radius: float
    high: Waves
    low: Waves

    @classmethod
    def draw(
        cls, features: int, frequency: float, radius: float, low: float = 0.0, *, waves: int = 16, seed: int = 0
    ) -> BandLimited:
        """A random function in float64.

        Args:
            features: d.
            frequency: |w0|; its direction is random.
            radius: r; frequencies are spread over the ball.
            low: G / C, the slope of the low part (frequencies up to one) in units of the high part's.
            waves: number of waves in each part.
            seed: of the draw.

        Raises:
            InvalidInputError: the radius is negative, or the frequency or features are not positive.
        """
        if features < 1 or frequency <= 0 or radius < 0 or low < 0:
            raise InvalidInputError(
                "BandLimited.draw: expected features >= 1, frequency > 0, radius >= 0 and low >= 0, got "
                f"{features}, {frequency}, {radius} and {low}."
            )
        generator = torch.Generator().manual_seed(seed)
        ball = _in_ball(2 * waves, features, generator)
        centre = _in_ball(1, features, generator)[0]
        centre = frequency * centre / centre.norm()
        signs = torch.randint(0, 2, (waves, 1), generator=generator) * 2 - 1
        amplitudes = torch.rand(2, waves, dtype=torch.float64, generator=generator) + 0.1
        phases = 2 * math.pi * torch.rand(2, waves, dtype=torch.float64, generator=generator)
        high = Waves(signs * centre + radius * ball[:waves], amplitudes[0], phases[0])
        slow = Waves(ball[waves:], amplitudes[1], phases[1])
        slow = slow._replace(amplitudes=slow.amplitudes * low * high.slope() / slow.slope())
        return cls(centre, radius, high, slow)

    @property
    def step(self) -> Tensor:
        """p = pi w0 / |w0|^2, half a period along w0."""
        return math.pi * self.centre / self.centre.square().sum()

    def value(self, x: Tensor) -> Tensor:
        return self.high.value(x) + self.low.value(x)

    def gradient(self, x: Tensor) -> Tensor:
        return self.high.gradient(x) + self.low.gradient(x)

    def bound(self) -> Tensor:
        """pi r C / |w0| + 2 G."""
        return math.pi * self.radius * self.high.slope() / self.centre.norm() + 2 * self.low.slope()


class Opposition(NamedTuple):
    """What was found at points x, and what the theorem allows; ``cosine_bound`` is 1 where its condition fails.

    ``sum_norm`` = |grad f(x + p) + grad f(x)|, ``applies``: the condition e < 1 holds.
    """

    sum_norm: Tensor
    bound: Tensor
    cosine: Tensor
    cosine_bound: Tensor
    applies: Tensor


def opposite_gradients(f: BandLimited, x: Tensor) -> Opposition:
    """Compare the gradients of f at x (n, d) and x + p with the bounds of the theorem."""
    here, there, bound = f.gradient(x), f.gradient(x + f.step), f.bound()
    e = bound / here.norm(dim=-1)
    applies = e < 1
    limit = torch.where(applies, -torch.sqrt((1 - e.square()).clamp_min(0)), 1)
    cosine = torch.nn.functional.cosine_similarity(here, there, dim=-1, eps=1e-300)
    return Opposition((here + there).norm(dim=-1), bound, cosine, limit, applies)


def _in_ball(count: int, features: int, generator: torch.Generator) -> Tensor:
    direction = torch.randn(count, features, dtype=torch.float64, generator=generator)
    radius = torch.rand(count, 1, dtype=torch.float64, generator=generator) ** (1 / features)
    return radius * direction / direction.norm(dim=-1, keepdim=True)
