"""Piecewise affine gradients from samples: finding the pieces, and the mixture that they make."""

from nablanets.pieces.gating import Gate, fit_pieces, mixture_from_pieces
from nablanets.pieces.identify import Pieces, identify_pieces

__all__ = ["Gate", "Pieces", "fit_pieces", "identify_pieces", "mixture_from_pieces"]
