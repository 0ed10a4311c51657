"""A dashboard in a thread of this process, and plain requests to it."""

import asyncio
import contextlib
import http.client
import json
import threading
from urllib.parse import urlsplit

from rlvr.report.dashboard import serve


@contextlib.contextmanager
def served(*folders, **more):
    """The address of a dashboard of these folders."""
    ready, found = threading.Event(), {}

    async def go():
        found["loop"], found["stop"] = asyncio.get_running_loop(), asyncio.Event()

        def started(url):
            found["url"] = url
            ready.set()

        await serve(folders, "127.0.0.1", 0, started, found["stop"], **more)

    thread = threading.Thread(target=asyncio.run, args=(go(),))
    thread.start()
    try:
        assert ready.wait(20)
        yield found["url"]
    finally:
        found["loop"].call_soon_threadsafe(found["stop"].set)
        thread.join(20)
        assert not thread.is_alive()


def ask(url, method="GET", **headers):
    """Status, headers and text of an answer; the address is sent as it is written."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=20)
    path = url.partition(parts.netloc)[2]
    connection.putrequest(method, path, skip_host="Host" in headers)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, dict(answer.getheaders()), text


def ask_json(url):
    """An answer that is JSON."""
    status, _, text = ask(url)
    assert status == 200, text
    return json.loads(text)
