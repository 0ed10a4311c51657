"""The sandbox: what programs cannot do, how they end, and that nothing of them is left."""

import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from reward.sandbox import box, layout, ways
from reward.sandbox.box import Box, SandboxError
from reward.sandbox.layout import folders, packages
from reward.sandbox.limits import Limits
from reward.sandbox.seccomp import instructions
from reward.sandbox.ways import way_of
from reward.sandbox.zygote import Zygote
from reward.verdict import GradingPolicy
from tests.reward.programs import (
    ESCAPES,
    FORGERIES,
    HONEST,
    HONEST_RUNS,
    escape_faults,
    forgery_faults,
    honest_faults,
    witnesses,
)

ROOT = Path(__file__).parents[2]


def works_here() -> str:
    """Why no sandbox works on this machine, or an empty text."""
    try:
        way_of("auto")
    except ValueError as error:
        return str(error)
    return ""


needs_sandbox = pytest.mark.skipif(bool(works_here()), reason=works_here())


@pytest.fixture(scope="module")
def named():
    with witnesses() as named:
        yield named


def run(program, stdin="", packages=False, **limits):
    with Box(way_of("auto"), Limits(**limits), packages) as box:
        return box.run(program, stdin)


@needs_sandbox
@pytest.mark.parametrize("name", ESCAPES)
def test_nothing_gets_out(name, named):
    assert escape_faults(name, way_of("auto"), named) == []


@needs_sandbox
@pytest.mark.parametrize("name", FORGERIES)
def test_a_forgery_gets_no_credit(name):
    assert forgery_faults(name, GradingPolicy(), ("runs", "assertions")) == []


@needs_sandbox
@pytest.mark.slow
@pytest.mark.parametrize("name", FORGERIES)
def test_a_forgery_gets_no_credit_for_other_tests(name):
    assert forgery_faults(name, GradingPolicy(), ("calls", "check")) == []


@needs_sandbox
@pytest.mark.parametrize("name", [*HONEST, *(f"run_{name}" for name in HONEST_RUNS)])
def test_a_right_program_is_right(name):
    assert honest_faults(name, GradingPolicy()) == []


def test_escapes_are_noticed_where_there_are_no_walls(named):
    """The corpus can fail: a way without walls lets out those that need none broken."""
    way = way_of("none_i_trust_the_code")
    for name in ("reads_the_host's_file", "symbolic_link", "other_folders", "starts_programs"):
        assert escape_faults(name, way, named), name


@needs_sandbox
@pytest.mark.parametrize(
    ("finish", "program", "limits"),
    [
        ("ok", "print(input())", {}),
        ("crashed", "raise ValueError", {}),
        ("crashed", "exit(3)", {}),
        ("crashed", "import ctypes\nctypes.string_at(0)", {}),
        ("timeout", "while True:\n    pass", {"seconds": 0.3}),
        ("timeout", "import time\ntime.sleep(9)", {"seconds": 0.3}),
        ("memory", "bytearray(10**9)", {}),
        ("memory", "x = []\nwhile True:\n    x.append(' ' * 10**6)", {"memory_mib": 100}),
        ("output", "while True:\n    print('x' * 999)", {"output_kib": 8}),
        ("output", "import os\nwhile True:\n    os.write(2, b'x' * 999)", {"output_kib": 8}),
    ],
)
def test_how_a_program_ends(finish, program, limits):
    outcome = run(program, "hello", **limits)
    assert outcome.finish == finish
    assert outcome.stdout == "hello\n" if finish == "ok" else outcome.how
    assert len(outcome.stdout) + len(outcome.stderr) <= 1024 * limits.get("output_kib", 1024)


@needs_sandbox
def test_processes_share_their_memory_limit():
    program = (
        "import os\nfor _ in range(6):\n    if os.fork() == 0:\n        break\n"
        "x = bytearray(b'1') * (40 * 2**20)\nimport time\ntime.sleep(9)"
    )
    assert run(program, seconds=8, memory_mib=128).finish == "memory"


@needs_sandbox
def test_processes_are_counted_and_files_have_room_for_so_much_only():
    many = (
        "import os, time\nn = 0\nwhile True:\n    try:\n        if os.fork() == 0:\n"
        "            time.sleep(9)\n        n += 1\n    except OSError:\n        break\nprint(n)"
    )
    assert 1 <= int(run(many, processes=8).stdout) <= 8
    fill = (
        "n = 0\nwhile True:\n    try:\n        open(f'{n}', 'wb').write(bytes(2**20))\n"
        "    except OSError:\n        break\n    n += 1\nprint(n)"
    )
    assert int(run(fill, files_mib=4).stdout) <= 4


