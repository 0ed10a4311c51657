"""Wait until vLLM servers are healthy, and say which are not and where their logs are.

    python -m launch.health --timeout 900 http://node3:8000=/logs/server-node3-0.log ...

No proxy is asked, whatever the environment names: servers are neighbours. They answer nothing
without their key, which is in ``VLLM_API_KEY``.
"""

import argparse
import http.client
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from urllib.parse import urlsplit

_ANSWER_S = 5.0
_PAUSE_S = 1.0


def healthy(address: str, key: str | None = None) -> bool:
    """Whether the server says so.

    Raises:
        ValueError: The server answers that the key is missing or wrong.
    """
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=_ANSWER_S)
    try:
        connection.request("GET", "/health", headers=headers)
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    if status == 401:
        raise ValueError(
            f"{address} answers, but not to the key in VLLM_API_KEY: another server listens there"
        )
    return status == 200


def wait(
    servers: Mapping[str, str],
    timeout_s: float,
    check: Callable[[], None] = lambda: None,
    key: str | None = None,
) -> None:
    """Wait for all servers.

    Args:
        servers: Where the log is, by address.
        timeout_s: Longest wait in seconds.
        check: Called between looks; what it raises ends the wait.
        key: The servers' key.

    Raises:
        ValueError: Some are not healthy in time; the message names their logs. Or one has another
            key.
    """
    deadline = time.monotonic() + timeout_s
    waiting = list(servers)
    while waiting := [address for address in waiting if not healthy(address, key)]:
        check()
        if time.monotonic() > deadline:
            missing = "; ".join(f"{address} (log {servers[address]})" for address in waiting)
            raise ValueError(
                f"{len(waiting)} of {len(servers)} servers are not healthy after {timeout_s:g} s: "
                f"{missing}; where a model takes longer to load, raise --start-timeout"
            )
        time.sleep(_PAUSE_S)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m launch.health")
    parser.add_argument("--timeout", type=float, required=True)
    parser.add_argument("servers", nargs="+", metavar="ADDRESS=LOG")
    chosen = parser.parse_args(arguments)
    pairs = (server.partition("=") for server in chosen.servers)
    try:
        key = os.environ.get("VLLM_API_KEY")
        wait({address: log for address, _, log in pairs}, chosen.timeout, key=key)
    except ValueError as error:
        print(f"rlvr launch: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
