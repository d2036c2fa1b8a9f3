"""Other people's tables: read right, or refused with the cause and the remedy, and nothing written."""

from __future__ import annotations

import contextlib
import gzip
import os
import re
import stat
import threading
import warnings
import zipfile

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nablanets import Quadratic, load
from nablanets.errors import DataFileError, ModelFileError
from nablanets.serialization import read_notes, save
from nablanets.tables import (
    ColumnNames,
    TextLayout,
    numbers,
    read_table,
    read_table_file,
    select_columns,
    write_table,
)
from tests.commands import call

ROWS = [[0.5, 2.0, 1.25, -3.0], [1.5, -1.0, 0.75, 4.0], [2.5, 0.25, 8.0, 1.0]]
NAMES = ["x1", "x2", "g1", "g2"]


def files(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def model(tmp_path):
    """A model whose f is 2 x, of two features."""
    net = Quadratic(2, rank=0, bias=False).double()
    with torch.no_grad():
        net.diagonal_raw.fill_(2.0)
    path = tmp_path / "m.safetensors"
    save(net, path)
    assert net(torch.ones(1, 2).double()).tolist() == [[2.0, 2.0]]
    return path


def frame(rows=ROWS, names=NAMES, **options) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=names, **options)


# Rows and their index


@pytest.mark.parametrize(
    "index",
    [
        [2, 0, 1],
        [5, 6, 7],
        ["a", "b", "c"],
        [3, 3, 3],
        pd.date_range("2020-01-01", periods=3),
        pd.RangeIndex(10, 13),
        pd.MultiIndex.from_tuples([("a", 1), ("a", 2), ("b", 1)], names=["run", "sample"]),
    ],
)
def test_row_i_of_f_belongs_to_row_i_of_x_and_the_index_is_kept(capsys, tmp_path, model, index):
    table = frame(index=index)
    table.to_parquet(tmp_path / "t.parquet")
    assert call(capsys, "apply", model, tmp_path / "t.parquet")[0] == 0
    result = pd.read_parquet(tmp_path / "t-applied.parquet")
    assert result.index.equals(table.index)
    assert (result[NAMES] == table).all(axis=None)
    assert result.f1.tolist() == [2 * row[0] for row in ROWS]
    assert result.f2.tolist() == [2 * row[1] for row in ROWS]
    # Other formats have no index: it goes in front.
    assert call(capsys, "apply", model, tmp_path / "t.parquet", "--out", tmp_path / "t.csv")[0] == 0
    text = pd.read_csv(tmp_path / "t.csv")
    assert text.f1.tolist() == [2 * row[0] for row in ROWS]
    assert len(text.columns) == len(NAMES) + 3 + table.index.nlevels


# Names of columns


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("x1,x2,X3,g1,g2,g3", "'X3'.*written differently"),
        ("x1,x2,x03,g1,g2,g3", "'x03'.*written differently"),
        ("x1,x2,x_3,g1,g2,g3", "'x_3'.*written differently"),
        ("x1,x2,x2,g1,g2,g3", "several columns have the same name: 'x2'"),
        ("x1,x2,x4,g1,g2,g3", "missing x3"),
        ("x1,x2,x2 [m],g1,g2,g3", "both x2"),
        ("x1,x2,x3,g1,g2,y", "3 point columns but 2 gradient"),
    ],
)
def test_headers_that_would_fit_fewer_features_are_refused(capsys, tmp_path, header, message):
    path = tmp_path / "t.csv"
    path.write_text(header + "\n" + "1,2,3,4,5,6\n" * 3)
    code, _, err = call(capsys, "fit", path, "--out", tmp_path / "m.safetensors", "--steps", 1)
    assert code == 2
    assert re.search(message, err)
    assert files(tmp_path) == ["t.csv"]


