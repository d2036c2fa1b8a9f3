"""Fits to mixtures of potential values, incomplete gradients and Hessian-vector products."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from nablanets import GradNetC, GradNetM, SobolevTargets, fit
from nablanets.errors import InvalidInputError, ShapeError
from nablanets.fitting import error
from tests.peers import ConvexField

DTYPE = torch.float64


@pytest.fixture
def problem():
    field = ConvexField()
    x = torch.rand(400, 2, generator=torch.Generator().manual_seed(0), dtype=DTYPE)
    return x, field.gradient(x), field.potential(x), field


def _fresh() -> GradNetM:
    torch.manual_seed(1)
    return GradNetM(2, 8, 2, monotone=True).double()


def _test_error(net, field) -> float:
    x = torch.rand(2000, 2, generator=torch.Generator().manual_seed(9), dtype=DTYPE)
    return error(net, x, field.gradient(x)) / float(field.gradient(x).square().sum(1).mean())


def test_complete_gradients_are_the_plain_objective(problem):
    x, g, _, _ = problem
    net, targets = _fresh(), SobolevTargets(gradient=g)
    assert_close(targets(net, x, targets.pack(x)), (net(x) - g).square().sum(1).mean())
    settings = {"steps": 60, "batch_size": 50, "progress": False}
    plain, sobolev = _fresh(), _fresh()
    fit(plain, x, g, **settings)
    fit(sobolev, x, targets, **settings)
    assert_close(sobolev(x), plain(x), rtol=1e-9, atol=1e-9)


def test_the_objective_is_what_the_docstring_says(problem):
    x, g, potential, _ = problem
    net = _fresh()
    v = torch.randn(400, 2, dtype=DTYPE)
    missing = torch.rand(400, 2) < 0.3
    weights = torch.rand(400, dtype=DTYPE)
    targets = SobolevTargets(
        torch.where(missing, torch.nan, g), potential + 7, v, 0.5 * v, weights, potential_weight=3.0, product_weight=0.2
    )
    there = weights.unsqueeze(1) * ~missing
    gradient = 2 * ((net(x) - g).square() * there).sum() / there.sum()
    rest = net.potential(x) - potential
    constant = (weights * rest).sum() / weights.sum()
    values = (weights * (rest - constant).square()).sum() / weights.sum()
    products = (weights * (net.hvp(x, v) - 0.5 * v).square().sum(1)).sum() / weights.sum()
    assert_close(targets(net, x, targets.pack(x)), gradient + 3.0 * values + 0.2 * products)


@pytest.mark.parametrize("known", ["potential", "half", "products", "lbfgs"])
def test_a_field_is_learned_from_whatever_is_known(problem, known):
    """Each kind of observation alone, or half of the gradient's components, finds the field; the data matter."""
    x, g, potential, field = problem
    v = torch.randn(400, 2, generator=torch.Generator().manual_seed(3), dtype=DTYPE)
    hessian = torch.func.vmap(torch.func.jacrev(field.gradient))(x)
    half = torch.where(torch.rand(400, 2, generator=torch.Generator().manual_seed(4)) < 0.5, torch.nan, g)
    targets = {
        "potential": SobolevTargets(potential=potential, potential_weight=10.0),
        "half": SobolevTargets(gradient=half),
        # Products know the gradient up to a constant: a hundredth of the gradients fixes it.
        "products": SobolevTargets(
            torch.where(torch.arange(400).unsqueeze(1) < 40, g, torch.nan),
            directions=v,
            products=torch.einsum("nij,nj->ni", hessian, v),
        ),
        "lbfgs": SobolevTargets(potential=potential, potential_weight=10.0),
    }[known]
    net = _fresh()
    options = {"optimizer": "lbfgs", "steps": 150, "batch_size": 400} if known == "lbfgs" else {"steps": 1500}
    fit(net, x, targets, learning_rate=2e-2, progress=False, **options)
    assert _test_error(net, field) < 1e-2  # the best affine map has 3e-2


def test_early_stopping_helps_against_noise():
    """Few noisy samples and a large free net: the best validated weights beat the last ones."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(60, 2, generator=generator)
    truth = ConvexField()
    noisy = truth.gradient(x) + 0.5 * torch.randn(60, 2, generator=generator)
    torch.manual_seed(0)
    net = GradNetC(2, 60, 3)
    last: list[float] = []
    settings = {"steps": 2000, "validate_every": 20, "learning_rate": 1e-2, "validation": 0.3, "progress": False}
    result = fit(net, x, noisy, patience=10, report=lambda row: last.append(row.validation_error), **settings)
    assert result.stop_reason == "patience"
    assert result.steps < 2000
    assert result.best_validation_error < last[-1]


def test_wrong_targets_are_explained(problem):
    x, g, potential, _ = problem
    for build, message in (
        (SobolevTargets, "at least one"),
        (lambda: SobolevTargets(directions=x), "directions and products"),
        (lambda: SobolevTargets(potential=potential, potential_weight=-1.0), "potential_weight >= 0"),
        (lambda: fit(_fresh(), x, SobolevTargets(gradient=g[:5]), progress=False), "gradient of shape"),
        (lambda: fit(_fresh(), x, SobolevTargets(gradient=g / 0), progress=False), "infinite"),
        (
            lambda: fit(_fresh(), x, SobolevTargets(gradient=g, weights=-potential.abs()), progress=False),
            "weights >= 0",
        ),
        (lambda: fit(_fresh(), x, SobolevTargets(gradient=g), optimizer="levenberg", progress=False), "SobolevTargets"),
        (
            lambda: fit(nn.Linear(2, 2).double(), x, SobolevTargets(potential=potential), steps=1, progress=False),
            "GradientMap only",
        ),
    ):
        with pytest.raises((InvalidInputError, ShapeError), match=message):
            build()


def test_a_sobolev_fit_resumes_exactly(problem, tmp_path):
    x, g, potential, _ = problem
    targets = SobolevTargets(gradient=g, potential=potential)
    settings = {"steps": 40, "batch_size": 64, "validate_every": 10, "progress": False}
    whole = _fresh()
    fit(whole, x, targets, **settings)
    resumed, path = _fresh(), tmp_path / "state"

    def interrupt(row):
        if row.step == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(resumed, x, targets, checkpoint=path, report=interrupt, **settings)
    fit(resumed, x, targets, checkpoint=path, **settings)
    assert torch.equal(resumed(x), whole(x))
