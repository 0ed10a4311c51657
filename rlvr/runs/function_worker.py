"""The process that calls a reward function of the user's own, beside the run.

It is a new interpreter, started and spoken to as the verifier's workers are (``reward/worker.py``).
"""

import os
import socket
import sys
from collections.abc import Sequence
from typing import Any

from reward.calls import Call, Notes, plan_call
from reward.functions import RewardError, RewardInput, find_function
from reward.messages import receive_message, send_message
from reward.worker import main as serve_as_worker
from reward.worker import silence
from rlvr.runs.function_messages import notes_message, read_call


def main() -> None:
    """Serve one connection."""
    serve_as_worker(_serve)


def _serve(connection: socket.socket) -> None:
    setup = receive_message(connection)
    from rlvr.settings.outside import is_place, load_outside

    sys.path.extend(path for path in setup["path"] if path not in sys.path)
    place = setup["function"]
    function = load_outside(place) if is_place(place) else find_function(place)
    calls: dict[int | None, Call] = {}
    send_message(connection, {"ready": os.getpid()})
    silence()
    while True:
        request = receive_message(connection)
        draw = request["draw"]
        if draw not in calls:
            own = {} if draw is None else {"draw": draw}
            calls[draw] = plan_call(
                function,
                {**setup["parameters"], **own},
                setup["name"],
                as_messages=setup["as_messages"],
            )
        send_message(connection, _reply(calls[draw], *read_call(request["call"])))


def _reply(call: Call, unit: Sequence[RewardInput], trainer_state: object) -> dict[str, Any]:
    notes = Notes()
    try:
        values = call.values(call.prepared(unit, notes, trainer_state)(), unit)
        return {"values": values, "notes": notes_message(notes)}
    except RewardError as error:
        return {"wrong": str(error)}
    except Exception as error:  # the process's boundary: the run tells the user
        return {"failed": call.fault(error, unit)}
