"""Exceptions and argument checks.

Every message says what was expected, what came, and what to do about it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset


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


class UnknownKeywordError(UnknownNameError, TypeError):
    """A function or a class takes no argument of this name."""


class SingularJacobianError(NablaError, ArithmeticError):
    """A Jacobian has no inverse, so its log-determinant or a solve with it does not exist."""


class IndefiniteJacobianError(NablaError, ArithmeticError):
    """A Jacobian has a negative determinant, which has no logarithm."""


class ConvergenceError(NablaError, ArithmeticError):
    """An iterative solve did not reach its tolerance."""


class FitError(NablaError):
    """A fit came to nothing, or could not come to anything."""


class DataWarning(UserWarning):
    """Data that are used, but not as they are, or not to their best."""


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


def check_points(x: Tensor, features: int, *, owner: str, name: str = "x", like: Tensor | None = None) -> None:
    """Raise unless ``x`` is a floating-point tensor of shape ``(*, features)``, as precise as ``like`` and beside it.

    Args:
        x: the points.
        features: what their last dimension must be.
        owner: who asks, for the message.
        name: of the argument, for the message.
        like: a tensor of the network that is to be evaluated; None for what has none.
    """
    if not isinstance(x, Tensor):
        raise _no_tensor(x, features, owner, name, like)
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
    if like is not None and (x.dtype != like.dtype or x.device != like.device):
        _refuse_other_kind(x, like, owner, name)


def fits(x: object, features: int, like: Tensor | None) -> bool:
    """Whether :func:`check_points` has nothing to say, told by the cheapest comparisons: for every forward pass.

    False means that it should be asked.
    """
    if like is None or type(x) is not Tensor:
        return False
    return x.dtype is like.dtype and x.device == like.device and x.ndim > 0 and x.shape[-1] == features


def _no_tensor(x: object, features: int, owner: str, name: str, like: Tensor | None) -> InvalidInputError:
    dtype = torch.get_default_dtype() if like is None else like.dtype
    device = "" if like is None or like.device.type == "cpu" else f', device="{like.device}"'
    remedy = f"Convert it with torch.as_tensor({name}, dtype={dtype}{device})."
    if isinstance(x, DataLoader | Dataset):
        remedy = f"Give it one batch of points after the other: for {name}, *_ in loader: net({name})."
    elif hasattr(x, "columns") and hasattr(x, "to_numpy"):
        remedy = f"Convert it with torch.as_tensor({name}.to_numpy(), dtype={dtype}{device})."
    return InvalidInputError(
        f"{owner}: expected {name} to be a torch.Tensor of shape (*, {features}), got {type(x).__name__}. {remedy}"
    )


def _refuse_other_kind(x: Tensor, like: Tensor, owner: str, name: str) -> None:
    """Raise for points on another device, or of another dtype unless autocast is there to convert them."""
    if x.device != like.device:
        raise InvalidInputError(
            f"{owner}: expected {name} and the network on one device, got {name} on {x.device} and the network on "
            f'{like.device}. Move one: {name}.to("{like.device}"), or net.to("{x.device}").'
        )
    if torch.is_autocast_enabled(x.device.type):
        return
    raise InvalidInputError(
        f"{owner}: expected {name} in the dtype of the network, {like.dtype}, got {x.dtype}. Convert the points, "
        f"{name}{_conversion(like.dtype)}, or the network, net{_conversion(x.dtype)}."
    )


def _conversion(dtype: torch.dtype) -> str:
    """How a tensor or a network is converted to a dtype."""
    methods = {
        torch.float32: ".float()",
        torch.float64: ".double()",
        torch.float16: ".half()",
        torch.bfloat16: ".bfloat16()",
    }
    return methods.get(dtype, f".to({dtype})")


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
    """The error for a name that does not exist, with its nearest matches.

    >>> print(unknown_name("optimizer", "adm", ["adam", "muon"]))
    There is no optimizer 'adm'. Did you mean 'adam'? Known: adam, muon.
    >>> print(unknown_name("optimizer", "xyz", ["adam", "muon"]))
    There is no optimizer 'xyz'. Choose one of: adam, muon.
    """
    options = sorted(known)
    near = difflib.get_close_matches(name, options, n=3, cutoff=0.5)
    names = ", ".join(options)
    if not near:
        return UnknownNameError(f"There is no {kind} {name!r}. Choose one of: {names}.")
    return UnknownNameError(
        f"There is no {kind} {name!r}. Did you mean {' or '.join(map(repr, near))}? Known: {names}."
    )
