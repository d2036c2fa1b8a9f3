"""Gradient residuals in existing models: conversion of modules in place, with their weights and names."""

from __future__ import annotations

import copy
import dataclasses
import fnmatch
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from nablanets.errors import InvalidInputError
from nablanets.printing import as_text, make_table
from nablanets.residual.branch import Branch
from nablanets.residual.find import NO_SUM, Block, Chain, EncoderLayer, blocks_of, square_chains
from nablanets.residual.settings import ResidualSettings
from nablanets.residual.skip import GradientSkip
from nablanets.residual.swap import (
    AttachedSkip,
    ConvertedBlock,
    ConvertedEncoderLayer,
    ConvertedHost,
    ConvertedLayers,
    Passed,
    Swapped,
    swap,
)

Where = str | Callable[[str, nn.Module], bool] | None


@dataclass(frozen=True)
class Converted:
    """One converted block: the module that computes it now, its class, what it is, and how its gradient is found."""

    name: str
    cls: str
    kind: str
    closed_form: bool


@dataclass
class ConversionReport:
    """What :func:`add_gradient_residuals` changed, and what it left and why. Print it.

    Attributes:
        model: the converted model.
        converted: the blocks that have a gradient residual now.
        refused: names of other modules with the reason.
    """

    model: nn.Module
    converted: list[Converted]
    refused: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        rows = []
        for block in self.converted:
            gradient = "closed form" if block.closed_form else "torch.func.vjp"
            rows.append((block.name, block.cls, block.kind, gradient))
        title = f"{len(self.converted)} gradient residuals"
        table = make_table(("block", "class", "what it is", "gradient"), rows, title=title)
        left = [f"left as it was: {name or 'the model itself'}: {reason}" for name, reason in self.refused.items()]
        return as_text(table, *left, width=110)


def add_gradient_residuals(
    model: nn.Module, where: Where = None, *, inplace: bool = True, **settings: Any
) -> ConversionReport:
    """Give the residual blocks of a model gradient residuals, keeping its weights and the names in its state_dict.

    Blocks are found in what the forwards compute (read with ``torch.fx``), not by their names: modules that add a
    nonlinear branch to their input, its projection included (ResNets, EDSR); feed-forward parts x + mlp(norm(x)) in
    larger forwards (transformers); ``nn.TransformerEncoderLayer``. In a model without any skips, chains Linear, ...,
    Linear of an nn.Sequential that keep their features get s(alpha) g(x) added. The new parameters are at
    ``<block>.gradient_residual``; weights of the original model load into the converted one. With
    ``alpha=-math.inf`` it computes what the original did.

    Args:
        model: any model. Inner blocks come first: a module around converted blocks is left alone.
        where: which modules to look at: a glob pattern of names ("layer[34].*"), or a function of name and module.
        inplace: change ``model``; otherwise a deep copy, ``report.model``.
        settings: fields of :class:`ResidualSettings`: alpha, learn_alpha, normalize, stop_gradient, norm, ...
            ResNets, whose branches end in batch normalisation, need norm="constant" or norm="before". An
            nn.Parameter as alpha is shared by all blocks. Chains in models without skips get skip="added" unless
            another is given.

    Returns:
        A report that prints as a table.

    Raises:
        ConstantSumError: a branch ends in a normalisation, with the remedies. Nothing has been changed then.
        InvalidInputError: nothing can be converted, or a setting does not fit.

    >>> mlp = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    >>> report = add_gradient_residuals(mlp, alpha=-2.0)
    >>> [block.name for block in report.converted], "4.gradient_residual.alpha" in mlp.state_dict()
    (['4'], True)
    """
    chosen = ResidualSettings.of(**settings)
    without_skips = chosen if "skip" in settings else dataclasses.replace(chosen, skip="added")
    model = model if inplace else copy.deepcopy(model)
    found, refused = _find(model, where)
    if not found:
        reasons = "\n".join(f"  {name or 'the model itself'}: {reason}" for name, reason in refused.items())
        raise InvalidInputError(
            f"add_gradient_residuals: expected residual blocks in this {type(model).__name__}, found none to convert:\n"
            f"{reasons}\nUse GradientResidual on blocks of your own."
        )
    skips = []
    for name, module, block in found:
        added_by_model = not isinstance(block, Chain) or block.added
        skips.append(_skip(name, module, block, chosen if added_by_model else without_skips))
    converted = []
    for (name, module, block), skip in zip(found, skips, strict=True):
        host = _apply(module, block, skip)
        place = f"{name}.{block.host}".removeprefix(".") if isinstance(block, Chain) else name
        kind = _KINDS[type(block)] if not isinstance(block, Chain) or block.added else "layers without a skip"
        cls = type(host).__bases__[1].__name__
        converted.append(Converted(place, cls, kind, skip.branch.closed(module)))
    _without_nested_tensors(model, allowed=False)
    return ConversionReport(model, converted, refused)


