"""A flow run as others see it: its log records, its trace, and the message of its failure."""

from collections.abc import Iterator
from contextlib import contextmanager

from prefect.runtime import flow_run

from trtforge import run_log, telemetry
from trtforge.redaction import redacted_errors


@contextmanager
def observed_run(
    flow: str, *, traceparent: str = "", **attributes: telemetry.Attribute
) -> Iterator[None]:
    """For the whole body of a flow, as a `with` block or as a decorator below `@flow`.

    Args:
        flow: Its name.
        traceparent: Of the run that asked for this one (`telemetry.current_traceparent()` there).
        attributes: Of the run's span, such as `model` and `gpu_pool`; no secrets, few values.
    """
    run_log.install()
    told = {f"trtforge.{name}": value for name, value in attributes.items()}
    told["prefect.flow_run.id"] = flow_run.id
    told["prefect.flow_run.name"] = flow_run.name
    with (
        run_log.within(run_id=flow_run.id),
        telemetry.run_span(flow, traceparent=traceparent, **told),
        # Innermost, so that the span is told the clean exception.
        redacted_errors(),
    ):
        yield
