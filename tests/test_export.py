"""Exported maps compute what the map computes, without this package and, in NumPy, without torch."""

from __future__ import annotations

import importlib.util
import json
import runpy
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

import nablanets
from nablanets import ElementwiseActivation, GradNetC, GradNetM, errors, export, from_potential
from nablanets.interop import expressions
from tests.cases import CASES, D, points

BY_NAME = {case.name: case for case in CASES}
EXPORTABLE = [name for name in BY_NAME if name != "from-potential"]
#: In float32 the exported potentials of cascades are sums over many panels, each rounded.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-5}
#: One of each map, and every activation once.
ONNX = [
    *(name for name in EXPORTABLE if name.startswith("M-") and name.count("-") == 1), "C-spline", "C-relu", "C-tanh",
    "quadratic", "constrained", "mixture", "sum", "scale", "pullback", "icnn",
]  # fmt: skip
QUICK_ONNX = {"M-softplus", "M-squareplus", "M-spline", "constrained"}
QUICK = {name for name in EXPORTABLE if not name.startswith("C-") and not name.endswith(("-linear", "-monotone"))}
QUICK |= {"C-wtanh", "C-relu", "C-spline"}


def chosen(names, quick):
    return [pytest.param(name, marks=() if quick(name) else pytest.mark.slow) for name in names]


def assert_equal(net, evaluate, batches, loss=1.0):
    """Compare functions of tensors with the net, relative to the largest value."""
    for batch in batches:
        x = points(net, int(np.prod(batch))).reshape(*batch, D)
        with torch.no_grad():
            expected = net(x), net.potential(x)
        for value, reference in zip(evaluate(x), expected, strict=True):
            scale = float(reference.abs().max()) if reference.numel() else 1.0
            assert_close(value, reference, rtol=0, atol=loss * TOLERANCE[x.dtype] * scale)


def numpy_functions(path):
    module = runpy.run_path(str(path))
    return lambda x: tuple(torch.as_tensor(module[f](x.numpy())) for f in ("gradient", "potential"))


@pytest.mark.parametrize("name", chosen(EXPORTABLE, QUICK.__contains__))
def test_numpy(tmp_path, name):
    net = BY_NAME[name].build().double()
    nablanets.export(net, tmp_path / "field.py", "numpy")
    assert_equal(net, numpy_functions(tmp_path / "field.py"), [(0,), (1,), (2,), (11,), (), (2, 0), (2, 3)])


@pytest.mark.parametrize("name", chosen(EXPORTABLE, lambda n: n in ("C-spline", "M-gaussian", "constrained", "icnn")))
def test_numpy_in_float32(tmp_path, name):
    net = BY_NAME[name].build().float()
    nablanets.export(net, tmp_path / "field.py", "numpy")
    assert_equal(net, numpy_functions(tmp_path / "field.py"), [(1,), (11,)])


