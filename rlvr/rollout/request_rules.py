"""Which requests a server of ``rlvr serve`` lets through, and the form that their bodies have.

The clients are :class:`rlvr.rollout.server.Server` and
:class:`rlvr.rollout.weight_client.HTTPClient`: what they do not send is not let through. A rule
returns the body that is passed on, so nothing that it did not look at arrives.
"""

import json
import os
import tempfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlvr.rollout.settings import SHARED_MEMORY, WEIGHTS_PREFIX

FOLDER_VARIABLE = "RLVR_SERVE_WEIGHTS_FOLDER"
NCCL_VARIABLE = "RLVR_SERVE_NCCL"

_LONGEST_PATH = 4096
_ANYONE_WRITES = 0o002
_BRIEF = 2**14
# Bytes of a prompt of a million tokens, and of the names and shapes of a large model's weights.
_PROMPT = 2**24
_SHAPES = 2**26

# The methods of the workers that may be called, with the name of the path that each takes.
_METHODS = {
    **{"sees_weights": "folder", "reload_weights": "weights_path"},
    **dict.fromkeys(("note_weights", "noted_weights", "repack_output_heads")),
}
_NUMBERS = ("temperature", "top_p", "top_k", "max_tokens", "seed")
_FLAGS = ("ignore_eos", "detokenize")
_INIT = {
    **{"master_address": str, "master_port": int, "rank_offset": int, "world_size": int},
    **{"packed": bool, "packed_buffer_size_bytes": int, "packed_num_buffers": int},
}
_UPDATE = ("names", "dtype_names", "shapes")


