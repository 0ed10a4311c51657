"""Reward functions at the same time, in processes, with limits; results in order."""

import asyncio
import json
import os
import threading
import time
from contextlib import closing, contextmanager
from datetime import datetime

import psutil
import pytest
from aiohttp import ClientSession, web

from reward.functions import RewardError, RewardInput, UngradedInput
from reward.verdict import Grade
from rlvr.runs.function_messages import call_message, read_call
from rlvr.runs.reward_functions import RewardFunctions
from rlvr.runs.rewards import RewardTerm

RIGHT = Grade(True, "2", "int", "exact", "")


def groups_of(count, each=1):
    return [
        [
            RewardInput(f"{group}.{one}", "2", RIGHT, problem_id=f"p{group}", sample=one)
            for one in range(each)
        ]
        for group in range(count)
    ]


def scored(functions, groups, **more):
    """The values of each completion, by term."""
    begun = [functions.begin([group], 0) for group in groups]
    return functions.finish(begun, 0, **more)


@contextmanager
def functions_of(*terms):
    with closing(RewardFunctions([RewardTerm(**term) for term in terms])) as functions:
        yield functions


@pytest.fixture
def rewards(tmp_path):
    """A file of functions, and the place of one."""
    file = tmp_path / "rewards.py"
    file.write_text(
        """
import os
import time

calls = 0

def process(response):
    return os.getpid()

def slow(response):
    if response == "1.0":
        time.sleep(60)
    return 1.0

def dying(response):
    if response == "1.0":
        os._exit(3)
    return 1.0

def failing(response):
    raise LookupError("no such word")

def batch(prompts, completions, log_extra, log_metric, level=None):
    log_extra("words", [text.upper() for text in completions])
    log_metric("batch_size", len(completions))
    return list(range(len(completions)))

def drawn(others, draw):
    return float(len(others))

def flaky(response):
    global calls
    calls += 1
    if calls < 3:
        raise ConnectionError("busy")
    return calls
"""
    )
    return lambda name: f"{file}:{name}"


@contextmanager
def judge_server(seconds):
    """A judge on this machine that thinks for a while; its address, and how many came at once."""
    seen = {"now": 0, "most": 0}

    async def judged(request):
        seen["now"] += 1
        seen["most"] = max(seen["most"], seen["now"])
        await asyncio.sleep(seconds)
        seen["now"] -= 1
        return web.json_response({"score": len((await request.json())["text"])})

    loop, ready, port = asyncio.new_event_loop(), threading.Event(), []

    async def serve():
        app = web.Application()
        app.router.add_post("/judge", judged)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port.append(site._server.sockets[0].getsockname()[1])
        ready.set()
        return runner

    runner = []
    thread = threading.Thread(
        target=lambda: (runner.append(loop.run_until_complete(serve())), loop.run_forever())
    )
    thread.start()
    assert ready.wait(20)
    try:
        yield f"http://127.0.0.1:{port[0]}/judge", seen
    finally:
        asyncio.run_coroutine_threadsafe(runner[0].cleanup(), loop).result(20)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(20)
        loop.close()


@pytest.mark.timed
def test_64_questions_to_a_judge_take_the_time_of_one():
    with judge_server(0.5) as (address, seen):

        async def judge(response):
            async with (
                ClientSession() as session,
                session.post(address, json={"text": response}) as reply,
            ):
                return (await reply.json())["score"]

        with functions_of({"function": judge}) as functions:
            began = time.monotonic()
            rows = scored(functions, groups_of(8, each=8))
            took = time.monotonic() - began
        assert [row.values for row in rows] == [[[3.0]]] * 64
        assert took < 8, "one after another they take 32 s"
        assert seen["most"] > 32
        with functions_of({"function": judge, "concurrency": 3}) as functions:
            seen["most"] = 0
            scored(functions, groups_of(2, each=3))
        assert seen["most"] <= 3


def test_results_are_in_order_whatever_finishes_first():
    async def later(response):
        first = float(response)
        await asyncio.sleep(0.3 - first / 20)
        return first

    def first(items):
        return [float(item.response) for item in items]

    with functions_of({"function": later}, {"function": first}) as functions:
        rows = scored(functions, groups_of(5))
    assert [row.values for row in rows] == [[[float(i)], [float(i)]] for i in range(5)]


def test_workers_are_processes_that_end_with_the_run(rewards):
    with functions_of({"function": rewards("process"), "workers": 1}) as functions:
        rows = scored(functions, groups_of(12))
        pids = {int(row.values[0][0]) for row in rows}
        assert os.getpid() not in pids
        assert len(pids) == 1
        children = [psutil.Process(pid) for pid in pids]
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive


def test_workers_are_given_what_functions_in_this_process_are(rewards):
    names = ("batch", "drawn")
    terms = [{"function": rewards(name), "draws": 1 + (name == "drawn")} for name in names]
    groups = groups_of(2, each=3)
    for group in groups:
        for one in group:
            object.__setattr__(one, "group", group)
    found = []
    for workers in (0, 1):
        with functions_of(*({**term, "workers": workers} for term in terms)) as functions:
            found.append(scored(functions, groups))
    assert found[0] == found[1]
    assert [row.values for row in found[0]] == [[[i], [2, 2]] for i in map(float, range(6))]
    assert [row.extra for row in found[0]] == [{"words": one.response} for g in groups for one in g]
    assert [row.logged for row in found[0]] == [[("batch_size", 6.0)], *[[]] * 5]


