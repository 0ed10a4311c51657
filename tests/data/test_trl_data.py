"""Every type of data set that TRL takes, as its users have them: unchanged into ``rlvr train``.

The rows have the columns and the shapes of trl-internal-testing/zen, the data set of TRL's own
tests: lines of the Zen of Python, with other ends that people made up. What our readers make of
them is held against TRL's utilities.
"""

import copy
import json
from pathlib import Path

import pytest
from rich.console import Console

from rlvr.data import FileSource, load_problems
from rlvr.data.labelled_responses import load_responses
from rlvr.data.messages import read_messages
from rlvr.data.preferences import PreferenceFile, load_preferences
from rlvr.policy.loading import load_tokenizer
from rlvr.policy.settings import ModelSettings
from rlvr.settings import load_settings
from rlvr.tasks.registry import find_task
from tests.data.test_row_types import said, user, write
from tests.training import run

ZEN = (
    ("Beautiful is better than", " ugly.", " the moon."),
    ("Explicit is", " better than implicit.", " worse than nothing."),
    ("Simple is better", " than complex.", " than a long vacation."),
    ("Complex", " is better than complicated.", " is always the answer."),
    ("Readability", " counts.", " is optional."),
    ("There should be one-- and preferably", " only one --obvious way.", " two or more ways."),
    ("Although never is often", " better than *right* now.", " not even a possibility."),
    ("If the implementation is hard to explain,", " it's a bad idea.", " it's clearly the best."),
    ("If the implementation is easy", " to explain, it may be good.", " it's probably magic."),
)
ASKED = (
    ("What is better than ugly?", "Beautiful.", "Acceptable."),
    ("What is better than implicit?", "Explicit.", "Explained."),
    ("What counts?", "Readability.", "Speed."),
    ("When is it better than never?", "Now.", "Right *now*."),
)
LABELS = (True, False, False, True, True, False, True, False, True)


def standard():
    """By the names of zen's configurations."""
    judged = [
        (p, (good, bad)[not right], right)
        for (p, good, bad), right in zip(ZEN, LABELS, strict=True)
    ]
    return {
        "standard_language_modeling": [{"text": p + good} for p, good, _ in ZEN],
        "standard_prompt_only": [{"prompt": p} for p, _, _ in ZEN],
        "standard_prompt_completion": [{"prompt": p, "completion": c} for p, c, _ in ZEN],
        "standard_preference": [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in ZEN],
        "standard_implicit_prompt_preference": [
            {"chosen": p + c, "rejected": p + r} for p, c, r in ZEN
        ],
        "standard_unpaired_preference": [
            {"prompt": p, "completion": c, "label": right} for p, c, right in judged
        ],
        "standard_stepwise_supervision": [
            {"prompt": p, "completions": [", let me think...", c], "labels": [right, not right]}
            for p, c, right in judged
        ],
    }


def conversational():
    """Likewise."""
    judged = [(p, (good, bad)[at % 2], at % 2 == 0) for at, (p, good, bad) in enumerate(ASKED)]
    return {
        "conversational_language_modeling": [{"messages": [user(p), said(c)]} for p, c, _ in ASKED],
        "conversational_prompt_only": [{"prompt": [user(p)]} for p, _, _ in ASKED],
        "conversational_prompt_completion": [
            {"prompt": [user(p)], "completion": [said(c)]} for p, c, _ in ASKED
        ],
        "conversational_preference": [
            {"prompt": [user(p)], "chosen": [said(c)], "rejected": [said(r)]} for p, c, r in ASKED
        ],
        "conversational_implicit_prompt_preference": [
            {"chosen": [user(p), said(c)], "rejected": [user(p), said(r)]} for p, c, r in ASKED
        ],
        "conversational_unpaired_preference": [
            {"prompt": [user(p)], "completion": [said(c)], "label": right} for p, c, right in judged
        ],
    }


ROWS = standard() | conversational()
FORMATS = ("jsonl", "parquet", "saved")


