"""Dropout of every kind is off unless it is asked for, and what is saved keeps the model's own."""

import json
from pathlib import Path

import pytest
import torch
import transformers

from rlvr.policy.batching import padded_inputs
from rlvr.policy.dropout import set_dropout
from rlvr.policy.loading import load_policy
from rlvr.policy.saving import save_policy
from rlvr.policy.settings import LoraSettings, ModelSettings
from rlvr.policy.value_head import load_critic
from rlvr.settings import load_settings
from rlvr.tasks.registry import find_task
from tests.training import column, run

SMALL = {"vocab_size": 99, "hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
GPT2 = {"vocab_size": 99, "n_embd": 32, "n_head": 2, "n_layer": 2, "bos_token_id": 1}
KINDS = {
    # modules; functional, by the layer's own attribute; read from the configuration on the fly
    "gpt2": ("GPT2", {**GPT2, "resid_pdrop": 0.3, "embd_pdrop": 0.3, "attn_pdrop": 0.3}),
    "opt": (
        "OPT",
        {**SMALL, "ffn_dim": 32, "word_embed_proj_dim": 32, "dropout": 0.3, "layerdrop": 0.5},
    ),
    "gpt_neo": (
        "GPTNeo",
        {
            "vocab_size": 99,
            "hidden_size": 32,
            "num_heads": 2,
            "num_layers": 2,
            "attention_types": [[["global"], 2]],
            "attention_dropout": 0.3,
            "resid_dropout": 0.3,
        },
    ),
    "llama": ("Llama", {**SMALL, "intermediate_size": 32, "attention_dropout": 0.3}),
    "falcon": ("Falcon", {**SMALL, "hidden_dropout": 0.3, "attention_dropout": 0.3}),
    "persimmon": (
        "Persimmon",
        {**SMALL, "intermediate_size": 32, "hidden_dropout": 0.3, "attention_dropout": 0.3},
    ),
    # no dropout, and random in training all the same
    "mixtral": (
        "Mixtral",
        {
            **SMALL,
            "intermediate_size": 32,
            "num_key_value_heads": 2,
            "num_local_experts": 4,
            "router_jitter_noise": 0.3,
        },
    ),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Models of families whose configuration has dropout, by name."""
    torch.manual_seed(0)
    found = {}
    for name, (family, values) in KINDS.items():
        ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
        config = getattr(transformers, f"{family}Config")(**{**values, **ends})
        model = transformers.AutoModelForCausalLM.from_config(config)
        found[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(found[name])
    return found


def settings_of(folders, name, **more):
    attention = "eager" if name == "gpt_neo" else "sdpa"  # which it has not
    return ModelSettings(path=str(folders[name]), attention=attention, **more)


def logprobs(policy):
    inputs = padded_inputs([[1, 2, 3, 4]], [[5, 6, 7, 8, 9]], (0,))
    with torch.no_grad():
        return policy(inputs).logprobs_N


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_training_mode_gives_what_evaluation_mode_gives(folders, name, checkpointing):
    settings = settings_of(folders, name, gradient_checkpointing=checkpointing)
    drawn = torch.get_rng_state()
    if name == "falcon" and checkpointing:  # whose layers read the configuration on the fly
        with pytest.raises(ValueError, match="set it to false"):
            load_policy(settings)
        return
    policy = load_policy(settings)
    assert torch.equal(drawn, torch.get_rng_state()), "the trial draws from nobody's generator"
    quiet = logprobs(policy.eval())
    for _ in range(3):
        assert torch.equal(logprobs(policy.train()), quiet)
    assert policy.training
    active = policy.causal_lm.is_gradient_checkpointing
    assert active == checkpointing


@pytest.mark.parametrize("name", [name for name in KINDS if name != "mixtral"])
def test_a_float_puts_it_on_everywhere_and_the_configuration_stays(folders, name, tmp_path):
    policy = load_policy(settings_of(folders, name, dropout=0.5))
    assert not torch.equal(logprobs(policy.train()), logprobs(policy))
    assert torch.equal(logprobs(policy.eval()), logprobs(policy))
    save_policy(policy, tmp_path)
    saved, own = (
        json.loads((Path(folder) / "config.json").read_text())
        for folder in (tmp_path / "model", folders[name])
    )
    assert saved == own


def test_dropout_that_a_model_does_not_have_is_refused():
    with pytest.raises(ValueError, match="no dropout anywhere"):
        set_dropout(torch.nn.Linear(2, 2), 0.1)
    set_dropout(torch.nn.Linear(2, 2), None)


def test_a_critic_has_none_either(folders):
    critic = load_critic(ModelSettings(path=str(folders["gpt2"])))
    torch.nn.init.ones_(critic.head.weight)
    inputs = padded_inputs([[1, 2, 3, 4]], [[5, 6, 7]], (0,))
    with torch.no_grad():
        assert torch.equal(critic.train()(inputs), critic.eval()(inputs))


def test_adapters_have_the_dropout_of_the_recipe_and_not_of_their_folder(folders, tmp_path):
    path = str(folders["llama"])
    with_dropout = ModelSettings(path=path, lora=LoraSettings(rank=2, dropout=0.5))
    policy = load_policy(with_dropout)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    assert not torch.equal(logprobs(policy.train()), logprobs(policy))
    save_policy(policy, tmp_path)
    without = ModelSettings(path=path, lora=LoraSettings(rank=2))
    quiet = load_policy(without, saved=tmp_path)
    assert torch.equal(logprobs(quiet.train()), logprobs(quiet.eval()))
    loud = load_policy(with_dropout, saved=tmp_path)
    assert not torch.equal(logprobs(loud.train()), logprobs(loud))


@pytest.fixture
def gpt2(tiny_folder, tmp_path):
    """GPT-2 with its own dropout of 0.1, and the tiny model's tokenizer."""
    folder = tmp_path / "gpt2"
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_folder)
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        **{**GPT2, "vocab_size": len(tokenizer)}, eos_token_id=tokenizer.eos_token_id
    )
    assert (config.resid_pdrop, config.embd_pdrop, config.attn_pdrop) == (0.1, 0.1, 0.1)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_the_first_dpo_loss_of_a_model_with_dropout_is_log_2(preference_values, gpt2):
    preference_values["model"]["path"] = str(gpt2)
    del preference_values["evaluation"]
    _, metrics = run(preference_values, "learner.lr=1e-20", "steps=2")
    assert column(metrics, "preference/loss") == pytest.approx([0.693147] * 2, abs=1e-5)


