"""When another try may help: a service that did not answer, not a wrong spec or a failed build."""

from typing import Any

from prefect.client.schemas.objects import State, TaskRun

from trtforge.errors import ServiceError


def if_service_failed(_task: Any, _run: TaskRun, state: State[Any]) -> bool:
    """Condition for `@task(retry_condition_fn=...)`."""
    try:
        state.result()
    except ServiceError:
        return True
    except BaseException:
        return False
    return False
