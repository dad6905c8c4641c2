"""Engines that nobody compiled, with every record that a build leaves: the store as if they were.

The keys are the real ones, so whoever plans the same spec finds it all done.
"""

import hashlib
import json
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

from trtforge.engines.base import Toolchain
from trtforge.files import FileRef, files_digest
from trtforge.sources import ResolvedSource, fetch, parse_source, resolve
from trtforge.spec import BuildSpec, EngineSpec
from trtforge.stages.benchmark import benchmark_inputs
from trtforge.stages.compile import compile_inputs, engine_files
from trtforge.stages.convert import convert_inputs
from trtforge.stages.publish import make_manifest, point_aliases, publish_inputs
from trtforge.stages.pull import pull_inputs, pulled_model
from trtforge.stages.stage import Workshop, stage_key
from trtforge.store import Manifest, StageResult
from trtforge.store.sightings import Sighting, variant

H100 = "NVIDIA H100 80GB HBM3"


def toolchain_of(gpu_name: str | None = None, **differs: Any) -> Toolchain:
    """A toolchain of aoti, for a CPU or a GPU."""
    usual: dict[str, Any] = {
        "backend": "aoti",
        "backend_version": "2.13.0+cpu" if gpu_name is None else "2.13.0+cu130",
        "tensorrt_version": None,
        "cuda_version": "13.0" if gpu_name else None,
        "driver_version": "580.82.07" if gpu_name else None,
        "gpu_name": gpu_name,
        "compute_capability": "9.0" if gpu_name else None,
        "cpu": "x86_64 avx2",
        "compiler": "g++ 12.2.0",
        "os": "linux",
        "arch": "x86_64",
        "image_digest": None,
    }
    return Toolchain(**{**usual, **differs})


def sight(
    shop: Workshop,
    pool: str,
    toolchain: Toolchain,
    engine: EngineSpec | None = None,
    *,
    memory_bytes: int | None = None,
    seen_at: datetime | None = None,
) -> None:
    """Tell the store what a pool has."""
    engine = engine or EngineSpec()
    told: dict[str, Any] = {"seen_at": seen_at} if seen_at else {}
    shop.store.sightings.put(
        Sighting(
            pool=pool,
            backend=engine.backend,
            variant=variant(engine),
            toolchain=toolchain.to_json(),
            gpu_memory_bytes=memory_bytes,
            **told,
        )
    )


def prebuild(
    shop: Workshop,
    spec: BuildSpec,
    toolchain: Toolchain,
    *,
    wrong: str = "",
    seconds: float = 60.0,
) -> Manifest | None:
    """Leave in the store what a build of `spec` leaves there.

    Args:
        wrong: Why the engine does not pass the gate; then nothing is published.
        seconds: What compiling took, and measuring.
    """
    resolved = resolve(parse_source(spec.model.source), token=shop.hub_token)
    pulled = _pull(shop, resolved)
    model = pulled_model(spec, resolved, pulled)
    convert = convert_inputs(model, spec)
    made = _blobs(shop, convert, "config.json", "rank0.safetensors")
    converted = _record(shop, "convert", convert, made, {}, 5.0)
    compiling = compile_inputs(converted.outputs, spec, toolchain)
    made = _blobs(shop, compiling, "config.json", "rank0.engine", "model.cache")
    effective = {"max_batch_size": spec.engine.max_batch_size}
    facts = {
        "effective": effective,
        "cache": "cold",
        "compile_s": seconds,
        "cold_compile_s": seconds,
    }
    compiled = _record(shop, "compile", compiling, made, facts, seconds)
    engine = engine_files(compiled.outputs)
    measuring = benchmark_inputs(spec, model, engine, toolchain)
    made = _blobs(shop, measuring, "report.json", "requests.jsonl")
    measured = _record(shop, "benchmark", measuring, made, _measured(wrong), seconds)
    if wrong:
        return None
    manifest = make_manifest(spec, model, converted, compiled, measured, toolchain)
    shop.store.publish_manifest(manifest)
    trying = publish_inputs(spec, manifest.engine_id, toolchain)
    answer = {"prompt": spec.publish.prompt, "text": "Tokyo", "tokens": 1, "seconds": 0.5}
    tried = {"engine_id": manifest.engine_id, "answer": answer}
    _record(shop, "publish", trying, [], tried, 3.0)
    point_aliases(shop, spec, manifest)
    return manifest


def _pull(shop: Workshop, resolved: ResolvedSource) -> StageResult:
    inputs = pull_inputs(resolved)
    directory = shop.work_root / f"pulled-{stage_key('pull', inputs)[:16]}"
    refs = fetch(resolved, directory, token=shop.hub_token)
    for ref in refs:
        shop.store.put_file(directory / ref.path, ref)
    shutil.rmtree(directory)
    facts = {"content_digest": files_digest(refs)}
    return _record(shop, "pull", inputs, refs, facts, 10.0)


def _blobs(shop: Workshop, inputs: dict[str, Any], *names: str) -> list[FileRef]:
    """Files that differ where their inputs do."""
    text = json.dumps(inputs, sort_keys=True)
    return [shop.store.put_bytes(f"{name} {text}".encode(), name) for name in names]


def _record(
    shop: Workshop,
    stage: str,
    inputs: dict[str, Any],
    outputs: list[FileRef],
    facts: dict[str, Any],
    seconds: float,
) -> StageResult:
    result = StageResult(
        stage=stage,
        key=stage_key(stage, inputs),
        inputs=inputs,
        outputs=tuple(outputs),
        facts=facts,
        seconds=seconds,
    )
    return shop.store.put_stage(result)


def _measured(wrong: str) -> dict[str, Any]:
    numbers = {
        "concurrency": 1,
        "input_tokens": 128,
        "output_tokens": 32,
        "repeats": 3,
        "ttft_s": 0.1,
        "itl_s": 0.01,
        "output_tokens_per_s": 100.0,
        "output_tokens_per_s_min": 99.0,
        "output_tokens_per_s_max": 101.0,
    }
    verdict = {
        "job": "alone",
        "prompt": 0,
        "agreed_tokens": 24,
        "compared_tokens": 24,
        "near_tie": False,
        "rounding_ratio": 1.0,
        "worst_step_ratio": 1.1,
        "reason": wrong,
        "passed": not wrong,
    }
    return {
        "machine": {"cpu": "test", "cores": 1, "gpu": None, "backend": "aoti"},
        "engine": [numbers],
        "eager": [numbers],
        "correctness": [verdict],
    }


def tiny_weights(directory: Path, name: str) -> Path:
    """A directory that passes for a model of its own: a config.json, and weights of no tensors."""
    directory.mkdir(parents=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_act": "silu",
        "hidden_size": 32,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "vocab_size": 8,
    }
    (directory / "config.json").write_text(json.dumps(config))
    header = b'{"__metadata__":{"name":"%s"}}' % hashlib.sha256(name.encode()).hexdigest().encode()
    data = len(header).to_bytes(8, "little") + header
    (directory / "model.safetensors").write_bytes(data)
    (directory / "tokenizer.json").write_text("{}")
    return directory
