"""Put this process into namespaces of its own, without help of another program.

The process, started by `reward.sandbox.box`, leaves the user, mount, process, network, IPC, host
name and cgroup namespaces for new ones, builds a root that holds nothing but the folders named to
it, read-only, and goes on in a child that is process 1 there. When process 1 dies, the kernel kills
all others in its namespace. Root becomes the user nobody on the host too, so that the sandbox owns
no file of the host and the bound on processes counts.
"""

import os
import signal
import stat
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from reward.sandbox import system

NOBODY = 65534
WORK = "/work"
DEVICES = ("null", "zero", "full", "random", "urandom")
_NAMESPACES = (
    system.CLONE_NEWUSER
    | system.CLONE_NEWNS
    | system.CLONE_NEWPID
    | system.CLONE_NEWNET
    | system.CLONE_NEWIPC
    | system.CLONE_NEWUTS
    | system.CLONE_NEWCGROUP
)
_BASE = "/tmp"


def enter(folders: Sequence[tuple[str, str]], work_mib: int) -> None:
    """Return in process 1 of new namespaces, without capabilities.

    Args:
        folders: what is visible, as (path on the host, path inside), read-only.
        work_mib: size of the working folder in MiB.

    Raises:
        OSError: the kernel refuses a step.
    """
    was_root = os.geteuid() == 0
    _new_user()
    sources = [(os.open(path, os.O_PATH), inside) for path, inside in folders]
    devices = [(os.open(f"/dev/{name}", os.O_PATH), f"/dev/{name}") for name in DEVICES]
    if was_root:
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    with suppress(OSError):  # the host's /proc may be read-only; then the filter refuses alone
        Path("/proc/sys/user/max_user_namespaces").write_text("0")
    _fork_into_process_one()
    system.mount("none", "/", "", system.MS_REC | system.MS_PRIVATE)
    system.mount("tmpfs", _BASE, "tmpfs", system.MS_NOSUID | system.MS_NODEV, "size=1m,mode=755")
    for descriptor, inside in sources:
        _bind(descriptor, _BASE + inside, system.ATTR_NODEV)
    for descriptor, inside in devices:
        _bind(descriptor, _BASE + inside, 0)
    _private_folders(work_mib)
    _leave_the_old_root()
    system.drop_capabilities()


def _new_user() -> None:
    """New namespaces, in which this process is nobody with all capabilities."""
    user, group = os.geteuid(), os.getegid()
    if user == 0:
        # Only a process outside, with the right to, may map another user than its own.
        os.setgroups([])
        user = group = NOBODY
        ready, done = os.pipe(), os.pipe()
        target = os.getpid()
        if os.fork() == 0:
            os.read(ready[0], 1)
            with suppress(OSError):
                _map_users(target, user, group)
            os._exit(0)
        system.unshare(_NAMESPACES)
        os.write(ready[1], b".")
        os.wait()
        for descriptor in (*ready, *done):
            os.close(descriptor)
    else:
        system.unshare(_NAMESPACES)
        _map_users(os.getpid(), user, group)


def _map_users(process: int, user: int, group: int) -> None:
    folder = Path(f"/proc/{process}")
    (folder / "setgroups").write_text("deny")
    (folder / "uid_map").write_text(f"{NOBODY} {user} 1")
    (folder / "gid_map").write_text(f"{NOBODY} {group} 1")


def _fork_into_process_one() -> None:
    """Return in a child; this process waits for it, and dies with its own parent."""
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        system.prctl(system.PR_SET_PDEATHSIG, signal.SIGKILL)
        os.setsid()
        return
    assert os.getpid() == parent
    os.closerange(3, 4096)
    _, status = os.waitpid(child, 0)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def _bind(descriptor: int, target: str, attributes: int) -> None:
    """Show a file or folder of the host, read-only."""
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        Path(target).mkdir(parents=True, exist_ok=True)
    else:
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        Path(target).touch()
    flags = system.MS_BIND | system.MS_REC
    system.mount(f"/proc/self/fd/{descriptor}", target, "", flags)
    os.close(descriptor)
    always = system.ATTR_RDONLY | system.ATTR_NOSUID
    system.set_mount_attributes(target, always | attributes)


def _private_folders(work_mib: int) -> None:
    """The working folder, and the processes of the sandbox where a mount of them is allowed."""
    hardened = system.MS_NOSUID | system.MS_NODEV | system.MS_NOEXEC
    for name in ("work", "proc", "old"):
        Path(_BASE, name).mkdir()
    with suppress(FileExistsError):  # what is shown lies there; programs are told of WORK besides
        Path(_BASE, "tmp").symlink_to(WORK)
    options = f"size={work_mib}m,nr_inodes=4096,mode=700"
    system.mount("tmpfs", _BASE + WORK, "tmpfs", hardened, options)
    with suppress(OSError):  # refused where parts of the host's /proc are covered
        system.mount("proc", f"{_BASE}/proc", "proc", hardened | system.MS_RDONLY)


def _leave_the_old_root() -> None:
    system.pivot_root(_BASE, f"{_BASE}/old")
    os.chdir("/")
    system.unmount("/old")
    os.rmdir("/old")
    flags = system.MS_REMOUNT | system.MS_BIND | system.MS_RDONLY
    system.mount("none", "/", "", flags | system.MS_NOSUID | system.MS_NODEV)
    os.chdir(WORK)
    sys.path = [path for path in sys.path if path]
