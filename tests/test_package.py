"""What a built wheel holds."""

import fnmatch
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
PACKAGES = [name.rstrip("*") for name in SETTINGS["packages"]["find"]["include"]]


def tracked(package):
    listed = subprocess.run(
        ["git", "ls-files", package], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [Path(line) for line in listed.stdout.splitlines() if (ROOT / line).exists()]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_file_of_a_package_goes_into_the_wheel(package):
    """Modules by their folder's __init__.py, other files by package-data."""
    data = SETTINGS["package-data"]
    patterns = [
        f"{owner.replace('.', '/')}/{pattern}" for owner, found in data.items() for pattern in found
    ]
    left_out = [
        path
        for path in tracked(package)
        if not (path.suffix == ".py" and (ROOT / path).with_name("__init__.py").exists())
        and not any(fnmatch.fnmatch(str(path), pattern) for pattern in patterns)
    ]
    assert left_out == []


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_says_that_it_is_typed(package):
    assert (ROOT / package / "py.typed").is_file()
