"""What others can act on: events of Prefect, for automations and webhooks.

    trtforge.engine.published   an engine is in the store and its aliases were moved
    trtforge.gate.failed        an engine was built, and did not pass
    trtforge.regression         an engine is slower than the one in use, or than it was itself

The resource is `trtforge.engine.<engine id>` where there is an engine id, else
`trtforge.model.<name>`; the model is always related (role `model`). Prefect adds the flow run. A
payload is small, plain JSON without secrets. No event ever fails a build.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from prefect.events import emit_event
from prefect.settings import get_current_settings

from trtforge.benchmark.metrics import Measurement
from trtforge.redaction import redact, redact_value
from trtforge.store import Manifest

PUBLISHED = "trtforge.engine.published"
GATE_FAILED = "trtforge.gate.failed"
REGRESSION = "trtforge.regression"

# Prefect refuses events of more than 1.5 MB; a webhook's receiver much less.
_MOST_BYTES = 16_000
_MOST_VERDICTS = 5
_MOST_CHARACTERS = 500
_log = logging.getLogger("trtforge")


def emit_published(manifest: Manifest, location: str, aliases: Mapping[str, bool]) -> None:
    """An engine was published.

    Args:
        location: `s3://…` of the manifest.
        aliases: Name of each alias asked for, and whether it moved.
    """
    payload = published_payload(manifest, location, aliases)
    _emit(PUBLISHED, manifest.core.model.name, payload, engine_id=manifest.engine_id)


def published_payload(
    manifest: Manifest, location: str, aliases: Mapping[str, bool]
) -> dict[str, Any]:
    """What the event of a published engine says."""
    core = manifest.core
    toolchain = core.built_with
    return {
        "engine_id": manifest.engine_id,
        "model": core.model.name,
        "source": core.model.source,
        "revision": core.model.revision,
        "backend": toolchain.backend,
        "backend_version": toolchain.backend_version,
        "gpu": toolchain.device_name,
        "location": location,
        "aliases": sorted(aliases),
        "moved": sorted(name for name, moved in aliases.items() if moved),
        "size_bytes": core.size_bytes,
        **_speed(manifest.benchmark),
    }


def emit_gate_failed(
    model: str, engine: Mapping[str, Any], verdicts: Sequence[Mapping[str, Any]]
) -> None:
    """A gate stopped an engine.

    Args:
        model: Its name.
        engine: Which engine: backend, GPU, limits; plain JSON.
        verdicts: As in the benchmark stage's facts; the failed ones are told, the first few.
    """
    failed = [verdict for verdict in verdicts if not verdict.get("passed")]
    payload = {
        "model": model,
        "engine": dict(engine),
        "failed": len(failed),
        "judged": len(verdicts),
        "verdicts": [
            {name: _short(value) for name, value in verdict.items()}
            for verdict in failed[:_MOST_VERDICTS]
        ],
    }
    _emit(GATE_FAILED, model, payload)


def emit_regression(
    model: str,
    *,
    engine_id: str,
    than_engine_id: str,
    alias: str,
    metric: str,
    before: float,
    now: float,
    allowed: float,
) -> None:
    """An engine is worse than the one that an alias points at, by more than is allowed.

    Args:
        metric: Such as `output_tokens_per_s`.
        before, now: Its values, of the engine in use and of the new one.
        allowed: Share by which it may be worse.
    """
    payload = {
        "model": model,
        "engine_id": engine_id,
        "than_engine_id": than_engine_id,
        "alias": alias,
        "metric": metric,
        "before": before,
        "now": now,
        "change": now / before - 1 if before else None,
        "allowed": allowed,
    }
    _emit(REGRESSION, model, payload, engine_id=engine_id)


def _emit(event: str, model: str, payload: Mapping[str, Any], engine_id: str = "") -> None:
    if get_current_settings().api.url is None:
        return  # nobody to tell, and Prefect would look for a server for seconds
    model_id = f"trtforge.model.{model}"
    resource = {
        "prefect.resource.id": f"trtforge.engine.{engine_id}" if engine_id else model_id,
        "prefect.resource.name": f"engine {engine_id[:12]}" if engine_id else model,
        "trtforge.model": model,
    }
    related = [{"prefect.resource.id": model_id, "prefect.resource.role": "model"}]
    try:
        told = redact_value(dict(payload))
        if len(json.dumps(told, default=str)) > _MOST_BYTES:
            told = {name: _short(value) for name, value in told.items()}
        # Through JSON, so that nothing gets in which the receiver could not read.
        emit_event(
            event=event,
            resource=resource,
            related=related if engine_id else [],
            payload=json.loads(json.dumps(told, default=str)),
        )
    except Exception as error:
        _log.warning("the event %s was not sent: %s", event, redact(str(error)))


def _speed(benchmark: Mapping[str, Any] | None) -> dict[str, float]:
    """The best throughput, and how it compares with eager PyTorch at the same concurrency."""
    if not benchmark:
        return {}
    pairs = [
        (Measurement.from_json(mine), Measurement.from_json(theirs))
        for mine, theirs in zip(benchmark["engine"], benchmark["eager"], strict=True)
    ]
    best, eager = max(pairs, key=lambda pair: pair[0].output_tokens_per_s)
    return {
        "concurrency": best.concurrency,
        "output_tokens_per_s": round(best.output_tokens_per_s, 2),
        "over_eager": round(best.output_tokens_per_s / eager.output_tokens_per_s, 3),
    }


def _short(value: Any) -> Any:
    """A value that fits into an event."""
    if isinstance(value, int | float | bool | None):
        return value
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}…"
