"""Automations: made, changed, and deleted when the files have them no more.

An automation is the files' by the beginning of its name. One that somebody disabled in the UI stays
disabled.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from deployments import files
from deployments.desired import AUTOMATION_PREFIX
from deployments.ledger import Ledger

_SETS = ("after", "expect", "for_each")
_UNKNOWN_ID = "made by this run"


def apply(
    ledger: Ledger,
    automations: Iterable[files.Automation],
    deployment_ids: Mapping[str, str],
    webhook_ids: Mapping[str, str],
    to_be_made: frozenset[str],
) -> None:
    """Make `automations`.

    Args:
        ledger: Where the server is.
        automations: Of the files.
        deployment_ids: By `flow/deployment`.
        webhook_ids: Webhook blocks, by name.
        to_be_made: Deployments that a dry run would have made; they have no id yet.
    """
    known = dict.fromkeys(to_be_made, _UNKNOWN_ID) | dict(deployment_ids)
    found = {a["name"]: a for a in ledger.server.pages("/automations/filter")}
    ours = {name for name in found if name.startswith(AUTOMATION_PREFIX)}
    for automation in automations:
        name = AUTOMATION_PREFIX + automation.name
        missing = _missing(automation, known, webhook_ids)
        if missing:
            ledger.notice("automation", automation.name, "skipped", missing)
            # What it refers to is gone: left there, it would fail each time.
            continue
        ours.discard(name)
        have = found.get(name)
        body = _body(name, automation, known, webhook_ids)
        if have is None:
            ledger.create("automation", automation.name, "/automations/", body)
            continue
        body["enabled"] = automation.enabled and have["enabled"]
        if automation.enabled and not have["enabled"]:
            detail = "disabled in the UI; enable it there"
            ledger.notice("automation", automation.name, "kept", detail)
        ledger.match(
            "automation",
            automation.name,
            _comparable(have, body),
            _comparable(body, body),
            f"/automations/{have['id']}",
            method="PUT",
            body=body,
        )
    for name in sorted(ours):
        path = f"/automations/{found[name]['id']}"
        ledger.delete("automation", name.removeprefix(AUTOMATION_PREFIX), path)


def _missing(
    automation: files.Automation,
    deployment_ids: Mapping[str, str],
    webhook_ids: Mapping[str, str],
) -> str:
    for action in automation.actions:
        if isinstance(action, files.CallWebhook) and action.block not in webhook_ids:
            return f"needs the webhook block {action.block}, which is missing"
        if isinstance(action, files.RunDeployment) and action.deployment not in deployment_ids:
            return f"needs the deployment {action.deployment}, which is not on this server"
    return ""


def _body(
    name: str,
    automation: files.Automation,
    deployment_ids: Mapping[str, str],
    webhook_ids: Mapping[str, str],
) -> dict[str, Any]:
    actions: list[dict[str, Any]] = []
    for action in automation.actions:
        if isinstance(action, files.RunDeployment):
            actions.append(
                {
                    "type": action.type,
                    "source": "selected",
                    "deployment_id": deployment_ids[action.deployment],
                    "parameters": action.parameters,
                }
            )
        elif isinstance(action, files.CallWebhook):
            block_id = webhook_ids[action.block]
            actions.append(
                {"type": action.type, "block_document_id": block_id, "payload": action.payload}
            )
        else:
            actions.append(action.model_dump())
    trigger = automation.trigger.model_dump()
    return {
        "name": name,
        "description": automation.description,
        "enabled": automation.enabled,
        "trigger": {"type": "event", **trigger, **{key: sorted(trigger[key]) for key in _SETS}},
        "actions": actions,
    }


def _comparable(automation: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
    """The parts that `like` has; sets in order, one label as a list of one."""
    trigger: dict[str, Any] = {}
    for key in like["trigger"]:
        value = automation["trigger"].get(key)
        if key in _SETS:
            value = sorted(value or ())
        elif key in ("match", "match_related"):
            value = _labels(value or {})
        trigger[key] = value
    have, want = automation["actions"], like["actions"]
    shared = [{key: a.get(key) for key in w} for a, w in zip(have, want, strict=False)]
    return {
        **{key: automation[key] for key in ("name", "description", "enabled")},
        "trigger": trigger,
        "actions": {str(n): action for n, action in enumerate(shared + have[len(want) :])},
    }


def _labels(value: Any) -> Any:
    """A resource specification; Prefect answers with a list of one where several are possible."""
    if isinstance(value, list):
        value = value[0] if len(value) == 1 else value
    if not isinstance(value, Mapping):
        return value
    return {key: [v] if isinstance(v, str) else sorted(v) for key, v in value.items()}
