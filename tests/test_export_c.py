"""Exported C compiles without a warning and computes what the map computes."""

from __future__ import annotations

import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from nablanets import GradNetC, GradNetM, errors, export, from_potential
from nablanets.interop.c import module, operations
from nablanets.interop.c.names import identifier
from nablanets.interop.c.source import SourceFile
from nablanets.interop.tracing import Both
from nablanets.serialization import save
from nablanets.tables import ColumnNames
from tests.cases import CASES, D
from tests.commands import call
from tests.test_export import EXPORTABLE, Awkward, Bessel, Zoo

BY_NAME = {case.name: case for case in CASES}
COMPILER = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
STRICT = ["-std=c99", "-O1", "-Wall", "-Wextra", "-Werror", "-pedantic", "-Wshadow", "-Wdouble-promotion"]
QUICK = {
    "double": ["C-tanh", "M-softmax", "M-spline", "quadratic", "icnn"],
    "float": ["M-tanh", "M-pnorm", "M-squareplus", "quadratic-diagonal", "scale"],
}
TOLERANCE = {"double": 1e-12, "float": 2e-5}

pytestmark = pytest.mark.skipif(COMPILER is None, reason="there is no C compiler (cc, gcc, clang)")


def build(file, *options):
    """The library, or the program, of a C file."""
    result = file.with_suffix(".so" if "-shared" in options else ".program")
    command = [COMPILER, *STRICT, *options, str(file), "-o", str(result), "-lm"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return result


def outputs(file, x):
    return module.run(build(file, "-shared", "-fPIC"), identifier(file.stem), x)


def values(net, x):
    with torch.no_grad():
        return net(x), net.potential(x), net.jacobian(x).dense()


def assert_same(found, expected, tolerance):
    for value, reference in zip(found, expected, strict=True):
        scale = float(reference.nan_to_num().abs().max())
        assert_close(value, reference, rtol=0, atol=tolerance * max(scale, 1e-300), equal_nan=True)


def cases():
    return [
        pytest.param(name, precision, marks=() if name in quick else pytest.mark.slow)
        for name in EXPORTABLE
        for precision, quick in QUICK.items()
    ]


@pytest.mark.parametrize(("name", "precision"), cases())
def test_c(tmp_path, name, precision):
    net = BY_NAME[name].build().double()
    result = export(net, tmp_path / "field.c", "c", precision=precision)
    assert "differs from the map by" in result.check
    net = net.double() if precision == "double" else net.float()
    x = torch.randn(7, D, dtype=next(net.parameters()).dtype)
    x[5] *= 1e3
    x[6, 0] = torch.nan
    found = outputs(result.files[0], x)
    expected = values(net, x)
    assert_same([v[:5] for v in found], [v[:5] for v in expected], TOLERANCE[precision])
    assert_same([v[:6] for v in found], [v[:6] for v in expected], TOLERANCE[precision])  # with a point far away
    for value, reference in zip(found, expected, strict=True):
        assert bool((value.isnan() | ~reference.isnan()).all())  # NaN where the map has it (torch's sign of NaN is 0)
    assert bool(found[0][6].isnan().any())


def test_the_file_tests_itself(tmp_path):
    """The program passes, fails where a weight is another one, and fails where it gives NaN."""
    export(GradNetM(2, 3, 1, activation="softmax").double(), tmp_path / "field.c", "c")
    text = (tmp_path / "field.c").read_text()
    wrong = {"right": text, "weight": text.replace("hidden_bias[3] = { /* 1 x 3 */\n    ", "hidden_bias[3] = {\n    9")}
    wrong["nan"] = text.replace("= exp(", "= sqrt(-1.0) + exp(")
    codes = {}
    for name, source in wrong.items():
        assert (source == text) == (name == "right")
        (tmp_path / f"{name}.c").write_text(source)
        done = subprocess.run([build(tmp_path / f"{name}.c", "-DNABLANETS_SELFTEST")], capture_output=True, check=False)
        codes[name] = done.returncode, done.stdout.decode().splitlines()[-1]
    assert codes == {"right": (0, "passed"), "weight": (1, "FAILED"), "nan": (1, "FAILED")}


def test_one_file_without_allocation_that_says_what_it_is(tmp_path):
    names = ColumnNames.of(["id [A]", "iq [A]"], ["psi_d [Vs]", "*/ psi_q \\"])
    net = GradNetM(2, 4, 1)
    files = export(net, tmp_path / "2 motor-map.c", "c", columns=names).files
    assert [file.name for file in files] == ["2 motor-map.c", "2 motor-map.h"]
    text, header = (file.read_text() for file in files)
    library = text[: text.index("#ifdef NABLANETS_SELFTEST")]
    assert re.findall(r"#include.*", library) == ["#include <math.h>"]
    assert "alloc" not in re.sub(r"/\*.*?\*/", "", library, flags=re.DOTALL)
    for part in ("x[0]  id [A]", "psi_d [Vs]", '"type": "GradNetM"', "Certificate", ": passed", "bytes of stack"):
        assert part in text
    assert max(map(len, text.splitlines())) <= 120
    assert "void map_2_motor_map_gradient(const float x[2], float f[2]);" in header
    user = tmp_path / "user.c"
    user.write_text(f'#include "{files[1].name}"\n#include "{files[1].name}"\n{text}')
    build(user, "-shared", "-fPIC")
    again = export(net, tmp_path / "again" / "2 motor-map.c", "c", columns=names).files
    assert again[0].read_text() == text


def test_weights_read_back_as_the_same_numbers():
    generator = np.random.default_rng(0)
    for dtype in (np.float32, np.float64):
        bits = generator.integers(0, 2**31, 300, dtype=np.int64)
        numbers = (
            [float(v) for v in bits.astype(np.int32).view(np.float32)]
            if dtype == np.float32
            else list(generator.standard_normal(300) * 10.0 ** generator.integers(-300, 300, 300))
        )
        for number in filter(np.isfinite, numbers):
            literal = operations.number(number, "f" if dtype == np.float32 else "")
            assert dtype(literal.strip("()f")) == number


def test_one_variable_and_awkward_names(tmp_path):
    net = GradNetC(1, 3, 2).double()
    x = torch.randn(4, 1, dtype=torch.float64)
    assert_same(outputs(export(net, tmp_path / "double.c", "c").files[0], x), values(net, x), 1e-12)
    net = from_potential(Awkward().double(), D)
    x = torch.randn(4, D, dtype=torch.float64)
    assert_same(outputs(export(net, tmp_path / "gradient.c", "c").files[0], x), values(net, x), 1e-12)


@pytest.mark.slow
def test_words_for_operations(tmp_path):
    """The rows of the table that no map of ours uses."""
    net = from_potential(Zoo().double(), D)
    x = torch.randn(5, D, dtype=torch.float64)
    graph = module.point_graph(Both(net), x[:1])
    file = SourceFile(net, "zoo", torch.float64)
    file.know(graph)
    (output,) = (node for node in graph.graph.nodes if node.op == "output")
    file.add(graph, output.args[0][0], "gradient")
    unfinished = "\n".join(["#include <math.h>", *file.definitions, *operations.HELPERS.values(), *file.functions])
    others = "double zoo_potential(const double x[3]) { return x[0]; } void zoo_jacobian(void) {}"
    source = unfinished.replace("TYPE", "double").replace("§", "").replace("static double", "double") + others
    (tmp_path / "zoo.c").write_text(source.replace("static int", "int"))
    assert_close(outputs(tmp_path / "zoo.c", x)[0], net(x).detach(), rtol=1e-12, atol=1e-12)


def test_a_wrong_word_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setitem(operations.WORDS, "aten.tanh.default", "sin{f}({self})")
    with pytest.raises(errors.ExportError, match="differs from the map"):
        export(GradNetM(2, 3, 1, activation="tanh"), tmp_path / "field.c", "c")


def test_errors_teach(tmp_path, monkeypatch):
    net = GradNetM(D, 3, 1)
    with pytest.raises(errors.UnknownNameError, match="Did you mean 'double'"):
        export(net, tmp_path / "a.c", "c", precision="doubel")
    with pytest.raises(errors.InvalidInputError, match="names of 3 columns, got 2"):
        export(net, tmp_path / "a.c", "c", columns=ColumnNames.numbered(2))
    with pytest.raises(errors.ExportError, match=r"GradNetM in C.*bessel_j0.*units: Bessel"):
        export(GradNetM(D, 3, 1, activation=Bessel), tmp_path / "a.c", "c")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "there is no C compiler" in export(net, tmp_path / "a.c", "c").check


def test_command(tmp_path, capsys):
    """Names and units are those of the columns that the model was fitted to."""
    note = ColumnNames.of(["u [V]", "v [V]"], ["p [C]", "q [C]"]).note()
    save(GradNetM(2, 3, 1), tmp_path / "m.safetensors", notes={"columns": note})
    out = str(tmp_path / "charge.c")
    code, _, message = call(
        capsys, "export", tmp_path / "m.safetensors", "--format", "c", "--out", out, "--precision", "double"
    )
    assert code == 0, message
    text = (tmp_path / "charge.c").read_text()
    assert "F     potential [C V]" in text
    assert "double charge_potential(const double x[2]);" in text
