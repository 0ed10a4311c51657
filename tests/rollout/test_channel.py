"""Messages arrive whole, or the reason why not is told."""

import socket
import threading

import pytest

from rlvr.rollout.channel import Channel, ClosedError


@pytest.fixture
def ends():
    one, two = socket.socketpair()
    with one, two:
        yield Channel(one), Channel(two)


def test_messages_arrive_in_order_and_floats_exactly(ends):
    one, two = ends
    sent = [{"a": [0.1, -1e-300, 1 / 3]}, {}, {"text": "ä\n" * 100}]
    for message in sent:
        one.send(message)
    assert [two.receive(5) for _ in sent] == sent


def test_a_message_larger_than_the_sockets_buffer_arrives(ends):
    one, two = ends
    large = {"tokens": list(range(500_000))}
    sender = threading.Thread(target=one.send, args=(large,))
    sender.start()
    assert two.receive(30) == large
    sender.join(timeout=10)


def test_silence_times_out_and_half_a_message_waits_for_the_rest(ends):
    one, two = ends
    with pytest.raises(TimeoutError):
        two.receive(0.05)
    other, watch = socket.socketpair()
    with other, watch:
        Channel(other).send({"x": 1})
        data = watch.recv(100)
    one.end.sendall(data[:9])
    with pytest.raises(TimeoutError):
        two.receive(0.05)
    one.end.sendall(data[9:])
    assert two.receive(5) == {"x": 1}


def test_a_closed_end_is_noticed_on_both_sides(ends):
    one, two = ends
    two.close()
    with pytest.raises(ClosedError):
        one.receive(5)
    with pytest.raises(ClosedError):
        one.send({"x": 1})
