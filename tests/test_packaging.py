"""What is installed is all that there is, and can be installed where it says so."""

import importlib.metadata
import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUP = PROJECT["tool"]["setuptools"]


def place(package: str) -> Path:
    return ROOT / SETUP["package-dir"].get(package, package.replace(".", "/"))


def test_every_folder_of_modules_is_a_package():
    known = {place(name) for name in SETUP["packages"]}
    there = {p.parent for top in ("mlx_emotion", "tui", "vectors") for p in (ROOT / top).rglob("*.py")}
    assert there == known


def test_every_other_file_is_package_data():
    kept = {
        path
        for package, patterns in SETUP["package-data"].items()
        for pattern in patterns
        for path in place(package).glob(pattern)
    }
    there = {
        path
        for package in SETUP["packages"]
        for path in place(package).rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    assert {str(p.relative_to(ROOT)) for p in there - kept} == set()
    assert sum(fnmatch(p.name, "embedded-*.safetensors") for p in kept) == 2


@pytest.mark.parametrize("requirement", PROJECT["project"]["dependencies"])
def test_its_python_is_one_that_what_it_needs_runs_on(requirement):
    oldest = PROJECT["project"]["requires-python"].removeprefix(">=")
    name = re.match(r"[\w-]+", requirement)[0]
    wanted = importlib.metadata.metadata(name)["Requires-Python"]
    assert wanted is None or SpecifierSet(wanted).contains(oldest)
