r"""Packages for a machine without a network, unpacked into a folder that travels with the checkout.

    python -m tests.gpu.prepare .gpu/site            # for Python 3.12 on Linux, x86-64
    python -m tests.gpu.day --site .gpu/site --minutes 9 --out DIR      # there

What the learner needs besides torch, transformers, and what these or any such machine bring, is
pydantic (11 MB with what it needs). Ask for others by --packages, but only for what is missing: the
folder comes before the machine's own packages. Git ignores .gpu.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

PACKAGES = ("pydantic>=2.11,<3",)
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def command(folder: Path, python: str, packages: Sequence[str]) -> list[str]:
    """The call of pip that fetches wheels for another Python and unpacks them."""
    words = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder)]
    words += ["--only-binary=:all:", "--implementation", "cp", "--python-version", python]
    for platform in PLATFORMS:
        words += ["--platform", platform]
    return [*words, *packages]


def main(words: Sequence[str] | None = None) -> int:
    """Fill the folder; the code that the process ends with."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.prepare")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", default="3.12", help="version of the machine's Python")
    parser.add_argument("--packages", nargs="+", default=PACKAGES, help="as pip names them")
    options = parser.parse_args(words)
    if options.folder.is_dir() and any(options.folder.iterdir()):
        print(
            f"tests.gpu.prepare: {str(options.folder)!r} is not empty; give another folder",
            file=sys.stderr,
        )
        return 2
    return subprocess.run(command(options.folder, options.python, options.packages)).returncode


if __name__ == "__main__":
    sys.exit(main())
