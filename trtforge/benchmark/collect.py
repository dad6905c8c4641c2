"""From what a run driver told to the raw data of a benchmark."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from trtforge.benchmark.sample import Sample, Status
from trtforge.benchmark.workload import Wave


def collect(
    waves: Sequence[Wave],
    outputs: Iterable[Mapping[str, Any]],
    *,
    who: str,
    workload: str,
    timeout_s: float,
) -> list[Sample]:
    """One sample per request. Requests that nothing is told of have failed; they count too.

    Args:
        outputs: Of the waves' jobs and of others (`trtforge.engines.jobs`).
        timeout_s: A request that took longer counts as timed out.
    """
    told = {output["id"]: output for output in outputs}
    samples: list[Sample] = []
    clocks: dict[tuple[int, int], float] = {}
    for wave in waves:
        cell = wave.concurrency, wave.repeat
        output = told.get(wave.job["id"])
        start_s = 0.0
        if output is not None:
            sent_s = output["start_s"][-1]
            # Of one process, whose clock began at any time.
            start_s = sent_s - clocks.setdefault(cell, sent_s)
        for row, prompt in enumerate(wave.job["prompts"]):
            times = _times(output, row) if output is not None else ()
            samples.append(
                Sample(
                    who=who,
                    workload=workload,
                    concurrency=wave.concurrency,
                    repeat=wave.repeat,
                    request=wave.number * wave.concurrency + row,
                    start_s=start_s,
                    token_s=tuple(start_s + seconds for seconds in times),
                    input_tokens=len(prompt),
                    output_tokens=wave.job["max_new_tokens"],
                    status=_status(output, row, times, wave.job["max_new_tokens"], timeout_s),
                )
            )
    return samples


def _times(output: Mapping[str, Any], row: int) -> Sequence[float]:
    """Seconds from the request to each of its tokens, in the last repeat of the job."""
    if "request_s" in output:
        alone: Sequence[float] = output["request_s"][-1][row]
        return alone
    together: Sequence[float] = output["step_s"][-1]
    return together[: len(output["tokens"][row])]


def _status(
    output: Mapping[str, Any] | None,
    row: int,
    times: Sequence[float],
    wanted: int,
    timeout_s: float,
) -> Status:
    if output is None or not times:
        return "failed"
    if len(times) != wanted or len(output["tokens"][row]) != wanted:
        return "short"
    return "timed-out" if times[-1] > timeout_s else "ok"
