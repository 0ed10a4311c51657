"""docs/memory.md is what the estimate gives for configurations of the published sizes."""

from pathlib import Path

import pytest

from rlvr.policy.shape import read_shape
from tests.benchmarks.memory_table import MODELS, main, model_rows, recipe, write_config

PAGE = Path(__file__).parents[2] / "docs" / "memory.md"
PUBLISHED = {
    "SmolLM2-135M": 134_515_008,
    "SmolLM2-360M": 361_821_120,
    "Qwen2.5-0.5B": 494_032_768,
    "Llama-3.2-1B": 1_235_814_400,
    "Qwen2.5-1.5B": 1_543_714_304,
    "SmolLM2-1.7B": 1_711_376_384,
    "Qwen2.5-3B": 3_085_938_688,
    "Llama-3.2-3B": 3_212_749_824,
    "Qwen2.5-7B": 7_615_616_512,
    "Qwen2.5-14B": 14_770_033_664,
    "Qwen2.5-32B": 32_763_876_352,
}


@pytest.mark.parametrize("name", MODELS)
def test_a_configuration_has_the_published_number_of_weights(name, tmp_path):
    run = recipe(write_config(name, tmp_path))
    assert read_shape(run.model).parameters == PUBLISHED[name]


@pytest.mark.parametrize("name", ["SmolLM2-135M", "Qwen2.5-0.5B"])
def test_the_page_has_the_rows_of_small_models(name, tmp_path):
    lines = PAGE.read_text().splitlines()
    assert [row for row in model_rows(name, tmp_path) if row not in lines] == []


@pytest.mark.slow
def test_the_page_is_what_the_command_writes(tmp_path):
    copy = tmp_path / "memory.md"
    copy.write_text(PAGE.read_text())
    main(copy)
    assert copy.read_text() == PAGE.read_text(), (
        "run: python -m tests.benchmarks.memory_table docs/memory.md"
    )
