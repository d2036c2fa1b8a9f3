"""Exceptions and argument checks.

Every message says what was expected, what came, and what to do about it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

import torch
from torch import Tensor


class NablaError(Exception):
    """Base class of every error that this package raises on purpose."""


class InvalidInputError(NablaError, ValueError):
    """An argument has the wrong shape, type or value."""


class ShapeError(InvalidInputError):
    """A tensor has the wrong shape."""


class IllegalActivationError(InvalidInputError):
    """An activation cannot be used where it was asked for."""


class UnknownNameError(InvalidInputError, LookupError):
    """A name (experiment, option, activation, arm, ...) does not exist."""


class SingularJacobianError(NablaError, ArithmeticError):
    """A Jacobian has no inverse, so its log-determinant or a solve with it does not exist."""


class IndefiniteJacobianError(NablaError, ArithmeticError):
    """A Jacobian has a negative determinant, which has no logarithm."""


class ConvergenceError(NablaError, ArithmeticError):
    """An iterative solve did not reach its tolerance."""


class FitError(NablaError):
    """A fit came to nothing, or could not come to anything."""


class ModelFileError(NablaError):
    """A model file cannot be read or written."""


class DataFileError(NablaError):
    """A data file cannot be read or written."""


class MissingPackageError(InvalidInputError):
    """Something needs a package that is not installed."""


class ExportError(NablaError):
    """A map cannot be written for another program."""


class RunFolderError(NablaError):
    """A run folder cannot be used."""


class VerificationError(NablaError, AssertionError):
    """A property that should hold by construction was found not to hold."""


def check_points(x: Tensor, features: int, *, owner: str, name: str = "x") -> None:
    """Raise unless ``x`` is a floating-point tensor of shape ``(*, features)``."""
    if not isinstance(x, Tensor):
        raise InvalidInputError(
            f"{owner}: expected {name} to be a torch.Tensor of shape (*, {features}), got "
            f"{type(x).__name__}. Convert it with torch.as_tensor({name})."
        )
    if x.ndim == 0 or x.shape[-1] != features:
        raise ShapeError(
            f"{owner}: expected {name} of shape (*, {features}), got {tuple(x.shape)}. The last "
            f"dimension must be the number of features; a batch of scalars is {name}.unsqueeze(-1)."
        )
    if not x.is_floating_point():
        raise InvalidInputError(
            f"{owner}: expected {name} with a floating-point dtype, got {x.dtype}. "
            f"Convert it with {name}.float() or {name}.double()."
        )


def check_finite(x: Tensor, *, owner: str, name: str) -> None:
    """Raise if ``x`` holds NaN or infinity, naming the first bad row."""
    good = torch.isfinite(x)
    if bool(good.all()):
        return
    rows = (~good).reshape(x.shape[0], -1).any(dim=1) if x.ndim > 0 else ~good.reshape(1)
    raise InvalidInputError(
        f"{owner}: expected {name} to be finite, got {int((~good).sum())} NaN or infinite values, the "
        f"first in row {int(rows.nonzero()[0, 0])}. Remove these rows, or fill them in, first."
    )


def check_positive_int(value: object, *, owner: str, name: str) -> None:
    """Raise unless ``value`` is an integer of at least one."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidInputError(f"{owner}: expected {name} to be an integer >= 1, got {value!r}.")


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """The error for a name that does not exist, with its nearest matches."""
    options = sorted(known)
    near = difflib.get_close_matches(name, options, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(map(repr, near))}?" if near else "See the list."
    return UnknownNameError(f"There is no {kind} {name!r}. {hint} Known: {', '.join(options)}.")
