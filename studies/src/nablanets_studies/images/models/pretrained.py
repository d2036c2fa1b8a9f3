"""Weights under the names that EDSR-PyTorch gives them, without that library."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from nablanets.errors import InvalidInputError
from nablanets_studies.images.models.edsr import EDSR

_BLOCK = re.compile(r"^body\.(\d+)\.body\.([02])\.(weight|bias)$")
_MERGE = re.compile(r"^body\.(\d+)\.(weight|bias)$")
_SHIFT = re.compile(r"^(sub|add)_mean\.")


def edsr_from(weights: Mapping[str, Tensor], *, skip: str = "standard", residual_scale: float | None = None) -> EDSR:
    """An EDSR of the size that weights of EDSR-PyTorch have.

    Args:
        weights: with the names ``head.0.weight``, ``body.3.body.0.weight``, ``tail.0.0.weight``, ...
        skip: the arm of every block; what it adds (alpha, ...) starts as it does in a new network.
        residual_scale: by default 0.1 for widths above 64, as in the published configurations, else 1.

    Raises:
        InvalidInputError: the weights are not those of an EDSR.

    >>> weights = edsr_names(EDSR(2, blocks=2, width=8))
    >>> sorted(weights)[:2], len(edsr_from(weights).body)
    (['body.0.body.0.bias', 'body.0.body.0.weight'], 2)
    """
    try:
        width = weights["head.0.weight"].shape[0]
        blocks = 1 + max(int(found[1]) for name in weights if (found := _BLOCK.match(name)))
        factor = weights["tail.0.0.weight"].shape[0] // width
        scale = {4: 4 if "tail.0.2.weight" in weights else 2, 9: 3}[factor]
    except (KeyError, ValueError) as error:
        raise InvalidInputError(
            f"edsr_from: expected weights with the names of EDSR-PyTorch, such as head.0.weight, body.0.body.0.weight "
            f"and tail.0.0.weight; {error} is missing among {', '.join(sorted(weights)[:4])}, ..."
        ) from error
    residual_scale = (0.1 if width > 64 else 1.0) if residual_scale is None else residual_scale
    net = EDSR(scale, blocks=blocks, width=width, skip=skip, residual_scale=residual_scale, value_range=255.0)
    load_edsr(net, weights)
    return net


@torch.no_grad()
def load_edsr(net: EDSR, weights: Mapping[str, Tensor]) -> None:
    """Put weights with the names of EDSR-PyTorch into a network; its ``value_range`` should be theirs, 255.

    Raises:
        InvalidInputError: a weight is missing, left over, or has another shape; the network is unchanged.
    """
    ours = net.state_dict()
    theirs = {_our_name(name, len(net.body)): value for name, value in weights.items() if not _SHIFT.match(name)}
    missing = sorted(name for name in ours if name not in theirs and re.search(r"(weight|bias)$", name))
    extra = sorted(set(theirs) - set(ours))
    wrong = [
        f"{n} {tuple(v.shape)}, not {tuple(ours[n].shape)}"
        for n, v in theirs.items()
        if n in ours and v.shape != ours[n].shape
    ]
    if missing or extra or wrong:
        raise InvalidInputError(
            "load_edsr: the weights do not fit the network. "
            + "; ".join(
                f"{what}: {', '.join(n[:4])}"
                for what, n in (("missing", missing), ("unknown", extra), ("of another shape", wrong))
                if n
            )
            + ". Build the network with edsr_from(weights)."
        )
    net.load_state_dict({**ours, **theirs})


def edsr_names(net: EDSR) -> dict[str, Tensor]:
    """The convolutions of a network with published tail, under the names of EDSR-PyTorch."""
    return {
        _their_name(name, len(net.body)): v
        for name, v in net.state_dict().items()
        if re.search(r"(weight|bias)$", name)
    }


def _our_name(name: str, blocks: int) -> str:
    name = re.sub(r"^head\.0\.", "head.", name)
    if found := _BLOCK.match(name):
        return f"body.{found[1]}.block.body.{found[2]}.{found[3]}"
    found = _MERGE.match(name)
    return f"merge.{found[2]}" if found and int(found[1]) == blocks else name


def _their_name(name: str, blocks: int) -> str:
    name = re.sub(r"^head\.", "head.0.", name)
    name = re.sub(r"^merge\.", f"body.{blocks}.", name)
    return re.sub(r"^body\.(\d+)\.block\.", r"body.\1.", name)
