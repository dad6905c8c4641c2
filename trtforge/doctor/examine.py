"""Run every check at the same time, each within its patience."""

import threading
import time
from collections.abc import Callable, Sequence

from trtforge.doctor.containers import check_containers
from trtforge.doctor.findings import Finding, Report
from trtforge.doctor.gpus import check_gpus
from trtforge.doctor.machine import check_machine
from trtforge.doctor.services import check_prefect, check_storage
from trtforge.doctor.toolchains import check_aoti, check_trtllm
from trtforge.engines.gpu import LocalGpus, find_gpus
from trtforge.settings import Settings

Check = Callable[[], Sequence[Finding]]

PATIENCE_S = 40.0
_AREAS = ("machine", "gpu", "container", "aoti", "trtllm", "services")


def examine(
    settings: Settings,
    *,
    probe_container: bool = False,
    gpus: LocalGpus | None = None,
    patience_s: float = PATIENCE_S,
) -> Report:
    """Look at everything.

    Args:
        probe_container: Also start a container of TensorRT-LLM's release image, if that is here,
            with this machine's GPUs, and ask its interpreter for versions. Takes minutes.
        gpus: Of this machine; None asks NVML.
        patience_s: After which a check that has not answered counts as `not checked`.
    """
    local = find_gpus() if gpus is None else gpus
    checks: list[tuple[str, str, Check]] = [
        ("machine", "machine", lambda: check_machine(settings)),
        ("gpu", "GPU", lambda: check_gpus(local)),
        ("container", "container runtime", lambda: check_containers(local, probe_container)),
        ("aoti", "toolchain", lambda: check_aoti(settings)),
        ("trtllm", "toolchain", lambda: check_trtllm(settings, local)),
        ("services", "object storage", lambda: check_storage(settings)),
        ("services", "Prefect server", lambda: check_prefect(settings)),
    ]
    longest = patience_s + (600.0 if probe_container else 0.0)
    found = run_checks(checks, {"container": longest}, patience_s)
    return Report(
        tuple(sorted(found, key=lambda finding: _AREAS.index(finding.area))),
        {area: _usable(found, area) for area in ("aoti", "trtllm")},
    )


def run_checks(
    checks: Sequence[tuple[str, str, Check]], longer: dict[str, float], patience_s: float
) -> list[Finding]:
    """What the checks (area, name, function) find.

    One that raises or does not answer in time is a finding itself, and is left behind.

    Args:
        longer: Patience in seconds for single areas.
    """
    results: list[Sequence[Finding] | None] = [None] * len(checks)

    def run(index: int, area: str, name: str, check: Check) -> None:
        try:
            results[index] = check()
        except Exception as error:
            # The doctor's own mistake must not hide what the others found. The message is left
            # out: nobody has looked at it for secrets.
            text = f"the check failed ({type(error).__name__})"
            results[index] = [Finding(area, name, "not checked", text)]

    threads = []
    started = time.monotonic()
    for index, (area, name, check) in enumerate(checks):
        thread = threading.Thread(target=run, args=(index, area, name, check), daemon=True)
        thread.start()
        threads.append(thread)
    found: list[Finding] = []
    for thread, result_index in zip(threads, range(len(checks)), strict=True):
        area, name, _ = checks[result_index]
        allowed = longer.get(area, patience_s)
        thread.join(max(0.0, started + allowed - time.monotonic()))
        result = results[result_index]
        if result is None:
            text = f"no answer within {allowed:g} s"
            result = [Finding(area, name, "not checked", text)]
        found.extend(result)
    return found


def _usable(findings: Sequence[Finding], area: str) -> bool:
    """A toolchain can be used when its own check passed; the GPU is part of that check."""
    own = [finding for finding in findings if finding.area == area]
    return bool(own) and all(finding.status in ("ok", "warning") for finding in own)