def test_blanks_around_names_do_not_matter(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("x1, x2 ,g1,\tg2\n1, 2,3, 4\n5,6,7,8\n")
    assert list(read_table(path).columns) == NAMES
    assert select_columns(read_table(path), None, "g", path).tolist() == [[3.0, 4.0], [7.0, 8.0]]


def test_one_gradient_column_of_two_is_not_broadcast(capsys, tmp_path, model):
    path = tmp_path / "t.csv"
    frame()[["x1", "x2", "g1"]].to_csv(path, index=False)
    code, _, err = call(capsys, "apply", model, path)
    assert code == 2
    assert "2 point columns but 1 gradient columns" in err


@pytest.mark.parametrize("names", ["x1,x9", "x1,x1", "x1,", ",", "X1,x2", "x1"])
def test_columns_by_name_are_matched_strictly(capsys, tmp_path, model, names):
    path = tmp_path / "t.csv"
    frame().to_csv(path, index=False)
    assert call(capsys, "apply", model, path, "--x-columns", names)[0] == 2


def test_names_with_commas_are_quoted(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('"H, applied",B\n1,2\n')
    assert select_columns(read_table(path), '"H, applied",B', "x", path).tolist() == [[1.0, 2.0]]


def test_columns_of_the_user_are_never_dropped(capsys, tmp_path, model):
    path = tmp_path / "t.csv"
    frame(names=["f1", "f2", "g1", "g2"]).to_csv(path, index=False)
    code, _, err = call(capsys, "apply", model, path, "--x-columns", "f1,f2")
    assert code == 2
    assert "f1, f2 already" in err
    assert "--f-columns" in err
    names = ["--x-columns", "f1,f2", "--f-columns", "u,v", "--potential-column", "U"]
    assert call(capsys, "apply", model, path, *names)[0] == 0
    result = pd.read_csv(tmp_path / "t-applied.csv")
    assert list(result.columns) == ["f1", "f2", "g1", "g2", "u", "v", "U"]
    assert result.u.tolist() == [2 * row[0] for row in ROWS]


# What text files look like


def expect(path, **options):
    values = select_columns(read_table(path, **options), None, "x", path)
    assert values.tolist() == [[1.5, 2.0], [3.25, -4.0]]


@pytest.mark.parametrize(
    "text",
    [
        "x1,x2\n1.5,2\n3.25,-4\n",
        "x1,x2,\n1.5,2,\n3.25,-4,\n",
        "x1,x2\n1.5,2,\n3.25,-4,\n",
        "x1,x2,,\n1.5,2\n3.25,-4,\n",
        "x1;x2\n1.5;2\n3.25;-4\n",
        "x1;x2\n1,5;2\n3,25;-4\n",
        "x1;x2;\n1,5;2,0;\n3,25;-4,0;\n",
        "x1\tx2\n1.5\t2\n3.25\t-4\n",
        "x1\tx2\n1,5\t2\n3,25\t-4\n",
        "x1|x2\n1.5|2\n3.25|-4\n",
        "x1  x2\n1.5   2\n3.25 -4\n",
        "# measured\n# at noon\nx1,x2\n1.5,2\n# a pause\n3.25,-4\n",
        "# x1 x2\n1.5 2\n3.25 -4\n",
        "#x1,x2\n1.5,2\n3.25,-4\n",
        "x1,x2\nm,m\n1.5,2\n3.25,-4\n",
        "x1;x2\n[m];[°C]\n1,5;2\n3,25;-4\n",
        "x1 [m],x2 [m]\n1.5,2\n3.25,-4\n",
        "\n\nx1,x2\n\n1.5,2\n\n3.25,-4",
        '"x1","x2"\n"1.5","2"\n"3.25","-4"\n',
        "x2,x1,note\n2,1.5,\n-4,3.25,lunch\n",
        "x1,x2\r\n1.5,2\r\n3.25,-4\r\n",
        "x1,x2\r1.5,2\r3.25,-4\r",
        ",x1,x2\n0,1.5,2\n1,3.25,-4\n",
        "x1,x2,day\n1.50,+2.000,2020-01-01\n3.25e0,-4E+00,2020-01-02\n",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["t.csv", "t.CSV", "t.csv.gz", "t.tsv"])
def test_text_tables_of_all_kinds_are_read(tmp_path, text, encoding, name):
    content = text.encode(encoding)
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    expect(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1.5,2\n3.25,-4\n", "first line holds numbers"),
        ("x1,x2\n1.5,2,7\n3.25,-4,8\n", "3 fields, but there are 2 names"),
        ("x1,x2\n1,5,2\n3,25,-4\n", "separate columns with ';'"),
        ("x1,x2\n1.5,2\n3.25,-4,8\n", "fields"),
        ("x1,x2\n" + "1.5,2\n" * 100 + "3.25,-4,8\n", "data row 101 has 3 fields"),
        ("x1,x2\n1.5,2" + "," * 3000 + "\n", "fields"),
        ("x1;x2,x3\n1;2,3\n", "--separator"),
        ("x1,x2\n", "no rows"),
        ("\n \n", "empty"),
        ("# only a comment\n", "empty"),
        ("x1,x2\0\n1,2\n", "zero bytes"),
        ('x1,x2\n1,"2\n3,4\n', "cannot be read"),
    ],
)
def test_text_tables_that_cannot_be_known_are_refused(tmp_path, text, message):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(DataFileError, match=message):
        read_table(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x1;x2\n1.234,5;2\n", "must hold numbers.*1.234,5"),
        ("x1,x2\n1+2j,2\n", r"must hold numbers.*1\+2j"),
        ("x1,x2\n2020-01-01,2\n", "must hold numbers.*2020-01-01"),
        ("x1,x2\nTrue,2\n", "truth values"),
        ("x1,x2\n1,2\n,3\n", "data row 2"),
        ("x1,x2\n1,2\nNaN,3\n", "data row 2"),
        ("x1,x2\n1,2\n1e999,3\n", "data row 2"),
        ("x1,x2\n1700000000123456789,2\n", "float64 loses digits"),
        ("x1,x2\n123456789012345678901234567890,2\n", "float64 loses digits"),
    ],
)
def test_what_is_no_finite_number_is_refused(tmp_path, text, message):
    path = tmp_path / "t.csv"
    path.write_text(text)
    table = read_table_file(path)
    with pytest.raises(DataFileError, match=message):
        numbers(table.frame, ["x1", "x2"], path, padded=table.padded)


def test_the_separator_can_be_given(capsys, tmp_path, model):
    path = tmp_path / "t.csv"
    path.write_text("x1;x2,x3\n1;2,5\n2;3,5\n")
    with pytest.raises(DataFileError, match="--separator"):
        read_table(path)
    names = ["--x-columns", '"x1","x2,x3"', "--separator", ";"]
    code, out, _ = call(capsys, "apply", model, path, *names)
    assert code == 0
    assert "decimal commas" in out
    assert pd.read_csv(tmp_path / "t-applied.csv", sep=";", decimal=",").f2.tolist() == [5.0, 7.0]
    code, _, err = call(capsys, "apply", model, path, "--separator", "::")
    assert code == 2
    assert "--separator" in err


def test_what_was_decided_is_said_and_written_alike(capsys, tmp_path, model):
    path = tmp_path / "t.csv"
    path.write_text("x1;x2;serial\nA;A;\n1,5;2;007\n3,25;-4;008\n", encoding="utf-8-sig")
    code, out, _ = call(capsys, "apply", model, path)
    assert code == 0
    for words in ("separated by ';'", "decimal commas", "x1 in A"):
        assert words in out
    written = (tmp_path / "t-applied.csv").read_bytes().decode("utf-8-sig").splitlines()
    assert written[:3] == ["x1;x2;serial;f1;f2;potential", "A;A;;;;", "1,5;2;007;3,0;4.0;6,25".replace("4.0", "4,0")]


def test_zero_padded_numbers_stay_what_they_are(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("x1,serial,big\n007,0012,99999999999999999999999\n008,0013,1\n")
    table = read_table_file(path)
    write_table(table.frame, tmp_path / "u.csv", layout=table.layout)
    assert (tmp_path / "u.csv").read_text() == path.read_text()


def test_numbers_are_read_to_the_last_bit(tmp_path):
    values = np.random.default_rng(0).standard_normal(1000) * 10.0 ** np.arange(-250, 250, 0.5)
    path = tmp_path / "t.csv"
    path.write_text("x1\n" + "\n".join(map(repr, values.tolist())))
    assert (read_table(path).x1.to_numpy() == values).all()


def test_a_table_that_expands_beyond_reason_is_refused(tmp_path):
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(b"x1,x2\n" + b"0,0\n" * 40_000_000, 1))
    with pytest.raises(DataFileError, match="expands"):
        read_table(path)
    path.write_bytes(gzip.compress(b"x1,x2\n1,2\n")[:-3])
    with pytest.raises(DataFileError, match="ends too early"):
        read_table(path)


# Types of columns in Parquet and NPZ


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pd.date_range("2020-01-01", periods=3), "dates"),
        (pd.date_range("2020-01-01", periods=3, tz="UTC"), "dates"),
        (pd.to_timedelta([1, 2, 3], unit="s"), "durations"),
        ([True, False, True], "truth values"),
        (pd.array([True, None, False], dtype="boolean"), "truth values"),
        (["1", "2", "3"], "text"),
        (pd.Categorical(["1", "2", "3"]), "categories"),
        ([[1.0], [2.0], [3.0]], "values of type"),
        ([2**53 + 1, 1, 2], "loses digits"),
        (pd.array([1, None, 3], dtype="Int64"), "data row 2"),
        (pd.period_range("2020-01", periods=3, freq="M"), "dates"),
    ],
)
def test_columns_that_are_no_numbers_are_refused(capsys, tmp_path, model, column, message):
    path = tmp_path / "t.parquet"
    frame().assign(x1=column).to_parquet(path)
    before = files(tmp_path)
    code, _, err = call(capsys, "apply", model, path)
    assert code == 2
    assert message in err
    assert files(tmp_path) == before


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "uint64", "int64", "Int32", "Float64"])
def test_numbers_of_all_types_are_taken(tmp_path, dtype):
    path = tmp_path / "t.parquet"
    pd.DataFrame({"x1": pd.array([1, 2, 3], dtype=dtype)}).to_parquet(path)
    assert select_columns(read_table(path), None, "x", path).tolist() == [[1.0], [2.0], [3.0]]


