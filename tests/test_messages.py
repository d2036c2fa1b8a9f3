"""What people give to a network by mistake, or by right: arrays, other dtypes, other devices, other names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from nablanets import (
    ConditionalGradNet,
    FitSettings,
    GradientMap,
    GradNetC,
    GradNetM,
    GradNetMixture,
    SobolevTargets,
    fit,
    load,
    verify,
)
from nablanets.arrays import as_tensor
from nablanets.dynamics import (
    ConditionalHamiltonian,
    HamiltonianSystem,
    SecondOrder,
    SeparableHamiltonian,
    SympNet,
    fit_derivatives,
    fit_positions,
    fit_trajectories,
)
from nablanets.dynamics.verify import hamiltonian_error
from nablanets.errors import InvalidInputError, ShapeError, UnknownKeywordError, unknown_name
from nablanets.fitting import fit_best_start, fit_many
from nablanets.maps import PairAcceleration
from nablanets.pieces import identify_pieces
from nablanets.residual import add_gradient_residuals
from nablanets.starts import initialise_affine, initialise_from_data, solve_ridge, standardised
from nablanets.verify import Certificate, Check
from tests.cases import CASES, D

#: What evaluates a map at points.
EVALUATIONS: dict[str, Callable[[GradientMap, torch.Tensor], object]] = {
    "call": lambda net, x: net(x),
    "potential": lambda net, x: net.potential(x),
    "jacobian": lambda net, x: net.jacobian(x),
    "value_and_jacobian": lambda net, x: net.value_and_jacobian(x),
    "hvp": lambda net, x: net.hvp(x, x),
    "laplacian": lambda net, x: net.laplacian(x),
    "logdet": lambda net, x: net.jacobian(x).logdet(),
    "solve": lambda net, x: net.solve(x),
    "inverse": lambda net, x: net.inverse(x),
    "conjugate": lambda net, x: net.conjugate(x),
    "prox": lambda net, x: net.prox(x, 1e-6),
    "potential_between": lambda net, x: net.potential_between(x, x),
    "symmetry_error": verify.symmetry_error,
    "loop_error": verify.loop_error,
    "jacobian_error": verify.jacobian_error,
    "potential_gradient_error": verify.potential_gradient_error,
}


def _x(count: int = 5) -> torch.Tensor:
    return torch.randn(count, D, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_evaluation_refuses_points_of_another_dtype_or_device_alike(case) -> None:
    torch.manual_seed(0)
    for given, asked in ((torch.float64, torch.float32), (torch.float32, torch.float64)):
        net = case.build().to(asked)
        for evaluate in EVALUATIONS.values():
            with pytest.raises(InvalidInputError, match=f"in the dtype of the network, {asked}, got {given}"):
                evaluate(net, _x().to(given))
            with pytest.raises(InvalidInputError, match=r"(x|y|v|start) on meta and the network on cpu. Move one"):
                evaluate(net, _x().to(asked).to("meta"))
    with pytest.raises(
        InvalidInputError, match=r"got ndarray. Convert it with torch.as_tensor\(x, dtype=torch.float64"
    ):
        net(_x().numpy())
    with pytest.raises(InvalidInputError, match="J @ v: expected v in the dtype"):
        net.jacobian(_x().double()) @ _x()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_map_says_what_it_is(case) -> None:
    net = case.build()
    first = repr(net).splitlines()[0]
    count = sum(p.numel() for p in net.parameters())
    assert first.startswith(f"{type(net).__name__}(features={D}, monotone={net.monotone}")
    assert f"{count:,} parameter" in first
    assert "_raw" not in repr(net)
    assert type(net).__name__ in repr(net.to("meta"))  # without values


def test_the_lines_of_a_composition_are_nested() -> None:
    net = GradNetC(2, 7, 3, activation="tanh", monotone=True) - GradNetM(2, 5)
    lines = repr(net).splitlines()
    assert "hidden_features=7, num_layers=3, activation='tanh'" in lines[1]
    assert lines[1].startswith("  parts[0]: GradNetC(")
    assert lines[2].startswith("  parts[1]: Scale(features=2, monotone=False, factor=-1.0")
    assert lines[3].startswith("    inner: GradNetM(features=2, monotone=False, hidden_features=5")


def test_autocast_converts_points_as_it_does_for_other_layers() -> None:
    net = GradNetM(D, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert net(_x().bfloat16()).shape == (5, D)


def test_checks_leave_compile_vmap_and_export_alone() -> None:
    net, x = GradNetM(D, 4), _x()
    expected = net(x)
    assert torch.allclose(torch.compile(net, fullgraph=True, backend="eager")(x), expected)
    assert torch.allclose(torch.func.vmap(net)(x), expected, atol=1e-6)
    assert torch.allclose(torch.export.export(net, (x,)).module()(x), expected, atol=1e-6)


def _frame(x: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame(x, columns=[f"x{k}" for k in range(x.shape[1])])


FORMS: dict[str, Callable[[np.ndarray], Any]] = {
    "float64": lambda x: x,
    "float32": lambda x: x.astype(np.float32),
    "big endian": lambda x: x.astype(">f8"),
    "reversed": lambda x: x[::-1].copy()[::-1],
    "lists": lambda x: x.tolist(),
    "frame": _frame,
    "nullable frame": lambda x: _frame(x).convert_dtypes(),
    "list of tensors": lambda x: [torch.tensor(row) for row in x],
}


@pytest.mark.parametrize("form", FORMS)
def test_samples_may_be_arrays_lists_and_frames(form: str) -> None:
    x = np.random.default_rng(0).normal(size=(60, 2))
    x.flags.writeable = False
    given = FORMS[form](x)
    assert np.allclose(as_tensor(given, owner="fit", name="x").numpy(), x, atol=1e-6)

    def weights(points: Any, validation: Any = 0.1) -> torch.Tensor:
        torch.manual_seed(0)
        net = GradNetM(2, 3)
        fit(net, points, points, validation=validation, steps=3, progress=False)
        return torch.cat([p.detach().flatten() for p in net.parameters()])

    tensor = torch.from_numpy(x.copy()).float()
    assert torch.allclose(weights(given), weights(tensor), atol=1e-6)
    assert torch.allclose(weights(given, (given, given)), weights(tensor, (tensor, tensor)), atol=1e-6)
    settings = FitSettings(steps=4)
    fit_best_start(lambda: GradNetM(2, 3), given, given, starts=2, start_steps=1, settings=settings, progress=False)
    fit_many(lambda: GradNetM(2, 3), given, given, seeds=1, steps=2)
    fit(GradNetM(2, 3), given, SobolevTargets(gradient=given, potential=x[:, 0]), steps=2, progress=False)
    initialise_affine(GradNetC(2, 3), given, given)
    initialise_from_data(GradNetC(2, 3), given)
    assert standardised(GradNetM(2, 3), given, given).features == 2
    assert len(identify_pieces(given, given, 1)) == 1
    assert verify.certificate(GradNetM(2, 3).double(), given).points == 60
    # What measures, and fits of other kinds.
    net = GradNetM(2, 3, linear=False)
    for measure in (verify.symmetry_error, verify.jacobian_error, verify.potential_path_error, verify.loop_error):
        assert measure(net, given) == pytest.approx(measure(net, tensor), abs=1e-5)
    assert torch.allclose(verify.autodiff_jacobian(net, x=given), verify.autodiff_jacobian(net, tensor), atol=1e-5)
    verify.assert_symmetric(lambda points: 2 * points, given)
    hamiltonian_error(HamiltonianSystem(net), given)
    assert solve_ridge(net, given, given, validation=(given, given)).errors
    system = HamiltonianSystem(GradNetM(2, 3))
    fit_derivatives(system, given, given, validation=(given, given), steps=1, progress=False)


def test_trajectories_and_positions_may_be_arrays_and_lists() -> None:
    t = np.linspace(0, 3, 16)[:, None, None]
    states = np.concatenate([np.sin(t), np.cos(t)], axis=-1) * np.linspace(0.5, 1, 5)[:, None]
    for form in (lambda a: a, lambda a: a.tolist(), torch.from_numpy):
        torch.manual_seed(0)
        system = SeparableHamiltonian([1.0], GradNetC(1, 3))
        result = fit_trajectories(system, form(states), 0.2, horizon=2, steps=2, progress=False)
        assert result.best_validation_error < 10
        fit_positions(system, form(states[..., :1]), 0.2, steps=2, progress=False)
    with pytest.raises(InvalidInputError, match="fit_trajectories: expected trajectories to hold real numbers"):
        fit_trajectories(system, np.array([["a"]]), 0.2)


@pytest.mark.parametrize("case", CASES[::7], ids=lambda case: case.name)
def test_operators_refuse_right_hand_sides_of_other_kinds(case) -> None:
    torch.manual_seed(0)
    net = case.build()
    jacobian = net.jacobian(_x())
    for operation in (jacobian.solve, jacobian.solve_ex, lambda b: jacobian @ b, lambda b: net.along(b, b)):
        with pytest.raises(InvalidInputError, match=r"in the dtype of the network, torch.float32, got torch.float64"):
            operation(_x().double())
        with pytest.raises(InvalidInputError, match="on meta and the network on cpu"):
            operation(_x().to("meta"))
        with pytest.raises(InvalidInputError, match=r"torch.Tensor of shape \(\*, 3\), got ndarray"):
            operation(_x().numpy())
        with pytest.raises(ShapeError, match=r"of shape \(\*, 3\)"):
            operation(torch.ones(5, 4))


@pytest.mark.parametrize(
    ("system", "words"),
    [
        (
            HamiltonianSystem(GradNetC(4, 7)),
            ["HamiltonianSystem(features=4, 196 param", "  hamiltonian: GradNetC(features=4"],
        ),
        (
            SecondOrder(GradNetC(2, 7), 2, [1, 2]),
            ["SecondOrder(features=4, positions=2, masses=[1, 2]", "  field: Grad"],
        ),
        (SympNet([GradNetC(2, 7), GradNetM(2, 3)]), ["SympNet(features=4, ", "  shears[0]: GradNetC(", "  shears[1]:"]),
        (
            PairAcceleration(GradNetC(1, 7), [1.0, 2.0]),
            ["PairAcceleration(features=6, masses=[1.0, 2.0]", "  law: Gra"],
        ),
        (ConditionalHamiltonian(ConditionalGradNet(2, 1, 8)), ["ConditionalHamiltonian(features=2, ", "  net: Condit"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_system_says_what_it_is(system, words: list[str]) -> None:
    text = repr(system)
    assert text.startswith(words[0])
    assert all(f"\n{word}" in text for word in words[1:])
    assert f"{sum(p.numel() for p in system.parameters()):,} parameters" in text.splitlines()[0]
    assert type(system).__name__ in repr(system.to("meta"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([[1 + 2j, 0]]), "real numbers, got ndarray of complex128"),
        (np.array([[True, False]]), "real numbers, got ndarray of bool"),
        (np.array([["1", "2"]]), "real numbers, got ndarray of <U1"),
        (np.array([["2026-01-01"]], dtype="datetime64[D]"), "real numbers, got ndarray of datetime64"),
        (pd.DataFrame({"a": [1.0, 2.0], "b": ["u", "v"]}), r"got str 'u' at x\[0\]\[1\]"),
        ([[1.0, 2.0], [3.0]], "rows of one length"),
        (TensorDataset(torch.zeros(3, 2), torch.zeros(3, 2)), r"dataset.tensors"),
        (DataLoader(TensorDataset(torch.zeros(3, 2), torch.zeros(3, 2))), r"got a DataLoader.*\(count, generator\)"),
        ({"x": [1.0]}, "got dict"),
    ],
)
def test_what_holds_no_numbers_is_refused_with_a_reason(values: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        fit(GradNetM(2, 3), values, values, steps=1, progress=False)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fit(GradNetM(2, 3), _x(), _x(), lr=0.1), "fit has no argument 'lr'. Did you mean 'learning_rate'"),
        (lambda: fit(GradNetM(2, 3), _x(), _x(), epochs=3), "Did you mean 'steps'"),
        (lambda: fit(GradNetM(2, 3), _x(), _x(), valdation=0.2), "Did you mean 'validation'"),
        (lambda: fit_many(lambda: GradNetM(2, 3), _x(), _x(), batch=3), "Did you mean 'batch_size'"),
        (lambda: FitSettings(optimiser="adam"), "FitSettings has no argument 'optimiser'. Did you mean 'optimizer'"),
        (lambda: FitSettings().update(lr=1), "Did you mean 'learning_rate'"),
        (lambda: GradNetC(2, hidden=3), "GradNetC has no argument 'hidden'. Did you mean 'hidden_features'"),
        (lambda: GradNetM(2, 3, num_module=3), "Did you mean 'num_modules'"),
        (
            lambda: GradNetMixture([GradNetM(2, 3)], sharpnes=3),
            "GradNetMixture has no argument 'sharpnes'. Did you mean",
        ),
        (lambda: SobolevTargets(gradients=_x()), "SobolevTargets has no argument 'gradients'. Did you mean 'gradient'"),
        (
            lambda: verify.certificate(GradNetM(2, 3), random_state=3),
            "certificate has no argument.* Did you mean 'seed'",
        ),
        (lambda: add_gradient_residuals(torch.nn.Linear(2, 2), normalise="sample"), "Did you mean 'normalize'"),
    ],
)
def test_unknown_arguments_get_the_name_that_is_meant(call: Callable[[], object], message: str) -> None:
    with pytest.raises(UnknownKeywordError, match=message) as caught:
        call()
    assert isinstance(caught.value, TypeError)  # as Python's own


def test_constructors_still_know_their_signature(tmp_path) -> None:
    with pytest.raises(TypeError, match="missing"):
        GradNetC(2)
    GradNetC(2, hidden_features=3).save(tmp_path / "net.safetensors")
    assert load(tmp_path / "net.safetensors").features == 2


def test_an_unknown_name_points_to_no_list_but_gives_it() -> None:
    assert str(unknown_name("optimizer", "xyz", ["b", "a"])) == "There is no optimizer 'xyz'. Choose one of: a, b."


def test_operators_say_what_they_are_and_become_arrays() -> None:
    jacobian = GradNetM(D, 4, monotone=True).jacobian(_x())
    assert repr(jacobian).endswith("(shape=(5, 3, 3), dtype=torch.float32, positive_semidefinite=True)")
    array = np.asarray(jacobian)
    assert array.dtype == np.float32
    assert np.array_equal(array, jacobian.dense().detach().numpy())
    assert np.asarray(jacobian, dtype=np.float64).dtype == np.float64
    assert np.asarray(GradNetM(D, 4).bfloat16().jacobian(_x().bfloat16())).dtype == np.float32
    assert type(np.float64(2.0) * jacobian) is type(jacobian)  # no array
    with pytest.raises(ValueError, match="copy"):
        jacobian.__array__(copy=False)


def test_results_are_tables_in_notebooks() -> None:
    page = verify.certificate(GradNetM(D, 4))._repr_html_()
    assert page.startswith("<table>")
    assert page.count("<tr>") == 9
    assert "&lt;= 1e-03" in page
    hostile = Certificate("<script>", 1, "float32", [Check("<b>", 0.0, 1.0)])._repr_html_()
    assert "<script>" not in hostile
    assert "<b>" not in hostile
    result = fit(GradNetM(D, 4), _x(50), _x(50), steps=4, progress=False)
    assert result._repr_html_().count("<tr>") == 1 + len(result.history)
