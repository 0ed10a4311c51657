"""``rlvr fit`` as a user meets it: from a folder with a model, or with a configuration alone."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rlvr.memory import GIB
from rlvr.settings import load_settings
from rlvr.tasks.registry import task_of
from tests.command import call, refused

ROOT = Path(__file__).parents[2]
SHORT = ("--prompt", 32, "--completion", 64)


@pytest.fixture
def configuration(tmp_path):
    """A folder with nothing but the configuration of a model of half a billion weights."""
    values = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
        "max_position_embeddings": 32768,
    }
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "config.json").write_text(json.dumps(values))
    return tmp_path


def dry_run(file, folder):
    done = call("train", file, "--dry-run", folder=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_tiny_model_fits_as_it_is_and_its_recipe_runs_dry(tiny_folder, tmp_path):
    done = call(
        "fit", tiny_folder, "--gpus", "1x24", *SHORT, "--out", "fitted.yaml", folder=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "fits: as given" in done.stdout
    text = (tmp_path / "fitted.yaml").read_text()
    assert text.splitlines()[2] == "#   rlvr train fitted.yaml"
    assert "memory of a process at full lengths" in dry_run("fitted.yaml", tmp_path)


def test_a_configuration_alone_is_enough(configuration):
    done = call("fit", "half", "--gpus", "1x10", "--full", "--out", "a.yaml", folder=configuration)
    assert done.returncode == 0, done.stderr
    assert "494,032,768 parameters" in done.stdout
    task = task_of(configuration / "a.yaml")
    recipe = load_settings(task.schema, configuration / "a.yaml")
    for line in done.stdout.splitlines():
        if line.startswith("  model.") or line.startswith("  learner."):
            key, _, value = line.strip().partition("=")
            assert f"{key.rpartition('.')[2]}: {value}" in (configuration / "a.yaml").read_text()
    assert recipe.data.max_prompt_tokens == 512
    assert "no tokenizer" in dry_run("a.yaml", configuration)


def test_what_is_missing_ends_with_code_1(configuration):
    done = call("fit", "half", "--gpus", "1x4", "--full", "--out", "a.yaml", folder=configuration)
    assert done.returncode == 1
    assert "nothing fits; moments in int8, trained weights in bfloat16 comes nearest" in done.stdout
    assert "would fit: --lora" in done.stdout
    assert not (configuration / "a.yaml").exists()


def test_another_recipe_is_inherited_from(configuration):
    base = ROOT / "recipes" / "smollm2_arithmetic.yaml"
    done = call("fit", "half", base, "--gpus", "1x8", "--out", "out/a.yaml", folder=configuration)
    assert done.returncode == 0, done.stderr
    text = (configuration / "out" / "a.yaml").read_text()
    assert "smollm2_arithmetic.yaml" in text.split("base: ")[1].splitlines()[0]
    recipe = load_settings(task_of(base).schema, configuration / "out" / "a.yaml")
    assert recipe.model.path == str(configuration / "half")
    assert recipe.policy_loss.high == 0.28


def test_a_preference_recipe_is_fitted_too(configuration):
    base = ROOT / "recipes" / "preference_dpo.yaml"
    done = call("fit", "half", base, "--gpus", "1x80", "--completion", 200, folder=configuration)
    assert done.returncode == 0, done.stderr
    assert "activations" in done.stdout
    assert "keys and values" not in done.stdout


def test_several_gpus_are_launched(configuration):
    words = ("--gpus", "2x9", "--full", "--out", "a.yaml")
    done = call("fit", "half", *words, folder=configuration)
    assert done.returncode == 0, done.stderr
    assert "rlvr launch a.yaml --local --gpus-per-node 2 --accelerate" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["./nowhere", "--gpus", "1x24"], "does not exist"),
        (["half", "--gpus", "24"], "COUNTxGIB"),
        (["half", "nowhere.yaml", "--gpus", "1x24"], "nowhere.yaml"),
        (["half", "model.lorra=1", "--gpus", "1x24"], "lorra"),
        (["half", "--gpus", "1x24", "--full", "--lora"], "exclude each other"),
        (["half", "--host", "100"], "--gpus"),
        (["half", "--gpus", "1x24", "--completion", "99999"], "exceed the context"),
        (["half", "--gpus", "1x24", "--out", "half"], "exists"),
    ],
)
def test_what_is_wrong_takes_one_line(words, message, configuration):
    assert message in refused("fit", *words, folder=configuration)


def test_faults_of_arguments_import_no_torch(configuration):
    code = (
        "import sys; sys.argv = ['rlvr', 'fit', './nowhere', '--gpus', '1x24']\n"
        "from rlvr.cli import main\n"
        "try: main()\nexcept SystemExit as ended: assert ended.code == 2\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=configuration, timeout=60)


def test_the_machine_is_this_one_where_none_is_named(tiny_folder, tmp_path):
    import psutil

    done = call("fit", tiny_folder, *SHORT, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    if "without a GPU" in done.stdout:
        assert f"{psutil.virtual_memory().total / GIB:.4g} GiB" in done.stdout
