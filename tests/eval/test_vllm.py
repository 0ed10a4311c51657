"""The vLLM engine under an evaluation: killed and resumed, it ends with the same files."""

import pytest

from eval.evaluation_folder import Appender
from rlvr.policy.tiny import TinySettings, write_tiny_model
from rlvr.rollout.settings import VllmEngineSettings
from tests.eval.small import files_of, run

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]
ENGINE = VllmEngineSettings(threads=1, kv_cache_gib=0.25)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Heads of 32, which vLLM's attention on a CPU takes."""
    pytest.importorskip("vllm", reason="vLLM is not installed")
    folder = tmp_path_factory.mktemp("tiny") / "model"
    shape = TinySettings(hidden_size=64, layers=2, heads=2, key_value_heads=1)
    write_tiny_model(folder, 0, shape)
    return folder


def test_a_killed_evaluation_ends_byte_for_byte_like_one_left_alone(
    model, benchmark_file, tmp_path, monkeypatch
):
    settings = {"engine": ENGINE, "greedy": True, "max_tokens": 40}
    (whole,) = run(model, benchmark_file, tmp_path / "whole", **settings)
    add, written = Appender.add, []

    def dying(self, row):
        add(self, row)
        written.append(row)
        if len(written) == 13:
            self._file.write('{"benchmark": "sums", "problem": "su')
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Appender, "add", dying)
        with pytest.raises(KeyboardInterrupt):
            run(model, benchmark_file, tmp_path / "killed", **settings)
    (killed,) = run(model, benchmark_file, tmp_path / "killed", **settings)
    assert files_of(killed) == files_of(whole)
