"""Jobs of a cluster that does not exist."""

from pathlib import Path

import pytest

from launch.job import build_job
from launch.settings import load_launch

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "smollm2_arithmetic.yaml"
PYTHON = "/shared/venv/bin/python"


@pytest.fixture
def make_job(monkeypatch):
    """A job of the SmolLM2 recipe at a place that every machine can name."""
    monkeypatch.delenv("RLVR_SITE", raising=False)
    monkeypatch.chdir(ROOT)

    def make(*overrides, site=None, resume=False, recipe=RECIPE, **options):
        of_site = {"python": PYTHON, **(site or {})}
        settings = load_launch(options, None, of_site)
        where = Path("/shared/project")
        recipe = recipe.relative_to(ROOT) if recipe.is_relative_to(ROOT) else recipe
        return build_job(settings, recipe, overrides, workdir=where, resume=resume)

    return make