def test_numpy_needs_nothing_but_numpy(tmp_path):
    """In a process that can import neither torch nor this package; the largest arguments raise no warning."""
    net = BY_NAME["mixture"].build().double()
    files = nablanets.export(net, tmp_path / "field.py", "numpy").files
    x = torch.cat([points(net), 1e6 * points(net)])
    np.save(tmp_path / "x.npy", x.numpy())
    code = (
        "import sys; sys.modules.update({'torch': None, 'nablanets': None, 'scipy': None}); import numpy as np, field; "
        "x = np.load('x.npy'); np.savez('out.npz', g=field.gradient(x), p=field.potential(x))"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=tmp_path, check=True)
    with np.load(tmp_path / "out.npz") as out, torch.no_grad():
        np.testing.assert_allclose(out["g"], net(x).numpy(), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(out["p"], net.potential(x).numpy(), rtol=1e-12)
    with np.load(files[1], allow_pickle=False) as weights:
        assert {"experts_1_ridge_alpha", "offset", "sharpness"} <= set(weights.files)


def test_numpy_files_are_the_same_every_time_and_say_what_they_are(tmp_path):
    net = GradNetC(D, 5, 2, activation="spline", monotone=True)
    contents = []
    for folder in ("a", "b"):
        files = nablanets.export(net, tmp_path / folder / "field.py", "numpy").files
        contents.append([file.read_bytes() for file in files])
    assert contents[0] == contents[1]
    text = contents[0][0].decode()
    for part in ('"type": "GradNetC"', "# ridge.activations.0: Spline", "# (n, 5)", "np.float32", "field.weights.npz"):
        assert part in text
    assert max(map(len, text.splitlines())) <= 120


def test_numpy_function_refuses_wrong_shapes(tmp_path):
    nablanets.export(GradNetM(2, 4), tmp_path / "field.py", "numpy")
    module = runpy.run_path(str(tmp_path / "field.py"))
    for wrong in (1.0, np.zeros(3)):
        with pytest.raises(ValueError, match=r"expected x of shape \(\*, 2\)"):
            module["gradient"](wrong)


class Silu(ElementwiseActivation):
    """Not in NumPy's table: decomposed."""

    def forward(self, z):
        return nn.functional.silu(z)

    def potential(self, z):
        return z * 0.0

    def derivative(self, z):
        return torch.ones_like(z)


class Bessel(Silu):
    def forward(self, z):
        return torch.special.bessel_j0(z)


def test_operations_are_decomposed_or_refused_by_name(tmp_path):
    net = GradNetM(D, 4, 1, activation=Silu).double()
    nablanets.export(net, tmp_path / "field.py", "numpy")
    assert_equal(net, numpy_functions(tmp_path / "field.py"), [(3,)])
    with pytest.raises(errors.ExportError, match=r"GradNetM in NumPy.*bessel_j0.*units: Bessel"):
        nablanets.export(GradNetM(D, 4, 1, activation=Bessel), tmp_path / "new.py", "numpy")
    assert not (tmp_path / "new.py").exists()


class Awkward(nn.Module):
    """Parameters whose names mean something else in the file."""

    def __init__(self):
        super().__init__()
        for k, name in enumerate(("np", "n", "x", "gradient_raw", "matmul", "sum")):
            setattr(self, name, nn.Parameter(torch.full((D,), float(k + 1))))

    def forward(self, x):
        return sum((x @ (k * p) for k, p in enumerate(self.parameters())), x.sum(dim=-1) ** 3)

    def gradient(self, x):
        return sum((k * p for k, p in enumerate(self.parameters())), 3 * x.sum(dim=-1, keepdim=True).square())


def test_names_do_not_clash(tmp_path):
    net = from_potential(Awkward().double(), D)
    nablanets.export(net, tmp_path / "field.py", "numpy")
    assert_equal(net, numpy_functions(tmp_path / "field.py"), [(4,)])


aten = torch.ops.aten


def _operations(x):
    """Calls of operations that no map of the table uses, on positive numbers below one of shape (n, 3)."""
    whole = [*expressions._UNARY, "neg", "relu", "rsqrt", "reciprocal", "sigmoid", "erf", "clone"]
    yield from (getattr(aten, name).default(x + (1 if name == "acosh" else 0)).to(x) for name in whole)
    for name in expressions._COMPARISONS:
        yield getattr(aten, name).Tensor(x, 1 - x).to(x)
        yield getattr(aten, name).Scalar(x, 0.5).to(x)
    for name in ("atan2", "maximum", "minimum"):
        yield getattr(aten, name).default(x, 1 - x)
    for name in ("logical_and", "logical_or"):
        yield getattr(aten, name).default(x > 0.3, x < 0.6).to(x)
    for name in ("amax", "amin"):
        yield getattr(aten, name).default(x, [-1], True).expand(-1, 3)
    yield from (aten.add.Tensor(x, x * x, alpha=3), aten.sub.Tensor(x, x * x, alpha=3), aten.rsub.Scalar(x, 2, 3))
    yield from (aten.add.Scalar(x, 2.0), aten.sub.Scalar(x, 2.0), aten.mul.Scalar(x, 2.0), aten.div.Scalar(x, 3.0))
    yield from (aten.pow.Scalar(2.0, x), aten.pow.Tensor_Tensor(x, x), aten.pow.Tensor_Scalar(x, -0.5))
    yield from (aten.addcmul.default(x, x, x, value=2.0), aten.cumsum.default(x, 1), aten.mean.dim(x, [1], True) * x)
    yield from (aten.clamp.default(x, 0.2), aten.clamp.default(x, None, 0.7), aten._softmax.default(x, 1, False))
    square = x.unsqueeze(-1) * x.unsqueeze(-2)
    yield from (aten.bmm.default(square, square).sum(-1), aten.transpose.int(square, 1, 2)[:, 0])
    yield from (
        aten.permute.default(square, [0, 2, 1])[..., 1],
        square.mT.sum(1),
        aten.slice.Tensor(square, 2, 0, 3, 2).sum(2),
    )
    matrix = torch.arange(9.0).to(x).reshape(3, 3)
    yield from (
        aten.mm.default(x, matrix),
        aten.addmm.default(x, x, matrix),
        aten.addmm.default(x, x, matrix, beta=2, alpha=3),
    )
    yield aten.where.ScalarSelf(x > 0.5, 2.0, x)


class Zoo(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def gradient(self, x):
        return sum(k * y for k, y in enumerate(_operations(torch.sigmoid(x) * 0.98 + 0.01), start=1))

    def forward(self, x):
        return self.gradient(x).sum(dim=-1)


def test_words_for_operations(tmp_path):
    """The rows of the table that no map of ours uses."""
    net = from_potential(Zoo().double(), D)
    nablanets.export(net, tmp_path / "field.py", "numpy")
    assert_equal(net, numpy_functions(tmp_path / "field.py"), [(1,), (5,)])


def test_a_wrong_word_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setitem(expressions.EXPRESSIONS, "aten.tanh.default", "np.sin({self})")
    with pytest.raises(errors.ExportError, match="differs from the map"):
        nablanets.export(BY_NAME["C-tanh"].build(), tmp_path / "field.py", "numpy")


@pytest.mark.parametrize("name", chosen(ONNX, QUICK_ONNX.__contains__))
def test_onnx(tmp_path, name):
    onnxruntime = pytest.importorskip("onnxruntime")
    dtype = torch.float32 if name == "M-gaussian" else torch.float64  # onnxruntime has no Erf in float64
    net = BY_NAME[name].build().to(dtype)
    result = nablanets.export(net, tmp_path / "field.onnx", "onnx")
    assert "differs from the map by" in result.check
    session = onnxruntime.InferenceSession(result.files[0])
    assert [output.name for output in session.get_outputs()] == ["gradient", "potential"]
    assert [p.name for p in tmp_path.iterdir()] == ["field.onnx"]
    assert_equal(
        net,
        lambda x: map(torch.from_numpy, session.run(None, {"x": x.numpy()})),
        [(1,), (2,), (11,)],
        loss=1e3 if name.startswith("mixture") else 1.0,
    )
    if name in QUICK_ONNX:
        assert_bad_rows_stay_alone(net, lambda x: map(torch.from_numpy, session.run(None, {"x": x.numpy()})))


def assert_bad_rows_stay_alone(net, evaluate):
    """NaN and infinity in some points: what is no number in the map is none in the export, and the rest is equal."""
    x = points(net, 6)
    x[1, 0] = torch.nan
    x[2, 1] = torch.inf
    x[4, 2] = -torch.inf
    with torch.no_grad():
        expected = net(x), net.potential(x)
    assert bool(expected[0][1].isnan().all())
    assert bool(torch.isfinite(expected[0][[0, 3, 5]]).all())
    for value, reference in zip(evaluate(x), expected, strict=True):
        assert_close(value, reference, equal_nan=True, rtol=1e-6, atol=1e-6)


def test_onnx_says_what_was_not_checked(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    gaussian = GradNetM(2, 4, 1, activation="gaussian")
    result = nablanets.export(gaussian.double(), tmp_path / "field.onnx", "onnx")
    assert "not compared" in result.check
    assert "net.float()" in result.check
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "onnxruntime is not installed" in nablanets.export(gaussian, tmp_path / "field.onnx", "onnx").check


@pytest.mark.parametrize("name", ["constrained"])
def test_torch(tmp_path, name):
    net = BY_NAME[name].build().double()
    files = nablanets.export(net, tmp_path / "field.pt2", "torch").files
    assert [file.name for file in files] == ["field.pt2", "field-potential.pt2"]
    programs = [torch.export.load(file).module() for file in files]
    assert_equal(net, lambda x: (program(x) for program in programs), [(0,), (1,), (2,), (11,)])
    for file in files:  # numbers are stored as numbers
        with zipfile.ZipFile(file) as archive:
            (config,) = (n for n in archive.namelist() if n.endswith("weights_config.json"))
            assert not any(entry["use_pickle"] for entry in json.loads(archive.read(config))["config"].values())


def test_torch_runs_without_this_package(tmp_path):
    net = GradNetM(D, 4)
    nablanets.export(net, tmp_path / "field.pt2", "torch")
    code = "import sys; sys.modules['nablanets'] = None; import torch; print(torch.export.load('field.pt2').module()(torch.ones(2, 3)).sum().item())"
    printed = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    assert float(printed) == pytest.approx(float(net(torch.ones(2, 3)).detach().sum()), rel=1e-5)


@pytest.mark.parametrize(
    ("build", "file", "format", "error", "message"),
    [
        (BY_NAME["from-potential"].build, "a.py", "numpy", errors.ExportError, r"give the module a gradient\(x\)"),
        (BY_NAME["quadratic"].build, "a.py", "nunpy", errors.UnknownNameError, "Did you mean 'numpy'"),
        (BY_NAME["quadratic"].build, "a.onnx", "numpy", errors.InvalidInputError, "ends in .py"),
        (lambda: GradNetM(2, 3).bfloat16(), "a.py", "numpy", errors.InvalidInputError, r"net.float\(\)"),
        (BY_NAME["quadratic"].build, "taken/a.py", "numpy", errors.ExportError, "cannot write"),
    ],
)
def test_errors_teach_and_leave_nothing_behind(tmp_path, build, file, format, error, message):
    (tmp_path / "taken").write_text("")
    with pytest.raises(error, match=message):
        nablanets.export(build(), tmp_path / file, format)
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]


def test_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(errors.ExportError, match=r"pip install 'nablanets\[onnx\]'"):
        nablanets.export(GradNetM(2, 3), tmp_path / "a.onnx", "onnx")


def test_the_map_is_left_alone(tmp_path):
    net = GradNetC(2, 3).train()
    before, state = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state()
    nablanets.export(net, tmp_path / "field.py", "numpy")
    assert net.training
    assert all(p.requires_grad for p in net.parameters())
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_a_spline_exported_to_numpy_gives_nan_for_a_bad_row_as_the_map_does(tmp_path):
    net = GradNetC(3, 5, 2, activation="spline").double()
    x = torch.randn(4, 3, dtype=torch.float64)
    x[1, 0] = torch.nan
    x[2, 1] = torch.inf
    field = runpy.run_path(str(export(net, tmp_path / "field.py", "numpy").files[0]))
    found = torch.from_numpy(field["gradient"](x.numpy()))
    assert bool(found[1].isnan().all())
    torch.testing.assert_close(found, net(x).detach(), equal_nan=True)
