"""A real HTTP server that speaks vLLM's endpoints, and fails as it is told to.

Completions are a function of the seed alone. What it says about the proof is what it is given.
"""

import json
import random
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from safetensors.torch import load_file

from rlvr.rollout.arrival import noted


class FakeServer:
    """Serves on loopback from its making until :meth:`stop`; the attributes say how it behaves."""

    def __init__(self, scores, port=0):
        self.scores = scores
        self.version = "0.32.0"
        self.max_model_len = 512
        self.key = None
        self.raw_logprobs = False
        self.missing_paths = ()
        self.broken_health = False
        self.fault = None  # "500", "garbage", "hang": at completions
        self.pause_s = 0.0
        self.extension = True
        self.sees = True
        self.noted, self.overlooks = {}, None  # an overlooked tensor does not arrive
        self.cached = 0
        self.calls = []
        self.completed = []
        self.busy = self.most_busy = 0
        self._lock = threading.Lock()
        self._httpd = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self._httpd.daemon_threads = True
        self._httpd.block_on_close = False
        threading.Thread(target=self._httpd.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def port(self):
        return self._httpd.server_address[1]

    @property
    def address(self):
        return f"http://127.0.0.1:{self.port}"

    def stop(self):
        self._httpd.shutdown()
        self._httpd.server_close()

    def answer(self, path, headers, body):
        """(status, object or bytes) for a request."""
        if path in self.missing_paths:
            return 404, {"detail": "Not Found"}
        guarded = path.startswith(("/v1", "/inference"))
        if self.key and guarded and headers.get("Authorization") != f"Bearer {self.key}":
            return 401, {"error": "Unauthorized"}
        if path == "/health":
            return (503, {}) if self.broken_health else (200, {})
        if path == "/version":
            return 200, {"version": self.version}
        if path == "/v1/models":
            return 200, {"data": [{"max_model_len": self.max_model_len}]}
        if path == "/reset_prefix_cache":
            self.calls.append("reset_prefix_cache")
            return 200, {"success": True}
        if path == "/collective_rpc":
            return self.rpc(body)
        return self.generate(body)

    def rpc(self, body):
        method = body["method"]
        if not self.extension and method in ("sees_weights", "note_weights", "repack_output_heads"):
            return 500, {"error": {"message": f"'CPUWorker' object has no attribute '{method}'"}}
        self.calls.append(method)
        if method == "reload_weights" and self.sees:
            tensors = load_file(Path(body["kwargs"]["weights_path"]) / "model.safetensors")
            tensors.pop(self.overlooks, None)
            self.noted = {name: noted(tensor) for name, tensor in tensors.items()}
        if method == "noted_weights":
            return 200, {"results": [{"tensors": self.noted, "missed": []}]}
        return 200, {"results": [str(self.sees)]}

    def generate(self, body):
        tokens, sampling = body["token_ids"], body["sampling_params"]
        if "prompt_logprobs" in sampling:
            fixed = [-2.0] * (len(tokens) - 1)  # of the look at whether log-probabilities are raw
            scores = self.scores if len(tokens) == len(self.scores) + 1 else fixed
            rows = [{str(t): {"logprob": v}} for t, v in zip(tokens[1:], scores, strict=True)]
            return 200, {"prompt_logprobs": [None, *rows]}
        if sampling["temperature"] == 0.0:
            return 200, {"usage": {"prompt_tokens_details": {"cached_tokens": self.cached}}}
        if sampling["temperature"] == 0.01:
            return 200, completion([5] * 8, [-2.0 if self.raw_logprobs else -0.001] * 8)
        return self.sample(sampling)

    def sample(self, sampling):
        with self._lock:
            self.busy += 1
            self.most_busy = max(self.busy, self.most_busy)
        try:
            time.sleep(self.pause_s)
            if self.fault == "hang":
                time.sleep(60)
            if self.fault == "500":
                return 500, {"error": {"message": "out of luck"}}
            if self.fault == "garbage":
                return 200, b"<html>not what was asked for</html>"
            self.completed.append(sampling["seed"])
            return 200, completion(*expected(sampling["seed"], sampling["max_tokens"]))
        finally:
            with self._lock:
                self.busy -= 1

    def _handler(server):
        class Handler(BaseHTTPRequestHandler):
            def respond(self):
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                status, answer = server.answer(self.path, self.headers, body)
                data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                try:
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                except OSError:
                    pass  # nobody waits for it any more

            do_GET = do_POST = respond

            def log_message(self, *_):
                pass

        return Handler


def expected(seed, max_tokens):
    """(tokens, logprobs) of the completion of ``seed``."""
    generator = random.Random(seed)
    tokens = [generator.randrange(3, 80) for _ in range(max_tokens)]
    return tokens, [-generator.random() for _ in tokens]


def completion(tokens, logprobs):
    content = [{"token_id": t, "logprob": v} for t, v in zip(tokens, logprobs, strict=True)]
    choice = {"token_ids": tokens, "logprobs": {"content": content}, "finish_reason": "length"}
    return {"choices": [choice]}
