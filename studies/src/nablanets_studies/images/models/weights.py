"""Weights of other libraries, loaded where names and shapes agree."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from nablanets.errors import InvalidInputError, ModelFileError

#: What other programs put before the names.
_PREFIXES = ("module.", "model.")


@dataclass(frozen=True)
class LoadReport:
    """Names of weights that were loaded, of those that fit nothing, of ours that are as they were."""

    loaded: list[str]
    left_out: list[str]
    kept: list[str]

    def __str__(self) -> str:
        return f"loaded {len(self.loaded)} tensors; left out {_some(self.left_out)}; as they were: {_some(self.kept)}"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more if names else "none"


@torch.no_grad()
def load_weights(net: nn.Module, weights: Mapping[str, Tensor] | str | Path) -> LoadReport:
    """Load the weights whose names and shapes a network has; for a :class:`Segmenter` also those of a bare ResNet.

    Args:
        net: a network with torchvision's names, such as :class:`ResNet` or :class:`Segmenter`, with any skip.
        weights: by name, or a .safetensors, .pth or .pt file of them (read without running code).

    Raises:
        ModelFileError: the file cannot be read, or holds something else.
        InvalidInputError: no weight fits.

    >>> from nablanets_studies.images.models import ResNet
    >>> pretrained = ResNet(1000, blocks=(1, 1), width=8).state_dict()
    >>> report = load_weights(ResNet(10, blocks=(1, 1), width=8, skip="gradient"), pretrained)
    >>> report.left_out, report.kept[0]
    (['fc.bias', 'fc.weight'], 'fc.bias')
    """
    given = _read(Path(weights)) if isinstance(weights, str | Path) else dict(weights)
    ours = net.state_dict()
    found: dict[str, Tensor] = {}
    left_out = []
    for name, value in given.items():
        target = _target(name, ours)
        if target is None or ours[target].shape != value.shape:
            left_out.append(name)
        else:
            found[target] = value
    if not any(value.ndim > 1 for value in found.values()):
        raise InvalidInputError(
            f"load_weights: no weight fits this {type(net).__name__}. It has names and shapes like {_sample(ours)}; "
            f"the weights have {_sample(given)}."
        )
    net.load_state_dict({**ours, **found})
    return LoadReport(sorted(found), sorted(left_out), sorted(set(ours) - set(found)))


def _target(name: str, ours: Mapping[str, Tensor]) -> str | None:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return next((candidate for candidate in (name, f"backbone.{name}") if candidate in ours), None)


def _sample(weights: Mapping[str, Tensor]) -> str:
    shown = [f"{name} {tuple(value.shape)}" for name, value in weights.items() if value.ndim > 1]
    return ", ".join(shown[:3]) or "no matrices"


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ModelFileError(f"there is no file {path}.")
    try:
        content = (
            safetensors.torch.load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except (safetensors.SafetensorError, pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError) as error:
        raise ModelFileError(f"{path} cannot be read as weights: {error}") from error
    content = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ModelFileError(f"{path} holds no weights by name. Save net.state_dict() there.")
    return dict(content)
