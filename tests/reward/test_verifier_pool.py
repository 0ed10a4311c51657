"""The pool: nothing hangs, nothing is lost, nothing survives."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import CancelledError
from pathlib import Path

import pytest

from reward import VerifierPool
from reward.process import WorkerProcess, WorkerSettings
from reward.verdict import DEFAULT

ROOT = Path(__file__).resolve().parents[2]
GOOD = [(f"so \\boxed{{{n}}}", str(n)) for n in range(40)]


def alive(pid: int) -> bool:
    """Tell whether a process still runs (a zombie does not)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_until_gone(pids, seconds=10.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end and any(alive(pid) for pid in pids):
        time.sleep(0.02)
    return [pid for pid in pids if alive(pid)]


@pytest.fixture(scope="module")
def pool():
    with VerifierPool(workers=2, timeout=2) as running:
        yield running


def worker_pids(pool):
    return [slot.worker.pid for slot in pool._slots]


def test_order_and_count_are_kept(pool):
    pairs = [pair if n % 3 else (pair[0], "-7") for n, pair in enumerate(GOOD)]
    grades = pool.grade_many(pairs)
    assert [grade.correct for grade in grades] == [n % 3 != 0 for n in range(40)]
    assert [grade.extracted for grade in grades] == [str(n) for n in range(40)]


def test_a_stream_yields_every_index_once(pool):
    seen = dict(pool.grade_stream(iter(GOOD), ahead=3))
    assert sorted(seen) == list(range(40))
    assert all(grade.correct for grade in seen.values())


def test_a_worker_killed_from_outside_costs_one_answer_at_most():
    with VerifierPool(workers=1, timeout=2) as pool:
        futures = [pool.submit(*pair) for pair in GOOD[:10]]
        os.kill(worker_pids(pool)[0], signal.SIGKILL)
        futures += [pool.submit(*pair) for pair in GOOD[10:]]
        grades = [future.result(timeout=30) for future in futures]
        wrong = [grade for grade in grades if not grade.correct]
        assert len(wrong) <= 1
        assert all(grade.status == "crash" for grade in wrong)
        assert pool.counters["restarts"] == 1
        assert all(grade.correct for grade in pool.grade_many(GOOD))


@pytest.mark.timed
def test_a_worker_that_stops_answering_is_killed_and_replaced(pool):
    stopped = worker_pids(pool)
    before = pool.counters["timeouts"]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    grades = pool.grade_many(GOOD)
    assert time.monotonic() - began < 2 * (2 + 0.5) + 5
    assert sum(grade.status == "timeout" for grade in grades) == 2
    assert sum(grade.correct for grade in grades) == 38
    assert pool.counters["timeouts"] == before + 2
    assert not wait_until_gone(stopped)


def test_threads_share_a_pool(pool):
    results: dict[int, list] = {}

    def work(number: int) -> None:
        results[number] = pool.grade_many(GOOD)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert sorted(results) == [0, 1, 2, 3]
    for grades in results.values():
        assert [grade.extracted for grade in grades] == [str(n) for n in range(40)]
        assert all(grade.correct for grade in grades)


def test_coroutines_share_a_pool(pool):
    async def work():
        return await asyncio.gather(*(pool.grade_async(*pair) for pair in GOOD))

    assert all(grade.correct for grade in asyncio.run(work()))


def test_golds_are_checked_before_anything_is_graded(pool):
    problems = pool.check_golds(["3", "", "\\frac{1}{2}", "  "])
    assert [index for index, _ in problems] == [1, 3]
    assert all(reason for _, reason in problems)


def test_counters_tell_what_happened():
    with VerifierPool(timeout=2) as pool:
        pool.grade_many([("\\boxed{3}", "3"), ("no box", "3"), ("\\boxed{3}", "")])
        counters = pool.counters
    assert counters["graded"] == 3
    assert counters["correct"] == 1
    assert counters["no_answer"] == 1
    assert counters["unparsable_golds"] == 1
    assert counters["timeouts"] == counters["crashes"] == counters["errors"] == 0


def test_workers_are_recycled_and_nothing_is_lost():
    with VerifierPool(timeout=2, recycle=15) as pool:
        first = worker_pids(pool)
        grades = pool.grade_many(GOOD)
        second = worker_pids(pool)
    assert all(grade.correct for grade in grades)
    assert first != second
    assert not wait_until_gone([*first, *second])


def test_closing_leaves_no_process_and_cancels_what_waits():
    pool = VerifierPool(timeout=30).start()
    pids = worker_pids(pool)
    os.kill(pids[0], signal.SIGSTOP)
    futures = [pool.submit(*pair) for pair in GOOD]
    pool.close()
    assert not wait_until_gone(pids)
    assert all(future.done() for future in futures[1:])
    with pytest.raises(CancelledError):
        futures[-1].result(timeout=5)
    with pytest.raises(RuntimeError, match="closed"):
        pool.submit(*GOOD[0])


def test_a_forked_child_gets_workers_of_its_own(pool):
    parents = worker_pids(pool)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        grades = pool.grade_many(GOOD[:6])
        fresh = not set(parents) & set(worker_pids(pool))
        verdict = all(grade.correct for grade in grades) and fresh
        pool.close()
        os.write(write, b"y" if verdict else b"n")
        os._exit(0)
    os.close(write)
    assert os.read(read, 1) == b"y"
    os.waitpid(child, 0)
    os.close(read)
    assert all(grade.correct for grade in pool.grade_many(GOOD))
    assert worker_pids(pool) == parents


def run_script(tmp_path, body, **keywords):
    script = tmp_path / "unguarded.py"
    script.write_text(textwrap.dedent(body))
    return subprocess.Popen(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        **keywords,
    )


UNGUARDED = """
    import sys, time
    from reward import VerifierPool
    print("main", flush=True)
    pool = VerifierPool(workers=2, timeout=2).start()
    print(*[slot.worker.pid for slot in pool._slots], flush=True)
    print(pool.submit("\\\\boxed{3}", "3").result(timeout=30).correct, flush=True)
"""


def test_a_script_without_a_main_guard_starts_workers_once(tmp_path):
    process = run_script(tmp_path, UNGUARDED)
    output, _ = process.communicate(timeout=60)
    lines = output.split("\n")
    assert lines[0] == "main"
    assert lines.count("main") == 1
    assert lines[2] == "True"
    assert not wait_until_gone([int(pid) for pid in lines[1].split()])


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux")
def test_no_worker_outlives_a_parent_killed_outright(tmp_path):
    process = run_script(tmp_path, UNGUARDED + "    time.sleep(60)\n")
    assert process.stdout is not None
    assert process.stdout.readline() == "main\n"
    pids = [int(pid) for pid in process.stdout.readline().split()]
    for pid in pids[:1]:  # one that cannot notice its closed socket
        os.kill(pid, signal.SIGSTOP)
    process.kill()
    process.wait(timeout=10)
    process.stdout.close()
    assert not wait_until_gone(pids)


def test_an_interrupt_at_the_terminal_reaches_only_the_parent(pool):
    pids = worker_pids(pool)
    assert all(os.getpgid(pid) != os.getpgid(0) for pid in pids)
    for pid in pids:
        os.kill(pid, signal.SIGINT)
    assert all(grade.correct for grade in pool.grade_many(GOOD))
    assert worker_pids(pool) == pids


def test_a_workers_memory_is_capped(pool):
    for pid in worker_pids(pool):
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert re.search(rf"Max address space +{4 * 2**30} ", limits)


def test_a_worker_imports_no_torch(pool):
    for pid in worker_pids(pool):
        assert "torch" not in Path(f"/proc/{pid}/maps").read_text()


def test_a_worker_that_cannot_start_says_what_it_wrote():
    worker = WorkerProcess(WorkerSettings("no_such_grader", DEFAULT, 2, 4.0))
    with pytest.raises(RuntimeError, match="no_such_grader"):
        worker.wait_ready(30)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"workers": 0}, "at least 1 worker"),
        ({"timeout": 0}, "timeout=0"),
        ({"recycle": 0}, "recycle=0"),
        ({"grader": "qwem"}, "qwem"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        VerifierPool(**settings)


@pytest.mark.parametrize("response", ["\x00\\boxed{3}", "\ud800\\boxed{3}", "\u202e\\boxed{3}"])
def test_any_character_travels_to_the_worker_and_back(pool, response):
    assert pool.submit(response, "3").result(timeout=30).extracted == "3"


def test_ten_megabytes_are_graded_within_the_limit(pool):
    grade = pool.submit("x{" * 5_000_000 + "\\boxed{3}", "3").result(timeout=30)
    assert grade.status in ("ok", "timeout")
    assert pool.submit("\\boxed{3}", "3").result(timeout=30).correct


def kill_starts(monkeypatch, times):
    """Have the first so many workers that start from now on killed while they do."""
    ready, killed = WorkerProcess.wait_ready, []

    def wait_ready(worker, timeout):
        if len(killed) < times:
            killed.append(worker.pid)
            os.kill(worker.pid, signal.SIGKILL)
        ready(worker, timeout)

    monkeypatch.setattr(WorkerProcess, "wait_ready", wait_ready)
    return killed


def test_a_worker_and_the_first_to_replace_it_may_be_killed(monkeypatch):
    with VerifierPool(timeout=2) as pool:
        killed = kill_starts(monkeypatch, 1)
        os.kill(worker_pids(pool)[0], signal.SIGKILL)
        assert not wait_until_gone(worker_pids(pool))
        assert pool.submit(*GOOD[3]).result(timeout=30).correct
        assert len(killed) == 1


@pytest.mark.timed
def test_futures_resolve_when_no_worker_can_be_started(monkeypatch):
    with VerifierPool(timeout=2) as pool:
        kill_starts(monkeypatch, 10**6)
        os.kill(worker_pids(pool)[0], signal.SIGKILL)
        waiting = [pool.submit(*pair) for pair in GOOD]
        began = time.monotonic()
        for future in [*waiting[1:], pool.submit(*GOOD[0])]:
            with pytest.raises(RuntimeError, match=r"ended before it was ready \(signal 9\)"):
                future.result(timeout=30)
        assert time.monotonic() - began < 20
        with pytest.raises(RuntimeError, match="signal 9"):
            pool.grade_many(GOOD)


@pytest.mark.timed
def test_a_pool_that_cannot_start_workers_says_why_at_once(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no_python"))
    began = time.monotonic()
    with pytest.raises(RuntimeError, match=r"cannot be started .*no_python"):
        VerifierPool(workers=2).start()
    assert time.monotonic() - began < 10


def test_a_lost_worker_leaves_the_others(monkeypatch):
    with VerifierPool(workers=2, timeout=2) as pool:
        kill_starts(monkeypatch, 3)
        os.kill(worker_pids(pool)[0], signal.SIGKILL)
        futures = [pool.submit(*pair) for pair in GOOD]
        lost = [future for future in futures if future.exception(timeout=30)]
        assert len(lost) <= 1
        assert all(grade.correct for grade in pool.grade_many(GOOD))


def test_a_vanished_temporary_folder_does_not_matter(monkeypatch, tmp_path):
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with VerifierPool(timeout=2) as pool:
        os.kill(worker_pids(pool)[0], signal.SIGKILL)
        assert not wait_until_gone(worker_pids(pool))
        assert pool.submit(*GOOD[3]).result(timeout=30).correct


def test_a_response_that_is_no_text_fails_alone(pool):
    with pytest.raises(TypeError):
        pool.submit(object(), "3").result(timeout=30)
    assert all(grade.correct for grade in pool.grade_many(GOOD))
