"""Time of the maps against straightforward implementations and peers of the same size, on one thread.

    python benchmarks/maps.py [--quick]

Times are medians; every ratio compares two rows of this one run (the peer's time over ours).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nablanets import GradNetC, GradNetM
from nablanets.parameters import count_parameters, softplus
from nablanets_studies.baselines import ICNN, MLP, match_parameters
from timing import QUICK, median_time, one_thread, print_table


class LoopC(nn.Module):
    """GradNet-C as in the public code: W x anew in every layer."""

    def __init__(self, net: GradNetC) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        ridge, W = self.net.ridge, self.net.weight
        alpha, beta = softplus(ridge.alpha_raw), softplus(ridge.beta_raw)
        value: Tensor | float = 0.0
        for layer, s in enumerate(ridge.activations):
            value = alpha[layer] * s(beta[layer] * (x @ W.T + ridge.bias[layer]) + value)
        return value @ W + self.net.bias


class LoopM(nn.Module):
    """GradNet-M as in the public code: a Python loop over modules, each with parameters of its own."""

    def __init__(self, net: GradNetM) -> None:
        super().__init__()
        self.weights = nn.ParameterList(nn.Parameter(w.detach().clone()) for w in net.weight)
        self.biases = nn.ParameterList(nn.Parameter(b.detach().clone()) for b in net.hidden_bias)
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        total = self.net.bias
        for m, (W, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            z = softplus(self.net.sharpness_raw[m]) * (x @ W.T + b)
            total = total + softplus(self.net.scale_raw[m]) * torch.softmax(z, dim=-1) @ W
        return total


class AutogradGradient(nn.Module):
    """The gradient of a scalar network by autograd, as most code has it."""

    def __init__(self, potential: nn.Module) -> None:
        super().__init__()
        self.potential = potential

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(self.potential(x).sum(), x, create_graph=self.training)[0]


def forward_time(net: nn.Module, x: Tensor, repeats: int) -> float:
    net.eval()
    with torch.no_grad():
        return median_time(lambda: net(x), repeats)


def step_time(net: nn.Module, x: Tensor, repeats: int) -> float:
    net.train()
    parameters = [p for p in net.parameters() if p.requires_grad]

    def step() -> None:
        for p in parameters:
            p.grad = None
        (net(x) - x).square().sum(dim=-1).mean().backward()

    return median_time(step, repeats)


def networks(d: int, hidden: int) -> dict[str, tuple[nn.Module, str]]:
    """Networks by name, each with the name of the row that its ratio refers to."""
    c = GradNetC(d, 4 * hidden, 4, activation="tanh", monotone=True, linear=False)
    m = GradNetM(d, hidden, 4, activation="softmax", monotone=True, linear=False)
    budget = count_parameters(c)
    return {
        "GradNetC": (c, "GradNetC"),
        "  loop, W x per layer": (LoopC(c), "GradNetC"),
        "GradNetM": (m, "GradNetM"),
        "  loop over modules": (LoopM(m), "GradNetM"),
        "autograd MLP potential": (
            match_parameters(lambda h: AutogradGradient(MLP(d, h, outputs=1)), budget),
            "GradNetC",
        ),
        "autograd ICNN": (match_parameters(lambda h: AutogradGradient(ICNN(d, h)), budget), "GradNetC"),
    }


def main() -> None:
    one_thread()
    repeats = 10 if QUICK else 60
    for d, hidden, batch in ((2, 7, 1000), (64, 64, 500), (256, 128, 200), (1024, 255, 100)):
        torch.manual_seed(0)
        x = torch.rand(batch, d)
        nets = networks(d, hidden)
        forward = {name: forward_time(net, x, repeats) for name, (net, _) in nets.items()}
        step = {name: step_time(net, x, repeats) for name, (net, _) in nets.items()}
        rows = []
        for name, (net, ours) in nets.items():
            unique = count_parameters(nets[ours][0]) if name.startswith("  ") else count_parameters(net)
            times = (f"{1e6 * forward[name]:.0f}", f"{forward[name] / forward[ours]:.2f}")
            times += (f"{1e6 * step[name]:.0f}", f"{step[name] / step[ours]:.2f}")
            rows.append((name, f"{unique:,}", *times))
        print_table(
            f"d = {d}, batch {batch}, one thread (ratio: time over that of our net)",
            ("network", "parameters", "forward [us]", "ratio", "forward + backward [us]", "ratio"),
            rows,
        )


if __name__ == "__main__":
    main()
