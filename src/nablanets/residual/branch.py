"""The nonlinear branch F of a residual block: its value, its gradient, and whether its gradient carries anything."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from nablanets.errors import InvalidInputError
from nablanets.residual.elementwise import SLOPES
from nablanets.residual.norms import BATCH_NORMS, GROUPED_NORMS
from nablanets.residual.program import Attribute, Program, Slot, Step, submodule, vjp_of
from nablanets.residual.reading import read
from nablanets.residual.rules import rule_of
from nablanets.residual.settings import Norm
from nablanets.residual.sweep import Pull, Sweep

_REMEDIES = (
    "Its gradient would be rounding noise. Choose norm='before' (the gradient of what comes before the last "
    "normalisation) or norm='constant' (the statistics count as constants)"
)
_PASSING = (nn.Identity, nn.Dropout)


class ConstantSumError(InvalidInputError):
    """The outputs of a block have a constant sum, so the gradient of the sum is zero."""


@dataclass(frozen=True)
class Layout:
    """Numbers of channels (None: unknown) and the dimension that holds them, counted from the end."""

    inputs: int | None
    outputs: int | None
    dim: int


@dataclass
class Branch:
    """F as a program on the submodules of a root, or None if its forward cannot be read (then by ``torch.func.vjp``).

    Args:
        program: what F computes.
        norm: "exact"; "constant": means, variances and normalisers of softmax count as constants; "before": the
            gradient leaves the last normalisation out.
    """

    program: Program | None
    norm: Norm = "exact"
    _last_norm: list[Step] | None = field(default=None, init=False, repr=False)

    @classmethod
    def of(cls, block: nn.Module, norm: Norm) -> Branch:
        return cls(read(block), norm)

    def __post_init__(self) -> None:
        if self.program is None and self.norm != "exact":
            raise InvalidInputError(
                f"GradientResidual: norm={self.norm!r} needs a block whose forward can be read (straight code on its "
                "modules with one argument). Write the block as nn.Sequential, or move the norm out of it."
            )

    def run(self, root: nn.Module, x: Tensor) -> Tensor:
        result: Tensor = root(x) if self.program is None else self.program.run(root, x)
        return result

    def linearise(self, root: nn.Module, x: Tensor, *, detach: bool) -> tuple[Tensor, Pull]:
        """F(x), and c -> J_F(x)^T c."""
        if self.program is None:
            return vjp_of(root, x)
        skipped = frozenset(step.slot for step in self._tail_norms(root)) if self.norm == "before" else frozenset()
        return self.program.linearise(root, x, Sweep(detach, self.norm == "constant"), skipped)

    def owns_output(self, root: nn.Module) -> bool:
        """Whether F's value is a new tensor that nobody else has seen."""
        return self.program is not None and self.program.owns_output(root)

    def closed(self, root: nn.Module) -> bool:
        """Whether no part of the gradient needs ``torch.func.vjp``."""
        if self.program is None:
            return False
        return all(rule_of(root.get_submodule(name)) is not None for name in self.program.leaves())

    def structure_is_known(self, root: nn.Module) -> bool:
        """Whether :meth:`refuse_constant_sum` sees what F ends in."""
        if self.program is None:
            return False
        return all(not s.is_module or rule_of(root.get_submodule(s.target)) for s in self.program.tail())

    def refuse_constant_sum(self, root: nn.Module, *, uniform: bool, owner: str) -> None:
        """Raise if F ends in a normalisation that makes the sum of its outputs constant.

        Args:
            root: the module that holds F's submodules.
            uniform: whether all outputs have the same weight in the sum.
            owner: who asks.
        """
        if self.norm != "exact":
            return
        for step in self._tail_norms(root):
            module = root.get_submodule(step.target)
            if uniform or isinstance(module, BATCH_NORMS):
                raise ConstantSumError(
                    f"{owner}: expected a block whose output sum depends on its input, but it ends in "
                    f"{step.target!r} ({type(module).__name__}), whose outputs have a constant sum. {_REMEDIES}."
                )

    def refuse_vanishing(self, pull: Pull, y: Tensor, probe: Tensor, *, owner: str) -> None:
        """Raise if the gradient is rounding noise beside that of a random combination of the outputs."""
        signs = torch.randint(0, 2, y.shape, generator=torch.Generator().manual_seed(0)).to(y) * 2 - 1
        with torch.no_grad():
            ours, others = pull(probe).norm(), pull(signs).norm()
            vanishes = ours <= torch.finfo(y.dtype).eps ** 0.75 * others
        if bool(vanishes & (others > 0)):
            raise ConstantSumError(
                f"{owner}: expected a block whose output sum depends on its input, but |J^T 1| is "
                f"{float(ours / others):.1e} of |J^T r| for random signs r: it seems to end in a normalisation. "
                f"{_REMEDIES}; both need a block whose forward can be read, such as nn.Sequential."
            )

    def layout(self, root: nn.Module) -> Layout:
        """Where the channels are and how many, as far as the layers of F tell."""
        read = self.program is not None
        modules = [root.get_submodule(n) for n in self.program.leaves()] if self.program else list(root.modules())
        sizes = [size for module in modules if (size := _sizes(module)) is not None]
        if not sizes:
            return Layout(None, None, -1)
        return Layout(sizes[0][0] if read else None, sizes[-1][1] if read else None, sizes[-1][2])

    def _tail_norms(self, root: nn.Module) -> list[Step]:
        """The normalisation that F ends in, if it is at work; at most one."""
        if self._last_norm is None:
            self._last_norm = _last_norm(self.program, root)
        norm = self._last_norm
        return [step for step in norm if _at_work(submodule(root, step.path))]


def _last_norm(program: Program | None, root: nn.Module) -> list[Step]:
    """The normalisation that ends a program, behind operations that keep a sum constant."""
    for step in () if program is None else program.tail():
        module = root.get_submodule(step.target) if step.is_module else None
        if isinstance(module, GROUPED_NORMS + BATCH_NORMS):
            return [step]
        if not (_keeps_sum(step) if module is None else isinstance(module, _PASSING)):
            return []
    return []


def _keeps_sum(step: Step) -> bool:
    """Whether a function is arithmetic with numbers or parameters."""
    return step.target not in SLOPES and all(isinstance(a, Slot | Attribute | int | float) for a in step.arguments)


def _at_work(norm: nn.Module) -> bool:
    """Whether a norm uses statistics of its input, which batch norm does not in evaluation."""
    return not isinstance(norm, BATCH_NORMS) or norm.training or norm.running_var is None


def _sizes(module: nn.Module) -> tuple[int, int, int] | None:
    """Input channels, output channels and their dimension."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features, -1
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return module.in_channels, module.out_channels, 1 - module.weight.ndim
    return None
