"""The documentation says what the code does."""

import re
from pathlib import Path

import pytest

from rlvr.distill.recipe import DistillRecipe
from rlvr.objective.pages import KINDS
from rlvr.preference.losses.base import PreferenceLoss
from rlvr.preference.pages import loss_table, structure_table
from rlvr.settings import INHERIT, describe, load_settings, markdown_table
from rlvr.settings.index import index_table
from rlvr.tasks.registry import TASKS, task_of

ROOT = Path(__file__).parents[1]
ALL_RECIPES = sorted(
    path for path in (ROOT / "recipes").rglob("*.yaml") if path.parent.name != "plan"
)
TRACES = [path for path in ALL_RECIPES if path.parent.name == "distill"]
RECIPES = [path for path in ALL_RECIPES if path not in TRACES]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("name", TASKS)
def test_the_settings_page_is_what_the_command_prints(name):
    page = "settings.md" if name == "rl" else f"settings_{name}.md"
    table = markdown_table([INHERIT, *describe(TASKS[name].schema)])
    assert (ROOT / "docs" / page).read_text().endswith(table + "\n"), (
        f"run: rlvr settings --task {name} --markdown, and replace the table in docs/{page}"
    )


def test_the_settings_page_of_traces_is_what_the_command_prints():
    page = (ROOT / "docs" / "settings_distill.md").read_text()
    assert page.endswith(markdown_table([INHERIT, *describe(DistillRecipe)]) + "\n"), (
        "run: rlvr distill settings --markdown, and replace the table"
    )


@pytest.mark.parametrize(
    ("page", "key", "table"),
    [("preference", "losses", loss_table), ("preference_logic", "structures", structure_table)],
)
def test_tables_of_losses_are_printed_from_the_code(page, key, table):
    text = (ROOT / "docs" / "methods" / f"{page}.md").read_text()
    shown = text.partition(f"<!-- table: {key} -->\n")[2].partition("\n<!-- end -->")[0]
    assert shown == table(), "run: python -m rlvr.preference.pages docs/methods"


@pytest.mark.parametrize(
    ("key", "kinds", "command"),
    [
        ("parts", KINDS, "python -m rlvr.objective.pages ."),
        ("losses", (PreferenceLoss,), "python -m rlvr.preference.pages docs/methods"),
    ],
)
def test_the_paper_index_of_parts_is_printed_from_the_code(key, kinds, command):
    text = (ROOT / "docs" / "papers.md").read_text()
    shown = text.partition(f"<!-- table: {key} -->\n")[2].partition("\n<!-- end -->")[0]
    assert shown == index_table(kinds, ROOT), f"run: {command}"


@pytest.mark.parametrize("schema", [*(task.schema for task in TASKS.values()), DistillRecipe])
def test_every_setting_has_a_help_text(schema):
    missing = [item.key for item in describe(schema) if not item.help]
    assert not missing


def test_files_that_the_paper_index_names_exist():
    page = (ROOT / "docs" / "papers.md").read_text()
    names = re.findall(r"`((?:rlvr|reward|eval|launch|recipes|tests)/[\w/.]+)`", page)
    assert len(names) > 10
    assert [name for name in names if not (ROOT / name).is_file()] == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    """Files by their path, sections by the anchor that GitHub makes of their heading."""
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if target.startswith("http"):
            continue
        file, _, anchor = target.partition("#")
        found = (path.parent / file).resolve() if file else path
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), target


def anchors(page):
    """Of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    texts = [re.sub(r"\]\([^)]*\)", "", heading).lower() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", text).replace(" ", "-") for text in texts}


def test_the_index_leads_to_every_page():
    index = (ROOT / "docs" / "index.md").read_text()
    docs = [path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")]
    wanted = {str(path) for path in docs if path.parent != Path("methods/losses")} - {"index.md"}
    assert wanted - set(re.findall(r"\]\(([^)#]+)", index)) == set()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_load_and_begin_with_the_command_that_runs_them(path):
    load_settings(task_of(path).schema, path)
    head = path.read_text().partition("\noutput:")[0]
    assert f"accelerate launch -m rlvr train {path.relative_to(ROOT)}" in head


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_recipes_of_traces_load_and_begin_with_the_command_that_runs_them(path):
    load_settings(DistillRecipe, path)
    head = path.read_text().partition("\ntask:")[0]
    assert f"rlvr distill generate {path.relative_to(ROOT)}" in head


def test_every_logged_metric_is_documented():
    """Names as the code writes them, against the pages' tables."""
    page = (ROOT / "docs" / "metrics.md").read_text()
    documented = set(re.findall(r"`([a-z_]+/[a-z_A-Z/]+)`", page))
    prefixes = "reward|rollout|completion|mismatch|policy|learner|memory|throughput|time"
    prefixes += "|sync|engine|lp_reg|critic|prm|rm|preference|sft|distill|router"
    written = set()
    for source in (ROOT / "rlvr").rglob("*.py"):
        if "report" not in source.parts:
            written |= set(re.findall(rf'"((?:{prefixes})/[a-z_]+)"', source.read_text()))
    assert len(written) > 20
    assert sorted(written - documented) == []
