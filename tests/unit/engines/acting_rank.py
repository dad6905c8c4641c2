"""A rank that does what its request says for it; without torch unless it is to join a group."""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from trtforge.engines.driver_main import DriverError, Report, drive


def act(request: dict[str, Any], report: Report) -> dict[str, Any]:
    place = request["rank"]
    rank = place["rank"]
    (Path(request["notes"]) / str(rank)).write_text(str(os.getpid()))
    report(f"rank {rank}", 1, 2)
    for what in request["acts"][rank].split():
        match what.split("="):
            case ["wait"]:
                while not Path(place["rendezvous"]).exists():
                    time.sleep(0.01)
            case ["call"]:
                Path(place["rendezvous"]).touch()
            case ["signal", number]:
                os.kill(os.getpid(), int(number))
            case ["hang"]:
                time.sleep(600)
            case ["sleep", seconds]:
                time.sleep(float(seconds))
            case ["refuse"]:
                raise DriverError("limit-exceeded", "25 tokens in a prompt", "Ask for less")
            case ["lost"]:
                raise DriverError("rank-lost", "the other ranks do not answer", "See the log")
            case ["raise"]:
                raise ZeroDivisionError("seven by zero")
            case ["exit", code]:
                sys.stdout.flush()
                os._exit(int(code))
            case ["linger"]:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                import atexit

                atexit.register(time.sleep, 600)
            case ["talk"]:
                return _talk(place)
    return {"acted": rank, "interfaces": [os.environ["GLOO_SOCKET_IFNAME"]]}


def _talk(place: dict[str, Any]) -> dict[str, Any]:
    import torch

    from trtforge.engines.aoti.rank_group import RankGroup

    rank = place["rank"]
    group = RankGroup(rank, place["ranks"], Path(place["rendezvous"]), "cpu")
    said = {
        "sum": group.add(torch.tensor([1.0, rank + 0.5])).tolist(),
        "joined": group.joined(torch.tensor([[rank, 7.0], [rank, 8.0]])).tolist(),
        "agreed": group.agreed(lambda logits: logits + rank)(torch.tensor([3, 4])).tolist(),
    }
    group.leave()
    return said


if __name__ == "__main__":
    drive(act)
