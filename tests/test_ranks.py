"""What the processes of a job say to each other: one process, and two real ones over gloo."""

import socket

import torch
import torch.multiprocessing as mp

from rlvr.ranks import Ranks


def test_one_process_talks_to_itself():
    ranks = Ranks()
    assert (ranks.rank, ranks.count, ranks.first) == (0, 1, True)
    assert ranks.gather({"a": [1, 2.5]}) == [{"a": [1, 2.5]}]
    assert ranks.broadcast("x") == "x"
    assert list(ranks.share(5)) == [0, 1, 2, 3, 4]
    values = torch.tensor([1.0, 2.0])
    assert torch.equal(ranks.sum(values), values)
    ranks.barrier()


def _speak(rank, port, folder):
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    ranks = Ranks(timeout_s=60)
    other = ranks.group()
    words = "é" * (rank * 1000)
    assert ranks.gather({"words": words}) == [{"words": ""}, {"words": "é" * 1000}]
    assert other.broadcast(rank + 7) == 7
    mine = torch.tensor([float(rank), 1.0])
    assert ranks.sum(mine).tolist() == [1.0, 2.0]
    assert ranks.maximum(mine).tolist() == [1.0, 1.0]
    assert mine.tolist() == [float(rank), 1.0]
    assert [list(ranks.share(5)), list(ranks.share(1))] == (
        [[0, 1], []] if rank == 0 else [[2, 3, 4], [0]]
    )
    other.barrier()
    (folder / str(rank)).touch()


def test_two_processes(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_speak, args=(port, tmp_path), nprocs=2)
    assert {path.name for path in tmp_path.iterdir()} == {"0", "1"}
