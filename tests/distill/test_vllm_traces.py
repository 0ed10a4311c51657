"""Traces from vLLM processes are those of the transformers engine, up to rounding."""

import pytest

from rlvr.distill.generate import generate
from rlvr.policy.tiny import TinySettings, write_tiny_model
from tests.distill.test_generate import assert_same, traces_of

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Models whose heads are 32 wide, which vLLM's attention on a CPU takes."""
    pytest.importorskip("vllm", reason="vLLM is not installed")
    root = tmp_path_factory.mktemp("models")
    for name, seed, layers in (("teacher", 1, 2), ("student", 2, 1)):
        shape = TinySettings(hidden_size=64, layers=layers, heads=2, key_value_heads=1)
        write_tiny_model(root / name, seed, shape)
    return root


@pytest.mark.parametrize("block", [1, 4])
def test_traces_are_those_of_the_transformers_engine(recipe, wide, tmp_path, block):
    models = {name: {"path": str(wide / name)} for name in ("teacher", "student")}
    exact = recipe(**models, samples=6, max_tokens=40, output=str(tmp_path / "exact"))
    generate(exact)
    engine = {"name": "vllm", "rows": 8, "block": block, "threads": 1, "kv_cache_gib": 0.25}
    served = recipe(**models, samples=6, max_tokens=40, engine=engine)
    generate(served)
    expected = traces_of(exact)
    found = {
        name: trace.model_copy(update={"settings": exact.fingerprint})
        for name, trace in traces_of(served).items()
    }
    unknown = 0
    for name, trace in found.items():
        # Beyond the tokens that vLLM reports, the teacher's probability is not known.
        filled = tuple(
            other if prob is None else prob
            for prob, other in zip(trace.teacher_prob, expected[name].teacher_prob, strict=True)
        )
        unknown += trace.teacher_prob.count(None)
        found[name] = trace.model_copy(update={"teacher_prob": filled})
    assert_same(found, expected)
    accepted = sum(trace.writer.count("t") for trace in found.values())
    assert 0 < unknown < sum(len(trace.writer) for trace in found.values()) - accepted + 1
