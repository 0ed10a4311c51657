"""How a sandbox is made here: by bubblewrap, or by namespaces of our own; or not at all.

Bubblewrap is used where it is installed (version 0.8 or later) and the user is not root; as root it
would leave the program root's own user number, to which no bound on processes applies. Otherwise
this package makes the namespaces (Linux 5.12 or later). Each way is tried once with an empty
program before it is used.
"""

import os
import shutil
import sys
from collections.abc import Sequence
from functools import cache
from typing import cast, get_args

from reward.sandbox.box import Box, SandboxError
from reward.sandbox.limits import Isolation, Limits, Way
from reward.sandbox.zygote import Zygote


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

    zygote = Zygote()
    try:
        with Box(way, Limits(seconds=20), zygote=zygote) as box:
            outcome = box.run("import os\nprint(os.getpid() > 1, os.listdir('/work'))", "")
    except SandboxError as error:
        return str(error)
    finally:
        zygote.stop()
    return None if outcome.stdout == "True ['1']\n" else f"a trial said {outcome.stdout[:80]!r}"
