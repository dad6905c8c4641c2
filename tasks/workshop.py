"""The workshop of a task: settings of this process, and the Hub token of whoever runs it."""

import os
from typing import cast

from prefect.blocks.system import Secret
from prefect.runtime import flow_run
from pydantic import SecretStr

from trtforge.stages.stage import Workshop
from trtforge.stages.workshop import open_workshop

HUB_TOKEN_BLOCK = "hf-token"


def task_workshop(*, force: bool) -> Workshop:
    """A workshop with the token of the Secret block `hf-token`, or else of HF_TOKEN."""
    return open_workshop(hub_token=_hub_token(), force=force, run_id=flow_run.id)


def _hub_token() -> SecretStr | None:
    if os.environ.get("HF_TOKEN"):
        return SecretStr(os.environ["HF_TOKEN"])
    try:
        block = cast(Secret[str], Secret.load(HUB_TOKEN_BLOCK))
    except ValueError:  # no such block
        return None
    return SecretStr(str(block.get()))
