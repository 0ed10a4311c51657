"""A phase that hangs is named with its rank and every thread's stack; others are left alone."""

import subprocess
import sys
import threading
import time

from rlvr.learner.watchdog import EXIT_CODE, Watchdog

HANG = """
import threading, time
from rlvr.learner.watchdog import Watchdog

def waiting_for_a_rollout_that_never_comes():
    threading.Event().wait()

dog = Watchdog(rank=3, factor=4, least_s=0.3, first_s=60)
for _ in range(3):
    with dog.phase("updating"):
        time.sleep(0.01)
threading.Thread(target=waiting_for_a_rollout_that_never_comes, daemon=True).start()
with dog.phase("updating"):
    time.sleep(60)
"""


def test_a_hanging_phase_ends_the_process_and_says_where():
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", HANG], capture_output=True, text=True, timeout=60, check=False
    )
    assert time.monotonic() - began < 50
    assert done.returncode == EXIT_CODE
    assert "rank 3 hangs in phase 'updating'" in done.stderr
    assert "waiting_for_a_rollout_that_never_comes" in done.stderr
    assert "<string>" in done.stderr


class Ends:
    """Notes that the process would have been ended."""

    def __init__(self):
        self.codes = []

    def __call__(self, code):
        self.codes.append(code)


def watchdog(tmp_path, ends, **limits):
    output = (tmp_path / "stacks.txt").open("w")
    return Watchdog(end=ends, output=output, **{"least_s": 0.2, "first_s": 5, **limits})


def test_quick_phases_and_the_time_between_them_are_no_hang(tmp_path):
    ends = Ends()
    dog = watchdog(tmp_path, ends)
    for _ in range(3):
        with dog.phase("updating"):
            time.sleep(0.01)
    time.sleep(0.5)
    dog.close()
    assert ends.codes == []


def test_a_phase_seen_for_the_first_time_is_given_longer(tmp_path):
    ends = Ends()
    dog = watchdog(tmp_path, ends, factor=2)
    with dog.phase("compiling"):
        time.sleep(0.5)
    assert dog.limit("compiling") >= 2 * 0.5
    assert dog.limit("another") == 5
    dog.close()
    assert ends.codes == []


def test_an_outer_phase_is_watched_again_when_the_inner_one_ends(tmp_path):
    ends = Ends()
    dog = watchdog(tmp_path, ends, first_s=0.3)
    with dog.phase("outer"):
        with dog.phase("inner"):
            pass
        time.sleep(0.8)
    dog.close()
    assert ends.codes == [EXIT_CODE]
    assert "'outer'" in (tmp_path / "stacks.txt").read_text()


def test_two_threads_are_watched_apart(tmp_path):
    ends = Ends()
    dog = watchdog(tmp_path, ends, first_s=0.4)

    def hang():
        with dog.phase("generating"):
            time.sleep(1)

    thread = threading.Thread(target=hang)
    thread.start()
    for _ in range(20):
        with dog.phase("updating"):
            time.sleep(0.04)
    thread.join()
    dog.close()
    assert ends.codes == [EXIT_CODE]
    assert "'generating'" in (tmp_path / "stacks.txt").read_text()
