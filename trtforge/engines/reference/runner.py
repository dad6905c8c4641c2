"""Run the original model in eager PyTorch: the yardstick of correctness and of speed."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trtforge.engines.base import OnLog, RunOutcome
from trtforge.engines.driver_process import RUN_ENVIRONMENT, run_driver
from trtforge.progress import OnProgress

_TIMEOUT_S = 3600.0


def run_reference(
    model_dir: Path,
    *,
    dtype: str,
    device: str,
    threads: int,
    jobs: Sequence[dict[str, Any]],
    logits_dir: Path,
    work_dir: Path,
    on_progress: OnProgress,
    on_log: OnLog,
    python: Path = Path(sys.executable),
) -> RunOutcome:
    """Perform jobs (`trtforge.engines.jobs`) with `transformers` on a Hugging Face directory.

    Outputs of jobs with `logits` also name `logits_fp32`, the same sequences in fp32.

    Raises:
        BuildError: one of the driver errors of `trtforge.engines.driver_process`.
    """
    result = run_driver(
        "trtforge.engines.reference.run_driver",
        {
            "model_dir": str(model_dir.resolve()),
            "dtype": dtype,
            "device": device,
            "threads": threads,
            "jobs": list(jobs),
            "logits_dir": str(logits_dir.resolve()),
        },
        work_dir=work_dir,
        timeout_s=_TIMEOUT_S,
        python=python,
        environment={**RUN_ENVIRONMENT, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"},
        on_progress=on_progress,
        on_log=on_log,
    )
    return RunOutcome(
        load_s=result["load_s"],
        outputs=tuple(result["outputs"]),
        peak_rss_bytes=result["peak_rss_bytes"],
        versions=result["versions"],
    )