def remove_gradient_residuals(model: nn.Module) -> int:
    """Undo :func:`add_gradient_residuals` in place: the number of blocks that were changed back.

    >>> mlp = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> _ = add_gradient_residuals(mlp)
    >>> remove_gradient_residuals(mlp), type(mlp[2]).__name__
    (1, 'Linear')
    """
    count = 0
    for module in list(model.modules()):
        if not isinstance(module, Swapped):
            continue
        if isinstance(module, ConvertedEncoderLayer):
            module.activation_relu_or_gelu = module.__dict__.pop("_fast_path")
        if not isinstance(module, Passed):
            count += 1
            del module.gradient_residual
        for name in ("_owner", "_block"):
            module.__dict__.pop(name, None)
        module.__class__ = type(module).__bases__[1]
    _without_nested_tensors(model, allowed=True)
    return count


Found = tuple[str, nn.Module, Block | Chain | EncoderLayer]
_KINDS: dict[type, str] = {Block: "residual block", Chain: "feed-forward part", EncoderLayer: "encoder layer"}


def _find(model: nn.Module, where: Where) -> tuple[list[Found], dict[str, str]]:
    """Blocks from the inside out, each name with its module, and the reasons for the others."""
    found: list[Found] = []
    refused: dict[str, str] = {}
    ours = {id(m) for owner in model.modules() if isinstance(owner, Swapped | GradientSkip) for m in owner.modules()}
    chosen = [(n, m) for n, m in model.named_modules() if _matches(where, n, m) and id(m) not in ours]
    for name, module in reversed(chosen):
        inner = {id(m) for m in module.modules()}
        around = any(id(m) in inner for _, m, _ in found) or any(isinstance(m, Swapped) for m in module.modules())
        if around or len(inner) == 1:
            continue
        blocks = blocks_of(module)
        if isinstance(blocks, str):
            refused[name] = blocks
        else:
            found += [(name, module, block) for block in blocks]
    if not (found or ours):
        chains = [(name, module) for name, module in chosen if type(module) is nn.Sequential]
        found = [(name, module, block) for name, module in chains for block in square_chains(module)]
    changed = {id(inner) for _, module, _ in found for inner in module.modules()}
    order = {name: position for position, (name, _) in enumerate(chosen)}
    reasons = {
        name: reason for name, reason in reversed(refused.items()) if id(model.get_submodule(name)) not in changed
    }
    return sorted(found, key=lambda item: order[item[0]]), {
        name: reason for name, reason in reasons.items() if not found or reason != NO_SUM
    }


def _matches(where: Where, name: str, module: nn.Module) -> bool:
    if where is None:
        return True
    return fnmatch.fnmatchcase(name, where) if isinstance(where, str) else bool(where(name, module))


def _skip(
    name: str, module: nn.Module, block: Block | Chain | EncoderLayer, settings: ResidualSettings
) -> AttachedSkip:
    try:
        return AttachedSkip(Branch(block.branch, settings.norm), module, settings)
    except InvalidInputError as error:
        raise type(error)(f"add_gradient_residuals, {name or 'the model itself'}: {error}") from error


def _apply(module: nn.Module, block: Block | Chain | EncoderLayer, skip: AttachedSkip) -> nn.Module:
    if isinstance(block, Block):
        swap(module, ConvertedBlock, _block=block)
        host = module
    elif isinstance(block, EncoderLayer):
        swap(module, ConvertedEncoderLayer, _owner=(module,), _fast_path=module.activation_relu_or_gelu)
        module.activation_relu_or_gelu = 0  # type: ignore[assignment]  # torch's fused kernel knows nothing of the skip
        host = module
    else:
        host = module.get_submodule(block.host)
        swap(host, ConvertedHost if block.added else ConvertedLayers, _owner=(module,))
    for child in () if isinstance(block, Block) else block.passing:
        swap(module.get_submodule(child), Passed)
    reference = next(iter(module.parameters()), None)
    host.gradient_residual = skip if reference is None else skip.to(reference)
    return host


def _without_nested_tensors(model: nn.Module, *, allowed: bool) -> None:
    """Encoders give nested tensors to their layers' fused kernel, which converted layers do not use."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder) and hasattr(module, "use_nested_tensor"):
            has_converted = any(isinstance(layer, ConvertedEncoderLayer) for layer in module.layers)
            if has_converted and not allowed:
                module.__dict__["_nested"] = module.use_nested_tensor
                module.use_nested_tensor = False
            elif "_nested" in module.__dict__:
                module.use_nested_tensor = module.__dict__.pop("_nested")
