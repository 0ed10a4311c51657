"""The quickstart: its demonstrations, its folders, and (slow) its promise."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from rlvr.quickstart import (
    WarmupSettings,
    guessed_answer,
    quickstart,
    quickstart_recipe,
    warm_up,
    worked_answer,
)

ROOT = Path(__file__).parents[2]


def test_demonstrations_show_column_sums_with_carry_or_a_noisy_guess():
    assert worked_answer(357, 268) == "151206\\boxed{625}"
    assert worked_answer(100, 200) == "000003\\boxed{300}"
    assert worked_answer(999, 999) == "181919\\boxed{1998}"
    assert guessed_answer(12, 30, 0.0, random.Random(0)) == "\\boxed{42}"
    generator = random.Random(0)
    guesses = [guessed_answer(100, 23, 0.6, generator) for _ in range(2000)]
    right = sum(guess == "\\boxed{123}" for guess in guesses) / 2000
    assert right == pytest.approx((0.4 + 0.06) ** 3, abs=0.02)


def test_a_slip_is_a_wrong_digit_that_the_box_copies_and_no_carry():
    generator = random.Random(0)
    assert worked_answer(357, 268, slip=0.0, generator=generator) == worked_answer(357, 268)
    for _ in range(100):
        text = worked_answer(357, 268, slip=1.0, generator=generator)
        units, carries = text[1:6:2], text[0:6:2]
        assert carries == "110"
        assert all(found != right for found, right in zip(units, "526", strict=True))
        assert text.endswith(f"\\boxed{{{units[::-1]}}}")


def test_the_reinforcement_stage_is_a_recipe_with_separate_held_out_problems(tmp_path):
    recipe = quickstart_recipe(3, tmp_path)
    assert recipe.seed == 3
    training, held_out = recipe.data.source, recipe.evaluation.sets["held_out"]
    assert (training.split, held_out.split) == ("train", "held_out")


def test_a_warm_up_that_does_not_get_there_says_so(tmp_path):
    from rlvr.policy.tiny import write_tiny_model

    write_tiny_model(tmp_path / "m", 0)
    settings = WarmupSettings(max_steps=2, check_every=1, batch=4)
    with pytest.raises(ValueError, match=r"did not reach .* accuracy of 0\.2 in 2 steps"):
        warm_up(tmp_path / "m", 0, settings, Console(quiet=True))


def test_folders_with_something_in_them_are_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match="contains other files"):
        quickstart(0, tmp_path)
    (tmp_path / "thesis.tex").unlink()
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(ValueError, match="contains a finished quickstart"):
        quickstart(0, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_keeps_its_promise(tmp_path, seed):
    """From at most 0.6 to at least 0.9 in under five minutes on two cores."""
    out = tmp_path / "quickstart"
    command = [sys.executable, "-m", "rlvr", "quickstart", "--seed", str(seed), "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr
    summary = json.loads((out / "summary.json").read_text())
    assert summary["accuracy_before"] <= 0.6
    assert summary["accuracy_after"] >= 0.9
    assert summary["length_after"] > summary["length_before"]
    assert summary["seconds"]["total"] < 300
    for path in (summary["report"], summary["model"] + "/model.safetensors"):
        assert Path(path).is_file()
