"""Driver: run an aoti engine on a list of jobs. See `trtforge.engines.jobs` for their shape.

Request:  engine_dir, threads, jobs, logits_dir (where logits asked for are written)
Result:   load_s, outputs (one per job)
"""

import time
from pathlib import Path
from typing import Any

from trtforge.engines.driver_main import Report, drive
from trtforge.engines.jobs import perform


def run(request: dict[str, Any], report: Report) -> dict[str, Any]:
    from trtforge.engines.aoti.runtime import Engine, Sampling

    started = time.perf_counter()
    report("loading the engine", 0, None)
    engine = Engine(Path(request["engine_dir"]), request["threads"])
    load_s = time.perf_counter() - started

    def generate(job: dict[str, Any], keep_logits: bool) -> Any:
        return engine.generate(
            job["prompts"],
            job["max_new_tokens"],
            sampling=Sampling(**job.get("sampling", {})),
            stop_ids=job.get("stop_ids", ()),
            keep_logits=keep_logits,
        )

    outputs = perform(request["jobs"], generate, Path(request["logits_dir"]), report)
    return {"load_s": load_s, "outputs": outputs}


if __name__ == "__main__":
    drive(run)
