"""Tools: calls in the formats of many families, schemas, faults that the model is told, results."""

import asyncio
import json

import pytest

from rlvr.data.templates import Template, TemplateSettings
from rlvr.environments import Action, Done, EnvironmentSettings
from rlvr.environments.calls import PLAIN, ToolCall, call_format
from rlvr.environments.conversation import Conversation
from rlvr.environments.episode import Environments
from rlvr.environments.tools import Tools, calculator, checked_arguments, schema_of
from rlvr.policy.tiny import character_tokenizer
from rlvr.types import Message, Problem
from tests.environments.families import FOLDER, TEMPLATES, specials

PROBLEM = Problem("p", (Message(role="user", content="12*34?"),), "408", "test")
TEXT = Template("plain", TemplateSettings(mode="text"))


def weather(city: str, days: int, metric: bool = True) -> str:
    """The weather of a place.

    Args:
        city: Its name.
        days: How many days ahead.
        metric: Whether in degrees Celsius.
    """
    return f"{city} {days} {metric}"


async def later(text: str) -> str:
    """Say it later.

    Args:
        text: What.
    """
    await asyncio.sleep(0.01)
    if text == "bad":
        raise RuntimeError("no")
    return text.upper()


def bare(x):
    return x


@pytest.fixture(scope="module")
def tokenizer():
    found = character_tokenizer()
    found.add_special_tokens({"additional_special_tokens": specials()})
    return found


def family(tokenizer, name):
    tokenizer.chat_template = (FOLDER / f"{name}.jinja").read_text()
    return Template(name, TemplateSettings(mode="chat"), (schema_of(weather),))


def written(template, tokenizer, arguments):
    """What the chat template writes for a call, as the model would."""
    function = {"name": "weather", "arguments": arguments}
    call = {"id": "callzq001", "type": "function", "function": function}
    turns = [
        Message(role="user", content="zqquestion"),
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]
    prompt, whole = template.framed(turns[:1], tokenizer), template.framed(turns, tokenizer)
    pairs = zip(prompt, whole, strict=False)
    return whole[next((n for n, (a, b) in enumerate(pairs) if a != b), len(prompt)) :]


WITH_CALLS = [
    "glm4moe", "gptoss", "llama3_1", "llama3_2", "lfm2_v2", "nemotron_3_nano", "qwen2_5", "qwen3",
    "qwen3_5_nothink", "qwen3_5_think", "qwen3_6", "qwen3_8", "qwen3_instruct_2507",
    "nemotron_3_super", "nemotron_3_ultra", "muse_glimmer", "lfm2_2_5", "lfm2_2_5_v2",
    "nemotron_3_5_lightning",
]  # fmt: skip


@pytest.mark.parametrize("name", WITH_CALLS)
def test_a_call_is_read_as_the_template_writes_it(tokenizer, name):
    template = family(tokenizer, name)
    found = call_format(template, tokenizer)
    assert found.own
    given = {"city": 'São Paulo, "SP"', "days": 3, "metric": False}
    (call,) = found.read(written(template, tokenizer, given))
    assert (call.name, call.fault) == ("weather", None)
    assert checked_arguments(weather, call.arguments) == given


@pytest.mark.parametrize("name", sorted(set(TEMPLATES) - set(WITH_CALLS)))
def test_other_templates_have_the_plain_format_or_say_why_not(tokenizer, name):
    template = family(tokenizer, name)
    if name.startswith(("gemma4", "diffusion_gemma")):
        with pytest.raises(ValueError, match="not understood"):
            call_format(template, tokenizer)
    else:
        assert call_format(template, tokenizer) == PLAIN


