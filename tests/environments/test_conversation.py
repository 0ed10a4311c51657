"""What stands between turns, over the chat templates of many families."""

import pytest
import torch

from rlvr.data.decoding import ResponseDecoder
from rlvr.data.templates import Template, TemplateSettings
from rlvr.environments import Done, Environment, EnvironmentSettings, Observation
from rlvr.environments.conversation import Conversation
from rlvr.environments.episode import Environments
from rlvr.policy.batching import packed_inputs, padded_inputs
from rlvr.policy.loading import load_policy
from rlvr.policy.settings import ModelSettings
from rlvr.policy.tiny import TinySettings, build_tiny_model, character_tokenizer
from rlvr.rollout.engine import Request
from rlvr.rollout.episodes import play
from rlvr.rollout.sampling import Sampling
from rlvr.rollout.transformers_engine import TransformersEngine
from rlvr.types import Message, Problem
from tests.environments.families import FOLDER, TEMPLATES, specials

FIRST, WORDS = Message(role="user", content="What is 2+3?"), "It is 6."
SECOND = Message(role="user", content="That is wrong.")
TEXT = Template("plain", TemplateSettings(mode="text"))


@pytest.fixture(scope="module")
def tokenizer():
    found = character_tokenizer()
    found.add_special_tokens({"additional_special_tokens": specials()})
    return found


def of_family(tokenizer, name):
    tokenizer.chat_template = (FOLDER / f"{name}.jinja").read_text()
    return Template(name, TemplateSettings(mode="chat"))


def test_there_are_templates_of_many_families():
    assert len(TEMPLATES) >= 20


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_follows_a_turn_is_what_the_template_writes_there(tokenizer, name):
    """Whatever it makes of the words before: many leave out thoughts, or add empty ones."""
    template = of_family(tokenizer, name)
    found = Conversation(template, tokenizer).between([SECOND], last=-1)
    reply = Message(role="assistant", content=WORDS)
    whole = template.framed([FIRST, reply, SECOND], tokenizer)
    _, words, rest = whole.rpartition(WORDS)
    assert words
    assert SECOND["content"] in rest
    assert list(found) == tokenizer.encode(rest, add_special_tokens=False)


@pytest.mark.parametrize("name", ["qwen2_5", "llama3", "gemma3", "phi3"])
def test_the_id_that_ended_a_turn_is_not_repeated(tokenizer, name):
    template = of_family(tokenizer, name)
    conversation = Conversation(template, tokenizer)
    closing, other = template.turn_end(tokenizer), tokenizer.eos_token_id
    assert conversation.between([SECOND], last=other)[0] == closing
    assert conversation.between([SECOND], last=closing)[0] != closing
    assert (closing, *conversation.between([SECOND], last=closing)) == conversation.between(
        [SECOND], last=other
    )


def test_plain_text_is_put_behind_the_turn(tokenizer):
    found = Conversation(TEXT, tokenizer).between([SECOND], last=2)
    assert tokenizer.decode(list(found)) == SECOND["content"]


def test_a_template_that_hides_earlier_words_is_refused(tokenizer):
    tokenizer.chat_template = "{{ messages[-1]['content'] }}"
    template = Template("last", TemplateSettings(mode="chat"))
    with pytest.raises(ValueError, match="does not show what an assistant said"):
        Conversation(template, tokenizer).between([SECOND], last=2)


class Echo(Environment):
    """Says something after each turn."""

    def step(self, action):
        if action.turn == 3:
            return Done(1.0)
        return Observation("And " + "so" * action.turn + "?", reward=0.25)


@pytest.fixture(scope="module")
def policy(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("special") / "model"
    shape = TinySettings(hidden_size=32, layers=2, heads=4, key_value_heads=2, context=2048)
    build_tiny_model(0, len(tokenizer), shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load_policy(ModelSettings(path=str(folder)))


@pytest.mark.parametrize("name", TEMPLATES)
def test_engine_and_learner_agree_on_every_sampled_token(tokenizer, policy, name):
    """Behind the context they were sampled in, and no token else is trained on."""
    template = of_family(tokenizer, name)
    closing = template.turn_end(tokenizer) or tokenizer.eos_token_id
    # An untrained model hardly ever ends a turn by itself.
    stops = sorted({closing, *range(10, len(tokenizer), 3)})
    settings = EnvironmentSettings(name=f"{__name__}:Echo", max_turns=4, max_tokens=1500)
    environments = Environments(
        settings, template, tokenizer, ResponseDecoder(tokenizer), lambda *_: False
    )
    problem = Problem("p", (FIRST,), "", "test")
    prompt = tuple(template.encode(problem.messages, tokenizer))
    found = {}
    play(
        TransformersEngine(policy, stops),
        [Request(prompt, (1, 2, 3))],
        lambda r, s: environments.begin(problem, s),
        Sampling(max_tokens=12),
        environments.limits,
        finished=lambda r, samples: found.update({r: samples}),
    )
    samples = found[0]
    assert any(len(sample.turns) == 3 for sample in samples)
    spans = [[(turn.start, turn.stop) for turn in sample.turns] for sample in samples]
    ids = [sample.token_ids for sample in samples]
    for lay_out in (padded_inputs, packed_inputs):
        inputs = lay_out([prompt] * 3, ids, (0, 1, 2), spans)
        with torch.no_grad():
            logprobs_N = policy(inputs).logprobs_N
        width = max(map(len, ids))
        learner_BT = inputs.scatter(logprobs_N, width)
        engine_BT = torch.zeros(3, width)
        for row, sample in enumerate(samples):
            engine_BT[row, : len(sample.logprobs)] = torch.tensor(sample.logprobs)
            inside = [place for start, stop in spans[row] for place in range(start, stop)]
            outside = set(range(width)) - set(inside)
            assert all(sample.logprobs[place] < 0 for place in inside)
            assert not learner_BT[row, sorted(outside)].any()
        assert torch.allclose(learner_BT, engine_BT, atol=2e-5)