def children_of(process):
    found, waiting = set(), [process]
    while waiting:
        one = waiting.pop()
        for task in Path(f"/proc/{one}/task").glob("*/children"):
            more = [int(word) for word in task.read_text().split()]
            found.update(more)
            waiting += more
    return found


def runs(process):
    """Whether a process is there, and does not only wait to be reaped."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@needs_sandbox
def test_nothing_is_left_of_a_sandbox():
    daemons = (
        "import os, time\nfor _ in range(5):\n    if os.fork() == 0:\n        os.setsid()\n"
        "        if os.fork() == 0:\n            time.sleep(99)\n        os._exit(0)\n"
        "print('started')"
    )
    run("print(1)")
    before, descriptors = children_of(os.getpid()), len(os.listdir("/proc/self/fd"))
    with Box(way_of("auto"), Limits(seconds=5)) as box:
        assert box.run(daemons, "").stdout == "started\n"
        # Only what holds the sandbox is left, though the program started others.
        assert box.run(
            "import os\nprint([p for p in os.listdir('/proc') if p.isdigit()])", ""
        ).stdout
        inside = children_of(os.getpid()) - before
        assert 1 <= len(inside) <= 3
    deadline = time.monotonic() + 5
    while children_of(os.getpid()) - before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not children_of(os.getpid()) - before
    assert len(os.listdir("/proc/self/fd")) == descriptors


@needs_sandbox
def test_a_sandbox_ends_with_the_process_that_made_it(tmp_path):
    script = tmp_path / "holds.py"
    script.write_text(
        f"import sys, types\nreward = types.ModuleType('reward')\n"
        f"reward.__path__ = [{str(ROOT / 'reward')!r}]\nsys.modules['reward'] = reward\n"
        "from reward.sandbox.box import Box\nfrom reward.sandbox.limits import Limits\n"
        "from reward.sandbox.ways import way_of\n"
        "box = Box(way_of('auto'), Limits(seconds=60))\nbox.begin('program', source="
        "'import time\\ntime.sleep(60)', stdin='')\nprint('running', flush=True)\nbox.outcome()\n"
    )
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"running\n"
        inside = children_of(process.pid)
        assert inside
        process.kill()
    deadline = time.monotonic() + 10
    while any(map(runs, inside)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not [one for one in inside if runs(one)]


@needs_sandbox
def test_programs_in_one_sandbox_do_not_change_each_other():
    with Box(way_of("auto"), Limits(seconds=5)) as box:
        box.run("import builtins, sys, os\nbuiltins.print = None\nos.mkdir('a')\nsys.path = []", "")
        seen = box.run("import json, os\nprint(os.listdir('.'), len(os.environ))", "")
        assert seen.stdout.startswith("[] "), seen
        order = "print(list({'a', 'b', 'c', 'd'}), hash('x'))"
        assert box.run(order, "").stdout == run(order).stdout


@needs_sandbox
def test_installed_packages_are_there_if_asked_for():
    program = "import numpy\nprint(numpy.arange(3).sum())"
    assert "ModuleNotFoundError" in run(program).stderr
    assert run(program, packages=True, memory_mib=2048).stdout == "3\n"
    assert set(packages()) <= {path for path, _ in folders(True)}
    assert not set(packages()) & {path for path, _ in folders(False)}


@needs_sandbox
def test_an_environment_in_tmp_is_shown_there_and_temporary_files_go_elsewhere(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(layout, "packages", lambda: [str(tmp_path)])
    monkeypatch.setattr(box, "installed_packages", lambda: [str(tmp_path)])
    tmp_path.chmod(0o755)  # programs run as nobody
    (tmp_path / "own_package.py").write_text("answer = 42")
    program = "import own_package, tempfile\nfile = tempfile.NamedTemporaryFile('w+')\n"
    program += "file.write(str(own_package.answer)); file.seek(0); print(file.read())"
    outcome = run(program, packages=True)
    assert outcome.stdout == "42\n", outcome.stderr
    assert (run(program).finish, run("import tempfile\ntempfile.TemporaryFile()").finish) == (
        "crashed",
        "ok",
    )


@needs_sandbox
def test_a_zygote_that_is_killed_is_started_again():
    zygote = Zygote()
    try:
        for _ in range(2):
            with Box("namespaces", Limits(), zygote=zygote) as box:
                assert box.run("print(1)", "").stdout == "1\n"
            zygote._process.kill()
            zygote._process.wait()
    except SandboxError:
        pytest.skip("namespaces do not work here")
    finally:
        zygote.stop()


def test_a_filter_is_well_formed():
    for machine in ("x86_64", "aarch64"):
        lines = instructions(machine)
        for place, (code, if_true, if_false, _) in enumerate(lines):
            if code & 7 == 5:
                assert place + 1 + max(if_true, if_false) < len(lines)
        assert lines[-1][0] == 6
    assert instructions("vax") == []


# -- ways ------------------------------------------------------------------------------------------


@pytest.fixture
def no_way(monkeypatch):
    monkeypatch.setattr(ways, "_fault", lambda way: f"no {way}")
    way_of.cache_clear()
    yield
    way_of.cache_clear()


def test_without_any_way_the_refusal_names_what_is_missing_and_what_helps(no_way):
    with pytest.raises(ValueError, match=r"no bubblewrap.*no namespaces.*none_i_trust_the_code"):
        way_of("auto")
    assert way_of("none_i_trust_the_code") == "none_i_trust_the_code"
    with pytest.raises(ValueError, match="choose one of auto, bubblewrap"):
        way_of("none")


def test_other_systems_are_refused(monkeypatch):
    way_of.cache_clear()
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(ValueError, match="on Linux only"):
        way_of("auto")
    way_of.cache_clear()


def test_bubblewrap_is_found_by_its_name(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert ways._fault("bubblewrap") == "bwrap is not installed"
    if os.geteuid() == 0:
        monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/bwrap")
        assert "root" in ways._fault("bubblewrap")


def test_without_a_sandbox_limits_and_the_end_of_the_tree_hold():
    way = way_of("none_i_trust_the_code")
    with Box(way, Limits(seconds=1, output_kib=8)) as box:
        assert box.run("print(input())", "hello").stdout == "hello\n"
        assert box.run("while True:\n    print(1)", "").finish == "output"
        assert box.run("import time\ntime.sleep(9)", "").finish == "timeout"
        daemon = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(99)\n"
        before = children_of(os.getpid())
        assert box.run(daemon, "").finish == "ok"
        assert children_of(os.getpid()) == before


PYTHON = "/usr/bin/python3"
AS_NOBODY = """
import runpy, sys, types
root = sys.argv.pop(1)
module = types.ModuleType("reward")
module.__path__ = [root + "/reward"]
sys.modules["reward"] = module
sys.path.insert(0, root)
runpy.run_path(root + "/programs.py", run_name="__main__")
"""


def as_nobody(folder, way):
    """Run the corpus as the user nobody, with the system's own Python."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("only root becomes another user, by setpriv")
    version = "import sys; sys.exit(sys.version_info < (3, 11))"
    if not Path(PYTHON).exists() or subprocess.run([PYTHON, "-c", version]).returncode:
        pytest.skip(f"{PYTHON} is not Python 3.11 or later")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "reward", folder / "reward", ignore=ignored)
    shutil.copy(ROOT / "tests/reward/programs.py", folder)
    subprocess.run(["chmod", "-R", "a+rX", str(folder)], check=True)
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", PYTHON, "-B", "-c"]
    return subprocess.run(
        [*command, AS_NOBODY, str(folder), "--sandbox", way, "--quick"],
        capture_output=True,
        text=True,
        cwd="/",
        timeout=300,
    )


@pytest.fixture
def open_folder():
    folder = Path("/tmp", f"rlvr-sandbox-{os.getpid()}-{time.monotonic_ns()}")
    folder.mkdir(mode=0o755)
    yield folder
    shutil.rmtree(folder)


def unless_missing(done):
    if "no sandbox for code" in done.stderr:
        pytest.skip(done.stderr.strip().rpartition("\n")[2])
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_an_ordinary_user_has_the_same_walls_by_namespaces(open_folder):
    unless_missing(as_nobody(open_folder, "namespaces"))


@pytest.mark.slow
def test_an_ordinary_user_has_the_same_walls_by_bubblewrap(open_folder):
    unless_missing(as_nobody(open_folder, "bubblewrap"))


def test_limits_are_checked():
    for wrong in ({"seconds": 0}, {"memory_mib": 1}, {"processes": 0}, {"open_files": 1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Limits(**wrong)
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert soft > Limits().open_files
