"""Pages for people with a problem name settings, metrics, messages and commands that exist."""

import ast
import re
import shlex
from functools import cache
from pathlib import Path

import click
import pytest
import typer

from rlvr.cli import app
from rlvr.distill.recipe import DistillRecipe
from rlvr.rl.recipe import RLRecipe
from rlvr.settings import describe, load_settings
from rlvr.tasks.registry import TASKS

ROOT = Path(__file__).parents[1]
RECIPES = [ROOT / "recipes" / f"smollm2_arithmetic{end}.yaml" for end in ("", "_vllm")]
PAGES = [ROOT / "docs" / f"{name}.md" for name in ("troubleshooting", "which_method", "memory")]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
METRIC = re.compile(r"[a-z_]+/[\w/]+")
SETTING = re.compile(r"([a-z_]+(?:\.[a-z_]+)+|[a-z_]+(?=: \S|=))(?:(?:: |=)(.+))?")
FILE = re.compile(r"(recipes|launch|docs|rlvr|reward|eval|tests)/[\w/]*(?:\.\w+|/)")


def codes(page):
    """Inline code of a page."""
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", FENCE.sub("", page.read_text()))


def fences(page, language):
    return [text for name, text in FENCE.findall(page.read_text()) if name == language]


@cache
def known_settings():
    schemas = [*(task.schema for task in TASKS.values()), DistillRecipe]
    keys = {re.sub(r"\[\w+\]", "", item.key) for schema in schemas for item in describe(schema)}
    names = {key.rpartition(".")[2] for key in keys}  # of a part, within its braces
    return keys | {f"{key}.name" for key in keys} | names


@cache
def messages():
    """Every string of the code, with a mark where a value goes in."""
    found = set()
    for room in ("rlvr", "reward", "eval", "launch"):
        for path in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    parts = (v.value if isinstance(v, ast.Constant) else "\0" for v in node.values)
                    found.add("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.add(node.value)
    return "\n".join(found)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_metrics_are_documented(page):
    documented = set(re.findall(r"`([a-z_]+/[\w/]+)`", (ROOT / "docs" / "metrics.md").read_text()))
    named = {code for code in codes(page) if METRIC.fullmatch(code) and not FILE.fullmatch(code)}
    assert named - documented == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_exist(page):
    named = [code for code in codes(page) if FILE.fullmatch(code)]
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_settings_exist_and_take_the_values(page):
    for code in codes(page):
        found = SETTING.fullmatch(code)
        if not found or code.endswith((".yaml", ".jsonl", ".py", ".md", ".html")):
            continue
        key, value = found.groups()
        assert key in known_settings(), code
        if value and key.partition(".")[0] in RLRecipe.model_fields and "..." not in value:
            assert_loads(f"{key}={value}")


def assert_loads(override):
    """In one of the recipes; what needs an engine of its own does not load in the other."""
    faults = []
    for recipe in RECIPES:
        try:
            load_settings(RLRecipe, recipe, [override])
        except ValueError as error:
            faults.append(str(error))
    assert len(faults) < len(RECIPES), (override, faults)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_exist_with_their_options(page):
    lines = [line for text in fences(page, "bash") for line in text.splitlines()]
    for line in [*lines, *codes(page)]:
        words = shlex.split(line, comments=True)
        if words[:1] == ["rlvr"] and len(words) > 1:
            assert_command(words[1:])


def assert_command(words):
    command = typer.main.get_command(app)
    while isinstance(command, click.Group) or hasattr(command, "commands"):
        assert words[0] in command.commands, words
        command, words = command.commands[words[0]], words[1:]
    options = {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
    given = {word.partition("=")[0] for word in words if word.startswith("--")}
    assert given - options - {"--help"} == set()
    recipes = [word for word in words if word.startswith("recipes/")]
    assert [name for name in recipes if not (ROOT / name).is_file()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_messages_are_those_of_the_code(page):
    for line in "".join(fences(page, "text")).splitlines():
        pattern = r"[^\n]*?".join(re.escape(part) for part in line.split("..."))
        assert re.search(pattern, messages()), line


def test_every_symptom_says_what_one_sees():
    page = PAGES[0].read_text()
    sections = re.split(r"^### ", page, flags=re.MULTILINE)[1:]
    assert len(sections) >= 20
    for section in sections:
        assert "**You see**" in section or "```text" in section or "log names" in section, section
