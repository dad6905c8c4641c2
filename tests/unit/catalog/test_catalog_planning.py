"""Planning a catalogue: what changed and why, read from a real store that is not touched."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hub_server import HubServer
from prebuilt import H100, prebuild, sight, toolchain_of

from trtforge.catalog import CellPlan, parse_catalog, plan_catalog
from trtforge.catalog.snapshot import Snapshot, SnapshotReadOnlyError
from trtforge.stages.stage import Workshop
from trtforge.store import AliasName
from trtforge.store.layout import alias_key, blob_key
from trtforge.store.records import now

Data = dict[str, Any]
CPU = toolchain_of()
GPU = toolchain_of(H100)


@pytest.fixture
def kept(
    shop: Workshop, hub: HubServer, make_weights: Callable[[str], Path], data: Data
) -> dict[str, str]:
    """Every cell of the catalogue is built; the engines' ids by cell."""
    for name in ("alpha", "beta"):
        hub.add_commit(f"acme/{name}", make_weights(name))
    sight(shop, "gpu-standin", CPU)
    sight(shop, "gpu-h100", GPU)
    _, cells = parse_catalog(data)
    engines = {}
    for cell in cells:
        manifest = prebuild(shop, cell.spec, GPU if cell.gpu_type == "h100" else CPU)
        assert manifest is not None
        engines[cell.name] = manifest.engine_id
    return engines


def plan(shop: Workshop, data: Data, at: datetime | None = None, **how: Any) -> dict[str, CellPlan]:
    catalog, cells = parse_catalog(data)
    plans = plan_catalog(shop, catalog, cells, at or now(), **how)
    return {plan.cell.name: plan for plan in plans}


def told(plans: dict[str, CellPlan]) -> dict[str, tuple[str, str]]:
    return {name: (plan.status, "; ".join(plan.why)) for name, plan in plans.items()}


def listing(shop: Workshop) -> dict[str, Any]:
    client, bucket = shop.store.bucket.client, shop.store.bucket.name
    found = client.list_objects_v2(Bucket=bucket).get("Contents", [])
    return {item["Key"]: (item["ETag"], item["LastModified"]) for item in found}


@pytest.mark.usefixtures("kept")
def test_when_nothing_changed_nothing_is_to_do(shop: Workshop, data: Data) -> None:
    plans = plan(shop, data)
    assert set(told(plans).values()) == {("up to date", "")}
    assert plans["alpha/h100/chat"].engine is not None