def test_workers_get_columns_of_data_as_json_and_refuse_what_is_none(tmp_path):
    day = datetime(2026, 12, 1, 7, 30)
    columns = {"day": day, "raw": b"\x00\xff", "many": [1, {"a": None}], "unread": object()}
    (item,) = groups_of(1)[0]
    object.__setattr__(item, "columns", columns)
    file = tmp_path / "named.py"
    file.write_text(
        "def named(response, day, raw, many):\n"
        "    return float(day.hour + raw[1] + len(many))\n\n"
        "def whole(item):\n    return 0.0\n"
    )
    with functions_of({"function": f"{file}:named", "workers": 1}) as functions:
        assert scored(functions, [[item]])[0].values == [[7 + 255 + 2.0]]
    said = r"'whole' on problem 'p0': column 'unread' holds a object.*leave workers out"
    term = {"function": f"{file}:whole", "workers": 1}
    with functions_of(term) as functions, pytest.raises(RewardError, match=said):
        scored(functions, [[item]])


def test_messages_between_processes_hold_what_they_were_given():
    group = groups_of(1, each=2)[0]
    group[1] = UngradedInput(**{**vars(group[1]), "gold": ""})
    for one in group:
        object.__setattr__(one, "group", group)
    sent = json.loads(json.dumps(call_message(group, None, dict)))
    found, state = read_call(sent)
    assert state is None
    assert [vars(one) | {"group": 0} for one in found[:1]] == [vars(group[0]) | {"group": 0}]
    assert type(found[1]) is UngradedInput
    assert found[0].group[1] is found[1]
    with pytest.raises(LookupError):
        _ = found[1].grade


def test_a_process_whose_call_takes_too_long_is_killed_and_named(rewards):
    term = {"function": rewards("slow"), "workers": 1, "timeout": 1.0, "failure": "skip"}
    with functions_of(term) as functions:
        rows = scored(functions, groups_of(3))
    assert [row.values[0][0] for row in rows] == [1.0, None, 1.0]
    assert [row.failed for row in rows] == [[False], [True], [False]]


def test_a_process_that_dies_is_named(rewards):
    term = {"function": rewards("dying"), "workers": 1}
    said = r"'dying' on problem 'p1': its worker.*exit code 3"
    with functions_of(term) as functions, pytest.raises(RewardError, match=said):
        scored(functions, groups_of(2))


@pytest.mark.parametrize("workers", [0, 1])
def test_faults_are_those_of_this_process(rewards, workers):
    term = {"function": rewards("failing"), "workers": workers}
    said = r"'failing' on problem 'p0': LookupError: no such word .*rewards.py, line \d+"
    with functions_of(term) as functions, pytest.raises(RewardError, match=said):
        scored(functions, groups_of(2))


@pytest.mark.timed
def test_a_plain_function_and_an_asynchronous_one_have_limits_too():
    done = threading.Event()

    def hangs(response):
        done.wait(60)

    async def sleeps(response):
        await asyncio.sleep(60)

    for function in (hangs, sleeps):
        began = time.monotonic()
        with functions_of({"function": function, "timeout": 0.2}) as functions:
            said = f"{function.__name__!r} on problem 'p0' gave no answer within its timeout of 0.2"
            with pytest.raises(RewardError, match=said):
                scored(functions, groups_of(1))
        assert time.monotonic() - began < 20
    done.set()


def test_a_failure_is_tried_again_and_told_with_how_long_it_took(rewards):
    with functions_of({"function": rewards("flaky"), "retries": 2}) as functions:
        assert scored(functions, groups_of(1))[0].values == [[3.0]]
    calls = []

    async def busy(response):
        calls.append(response)
        raise ConnectionError("busy")

    with (
        functions_of({"function": busy, "retries": 1}) as functions,
        pytest.raises(RewardError, match=r"ConnectionError: busy.*failed 2 times in \d+\.\d s"),
    ):
        scored(functions, groups_of(1))
    assert len(calls) == 2
    with functions_of({"function": busy, "failure": "skip"}) as functions:
        with pytest.raises(RewardError, match="busy"):
            functions.try_out(groups_of(1)[0])
        assert scored(functions, groups_of(1))[0].failed == [True]


def test_waiting_can_be_called_off():
    async def sleeps(response):
        await asyncio.sleep(60)

    class Stopped(BaseException):
        pass

    def stop():
        raise Stopped

    with functions_of({"function": sleeps}) as functions, pytest.raises(Stopped):
        scored(functions, groups_of(1), tick=stop)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"workers": 1}, "asynchronous.*leave workers out"),
        ({"parameters": {"scael": 2}}, "no parameter 'scael'; did you mean 'scale'"),
    ],
)
def test_settings_that_do_not_go_with_a_function_are_refused(tmp_path, more, said):
    (tmp_path / "judge.py").write_text("async def judge(response, scale=1):\n    return scale\n")
    term = {"function": f"{tmp_path}/judge.py:judge", **more}
    with pytest.raises(ValueError, match=said), functions_of(term):
        pass


def test_a_function_that_no_other_process_finds_has_no_workers():
    with pytest.raises(ValueError, match=r"other processes cannot find .*<lambda>"):
        RewardTerm(function=lambda response: 1.0, workers=1)
