"""The dashboard: the report's pages over loopback, renewed while runs go on.

It shows what is in folders and changes nothing. Whoever may open a connection to this machine's
loopback (other users of it, and pages in the reader's browser) still needs the key in the address,
which is drawn anew at each start. Requests that name another host are refused, so that a page of
some host name that was pointed at 127.0.0.1 (DNS rebinding) reads nothing. Runs are chosen by names
from the listing and steps by number, so no text of a request becomes a path.
"""

import asyncio
import hmac
import ipaddress
import os
import re
import secrets
import signal
import threading
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

from rlvr.page import embed
from rlvr.report import live_pages
from rlvr.report.completions import read_step
from rlvr.report.found_runs import DEPTH, has_begun, run_names, runs_below
from rlvr.report.run_state import WatchedRun

LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
MOST_COMPARED = 64
_HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_NOTHING = "default-src 'none'; frame-ancestors 'none'"
_POLICY = re.compile(r'http-equiv="Content-Security-Policy" content="([^"]*)"')

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Dashboard:
    """What is served: the runs in folders, as they are when a request comes.

    Args:
        folders: Run folders, or folders that contain runs; there may be none in them yet.
        key: The part of every address that only the reader knows.
        depth: How many folders below ``folders`` a run may be.
    """

    def __init__(self, folders: Sequence[Path], key: str, depth: int = DEPTH) -> None:
        self.folders, self.key, self.depth = list(folders), key, depth
        # Names must not change when other runs appear, so they do not depend on which there are.
        self._root = Path(os.path.commonpath([os.path.abspath(folder) for folder in folders]))
        self._watched: dict[Path, WatchedRun] = {}
        self._turn = asyncio.Lock()  # the files of a run are read by one request at a time

    def application(self) -> web.Application:
        """The web application; only GET is answered."""
        app = web.Application(middlewares=[self._guard])
        pages = {
            "": self._overview,
            "run": self._run,
            "compare": self._compare,
            "runs": self._runs,
            "news": self._news,
            "plan": self._plan,
            "completions": self._completions,
        }
        for name, handler in pages.items():
            app.router.add_get(f"/{{key}}/{name}", handler)
        return app

    def runs(self) -> dict[str, WatchedRun]:
        """The runs by name, in order."""
        paths = runs_below(self.folders, self.depth, has_begun)
        self._watched = {path: self._watched.get(path) or WatchedRun(path) for path in paths}
        names = run_names(paths, self._root)
        return dict(zip(names, self._watched.values(), strict=True))

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse other hosts, methods and keys; add the headers to every answer."""
        try:
            if request.method not in ("GET", "HEAD"):
                raise web.HTTPMethodNotAllowed(request.method, ["GET", "HEAD"])
            if not is_local_host(request.headers.get("Host", "")):
                raise web.HTTPForbidden(text="this host is not served; use 127.0.0.1 or localhost")
            key = request.match_info.get("key", "")
            if not hmac.compare_digest(key.encode("utf-8", "replace"), self.key.encode()):
                raise web.HTTPNotFound(
                    text="not found; the address needs the key it was shown with"
                )
            response = await handler(request)
        except web.HTTPException as refused:
            answer = web.Response(status=refused.status, text=refused.text)
            answer.headers.update({**_HEADERS, "Content-Security-Policy": _NOTHING})
            if "Allow" in refused.headers:
                answer.headers["Allow"] = refused.headers["Allow"]
            return answer
        response.headers.update(_HEADERS)
        response.headers.setdefault("Content-Security-Policy", _NOTHING)
        return response

    async def _overview(self, request: web.Request) -> web.Response:
        runs = self.runs()
        return await self._html(lambda: live_pages.overview_page(self.folders, runs))

    async def _run(self, request: web.Request) -> web.Response:
        ((name, run),) = self._chosen(request.query.getall("name", [])[:1]).items()
        return await self._html(lambda: live_pages.run_page(name, run.path))

    async def _compare(self, request: web.Request) -> web.Response:
        names = list(dict.fromkeys(request.query.getall("run", []))) or list(self.runs())
        if len(names) > MOST_COMPARED:
            raise web.HTTPBadRequest(text=f"at most {MOST_COMPARED} runs can be compared at once")
        chosen = {name: run.path for name, run in self._chosen(names).items()}
        return await self._html(lambda: live_pages.comparison_page(chosen))

    async def _runs(self, request: web.Request) -> web.Response:
        runs = self.runs()
        return await self._json(lambda: live_pages.overview(runs))

    async def _news(self, request: web.Request) -> web.Response:
        names, since = request.query.getall("run", []), request.query.getall("since", [])
        files = request.query.getall("files", [])
        if not len(names) == len(since) == len(files) or not all(map(_is_count, files)):
            raise web.HTTPBadRequest(text="each run needs its position and number of files")
        asked = list(zip(self._chosen(names).items(), since, files, strict=True))
        return await self._json(
            lambda: [
                live_pages.news(run, name, position, int(count), place)
                for place, ((name, run), position, count) in enumerate(asked)
            ]
        )

    async def _plan(self, request: web.Request) -> web.Response:
        chosen = self._chosen(request.query.getall("run", []))
        overlay = request.query.get("overlay") == "1"
        return await self._json(lambda: live_pages.plan(chosen.values(), overlay=overlay))

    async def _completions(self, request: web.Request) -> web.Response:
        ((_, run),) = self._chosen(request.query.getall("run", [])[:1]).items()
        step = request.query.get("step", "")
        if not _is_count(step):
            raise web.HTTPBadRequest(text="a step is a number")
        kind = request.query.get("kind", "")
        found = await asyncio.to_thread(read_step, run.path, kind, int(step))
        if found is None:
            raise web.HTTPNotFound(text="no such completions")
        return web.Response(text=found.text, content_type="application/json")

    async def _html(self, make: Callable[[], str]) -> web.Response:
        text = await self._made(make)
        response = web.Response(
            body=text.encode("utf-8", errors="replace"), content_type="text/html", charset="utf-8"
        )
        found = _POLICY.search(text)
        if found is None:
            raise AssertionError("a page without a policy")
        response.headers["Content-Security-Policy"] = f"{found[1]}; frame-ancestors 'none'"
        return response

    async def _json(self, make: Callable[[], Any]) -> web.Response:
        return web.Response(text=embed(await self._made(make)), content_type="application/json")

    async def _made(self, make: Callable[[], Any]) -> Any:  # noqa: ANN401
        """What ``make`` returns, computed beside the event loop.

        Raises:
            HTTPConflict: A run could not be read.
        """
        try:
            async with self._turn:
                return await asyncio.to_thread(make)
        except (ValueError, OSError) as error:
            raise web.HTTPConflict(text=f"a run could not be read: {error}") from error

    def _chosen(self, names: Sequence[str]) -> dict[str, WatchedRun]:
        """Runs by their names in the listing, each once.

        Raises:
            HTTPNotFound: No name was given, or one is not in the listing.
        """
        runs = self.runs()
        if not names or any(name not in runs for name in names) or len(set(names)) < len(names):
            raise web.HTTPNotFound(text="no such run")
        return {name: runs[name] for name in names}


def is_local_host(host: str) -> bool:
    """Whether a Host header names this machine's loopback, with any port (of a tunnel, say)."""
    try:
        return urlsplit(f"//{host}").hostname in LOCAL_NAMES
    except ValueError:
        return False


