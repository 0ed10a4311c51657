"""Functions that are called after each step, and may end a run."""

import pytest

import rlvr


@pytest.fixture
def go(guessing_folder, rows, small):
    def train(callback, **more):
        given = {"steps": 4, "output": "out", "checkpoint": {"every": 100}, **small, **more}
        return rlvr.train(guessing_folder, rows, callbacks=[callback], **given)

    return train


def test_metrics_of_each_step_with_its_evaluation(go, rows):
    seen = {}
    held_out = [{"problem": "9+9=", "answer": "18"}]
    done = go(seen.__setitem__, steps=2, eval_data=held_out, evaluation={"every": 2})
    assert sorted(seen) == [1, 2]
    assert "eval/held_out/accuracy" in seen[2]
    assert "eval/held_out/accuracy" not in seen[1]
    assert seen[2]["reward/mean"] == done.metrics["reward/mean"][2]


def raising(step, metrics):
    if step == 2:
        raise rlvr.StopTraining


@pytest.mark.parametrize("callback", [lambda step, metrics: step == 2, raising])
def test_a_run_is_ended_with_checkpoint_and_model_and_can_go_on(go, callback):
    done = go(callback)
    assert done.metrics.index.tolist() == [1, 2]
    assert (done.folder / "checkpoints" / "step_000002").is_dir()
    assert (done.folder / "model").is_dir()
    on = go(lambda step, metrics: None, resume=True)
    assert on.metrics.index.tolist() == [1, 2, 3, 4]


def test_values_that_are_true_but_not_true_end_nothing(go):
    assert go(lambda step, metrics: metrics, steps=2).metrics.index.max() == 2


def test_a_callback_that_fails_is_named_and_the_steps_are_kept(go):
    def note(step, metrics):
        return metrics["nothing"]

    with pytest.raises(
        ValueError, match=r"callback 'note' failed after step 1: KeyError: 'nothing'"
    ):
        go(note)
    assert rlvr.load("out").metrics.index.tolist() == [1]
    assert (rlvr.load("out").folder / "checkpoints" / "step_000001").is_dir()
