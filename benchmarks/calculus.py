"""Time of determinants, Laplacians and solves against automatic differentiation of the same maps, on one thread.

    python benchmarks/calculus.py [--quick]

Ratios are the peer's time over ours within this run. The peer's Jacobian is ``vmap(jacrev(net))``, the usual way.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import jacrev, vmap

from nablanets import GradientMap, GradNetC, GradNetM
from nablanets_studies.machinery.costs import interleaved_times
from timing import QUICK, one_thread, print_table

ValueAndLogdet = Callable[[GradientMap, Tensor], tuple[Tensor, Tensor]]


def structured(net: GradientMap, x: Tensor) -> tuple[Tensor, Tensor]:
    y, jacobian = net.value_and_jacobian(x)
    return y, jacobian.logdet()


def by_autodiff(net: GradientMap, x: Tensor) -> tuple[Tensor, Tensor]:
    return net(x), torch.linalg.slogdet(vmap(jacrev(net))(x)).logabsdet


def monge_ampere_step(net: GradientMap, x: Tensor, method: ValueAndLogdet) -> None:
    """One training step for the transport map between two standard normal densities: forward, log det, backward."""
    for p in net.parameters():
        p.grad = None
    y, logdet = method(net, x)
    log_p, log_q = (-z.square().sum(dim=-1) / 2 - x.shape[-1] / 2 * math.log(2 * math.pi) for z in (x, y))
    (logdet - log_p + log_q).abs().mean().backward()


def laplacian_by_autodiff(net: GradientMap, x: Tensor) -> Tensor:
    return vmap(jacrev(net))(x).diagonal(dim1=-2, dim2=-1).sum(dim=-1)


def networks(d: int) -> dict[str, GradientMap]:
    return {
        f"GradNetC, {4 * d} units, 3 layers": GradNetC(d, 4 * d, 3, monotone=True),
        f"GradNetM, 4 x {d} units": GradNetM(d, d, 4, monotone=True),
    }


def monge_ampere() -> None:
    rows = []
    for d in (16, 32, 64):
        for name, net in networks(d).items():
            x = torch.randn(250 if QUICK else 1000, d)
            ours, peer = interleaved_times(
                [lambda: monge_ampere_step(net, x, structured), lambda: monge_ampere_step(net, x, by_autodiff)],  # noqa: B023
                repeats=3 if QUICK else 7,
                at_least=0.2,  # as in training, where one step follows the other
            )
            rows.append((f"d = {d}: {name}", f"{1e3 * ours:.1f}", f"{1e3 * peer:.1f}", f"{peer / ours:.1f}"))
    print_table(
        "Monge-Ampere training step (forward, log-determinant, backward), one thread",
        ("map", "structured [ms]", "vmap(jacrev) + slogdet [ms]", "ratio"),
        rows,
    )


def laplacians() -> None:
    rows, d = [], 256
    for name, net in networks(d).items():
        x = torch.randn(32 if QUICK else 64, d)
        with torch.no_grad():
            ours, peer = interleaved_times(
                [lambda: net.laplacian(x), lambda: laplacian_by_autodiff(net, x)],  # noqa: B023
                repeats=3 if QUICK else 7,
            )
        rows.append((f"d = {d}: {name}", f"{1e3 * ours:.2f}", f"{1e3 * peer:.1f}", f"{peer / ours:.0f}"))
    print_table("Laplacian, one thread", ("map", "structured [ms]", "autodiff [ms]", "ratio"), rows)


def large_determinants() -> None:
    """Exact and estimated determinants in high dimension, with the error that the estimate states and the true one."""
    rows = []
    for d in (512, 1024) if QUICK else (512, 1024, 2048):
        net = GradNetM(d, 32, 4, monotone=True, linear="diagonal")
        x = torch.randn(4, d)
        dense = net + GradNetM(d, 1, 1, monotone=True, linear=d - 1)  # no longer low rank beside a diagonal
        for name, f in (("low rank", net), ("full rank", dense)):
            with torch.no_grad():
                exact, estimated = interleaved_times(
                    [lambda: f.jacobian(x).logdet(), lambda: f.jacobian(x).logdet_estimate()],  # noqa: B023
                    repeats=2,
                    warm_up=1,
                )
                estimate, truth = f.jacobian(x).logdet_estimate(), f.jacobian(x).logdet()
            error = float((estimate.value - truth).abs().mean())
            rows.append(
                (
                    f"d = {d}, {name}",
                    f"{1e3 * exact:.0f}",
                    f"{1e3 * estimated:.0f}",
                    f"{float(truth.mean()):.2f}",
                    f"{error:.2f}",
                    f"{float(estimate.standard_error.mean()):.2f}",
                )
            )
    print_table(
        "Log-determinants of 4 large Jacobians, one thread",
        ("map", "logdet() [ms]", "logdet_estimate() [ms]", "log det", "error", "stated standard error"),
        rows,
    )


if __name__ == "__main__":
    one_thread()
    monge_ampere()
    laplacians()
    large_determinants()
