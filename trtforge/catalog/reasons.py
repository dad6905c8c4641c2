"""Why a cell has to be built again: what differs from the engine that is in use."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from trtforge.engines.base import Toolchain
from trtforge.errors import InputError
from trtforge.sources import ResolvedSource
from trtforge.spec import BuildSpec, parse_spec
from trtforge.store import Manifest

_SHOWN_DIGITS = 7
_SHOWN_CHARACTERS = 60


def reasons(
    manifest: Manifest, spec: BuildSpec, resolved: ResolvedSource, toolchain: Toolchain
) -> list[str]:
    """One line for each difference, such as `toolchain: backend_version 1.2.0→1.2.1`."""
    return [
        *_weights(manifest, resolved),
        *_toolchain(manifest.core.built_with, toolchain),
        *_spec(manifest.core.spec, spec),
    ]


def _weights(manifest: Manifest, resolved: ResolvedSource) -> Iterator[str]:
    before, revision = manifest.core.model, resolved.revision
    if before.source == resolved.uri:
        return
    if before.revision and revision and before.revision != revision:
        yield f"weights: commit {before.revision[:_SHOWN_DIGITS]}→{revision[:_SHOWN_DIGITS]}"
    else:
        yield f"weights: source {before.source}→{resolved.uri}"


def _toolchain(before: Toolchain, now: Toolchain) -> Iterator[str]:
    old, new = asdict(before), asdict(now)
    for name in new:
        if old[name] != new[name]:
            yield f"toolchain: {name} {_shown(old[name])}→{_shown(new[name])}"


def _spec(before: Mapping[str, Any], spec: BuildSpec) -> Iterator[str]:
    """The model's own source is left out: its commit, not its wording, decides."""
    leave_out: dict[str, Any] = {"model": {"source"}, "engine": {"timing_cache"}}
    try:
        # Fields that are newer than the engine have their default value there.
        old = parse_spec(dict(before)).model_dump(mode="json", exclude=leave_out)
    except InputError:  # written by a version that knew other fields
        old = dict(before)
    new = spec.model_dump(mode="json", exclude=leave_out)
    was, is_now = dict(_leaves(old)), dict(_leaves(new))
    for name in sorted(is_now.keys() | was.keys()):
        if was.get(name) != is_now.get(name) and (name in is_now or name != "model.source"):
            yield f"spec: {name} {_shown(was.get(name))}→{_shown(is_now.get(name))}"


def _leaves(data: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{within}{key}.")
        else:
            yield f"{within}{key}", value


def _shown(value: Any) -> str:
    text = "none" if value is None else str(value)
    if text.startswith("sha256:"):
        return text[: len("sha256:") + _SHOWN_DIGITS]
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"
