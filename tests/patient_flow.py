"""A flow that works until it is told to end, for tests of workers."""

import subprocess
import time
from pathlib import Path

from prefect import flow, get_run_logger


@flow
def patient(directory: str) -> None:
    """Log until there is a file `end` in `directory`, with a child that hides in a session.

    Writes `child` (its pid) when it is at work, and `cleaned` when it was ended in good order.
    """
    here, logger = Path(directory), get_run_logger()
    child = subprocess.Popen(["sleep", "600"], start_new_session=True)
    (here / "child").write_text(str(child.pid))
    try:
        while not (here / "end").exists():
            logger.info("at work")
            print("at work", flush=True)
            time.sleep(0.2)
    finally:
        child.kill()
        child.wait()
        (here / "cleaned").touch()
