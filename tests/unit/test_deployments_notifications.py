"""What a Slack-style webhook receives: JSON whatever a message holds, and no markup of its own."""

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prefect.server.events.jinja_filters import all_filters
from prefect.server.utilities.user_templates import (
    register_user_template_filters,
    render_user_template,
    validate_user_template,
)

from deployments.files import CallWebhook, read

register_user_template_filters(all_filters)
PAYLOADS = {
    automation.name: action.payload
    for automation in read().automations
    for action in automation.actions
    if isinstance(action, CallWebhook)
}


def sent(name: str, **context: Any) -> str:
    """The `text` that arrives."""
    rendered = asyncio.run(render_user_template(PAYLOADS[name], context))
    document: dict[str, str] = json.loads(rendered)
    assert document.keys() == {"text"}
    return document["text"]


def failed_run(message: str | None, name: str = "hf://org/model") -> str:
    state = SimpleNamespace(name="Failed", message=message)
    run = SimpleNamespace(name=name, state=state)
    return sent("notify of failed runs", flow=SimpleNamespace(name="build-engine"), flow_run=run)


@pytest.mark.parametrize("name", PAYLOADS)
def test_the_server_accepts_the_template(name: str) -> None:
    validate_user_template(PAYLOADS[name])


def test_there_is_a_notification_for_each_thing_to_be_told() -> None:
    assert PAYLOADS.keys() == {
        "notify of failed runs",
        "notify of failed gates",
        "notify of published engines",
        "notify of regressions",
    }


@settings(deadline=None)
@given(st.text(max_size=80), st.text(max_size=40))
def test_any_message_arrives_as_it_was_and_can_mention_nobody(message: str, name: str) -> None:
    text = failed_run(message, name)
    assert "<" not in text
    assert ">" not in text
    plain = text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    assert plain.startswith(f"build-engine / {name} Failed: {message or 'no reason given'}")


def test_a_template_in_a_message_is_text() -> None:
    assert "{{ 1 + 1 }} {% raw %}" in failed_run("{{ 1 + 1 }} {% raw %}")


def test_a_message_of_a_whole_log_is_cut() -> None:
    assert len(failed_run("x" * 100_000)) < 1000


def test_a_published_engine_is_told_with_its_speed_and_place() -> None:
    payload = {
        "model": "Llama-2-7b-chat",
        "moved": ["latest", "prod"],
        "gpu": "NVIDIA H100",
        "backend": "trtllm",
        "backend_version": "1.2.1",
        "output_tokens_per_s": 1234.5,
        "location": "s3://engines/manifests/abc.json",
    }
    text = sent("notify of published engines", event=SimpleNamespace(payload=payload))
    assert text == (
        "Published: Llama-2-7b-chat (latest, prod) for NVIDIA H100, trtllm 1.2.1, 1234.5 output "
        "tokens/s\ns3://engines/manifests/abc.json"
    )


def test_a_failed_gate_and_a_regression_are_told() -> None:
    gate = {"model": "<m>", "failed": 1, "judged": 4}
    text = sent("notify of failed gates", event=SimpleNamespace(payload=gate))
    assert text == "Gate failed, nothing was published: &lt;m&gt;, 1 of 4 verdicts"
    worse = {
        "model": "m",
        "alias": "prod",
        "metric": "output_tokens_per_s",
        "before": 100.0,
        "now": 80.0,
        "change": -0.2,
    }
    text = sent("notify of regressions", event=SimpleNamespace(payload=worse))
    assert text == "Regression: m (prod), output_tokens_per_s 100.0 → 80.0, -20.0 %"
