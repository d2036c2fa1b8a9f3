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
#: Layers that change no sum whose value is constant.
_SUM_KEEPING = (nn.Identity, nn.Dropout)


class ConstantSumError(InvalidInputError):
    """The outputs of a block have a constant sum, so the gradient of the sum is zero."""


@dataclass(frozen=True)
class Layout:
    """Numbers of channels (None: unknown) and the dimension that holds them, counted from the end."""

    inputs: int | None
    outputs: int | None
    dim: int


@dataclass(frozen=True)
class Branch:
    """F as a program on the submodules of a root, or None if its forward cannot be read (then by ``torch.func.vjp``).

    One branch may be used with several roots that have submodules of the same names: it keeps nothing of a root.

    Args:
        program: what F computes.
        norm: "exact"; "constant": means, variances and normalisers of softmax count as constants; "before": the
            gradient leaves the last normalisation out.

    Raises:
        InvalidInputError: norms are to be treated otherwise than exactly, and the forward of F cannot be read.
    """

    program: Program | None
    norm: Norm = "exact"
    #: Calls of submodules from the output back, behind which only operations follow that keep a constant sum.
    _last_calls: tuple[Step, ...] = field(init=False, repr=False, compare=False)

    @classmethod
    def of(cls, block: nn.Module, norm: Norm) -> Branch:
        """A block's whole forward, with the block as the root."""
        return cls(read(block), norm)

    def __post_init__(self) -> None:
        if self.program is None and self.norm != "exact":
            raise InvalidInputError(
                f"GradientResidual: norm={self.norm!r} needs a block whose forward can be read (straight code on its "
                "modules with one argument). Write the block as nn.Sequential, or move the norm out of it."
            )
        object.__setattr__(self, "_last_calls", _last_calls(self.program))

    def run(self, root: nn.Module, x: Tensor) -> Tensor:
        """F(x)."""
        result: Tensor = root(x) if self.program is None else self.program.run(root, x)
        return result

    def linearise(self, root: nn.Module, x: Tensor, *, detach: bool) -> tuple[Tensor, Pull]:
        """F(x), and c -> J_F(x)^T c; ``detach`` makes J a constant for autograd."""
        if self.program is None:
            return vjp_of(root, x)
        last_norm = self._last_norm(root) if self.norm == "before" else None
        left_out = frozenset() if last_norm is None else frozenset({last_norm.slot})
        return self.program.linearise(root, x, Sweep(detach, self.norm == "constant"), left_out)

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
        calls = [step for step in self.program.tail() if step.is_module]
        return all(rule_of(submodule(root, step.path)) is not None for step in calls)

    def refuse_constant_sum(self, root: nn.Module, *, uniform: bool, owner: str) -> None:
        """Raise if F ends in a normalisation that makes the sum of its outputs constant.

        Args:
            root: the module that holds F's submodules.
            uniform: whether all outputs have the same weight in the sum.
            owner: who asks.
        """
        if self.norm != "exact":
            return
        step = self._last_norm(root)
        if step is None:
            return
        module = submodule(root, step.path)
        if uniform or isinstance(module, BATCH_NORMS):
            raise ConstantSumError(
                f"{owner}: expected a block whose output sum depends on its input, but it ends in "
                f"{step.target!r} ({type(module).__name__}), whose outputs have a constant sum. {_REMEDIES}."
            )

    def refuse_vanishing(self, pull: Pull, y: Tensor, probe: Tensor, *, owner: str) -> None:
        """Raise if the gradient is rounding noise beside that of a random combination of the outputs."""
        generator = torch.Generator().manual_seed(0)
        signs = torch.randint(0, 2, y.shape, generator=generator).to(y) * 2 - 1
        with torch.no_grad():
            ours = pull(probe).norm()
            others = pull(signs).norm()
            vanishes = ours <= torch.finfo(y.dtype).eps ** 0.75 * others
        if bool(vanishes & (others > 0)):
            raise ConstantSumError(
                f"{owner}: expected a block whose output sum depends on its input, but |J^T 1| is "
                f"{float(ours / others):.1e} of |J^T r| for random signs r: it seems to end in a normalisation. "
                f"{_REMEDIES}; both need a block whose forward can be read, such as nn.Sequential."
            )

    def layout(self, root: nn.Module) -> Layout:
        """Where the channels are and how many, as far as the layers of F tell.

        The first linear or convolutional layer tells the inputs, the last one the outputs and the dimension. Of a
        forward that cannot be read the order is unknown, so only the dimension is taken.
        """
        if self.program is None:
            modules = list(root.modules())
        else:
            modules = [root.get_submodule(name) for name in self.program.leaves()]
        sizes = [size for module in modules if (size := _sizes(module)) is not None]
        if not sizes:
            return Layout(None, None, -1)
        first_inputs, last_outputs, dim = sizes[0][0], sizes[-1][1], sizes[-1][2]
        if self.program is None:
            return Layout(None, None, dim)
        return Layout(first_inputs, last_outputs, dim)

    def _last_norm(self, root: nn.Module) -> Step | None:
        """The normalisation that F ends in on this root, if it is at work now.

        It is looked up at each call, since roots differ, layers are replaced, and batch norm is at work only in
        training. Most blocks end in a linear layer, where this ends at once.
        """
        for step in self._last_calls:
            module = submodule(root, step.path)
            if isinstance(module, GROUPED_NORMS + BATCH_NORMS):
                return step if _at_work(module) else None
            if not isinstance(module, _SUM_KEEPING):
                return None
        return None


def _last_calls(program: Program | None) -> tuple[Step, ...]:
    """The calls of submodules from the output back, up to the first function that changes a constant sum."""
    calls = []
    for step in () if program is None else program.tail():
        if step.is_module:
            calls.append(step)
        elif not _keeps_sum(step):
            break
    return tuple(calls)


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
