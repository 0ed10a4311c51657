"""What trackers kept, read back from their own files."""

import json
import struct

from wandb.proto.wandb_internal_pb2 import Record

_BLOCK = 32768  # wandb's files are LevelDB logs: blocks of chunks, after a header of seven bytes


def wandb_runs(folder):
    """Of each file of wandb below ``folder``, oldest first: id, settings, rows, exit code."""
    return [_wandb_run(path) for path in sorted(folder.rglob("*.wandb"))]


def _wandb_run(path):
    found = {"config": {}, "rows": [], "exit_code": None, "steps_by": set()}
    for data in _chunks(path.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = record.run
            found |= {
                "id": run.run_id,
                "name": run.display_name,
                "project": run.project,
                "entity": run.entity,
                "group": run.run_group,
                "tags": list(run.tags),
            }
            found["config"] |= _items(run.config.update)
        elif kind == "config":
            found["config"] |= _items(record.config.update)
        elif kind == "history":
            found["rows"].append(_items(record.history.item))
        elif kind == "metric":
            found["steps_by"].add((record.metric.glob_name, record.metric.step_metric))
        elif kind == "exit":
            found["exit_code"] = record.exit.exit_code
    return found


def _items(items):
    """Values by name; those of a nested one, such as a table, as a mapping."""
    found = {}
    for item in items:
        *outer, last = item.nested_key or [item.key]
        place = found
        for name in outer:
            place = place.setdefault(name, {})
        place[last] = json.loads(item.value_json)
    return found


def _chunks(data):
    """The records of a LevelDB log."""
    offset, whole = 7, b""
    while offset + 7 <= len(data):
        left = _BLOCK - offset % _BLOCK
        if left < 7:
            offset += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, offset)
        chunk = data[offset + 7 : offset + 7 + length]
        offset += 7 + length
        whole = chunk if kind in (1, 2) else whole + chunk
        if kind in (1, 4):
            yield whole
