"""The first thing that runs in a sandbox's process: make the walls, then serve."""

import json
import os
import socket
import sys

from reward.messages import send_message
from reward.sandbox import system


def main(arguments: list[str]) -> None:
    """Enter namespaces if that is this process's part, and serve until the host closes.

    Args:
        arguments: descriptors of the sockets for control and for calls, the way, and JSON of the
            folders, the packages and the size of the working folder.
    """
    control, calls = (socket.socket(fileno=int(word)) for word in arguments[:2])
    way, given = arguments[2], json.loads(arguments[3])
    try:
        # Before the old root is left: what is imported later may lie out of sight.
        from reward.sandbox import calling, checking, supervise  # noqa: F401

        if way == "namespaces":
            from reward.sandbox.namespaces import enter

            enter(given["folders"], given["work_mib"])
        elif way == "none_i_trust_the_code":
            system.prctl(system.PR_SET_PDEATHSIG, 9)
        sys.path += given["packages"]
    except Exception as error:  # the boundary of the process: whoever waits is told
        send_message(control, {"failed": f"{type(error).__name__}: {error}"})
        os._exit(1)
    supervise.serve(control, calls, alone=way != "none_i_trust_the_code")
