"""Arguments by names that other libraries use: an error that offers the name that is meant."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

from nablanets.errors import UnknownKeywordError, unknown_name

#: What arguments are called elsewhere, and here.
ALIASES = {
    "lr": "learning_rate",
    "step_size": "learning_rate",
    "epochs": "steps",
    "num_steps": "steps",
    "max_steps": "steps",
    "max_iter": "steps",
    "iterations": "steps",
    "batch": "batch_size",
    "bs": "batch_size",
    "optimiser": "optimizer",
    "optim": "optimizer",
    "wd": "weight_decay",
    "scheduler": "schedule",
    "grad_clip": "clip_norm",
    "early_stopping": "patience",
    "random_state": "seed",
    "val": "validation",
    "verbose": "progress",
    "callback": "report",
    "in_features": "features",
    "dim": "features",
    "hidden": "hidden_features",
    "hidden_size": "hidden_features",
    "hidden_dim": "hidden_features",
    "width": "hidden_features",
    "units": "hidden_features",
    "depth": "num_layers",
    "layers": "num_layers",
    "modules": "num_modules",
    "convex": "monotone",
    "act": "activation",
}

C = TypeVar("C", bound=type)
F = TypeVar("F", bound=Callable[..., Any])


def check_keywords(owner: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise for the first name that is not known, with what it is called here.

    >>> check_keywords("fit", ["lr"], ["learning_rate", "steps"])
    Traceback (most recent call last):
    nablanets.errors.UnknownKeywordError: fit has no argument 'lr'. Did you mean 'learning_rate'? Known: ...
    """
    options = list(known)
    for name in given:
        if name in options:
            continue
        meant = ALIASES.get(name.lower())
        if meant in options:
            raise UnknownKeywordError(
                f"{owner} has no argument {name!r}. Did you mean {meant!r}? Known: {', '.join(sorted(options))}."
            )
        message = str(unknown_name("argument", name, options))
        raise UnknownKeywordError(message.replace("There is no argument", f"{owner} has no argument", 1))


def explain_keywords(cls: C) -> C:
    """Class decorator: a keyword that the constructor does not know is answered with the one that is meant."""
    construct: Any = cls.__init__  # type: ignore[misc]
    known = [name for name in inspect.signature(construct).parameters if name != "self"]

    @functools.wraps(construct)
    def explained(self: Any, *args: Any, **kwargs: Any) -> None:
        check_keywords(cls.__name__, kwargs, known)
        construct(self, *args, **kwargs)

    cls.__init__ = explained  # type: ignore[misc]
    return cls


def explain_arguments(function: F) -> F:
    """Function decorator: a keyword that the function does not know is answered with the one that is meant."""
    known = list(inspect.signature(function).parameters)

    @functools.wraps(function)
    def explained(*args: Any, **kwargs: Any) -> Any:
        check_keywords(function.__name__, kwargs, known)
        return function(*args, **kwargs)

    return cast(F, explained)
