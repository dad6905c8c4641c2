"""Two machines build the same engine at the same time, and share one bucket: the work is done once.

The machines are two homes here: they have no cache, no scratch space and no lock file in common.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from forge import Forge, write_spec
from models import write_tiny_model

from trtforge.stack import state as stack_state

TIMEOUT_S = 240


def machine(forge: Forge, home: Path) -> dict[str, str]:
    """The environment of a machine that has nothing but the addresses of the services."""
    state = stack_state.read(forge.home)
    assert state is not None
    home.mkdir()
    return {
        **forge.environment(),
        "TRTFORGE_HOME": str(home),
        "TRTFORGE_S3_ENDPOINT_URL": state.s3.endpoint_url,
        "TRTFORGE_S3_BUCKET": state.s3.bucket,
        "TRTFORGE_S3_REGION": state.s3.region,
        "TRTFORGE_S3_ACCESS_KEY_ID": state.s3.access_key_id,
        "TRTFORGE_S3_SECRET_ACCESS_KEY": state.s3.secret_access_key,
        "TRTFORGE_PREFECT_API_URL": state.prefect_api_url,
        "TRTFORGE_PREFECT_AUTH": str(state.prefect_auth),
    }


@pytest.fixture
def builds(forge: Forge, tmp_path: Path) -> Iterator[list["subprocess.Popen[str]"]]:
    """Two builds of one spec, started together; with the timing cache of the first engine."""
    model = write_tiny_model(tmp_path / "tiny-shared", seed=23)
    spec = write_spec(tmp_path / "spec.yaml", model)
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "trtforge.cli", "build", str(spec), "--json"],
            env=machine(forge, tmp_path / f"machine-{number}"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    yield started
    for process in started:
        process.kill()
        process.communicate()


def result_of(build: "subprocess.Popen[str]") -> dict[str, Any]:
    stdout, stderr = build.communicate(timeout=TIMEOUT_S)
    assert build.returncode == 0, stderr
    result: dict[str, Any] = json.loads(stdout)
    return result


@pytest.mark.usefixtures("built")
def test_each_stage_is_made_once_between_two_machines(
    forge: Forge, builds: list["subprocess.Popen[str]"]
) -> None:
    one, two = (result_of(build) for build in builds)
    assert one["engine_id"] == two["engine_id"]
    hits = {
        mine["stage"]: sorted([mine["hit"], theirs["hit"]])
        for mine, theirs in zip(one["stages"], two["stages"], strict=True)
    }
    once = [False, True]
    assert hits == dict.fromkeys(("pull", "convert", "compile", "benchmark", "publish"), once)
    assert one["answer"] == two["answer"]
    made = {key.removeprefix("stages/") for key in forge.listing() if key.startswith("stages/")}
    leases = {key.removeprefix("leases/") for key in forge.listing() if key.startswith("leases/")}
    assert leases.isdisjoint(made)
    manifest = forge.store.get_manifest(one["engine_id"])
    use = manifest.timing_cache
    assert use is not None
    assert (use.mode, use.outcome) == ("read-write", "hit")
    assert use.entries_before
    assert use.entries_before == use.entries_after