@pytest.mark.usefixtures("kept")
def test_planning_writes_nothing(
    shop: Workshop, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = listing(shop)
    # Whoever uses a stage record that is days old writes it again, for `gc`; a plan does not.
    monkeypatch.setattr("trtforge.store.stages.now", lambda: now() + timedelta(days=3))
    data["profiles"]["chat"]["engine"]["max_batch_size"] = 8
    assert {status for status, _ in told(plan(shop, data)).values()} == {"changed"}
    assert listing(shop) == before
    with pytest.raises(SnapshotReadOnlyError):
        Snapshot(shop.store).put_run_file("run", "name", b"")


@pytest.mark.usefixtures("kept")
def test_new_weights_change_the_cells_of_their_model_alone(
    shop: Workshop, data: Data, hub: HubServer, make_weights: Callable[[str], Path]
) -> None:
    before = hub.repo("acme/alpha")
    assert before is not None
    old = before.refs["main"]
    new = hub.add_commit("acme/alpha", make_weights("alpha-2"))
    why = f"weights: commit {old[:7]}→{new[:7]}"
    assert told(plan(shop, data)) == {
        "alpha/standin/chat": ("changed", why),
        "alpha/h100/chat": ("changed", why),
        "beta/standin/chat": ("up to date", ""),
    }


@pytest.mark.usefixtures("kept")
def test_a_commit_with_the_same_files_changes_nothing(
    shop: Workshop, data: Data, hub: HubServer, make_weights: Callable[[str], Path]
) -> None:
    same = make_weights("same")
    repo = hub.repo("acme/alpha")
    assert repo is not None
    for file in repo.commits[repo.refs["main"]].iterdir():
        (same / file.name).write_bytes(file.read_bytes())
    (same / "NEWS.txt").write_text("a new badge")
    assert hub.add_commit("acme/alpha", same) != next(iter(repo.commits))
    assert set(told(plan(shop, data)).values()) == {("up to date", "")}


@pytest.mark.usefixtures("kept")
def test_a_new_toolchain_changes_the_cells_of_its_pool_alone(shop: Workshop, data: Data) -> None:
    newer = replace(GPU, backend_version="2.14.0+cu130", image_digest=f"sha256:{'ab' * 32}")
    sight(shop, "gpu-h100", newer)
    found = told(plan(shop, data))
    assert found["alpha/h100/chat"] == (
        "changed",
        "toolchain: backend_version 2.13.0+cu130→2.14.0+cu130; "
        "toolchain: image_digest none→sha256:abababa",
    )
    assert found["alpha/standin/chat"][0] == "up to date"


@pytest.mark.usefixtures("kept")
def test_what_differs_in_the_spec_is_named(shop: Workshop, data: Data) -> None:
    data["models"][1]["overrides"] = {
        "engine": {"max_batch_size": 8},
        "publish": {"aliases": ["latest", "prod"]},
    }
    assert told(plan(shop, data))["beta/standin/chat"] == (
        "changed",
        "spec: engine.max_batch_size 4→8; spec: publish.aliases ['latest']→['latest', 'prod']",
    )


@pytest.mark.usefixtures("hub")
def test_what_was_never_built_and_what_nobody_has_looked_at(
    shop: Workshop, data: Data, hub: HubServer, make_weights: Callable[[str], Path]
) -> None:
    for name in ("alpha", "beta"):
        hub.add_commit(f"acme/{name}", make_weights(name))
    sight(shop, "gpu-standin", CPU)
    found = told(plan(shop, data))
    assert found["alpha/standin/chat"] == ("changed", "never built")
    assert found["alpha/h100/chat"] == (
        "unknown toolchain",
        "no run has looked at the aoti of gpu-h100 yet",
    )


@pytest.mark.usefixtures("hub")
def test_a_lost_blob_is_built_again(shop: Workshop, data: Data, kept: dict[str, str]) -> None:
    manifest = shop.store.get_manifest(kept["beta/standin/chat"])
    engine = next(f for f in manifest.core.files if f.path == "rank0.engine")
    shop.store.bucket.delete(blob_key(engine.sha256))
    assert told(plan(shop, data))["beta/standin/chat"] == (
        "changed",
        "the result of compile is not in the store",
    )


def test_a_roll_back_lasts_until_something_changes(
    shop: Workshop, data: Data, kept: dict[str, str]
) -> None:
    cell = parse_catalog(data)[1][-1]
    # A second engine, and a person who goes back to the first.
    data["models"][1]["overrides"] = {"engine": {"max_batch_size": 8}}
    changed = parse_catalog(data)[1][-1].spec
    assert prebuild(shop, changed, CPU) is not None
    name = AliasName("beta", CPU.device_name, "aoti", "latest")
    first = kept[cell.name]
    shop.store.aliases.roll_back(name, by="ann@desk", to=first)
    status, why = told(plan(shop, data))[cell.name]
    assert status == "held"
    assert f"to {first[:12]} by ann@desk" in why
    data["models"][1]["overrides"]["engine"]["max_batch_size"] = 16
    assert told(plan(shop, data))[cell.name][0] == "changed"


@pytest.mark.usefixtures("kept")
def test_a_finished_engine_without_its_alias_is_told_as_such(shop: Workshop, data: Data) -> None:
    shop.store.bucket.delete(alias_key(AliasName("beta", CPU.device_name, "aoti", "latest")))
    found = told(plan(shop, data))["beta/standin/chat"]
    assert found == ("changed", "alias latest is not set")


@pytest.mark.usefixtures("hub")
def test_an_engine_that_failed_its_gate_is_not_built_again(
    shop: Workshop, data: Data, hub: HubServer, make_weights: Callable[[str], Path]
) -> None:
    hub.add_commit("acme/beta", make_weights("beta"))
    data["models"] = data["models"][1:]
    sight(shop, "gpu-standin", CPU)
    assert prebuild(shop, parse_catalog(data)[1][0].spec, CPU, wrong="it speaks Dutch") is None
    status, why = told(plan(shop, data))["beta/standin/chat"]
    assert status == "gate failed"
    assert "it speaks Dutch" in why


@pytest.mark.usefixtures("kept")
def test_gated_vanished_and_unreachable_sources_concern_their_own_cells(
    shop: Workshop, data: Data, hub: HubServer, make_weights: Callable[[str], Path]
) -> None:
    hub.add_commit("acme/alpha", make_weights("alpha-2"), gated=True)
    data["models"].append({**data["models"][1], "name": "gone", "source": "hf://acme/gone"})
    data["models"].append({**data["models"][1], "name": "here", "source": "/nowhere/at/all"})
    found = told(plan(shop, data))
    assert found["alpha/h100/chat"][0] == "gated"
    assert "Accept the terms" in found["alpha/h100/chat"][1]
    assert found["gone/standin/chat"][0] == "vanished"
    assert found["here/standin/chat"][0] == "vanished"
    assert found["beta/standin/chat"] == ("up to date", "")
    hub.stop()
    assert told(plan(shop, data))["beta/standin/chat"][0] == "unreachable"


@pytest.mark.usefixtures("kept")
def test_a_pool_with_another_gpu_than_the_catalogue_says_is_refused(
    shop: Workshop, data: Data
) -> None:
    sight(shop, "gpu-h100", toolchain_of("NVIDIA L4"))
    found = told(plan(shop, data))["alpha/h100/chat"]
    assert found == (
        "refused",
        "pool gpu-h100 has NVIDIA L4, and the catalogue says that h100 is NVIDIA H100 80GB HBM3",
    )
    sight(shop, "gpu-h100", GPU, memory_bytes=42_000_000_000)
    assert (
        "have 42 GB, and the catalogue says 80 GB" in told(plan(shop, data))["alpha/h100/chat"][1]
    )


@pytest.mark.usefixtures("kept")
def test_what_is_too_large_for_the_gpu_is_refused(shop: Workshop, data: Data) -> None:
    larger = {"engine": {"max_batch_size": 4096, "max_seq_len": 131072}}  # 137 GB of caches
    data["models"][0]["overrides"] = larger
    found = told(plan(shop, data))
    status, why = found["alpha/h100/chat"]
    assert status == "refused"
    assert "engine.max_batch_size = 4096" in why
    assert "and has 80.0 GB" in why
    # A CPU has no GPU's memory to be too small.
    assert found["alpha/standin/chat"][0] == "changed"


@pytest.mark.usefixtures("kept")
def test_a_change_waits_for_its_turn(shop: Workshop, data: Data) -> None:
    data["models"][1] |= {"every": "7d", "overrides": {"engine": {"max_batch_size": 8}}}
    waiting = plan(shop, data)["beta/standin/chat"]
    assert waiting.status == "not due"
    assert waiting.why[0] == "spec: engine.max_batch_size 4→8"
    assert "every 7 days" in waiting.why[1]
    later = now() + timedelta(days=8)
    assert plan(shop, data, later)["beta/standin/chat"].status == "changed"
    assert plan(shop, data, ignore_schedule=True)["beta/standin/chat"].status == "changed"


@pytest.mark.usefixtures("kept")
def test_the_key_of_a_cell_changes_with_what_decides_its_build(shop: Workshop, data: Data) -> None:
    before = plan(shop, data)
    assert len({plan.key for plan in before.values()}) == 3
    sight(shop, "gpu-h100", replace(GPU, driver_version="590.10"))
    after = plan(shop, data)
    changed = {name for name in before if before[name].key != after[name].key}
    assert changed == {"alpha/h100/chat"}


@pytest.mark.usefixtures("kept")
def test_each_object_is_read_once(shop: Workshop, data: Data) -> None:
    read: list[str] = []
    client = shop.store.bucket.client

    def note(params: dict[str, Any], **_: Any) -> None:
        read.append(params["Key"])

    client.meta.events.register("provide-client-params.s3.GetObject", note)
    client.meta.events.register("provide-client-params.s3.HeadObject", note)
    plan(shop, data)
    client.meta.events.unregister("provide-client-params.s3.GetObject", note)
    client.meta.events.unregister("provide-client-params.s3.HeadObject", note)
    assert len(read) == len(set(read))
    assert len([key for key in read if key.startswith("stages/")]) == 2 * 2 + 3 * 3


def test_a_worker_that_chose_the_cpu_by_itself_answers_for_those_who_ask_for_it(
    shop: Workshop, hub: HubServer, make_weights: Callable[[str], Path], data: Data
) -> None:
    hub.add_commit("acme/beta", make_weights("beta"))
    data["models"] = data["models"][1:]
    data["gpus"]["standin"]["overrides"] = {"engine": {"options": {"device": "cpu"}}}
    sight(shop, "gpu-standin", CPU, seen_at=datetime(2026, 1, 1, tzinfo=UTC))
    assert told(plan(shop, data))["beta/standin/chat"] == ("changed", "never built")
    sight(shop, "gpu-standin", GPU)
    assert told(plan(shop, data))["beta/standin/chat"][0] == "unknown toolchain"
