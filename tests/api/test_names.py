"""The names of the package, the smaller entries, and the page that shows all of it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

import rlvr

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "python.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_every_name_is_there_documented_and_listed():
    for name in rlvr.__all__:
        assert name in dir(rlvr)
        assert getattr(rlvr, name)
    functions = [name for name in rlvr.__all__ if name.islower() and not name.startswith("_")]
    assert [name for name in functions if f"rlvr.{name}" not in PAGE] == []
    assert [name for name in functions if not getattr(rlvr, name).__doc__] == []
    with pytest.raises(AttributeError, match="no attribute 'trian'; it has"):
        rlvr.trian  # noqa: B018


def test_importing_and_listing_loads_nothing():
    code = "import rlvr, sys; dir(rlvr); print(len(sys.modules)); assert 'torch' not in sys.modules"
    code += "; assert 'pydantic' not in sys.modules; assert 'pandas' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_types_are_known_to_checkers(folder):
    (folder / "typed.py").write_text(
        "import rlvr\n\n"
        "run: rlvr.RecordedRun = rlvr.train('m', [])\n"
        "one: rlvr.Grade = rlvr.grade('a', 'b')\n"
        "several: list[rlvr.Grade] = rlvr.grade(['a'], 'b')\n"
        "rlvr.train('m', resume='yes')\n"
    )
    command = [sys.executable, "-m", "mypy", "--follow-imports=silent", "typed.py"]
    done = subprocess.run(
        [*command, "--config-file", str(ROOT / "pyproject.toml")],
        capture_output=True,
        text=True,
        env={"MYPYPATH": str(ROOT), "PATH": "", "MYPY_CACHE_DIR": str(ROOT / ".mypy_cache")},
    )
    assert "typed.py:6" in done.stdout
    assert done.stdout.count("error:") == 1, done.stdout


@pytest.mark.slow
def test_the_page_does_what_it_says(folder):
    assert len(BLOCKS) >= 8
    (folder / "page.py").write_text("\n".join(BLOCKS))
    done = subprocess.run([sys.executable, "page.py"], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "settings: unknown setting 'learner.lrr'" in done.stdout
    assert "True\n" in done.stdout


def test_tiny_models(folder):
    assert rlvr.tiny_model(layers=1) == Path("tiny")
    rlvr.tiny_model("tiny", layers=2, experts=2)
    assert AutoModelForCausalLM.from_pretrained("tiny").config.num_hidden_layers == 2
    (folder / "mine").mkdir()
    (folder / "mine" / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="holds other files and no model"):
        rlvr.tiny_model("mine")
    with pytest.raises(ValueError, match=r"unknown setting 'layer'.*did you mean 'layers'"):
        rlvr.tiny_model("other", layer=1)
    assert not (folder / "other").exists()


def test_settings_are_listed():
    table = rlvr.list_settings("sft", "learner.")
    assert table.loc["learner.lr", "default"] == "1e-05"
    assert "Peak learning rate" in table.loc["learner.lr", "meaning"]
    assert len(rlvr.list_settings("distill")) > 10
    with pytest.raises(ValueError, match="unknown task 'stf'"):
        rlvr.list_settings("stf")


def test_grading():
    assert rlvr.grade(r"\boxed{0.5}", r"\frac12").correct
    found = rlvr.grade((r"\boxed{4}", r"\boxed{5}"), "4")
    assert [verdict.correct for verdict in found] == [True, False]
    assert rlvr.grade("<answer>The Tower</answer>", "tower", grader="text").correct
    assert not rlvr.grade(r"\boxed{0.5}", r"\frac12", grader="exact").correct
    with pytest.raises(ValueError, match="did you mean 'text'"):
        rlvr.grade("a", "b", grader="txt")
    with pytest.raises(ValueError, match="is a number; give it as text"):
        rlvr.grade("4", 4)
    with pytest.raises(ValueError, match="2 responses and 1 answers"):
        rlvr.grade(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="one response and 2 answers"):
        rlvr.grade("a", ["a", "b"])


def test_a_model_in_memory_is_evaluated_on_rows(guessing_folder, rows):
    quick = {"template": "plain", "progress": False, "temperature": 0, "workers": 1}
    model = AutoModelForCausalLM.from_pretrained(guessing_folder)
    found = rlvr.evaluate(model, {"sums": rows}, max_tokens=6, **quick)
    assert found.folder == Path("evals/model")
    assert 0 <= found.scores.loc["sums", "value"] <= 1
    assert len(found.samples) == len(rows)
    assert found.report().is_file()
    with pytest.raises(ValueError, match="made with other settings"):
        rlvr.evaluate(model, {"sums": rows}, max_tokens=5, **quick)
    with pytest.raises(ValueError, match="unknown setting 'smaples'"):
        rlvr.evaluate(guessing_folder, rows, smaples=3)


def test_what_is_not_there_is_said(folder, guessing_folder, rows, small):
    with pytest.raises(ValueError, match="holds no run"):
        rlvr.load(folder)
    run = rlvr.train(guessing_folder, rows, steps=1, **small)
    with pytest.raises(ValueError, match=r"no completions were kept of step 3; .* are: 1"):
        run.completions(3)
    assert len(run.evaluations()) == 0