@pytest.mark.parametrize("name", WITH_CALLS)
def test_a_result_follows_the_turn_that_called(tokenizer, name):
    """From the end token on, which is not repeated, to the beginning of the next turn."""
    template = family(tokenizer, name)
    result = {"role": "tool", "name": "zqname", "tool_call_id": "callzq001", "content": "zqresult"}
    function = {"name": "zqname", "arguments": {"city": "zqone"}}
    call = {"id": "callzq001", "type": "function", "function": function}
    turns = [
        Message(role="user", content="zqquestion"),
        {"role": "assistant", "content": "", "tool_calls": [call]},
        result,
    ]
    whole = template.framed(turns, tokenizer)
    closing = template.turn_end(tokenizer)
    if name == "gptoss":  # an answer ends otherwise than a call
        closing = tokenizer.convert_tokens_to_ids("<|call|>")
    ids = Conversation(template, tokenizer).between([result], last=tokenizer.unk_token_id)
    if closing is not None:
        shorter = Conversation(template, tokenizer).between([result], last=closing)
        assert ids in (shorter, (closing, *shorter))
    text = tokenizer.decode(list(ids))
    assert "zqresult" in text
    assert "zqone" not in text
    # What the tokenizer does not know stands as <unk>, in both.
    assert tokenizer.decode(tokenizer.encode(whole, add_special_tokens=False)).endswith(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<tool_call>{'name': 1}</tool_call>", "must be JSON of the form"),
        ('<tool_call>\n{"name": "calc", "arguments": {}}</tool_call>', "no tool 'calc'"),
        ('<tool_call>{"name": "calculator", "arguments": {"x": 1}}', "unknown argument 'x'"),
        ('<tool_call>{"name": "calculator", "arguments": {}}', "'expression' is a required"),
        (
            '<tool_call>{"name": "calculator", "arguments": {"expression": "1/0"}}',
            "ZeroDivisionError",
        ),
        ('<tool_call>{"name": "calculator", "arguments": "{\\"expression\\": \\"2*3\\"}"}', "6"),
    ],
)
def test_what_is_wrong_with_a_call_is_told(text, said):
    environment = tools()
    observation = environment.step(Action(text, (), 1))
    (message,) = observation.messages
    assert said in message["content"]
    assert message["role"] == "user"


def tools(judge=lambda text: "408" in text, **parameters):
    environment = Tools(**parameters)
    environment.format, environment.judge = PLAIN, judge
    return environment


def call(name, **arguments):
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def test_an_answer_without_a_call_is_judged_and_too_many_calls_end_it():
    environment = tools(max_calls=2)
    two = environment.step(Action(call("calculator", expression="12*34") * 2, (), 1))
    assert [m["content"] for m in two.messages] == ["<tool_response>\n408\n</tool_response>"] * 2
    assert environment.step(Action("It is 408", (), 2)) == Done(1.0)
    assert environment.step(Action(call("calculator", expression="1"), (), 2)) == Done(
        0.0, cut="tool_calls"
    )


def test_tools_of_your_own_may_be_asynchronous():
    environment = tools(tools=[f"{__name__}:later", f"{__name__}:weather"])
    text = call("later", text="hi") + call("later", text="bad") + call("weather", city="A", days=1)
    found = asyncio.run(environment.step(Action(text, (), 1)))
    said = [message["content"].split("\n")[1] for message in found.messages]
    assert said == ["HI", "Error: RuntimeError: no", "A 1 True"]


def test_faulty_tools_are_named_before_a_run():
    with pytest.raises(ValueError, match="'calc' is not one of calculator, python"):
        Tools(["calc"])
    with pytest.raises(ValueError, match="tool 'bare' needs types and a docstring"):
        Tools([f"{__name__}:bare"])


@pytest.mark.parametrize(
    ("expression", "value"),
    [("12*34", "408"), ("(1+2)*-3", "-9"), ("7/2", "3.5"), ("2**10", "1024"), ("7//2", "3"),
     ("6/2", "3"), (" 1.5e3 + 0.5 ", "1500.5")],
)  # fmt: skip
def test_the_calculator(expression, value):
    assert calculator(expression) == value


@pytest.mark.parametrize(
    "expression",
    ["9**9**9", "2**100000", "__import__('os')", "(-8)**0.5", "1;2", "a+1", "10**70", "(" * 150,
     "1e999", "True+1", "1" * 300],
)  # fmt: skip
def test_the_calculator_refuses(expression):
    with pytest.raises(ValueError):  # noqa: PT011
        calculator(expression)


def test_a_program_runs_in_the_sandbox():
    from reward.sandbox.ways import way_of

    try:
        way_of("auto")
    except ValueError as error:
        pytest.skip(f"no sandbox here: {error}")
    environment = tools(tools=["python"])
    text = call("python", code="print(12*34)") + call("python", code="open('/etc/passwd')")
    right, wrong = [
        m["content"].split("\n")[1] for m in environment.step(Action(text, (), 1)).messages
    ]
    assert right == "408"
    assert "Error: " in wrong


def test_the_prompt_says_which_tools_there_are(tokenizer):
    settings = EnvironmentSettings(name="tools", parameters={"tools": ["calculator"]})

    def opened(template):
        made = Environments(settings, template, tokenizer, None, lambda *_: False)
        messages = made.opened(PROBLEM).messages
        return made, made.template.render(messages, tokenizer)

    own, text = opened(family(tokenizer, "qwen3"))
    assert own.format.own
    assert '"name": "calculator"' in text
    assert text.count("12*34?") == 1
    plain, text = opened(TEXT)
    assert plain.format == PLAIN
    assert '"name": "calculator"' in text
    assert "<tool_call>" in text
    assert PLAIN.read(call("f", x=1)) == [ToolCall("f", {"x": 1})]
