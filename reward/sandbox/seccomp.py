"""A filter of system calls (seccomp) for what runs in the sandbox.

It is a second wall: namespaces, an empty capability set and resource limits already hold what it
forbids, except memory that no resource limit counts (``memfd_create``, System V and POSIX message
queues), sockets of kinds that a network namespace does not separate, and the limits of process 1.
What it refuses returns "not permitted". An unknown kind of processor has no filter.
"""

import ctypes
import os
import struct

from reward.sandbox.system import PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, prctl

# The number on x86_64 and on aarch64.
_REFUSED = {
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39),
    "pivot_root": (155, 41), "chroot": (161, 51), "ptrace": (101, 117), "kcmp": (312, 272),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "keyctl": (250, 219),
    "add_key": (248, 217), "request_key": (249, 218), "memfd_create": (319, 279),
    "memfd_secret": (447, 447), "open_by_handle_at": (304, 265), "pidfd_getfd": (438, 438),
    "mount_setattr": (442, 442), "move_mount": (429, 429), "open_tree": (428, 428),
    "fsopen": (430, 430), "fsmount": (432, 432), "fspick": (433, 433), "init_module": (175, 105),
    "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104),
    "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225), "acct": (163, 89),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "quotactl": (179, 60),
    "shmget": (29, 194), "semget": (64, 190), "msgget": (68, 186), "mq_open": (240, 180),
    "socket": (41, 198),
}  # fmt: skip
_CLONE, _CLONE3, _PRLIMIT = (56, 220), 435, (302, 261)
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_NEW_NAMESPACES = 0x7E020000

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_EPERM, _ENOSYS = 1, 38
_AT_NUMBER, _AT_ARCHITECTURE, _AT_FIRST_ARGUMENT = 0, 4, 16


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def instructions(machine: str) -> list[tuple[int, int, int, int]]:
    """The filter in classic BPF: (code, jump if true, jump if false, value), for a kind of
    processor; empty if it is not known."""
    if machine not in _ARCHITECTURES:
        return []
    column, architecture = _ARCHITECTURES[machine]
    lines = [
        (_LOAD, 0, 0, _AT_ARCHITECTURE),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _AT_NUMBER),
    ]
    refuse = (_RETURN, 0, 0, _ERRNO | _EPERM)
    if machine == "x86_64":  # the x32 interface has numbers of its own
        lines += [(_AT_LEAST, 0, 1, 0x40000000), refuse]
    for numbers in _REFUSED.values():
        lines += [(_EQUAL, 0, 1, numbers[column]), refuse]
    # Its flags are in memory, which no filter reads; the C library then asks for clone.
    lines += [(_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _ERRNO | _ENOSYS)]
    # The limits of another process; 0 is the caller.
    lines += [
        (_EQUAL, 0, 4, _PRLIMIT[column]),
        (_LOAD, 0, 0, _AT_FIRST_ARGUMENT),
        (_EQUAL, 1, 0, 0),
        refuse,
        (_RETURN, 0, 0, _ALLOW),
    ]
    lines += [
        (_EQUAL, 0, 3, _CLONE[column]),
        (_LOAD, 0, 0, _AT_FIRST_ARGUMENT),
        (_ANY_BIT, 0, 1, _NEW_NAMESPACES),
        refuse,
        (_RETURN, 0, 0, _ALLOW),
    ]
    return lines


def install() -> None:
    """Filter the calls of this process and of all that it starts, for good."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    lines = instructions(os.uname().machine)
    if not lines:
        return
    packed = b"".join(struct.pack("HBBI", *line) for line in lines)
    buffer = ctypes.create_string_buffer(packed, len(packed))
    program = _Program(len(lines), ctypes.cast(buffer, ctypes.c_void_p))
    prctl(PR_SET_SECCOMP, 2, ctypes.addressof(program))
