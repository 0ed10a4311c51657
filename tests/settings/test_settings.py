"""Recipes are read strictly, and every fault names its key, value and remedy."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from rlvr.settings import Settings, describe, load_settings, parse_yaml, to_yaml


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


class Inner(Settings):
    """Inner."""

    learning_rate: float = 1e-6
    """Rate."""
    sizes: tuple[int, ...] = (1,)
    """Sizes."""


class Root(Settings):
    """Root."""

    output: Path
    """Folder."""
    steps: int = 1
    """Steps."""
    loss: Annotated[Clip | Plain, Field(discriminator="name")] = Clip()
    """Loss."""
    inner: Inner = Inner()
    """Inner."""
    terms: tuple[Annotated[Clip | Plain, Field(discriminator="name")], ...] = ()
    """Terms."""
    sets: dict[str, Annotated[Clip | Plain, Field(discriminator="name")]] = Field(
        default_factory=dict
    )
    """Sets."""


def load(overrides=(), **values) -> Root:
    return load_settings(Root, {"output": "out", **values}, overrides)


def test_a_recipe_and_overrides_become_typed_settings(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("output: a\ninner: {learning_rate: 1e-5, sizes: [1, 2]}\n")
    root = load_settings(Root, recipe, ["steps=7", "inner.sizes=[3]", "loss={name: clip, low: 0}"])
    assert (root.output, root.steps, root.loss) == (Path("a"), 7, Clip(low=0.0))
    assert root.inner == Inner(learning_rate=1e-5, sizes=(3,))


def test_choosing_another_name_drops_the_old_choice_whatever_the_order():
    values = {"loss": {"name": "clip", "low": 0.1}}
    assert load(["loss.name=plain"], **values).loss == Plain()
    swapped = {"loss": {"name": "plain"}}
    assert load(["loss.high=0.3", "loss.name=clip"], **swapped).loss == Clip(high=0.3)


def test_a_field_of_a_default_choice_can_be_set_alone():
    assert load(["loss.low=0.1"]).loss == Clip(low=0.1)


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["stepz=3"], ["'stepz'", "3", "'steps'"]),
        (["inner.learning_rat=3"], ["'inner.learning_rat'", "'learning_rate'"]),
        (["steps=1.5"], ["'steps'", "1.5"]),
        (["steps=yes"], ["'steps'", "True"]),
        (["loss.name=clop"], ["'clop'", "'loss'", "'clip'"]),
        (["terms=[{low: 1}]"], ["'terms.0'", "clip, plain"]),
        (["loss.low=-1"], ["'loss.low'", "-1", "greater"]),
        (["loss.hihg=1"], ["'loss.hihg'", "'high'"]),
        (["terms=[{name: clip, hihg: 1}]"], ["'terms.0.hihg'", "'high'"]),
        (["sets.mine={name: clip, hihg: 1}"], ["'sets.mine.hihg'", "'high'"]),
        (["sets.clip={name: clip, low: -1}"], ["'sets.clip.low'", "-1"]),
        (["sets.mine={name: clop}"], ["'clop'", "'sets.mine'", "'clip'"]),
        (["sets.mine={low: 1}"], ["'sets.mine'", "clip, plain"]),
        ([f"steps={'1' * 5000}"], ["override 'steps=111", "..."]),
        (["steps.more=1"], ["'steps'"]),
        (["steps"], ["'steps'", "key.sub=value"]),
        (["inner={sizes: [1, two]}"], ["'inner.sizes.1'", "'two'"]),
        (["output={a: [}"], ["not valid YAML"]),
    ],
)
def test_faults_name_key_value_and_remedy_in_one_line(overrides, parts):
    with pytest.raises(ValueError, match=r"\S") as caught:
        load(overrides, steps=2)
    message = str(caught.value)
    assert not isinstance(caught.value, ValidationError)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_missing_settings_files_and_keys_said_twice_are_named(tmp_path):
    with pytest.raises(ValueError, match="'output' is required"):
        load_settings(Root, {})
    with pytest.raises(ValueError, match=r"nowhere\.yaml' is not a file"):
        load_settings(Root, tmp_path / "nowhere.yaml")
    (tmp_path / "twice.yaml").write_text("output: a\nsteps: 1\nsteps: 2\n")
    with pytest.raises(ValueError, match=r"'steps' stands twice \(line 3\)"):
        load_settings(Root, tmp_path / "twice.yaml")
    (tmp_path / "latin.yaml").write_bytes("output: café\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.yaml: byte 11 is not UTF-8 text; save"):
        load_settings(Root, tmp_path / "latin.yaml")
    (tmp_path / "nul.yaml").write_text('output: "a\0b"\n')
    with pytest.raises(ValueError, match=r"nul\.yaml: not valid YAML: .*#x0000"):
        load_settings(Root, tmp_path / "nul.yaml")
    (tmp_path / "date.yaml").write_text("output: a\n2020-01-01: 3\n")
    with pytest.raises(ValueError, match=r"key '2020-01-01' is not text \(line 2\)"):
        load_settings(Root, tmp_path / "date.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ValueError, match="a recipe is a mapping"):
        load_settings(Root, tmp_path / "list.yaml")


@given(
    st.builds(
        Root,
        output=st.just(Path("x")),
        steps=st.integers(0, 10**9),
        loss=st.one_of(st.builds(Clip, low=st.floats(0, 1e6), high=st.floats(-1e9, 1e9))),
        inner=st.builds(Inner, learning_rate=st.floats(1e-12, 1)),
        terms=st.lists(st.sampled_from([Clip(), Plain()]), max_size=3).map(tuple),
    )
)
def test_written_settings_read_back_equal(root):
    assert load_settings(Root, parse_yaml(to_yaml(root), "text")) == root


def test_settings_are_frozen_and_described():
    with pytest.raises(ValidationError):
        load().steps = 3
    found = {item.key: item for item in describe(Root)}
    assert found["steps"].help == "Steps."
    assert found["loss[clip].low"].default == "0.2"
    assert found["output"].default == "required"
