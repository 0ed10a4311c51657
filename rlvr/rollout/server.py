"""A client of one ``vllm serve`` at a network address.

Token ids go in and out through ``/inference/v1/generate``; log-probabilities arrive as numbers. The
client checks every answer: a wrong answer counts as a failure of the server, like a missing one.
"""

import json
import math
from typing import Any

from packaging.version import InvalidVersion, Version

from rlvr.lazy import aiohttp
from rlvr.rollout.engine import Sample
from rlvr.rollout.serve import expected_version, start_hint
from rlvr.rollout.server_key import find_key
from rlvr.rollout.vllm_process import sampling_fields

# What vLLM writes if it has no log-probability.
_NO_LOGPROB = -9999.0
_OVERLOADED = (408, 429)
# Seconds for requests that a healthy server answers immediately.
_BRIEF_S = 10.0


class ServerFailedError(RuntimeError):
    """A request to a server failed; another server, or the same one later, may succeed.

    Attributes:
        gone: Whether there was no answer at all.
    """

    def __init__(self, message: str, *, gone: bool = False) -> None:
        super().__init__(message)
        self.gone = gone


class ServerRefusedError(ValueError):
    """A server is not set up as required; trying again would not help."""


class Server:
    """A server, what is known about it, and its current load.

    Args:
        address: ``http://HOST:PORT``.
        session: HTTP session of the event loop.
        key: API key, sent as a bearer token; None sends none until there is one.
        key_variable: Where the key comes from, for messages.
        timeout_s: Maximum seconds for any answer.

    Attributes:
        loaded: ``WeightStore.serial`` of the weights that it provably runs; 0 means none.
        examined: Whether its version and settings were checked since it was last out.
        in_flight: Number of completions that it is generating.
        strikes: Number of failures in a row.
        reason: Why it was last put out.
        longest: Longest sequence in tokens that it accepts, once examined.
    """

    def __init__(
        self,
        address: str,
        session: "aiohttp.ClientSession",
        key: str | None,
        key_variable: str,
        timeout_s: float,
    ) -> None:
        self.address = address.rstrip("/")
        self._session, self._key, self._key_variable = session, key, key_variable
        self._timeout_s = timeout_s
        self.loaded = 0
        self.examined = False
        self.in_flight = 0
        self.strikes = 0
        self.reason = "not contacted yet"
        self.longest: int | None = None

    def look_for_key(self) -> str | None:
        """The key; one that ``rlvr serve`` has made since is found, too.

        Raises:
            ValueError: The key that was found is unfit.
        """
        self._key = self._key or find_key(self._key_variable)
        return self._key

    async def health(self, timeout_s: float) -> None:
        """Check that it answers.

        Raises:
            ServerFailedError: It does not answer, or reports that its engine is dead.
        """
        await self._call("GET", "/health", timeout_s=timeout_s)

    async def examine(self) -> None:
        """Check that it runs with the options of :func:`~rlvr.rollout.serve.serve_command`.

        Raises:
            ServerRefusedError: It runs another version, lacks the key, returns raw
                log-probabilities, or has no endpoint for weights.
            ServerFailedError: It did not answer.
        """
        await self._check_version()
        models = await self._call("GET", "/v1/models", timeout_s=_BRIEF_S)
        try:
            self.longest = int(models["data"][0]["max_model_len"])
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise self._garbage("/v1/models", models) from error
        try:
            await self._remote("sees_weights", folder="")
        except ServerFailedError as error:
            if "no attribute" not in str(error):
                raise
            raise self._refused("its workers lack --worker-extension-cls") from error
        await self._check_logprobs()
        self.examined = True

    async def _check_version(self) -> None:
        answer = await self._call("GET", "/version", timeout_s=_BRIEF_S)
        try:
            theirs = Version(answer["version"]).release
        except (KeyError, TypeError, InvalidVersion) as error:
            raise self._garbage("/version", answer) from error
        if theirs != Version(expected_version()).release:
            raise ServerRefusedError(
                f"the server at {self.address} runs vLLM {answer['version']} but this side needs "
                f"{expected_version()}; install the same version on both"
            )

    async def _check_logprobs(self) -> None:
        """Near temperature 0 the processed log-probability of the sampled token is close to 0.

        The raw one is that of temperature 1, which the model also gives the same token in a prompt.
        """
        prompt = [1, 2, 3]
        sampling = {"temperature": 0.01, "top_p": 1.0, "top_k": 0, "max_tokens": 8, "stop_ids": []}
        sample = await self.generate(prompt, 0, sampling)
        raw = (await self.score([*prompt, *sample.token_ids]))[len(prompt) - 1 :]
        apart = sum(abs(a - b) for a, b in zip(sample.logprobs, raw, strict=True))
        if apart < 0.5 * sum(map(abs, raw)) - 0.05:
            raise self._refused(
                "it returns log-probabilities before the temperature (--logprobs-mode "
                "processed_logprobs is missing)"
            )

    async def reload(self, folder: str) -> None:
        """Load the weights of a Hugging Face folder; :meth:`repack` and drop the cache afterwards.

        Raises:
            ServerRefusedError: It cannot see the folder.
            ServerFailedError: The reload failed.
        """
        if await self._remote("sees_weights", folder=folder) != "True":
            raise ServerRefusedError(
                f"the server at {self.address} cannot see the weights in {folder}; set "
                "rollout.engine.weights_folder to a folder that all machines share"
            )
        await self._remote("reload_weights", weights_path=folder)

    async def note_weights(self) -> None:
        """Have its workers note what they are given; before :meth:`reload` or a transfer."""
        await self._remote("note_weights")

    async def noted_weights(self) -> list[dict[str, Any]]:
        """What each of its workers has noted (``WeightRepair.noted_weights``)."""
        found = await self._call_workers("noted_weights")
        for answer in found:
            sound = isinstance(answer, dict) and isinstance(answer.get("tensors"), dict)
            if not sound or not isinstance(answer.get("missed"), list):
                raise self._garbage("noted_weights", answer)
        return found

    async def cached_tokens(self, tokens: list[int]) -> int:
        """How many of a prompt's tokens its prefix cache answers; their blocks must be whole.

        Raises:
            ServerRefusedError: It does not say.
        """
        fields = {"temperature": 0.0, "max_tokens": 1, "detokenize": False, "ignore_eos": True}
        answer = await self._generate(tokens, fields)
        details = (answer.get("usage") or {}).get("prompt_tokens_details") or {}
        count = details.get("cached_tokens")
        if not isinstance(count, int):
            raise self._refused(
                "it does not say which tokens came from its cache (--enable-prompt-tokens-details "
                "is missing)"
            )
        return count

    async def repack(self) -> None:
        """After new weights: pack the output heads again."""
        await self._remote("repack_output_heads")

    async def drop_cache(self) -> None:
        """Drop the prefix cache, which old weights have filled.

        Raises:
            ServerFailedError: It is in use.
        """
        answer = await self._call("POST", "/reset_prefix_cache", timeout_s=self._timeout_s)
        if answer.get("success") is not True:
            raise ServerFailedError(f"{self.address}: its prefix cache is in use during a reload")

    async def world_size(self) -> int:
        """Number of devices of the server."""
        answer = await self._call("GET", "/get_world_size", timeout_s=_BRIEF_S)
        try:
            return int(answer["world_size"])
        except (KeyError, TypeError, ValueError) as error:
            raise self._garbage("/get_world_size", answer) from error

    async def score(self, tokens: list[int]) -> list[float]:
        """Log-probabilities of ``tokens[1:]`` at temperature 1."""
        fields = {"temperature": 0.0, "max_tokens": 1, "prompt_logprobs": 0, "detokenize": False}
        answer = await self._generate(tokens, {**fields, "ignore_eos": True})
        try:
            rows = zip(tokens[1:], answer["prompt_logprobs"][1:], strict=True)
            values = [float(row[str(token)]["logprob"]) for token, row in rows]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise self._garbage("the scored sequence", answer) from error
        return values

    async def generate(self, prompt: list[int], seed: int, sampling: dict[str, Any]) -> Sample:
        """Generate one completion; ``sampling`` has the fields of Sampling and stop_ids."""
        answer = await self._generate(prompt, sampling_fields(sampling, seed))
        try:
            (choice,) = answer["choices"]
            tokens = [int(token) for token in choice["token_ids"]]
            content = choice["logprobs"]["content"]
            logprobs = [float(row["logprob"]) for row in content]
            named = [row["token_id"] for row in content]
            finish = choice["finish_reason"]
        except (KeyError, TypeError, ValueError) as error:
            raise self._garbage("a completion", answer) from error
        sound = tokens and tokens == named and len(tokens) <= sampling["max_tokens"]
        numbers = all(math.isfinite(value) and value > _NO_LOGPROB for value in logprobs)
        if not (sound and numbers and finish in ("stop", "length")):
            raise self._garbage("a completion", answer)
        return Sample(tuple(tokens), tuple(logprobs), finish)

    async def _generate(self, prompt: list[int], fields: dict[str, Any]) -> dict[str, Any]:
        body = {"token_ids": prompt, "sampling_params": fields}
        return await self._call("POST", "/inference/v1/generate", body, timeout_s=self._timeout_s)

    async def _remote(self, method: str, **arguments: str) -> Any:  # noqa: ANN401
        """Call a method of its workers; return the first worker's result as text."""
        return (await self._call_workers(method, **arguments))[0]

    async def _call_workers(self, method: str, **arguments: str) -> list[Any]:
        """Call a method of its workers; return all results, dictionaries or text."""
        body = {"method": method, "kwargs": arguments}
        answer = await self._call("POST", "/collective_rpc", body, timeout_s=self._timeout_s)
        found = answer.get("results")
        if not isinstance(found, list) or not found:
            raise self._garbage(method, answer)
        return found

    async def _call(
        self,
        verb: str,
        path: str,
        body: dict[str, Any] | None = None,
        *,
        timeout_s: float,
    ) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with self._session.request(
                verb, self.address + path, json=body, headers=headers, timeout=timeout
            ) as response:
                status, text = response.status, await response.text(errors="replace")
        except TimeoutError as error:
            message = f"{self.address}: no answer from {path} within {timeout_s:g} s"
            raise ServerFailedError(message, gone=True) from error
        except (aiohttp.ClientError, OSError) as error:
            message = f"{self.address}: {type(error).__name__} at {path}: {_brief(str(error))}"
            raise ServerFailedError(message, gone=True) from error
        return self._understand(path, status, text)

    def _understand(self, path: str, status: int, text: str) -> dict[str, Any]:
        if status == 401:
            state = "rejects the API key in" if self._key else "asks for an API key; set"
            raise ServerRefusedError(
                f"the server at {self.address} {state} the environment variable "
                f"{self._key_variable}; it must be the key with which the server was started"
            )
        if status in (403, 404):
            raise self._refused(f"it has no {path} (status {status})")
        if status >= 500 or status in _OVERLOADED:
            raise ServerFailedError(f"{self.address}: status {status} at {path}: {_brief(text)}")
        if status >= 400:
            raise ServerRefusedError(f"{self.address} refuses {path}: {_brief(text)}")
        if path == "/health":
            return {}
        try:
            answer = json.loads(text)
        except json.JSONDecodeError as error:
            raise self._garbage(path, text) from error
        if not isinstance(answer, dict):
            raise self._garbage(path, text)
        return answer

    def _garbage(self, what: str, answer: Any) -> ServerFailedError:  # noqa: ANN401
        return ServerFailedError(
            f"{self.address}: its answer about {what} makes no sense: {_brief(str(answer))}"
        )

    def _refused(self, why: str) -> ServerRefusedError:
        return ServerRefusedError(
            f"the server at {self.address} is not set up as required: {why}; "
            f"{start_hint(self.address)}"
        )


def _brief(text: str) -> str:
    return " ".join(text.split())[:300]
