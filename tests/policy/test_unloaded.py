"""What ``--dry-run`` refuses of a model, from its configuration alone."""

import pytest

from rlvr.policy.loading import load_policy
from rlvr.policy.settings import LoraSettings, ModelSettings
from rlvr.policy.unloaded import describe, unloaded_model
from tests.families import write_family
from tests.training import small_recipe


@pytest.mark.parametrize(
    ("family", "values", "message"),
    [
        ("gpt_oss", {}, "does not support attention 'sdpa'; set model.attention=eager"),
        ("gemma2", {}, "soft cap"),
        ("bert", {"is_decoder": False}, "looks at later tokens"),
    ],
)
def test_what_loading_refuses_is_refused_unloaded(family, values, message, tmp_path):
    write_family(family, tmp_path, **values)
    settings = ModelSettings(path=str(tmp_path))
    for refuse in (unloaded_model, describe):
        with pytest.raises(ValueError, match=message) as refused:
            refuse(settings)
        assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match=message if family != "bert" else "before it"):
        load_policy(settings)


def test_an_adapter_on_a_tied_embedding_is_refused_unloaded(tiny_folder):
    lora = LoraSettings(rank=2, target_modules=("embed_tokens", "q_proj"))
    with pytest.raises(ValueError, match="leave out embed_tokens"):
        unloaded_model(ModelSettings(path=str(tiny_folder), lora=lora))


def test_a_model_of_the_hub_is_not_looked_up():
    assert describe(ModelSettings(path="nobody/nothing")) == []
    with pytest.raises(ValueError, match="does not exist"):
        describe(ModelSettings(path="./nothing"))


@pytest.mark.parametrize("family", ["mamba2", "qwen3_5", "gpt2", "falcon_h1"])
def test_every_shape_has_a_size(family, tmp_path):
    from rlvr.policy.shape import read_shape
    from rlvr.rl.recipe import RLRecipe
    from rlvr.settings import load_settings

    write_family(family, tmp_path)
    values = small_recipe(tmp_path, tmp_path / "run")
    values["model"]["attention"] = "eager"
    shape = read_shape(load_settings(RLRecipe, values).model)
    assert shape.parameters == shape.trained > 0
    assert shape.layers == 2
