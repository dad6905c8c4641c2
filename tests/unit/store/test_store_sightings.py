"""What is known of a pool's toolchain without a GPU."""

import pytest

from trtforge.spec import EngineSpec
from trtforge.store import Store
from trtforge.store.sightings import Sighting, variant

SEEN = {"backend": "aoti", "backend_version": "2.13.0+cu130", "gpu_name": "NVIDIA L4"}


def test_the_last_look_counts(store: Store) -> None:
    engine = EngineSpec()
    assert store.sightings.get("gpu-l4", engine) is None
    for version in ("2.12.0+cu130", "2.13.0+cu130"):
        store.sightings.put(
            Sighting(
                pool="gpu-l4",
                backend="aoti",
                variant=variant(engine),
                toolchain={**SEEN, "backend_version": version},
            )
        )
    found = store.sightings.get("gpu-l4", engine)
    assert found is not None
    assert found.found.backend_version == "2.13.0+cu130"
    assert found.found.gpu_name == "NVIDIA L4"
    assert store.sightings.get("gpu-h100", engine) is None
    assert [s.pool for s in store.sightings.all()] == ["gpu-l4"]


@pytest.mark.parametrize(
    ("engine", "name"),
    [
        (EngineSpec(), "any"),
        (EngineSpec(options={"device": "auto"}), "any"),
        (EngineSpec(options={"device": "cpu"}), "cpu"),
        (EngineSpec(backend="trtllm"), "1.2.1"),
        (EngineSpec(backend="trtllm", version="0.16.0"), "0.16.0"),
    ],
)
def test_releases_and_devices_are_seen_apart(engine: EngineSpec, name: str) -> None:
    assert variant(engine) == name
