"""Gradient residuals in existing models: conversion of modules in place, with their weights and names."""

from __future__ import annotations

import copy
import dataclasses
import fnmatch
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

from torch import nn

from nablanets.errors import InvalidInputError
from nablanets.printing import as_text, make_table
from nablanets.residual.branch import Branch
from nablanets.residual.find import NO_SUM, Block, Chain, EncoderLayer, Part, blocks_of, square_chains
from nablanets.residual.settings import ResidualSettings
from nablanets.residual.skip import GradientSkip
from nablanets.residual.swap import (
    AttachedSkip,
    Conversion,
    ConvertedBlock,
    ConvertedEncoderLayer,
    ConvertedHost,
    ConvertedLayers,
    PassedOver,
    Swapped,
    restore,
    swap,
)

#: Where an encoder keeps whether it used nested tensors before its layers were converted.
_NESTED = "_used_nested_tensor"

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
    # All skips are made, and with them all settings checked, before anything is changed.
    skips = []
    for each in found:
        has_no_skip = isinstance(each.part, Chain) and not each.part.added
        skips.append(_skip(each, without_skips if has_no_skip else chosen))
    converted = []
    for each, skip in zip(found, skips, strict=True):
        converted.append(_described(each, skip))
        _apply(each.module, each.part, skip)
    _set_nested_tensors(model, allowed=False)
    return ConversionReport(model, converted, refused)


def remove_gradient_residuals(model: nn.Module) -> int:
    """Undo :func:`add_gradient_residuals` in place: the number of blocks that were changed back.

    Raises:
        InvalidInputError: the class of a converted module has been changed again, for example by a parametrisation.

    >>> mlp = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> _ = add_gradient_residuals(mlp)
    >>> remove_gradient_residuals(mlp), type(mlp[2]).__name__
    (1, 'Linear')
    """
    swapped = [module for module in model.modules() if isinstance(module, Swapped)]
    count = sum(restore(module) for module in swapped)
    _set_nested_tensors(model, allowed=True)
    return count


class Found(NamedTuple):
    """A part of a model that can be converted, and the module whose forward it stands in."""

    name: str
    module: nn.Module
    part: Part


def _find(model: nn.Module, where: Where) -> tuple[list[Found], dict[str, str]]:
    """The parts to convert in the order of the model, and the reasons for the modules that are left.

    Modules are looked at from the inside out, and a module around a block that was found is left alone. Where nothing
    is found and nothing was converted before, the model has no skips, and chains of linear layers are taken.
    """
    inside_ours = _modules_of_gradient_residuals(model)
    chosen = {
        name: module
        for name, module in model.named_modules()
        if _matches(where, name, module) and id(module) not in inside_ours
    }
    number_of_names = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    found: list[Found] = []
    refused: dict[str, str] = {}

    for name, module in reversed(chosen.items()):
        if _is_leaf(module) or _holds_a_block(module, found):
            continue
        parts = blocks_of(module)
        if isinstance(parts, str):
            refused[name] = parts
        else:
            found += [Found(name, module, part) for part in parts]
    if not found and not inside_ours:
        for name, module in chosen.items():
            if type(module) is nn.Sequential:
                found += [Found(name, module, part) for part in square_chains(module)]
    for each in tuple(found):
        shared = _shared_child(each.module, each.part, number_of_names)
        if shared is not None:
            found.remove(each)
            refused[each.name] = f"its child {shared!r} is used elsewhere in the model too"
    order = {name: position for position, name in enumerate(chosen)}
    found.sort(key=lambda each: order[each.name])
    return found, _worth_telling(model, found, refused)


def _modules_of_gradient_residuals(model: nn.Module) -> set[int]:
    """The identities of all modules in gradient residuals that the model has already."""
    owners = [module for module in model.modules() if isinstance(module, Swapped | GradientSkip)]
    return {id(inner) for owner in owners for inner in owner.modules()}


def _is_leaf(module: nn.Module) -> bool:
    return not any(True for _ in module.children())


