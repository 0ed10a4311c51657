"""Every recipe begins with the lines that start it, and its SLURM line renders."""

import re
import shlex
import subprocess

import pytest
from typer.testing import CliRunner

from rlvr.cli import app
from tests.launch.conftest import ROOT

RECIPES = sorted(
    path.relative_to(ROOT)
    for path in (ROOT / "recipes").rglob("*.yaml")
    if path.parent.name not in ("distill", "plan")
)


@pytest.mark.parametrize("path", RECIPES, ids=str)
def test_a_recipe_begins_with_its_commands_and_they_render(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("RLVR_SITE", raising=False)
    head = (ROOT / path).read_text().partition("\noutput:")[0]
    head = head.replace("\\\n#", "")
    starts = rf"^#   accelerate launch -m rlvr train {re.escape(str(path))}\n#   rlvr (launch .*)$"
    found = re.search(starts, head, re.MULTILINE)
    assert found, "the line of accelerate is to be followed by that of rlvr launch"
    arguments = shlex.split(found[1])
    assert arguments[:3] == ["launch", str(path), "--slurm"]
    done = CliRunner().invoke(app, [*arguments, "--dry-run"])
    assert done.exit_code == 0, done.output
    assert done.output.startswith("#!/bin/bash\n#SBATCH --job-name=")
    assert f"rlvr train {path}" in done.output
    script = done.output.partition("\n# -- each node's command:")[0]
    checked = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
    assert checked.returncode == 0, checked.stderr
