"""Messages between a process and its child: JSON objects, each preceded by its length.

JSON, not pickle, so that reading a message can never run code. Python writes floats such that
reading them back gives the same number.
"""

import json
import select
import socket
import struct
import time
from typing import Any

_HEADER = struct.Struct("!Q")
# Far more than any rollout needs; a larger length means that the stream is broken.
_LONGEST = 2**32


class ClosedError(ConnectionError):
    """The other side has closed the connection."""


class Channel:
    """One end of a stream socket.

    One thread may send while another receives; each direction is used by one thread at a time.
    """

    def __init__(self, end: socket.socket) -> None:
        self.end = end
        self._buffer = bytearray()

    def send(self, message: dict[str, Any]) -> None:
        """Send one message.

        Raises:
            ClosedError: The other side has closed the connection.
        """
        body = json.dumps(message, separators=(",", ":")).encode()
        try:
            self.end.sendall(_HEADER.pack(len(body)) + body)
        except OSError as error:
            raise ClosedError(str(error)) from error

    def receive(self, timeout_s: float | None = None) -> dict[str, Any]:
        """Return the next message.

        Raises:
            TimeoutError: No complete message arrived within ``timeout_s`` seconds.
            ClosedError: The other side has closed the connection.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while (message := self._take()) is None:
            self._read(deadline)
        return message

    def _take(self) -> dict[str, Any] | None:
        """The first message in the buffer if it is complete."""
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