def test_a_policy_with_dropout_that_does_not_move_has_ratio_1_and_no_divergence(
    recipe_values, gpt2
):
    recipe_values["model"]["path"] = str(gpt2)
    del recipe_values["evaluation"]
    _, metrics = run(recipe_values, "learner.lr=1e-20", "steps=2")
    assert column(metrics, "policy/ratio_max") == pytest.approx([1.0] * 2, abs=1e-5)
    assert column(metrics, "policy/kl_reference") == pytest.approx([0.0] * 2, abs=1e-7)
    assert column(metrics, "mismatch/difference_max") == pytest.approx([0.0] * 2, abs=1e-5)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("model.dropout=0.1", "model.dropout = 0.1"),
        ("model.lora={rank: 2, dropout: 0.05}", "model.lora.dropout = 0.05"),
    ],
)
def test_dropout_is_refused_where_passes_are_compared(
    recipe_values, preference_values, override, named
):
    for values in (recipe_values, preference_values):
        schema = find_task(values.get("task", "rl")).schema
        with pytest.raises(ValueError, match="several passes") as caught:
            load_settings(schema, values, [override])
        assert named in str(caught.value)
    simpo = {**preference_values, "losses": [{"name": "simpo"}]}
    load_settings(find_task("preference").schema, simpo, [override])
