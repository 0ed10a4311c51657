"""What a sandbox consists of: the interpreter, the folders that it shows, the variables it has."""

import os
import shutil
import sys
import sysconfig
from pathlib import Path

from reward.sandbox.namespaces import DEVICES, NOBODY, WORK

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
        "TMPDIR": WORK,
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
    shown = folders(with_packages)
    for path, inside in shown:
        command += ["--ro-bind", path, inside]
    for name in DEVICES:
        command += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
    command += ["--proc", "/proc", "--perms", "0700", "--size", str(work_mib * 2**20)]
    command += ["--tmpfs", WORK, "--chdir", WORK]
    if not any(inside.startswith("/tmp/") for _, inside in shown):
        command += ["--symlink", WORK, "/tmp"]
    return [*command, "--remount-ro", "/", "--"]
