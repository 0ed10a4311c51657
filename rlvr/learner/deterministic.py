"""Operations that give the same bits every time, on a GPU too (``deterministic: true``).

On a GPU some operations add numbers in an order that changes from call to call, among them the
backward passes of embeddings and of flash attention, and so do matrix products whose workspace is
shared by streams. PyTorch has slower forms of most, which this asks for:
https://docs.pytorch.org/docs/stable/notes/randomness.html

Not covered: kernels from outside PyTorch that keep to no such rule (``model.liger``, quantised
weights), vLLM, whose samples depend on how requests fall into batches, and another GPU, driver or
version. It has not been tried on a GPU, because there was none.
"""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
# Those with which cuBLAS is deterministic; the first needs 24 MiB more and is faster.
_WORKSPACES = (":4096:8", ":16:8")
_FLASH = "FLASH_ATTENTION_DETERMINISTIC"
_LACKING = re.compile(r"(\S+) does not have a deterministic implementation")
_CUBLAS_LACKING = "this operation is not deterministic because it uses CuBLAS"


@contextmanager
def deterministic_algorithms(wanted: bool) -> Iterator[None]:
    """While the block runs, have this process use deterministic operations alone, if ``wanted``.

    Enter it before CUDA begins. The switches are the process's, and go back when the block ends.

    Raises:
        ValueError: CUDA has begun without the workspace that cuBLAS then needs, or the block used
            an operation that has no deterministic form.
    """
    if not wanted:
        yield
        return
    variables = {CUBLAS: _workspace(), _FLASH: "1"}
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    with _environment(variables):
        try:
            torch.use_deterministic_algorithms(True)
            torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
            yield
        except Exception as error:  # the boundary of the run
            operation = _without_deterministic_form(error)
            if operation is None:
                raise
            raise ValueError(
                f"deterministic = true, but {operation} has no deterministic implementation on "
                "this device; set deterministic=false, or leave out what uses it"
            ) from error
        finally:
            torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
            torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn


@contextmanager
def one_thread(wanted: bool) -> Iterator[None]:
    """While the block runs, have PyTorch compute in one thread of a CPU, if ``wanted``.

    MKL splits matrix products by threads, and their bits with them (docs/exactness.md); how many
    threads a process has depends on the launch. On a GPU nothing is changed.
    """
    before = torch.get_num_threads()
    if not wanted or torch.cuda.is_available():
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _workspace() -> str:
    """The workspace that cuBLAS is to use, which it reads when CUDA begins."""
    chosen = os.environ.get(CUBLAS)
    if chosen is not None and chosen not in _WORKSPACES:
        raise ValueError(
            f"deterministic = true needs {CUBLAS} = {' or '.join(_WORKSPACES)}, but the "
            f"environment has {chosen!r}; unset it"
        )
    if chosen is None and torch.cuda.is_initialized():
        raise ValueError(
            f"deterministic = true has to come before CUDA, which this program uses already; set "
            f"{CUBLAS}={_WORKSPACES[0]} in the environment and start Python again"
        )
    return chosen or _WORKSPACES[0]


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _without_deterministic_form(error: BaseException | None) -> str | None:
    """The operation for whose sake the error, or one that it comes from, was raised."""
    while error is not None:
        if isinstance(error, RuntimeError):
            if found := _LACKING.search(str(error)):
                return found[1]
            if _CUBLAS_LACKING in str(error):
                return "a matrix product of cuBLAS"
        error = error.__cause__ or error.__context__
    return None