def test_complex_arrays_lose_no_part(capsys, tmp_path, model):
    path = tmp_path / "t.npz"
    np.savez(path, x1=np.array([1 + 2j, 3.0]), x2=np.ones(2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        code, _, err = call(capsys, "apply", model, path)
    assert code == 2
    assert "complex numbers" in err


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.ones((3, 2)), "x1": np.ones(3)}, "same name"),
        ({"x": np.ones((3, 2)), "g": np.ones((4, 2))}, "same number of rows"),
        ({"x": np.ones((2, 50_000))}, "transposed"),
        ({"x1": np.ones(3), "step": np.array(0.1)}, "one or two dimensions"),
        ({"x1": np.zeros(3, dtype=[("a", "f8")])}, "objects or records"),
        ({"x": np.ones((0, 2))}, "no rows"),
    ],
)
def test_odd_npz_files_are_explained(tmp_path, arrays, message):
    path = tmp_path / "t.npz"
    np.savez(path, **arrays)
    with pytest.raises(DataFileError, match=message):
        read_table(path)


def npz_with(path, header: str, data: bytes = b"", **options) -> None:
    """An NPZ whose array says what it likes about itself."""
    text = header.encode().ljust(117) + b"\n"
    content = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr("x1.npy", content)


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f8', 'fortran_order': False, 'shape': (400000000000,)}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (-2,)}",
        "{'descr': '|O', 'fortran_order': False, 'shape': (2,)}",
        "{'descr': '<U1000000000', 'fortran_order': False, 'shape': (2,)}",
        "{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (2,)}",
        "{'descr': '<q9', 'fortran_order': False, 'shape': (2,)}",
        "((((((((((",
    ],
)
def test_arrays_that_claim_more_than_they_hold_are_refused(tmp_path, header):
    npz_with(tmp_path / "t.npz", header, bytes(16))
    with pytest.raises(DataFileError):
        read_table(tmp_path / "t.npz")


