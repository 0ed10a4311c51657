"""What a vLLM server answers: the requests of the ``vllm_server`` engine with the key, no others.

The engine needs vLLM's development mode, whose endpoints call any method of the workers, among
them such that write files, and are not protected by vLLM's key. ``rlvr serve`` therefore puts this
ASGI middleware around vLLM's application (``--middleware``). It runs in the server's own process,
so that there is no second port behind it.

1. Everything needs the key, ``/health`` included: 401 without it.
2. With the key, only the engine's requests pass (:mod:`rlvr.rollout.request_rules`): 404 for other
   paths, methods and queries, 413 for a body that is too large, 400 for one of another form.
3. What passes is the body as this side read it, encoded again, and with it only the headers that
   vLLM needs: the two sides cannot read one request differently.

Not covered: the traffic is not encrypted, and whoever has the key can replace the weights. Ports
that vLLM's processes open among themselves do not pass through here.
"""

import hashlib
import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from rlvr.rollout.request_rules import RefusedError, Rule, rules_of_environment
from rlvr.rollout.server_key import KEY_VARIABLE, find_key, key_file

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_PASSED_ON = (b"host", b"authorization")
_POLICY_VIOLATION = 1008


class RequestFilter:
    """Middleware around vLLM's application.

    Args:
        app: The application.
        key: The key; None finds it as :func:`~rlvr.rollout.server_key.find_key` does.
        rules: What passes, by method and path; None is what ``rlvr serve`` agreed to.

    Raises:
        ValueError: There is no key, so the server does not start.
    """

    def __init__(
        self, app: App, key: str | None = None, rules: dict[tuple[str, str], Rule] | None = None
    ) -> None:
        key = key or find_key()
        if key is None:
            raise ValueError(f"no key for the server: set {KEY_VARIABLE}, or write {key_file()}")
        self._app = app
        self._key = _digest(key.encode())
        self._rules = rules_of_environment() if rules is None else rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass the request on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
            return
        try:
            self._check_key(scope)
            rule = self._rule(scope)
            body = rule.checked(await _read(receive, _length(scope), rule.limit))
        except RefusedError as refused:
            await _answer(send, refused)
            return
        await self._app(_clean(scope, body), _replay(body, receive), send)

    def _check_key(self, scope: Scope) -> None:
        values = [value for name, value in scope["headers"] if name == b"authorization"]
        scheme, _, sent = values[0].partition(b" ") if len(values) == 1 else (b"", b"", b"")
        # Digests, so that the time of the comparison tells nothing of the key, nor of its length.
        same = hmac.compare_digest(_digest(sent), self._key)
        if not (same and scheme.lower() == b"bearer"):
            raise RefusedError(401, "the key is missing or wrong")

    def _rule(self, scope: Scope) -> Rule:
        rule = self._rules.get((scope["method"], scope["path"]))
        if rule is None or scope["query_string"]:
            raise RefusedError(404, "not one of the requests that rlvr serve answers")
        return rule


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _length(scope: Scope) -> int:
    """The announced length of the body in bytes; 0 if there is none."""
    values = [value for name, value in scope["headers"] if name == b"content-length"]
    try:
        return max((int(value) for value in values), default=0)
    except ValueError:
        raise RefusedError(400, "the length of the body is not a number") from None


async def _read(receive: Receive, announced: int, limit: int) -> bytes:
    """The whole body, of which at most ``limit`` bytes and the last chunk are ever held."""
    body = bytearray()
    more = True
    while more:
        if max(announced, len(body)) > limit:
            raise RefusedError(413, f"the body has more than {limit} bytes")
        message = await receive()
        if message["type"] != "http.request":
            raise RefusedError(400, "the client left before its request was complete")
        body += message.get("body", b"")
        more = message.get("more_body", False)
    if len(body) > limit:
        raise RefusedError(413, f"the body has more than {limit} bytes")
    return bytes(body)


def _clean(scope: Scope, body: bytes) -> Scope:
    """The scope with no other headers than vLLM needs."""
    headers = [(name, value) for name, value in scope["headers"] if name in _PASSED_ON]
    headers.append((b"content-length", str(len(body)).encode()))
    if body:
        headers.append((b"content-type", b"application/json"))
    return {**scope, "headers": headers}


def _replay(body: bytes, receive: Receive) -> Receive:
    """Give ``body`` once, and then what comes, such as that the client has left."""
    unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return unread.pop() if unread else await receive()

    return replayed


async def _answer(send: Send, refused: RefusedError) -> None:
    body = json.dumps({"error": {"message": str(refused)}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if refused.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
