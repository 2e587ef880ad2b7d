"""What several test files share: the real data set, and caches of their own."""

import gzip
import os
from pathlib import Path

import pytest

from fashion_nb.data.fashion_mnist import load_fashion_mnist
from fashion_nb.data.idx import FILES
from fashion_nb.data.sources import cache_folder

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the tests that are marked slow, too")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--slow"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="slow: run it with --slow"))


@pytest.fixture(scope="session")
def data():
    "The data set, from wherever this machine has it."
    return load_fashion_mnist()


@pytest.fixture(scope="session")
def contents(data):
    "The decompressed content of each of the four files."
    return {
        file.name: (
            Path(data.folder) / file.name
            if (Path(data.folder) / file.name).exists()
            else cache_folder() / file.name
        ).read_bytes()
        for file in FILES
    }


@pytest.fixture(scope="session")
def packed(contents, tmp_path_factory):
    "A folder with the four files packed, as they are published."
    folder = tmp_path_factory.mktemp("packed")
    for name, content in contents.items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(content, 1))
    return folder


@pytest.fixture
def empty_home(tmp_path, monkeypatch):
    "A user without caches, environment variables or Debian's package; returns the home folder."
    from fashion_nb.data import fashion_mnist, sources

    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / ".cache"))
    monkeypatch.delenv("FASHION_NB_DATA", raising=False)
    monkeypatch.delenv("KERAS_HOME", raising=False)
    for room in (sources, fashion_mnist):
        monkeypatch.setattr(room, "DEBIAN_FOLDER", tmp_path / "usr/share/datasets/fashion-mnist")
    return home
