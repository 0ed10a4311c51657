"""Calls of the Linux kernel that Python 3.11 has no function for."""

import ctypes
import os

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS = 0x00020000, 0x02000000, 0x04000000
CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = (
    0x08000000,
    0x10000000,
    0x20000000,
    0x40000000,
)
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 32, 4096, 16384, 1 << 18
MNT_DETACH = 2
ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV = 1, 2, 4
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP = 1, 4, 24
PR_SET_SECCOMP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 22, 36, 38
_CAPABILITY_VERSION_3 = 0x20080522
_MOUNT_SETATTR = 442
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}

_libc = ctypes.CDLL(None, use_errno=True)


class _MountAttributes(ctypes.Structure):
    _fields_ = [
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    ]


def _checked(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """Leave the namespaces that the flags name for new ones (unshare(2))."""
    _checked(_libc.unshare(flags), "unshare")


def prctl(option: int, *values: int) -> None:
    """Set something about this process (prctl(2))."""
    padded = [ctypes.c_ulong(value) for value in (*values, 0, 0, 0, 0)[:4]]
    _checked(_libc.prctl(option, *padded), f"prctl {option}")


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    """Mount (mount(2))."""
    words = [word.encode() for word in (source, target, kind)]
    options = data.encode() or None
    _checked(_libc.mount(*words, ctypes.c_ulong(flags), options), f"mount {target}")


def unmount(target: str) -> None:
    """Detach a mount and all below it."""
    _checked(_libc.umount2(target.encode(), MNT_DETACH), f"unmount {target}")


def set_mount_attributes(path: str, attributes: int) -> None:
    """Set attributes of a mount and of all below it (mount_setattr(2), Linux 5.12)."""
    given = _MountAttributes(attr_set=attributes)
    at_fdcwd, at_recursive = -100, 0x8000
    result = _libc.syscall(
        ctypes.c_long(_MOUNT_SETATTR),
        ctypes.c_long(at_fdcwd),
        path.encode(),
        ctypes.c_long(at_recursive),
        ctypes.byref(given),
        ctypes.c_long(ctypes.sizeof(given)),
    )
    _checked(result, f"mount_setattr {path}")


def pivot_root(new: str, old: str) -> None:
    """Make ``new`` the root, and put the old one at ``old`` within it.

    Raises:
        OSError: it is refused, or not known how on this kind of processor.
    """
    machine = os.uname().machine
    if machine not in _PIVOT_ROOT:
        raise OSError(f"pivot_root is not known on {machine}; install bubblewrap")
    _checked(_libc.syscall(_PIVOT_ROOT[machine], new.encode(), old.encode()), "pivot_root")


def drop_capabilities() -> None:
    """Give up every capability, now and in whatever is started."""
    for number in range(64):
        try:
            prctl(PR_CAPBSET_DROP, number)
        except OSError:  # beyond the last one, or without the right to
            break
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    nothing = (ctypes.c_uint32 * 6)()
    _checked(_libc.capset(header, nothing), "capset")
