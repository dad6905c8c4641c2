"""Manifests of engines that nobody built, for tests of what is found in a store of many."""

from datetime import UTC, datetime, timedelta
from typing import Any

from trtforge.canonical import digest
from trtforge.engines.base import Toolchain
from trtforge.files import FileRef
from trtforge.store import AliasName, AliasRecord, Manifest, ManifestCore, ModelIdentity, Parents

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
MODEL = "SmolLM2-135M-Instruct"
H100 = "NVIDIA H100 80GB HBM3"

_ON_GPU: dict[str, Any] = {
    "gpu_name": H100,
    "compute_capability": "9.0",
    "cuda_version": "13.0",
    "driver_version": "580.82.07",
}
_BACKENDS: dict[str, dict[str, Any]] = {
    "trtllm": {"backend_version": "1.2.1", "tensorrt_version": "10.14.1"},
    "aoti": {"backend_version": "2.13.0+cu130", "tensorrt_version": None},
}


def engine(
    *,
    on: str = "gpu",
    backend: str = "trtllm",
    model: str = MODEL,
    tp: int = 1,
    hours_old: float = 1.0,
    config: dict[str, Any] | None = None,
    size_bytes: int = 1_300_000_000,
    **toolchain: Any,
) -> Manifest:
    """The manifest of an engine; `toolchain` says what differs from the usual one."""
    usual = Toolchain(
        backend=backend,
        cuda_version=None,
        driver_version=None,
        gpu_name=None,
        compute_capability=None,
        cpu="x86_64 avx2 avx512f",
        compiler="g++ 13.3.0",
        os="linux",
        arch="x86_64",
        image_digest=None,
        **_BACKENDS[backend],
    ).to_json()
    source = f"hf://HuggingFaceTB/{model}"
    core = ManifestCore(
        model=ModelIdentity(
            name=model,
            source=f"{source}@12fd25f",
            revision="12fd25f77366fa6b3b4b768ec3050bf629380bac",
            content_digest=digest(model),
            licence="apache-2.0",
        ),
        spec={"checkpoint": {"tp": tp, "pp": 1}, "hours_old": hours_old},
        config={"max_batch_size": 8, "max_seq_len": 2048, **(config or {})},
        toolchain={**usual, **(_ON_GPU if on == "gpu" else {}), **toolchain},
        files=(FileRef("rank0.engine", size_bytes, "a" * 64),),
        parents=Parents(source="b" * 64, checkpoint="c" * 64),
        gates={"correctness": {"passed": True}},
    )
    made = Manifest.of(core)
    return made.model_copy(update={"created_at": NOW - timedelta(hours=hours_old)})


def alias(manifest: Manifest, name: str) -> tuple[AliasName, AliasRecord]:
    """An alias that points at an engine."""
    toolchain = manifest.core.built_with
    where = AliasName(manifest.core.model.name, toolchain.device_name, toolchain.backend, name)
    record = AliasRecord(engine_id=manifest.engine_id, previous=None, by="test", at=NOW, history=())
    return where, record