def _holds_a_block(module: nn.Module, found: list[Found]) -> bool:
    inner = {id(each) for each in module.modules()}
    return any(id(each.module) in inner for each in found) or any(isinstance(m, Swapped) for m in module.modules())


def _shared_child(module: nn.Module, part: Part, number_of_names: Counter[int]) -> str | None:
    """A child whose class would change though the model uses it outside of this module, too."""
    changed = () if isinstance(part, Block) else part.passing
    if isinstance(part, Chain):
        changed = (*changed, part.host)
    own = number_of_names[id(module)]
    return next((name for name in changed if number_of_names[id(module.get_submodule(name))] > own), None)


def _worth_telling(model: nn.Module, found: list[Found], refused: dict[str, str]) -> dict[str, str]:
    """The reasons, outer modules first, without those inside of blocks and without what holds for most modules."""
    inside = {id(inner) for each in found for inner in each.module.modules() if inner is not each.module}
    kept = {}
    for name, reason in reversed(refused.items()):
        hidden = id(model.get_submodule(name)) in inside or (found and reason == NO_SUM)
        if not hidden:
            kept[name] = reason
    return kept


def _matches(where: Where, name: str, module: nn.Module) -> bool:
    if where is None:
        return True
    return fnmatch.fnmatchcase(name, where) if isinstance(where, str) else bool(where(name, module))


def _skip(found: Found, settings: ResidualSettings) -> AttachedSkip:
    try:
        return AttachedSkip(Branch(found.part.branch, settings.norm), found.module, settings)
    except InvalidInputError as error:
        raise type(error)(f"add_gradient_residuals, {found.name or 'the model itself'}: {error}") from error


def _described(found: Found, skip: AttachedSkip) -> Converted:
    """A line of the report, while modules still have their own classes."""
    part = found.part
    if isinstance(part, Chain):
        place = f"{found.name}.{part.host}".removeprefix(".")
        computing = found.module.get_submodule(part.host)
    else:
        place = found.name
        computing = found.module
    if isinstance(part, Block):
        kind = "residual block"
    elif isinstance(part, EncoderLayer):
        kind = "encoder layer"
    else:
        kind = "feed-forward part" if part.added else "layers without a skip"
    return Converted(place, type(computing).__name__, kind, skip.branch.closed(found.module))


def _apply(module: nn.Module, part: Part, skip: AttachedSkip) -> None:
    """Change the classes of a part, and put its skip where it is computed now."""
    if isinstance(part, Block):
        host = module
        swap(module, ConvertedBlock, Conversion(block=part))
    elif isinstance(part, EncoderLayer):
        host = module
        fast_path = cast(int, module.activation_relu_or_gelu)
        swap(module, ConvertedEncoderLayer, Conversion(root=module, fast_path=fast_path))
        module.activation_relu_or_gelu = 0  # type: ignore[assignment]  # torch's fused kernel knows nothing of the skip
    else:
        host = module.get_submodule(part.host)
        swap(host, ConvertedHost if part.added else ConvertedLayers, Conversion(root=module))
    if not isinstance(part, Block):
        for child in part.passing:
            swap(module.get_submodule(child), PassedOver)
    reference = next(iter(module.parameters()), None)
    host.gradient_residual = skip if reference is None else skip.to(reference)


def _set_nested_tensors(model: nn.Module, *, allowed: bool) -> None:
    """Encoders give nested tensors to the fused kernel of their layers, which converted layers do not use."""
    for module in model.modules():
        if not (isinstance(module, nn.TransformerEncoder) and hasattr(module, "use_nested_tensor")):
            continue
        has_converted = any(isinstance(layer, ConvertedEncoderLayer) for layer in module.layers)
        if has_converted and not allowed and _NESTED not in module.__dict__:
            module.__dict__[_NESTED] = module.use_nested_tensor
            module.use_nested_tensor = False
        elif allowed and _NESTED in module.__dict__:
            module.use_nested_tensor = module.__dict__.pop(_NESTED)
