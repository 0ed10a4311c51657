"""The pages of docs/how_to do what they say.

A fenced block whose first line is a comment with a file name is that file; a block of bash is run.
Each page runs in an empty folder, from top to bottom, as processes.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [
    *sorted((ROOT / "docs" / "how_to").glob("add_*.md")),
    *(ROOT / "docs" / name for name in ("going_on.md", "sweep.md")),
]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# ([\w/]+\.\w+)\n")


def blocks(page):
    """Of a page, in order: (file name, content) of a file, (None, commands) of bash."""
    for language, content in BLOCK.findall(page.read_text()):
        named = FILE.match(content)
        if language == "bash":
            yield None, content
        elif named:
            yield named[1], content


def run(commands, folder):
    """As a user would, in a shell with this environment's programs first."""
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=folder,
        env={**os.environ, "PATH": programs, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, f"{commands}\n{done.stdout[-4000:]}"


def test_there_are_pages():
    assert len(PAGES) >= 3


# They start an interpreter for each of many runs.
SLOW = {
    page: [pytest.mark.slow] if page.stem in ("add_a_reward", "going_on", "sweep") else []
    for page in PAGES
}


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=SLOW[page], id=page.stem) for page in PAGES]
)
def test_a_page_does_what_it_says(page, guessing_folder, tmp_path):
    shutil.copytree(guessing_folder, tmp_path / "runs" / "quickstart" / "tiny-llama")
    ran = 0
    for name, content in blocks(page):
        if name is None:
            run(content, tmp_path)
            ran += 1
        else:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(content)
    assert ran, "the page runs nothing"


def test_an_example_is_what_its_page_shows():
    shown = {name: text for page in PAGES for name, text in blocks(page) if name is not None}
    examples = ROOT / "docs" / "how_to" / "examples"
    same = [name for name in shown if (examples / name).is_file()]
    assert same == ["topr.py"]
    assert FILE.sub("", shown["topr.py"], count=1) == (examples / "topr.py").read_text()
