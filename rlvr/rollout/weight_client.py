"""The steps of a transfer from GPU to GPU, as requests to a server with its key."""

import http.client
import json
from typing import Any
from urllib.parse import urlsplit

from rlvr.rollout.server import ServerFailedError


class HTTPClient:
    """vLLM's weight-sync client over HTTP; vLLM's own sends no key.

    Args:
        address: Address of the server.
        key: The server's key; None sends none.
        timeout_s: Maximum seconds for one request.
    """

    def __init__(self, address: str, key: str | None, timeout_s: float) -> None:
        self._address, self._timeout_s = address, timeout_s
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """See vLLM's ``VLLMWeightSyncClient``."""
        self._post("init_weight_transfer_engine", {"init_info": init_info})

    def start_weight_update(self) -> None:
        """See vLLM's ``VLLMWeightSyncClient``."""
        self._post("start_weight_update")

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """See vLLM's ``VLLMWeightSyncClient``."""
        self._post("update_weights", {"update_info": update_info})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """See vLLM's ``VLLMWeightSyncClient``; the versions are ours."""
        self._post("finish_weight_update")

    def _post(self, step: str, body: dict[str, Any] | None = None) -> None:
        parts = urlsplit(self._address)
        encrypted = parts.scheme == "https"
        kind = http.client.HTTPSConnection if encrypted else http.client.HTTPConnection
        connection = kind(parts.hostname or "", parts.port, timeout=self._timeout_s)
        text = None if body is None else json.dumps(body)
        try:
            connection.request("POST", f"/{step}", text, self._headers)
            answer = connection.getresponse()
            said = answer.read().decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            message = f"{self._address}: {type(error).__name__} at /{step}"
            raise ServerFailedError(message, gone=True) from error
        finally:
            connection.close()
        if answer.status != 200:
            raise ServerFailedError(
                f"{self._address}: status {answer.status} at /{step}: {said[:300]}"
            )