class RefusedError(Exception):
    """A request that is not passed on.

    Args:
        status: Status of the answer.
        message: What is wrong, without the request's secrets.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Rule:
    """What the body of a request may be.

    Attributes:
        limit: Most bytes of the body; 0 is no body.
        check: Returns what is passed on of the decoded body; None if there is no body.
    """

    limit: int = 0
    check: Callable[[Any], Any] | None = None

    def checked(self, body: bytes) -> bytes:
        """The body that is passed on.

        Raises:
            RefusedError: It is not of the form.
        """
        if self.check is None:
            return b""
        try:
            found = json.loads(body, parse_constant=_no_number)
        except (ValueError, RecursionError):
            raise RefusedError(400, "the body is not JSON") from None
        return json.dumps(self.check(found)).encode()


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def rules_of_environment() -> dict[tuple[str, str], Rule]:
    """What passes, as ``rlvr serve`` noted it in the environment."""
    given = os.environ.get(FOLDER_VARIABLE)
    folders = [Path(given)] if given else [SHARED_MEMORY, Path(tempfile.gettempdir())]
    return rules(folders, nccl=os.environ.get(NCCL_VARIABLE) == "1")


def rules(folders: Sequence[Path], *, nccl: bool = False) -> dict[tuple[str, str], Rule]:
    """What passes, by method and path.

    Args:
        folders: Where the learner may create the folder of its weights.
        nccl: Whether weights come from GPU to GPU.
    """
    found = {
        ("GET", "/health"): Rule(),
        ("GET", "/version"): Rule(),
        ("GET", "/v1/models"): Rule(),
        ("POST", "/reset_prefix_cache"): Rule(),
        ("POST", "/inference/v1/generate"): Rule(_PROMPT, _generate),
        ("POST", "/collective_rpc"): Rule(_BRIEF, lambda body: _call(body, folders)),
    }
    if nccl:
        found |= {
            ("GET", "/get_world_size"): Rule(),
            ("POST", "/init_weight_transfer_engine"): Rule(_BRIEF, _init),
            ("POST", "/start_weight_update"): Rule(),
            ("POST", "/update_weights"): Rule(_SHAPES, _update),
            ("POST", "/finish_weight_update"): Rule(),
        }
    return found


def weights_path(text: Any, folders: Sequence[Path]) -> str:  # noqa: ANN401
    """The real path of the weights that ``text`` names; they need not exist.

    Raises:
        RefusedError: It is not ``FOLDER/rlvr-weights-NAME/model`` once links and ``..`` are
            resolved, or belongs to another user in a folder where everybody may write.
    """
    _require(isinstance(text, str) and len(text) <= _LONGEST_PATH, "a path must be a string")
    _require(text.isprintable() and text.startswith("/"), "a path must be absolute")
    real = Path(os.path.realpath(text))
    parent = real.parent.parent
    ours = real.name == "model" and real.parent.name.startswith(WEIGHTS_PREFIX)
    if not ours or parent not in [Path(os.path.realpath(folder)) for folder in folders]:
        agreed = " or ".join(map(str, folders))
        raise RefusedError(
            400,
            f"{text} is not a folder of weights in {agreed}; start the server with "
            "--weights-folder FOLDER, the recipe's rollout.engine.weights_folder",
        )
    _check_owner(real.parent, parent)
    return str(real)


def _check_owner(folder: Path, parent: Path) -> None:
    try:
        open_to_all, owner = parent.stat().st_mode & _ANYONE_WRITES, folder.stat().st_uid
    except OSError:
        return  # it is not there, which the worker says
    if open_to_all and owner != os.geteuid():
        raise RefusedError(400, f"{folder} belongs to another user; set --weights-folder")


def _call(body: Any, folders: Sequence[Path]) -> Any:  # noqa: ANN401
    _fields(body, ("method", "kwargs"))
    method = body["method"]
    _require(isinstance(method, str) and method in _METHODS, "not a method that may be called")
    name = _METHODS[method]
    _fields(body["kwargs"], () if name is None else (name,))
    if name is None:
        return body
    path = body["kwargs"][name]
    # An empty path asks only whether the workers have the method.
    if not (method == "sees_weights" and path == ""):
        path = weights_path(path, folders)
    return {"method": method, "kwargs": {name: path}}


def _generate(body: Any) -> Any:  # noqa: ANN401
    _fields(body, ("token_ids", "sampling_params"))
    _require(_all(int, body["token_ids"]), "token_ids must be a list of integers")
    sampling = body["sampling_params"]
    known = (*_NUMBERS, *_FLAGS, "stop_token_ids", "logprobs", "prompt_logprobs")
    _require(isinstance(sampling, dict), "sampling_params must be an object")
    for name, value in sampling.items():
        _require(name in known, "a sampling parameter that the engine does not set")
        _require(_sound(name, value), f"{name} has a value that the engine does not set")
    return body


def _sound(name: str, value: Any) -> bool:  # noqa: ANN401
    if name in _FLAGS:
        return isinstance(value, bool)
    if name in _NUMBERS:
        return type(value) in (int, float)
    # Log-probabilities of the tokens alone: those of others take memory.
    return _all(int, value) if name == "stop_token_ids" else type(value) is int and value == 0


def _init(body: Any) -> Any:  # noqa: ANN401
    _fields(body, ("init_info",))
    info = body["init_info"]
    _require(isinstance(info, dict), "init_info must be an object")
    for name, value in info.items():
        _require(name in _INIT and type(value) is _INIT[name], "not a field of an NCCL group")
    return body


def _update(body: Any) -> Any:  # noqa: ANN401
    _fields(body, ("update_info",))
    info = body["update_info"]
    _fields(info, _UPDATE)
    for name in ("names", "dtype_names"):
        _require(_all(str, info[name]), f"{name} must be a list of strings")
    shapes = info["shapes"]
    _require(isinstance(shapes, list), "shapes must be a list")
    _require(all(_all(int, shape) for shape in shapes), "a shape must be a list of integers")
    return body


def _fields(value: Any, names: Collection[str]) -> None:  # noqa: ANN401
    _require(
        isinstance(value, dict) and set(value) == set(names),
        f"an object must have exactly the fields: {', '.join(names) or 'none'}",
    )


def _all(kind: type, values: Any) -> bool:  # noqa: ANN401
    return isinstance(values, list) and all(type(value) is kind for value in values)


def _require(sound: bool, message: str) -> None:
    if not sound:
        raise RefusedError(400, message)
