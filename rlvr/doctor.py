"""Check what is installed, what this machine has and whether it works, and name remedies.

Imports that may crash, hang or take seconds (transformers' models, vLLM, DeepSpeed) are tried in
separate processes with a time limit, so that a broken package is a finding and does not end the
check. The findings never contain a secret: of a token they only say whether it exists.

It does not check whether a GPU is fast or whether a model fits into its memory.
"""

import concurrent.futures
import io
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement
from packaging.version import InvalidVersion, Version
from rich.console import Console
from rich.table import Table

from rlvr.install_hints import VLLM_INSTALL, VLLM_PACKAGES, fault_and_remedy, vllm_reinstall

Status = Literal["ok", "missing", "broken", "note"]

_DISTRIBUTION = "rlvr"
_LEAST_PYTHON = (3, 11)
_GIB = 1024**3
_LOW_DISK_GIB = 10
_LOW_MEMORY_GIB = 4
_GPU_DRIVER = Path("/proc/driver/nvidia/version")
_STYLES: dict[Status, str] = {"ok": "green", "missing": "red", "broken": "red", "note": "yellow"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was checked, with a remedy if something must be done."""

    name: str
    status: Status
    detail: str
    remedy: str | None = None


def diagnose(folder: Path = Path("."), timeout_s: float = 120.0) -> list[Finding]:
    """Check Python, packages, devices, disk, optional engines, browser and Hub access.

    Args:
        folder: Where runs will be written; its disk is checked.
        timeout_s: Time limit in seconds for each import that is tried in a separate process.
    """
    groups, origin = _requirements()
    with concurrent.futures.ThreadPoolExecutor() as pool:
        probes = [
            pool.submit(look, timeout_s)
            for look in (_transformers_finding, _vllm_finding, _deepspeed_finding)
        ]
        found = [
            _python_finding(sys.version_info[:3]),
            origin,
            *(_package_finding(requirement) for requirement in groups.pop("", [])),
            *(_extra_finding(extra, members) for extra, members in groups.items()),
            *_device_findings(),
            _disk_finding(folder),
            _shared_memory_finding(),
        ]
        found += [probe.result() for probe in probes]
    return [*found, _browser_finding(), *_hub_findings(os.environ)]


def is_healthy(findings: Iterable[Finding]) -> bool:
    """Whether nothing required is missing or broken; the command then exits with 0, otherwise with
    1."""
    return all(finding.status in ("ok", "note") for finding in findings)


def findings_table(findings: Iterable[Finding]) -> Table:
    """The findings as a table for rich."""
    result = Table("", "what", "found", "remedy", box=None, pad_edge=False)
    for finding in findings:
        status = f"[{_STYLES[finding.status]}]{finding.status}[/]"
        result.add_row(status, finding.name, _plain(finding.detail), _plain(finding.remedy or ""))
    return result


def render_findings(findings: Sequence[Finding], width: int = 120) -> str:
    """The table as plain text, with a final line that sums it up."""
    console = Console(file=io.StringIO(), width=width, no_color=True, highlight=False)
    console.print(findings_table(findings))
    faults = [item for item in findings if item.status in ("missing", "broken")]
    names = ", ".join(item.name for item in faults)
    console.print(f"{len(faults)} to fix: {names}" if faults else "everything required works")
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def _plain(text: str) -> str:
    """Escape square brackets, which are extras of packages here but markup for rich."""
    return text.replace("[", r"\[")


# Python and packages.


def _python_finding(version: Sequence[int]) -> Finding:
    text = ".".join(str(part) for part in version)
    least = ".".join(str(part) for part in _LEAST_PYTHON)
    if tuple(version[:2]) < _LEAST_PYTHON:
        remedy = f"create an environment with Python {least} or later"
        return Finding("python", "broken", f"{text} is older than {least}", remedy)
    return Finding("python", "ok", f"{text} on {platform.system()} {platform.machine()}")


def _requirements() -> tuple[dict[str, list[Requirement]], Finding]:
    """Requirements of the distribution by extra ("" for the required ones).

    For a checkout that is not installed, they come from its pyproject.toml. The engines' extras are
    skipped, because one excludes the other; they have a separate finding.
    """
    try:
        version = metadata.version(_DISTRIBUTION)
        groups = _grouped(metadata.requires(_DISTRIBUTION) or [])
        return groups, Finding(_DISTRIBUTION, "ok", version)
    except metadata.PackageNotFoundError:
        pass
    project = Path(__file__).resolve().parents[1] / "pyproject.toml"
    remedy = "pip install -e . (in the checkout)"
    if not project.is_file():
        return {}, Finding(_DISTRIBUTION, "broken", "not installed as a distribution", remedy)
    declared = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
    texts = list(declared["dependencies"])
    for extra, members in declared.get("optional-dependencies", {}).items():
        texts += [f"{text}{' and' if ';' in text else ';'} extra == '{extra}'" for text in members]
    detail = "runs from a checkout that is not installed (there is no command rlvr)"
    return _grouped(texts), Finding(_DISTRIBUTION, "note", detail, remedy)


def _grouped(texts: Iterable[str]) -> dict[str, list[Requirement]]:
    groups: dict[str, list[Requirement]] = {}
    for text in texts:
        requirement = Requirement(text)
        extra = re.search(r"extra == ['\"]([^'\"]+)", text)
        name = extra.group(1) if extra else ""
        marker = requirement.marker
        if name not in VLLM_PACKAGES and (marker is None or marker.evaluate({"extra": name})):
            groups.setdefault(name, []).append(requirement)
    return groups


def _package_finding(requirement: Requirement) -> Finding:
    installed = _installed(requirement.name)
    install = f"pip install '{requirement.name}{requirement.specifier}'"
    if installed is None:
        return Finding(requirement.name, "missing", "not installed", install)
    if not _fits(requirement, installed):
        detail = f"{installed} is installed, {requirement.specifier} is needed"
        return Finding(requirement.name, "broken", detail, install)
    return Finding(requirement.name, "ok", installed)


def _extra_finding(extra: str, members: Sequence[Requirement]) -> Finding:
    versions = {item.name: _installed(item.name) for item in members}
    wrong = [
        f"{item.name} {versions[item.name]} (needs {item.specifier})"
        for item in members
        if versions[item.name] is not None and not _fits(item, str(versions[item.name]))
    ]
    absent = [name for name, version in versions.items() if version is None]
    name, install = f"extra {extra}", f"pip install '{_DISTRIBUTION}[{extra}]'"
    if not wrong and not absent:
        detail = ", ".join(f"{package} {version}" for package, version in versions.items())
        return Finding(name, "ok", detail)
    parts = [f"another version: {', '.join(wrong)}"] if wrong else []
    parts += [f"not installed: {', '.join(absent)}"] if absent else []
    return Finding(name, "note", "; ".join(parts), install)


def _reinstall(name: str) -> str:
    """The command that reinstalls the package in the required version."""
    asked = _requirements()[0].get("", [])
    pin = next((str(item.specifier) for item in asked if item.name == name), "")
    return f"pip install --force-reinstall --no-deps '{name}{pin}'"


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _fits(requirement: Requirement, installed: str) -> bool:
    try:
        return requirement.specifier.contains(Version(installed), prereleases=True)
    except InvalidVersion:
        return False


# The machine.


def _device_findings() -> Iterator[Finding]:
    import psutil

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("cpu", "ok", f"{cores} cores{_cpu_bf16()}")
    memory = psutil.virtual_memory()
    detail = f"{memory.total / _GIB:.1f} GiB, {memory.available / _GIB:.1f} GiB of it free"
    if memory.available < _LOW_MEMORY_GIB * _GIB:
        yield Finding("memory", "note", detail, "close other programs or choose a smaller model")
    else:
        yield Finding("memory", "ok", detail)
    yield from _gpu_findings()


def _cpu_bf16() -> str:
    info = Path("/proc/cpuinfo")
    flags = info.read_text(errors="replace") if info.is_file() else ""
    found = [name for name in ("amx_bf16", "avx512_bf16") if name in flags]
    return f", bf16 instructions {' and '.join(found)}" if found else ", bf16 without instructions"


def _gpu_findings() -> Iterator[Finding]:
    driver = shutil.which("nvidia-smi") is not None or _GPU_DRIVER.exists()
    try:
        import torch
    except (ImportError, OSError, RuntimeError) as error:
        yield Finding(
            "gpu",
            "broken",
            f"torch cannot be imported: {_last_line(str(error))}",
            _reinstall("torch"),
        )
        return
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            yield _gpu_finding(torch, index)
    elif driver:
        build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a CPU build"
        yield Finding(
            "gpu",
            "broken",
            f"there is a driver, but torch ({build}) sees no GPU",
            "install torch from PyPI's CUDA build and check nvidia-smi",
        )
    else:
        yield Finding("gpu", "note", "none; everything runs on the CPU")


def _gpu_finding(torch: Any, index: int) -> Finding:  # noqa: ANN401  (a module)
    properties = torch.cuda.get_device_properties(index)
    free, total = torch.cuda.mem_get_info(index)
    # Hardware supports bf16 from compute capability 8 on.
    bf16 = "bf16" if properties.major >= 8 else "no bf16 (train in float32 or float16)"
    detail = f"{properties.name}, {total / _GIB:.0f} GiB, {free / _GIB:.0f} GiB free, {bf16}"
    return Finding(f"gpu {index}", "ok" if properties.major >= 8 else "note", detail)


def _disk_finding(folder: Path) -> Finding:
    place = folder.resolve()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free / _GIB
    detail = f"{free:.1f} GiB free at {place}"
    if free < _LOW_DISK_GIB:
        return Finding("disk", "note", detail, "free some space, or keep fewer checkpoints")
    return Finding("disk", "ok", detail)


def _shared_memory_finding() -> Finding:
    place = Path("/dev/shm")
    if not place.is_dir():
        return Finding("shared memory", "note", "no /dev/shm; weights go to vLLM through the disk")
    free = shutil.disk_usage(place).free / _GIB
    return Finding("shared memory", "ok", f"{free:.1f} GiB free at {place}")


# Checks that must run in a separate process.


@dataclass(frozen=True, slots=True)
class _Attempt:
    """The result of running some code: its output, or the reason why there is none."""

    output: str | None
    reason: str = ""
    errors: str = ""


def _attempt(code: str, timeout_s: float, extra_env: Mapping[str, str] | None = None) -> _Attempt:
    """Run code in a new interpreter, and kill everything that it started when the time is up."""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, **(extra_env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return _Attempt(None, f"the import did not finish within {timeout_s:g} s")
    if process.returncode == 0:
        return _Attempt(_last_line(output))
    if process.returncode < 0:
        reason = f"the import was killed by {signal.Signals(-process.returncode).name}"
    else:
        reason = _last_line(errors)
    return _Attempt(None, reason, errors)


def _failed(name: str, attempt: _Attempt, remedy: str) -> Finding:
    """The finding of a failed attempt; known faults have specific remedies."""
    known = fault_and_remedy(attempt.errors)
    if known is not None:
        return Finding(name, "broken", *known)
    return Finding(name, "broken", attempt.reason, remedy)


def _transformers_finding(timeout_s: float) -> Finding:
    name = "transformers models"
    code = "from transformers import LlamaForCausalLM; print('Llama can be imported')"
    attempt = _attempt(code, timeout_s)
    if attempt.output is None:
        return _failed(name, attempt, _reinstall("transformers"))
    return Finding(name, "ok", attempt.output)


def _vllm_finding(timeout_s: float) -> Finding:
    packages = [name for name in VLLM_PACKAGES if _installed(name) is not None]
    if not packages:
        detail = "not installed; the transformers engine generates instead"
        return Finding("vllm", "note", detail, VLLM_INSTALL)
    code = "import vllm; from vllm import LLM, SamplingParams; print(vllm.__version__)"
    attempt = _attempt(code, timeout_s)
    if attempt.output is None:
        return _failed("vllm", attempt, vllm_reinstall(packages[0]))
    return Finding("vllm", "ok", f"{attempt.output} can be imported")


def _deepspeed_finding(timeout_s: float) -> Finding:
    code = (
        "import deepspeed, torch.utils.cpp_extension as c;"
        "print(deepspeed.__version__, c.is_ninja_available())"
    )
    if _installed("deepspeed") is None:
        return Finding("deepspeed ops", "missing", "not installed", _reinstall("deepspeed"))
    attempt = _attempt(code, timeout_s, {} if _GPU_DRIVER.exists() else {"DS_ACCELERATOR": "cpu"})
    if attempt.output is None:
        return _failed("deepspeed ops", attempt, _reinstall("deepspeed"))
    version, _, ninja = attempt.output.partition(" ")
    absent = [] if ninja == "True" else ["ninja"]
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++")):
        absent.append("a C++ compiler")
    if absent:
        detail = f"{version} can be imported, but lacks {' and '.join(absent)} to build its kernels"
        return Finding("deepspeed ops", "note", detail, "apt-get install g++; pip install ninja")
    return Finding(
        "deepspeed ops", "ok", f"{version} can be imported, ninja and a compiler are available"
    )


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "no message"


# Browser and Hub.


def _browser_finding() -> Finding:
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    browser = next((name for name in names if shutil.which(name)), None)
    driver = shutil.which("chromedriver")
    if browser and driver:
        return Finding("browser", "ok", f"{browser} and chromedriver (tests of the report page)")
    absent = " and ".join(
        name for name, there in (("chromium", browser), ("chromedriver", driver)) if not there
    )
    return Finding(
        "browser",
        "note",
        f"no {absent}; the report's browser tests cannot run (reports themselves need none)",
        "apt-get install chromium chromium-driver",
    )


def _hub_findings(environment: Mapping[str, str]) -> Iterator[Finding]:
    offline = environment.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    if offline:
        detail = "HF_HUB_OFFLINE is set: models and data come from local folders and the cache"
        yield Finding("hub", "note", detail, "unset HF_HUB_OFFLINE to download")
    else:
        other = " at another HF_ENDPOINT" if environment.get("HF_ENDPOINT") else ""
        yield Finding("hub", "ok", f"downloads are allowed{other} (not tried)")
    from huggingface_hub import get_token

    present = get_token() is not None
    detail = "present" if present else "none; private models and uploads need one"
    yield Finding(
        "hub token",
        "ok" if present else "note",
        detail,
        None if present else "hf auth login, or set HF_TOKEN",
    )
