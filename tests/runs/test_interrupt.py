"""Signals stop a run at once where nothing is half done, and wait where something is."""

import os
import signal

import pytest

from rlvr.runs.interrupt import Stopped, StopSignals


def send(number=signal.SIGINT):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_outside_a_shield_stops_at_once(number):
    passed = []

    def sample():
        send(number)
        passed.append("sampled")

    with StopSignals().watch(), pytest.raises(Stopped) as caught:
        sample()
    assert caught.value.signal_number == number
    assert not passed


def test_a_shielded_block_is_finished_first():
    passed = []

    def update(signals):
        with signals.shield():
            send()
            passed.append("update")
        passed.append("after")

    with StopSignals().watch() as signals, pytest.raises(Stopped):
        update(signals)
    assert passed == ["update"]


def test_a_second_signal_does_not_wait():
    passed = []

    def update(signals):
        with signals.shield():
            send()
            passed.append("once")
            send()
            passed.append("twice")

    with StopSignals().watch() as signals, pytest.raises(Stopped):
        update(signals)
    assert passed == ["once"]


def test_a_scheduler_s_notice_that_is_repeated_says_nothing_new():
    """It may arrive twice, at the process and passed on: the second must not break the saving."""
    passed = []

    def update(signals):
        with signals.shield():
            send(signal.SIGUSR1)
            send(signal.SIGUSR1)
            passed.append("update")

    with StopSignals().watch() as signals:
        try:
            update(signals)
        except Stopped as stopped:
            send(signal.SIGUSR1)
            passed.append(f"saved after {stopped.signal_number}")
    assert passed == ["update", f"saved after {int(signal.SIGUSR1)}"]


def test_the_handlers_before_come_back():
    before = signal.getsignal(signal.SIGINT)
    with StopSignals().watch():
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) == before
