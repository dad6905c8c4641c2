"""The workshop of a task: settings of this process, and the Hub token of whoever runs it."""

import os
from dataclasses import replace
from functools import lru_cache
from typing import cast

from prefect.blocks.system import Secret
from prefect.runtime import flow_run
from pydantic import SecretStr

from tasks.patience import patiently
from trtforge import telemetry
from trtforge.redaction import remember
from trtforge.stages.stage import Workshop
from trtforge.stages.workshop import open_workshop

HUB_TOKEN_BLOCK = "hf-token"


def task_workshop(*, force: bool) -> Workshop:
    """A workshop with the token of the Secret block `hf-token`, or else of HF_TOKEN.

    The tasks of a run share one: to ask for the token and to make a client of the storage takes
    longer than many a task.
    """
    run_id = flow_run.id
    shop = _open() if run_id is None else _of_run(run_id)
    return replace(shop, force=force)


@lru_cache(maxsize=2)
def _of_run(run_id: str) -> Workshop:
    return replace(_open(), run_id=run_id)


def _open() -> Workshop:
    shop = open_workshop(hub_token=_hub_token())
    telemetry.watch_transfers(shop.store.bucket.client)
    return shop


def _hub_token() -> SecretStr | None:
    if os.environ.get("HF_TOKEN"):
        return SecretStr(os.environ["HF_TOKEN"])
    try:
        block = cast(Secret[str], patiently(lambda: Secret.load(HUB_TOKEN_BLOCK)))
    except ValueError:  # no such block
        return None
    token = str(block.get())
    remember(token)
    return SecretStr(token)
