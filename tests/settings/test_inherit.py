"""Recipes inherit: what a recipe says is laid over what its base says."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from rlvr.settings import Settings, load_settings, read_recipe, to_yaml


class Clip(Settings):
    """Clipped."""

    name: Literal["clip"] = "clip"
    low: float = Field(0.2, ge=0)
    """Lower."""
    high: float = 0.2
    """Upper."""


class Plain(Settings):
    """Plain."""

    name: Literal["plain"] = "plain"
    scale: float = 1.0
    """Scale."""


class Inner(Settings):
    """Inner."""

    rate: float = 1e-6
    """Rate."""
    sizes: tuple[int, ...] = (1,)
    """Sizes."""
    loss: Annotated[Clip | Plain, Field(discriminator="name")] = Clip()
    """Loss."""


class Root(Settings):
    """Root."""

    output: Path
    """Folder."""
    inner: Inner = Inner()
    """Inner."""
    other: Inner | None = Inner(rate=1.0)
    """Other."""
    marks: dict[str, str] = Field(default_factory=dict)
    """Marks."""


@pytest.fixture
def write(tmp_path):
    def one(name, text):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    return one


def test_mappings_merge_and_lists_and_values_replace(write):
    write("base.yaml", "output: a\ninner: {rate: 0.1, sizes: [1, 2]}\nmarks: {x: '1', y: '2'}\n")
    heir = write("heir.yaml", "base: base.yaml\ninner: {sizes: [3]}\nmarks: {y: '3', z: '4'}\n")
    root = load_settings(Root, heir)
    assert root.inner == Inner(rate=0.1, sizes=(3,))
    assert root.marks == {"x": "1", "y": "3", "z": "4"}
    assert root.output == Path("a")


def test_bases_chain_each_relative_to_the_file_that_names_it(write):
    write("bottom.yaml", "output: a\ninner: {rate: 0.1, sizes: [1]}\n")
    write("within/middle.yaml", "base: ../bottom.yaml\ninner: {rate: 0.2}\n")
    top = write("top.yaml", "base: within/middle.yaml\noutput: b\n")
    assert load_settings(Root, top) == Root(output=Path("b"), inner=Inner(rate=0.2, sizes=(1,)))


def test_another_choice_replaces_and_the_same_one_merges(write):
    write("base.yaml", "output: a\ninner: {loss: {name: clip, low: 0.5, high: 0.6}}\n")
    same = write("same.yaml", "base: base.yaml\ninner: {loss: {name: clip, high: 0.7}}\n")
    assert load_settings(Root, same).inner.loss == Clip(low=0.5, high=0.7)
    silent = write("silent.yaml", "base: base.yaml\ninner: {loss: {high: 0.7}}\n")
    assert load_settings(Root, silent).inner.loss == Clip(low=0.5, high=0.7)
    other = write("other.yaml", "base: base.yaml\ninner: {loss: {name: plain}}\n")
    assert load_settings(Root, other).inner.loss == Plain()


def test_null_is_null_where_a_setting_takes_it_and_else_the_default(write):
    write("base.yaml", "output: a\ninner: {rate: 0.1, loss: {name: plain}}\nother: {rate: 0.3}\n")
    heir = write("heir.yaml", "base: base.yaml\ninner: {rate: null, loss: null}\nother: null\n")
    assert load_settings(Root, heir) == Root(output=Path("a"), inner=Inner(), other=None)
    again = write("again.yaml", "base: heir.yaml\ninner: {loss: {low: 0.4}}\nother: {}\n")
    root = load_settings(Root, again)
    assert (root.inner, root.other) == (Inner(loss=Clip(low=0.4)), Inner())
    # Without a base that says something, null is a value like any other.
    alone = write("alone.yaml", "output: a\ninner: {rate: null}\n")
    with pytest.raises(ValueError, match=r"'inner.rate' = None"):
        load_settings(Root, alone)


def test_overrides_come_last_and_what_is_written_has_no_base(write):
    write("base.yaml", "output: a\ninner: {rate: 0.1}\n")
    heir = write("heir.yaml", "base: base.yaml\ninner: {rate: 0.2}\n")
    root = load_settings(Root, heir, ["inner.rate=0.3"])
    assert root.inner.rate == 0.3
    assert "base" not in to_yaml(root)
    assert load_settings(Root, write("written.yaml", to_yaml(root))) == root


def test_circles_and_missing_bases_are_refused(write):
    first = write("a.yaml", "base: b.yaml\n")
    write("b.yaml", "base: c/../a.yaml\n")
    write("c/unused.yaml", "{}")
    with pytest.raises(
        ValueError, match=r"a\.yaml: bases lead in a circle, .*a\.yaml -> .*b\.yaml"
    ):
        read_recipe(first)
    with pytest.raises(ValueError, match=r"d\.yaml: base 'nowhere\.yaml' is not a file in '"):
        read_recipe(write("d.yaml", "base: nowhere.yaml\n"))
    with pytest.raises(ValueError, match=r"e\.yaml: base \['x'\] is not a file"):
        read_recipe(write("e.yaml", "base: [x]\n"))
    write("list.yaml", "- 1\n")
    heir = write("f.yaml", "base: list.yaml\n")
    with pytest.raises(ValueError, match=r"list\.yaml: a recipe is a mapping of settings"):
        read_recipe(heir)


def test_faults_name_the_base_that_a_value_came_from(write):
    base = write("base.yaml", "output: a\ninner: {rat: 1.0, loss: {name: clip, low: -1.0}}\n")
    heir = write("heir.yaml", "base: base.yaml\ninner: {size: 1}\n")
    with pytest.raises(ValueError, match="unknown setting") as caught:
        load_settings(Root, heir)
    assert str(caught.value) == (
        f"{heir}: 'inner.loss.low' = -1.0: input should be greater than or equal to 0 (from {base})"
        f"; unknown setting 'inner.rat' (value 1.0); did you mean 'rate'? (from {base})"
        "; unknown setting 'inner.size' (value 1); did you mean 'sizes'?"
    )
    with pytest.raises(ValueError, match=r"'inner\.loss\.low' = -2") as caught:
        load_settings(Root, heir, ["inner.loss.low=-2", "inner.rat=1"])
    assert "base.yaml" not in str(caught.value)
