"""The settings of a gradient residual, in one place, each with the values that it may have."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from torch import Tensor, nn

from nablanets.errors import InvalidInputError, unknown_name
from nablanets.keywords import check_keywords
from nablanets.residual.kinds import registered_skips

Normalize = Literal["position", "sample", "channel", "none"]
Probe = Literal["ones", "random", "learned"]
Norm = Literal["exact", "constant", "before"]

#: Raises if a setting of this name must not have this value.
Check = Callable[[str, Any], None]


def _one_of(kind: str, known: tuple[str, ...]) -> Check:
    """A check for one of some names; ``kind`` is what the message calls them."""

    def check(setting: str, value: Any) -> None:
        if not isinstance(value, str):
            raise _wrong(setting, value, f"one of {', '.join(map(repr, known))}", "Write the name as a string")
        if value not in known:
            raise unknown_name(kind, value, known)

    return check


def _registered_skip(setting: str, value: Any) -> None:
    _one_of("skip", registered_skips())(setting, value)


def _flag(setting: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise _wrong(setting, value, "True or False", f"Write {setting}=True or {setting}=False")


def _finite_number(setting: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise _wrong(setting, value, "a finite number", "It multiplies g; 1.0 changes nothing")


def _positive_int_or_none(setting: str, value: Any) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise _wrong(setting, value, "an integer >= 1, or None", "Leave it out where the layers of the block tell it")


def _from_the_end_or_none(setting: str, value: Any) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value >= 0):
        raise _wrong(
            setting,
            value,
            "a dimension counted from the end, or None",
            "It is -1 for features, -2, -3 and -4 for the channels of 1-, 2- and 3-dimensional convolutions",
        )


def _alpha(setting: str, value: Any) -> None:
    if isinstance(value, Tensor | nn.Module):
        return
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or math.isnan(value):
        raise _wrong(
            setting,
            value,
            "a number, a tensor with one number per channel, an nn.Parameter, or a module that returns alpha",
            "Start with -3.0, where 5 % of the skip is g; -math.inf is the plain skip",
        )


def _probe(setting: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        _one_of("probe", get_args(Probe))(setting, value)


def _wrong(setting: str, value: Any, expected: str, remedy: str) -> InvalidInputError:
    return InvalidInputError(f"GradientResidual: expected {setting} to be {expected}, got {value!r}. {remedy}.")


#: What each setting may be.
_CHECKS: dict[str, Check] = {
    "alpha": _alpha,
    "learn_alpha": _flag,
    "per_channel": _flag,
    "normalize": _one_of("normalization", get_args(Normalize)),
    "gain": _finite_number,
    "stop_gradient": _flag,
    "probe": _probe,
    "skip": _registered_skip,
    "norm": _one_of("treatment of norms", get_args(Norm)),
    "channels": _positive_int_or_none,
    "channel_dim": _from_the_end_or_none,
}


@dataclass(frozen=True, eq=False)
class ResidualSettings:
    r"""How a gradient residual F(x) + (1 - s) x + s g(x) is set up; s = sigmoid(alpha), g(x) = J_F(x)^T v.

    Attributes:
        alpha: the start of alpha, a number or a tensor per channel. An nn.Parameter, or a module that returns alpha,
            is used as it is and may be shared between blocks.
        learn_alpha: train alpha.
        per_channel: one alpha per channel.
        normalize: the dimensions over which g is scaled to unit norm: "position" (the channels of each position),
            "sample" (all but the batch), "channel" (the positions of each channel of a sample), or "none". Where
            g = 0 it stays 0.
        gain: a number that multiplies g, after normalising.
        stop_gradient: whether g counts as a constant in back-propagation.
        probe: v: "ones", "random" (fixed signs), "learned" (starts at ones), or a tensor per channel.
        skip: what the skip carries: "gradient", (1 - s) x + s g; "pure", g alone; "added", s g alone, for networks
            without skips; or a name given to :func:`register_skip`.
        norm: normalising layers in the block: "exact"; "constant", their statistics count as constants in g;
            "before", g is the gradient of what comes before the last one.
        channels: their number, for blocks whose layers do not tell.
        channel_dim: their dimension, counted from the end, for blocks whose layers do not tell.

    Raises:
        InvalidInputError: a setting has a value that it must not have.
        UnknownNameError: a name does not exist.

    >>> ResidualSettings(normalize="sample").stop_gradient
    True
    >>> ResidualSettings(normalize="positon")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    nablanets.errors.UnknownNameError: There is no normalization 'positon'. Did you mean 'position'? Known: ...
    """

    alpha: float | Tensor | nn.Module = 0.0
    learn_alpha: bool = True
    per_channel: bool = False
    normalize: Normalize = "position"
    gain: float = 1.0
    stop_gradient: bool = True
    probe: Probe | Tensor = "ones"
    skip: str = "gradient"
    norm: Norm = "exact"
    channels: int | None = None
    channel_dim: int | None = None

    def __post_init__(self) -> None:
        for each in fields(self):
            check = _CHECKS[each.name]
            check(each.name, getattr(self, each.name))

    @classmethod
    def of(cls, **settings: Any) -> ResidualSettings:
        """Settings by keyword, with an error that names those that exist.

        >>> ResidualSettings.of(normalise="sample")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        nablanets.errors.UnknownKeywordError: a gradient residual has no argument 'normalise'. Did you mean ...
        """
        known = [each.name for each in fields(cls)]
        check_keywords("a gradient residual", settings, known)
        return cls(**settings)