def test_zip_files_with_odd_features_are_refused(tmp_path):
    path = tmp_path / "t.npz"
    np.savez(path, x1=np.ones(3))
    content = bytearray(path.read_bytes())
    for place in (content.index(b"PK\x01\x02") + 8, 6):
        content[place] |= 1  # encrypted
    path.write_bytes(content)
    with pytest.raises(DataFileError, match="encrypted"):
        read_table(path)
    npz_with(path, "{'descr': '<f8', 'fortran_order': False, 'shape': (2,)}", bytes(16), compression=zipfile.ZIP_LZMA)
    with pytest.raises(DataFileError, match="compressed in a way"):
        read_table(path)
    with zipfile.ZipFile(path, "w", compression=zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x1.npy", bytes(200_000_000))
    with pytest.raises(DataFileError, match="expands"):
        read_table(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(DataFileError, match="no array"):
        read_table(path)


def test_parquet_files_with_a_damaged_type_are_refused(tmp_path):
    path = tmp_path / "t.parquet"
    frame(index=[3, 1, 2]).to_parquet(path)
    content = path.read_bytes()
    # The footer's checksum does not exist: only what pandas wrote about types is damaged.
    path.write_bytes(content.replace(b'"numpy_type": "float64"', b'"numpy_type": "fxoat64"'))
    with contextlib.suppress(DataFileError):
        assert len(read_table(path)) == 3
    path.write_bytes(content.replace(b'"pandas_type": "int64"', b'"pandas_type": "bytes"').replace(b"int64", b"xnt64"))
    with contextlib.suppress(DataFileError):
        assert len(read_table(path)) == 3


# Writing


@pytest.mark.parametrize("name", ["out.csv", "out.npz", "out.parquet", "out.csv.gz"])
def test_columns_of_any_name_are_written(tmp_path, name):
    table = pd.DataFrame({"file": [1.5, 2.5], "allow_pickle": [1, 2], "a b [m]": [0.5, 0.25]})
    write_table(table, tmp_path / name)
    assert read_table(tmp_path / name).equals(table)


def test_the_input_is_not_overwritten(capsys, tmp_path, model):
    path = tmp_path / "t.csv"
    frame().to_csv(path, index=False)
    (tmp_path / "link.csv").symlink_to(path)
    (tmp_path / "model.csv").symlink_to(model)
    before = path.read_bytes(), model.read_bytes()
    for out in (path, tmp_path / "link.csv", tmp_path / "model.csv", tmp_path / "." / "t.csv"):
        code, _, err = call(capsys, "apply", model, path, "--out", out)
        assert code == 2
        assert "is the file that is read" in err
    code, _, err = call(capsys, "fit", path, "--out", path, "--steps", 1)
    assert code == 2
    assert (path.read_bytes(), model.read_bytes()) == before


def test_links_are_written_through_and_modes_stay(tmp_path):
    real = tmp_path / "real.csv"
    real.write_text("old")
    real.chmod(0o640)
    link = tmp_path / "link.csv"
    link.symlink_to("real.csv")
    write_table(frame(), link)
    assert link.is_symlink()
    assert real.read_text().startswith("x1,x2")
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    (tmp_path / "dangling.csv").symlink_to(tmp_path / "new.csv")
    write_table(frame(), tmp_path / "dangling.csv")
    assert (tmp_path / "dangling.csv").is_symlink()
    assert (tmp_path / "new.csv").is_file()
    (tmp_path / "circle.csv").symlink_to("circle.csv")
    with pytest.raises(DataFileError, match="cannot write"):
        write_table(frame(), tmp_path / "circle.csv")


def test_pipes_are_written_to_and_stay(tmp_path):
    pipe = tmp_path / "pipe.csv"
    os.mkfifo(pipe)
    read: list[str] = []
    thread = threading.Thread(target=lambda: read.append(pipe.read_text()))
    thread.start()
    write_table(frame(), pipe)
    thread.join(timeout=20)
    assert read[0].startswith("x1,x2")
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert files(tmp_path) == ["pipe.csv"]


# Names and units in the model


def test_the_model_remembers_names_and_units(capsys, tmp_path):
    path = tmp_path / "motor.csv"
    names = ["time", "iq [A]", "id [A]", "psi_q [Vs]", "psi_d [Vs]"]
    x = np.random.default_rng(0).uniform(-1, 1, (50, 2))
    rows = np.column_stack([np.arange(50), x[:, 1], x[:, 0], 3 * x[:, 1], 2 * x[:, 0]])
    frame(rows, names).to_csv(path, index=False)
    model = tmp_path / "m.safetensors"
    columns = ["--x-columns", "id [A],iq [A]", "--g-columns", "psi_d [Vs],psi_q [Vs]"]
    assert call(capsys, "fit", path, "--out", model, "--steps", 2, "--hidden", 4, "--force", *columns)[0] == 0
    code, out, _ = call(capsys, "apply", model, path)
    assert code == 0
    assert "error against the gradients" in out
    result = pd.read_csv(tmp_path / "motor-applied.csv")
    assert list(result.columns) == [*names, "psi_d (model) [Vs]", "psi_q (model) [Vs]", "potential [Vs A]"]
    with torch.no_grad():
        expected = load(model)(torch.from_numpy(x).float())
    assert np.allclose(result["psi_q (model) [Vs]"], expected[:, 1].numpy(), atol=1e-6)
    assert call(capsys, "verify", model, path)[0] == 0
    frame(rows, names).drop(columns="iq [A]").rename(columns={"id [A]": "ID [A]"}).to_csv(path, index=False)
    code, _, err = call(capsys, "verify", model, path)
    assert code == 2
    assert "missing id [A], iq [A]" in err
    assert "Did you mean 'ID [A]'" in err


def test_units_below_the_names_live_in_the_model_too(capsys, tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("id,iq,psi_d,psi_q\nA,A,Vs,Vs\n" + "".join(f"{i},{2 - i},{3 * i},{i}\n" for i in range(20)))
    model = tmp_path / "m.safetensors"
    columns = ["--x-columns", "id,iq", "--g-columns", "psi_d,psi_q"]
    assert call(capsys, "fit", path, "--out", model, "--steps", 2, "--hidden", 4, "--force", *columns)[0] == 0
    known = ColumnNames.from_notes(read_notes(model), 2)
    assert known is not None
    assert known.potential_unit == "Vs A"
    assert call(capsys, "apply", model, path)[0] == 0
    lines = (tmp_path / "t-applied.csv").read_text().splitlines()
    assert lines[0] == "id,iq,psi_d,psi_q,psi_d (model),psi_q (model),potential"
    assert lines[1] == "A,A,Vs,Vs,Vs,Vs,Vs A"


def test_unknown_and_damaged_notes(capsys, tmp_path, model):
    net = load(model)
    frame().to_csv(tmp_path / "t.csv", index=False)
    save(net, model, notes={"licence": "MIT", "future": "{}"})
    assert call(capsys, "apply", model, tmp_path / "t.csv")[0] == 0
    for note in ("{", "[]", '{"x": ["a"], "g": ["b"], "x_units": [null], "g_units": [null]}', "[" * 100_000):
        save(net, model, notes={"columns": note})
        with pytest.raises(ModelFileError, match="note on its columns is damaged"):
            ColumnNames.from_notes(read_notes(model), 2)
        assert call(capsys, "apply", model, tmp_path / "t.csv")[0] == 2


@pytest.mark.parametrize(
    ("g", "x", "unit"),
    [
        (["N", "N"], ["m", "m"], "N m"),
        (["N", "N m"], ["m", "rad"], None),
        (["N", None], ["m", "m"], None),
        (["V", "V"], ["1", "-"], "V"),
        (["-", "-"], ["-", "-"], "1"),
    ],
)
def test_unit_of_the_potential(g, x, unit):
    assert ColumnNames(("a", "b"), ("c", "d"), tuple(x), tuple(g)).potential_unit == unit


# Properties


@st.composite
def text_tables(draw):
    """A table of known numbers in some decoration: its bytes, and the numbers by column."""
    features = draw(st.integers(1, 4))
    count = draw(st.integers(1, 6))
    names = [f"{p}{i + 1}" for p in "xg" for i in range(features)] + draw(st.sampled_from([[], ["note"], ["t [s]"]]))
    names = draw(st.permutations(names))
    number = st.floats(-1e6, 1e6, allow_nan=False).map(lambda v: round(v, 4)) | st.integers(-(10**6), 10**6)
    values = [[draw(number) for _ in names] for _ in range(count)]
    separator = draw(st.sampled_from([",", ";", "\t", "|"]))
    comma = separator in ";\t" and draw(st.booleans())
    blank = draw(st.sampled_from(["", " "]))
    trailing = draw(st.sampled_from(["", separator]))
    end = draw(st.sampled_from(["\n", "\r\n"]))
    with_units = draw(st.booleans())

    def written(value) -> str:
        return repr(value).replace(".", ",") if comma else repr(value)

    lines = [(separator + blank).join(draw(st.sampled_from([name, f'"{name}"'])) for name in names) + trailing]
    if with_units:
        lines.append(separator.join("m" for _ in names))
    lines += [(separator + blank).join(map(written, row)) + trailing for row in values]
    if draw(st.booleans()):
        lines.insert(0, "# by hand")
    if draw(st.booleans()):
        lines.insert(draw(st.integers(1, len(lines))), "")
    encoding = draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))
    content = end.join(lines).encode(encoding)
    return content, names, values, features


@given(text_tables())
def test_decorations_do_not_change_numbers(tmp_path_factory, table):
    content, names, values, features = table
    path = tmp_path_factory.mktemp("t") / "t.csv"
    path.write_bytes(content)
    read = read_table(path)
    assert list(read.columns) == list(names)
    assert len(read) == len(values)
    for prefix in "xg":
        columns = [names.index(f"{prefix}{i + 1}") for i in range(features)]
        expected = [[float(row[place]) for place in columns] for row in values]
        assert select_columns(read, None, prefix, path).tolist() == expected


@given(
    st.permutations(NAMES),
    st.lists(st.integers(-3, 3), min_size=3, max_size=3),
    st.sampled_from(["float32", "float64", "int16", "Float64", "Int64"]),
    st.sampled_from([".parquet", ".csv", ".npz"]),
)
def test_orders_indices_and_types_do_not_change_points(tmp_path_factory, order, index, dtype, suffix):
    path = tmp_path_factory.mktemp("t") / f"t{suffix}"
    rows = np.round(np.array(ROWS)) if "nt" in dtype else np.array(ROWS)
    table = pd.DataFrame(rows, columns=NAMES, index=index).astype(dtype)[list(order)]
    write_table(table, path)
    read = read_table(path)
    assert select_columns(read, None, "x", path).tolist() == rows[:, :2].tolist()
    assert select_columns(read, None, "g", path).tolist() == rows[:, 2:].tolist()


def test_layouts_round_trip(tmp_path):
    table = frame(names=["x1", "x2", "a b", "c"])
    for layout in (TextLayout(";", ","), TextLayout("\t"), TextLayout(" "), TextLayout("|", has_units=True)):
        write_table(table, tmp_path / "t.csv", layout=layout, units={"x1": "m"})
        read = read_table_file(tmp_path / "t.csv")
        assert read.frame.equals(table)
        assert dict(read.units) == ({"x1": "m"} if layout.has_units else {})
