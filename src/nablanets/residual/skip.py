"""The skip of a gradient residual: it evaluates a block, finds g, and adds what the kind of skip carries."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from nablanets.errors import InvalidInputError
from nablanets.residual.branch import Branch
from nablanets.residual.gate import Gate, needed_channels
from nablanets.residual.kinds import fitting, skip_kind
from nablanets.residual.settings import Probe, ResidualSettings
from nablanets.residual.sweep import Pull

_OWNER = "GradientResidual"


class GradientSkip(Gate):
    r"""F(x) + P(skip(x)) for a block F that it does not own. See :class:`GradientResidual`.

    It holds alpha, the probe and the settings. The module that owns the layers of F, the root, is given at each call,
    so that a converted model keeps its layers where they were.

    Args:
        branch: F, as a program on the submodules of the root.
        root: the module that owns the layers of F.
        settings: see :class:`ResidualSettings`.

    Raises:
        ConstantSumError: F ends in a normalisation, so that g is rounding noise.
        InvalidInputError: a setting does not fit F.
    """

    probe: Tensor | None

    def __init__(self, branch: Branch, root: nn.Module, settings: ResidualSettings) -> None:
        layout = branch.layout(root)
        inputs = settings.channels or layout.inputs
        outputs = settings.channels or layout.outputs
        channel_dim = layout.dim if settings.channel_dim is None else settings.channel_dim
        super().__init__(settings.normalize, settings.gain, inputs, channel_dim)
        self.branch = branch
        self.skip = settings.skip
        self.kind = skip_kind(settings.skip)
        self.stop_gradient = settings.stop_gradient
        self.kind.prepare(self)
        if self.kind.needs_gate:
            self.add_alpha(settings.alpha, learn=settings.learn_alpha, per_channel=settings.per_channel)
        self._add_probe(settings.probe, outputs)
        self.learns_probe = isinstance(self.probe, nn.Parameter)
        #: Whether it is known that g is more than rounding noise, by the structure of F or by a trial.
        self._sum_is_known_to_vary = not self.kind.needs_gradient or branch.structure_is_known(root)
        self._refuse_constant_sum(root)
        if self.learns_probe and self.stop_gradient and not branch.closed(root):
            raise InvalidInputError(
                "GradientResidual: a learned probe under stop_gradient=True needs a closed form for every layer of the "
                "block, which this one has not. Set stop_gradient=False, or probe='random'."
            )

    def gradient(self, root: nn.Module, x: Tensor) -> Tensor:
        """g(x) = J_F(x)^T v, of the shape of x, not normalised."""
        return self._value_and_gradient(root, x)[1]

    def forward(self, root: nn.Module, x: Tensor, projection: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """F(x) + P(skip(x))."""
        kind = self.kind
        g: Tensor | None = None
        if kind.needs_gradient:
            y, g = self._value_and_gradient(root, x)
        else:
            y = self.branch.run(root, x)
        if projection is None:
            return kind.joined(self, y, x, g, overwrite=self.branch.owns_output(root))
        carried = kind.carried(self, x, g)
        if carried is None:
            return y
        carried = projection(carried)
        return fitting(y, carried) + carried

    def extra_repr(self) -> str:
        return f"skip={self.skip}, normalize={self.normalize}, stop_gradient={self.stop_gradient}"

    def _value_and_gradient(self, root: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        self._refuse_constant_sum(root)
        # A learned probe has its own derivative under stop-gradient: then only the Jacobian counts as a constant.
        constant_jacobian = self.stop_gradient and self.learns_probe
        constant_gradient = self.stop_gradient and not self.learns_probe
        y, pull = self.branch.linearise(root, x, detach=constant_jacobian)
        probe = y.new_ones(()) if self.probe is None else self.placed(self.probe, y)
        if not self._sum_is_known_to_vary and not torch.compiler.is_compiling():
            self._refuse_vanishing(pull, y, probe)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not constant_gradient):
            g = pull(probe)
        # Behind an affine block g is the same for all samples, and has no batch dimension yet.
        return y, g if g.shape == x.shape else g.expand(x.shape)

    def _refuse_constant_sum(self, root: nn.Module) -> None:
        """At each call, since batch norm has a constant sum in training and none in evaluation."""
        if self.kind.needs_gradient:
            uniform = self.probe is None or self.learns_probe
            self.branch.refuse_constant_sum(root, uniform=uniform, owner=_OWNER)

    def _refuse_vanishing(self, pull: Pull, y: Tensor, probe: Tensor) -> None:
        """Once, where the structure of F does not tell whether its sum varies."""
        try:
            self.branch.refuse_vanishing(pull, y, probe, owner=_OWNER)
        except RuntimeError:  # under vmap no number can be looked at
            return
        self._sum_is_known_to_vary = True

    def _add_probe(self, probe: Probe | Tensor, outputs: int | None) -> None:
        if isinstance(probe, nn.Parameter):
            self.probe = probe
        elif isinstance(probe, Tensor):
            self.register_buffer("probe", probe.clone())
        elif probe == "ones" or not self.kind.needs_gradient:
            self.probe = None
        elif probe == "learned":
            self.probe = nn.Parameter(torch.ones(needed_channels(outputs, "a learned probe")))
        else:
            signs = torch.randint(0, 2, (needed_channels(outputs, "a random probe"),)) * 2.0 - 1
            self.register_buffer("probe", signs.to(torch.get_default_dtype()))