def check_host(host: str) -> str:
    """The address to listen on.

    Raises:
        ValueError: It is not one of loopback.
    """
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    if not local:
        raise ValueError(
            f"--host {host!r} is not an address of loopback, and the dashboard has no encryption; "
            "use 127.0.0.1, and from another machine open a tunnel: "
            "ssh -L PORT:127.0.0.1:PORT THIS_MACHINE"
        )
    return host


def new_key() -> str:
    """A key of 128 random bits for the address."""
    return secrets.token_urlsafe(16)


async def serve(
    folders: Sequence[Path],
    host: str,
    port: int,
    started: Callable[[str], None],
    stop: asyncio.Event,
    *,
    depth: int = DEPTH,
) -> None:
    """Serve the runs in ``folders`` until ``stop`` is set.

    Args:
        folders: Run folders, or folders that contain runs.
        host: Address of loopback.
        port: Port; 0 takes a free one.
        started: Called with the address to open.
        stop: Ends it.
        depth: How many folders below ``folders`` a run may be.

    Raises:
        ValueError: The host is not loopback.
        OSError: The port is taken.
    """
    dashboard = Dashboard(folders, new_key(), depth)
    runner = web.AppRunner(dashboard.application(), access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, check_host(host), port)
        await site.start()
        bound = runner.addresses[0]
        name = f"[{bound[0]}]" if ":" in bound[0] else bound[0]
        started(f"http://{name}:{bound[1]}/{dashboard.key}/")
        await stop.wait()
    finally:
        await runner.cleanup()


def run_until_stopped(
    folders: Sequence[Path],
    host: str,
    port: int,
    started: Callable[[str], None],
    *,
    depth: int = DEPTH,
    while_input_is_open: bool = False,
) -> None:
    """Serve until SIGINT or SIGTERM, see :func:`serve`.

    Args:
        folders: Run folders, or folders that contain runs.
        host: Address of loopback.
        port: Port; 0 takes a free one.
        started: Called with the address to open.
        depth: How many folders below ``folders`` a run may be.
        while_input_is_open: End also when the standard input does, as it does when the process
            that holds its other end dies, however that happens.

    Raises:
        ValueError: The host is not loopback, or the port cannot be had.
    """

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    async def go() -> None:
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        for number in before:
            loop.add_signal_handler(number, stop.set)
        if while_input_is_open:
            watch = threading.Thread(target=_wait_for_end_of_input, args=(loop, stop), daemon=True)
            watch.start()
        await serve(folders, host, port, started, stop, depth=depth)

    try:
        asyncio.run(go())
    except OSError as error:
        raise ValueError(
            f"--port {port} on {host} cannot be used ({error.strerror or error}); choose another, "
            "or 0 for a free one"
        ) from error
    finally:
        for number, handler in before.items():  # the loop leaves Python's own instead
            signal.signal(number, handler)


def _wait_for_end_of_input(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    while os.read(0, 4096):
        pass
    loop.call_soon_threadsafe(stop.set)


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 16