def recipe(kind, path, model, output):
    """The task that a kind of data is for."""
    values = {"output": str(output), "steps": 1, "model": {"path": str(model)}}
    values["learner"] = {"lr": 1e-3}
    sources = {"sources": [str(path)], "per_step": 2}
    source = {"source": {"path": str(path), "name": "file"}, "per_step": 2}
    if "stepwise" in kind:
        return values | {"task": "prm", "data": sources, "objective": {"name": "steps"}}
    if "unpaired" in kind:
        return values | {"task": "preference", "data": source, "losses": [{"name": "kto"}]}
    if "preference" in kind:
        return values | {"task": "preference", "data": source, "losses": [{"name": "sigmoid"}]}
    return values | {"task": "sft", "data": sources}


TRAINED = [kind for kind in ROWS if "prompt_only" not in kind]


def loaded(values):
    """The examples of a recipe's data."""
    task = find_task(values["task"])
    made = load_settings(task.schema, values)
    module, _, name = task.class_at.partition(":")
    task_class = getattr(__import__(module, fromlist=[name]), name)
    tokenizer = load_tokenizer(ModelSettings(path=values["model"]["path"]))
    return task_class(made).load(tokenizer, Console(quiet=True))[0]


@pytest.mark.parametrize("kind", TRAINED)
def test_trl_s_data_is_trained_on_as_it_is(tmp_path, tiny_folder, kind):
    """One step of the task that fits; each format gives the same tokens."""
    examples = []
    for ending in FORMATS:
        path = write(tmp_path, ending, ROWS[kind])
        examples.append(loaded(recipe(kind, path, tiny_folder, tmp_path / "run")))
    one, *others = examples
    assert all(other.prompt_ids == one.prompt_ids for other in others)
    assert all(other.completion_ids == one.completion_ids for other in others)
    path = write(tmp_path, "jsonl", ROWS[kind])
    _, metrics = run(recipe(kind, path, tiny_folder, tmp_path / "run"))
    assert metrics[-1]["step"] == 1


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("kind", ["standard_prompt_only", "conversational_prompt_only"])
@pytest.mark.parametrize("answer", ["answer", "solution"])
def test_prompts_with_an_answer_are_problems(tmp_path, kind, ending, answer):
    """Prompts alone wait for rewards that need no answer."""
    rows = [{**row, answer: str(at)} for at, row in enumerate(ROWS[kind])]
    found = load_problems(FileSource(path=write(tmp_path, ending, rows)))
    texts = ZEN if kind.startswith("standard") else ASKED
    assert [item.messages for item in found] == [(user(text),) for text, *_ in texts]
    assert [item.answer for item in found] == [str(at) for at in range(len(rows))]


def test_columns_that_are_named_are_taken_at_their_word(tmp_path):
    rows = [{"prompt": "a", "problem": "b", "answer": "1", "solution": "2"}]
    (found,) = load_problems(FileSource(path=write(tmp_path, "jsonl", rows)))
    assert (found.messages, found.answer) == ((user("b"),), "1")


def pairs(tmp_path, rows, kind="pairs"):
    return load_preferences(PreferenceFile(path=write(tmp_path, "jsonl", rows)), kind)


@pytest.mark.parametrize("kind", ["standard", "conversational"])
def test_an_implicit_prompt_is_that_of_trl(tmp_path, kind):
    """Texts too, except that ours does not divide a word (" it" here) or lose a letter."""
    from trl.data_utils import extract_prompt

    rows = ROWS[f"{kind}_implicit_prompt_preference"]
    found = pairs(tmp_path, rows)
    given = pairs(tmp_path, ROWS[f"{kind}_preference"])
    same = 0
    for row, own in zip(rows, found, strict=True):
        theirs = extract_prompt(copy.deepcopy(row))
        if kind == "conversational":
            assert (list(own.messages), own.completions) == (
                theirs["prompt"],
                (theirs["chosen"][0]["content"], theirs["rejected"][0]["content"]),
            )
            continue
        sides = (own.messages[0]["content"], *own.completions)
        same += sides == (theirs["prompt"], theirs["chosen"], theirs["rejected"])
        assert row["chosen"] == sides[0] + sides[1], "nothing is lost"
        assert theirs["prompt"].startswith(sides[0])
    if kind == "conversational":
        assert [item.messages for item in found] == [item.messages for item in given]
    else:
        assert same >= len(rows) - 2


