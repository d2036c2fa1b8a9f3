"""Cost of networks of gradient residuals relative to those of plain residual blocks x + F(x), on one thread.

    python benchmarks/residual.py [--quick] [name ...]

A network is four like blocks, each with its own weights. A training step is forward and backward, with gradients of all
parameters and of the input. The variants take turns; times are CPU time of the thread per block, the mean of the faster
quarter of the rounds. Every ratio is of this one run.
"""

from __future__ import annotations

import copy
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from nablanets import GradientResidual
from nablanets.residual.mixing import unit
from timing import QUICK, one_thread, print_table


class Plain(nn.Module):
    """x + F(x)."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


class Autograd(nn.Module):
    """The gradient by ``torch.autograd.grad``, as a straightforward implementation has it."""

    def __init__(self, block: nn.Module, dim: int, *, full: bool) -> None:
        super().__init__()
        self.block, self.dim, self.full = block, dim, full
        self.alpha = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            y = self.block(x)
            g = torch.autograd.grad(y.sum(), x, create_graph=self.full, retain_graph=True)[0]
        s = torch.sigmoid(self.alpha)
        return y + (1 - s) * x + s * unit(g, [self.dim])


class Unread(nn.Module):
    """Hides the structure of a block, so that its gradient comes from ``torch.func.vjp``."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x) if self.training else self.block(x) * 1


def mlp(width: int, activation: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(width, width), activation, nn.Linear(width, width))


def edsr(channels: int) -> nn.Module:
    first, second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
    return nn.Sequential(first, nn.ReLU(inplace=True), second)


def resnet(channels: int) -> nn.Module:
    first, second = (nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))
    norms = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
    return nn.Sequential(first, norms[0], nn.ReLU(inplace=True), second, norms[1])


def feed_forward(width: int) -> nn.Module:
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


DEPTH = 4

#: Block, shape of the input, treatment of norms.
BLOCKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "MLP 64 ReLU": (lambda: mlp(64, nn.ReLU()), (1000, 64), "exact"),
    "MLP 256 ReLU": (lambda: mlp(256, nn.ReLU()), (512, 256), "exact"),
    "MLP 256 GELU": (lambda: mlp(256, nn.GELU()), (512, 256), "exact"),
    "MLP 512 ReLU": (lambda: mlp(512, nn.ReLU()), (512, 512), "exact"),
    "EDSR 64": (lambda: edsr(64), (16, 64, 48, 48), "exact"),
    "EDSR 64, small batch": (lambda: edsr(64), (4, 64, 48, 48), "exact"),
    "ResNet 64": (lambda: resnet(64), (32, 64, 32, 32), "constant"),
    "ResNet 64, small batch": (lambda: resnet(64), (8, 64, 32, 32), "constant"),
    "feed-forward 256": (lambda: feed_forward(256), (256, 256), "exact"),
}


def variants(build: Callable[[], nn.Module], dim: int, norm: str) -> dict[str, nn.Module]:
    blocks = [build() for _ in range(DEPTH)]
    settings = {"norm": norm, "channel_dim": dim}
    kinds: dict[str, Callable[[nn.Module], nn.Module]] = {
        "plain": Plain,
        "stop-gradient": lambda block: GradientResidual(block, **settings),
        "full": lambda block: GradientResidual(block, stop_gradient=False, **settings),
    }
    if norm == "exact":
        kinds |= {
            "vjp, stop-gradient": lambda block: GradientResidual(Unread(block), channel_dim=dim),
            "vjp, full": lambda block: GradientResidual(Unread(block), stop_gradient=False, channel_dim=dim),
        }
    kinds |= {
        "autograd, stop-gradient": lambda block: Autograd(block, dim, full=False),
        "autograd, full": lambda block: Autograd(block, dim, full=True),
    }
    return {name: nn.Sequential(*(kind(copy.deepcopy(block)) for block in blocks)) for name, kind in kinds.items()}


def measure(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """CPU seconds of each run: mean of the faster quarter of the rounds in which all take turns."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 3):
        for name, run in runs.items():
            begin = time.thread_time()
            run()
            if turn >= 3:
                times[name].append(time.thread_time() - begin)
    return {name: statistics.fmean(sorted(values)[: max(1, rounds // 4)]) for name, values in times.items()}


def training_step(net: nn.Module, x: Tensor) -> None:
    net.zero_grad(set_to_none=True)
    x.grad = None
    net(x).square().mean().backward()


def inference(net: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        net(x)


def ratio(times: dict[str, float], name: str) -> str:
    return f"{times[name] / times['plain']:.2f}"


def compare(block: str, rounds: int) -> None:
    build, shape, norm = BLOCKS[block]
    torch.manual_seed(0)
    x = torch.randn(shape, requires_grad=True)
    nets = variants(build, -1 if len(shape) == 2 else -3, norm)
    step = measure({k: lambda net=net: training_step(net, x) for k, net in nets.items()}, rounds)
    for net in nets.values():
        net.eval()
    forward = measure({k: lambda net=net: inference(net, x) for k, net in nets.items()}, rounds)
    rows = [
        (
            name,
            *(text for times in (step, forward) for text in (f"{1e3 / DEPTH * times[name]:.2f}", ratio(times, name))),
        )
        for name in nets
    ]
    title = f"{block}, input {tuple(shape)}" + ("" if norm == "exact" else f", norm={norm!r}")
    print_table(title, ("variant", "step / block [ms]", "ratio", "inference / block [ms]", "ratio"), rows)


def main() -> None:
    one_thread()
    for name in [a for a in sys.argv[1:] if not a.startswith("--")] or BLOCKS:
        compare(name, 4 if QUICK else 12)


if __name__ == "__main__":
    main()
