"""Values of prefixes against the policy's own completions of them."""

import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from statistics import fmean

import pytest
import torch
from typer.testing import CliRunner

from rlvr.cli import app
from rlvr.data.labelled_responses import load_responses
from rlvr.policy.loading import load_tokenizer
from rlvr.policy.settings import ModelSettings
from rlvr.tasks.tools.prefixes import Prefix, completion_rates, measure, prefixes_of
from rlvr.tasks.tools.score import Scoring, score
from tests.command import refused
from tests.tasks.test_prm import write

STEPS = r"\\boxed"


def rows():
    """Sums of digits whose prefix is a word; the policy then boxes a number of its own."""
    return [
        {
            "problem_id": str(number),
            "prompt": f"<bos>{number}+1=",
            "response": f"so \\boxed{{{number + 1}}}",
            "answer": str(number + 1),
        }
        for number in range(6)
    ]


@pytest.fixture
def responses(tmp_path):
    return load_responses([write(tmp_path / "samples.jsonl", rows())], labelled=False)


def test_a_prefix_has_the_value_of_its_tokens(responses, guessing_folder, tiny_folder):
    how = Scoring(str(guessing_folder), no_reference=True, steps=STEPS)
    found = prefixes_of(responses, how, 4)
    scored = score(responses[:4], how)
    assert len(found) == 4
    for prefix, whole in zip(found, scored, strict=True):
        assert len(prefix.ids) == whole.ends[0] == 3
        assert prefix.value == pytest.approx(sum(whole.tokens[:3]))


def test_rates_are_shares_of_right_completions(responses, guessing_folder):
    """The policy guesses a box after an empty prefix: the rate of the digit it prefers."""
    how = Scoring(str(guessing_folder), no_reference=True, steps=STEPS)
    prefixes = prefixes_of(responses, how, 6)
    empty = [Prefix(p.response, p.prompt_ids, (), 0.0) for p in prefixes]
    rates = completion_rates(empty, str(guessing_folder), 16, 8)
    assert rates == completion_rates(empty, str(guessing_folder), 16, 8)
    assert all(0 <= rate <= 1 for rate in rates)
    assert any(0 < rate < 1 for rate in rates)
    tokenizer = load_tokenizer(ModelSettings(path=str(guessing_folder)))
    means = []
    for answer in ("{0}", "1{0}"):  # a box that is there already, right or wrong, and one token
        answered = [
            replace(p, ids=tuple(tokenizer(f"\\boxed{{{answer.format(p.gold)}}}")["input_ids"]))
            for p in prefixes
        ]
        means.append(fmean(completion_rates(answered, str(guessing_folder), 4, 1)))
    assert means[0] > 0.7
    assert means[1] < 0.3


def test_measures_tell_true_values_from_others(responses):
    true = torch.linspace(0.05, 0.95, 6, dtype=torch.float64)
    items = [
        Prefix(item, (1,), (2,), float(value))
        for item, value in zip(responses, true.logit(), strict=True)
    ]
    exact = measure(items, true.tolist(), 4, 1.0)
    assert exact["mse"] == pytest.approx(0.0, abs=1e-15)
    assert exact["correlation"] == pytest.approx(1.0)
    assert exact["noise"] == pytest.approx(float((true * (1 - true)).mean()) / 3)
    turned = measure(items, true.flip(0).tolist(), 4, 1.0)
    assert turned["correlation"] == pytest.approx(-1.0)
    assert turned["mse"] > turned["mse_of_the_mean_rate"]


def test_the_command_measures_writes_and_draws(guessing_folder, tmp_path):
    path = write(tmp_path / "samples.jsonl", rows())
    out, plot = tmp_path / "out.json", tmp_path / "out.svg"
    arguments = ["prm", "prefixes", str(path), "--model", str(guessing_folder), "--no-reference"]
    arguments += ["--policy", str(guessing_folder), "--steps", STEPS, "--max-tokens", "8"]
    done = CliRunner().invoke(app, [*arguments, "--out", str(out), "--plot", str(plot)])
    assert done.exit_code == 0, done.output
    found = json.loads(out.read_text())
    assert found["prefixes"] == len(found["rows"]) == 6
    assert found["mse"] == pytest.approx(
        sum((1 / (1 + 2.718281828459045 ** (-0.05 * row["value"])) - row["rate"]) ** 2
            for row in found["rows"]) / 6
    )  # fmt: skip
    ET.fromstring(plot.read_text())
    bare = write(tmp_path / "bare.jsonl", [{"prompt": "1", "response": "2"}])
    arguments[2] = str(bare)
    assert "no reference in column answer" in refused(*arguments)
    arguments[2], arguments[-3] = str(path), "lines"
    assert "more than one step" in refused(*arguments)