@pytest.mark.parametrize("prompt", ["What counts?", "counts", [user("What counts?")]])
def test_a_text_beside_conversations_is_no_other_prompt(tmp_path, prompt):
    from trl.data_utils import maybe_extract_prompt

    begin = [{"role": "system", "content": "Be short."}, user("What counts?")]
    if isinstance(prompt, list):
        begin = begin[1:]
    row = {"prompt": prompt, "chosen": [*begin, said("Care.")], "rejected": [*begin, said("Luck.")]}
    (found,) = pairs(tmp_path, [row])
    assert found.messages == tuple(begin)
    assert found.completions == ("Care.", "Luck.")
    if isinstance(prompt, str):
        assert list(found.messages) == maybe_extract_prompt(copy.deepcopy(row))["prompt"]


@pytest.mark.parametrize("kind", ["standard_preference", "conversational_preference"])
def test_pairs_become_single_completions_as_trl_makes_them(tmp_path, kind):
    from datasets import Dataset
    from trl.data_utils import unpair_preference_dataset

    theirs = unpair_preference_dataset(Dataset.from_list(ROWS[kind]))
    found = pairs(tmp_path, ROWS[kind], "labelled")
    assert [item.desirable for item in found] == theirs["label"]
    texts = [c if isinstance(c, str) else c[0]["content"] for c in theirs["completion"]]
    assert [item.completions for item in found] == [(text,) for text in texts]
    prompts = [p if isinstance(p, str) else p[0]["content"] for p in theirs["prompt"]]
    assert [item.messages[0]["content"] for item in found] == prompts


@pytest.mark.parametrize("kind", list(ROWS))
def test_messages_are_told_from_text_as_trl_tells_them(kind):
    from trl.data_utils import is_conversational

    from rlvr.data.messages import holds_messages

    for row in ROWS[kind]:
        names = {"prompt", "chosen", "rejected", "completion", "messages"} & row.keys()
        assert is_conversational(row) == any(holds_messages(row[name]) for name in names)


def test_sharegpt_s_messages_are_chat_messages(tmp_path, tiny_folder):
    from trl.data_utils import maybe_convert_to_chatml

    named = [{"from": "user", "value": "2+2="}, {"from": "assistant", "value": "4"}]
    theirs = maybe_convert_to_chatml({"conversations": copy.deepcopy(named)})["messages"]
    assert list(read_messages(named)) == theirs
    assert named[0] == {"from": "user", "value": "2+2="}, "rows are left as they are"
    wild = [{"from": "human", "value": "2+2="}, {"from": "gpt", "value": "4"}]
    rows = [{"conversations": wild}, {"messages": [user("2+2="), said("4")]}]
    values = recipe("", write(tmp_path, "jsonl", rows), tiny_folder, tmp_path / "run")
    examples = loaded(values)
    assert len(set(examples.prompt_ids)) == len(set(examples.completion_ids)) == 1


def test_labels_of_steps_may_be_called_label(tmp_path, tiny_folder):
    """As the older of TRL's data sets have them."""
    rows = ROWS["standard_stepwise_supervision"]
    older = [{**row, "label": row["labels"]} for row in rows]
    for row in older:
        del row["labels"]
    found = [
        loaded(recipe("stepwise", write(tmp_path, "jsonl", own), tiny_folder, tmp_path / "run"))
        for own in (rows, older)
    ]
    first, second = (one.columns["step_label"].tolist() for one in found)
    assert first == second


def test_unpaired_rows_are_labelled_responses(tmp_path):
    path = write(tmp_path, "jsonl", ROWS["standard_unpaired_preference"])
    assert [item.correct for item in load_responses([path])] == list(LABELS)
    assert json.loads(Path(path).read_text().splitlines()[0])["label"] is True
