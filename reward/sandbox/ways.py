"""How a sandbox is made here: by bubblewrap, or by namespaces of our own; or not at all.

Bubblewrap is used where it is installed (version 0.8 or later) and the user is not root; as root it
would leave the program root's own user number, to which no bound on processes applies. Otherwise
this package makes the namespaces (Linux 5.12 or later). Each way is tried once with an empty
program before it is used.
"""

import os
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Literal, cast, get_args

from reward.sandbox.namespaces import DEVICES, NOBODY, WORK

Isolation = Literal["auto", "bubblewrap", "namespaces", "none_i_trust_the_code"]
"""What separates a program from this machine; ``auto`` is bubblewrap or namespaces."""
Way = Literal["bubblewrap", "namespaces", "none_i_trust_the_code"]

PACKAGE = Path(__file__).resolve().parents[1]
INSIDE = "/sandbox/reward"
BOOTSTRAP = (
    "import sys, types\n"
    "root = sys.argv[1]\n"
    "for name, path in (('reward', root), ('reward.sandbox', root + '/sandbox')):\n"
    "    module = types.ModuleType(name)\n"
    "    module.__path__ = [path]\n"
    "    sys.modules[name] = module\n"
    "from reward.sandbox.{module} import main\n"
    "main(sys.argv[2:])\n"
)
"""Starts a module of this package without what the rest of ``reward`` imports."""


def interpreter(module: str) -> list[str]:
    """Python without site packages, the user's files and the current folder, that runs ``main`` of
    a module with the arguments that follow the path of this package."""
    flags = ["-s", "-S", "-P", "-B", "-c", BOOTSTRAP.replace("{module}", module)]
    return [os.path.realpath(sys.executable), *flags]


def environment() -> dict[str, str]:
    """All variables that a program finds; the order of sets is the same in every run."""
    return {
        "PATH": "/usr/bin:/bin",
        "HOME": WORK,
        "LANG": "C.UTF-8",
        "PYTHONHASHSEED": "0",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }


def packages() -> list[str]:
    """Folders of this environment's installed packages."""
    found = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    return sorted(path for path in found if os.path.isdir(path))


def folders(with_packages: bool) -> list[tuple[str, str]]:
    """What a program sees of this machine, as (path here, path inside): Python with its standard
    library, the system's libraries, and this package."""
    # Of the interpreter itself: in a virtual environment platbase is the environment.
    paths = sysconfig.get_paths(vars={"platbase": sys.base_exec_prefix})
    wanted = [paths["stdlib"], paths["platstdlib"], os.path.realpath(sys.executable)]
    library = sysconfig.get_config_var("LIBDIR")
    if library and library not in ("/usr/lib", "/usr/lib64", "/lib"):
        shared = sysconfig.get_config_var("INSTSONAME") or ""
        wanted.append(os.path.join(library, shared))
    wanted += ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache"]
    if with_packages:
        wanted += packages()
    found = dict.fromkeys(path for path in wanted if os.path.exists(path))
    outermost = [
        path for path in found if not any(str(parent) in found for parent in Path(path).parents)
    ]
    return [*((path, path) for path in outermost), (str(PACKAGE), INSIDE)]


def bubblewrap(with_packages: bool, work_mib: int) -> list[str]:
    """The command that runs what follows it in a sandbox made by bubblewrap."""
    command = [
        shutil.which("bwrap") or "bwrap", "--unshare-all", "--unshare-user", "--disable-userns",
        "--die-with-parent", "--new-session", "--as-pid-1", "--cap-drop", "ALL", "--clearenv",
        "--uid", str(NOBODY), "--gid", str(NOBODY), "--hostname", "sandbox",
    ]  # fmt: skip
    for name, value in environment().items():
        command += ["--setenv", name, value]
    for path, inside in folders(with_packages):
        command += ["--ro-bind", path, inside]
    for name in DEVICES:
        command += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
    command += ["--proc", "/proc", "--perms", "0700", "--size", str(work_mib * 2**20)]
    command += ["--tmpfs", WORK, "--symlink", WORK, "/tmp", "--chdir", WORK]
    return [*command, "--remount-ro", "/", "--"]


def check_isolation(isolation: str) -> Isolation:
    """A value of `Isolation`, as such.

    Raises:
        ValueError: it is none.
    """
    if isolation not in get_args(Isolation):
        known = ", ".join(get_args(Isolation))
        raise ValueError(f"sandbox={isolation!r}: choose one of {known}")
    return cast(Isolation, isolation)


@cache
def way_of(isolation: Isolation) -> Way:
    """The way that is taken here, tried with an empty program.

    Raises:
        ValueError: it does not work here; the message says what is missing.
    """
    check_isolation(isolation)
    if sys.platform != "linux":
        raise ValueError(f"code is run in a sandbox on Linux only, and this is {sys.platform}")
    if isolation == "none_i_trust_the_code":
        return isolation
    ways: Sequence[Way] = ("bubblewrap", "namespaces") if isolation == "auto" else (isolation,)
    faults = []
    for way in ways:
        fault = _fault(way)
        if fault is None:
            return way
        faults.append(f"{way}: {fault}")
    raise ValueError(
        f"no sandbox for code can be made here ({'; '.join(faults)}); install bubblewrap 0.8 or "
        "later, allow user namespaces (sysctl user.max_user_namespaces; in a container, a seccomp "
        "profile that allows unshare), or, if programs may do all that you may, set the sandbox "
        "to none_i_trust_the_code"
    )


def _fault(way: Way) -> str | None:
    """Why a way does not work here, or None."""
    if way == "bubblewrap":
        if shutil.which("bwrap") is None:
            return "bwrap is not installed"
        if os.geteuid() == 0:
            return "not as root, whose user number it would keep"
    # What a sandbox imports is read there; here it is compiled once, for all.
    from reward.sandbox import calling, checking, supervise  # noqa: F401
    from reward.sandbox.box import Box, SandboxError
    from reward.sandbox.limits import Limits
    from reward.sandbox.zygote import Zygote

    zygote = Zygote()
    try:
        with Box(way, Limits(seconds=20), zygote=zygote) as box:
            outcome = box.run("import os\nprint(os.getpid() > 1, os.listdir('/work'))", "")
    except SandboxError as error:
        return str(error)
    finally:
        zygote.stop()
    return None if outcome.stdout == "True ['1']\n" else f"a trial said {outcome.stdout[:80]!r}"
