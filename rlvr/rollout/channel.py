"""Messages between a process and its child: JSON objects, each behind its length.

JSON and not pickle, so that reading a message can never run code. Python writes floats so that
reading them back gives the same number.
"""

import json
import select
import socket
import struct
import time
from typing import Any

_HEADER = struct.Struct("!Q")
# Far above any rollout; a longer length is a sign of a broken stream.
_LONGEST = 2**32


class ClosedError(ConnectionError):
    """The other side is gone."""


class Channel:
    """One end of a stream socket.

    Sending and receiving may happen in two threads, but each in one at a time.
    """

    def __init__(self, end: socket.socket) -> None:
        self.end = end
        self._buffer = bytearray()

    def send(self, message: dict[str, Any]) -> None:
        """Send one message.

        Raises:
            ClosedError: The other side is gone.
        """
        body = json.dumps(message, separators=(",", ":")).encode()
        try:
            self.end.sendall(_HEADER.pack(len(body)) + body)
        except OSError as error:
            raise ClosedError(str(error)) from error

    def receive(self, timeout_s: float | None = None) -> dict[str, Any]:
        """The next message.

        Raises:
            TimeoutError: None was complete within ``timeout_s`` seconds.
            ClosedError: The other side is gone.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while (message := self._take()) is None:
            self._read(deadline)
        return message

    def _take(self) -> dict[str, Any] | None:
        """The first message of the buffer if it is whole."""
        start = _HEADER.size
        if len(self._buffer) < start:
            return None
        (length,) = _HEADER.unpack_from(self._buffer)
        assert length < _LONGEST, f"a message of {length} bytes: the stream is broken"
        if len(self._buffer) < start + length:
            return None
        body = bytes(self._buffer[start : start + length])
        del self._buffer[: start + length]
        message: dict[str, Any] = json.loads(body)
        return message

    def _read(self, deadline: float | None) -> None:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not select.select([self.end], [], [], left)[0]:
            raise TimeoutError
        try:
            data = self.end.recv(2**20)
        except OSError as error:
            raise ClosedError(str(error)) from error
        if not data:
            raise ClosedError("the other side closed the connection")
        self._buffer += data

    def close(self) -> None:
        """Close this end; the other side notices."""
        self.end.close()
