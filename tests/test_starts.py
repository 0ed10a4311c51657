"""Experiments begin with a quickstart's model: the pages say which, and today's is as recorded."""

import re
from pathlib import Path

import pytest
from rich.console import Console

from rlvr.learner.learner import Learner
from rlvr.policy.tiny import write_tiny_model
from rlvr.quickstart import WarmupSettings, warm_up, warm_up_once

EXPERIMENTS = Path(__file__).parents[1] / "docs" / "experiments"
QUIET = Console(quiet=True)
_BEGINS = r"[Tt]he quickstart's (mixture|(model |tiny Llama .*)?after its warm-up)"


def starts():
    """The rows of the table of starts, by commit."""
    rows = re.findall(
        r"^\| (`\w+`|today)[^|]* \| (\S+) \| (\S+) \| (.+) \|$",
        (EXPERIMENTS / "starts.md").read_text(),
        re.MULTILINE,
    )
    assert len(rows) > 3
    return {
        commit.strip("`"): {"digest": digest.strip("`"), "steps": steps, "pages": pages}
        for commit, digest, steps, pages in rows
    }


def test_every_page_that_begins_with_a_quickstart_names_its_start():
    """A commit, and the model's steps; what is recorded for both is the same on both pages."""
    found, named = starts(), set()
    for path in sorted(EXPERIMENTS.glob("*.md")):
        text = path.read_text()
        whole = " ".join(text.split())
        if not re.search(_BEGINS, whole):
            continue
        commits = re.findall(r"\[start\]\(starts\.md\) `(\w+)`", whole)
        assert commits, f"{path.name} does not say which start it took"
        for commit in commits:
            assert path.name in found[commit]["pages"], (path.name, commit)
        named |= {*commits}
    assert named == found.keys() - {"today"}


def test_todays_quickstart_begins_as_recorded(tmp_path, monkeypatch):
    """The first losses of its warm-up: they change with data, model, loss or optimizer."""
    recorded = re.search(
        r"first five losses are ([\d., ]+\d)", (EXPERIMENTS / "starts.md").read_text()
    )
    assert recorded
    expected = [float(value) for value in recorded[1].split(",")]
    update, losses = Learner.update, []

    def five(self, batch):
        losses.append(update(self, batch)["policy/loss"])
        if len(losses) == 5:
            raise KeyboardInterrupt
        return {"policy/loss": losses[-1]}

    monkeypatch.setattr(Learner, "update", five)
    write_tiny_model(tmp_path, 0)
    with pytest.raises(KeyboardInterrupt):
        warm_up(tmp_path, 0, WarmupSettings(), QUIET)
    assert losses == pytest.approx(expected, abs=2e-4)


@pytest.mark.slow
def test_todays_start_is_the_recorded_one(tmp_path):
    today = starts()["today"]
    outcome = warm_up_once(0, tmp_path / "model", QUIET)
    assert f"{outcome['steps']:,}" == today["steps"]
    assert outcome["sha256"].startswith(today["digest"])
