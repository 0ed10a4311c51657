"""Scoring through vLLM's log-probabilities of a prompt, against the learner's own model.

Each start of vLLM takes 10 to 20 seconds.
"""

import json

import pytest
import torch

from rlvr.data.labelled_responses import load_responses
from rlvr.policy.loading import load_policy
from rlvr.policy.settings import ModelSettings
from rlvr.policy.tiny import TinySettings, write_tiny_model
from rlvr.tasks.tools.score import Scoring, score
from tests.command import refused

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]
SETTINGS = ("threads=1", "kv_cache_gib=0.25")


@pytest.fixture(scope="module", autouse=True)
def _vllm():
    pytest.importorskip("vllm", reason="vLLM is not installed")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A reward model and its reference, whose heads are 32 wide, which vLLM on a CPU takes."""
    place = tmp_path_factory.mktemp("models")
    shape = TinySettings(hidden_size=64, layers=2, heads=2, key_value_heads=1)
    for seed, name in enumerate(("model", "reference")):
        write_tiny_model(place / name, seed, shape)
    return place / "model", place / "reference"


@pytest.fixture(scope="module")
def responses(tmp_path_factory):
    """Of many lengths, one as long as fits, most with a prompt in common."""
    rows = [
        {"prompt": f"<bos>{a}+{b}=", "response": "1" * (1 + 7 * b) + f"\n\n\\boxed{{{a + b}}}"}
        for a in range(4)
        for b in range(10)
    ]
    rows.append({"prompt": "<bos>1+1=", "response": "2" * 248})
    path = tmp_path_factory.mktemp("data") / "responses.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def scores(path, how):
    return [
        torch.tensor(item.tokens) for item in score(load_responses([path], labelled=False), how)
    ]


def largest(ours, theirs):
    return max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True))


def test_in_float32_it_is_the_learners_model_up_to_rounding(folders, responses):
    model, reference = map(str, folders)
    own = scores(responses, Scoring(model, reference))
    assert max(float(values.abs().max()) for values in own) > 0.1
    vllm = Scoring(model, reference, engine="vllm", engine_settings=SETTINGS)
    assert largest(scores(responses, vllm), own) < 2e-5


def test_the_reference_alone_may_go_through_it(folders, responses):
    model, reference = map(str, folders)
    own = scores(responses, Scoring(model, reference))
    how = Scoring(model, reference, reference_engine="vllm", engine_settings=SETTINGS)
    assert largest(scores(responses, how), own) < 2e-5


def test_in_bfloat16_it_is_not_exact(folders, responses):
    model = str(folders[0])
    own = scores(responses, Scoring(model, no_reference=True))
    settings = (*SETTINGS, "dtype=bfloat16")
    how = Scoring(model, no_reference=True, engine="vllm", engine_settings=settings)
    apart = largest(scores(responses, how), own)
    assert 1e-4 < apart < 0.5


def test_what_does_not_fit_or_is_unknown_is_refused(folders, tmp_path):
    model = folders[0]
    limit = load_policy(ModelSettings(path=str(model))).context_length
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"prompt": "1", "response": "2" * (limit - 2)}) + "\n")
    out = tmp_path / "out.jsonl"
    asked = ("prm", "score", path, "--model", model, "--no-reference", "--out", out)
    assert f"exceeds the engine's longest sequence of {limit}" in refused(
        *asked, "--engine", "vllm"
    )
    assert "engine 'vlm' is not one of learner, vllm" in refused(*asked, "--engine", "vlm")
    assert "is for --engine vllm" in refused(*asked, "--engine-set", "threads=1")
    message = refused(*asked, "--engine", "vllm", "--engine-set", "thread=1")
    assert "threads" in message
    assert not out.exists()
