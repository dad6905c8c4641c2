"""publish: blobs, manifest, a try of the published copy; and, when it answered, the aliases."""

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtforge.engines.base import Toolchain
from trtforge.engines.registry import open_backend
from trtforge.engines.standin import refuse_standin
from trtforge.errors import GateError
from trtforge.files import files_digest
from trtforge.gates.enforce import correctness_told
from trtforge.progress import OnProgress
from trtforge.spec import BuildSpec, EngineSpec
from trtforge.stages.benchmark import measurements, verdicts
from trtforge.stages.compile import engine_files, timing_cache_use
from trtforge.stages.prompts import question
from trtforge.stages.pull import PulledModel
from trtforge.stages.stage import Made, StageOutcome, Workshop, run_stage
from trtforge.store import (
    AliasName,
    Manifest,
    ManifestCore,
    ModelIdentity,
    Parents,
    StageResult,
)
from trtforge.store.aliases import who
from trtforge.tokenizer import open_tokenizer

_log = logging.getLogger("trtforge")


class PublishedCopyError(GateError):
    """The published copy, downloaded to an empty directory, generated nothing."""


@dataclass(frozen=True)
class Publication:
    """A published engine: its manifest, what its published copy answered, and how that went."""

    manifest: Manifest
    answer: dict[str, Any]
    outcome: StageOutcome


def make_manifest(
    spec: BuildSpec,
    model: PulledModel,
    checkpoint: StageResult,
    engine: StageResult,
    bench: StageResult,
    toolchain: Toolchain,
) -> Manifest:
    """Describe the engine, whether it passed the gates or not."""
    facts: dict[str, Any] = engine.facts
    core = ManifestCore(
        model=ModelIdentity(
            name=model.name,
            source=model.source,
            revision=model.revision,
            content_digest=model.content_digest,
            licence=model.licence,
        ),
        # The same engine has the same id, however its compiler was spared some work.
        spec=spec.model_dump(mode="json", exclude={"engine": {"timing_cache"}}),
        config=facts["effective"],
        toolchain=toolchain.to_json(),
        files=(*engine_files(engine.outputs), *model.companions),
        parents=Parents(source=model.content_digest, checkpoint=files_digest(checkpoint.outputs)),
        # Of the gates, what belongs to this engine alone: `trtforge.store.gates` has the rest.
        gates=correctness_told(verdicts(bench.facts)),
    )
    return Manifest.of(
        core,
        timings={
            "convert": checkpoint.seconds,
            "compile": engine.seconds,
            "benchmark": bench.seconds,
        },
        # Not part of the core: measuring the same engine again must not make it another one.
        benchmark=benchmark_summary(bench),
        evidence=bench.outputs,
        timing_cache=timing_cache_use(engine),
    )


def benchmark_summary(bench: StageResult) -> dict[str, Any]:
    """What a manifest says of a benchmark stage's result."""
    facts: dict[str, Any] = bench.facts
    return {
        "engine": [m.to_json() for m in measurements(facts, "engine")],
        "eager": [m.to_json() for m in measurements(facts, "eager")],
        "machine": facts["machine"],
        "report_sha256": next(f.sha256 for f in bench.outputs if f.path == "report.json"),
    }


def publish_inputs(spec: BuildSpec, engine_id: str, toolchain: Toolchain) -> dict[str, Any]:
    """What decides how the published copy is tried."""
    return {
        "engine_id": engine_id,
        "prompt": spec.publish.prompt,
        "max_output_len": spec.publish.max_output_len,
        "toolchain": toolchain.to_json(),
    }


def publish(
    shop: Workshop, spec: BuildSpec, manifest: Manifest, toolchain: Toolchain
) -> Publication:
    """Publish the engine, and try what was published. No alias points at it yet.

    Raises:
        StandinError: A stand-in for the toolchain made the engine.
        PublishedCopyError: The published copy does not generate.
    """
    refuse_standin(manifest.core.built_with)

    def make(scratch: Path, on_progress: OnProgress) -> Made:
        stored = shop.store.publish_manifest(manifest)
        # Nothing may come from the cache here: this is the copy that others will download.
        copy = scratch / "published"
        shop.store.materialise(stored.core.files, copy, use_cache=False, on_progress=on_progress)
        answer = _ask(shop, spec, copy, scratch, on_progress)
        shutil.rmtree(copy)
        return Made(scratch, [], {"engine_id": stored.engine_id, "answer": answer})

    inputs = publish_inputs(spec, manifest.engine_id, toolchain)
    outcome = run_stage(shop, "publish", inputs, make, _describe)
    facts: dict[str, Any] = outcome.result.facts
    return Publication(shop.store.get_manifest(manifest.engine_id), facts["answer"], outcome)


def point_aliases(shop: Workshop, spec: BuildSpec, manifest: Manifest) -> dict[str, bool]:
    """Point the aliases of the spec at a published engine; which of them moved."""
    return {
        alias: shop.store.set_alias(alias_name(manifest, alias), manifest.engine_id, by=who()).moved
        for alias in spec.publish.aliases
    }


def alias_name(manifest: Manifest, alias: str) -> AliasName:
    """Where an alias of this engine lies: per model, GPU (or CPU) and backend."""
    toolchain = manifest.core.built_with
    return AliasName(
        model=manifest.core.model.name,
        gpu=toolchain.device_name,
        backend=toolchain.backend,
        alias=alias,
    )


def generate(
    shop: Workshop,
    engine: EngineSpec,
    engine_dir: Path,
    ids: Sequence[int],
    max_new_tokens: int,
    stop_ids: Sequence[int],
    work_dir: Path,
    on_progress: OnProgress,
    sampling: dict[str, Any] | None = None,
) -> tuple[list[int], list[float]]:
    """Generate once with an engine directory: new token ids and their times in seconds."""
    job = {
        "id": "generate",
        "prompts": [list(ids)],
        "max_new_tokens": max_new_tokens,
        "stop_ids": list(stop_ids),
        "sampling": sampling or {},
    }
    run = open_backend(engine.backend, shop.interpreter(engine.backend)).run(
        engine,
        engine_dir=engine_dir,
        jobs=[job],
        logits_dir=work_dir,
        work_dir=work_dir,
        on_progress=on_progress,
        on_log=lambda line: _log.debug("%s", line),
    )
    output = run.outputs[0]
    return output["tokens"][0], output["step_s"][0]


def _ask(
    shop: Workshop, spec: BuildSpec, copy: Path, scratch: Path, on_progress: OnProgress
) -> dict[str, Any]:
    tokenizer = open_tokenizer(copy)
    ids, max_new_tokens = question(spec, tokenizer)
    stop_ids = tokenizer.stop_ids if tokenizer else []
    tokens, step_s = generate(
        shop, spec.engine, copy, ids, max_new_tokens, stop_ids, scratch, on_progress
    )
    if not tokens:
        raise PublishedCopyError(
            "the published copy was downloaded and loaded, but generated no token",
            field="publish.prompt",
            value=spec.publish.prompt,
            remedy="The aliases were not moved; look at the engine with `trtforge generate`",
        )
    return {
        "prompt": spec.publish.prompt if tokenizer else f"token ids {ids}",
        "text": tokenizer.decode(tokens) if tokenizer else f"token ids {tokens}",
        "tokens": len(tokens),
        "stopped": bool(stop_ids) and tokens[-1] in stop_ids,
        "seconds": step_s[-1],
    }


def _describe(result: StageResult) -> str:
    facts: dict[str, Any] = result.facts
    return (
        f"engine {facts['engine_id'][:12]}; its published copy answered with "
        f"{facts['answer']['tokens']} tokens"
    )
