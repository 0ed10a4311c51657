"""Messages between processes: JSON preceded by a four-byte length.

Never pickles, because their text comes from a model.
"""

import json
import socket
import struct
import time
from typing import Any

MAX_MESSAGE_BYTES = 512 * 2**20


def send_message(connection: socket.socket, message: dict[str, Any]) -> None:
    """Send one JSON message; lone surrogates and control characters survive as escapes."""
    body = json.dumps(message, ensure_ascii=True).encode("ascii")
    connection.sendall(struct.pack(">I", len(body)) + body)


def receive_message(
    connection: socket.socket, largest: int = MAX_MESSAGE_BYTES, deadline: float | None = None
) -> dict[str, Any]:
    """Receive one message.

    Args:
        connection: where from.
        largest: of how many bytes at most.
        deadline: the time (`time.monotonic`) at which all of it must be there, however it
            trickles; None leaves the socket's timeout, which each piece may take.

    Raises:
        EOFError: if the other side has closed, or announces more.
        TimeoutError: if the time passes first.
        ValueError: if it is no JSON.
    """
    (length,) = struct.unpack(">I", _receive_exactly(connection, 4, deadline))
    if length > largest:
        raise EOFError(f"a message of {length} bytes is no message of this protocol")
    message: dict[str, Any] = json.loads(_receive_exactly(connection, length, deadline))
    return message


def _receive_exactly(connection: socket.socket, count: int, deadline: float | None) -> bytes:
    pieces = bytearray()
    while len(pieces) < count:
        if deadline is not None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            connection.settimeout(left)
        piece = connection.recv(min(count - len(pieces), 2**20))
        if not piece:
            raise EOFError("the other side closed the connection")
        pieces += piece
    return bytes(pieces)
